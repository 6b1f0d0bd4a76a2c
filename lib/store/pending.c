#include "store/pending.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/fill.h"
#include "store/store_internal.h"

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
	struct view *view = NULL;
	int err = open_source(store, disk, &view, why);
	if (err)
		return err;
	give_access(fd, view);
	err = view_fill_raw(view, fd, &(struct fill_spec){.done = &progress->done, .total = &progress->total, .stop = &progress->stop}, why);
	if (err)
		reason_prefix(why, err, "snapshot %s: ", disk->pending_snapshot);
	view_put(view);
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
	bool changed = err == -ESTALE; /* a file beneath the snapshot, if not the snapshot */
	if (!err || changed)
		err = check_again(store, disk, why);
	if (!err && changed)
		err = -EBUSY; /* it is copied anew */
	if (!err)
		err = file_rename(store->layers_fd, part, disk->pending_base);
	if (!err)
		err = dir_sync(store->layers_fd);
	if (err)
		unlinkat(store->layers_fd, part, 0);
	return err == -ENOENT ? -ESTALE : err;
}
