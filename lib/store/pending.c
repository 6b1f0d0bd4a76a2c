#include "store/pending.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "store/store_internal.h"

#define COPY_CHUNK  (1u << 20)
#define HOLE_BLOCK  4096u	/* runs of zeros of at least this become holes */
#define CLONE_CHUNK (256u << 20) /* between two looks at `stop` */

char *pending_row_of(const struct image_snapshot *row)
{
	char *text = NULL;
	int n = asprintf(&text, "%s %" PRId64 ".%09u %" PRIu64 " %u", row->id, row->date_sec, row->date_nsec, row->l1_offset,
			 row->l1_size);
	return n < 0 ? NULL : text;
}

static int check_row(const struct vm_disk *disk, const struct view *view, struct reason *why)
{
	const struct image_snapshot *row = view_snapshot(view);
	auto_free char *now = row ? pending_row_of(row) : NULL;
	if (row && !now)
		return -ENOMEM;
	if (!now || strcmp(now, disk->pending_row) != 0)
		return reason_set(why, -ESTALE, "%s: its internal snapshot %s isn't the one that was cloned any more",
				  disk->pending_path, disk->pending_snapshot);
	return 0;
}

static int open_source(struct store *store, const struct vm_disk *disk, struct view **ret, struct reason *why)
{
	struct disk_source source = {disk->pending_path, disk->pending_format, disk->pending_snapshot};
	int err = view_open(store->images, &source, ret, why);
	if (err)
		return err;
	err = check_row(disk, *ret, why);
	if (err)
		view_put(take_ptr(*ret));
	return err;
}

int pending_open(struct store *store, const struct vm_disk *disk, struct view **ret, struct reason *why)
{
	struct view *view = NULL;
	int err = open_source(store, disk, &view, why);
	if (err == -ENOENT || err == -ESTALE)
		return reason_prefix(why, -EIO, "the snapshot that the disk was cloned from was deleted before its data could be copied: ");
	if (!err)
		*ret = view;
	return err;
}

int pending_set(struct vm_disk *disk, const struct frozen *from)
{
	char base[LAYER_NAME_MAX];
	layer_name_new(base, ".raw");
	vm_disk_clear_pending(disk);
	disk->pending_format = from->format;
	disk->pending_row = pending_row_of(view_snapshot(from->view));
	if (!disk->pending_row || text_set(&disk->pending_path, from->path) ||
	    text_set(&disk->pending_snapshot, from->snapshot) || text_set(&disk->pending_base, base)) {
		vm_disk_clear_pending(disk);
		return -ENOMEM;
	}
	return 0;
}

/* --- filling the base ----------------------------------------------------------------------------------------------- */

struct fill {
	struct store *store;
	struct view *view;
	struct job_progress *progress;
	int fd; /* of the base */
	char *buf;
	uint64_t block; /* of the filesystem: what shared extents are aligned to */
	bool cant_share;
};

/* Shares the blocks of the aligned part at the beginning of E; returns its length, 0 where nothing can be shared. */
static uint64_t share_extent(struct fill *fill, const struct extent *e)
{
	uint64_t mask = fill->block - 1;
	if (fill->cant_share || e->kind != EXTENT_DATA || (e->guest_off & mask) || (e->host_off & mask))
		return 0;
	uint64_t len = e->len < CLONE_CHUNK ? e->len & ~mask : CLONE_CHUNK;
	if (!len)
		return 0;
	struct file_clone_range range = {
		.src_fd = extent_fd(e), .src_offset = e->host_off, .src_length = len, .dest_offset = e->guest_off};
	if (ioctl(fill->fd, FICLONERANGE, &range) == 0)
		return len;
	if (errno == EOPNOTSUPP || errno == ENOTTY || errno == ENOSYS || errno == EXDEV)
		fill->cant_share = true;
	return 0;
}

