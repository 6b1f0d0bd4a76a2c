#include "fs/mountpoint.h"

#include <errno.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"

/* Whether PATH is DIR or lies below it; both real. */
static bool is_in(const char *path, const char *dir)
{
	size_t len = strlen(dir);
	if (!strcmp(dir, "/"))
		return true;
	return !strncmp(path, dir, len) && (path[len] == '/' || path[len] == '\0');
}

/* The real path of what can't be looked at itself: its directory's, and its name. NULL: errno. */
static char *real_path_of_dead(const char *path)
{
	auto_free char *copy = strdup(path);
	size_t len = copy ? strlen(copy) : 0;
	while (len > 1 && copy[len - 1] == '/')
		copy[--len] = '\0';
	char *slash = copy ? strrchr(copy, '/') : NULL;
	const char *name = slash ? slash + 1 : copy;
	if (slash)
		*slash = '\0';
	auto_free char *dir = copy ? realpath(!slash ? "." : *copy ? copy : "/", NULL) : NULL;
	char *real;
	if (!dir || asprintf(&real, "%s/%s", strcmp(dir, "/") ? dir : "", name) < 0)
		return NULL;
	return real;
}

static int unmount_as_user(const char *path)
{
	char *argv[] = {"fusermount3", "-u", "-z", "--", (char *)path, NULL};
	pid_t pid;
	int status;
	int err = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
	if (err)
		return -err;
	if (waitpid(pid, &status, 0) < 0)
		return -errno;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EPERM;
}

int mountpoint_unmount(const char *path)
{
	int err = umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0 ? -errno : 0;
	return err == -EPERM ? unmount_as_user(path) : err;
}

/* The daemon behind the mount on PATH has died. */
static int unmount_dead(const char *path)
{
	int err = mountpoint_unmount(path);
	if (err)
		fprintf(stderr, "vmsnapfs: %s: there is a dead mount, which can't be unmounted: %s\n", path, strerror(-err));
	return err;
}

/* The real path, with nothing dead on it. */
static int make_real(const char *path, char **ret)
{
	struct stat st;
	struct statvfs vfs;
	/* Not stat(): attributes may be remembered from when the daemon lived. Dead mounts can lie on top of each other. */
	while (statvfs(path, &vfs) < 0 && (errno == ENOTCONN || errno == ECONNABORTED)) {
		if (errno == ECONNABORTED)
			continue; /* it died while we asked */
		auto_free char *dead = real_path_of_dead(path);
		int err = dead ? unmount_dead(dead) : -errno;
		if (err)
			return err;
	}
	auto_free char *real = realpath(path, NULL);
	int err = !real || stat(real, &st) < 0 ? -errno : S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
	if (err) {
		fprintf(stderr, "vmsnapfs: %s: %s\n", path, strerror(-err));
		return err;
	}
	*ret = take_ptr(real);
	return 0;
}

static int refuse(const char *path, const char *where, const char *what, const char *dir)
{
	fprintf(stderr, "vmsnapfs: the mount point %s lies %s the %s %s: it would wait for itself. Mount it elsewhere\n", path,
		where, what, dir);
	return -EINVAL;
}

int mountpoint_check_apart(const char *path, const char *what, const char *dir)
{
	if (is_in(path, dir))
		return refuse(path, "inside", what, dir);
	if (is_in(dir, path))
		return refuse(path, "above", what, dir);
	return 0;
}

int mountpoint_prepare(char **path, const char *source_dir, const char *store_dir)
{
	char *real = NULL;
	int err = make_real(*path, &real);
	if (err)
		return err;
	free(*path);
	*path = real;
	err = mountpoint_check_apart(real, "source", source_dir);
	return err ? err : mountpoint_check_apart(real, "store", store_dir);
}
