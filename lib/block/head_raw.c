/* Raw heads: the file's bytes are the disk's. No tables, so no order of writes but that of a flush: what was written before it is stable behind it. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "block/head_priv.h"
#include "block/merge.h"
#include "block/raw.h"
#include "block/share.h"

#define SECTOR 512u
#define BLOCK  4096u /* what filesystems share whole ones of */

static int raw_read(struct head *head, void *buf, size_t len, uint64_t guest_off)
{
	return file_read_padded(head->fd, buf, len, guest_off);
}

static int raw_write(struct head *head, const void *buf, size_t len, uint64_t guest_off)
{
	return file_write(head->fd, buf, len, guest_off);
}

/* There is nothing beneath that is to be shown or hidden. What lies behind the file's end is zeros as it is. */
static int raw_head_zero(struct head *head, uint64_t guest_off, uint64_t len, enum zero_mode mode)
{
	(void)mode;
	return raw_zero(head->fd, head->is_device, guest_off, len);
}

static int raw_head_map(struct head *head, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	raw_map(head->fd, guest_off, len, ret);
	return 0;
}

static int raw_resize(struct head *head, uint64_t virtual_size)
{
	uint64_t end = head_virtual_size(head);
	if (virtual_size == end)
		return 0;
	if (head->is_device)
		return virtual_size > end ? -ENOSPC : -EOPNOTSUPP;
	if (virtual_size > 1ull << 62)
		return -EFBIG;
	int err = ftruncate(head->fd, (off_t)virtual_size) < 0 ? -errno : 0;
	/* After an error it is as long as the file is. */
	struct stat st;
	if (!err)
		atomic_store(&head->virtual_size, virtual_size);
	else if (fstat(head->fd, &st) == 0 && (uint64_t)st.st_size == virtual_size)
		atomic_store(&head->virtual_size, virtual_size);
	return err;
}

/* A write that fails half-way leaves the disk as long as it was. */
static int raw_write_growing(struct head *head, const void *buf, size_t len, uint64_t guest_off)
{
	uint64_t old_end = head_virtual_size(head);
	int err = guest_off + len > old_end ? raw_resize(head, guest_off + len) : 0;
	if (!err)
		err = file_write(head->fd, buf, len, guest_off);
	if (err)
		raw_resize(head, old_end);
	return err;
}

static int share(struct head *head, const struct extent *extent, uint64_t to_off, uint64_t len)
{
	int err = share_blocks(head->fd, extent, 0, len, to_off);
	return err == SHARE_COPY ? -EINVAL : err == -EOPNOTSUPP ? -EXDEV : err;
}

int head_clone_extent(struct head *head, const struct extent *extent, uint64_t to_off, uint64_t *ret_len)
{
	uint64_t skip = 0, len = 0;
	if (head->kind != &head_raw || head->is_device || extent->kind != EXTENT_DATA || !extent->image)
		return -EXDEV;
	share_part(extent, to_off, BLOCK, &skip, &len);
	if (!len || skip)
		return -EINVAL;
	pthread_rwlock_wrlock(&head->gate);
	uint64_t old_end = head_virtual_size(head);
	int err = to_off + len > old_end ? raw_resize(head, to_off + len) : 0;
	if (!err && (err = share(head, extent, to_off, len)) && old_end < to_off + len)
		raw_resize(head, old_end);
	pthread_rwlock_unlock(&head->gate);
	err = head_changed(head, err);
	if (!err)
		*ret_len = len;
	return err;
}

static int raw_write_back(struct head *head)
{
	pthread_mutex_lock(&head->lock);
	int err = head->failed;
	pthread_mutex_unlock(&head->lock);
	return err ? err : tables_barrier(head);
}

const struct head_kind head_raw = {
	.format = IMAGE_RAW,
	.read = raw_read,
	.write = raw_write,
	.zero = raw_head_zero,
	.map = raw_head_map,
	.preallocate = raw_preallocate,
	.write_growing = raw_write_growing,
	.resize = raw_resize,
	.write_back = raw_write_back,
};

static int open_locked(int dirfd, const char *name, const char *path, enum image_lock_kind locks, struct head **ret, struct reason *why)
{
	struct head *head = NULL;
	uint64_t file_size = 0;
	int err = head_new(&head_raw, dirfd, name, path, locks, &head);
	if (!err)
		err = head_open_file(head, &file_size, why);
	if (err) {
		head_free(head);
		return err;
	}
	atomic_store(&head->virtual_size, round_up(file_size, SECTOR));
	*ret = head;
	return 0;
}

int head_open_raw(int dirfd, const char *name, const char *path, struct head **ret, struct reason *why)
{
	return open_locked(dirfd, name, path, IMAGE_LOCK_WRITE, ret, why);
}

int head_open_raw_frozen(int dirfd, const char *name, const char *path, struct head **ret, struct reason *why)
{
	return open_locked(dirfd, name, path, IMAGE_LOCK_READ, ret, why);
}

int raw_settle(int dirfd, const char *name, const char *path, struct overlay_facts *ret, struct reason *why)
{
	struct head *head = NULL;
	int err = head_open_raw(dirfd, name, path, &head, why);
	if (err)
		return err;
	struct overlay_facts facts = {.virtual_size = head_virtual_size(head)};
	err = head_flush(head); /* what another process left in the page cache */
	if (!err && fstat(head->fd, &facts.st) < 0)
		err = -errno;
	head_free(head);
	if (err)
		return reason_set(why, err, "%s: %s", path, strerror(-err));
	*ret = facts;
	return 0;
}
