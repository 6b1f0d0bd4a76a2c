#include "block/flat.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/image_priv.h"

#define COPY_BYTES (1u << 20)
#define NOT_SHARED 1 /* not an errno */

struct making {
	struct view *view;
	int fd;
	uint64_t block_size;
	uint64_t copy_left; /* bytes */
	bool has_shared;
	char *buf;
};

int flat_find(const struct view *view)
{
	if (view_depth(view) != 1 || view_snapshot(view))
		return -1;
	const struct image *image = view_layer(view, 0);
	bool whole = image_format(image) == IMAGE_RAW && S_ISREG(image->st.st_mode) &&
		     (uint64_t)image->st.st_size == view_virtual_size(view);
	return whole ? image->fd : -1;
}

static int copy(struct making *m, uint64_t off, uint64_t len)
{
	if (len > m->copy_left)
		return -EOPNOTSUPP;
	m->copy_left -= len;
	while (len) {
		size_t n = len < COPY_BYTES ? (size_t)len : COPY_BYTES;
		int err = view_read(m->view, m->buf, n, off);
		if (!err)
			err = file_write(m->fd, m->buf, n, off);
		if (err)
			return err;
		off += n;
		len -= n;
	}
	return 0;
}

/* Whole blocks of the filesystem. NOT_SHARED: these must be copied. */
static int share_blocks(struct making *m, const struct extent *e, uint64_t head, uint64_t len)
{
	struct file_clone_range range = {
		.src_fd = extent_fd(e),
		.src_offset = e->host_off + head,
		.src_length = len,
		.dest_offset = e->guest_off + head,
	};
	if (ioctl(m->fd, FICLONERANGE, &range) == 0) {
		m->has_shared = true;
		return 0;
	}
	switch (errno) {
	case EOPNOTSUPP:
	case ENOTTY:
	case EXDEV:
		return m->has_shared ? NOT_SHARED : -EOPNOTSUPP; /* one image may lie elsewhere; all of them: no use */
	case EINVAL: /* the cluster ends beyond the file's end, say */
		return NOT_SHARED;
	}
	return -errno;
}

static int add_data(struct making *m, const struct extent *e)
{
	uint64_t mask = m->block_size - 1;
	uint64_t head = -e->guest_off & mask;
	if (((e->guest_off ^ e->host_off) & mask) || head >= e->len)
		return copy(m, e->guest_off, e->len);
	uint64_t len = (e->len - head) & ~mask;
	int err = len ? share_blocks(m, e, head, len) : 0;
	if (err == NOT_SHARED)
		return copy(m, e->guest_off, e->len);
	if (!err && head)
		err = copy(m, e->guest_off, head);
	if (!err && head + len < e->len)
		err = copy(m, e->guest_off + head + len, e->len - head - len);
	return err;
}

static int add_extent(struct making *m, const struct extent *e)
{
	switch (e->kind) {
	case EXTENT_DATA: return add_data(m, e);
	case EXTENT_COMPRESSED: return copy(m, e->guest_off, e->len);
	case EXTENT_ZERO:
	case EXTENT_UNALLOCATED: return 0;
	}
	return -EINVAL;
}

static bool continues(const struct extent *run, const struct extent *e)
{
	return run->kind == EXTENT_DATA && e->kind == EXTENT_DATA && run->image == e->image && run->host_off + run->len == e->host_off;
}

static int add_all(struct making *m, const atomic_bool *stop)
{
	struct extent run = {.kind = EXTENT_ZERO};
	uint64_t end = view_virtual_size(m->view);
	for (uint64_t off = 0; off < end;) {
		struct extent e = {0};
		int err = atomic_load(stop) ? -EINTR : view_map(m->view, off, end - off, &e);
		if (!err && continues(&run, &e)) {
			run.len += e.len;
		} else if (!err) {
			err = add_extent(m, &run);
			run = e;
		}
		if (err)
			return err;
		off += e.len;
	}
	return add_extent(m, &run);
}

int flat_make(struct view *view, int dirfd, uint64_t max_copy_bytes, const atomic_bool *stop, int *ret_fd)
{
	struct statvfs vfs;
	auto_close int fd = openat(dirfd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return errno == EISDIR || errno == ENOENT ? -EOPNOTSUPP : -errno; /* a filesystem without unnamed files */
	if (fstatvfs(fd, &vfs) < 0 || ftruncate(fd, (off_t)view_virtual_size(view)) < 0)
		return -errno;
	auto_free char *buf = malloc(COPY_BYTES);
	if (!buf)
		return -ENOMEM;
	struct making m = {.view = view, .fd = fd, .block_size = vfs.f_bsize, .copy_left = max_copy_bytes, .buf = buf};
	int err = add_all(&m, stop);
	if (!err)
		*ret_fd = take_fd(&fd);
	return err;
}
