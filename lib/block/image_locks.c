#include "block/image_locks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

enum { PERM_READ, PERM_WRITE, PERM_WRITE_UNCHANGED, PERM_RESIZE, NR_PERMS };
enum { BYTE_USED = 100, BYTE_NOT_SHARED = 200 };

/* One bit for each permission. */
static const struct {
	unsigned used, not_shared;
} kinds[] = {
	[IMAGE_LOCK_QUIET] = {1u << PERM_READ, 0},
	[IMAGE_LOCK_READ] = {1u << PERM_READ, 1u << PERM_WRITE | 1u << PERM_RESIZE},
	[IMAGE_LOCK_READ_OURS] = {1u << PERM_READ, 1u << PERM_WRITE | 1u << PERM_RESIZE},
	[IMAGE_LOCK_WRITE] = {1u << PERM_READ | 1u << PERM_WRITE | 1u << PERM_RESIZE, 1u << PERM_WRITE | 1u << PERM_RESIZE},
};

static int lock_byte(int fd, int cmd, short type, off_t byte, struct flock *ret)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
	if (fcntl(fd, cmd, &lock) < 0)
		return -errno;
	if (ret)
		*ret = lock;
	return 0;
}

static int take_bytes(int fd, unsigned perms, off_t base)
{
	for (int i = 0; i < NR_PERMS; i++) {
		int err = perms & 1u << i ? lock_byte(fd, F_OFD_SETLK, F_RDLCK, base + i, NULL) : 0;
		if (err)
			return err;
	}
	return 0;
}

/* Whether another opener holds a byte of PERMS. */
static int test_bytes(int fd, unsigned perms, off_t base)
{
	for (int i = 0; i < NR_PERMS; i++) {
		struct flock held = {.l_type = F_UNLCK};
		int err = perms & 1u << i ? lock_byte(fd, F_OFD_GETLK, F_WRLCK, base + i, &held) : 0;
		if (err)
			return err;
		if (perms & 1u << i && held.l_type != F_UNLCK)
			return -EBUSY;
	}
	return 0;
}

void image_locks_drop(int fd)
{
	struct flock all = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = BYTE_USED, .l_len = 200};
	fcntl(fd, F_OFD_SETLK, &all);
}

/* What to say to the caller. */
static int verdict(int err, const char *path, struct reason *why)
{
	if (!err || err == -ENOLCK || err == -EOPNOTSUPP || err == -EINVAL || err == -ENOSYS)
		return 0;
	if (err == -EAGAIN || err == -EACCES)
		err = -EBUSY;
	return reason_set(why, err, err == -EBUSY ? "%s is in use by another program (a running VM?); stop it, or use one of its snapshots" : "locking %s",
			  path);
}

int image_locks_take(int fd, enum image_lock_kind kind, const char *path, struct reason *why)
{
	bool test = kind == IMAGE_LOCK_READ || kind == IMAGE_LOCK_WRITE;
	int err = take_bytes(fd, kinds[kind].used, BYTE_USED);
	if (!err)
		err = take_bytes(fd, kinds[kind].not_shared, BYTE_NOT_SHARED);
	if (!err && test)
		err = test_bytes(fd, kinds[kind].used, BYTE_NOT_SHARED);
	if (!err && test)
		err = test_bytes(fd, kinds[kind].not_shared, BYTE_USED);
	if (err)
		image_locks_drop(fd);
	return verdict(err, path, why);
}

/* Byte 100 of FD is let go while those of others are looked for. */
static int claim_from_all(int fd, int own_fd)
{
	const unsigned perms = 1u << PERM_READ;
	int err = take_bytes(fd, perms, BYTE_NOT_SHARED);
	if (!err)
		err = lock_byte(fd, F_OFD_SETLK, F_UNLCK, BYTE_USED + PERM_READ, NULL);
	if (!err)
		err = test_bytes(own_fd, perms, BYTE_USED);
	int again = take_bytes(fd, perms, BYTE_USED);
	return err ? err : again;
}

int image_locks_claim(int fd, int own_fd, bool from_all, const char *path, struct reason *why)
{
	const unsigned perms = kinds[IMAGE_LOCK_WRITE].not_shared;
	struct flock not_shared = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = BYTE_NOT_SHARED, .l_len = NR_PERMS};
	/* First taken, then tested: of two who come at once, one sees the other. */
	int err = take_bytes(fd, perms, BYTE_USED);
	if (!err && fcntl(fd, F_OFD_SETLK, &not_shared) < 0)
		err = -errno;
	if (!err)
		err = test_bytes(own_fd, perms, BYTE_NOT_SHARED);
	if (!err && from_all)
		err = claim_from_all(fd, own_fd);
	return verdict(err, path, why);
}
