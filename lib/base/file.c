#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

ssize_t file_read(int fd, void *buf, size_t len, uint64_t off)
{
	size_t done = 0;
	while (done < len) {
		ssize_t n = pread(fd, (char *)buf + done, len - done, (off_t)(off + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

int file_read_padded(int fd, void *buf, size_t len, uint64_t off)
{
	ssize_t n = file_read(fd, buf, len, off);
	if (n < 0)
		return (int)n;
	memset((char *)buf + n, 0, len - (size_t)n);
	return 0;
}

int file_write(int fd, const void *buf, size_t len, uint64_t off)
{
	size_t done = 0;
	while (done < len) {
		ssize_t n = pwrite(fd, (const char *)buf + done, len - done, (off_t)(off + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO;
		done += (size_t)n;
	}
	return 0;
}

int file_sync(int fd)
{
	return fdatasync(fd) < 0 ? -errno : 0;
}

DIR *dir_open_at(int at, const char *name)
{
	auto_close int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (dir)
		take_fd(&fd);
	return dir;
}

int dir_sync(int dirfd)
{
	return fsync(dirfd) < 0 ? -errno : 0;
}

int file_load(int fd, size_t max, char **ret_text, size_t *ret_len)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	if ((uint64_t)st.st_size > max)
		return -EFBIG;
	size_t want = (size_t)st.st_size;
	auto_free char *text = malloc(want + 1);
	if (!text)
		return -ENOMEM;
	ssize_t n = file_read(fd, text, want, 0);
	if (n < 0)
		return (int)n;
	text[n] = '\0';
	*ret_text = take_ptr(text);
	if (ret_len)
		*ret_len = (size_t)n;
	return 0;
}

bool file_is_temporary(const char *name)
{
	size_t len = strlen(name);
	return *name == '.' && len > 5 && strcmp(name + len - 4, ".tmp") == 0;
}

int file_rename(int dirfd, const char *from, const char *to)
{
	struct stat st, now;
	if (fstatat(dirfd, from, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if (renameat(dirfd, from, dirfd, to) == 0)
		return 0;
	int err = -errno;
	bool done = fstatat(dirfd, to, &now, AT_SYMLINK_NOFOLLOW) == 0 && now.st_dev == st.st_dev && now.st_ino == st.st_ino;
	return done ? 0 : err;
}

int file_replace(int dirfd, const char *name, const void *data, size_t len, mode_t mode, bool *ret_unsure)
{
	bool renamed = false;
	char tmp[300];
	if ((size_t)snprintf(tmp, sizeof tmp, ".%s.tmp", name) >= sizeof tmp)
		return -ENAMETOOLONG;
	/* Never what is there already: it may be a FIFO, or another name of somebody's file. */
	const int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
	auto_close int fd = openat(dirfd, tmp, flags, mode);
	if (fd < 0 && errno == EEXIST && unlinkat(dirfd, tmp, 0) == 0)
		fd = openat(dirfd, tmp, flags, mode);
	if (fd < 0)
		return -errno;
	int err = file_write(fd, data, len, 0);
	if (!err && fsync(fd) < 0)
		err = -errno;
	if (!err) {
		renamed = true;
		err = file_rename(dirfd, tmp, name);
		if (!err)
			err = dir_sync(dirfd);
	}
	if (err)
		unlinkat(dirfd, tmp, 0);
	if (err && ret_unsure)
		*ret_unsure = renamed;
	return err;
}