static bool is_zero(const char *p, size_t len)
{
	return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

/* Writes BUF but for its blocks of zeros: the file is new, holes read as zeros. */
static int write_sparse(int fd, const char *buf, size_t len, uint64_t off)
{
	size_t done = 0;
	while (done < len) {
		size_t run = 0;
		bool zero = false;
		/* One run of blocks that are alike. */
		while (done + run < len) {
			size_t n = len - done - run < HOLE_BLOCK ? len - done - run : HOLE_BLOCK;
			bool block_zero = is_zero(buf + done + run, n);
			if (run && block_zero != zero)
				break;
			zero = block_zero;
			run += n;
		}
		int err = zero ? 0 : file_write(fd, buf + done, run, off + done);
		if (err)
			return err;
		done += run;
	}
	return 0;
}

static int copy_extent(struct fill *fill, const struct extent *e, uint64_t *ret_len)
{
	size_t len = e->len < COPY_CHUNK ? (size_t)e->len : COPY_CHUNK;
	/* Up to the next block, so that what follows can be shared. */
	uint64_t to_block = fill->block - (e->guest_off & (fill->block - 1));
	if (to_block < fill->block && to_block < len && !fill->cant_share)
		len = (size_t)to_block;
	int err = view_read(fill->view, fill->buf, len, e->guest_off);
	if (!err)
		err = write_sparse(fill->fd, fill->buf, len, e->guest_off);
	*ret_len = len;
	return err;
}

static int fill_all(struct fill *fill)
{
	uint64_t size = view_virtual_size(fill->view);
	uint64_t total = 0;
	if (view_allocated(fill->view, &total) == 0)
		atomic_store(&fill->progress->total, total);
	if (ftruncate(fill->fd, (off_t)size) < 0)
		return -errno;
	for (uint64_t off = 0; off < size;) {
		struct extent e;
		int err = view_map(fill->view, off, size - off, &e);
		if (err)
			return err;
		if (atomic_load(&fill->progress->stop))
			return -ECANCELED;
		uint64_t len = e.len;
		if (e.kind != EXTENT_ZERO) {
			len = share_extent(fill, &e);
			if (!len)
				err = copy_extent(fill, &e, &len);
			atomic_fetch_add(&fill->progress->done, len);
		}
		if (err)
			return err;
		off += len;
	}
	return fsync(fill->fd) < 0 ? -errno : 0;
}

/* The base may be read by those who may read what it is a copy of. */
static void give_access(int fd, const struct view *view)
{
	struct access access;
	view_access(view, &access);
	bool root = geteuid() == 0;
	if (fchmod(fd, access.mode | (root ? 0200 : 0600)) < 0 || (root && fchown(fd, access.uid, access.gid) < 0))
		return; /* then it stays ours alone */
}

static int fill_file(struct store *store, const struct vm_disk *disk, int fd, struct job_progress *progress, struct reason *why)
{
	struct stat st;
	auto_free char *buf = malloc(COPY_CHUNK);
	if (!buf || fstat(fd, &st) < 0)
		return buf ? -errno : -ENOMEM;
	struct fill fill = {.store = store, .progress = progress, .fd = fd, .buf = buf};
	fill.block = st.st_blksize >= 512 && !(st.st_blksize & (st.st_blksize - 1)) ? (uint64_t)st.st_blksize : 4096;
	int err = open_source(store, disk, &fill.view, why);
	if (err)
		return err;
	give_access(fd, fill.view);
	err = fill_all(&fill);
	if (err)
		reason_set(why, err, "%s: copying snapshot %s: %s", disk->pending_path, disk->pending_snapshot, strerror(-err));
	view_put(fill.view);
	return err;
}

/* Whether the snapshot, looked at again, is still there: only then was what we read its content. */
static int check_again(struct store *store, const struct vm_disk *disk, struct reason *why)
{
	struct view *view = NULL;
	int err = open_source(store, disk, &view, why);
	view_put(view);
	return err;
}

int fill_base(struct store *store, const struct vm_disk *disk, struct job_progress *progress, struct reason *why)
{
	char part[LAYER_NAME_MAX + 8];
	snprintf(part, sizeof part, "%s.part", disk->pending_base);
	unlinkat(store->layers_fd, part, 0); /* the rest of an earlier attempt */
	auto_close int fd = openat(store->layers_fd, part, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return reason_set(why, -errno, "%s/%s: %s", store->layers_dir, part, strerror(errno));
	atomic_store(&progress->done, 0);
	int err = fill_file(store, disk, fd, progress, why);
	if (!err)
		err = check_again(store, disk, why);
	if (!err && renameat(store->layers_fd, part, store->layers_fd, disk->pending_base) < 0)
		err = -errno;
	if (!err)
		err = dir_sync(store->layers_fd);
	if (err)
		unlinkat(store->layers_fd, part, 0);
	return err == -ENOENT ? -ESTALE : err;
}
