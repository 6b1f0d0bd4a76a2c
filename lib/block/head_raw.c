/* Raw heads: the file's bytes are the disk's. No tables, so no order of writes but that of a flush: what was written before it is stable behind it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/head_priv.h"
#include "block/image_priv.h"
#include "block/merge.h"

#define SECTOR	    512u
#define ZEROS_BYTES (256u << 10)
#define BLOCK	    4096u /* of devices and of the page cache: what is zeroed without being written is whole ones */

static int raw_read(struct head *head, void *buf, size_t len, uint64_t guest_off)
{
	return file_read_padded(head->fd, buf, len, guest_off);
}

static int raw_write(struct head *head, const void *buf, size_t len, uint64_t guest_off)
{
	return file_write(head->fd, buf, len, guest_off);
}

static int write_zeros(int fd, uint64_t off, uint64_t len)
{
	auto_free char *zeros = calloc(1, (size_t)min_u64(len, ZEROS_BYTES));
	if (!zeros)
		return -ENOMEM;
	int err = 0;
	for (size_t n; len && !err; off += n, len -= n) {
		n = (size_t)min_u64(len, ZEROS_BYTES);
		err = file_write(fd, zeros, n, off);
	}
	return err;
}

/* Whole blocks; false where it can't be done. Of a device a hole is zeros that it doesn't have to keep: where it can't promise them it writes them. */
static bool drop_blocks(const struct head *head, uint64_t off, uint64_t len)
{
	return fallocate(head->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) == 0 ||
	       (head->is_device && fallocate(head->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) == 0);
}

/* There is nothing beneath that is to be shown or hidden. What lies behind the file's end is zeros as it is. */
static int raw_zero(struct head *head, uint64_t guest_off, uint64_t len, enum zero_mode mode)
{
	(void)mode;
	if (!head->is_device && drop_blocks(head, guest_off, len))
		return 0;
	uint64_t end = guest_off + len, first = round_up(guest_off, BLOCK), last = end / BLOCK * BLOCK;
	if (first >= last || !drop_blocks(head, first, last - first))
		return write_zeros(head->fd, guest_off, len);
	int err = guest_off < first ? write_zeros(head->fd, guest_off, first - guest_off) : 0;
	return !err && last < end ? write_zeros(head->fd, last, end - last) : err;
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
	if (ftruncate(head->fd, (off_t)virtual_size) < 0)
		return -errno;
	atomic_store(&head->virtual_size, virtual_size);
	return 0;
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
	.zero = raw_zero,
	.map = raw_head_map,
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
