#include "store/spare.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "store/store_internal.h"

#define NAME	    "spare"
#define WANTED_SIZE (256u << 10)

/* Copy on write would need space for every write. Only an empty file can be told; a filesystem that has no such thing refuses. */
static void write_in_place(int fd)
{
	int flags = 0;
	if (ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && !(flags & FS_NOCOW_FL)) {
		flags |= FS_NOCOW_FL;
		(void)ioctl(fd, FS_IOC_SETFLAGS, &flags);
	}
}

/* Written, not fallocated: what is only reserved may need space when it is written. */
static bool lengthen(int fd)
{
	static const char zeros[4096];
	struct stat st;
	if (fstat(fd, &st) < 0)
		return false;
	if (st.st_size == 0)
		write_in_place(fd);
	uint64_t end = (uint64_t)st.st_size;
	while (end < WANTED_SIZE) {
		size_t len = sizeof zeros - end % sizeof zeros;
		if (file_write(fd, zeros, len, end))
			break;
		end += len;
	}
	/* Only what the disk has taken is there when it is needed. */
	if (end > (uint64_t)st.st_size && file_sync(fd))
		end = ftruncate(fd, st.st_size) < 0 ? 0 : (uint64_t)st.st_size;
	return end >= WANTED_SIZE;
}

/* It becomes a vm.xml: what somebody else put there isn't taken, least of all another file by a second name. */
static bool is_own(const struct stat *st)
{
	return S_ISREG(st->st_mode) && st->st_nlink == 1;
}

/* -1: there is none. */
static int open_own(struct store *store)
{
	struct stat st;
	auto_close int fd = openat(store->store_fd, NAME, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	return fd >= 0 && fstat(fd, &st) == 0 && is_own(&st) ? take_fd(&fd) : -1;
}

static int open_or_make(struct store *store)
{
	struct stat st;
	if (fstatat(store->store_fd, NAME, &st, AT_SYMLINK_NOFOLLOW) == 0 && !is_own(&st))
		unlinkat(store->store_fd, NAME, 0);
	int fd = open_own(store);
	return fd >= 0 ? fd : openat(store->store_fd, NAME, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
}

void spare_make(struct store *store)
{
	if (store->spare_is_unsure)
		return;
	auto_close int fd = open_or_make(store);
	atomic_store(&store->spare_is_short, fd < 0 || !lengthen(fd));
}

void spare_restore(struct store *store)
{
	if (!atomic_load(&store->spare_is_short))
		return;
	pthread_mutex_lock(&store->spare_lock);
	spare_make(store);
	pthread_mutex_unlock(&store->spare_lock);
}

static int exchange(struct store *store, int dirfd, const char *name)
{
	return renameat2(store->store_fd, NAME, dirfd, name, RENAME_EXCHANGE) < 0 ? -errno : 0;
}

static int replace(struct store *store, int fd, int dirfd, const char *name, const void *data, size_t len, bool *ret_unsure)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	if ((uint64_t)st.st_size < len)
		return -ENOSPC;
	int err = file_write(fd, data, len, 0);
	if (!err && ftruncate(fd, (off_t)len) < 0)
		err = -errno;
	if (!err && fsync(fd) < 0)
		err = -errno;
	/* What it says is stable before it has the name. */
	if (err)
		return err;
	err = exchange(store, dirfd, name);
	/* A filesystem that can't do that hasn't, nor has one where NAME isn't there. */
	bool unsure = err && err != -EINVAL && err != -ENOSPC && err != -ENOENT;
	if (!err && (err = dir_sync(dirfd))) {
		unsure = true;
		exchange(store, dirfd, name); /* the next start shows what the VM is, unless the power fails; neither file is written into until then */
	}
	/* What was unsure before stays so, unless this has settled it. */
	if (ret_unsure && (unsure || !err))
		*ret_unsure = unsure;
	if (unsure)
		store->spare_is_unsure = true;
	return err;
}

int spare_replace(struct store *store, int dirfd, const char *name, const void *data, size_t len, bool *ret_unsure)
{
	pthread_mutex_lock(&store->spare_lock);
	auto_close int fd = store->spare_is_unsure ? -1 : open_own(store);
	int err = fd < 0 ? -ENOSPC : replace(store, fd, dirfd, name, data, len, ret_unsure);
	spare_make(store);
	pthread_mutex_unlock(&store->spare_lock);
	return err;
}
