/* A filesystem on a disk that is slow, or doesn't answer at all: shows a directory, read-only, and makes everybody wait.
 *
 *	slowfs DIR CONTROL MOUNTPOINT
 *
 * CONTROL is a file outside of both, looked at again and again: the milliseconds that each read takes, and those of each other request
 * (lookup, stat, open, close, readdir). -1: no answer, until it says something else. Stays in the foreground until it is unmounted. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define POLL_MS 5

static const char *control_path;
static int dir_fd = -1;

enum request { REQUEST_READ, REQUEST_OTHER };

static int delay_ms(enum request request)
{
	int ms[2] = {0, 0};
	FILE *control = fopen(control_path, "re");
	if (!control || fscanf(control, "%d %d", &ms[REQUEST_READ], &ms[REQUEST_OTHER]) != 2)
		ms[request] = 0;
	if (control)
		fclose(control);
	return ms[request];
}

static void sleep_ms(int ms)
{
	struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
	nanosleep(&time, NULL);
}

static void make_wait(enum request request)
{
	int ms;
	while ((ms = delay_ms(request)) < 0)
		sleep_ms(POLL_MS);
	if (ms)
		sleep_ms(ms);
}

/* "/a/b" below the directory shown. */
static const char *below(const char *path)
{
	return path[1] ? path + 1 : ".";
}

static int slow_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	(void)fi;
	make_wait(REQUEST_OTHER);
	return fstatat(dir_fd, below(path), st, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

static int slow_open(const char *path, struct fuse_file_info *fi)
{
	make_wait(REQUEST_OTHER);
	int fd = openat(dir_fd, below(path), O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	fi->fh = (uint64_t)fd;
	fi->direct_io = 1; /* each read is one */
	return 0;
}

static int slow_read(const char *path, char *buf, size_t len, off_t off, struct fuse_file_info *fi)
{
	(void)path;
	make_wait(REQUEST_READ);
	ssize_t n = pread((int)fi->fh, buf, len, off);
	return n < 0 ? -errno : (int)n;
}

static int slow_flush(const char *path, struct fuse_file_info *fi)
{
	(void)path;
	(void)fi;
	make_wait(REQUEST_OTHER);
	return 0;
}

static int slow_release(const char *path, struct fuse_file_info *fi)
{
	(void)path;
	close((int)fi->fh);
	return 0;
}

static int slow_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t off, struct fuse_file_info *fi, enum fuse_readdir_flags flags)
{
	(void)off;
	(void)fi;
	(void)flags;
	make_wait(REQUEST_OTHER);
	int fd = openat(dir_fd, below(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir)
		return -errno;
	for (struct dirent *de; (de = readdir(dir));)
		fill(buf, de->d_name, NULL, 0, 0);
	closedir(dir);
	return 0;
}

static void *slow_init(struct fuse_conn_info *conn, struct fuse_config *config)
{
	conn->max_background = 1000;
	config->use_ino = 1; /* or it would be another file each time that it is looked up */
	config->attr_timeout = config->entry_timeout = config->negative_timeout = 0;
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct fuse_operations operations = {
		.init = slow_init,
		.getattr = slow_getattr,
		.open = slow_open,
		.read = slow_read,
		.flush = slow_flush,
		.release = slow_release,
		.readdir = slow_readdir,
	};
	if (argc != 4) {
		fprintf(stderr, "usage: slowfs DIR CONTROL MOUNTPOINT\n");
		return 2;
	}
	control_path = argv[2];
	dir_fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0) {
		perror(argv[1]);
		return 1;
	}
	/* As many at once as there may be. */
	char *arguments[] = {argv[0], "-f", "-o", "ro,max_threads=1000,fsname=slowfs", argv[3]};
	return fuse_main(sizeof arguments / sizeof *arguments, arguments, &operations, NULL);
}
