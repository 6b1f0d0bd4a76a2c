#include "block/access.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/mem.h"

void access_init(struct access *access, const struct stat *st)
{
	*access = (struct access){.uid = st->st_uid, .gid = st->st_gid, .mode = st->st_mode & 0444};
}

/* BITS (4: read, 1: search) of ST must be granted, to each class of ours through the class it is in there. Who isn't ST's
 * owner and isn't known to be in its group, or known not to be, is granted what both have: being in our file's group says
 * nothing about its owner. */
static void restrict_by(struct access *access, const struct stat *st, mode_t bits)
{
	mode_t mode = st->st_mode;
	mode_t either = mode & mode >> 3 & bits;
	bool same_group = st->st_gid == access->gid;
	mode_t others = same_group ? mode & bits : either;
	mode_t group = same_group ? mode >> 3 & bits : either;
	mode_t user = st->st_uid == access->uid ? mode >> 6 & bits : either;
	if (!user)
		access->mode &= ~(mode_t)0400;
	if (!group)
		access->mode &= ~(mode_t)0040;
	if (!others)
		access->mode &= ~(mode_t)0004;
}

void access_restrict(struct access *access, const struct stat *st)
{
	restrict_by(access, st, S_ISDIR(st->st_mode) ? 1 : 4);
}

void access_path_done(struct access_path *last)
{
	if (last->dirfd >= 0)
		close(last->dirfd);
	last->dirfd = -1;
}

static void leave_to_owner(struct access *access, const struct stat *st)
{
	access->mode &= st->st_uid == access->uid ? 0400 : 0;
}

/* With an ACL the group's bits are the most that anybody named in it may have: they are nobody's in particular. And a user
 * may be named who has less than others. NAME is relative to the directory DIRFD; "": that itself. */
static void restrict_by_acl(struct access *access, int dirfd, const char *name, const struct stat *st)
{
	char path[64 + NAME_MAX + 1];
	snprintf(path, sizeof path, "/proc/self/fd/%d/%s", dirfd, name);
	ssize_t len = lgetxattr(path, "system.posix_acl_access", NULL, 0);
	if (len > 0 || (len < 0 && errno != ENODATA && errno != EOPNOTSUPP)) /* it may have one */
		leave_to_owner(access, st);
}

/* Goes into NAME; what it opens is what it looks at. */
static bool enter(struct access *access, struct access_path *last, const char *name)
{
	struct stat st;
	int fd = openat(last->dirfd < 0 ? AT_FDCWD : last->dirfd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	access_path_done(last);
	last->dirfd = fd;
	if (fd < 0 || fstat(fd, &st) < 0)
		return false;
	access_restrict(access, &st);
	restrict_by_acl(access, fd, "", &st);
	return true;
}

/* The directories from the root down to the one that holds PATH; false: they can't be gone through. */
static bool enter_all(struct access *access, struct access_path *last, const char *path, size_t dir_len)
{
	char rest[PATH_MAX], *p = rest;
	memcpy(rest, path, dir_len);
	rest[dir_len] = '\0';
	access_path_done(last);
	bool ok = enter(access, last, "/");
	for (char *name; ok && (name = strsep(&p, "/"));)
		if (*name)
			ok = enter(access, last, name);
	if (ok) {
		memcpy(last->dir, path, dir_len);
		last->dir[dir_len] = '\0';
	} else {
		access_path_done(last);
	}
	return ok;
}

static bool is_last(const struct access_path *last, const char *path, size_t dir_len)
{
	return last->dirfd >= 0 && strncmp(last->dir, path, dir_len) == 0 && !last->dir[dir_len];
}

void access_restrict_by_path(struct access *access, struct access_path *last, const char *path, const struct stat *st)
{
	struct stat now;
	const char *slash = strrchr(path, '/');
	size_t dir_len = slash ? (size_t)(slash - path) : 0;
	bool ok = *path == '/' && dir_len < sizeof last->dir && strlen(slash + 1) <= NAME_MAX;
	if (ok && !is_last(last, path, dir_len))
		ok = enter_all(access, last, path, dir_len);
	if (ok)
		ok = fstatat(last->dirfd, slash + 1, &now, AT_SYMLINK_NOFOLLOW) == 0 && now.st_dev == st->st_dev && now.st_ino == st->st_ino;
	if (ok)
		restrict_by_acl(access, last->dirfd, slash + 1, st);
	else
		leave_to_owner(access, st);
}
