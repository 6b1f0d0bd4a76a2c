#include "block/trust.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/mounts.h"

#define SYMLINKS_MAX 40 /* as the kernel */

struct trust_root {
	char *real; /* without a slash at the end, "" for / */
	char *given; /* as the user wrote it, where that is absolute and differs; else NULL */
	int fd;
	dev_t dev;
};

struct trust {
	struct trust_root *roots;
	size_t nr_roots, cap_roots;
	char *forbidden; /* NULL: nothing */
	bool allow_devices;
};

int trust_new(struct trust **ret)
{
	*ret = calloc(1, sizeof **ret);
	return *ret ? 0 : -ENOMEM;
}

void trust_free(struct trust *trust)
{
	if (!trust)
		return;
	for (size_t i = 0; i < trust->nr_roots; i++) {
		free(trust->roots[i].real);
		free(trust->roots[i].given);
		close(trust->roots[i].fd);
	}
	free(trust->roots);
	free(trust->forbidden);
	free(trust);
}

static void strip_slashes(char *path)
{
	size_t len = strlen(path);
	while (len && path[len - 1] == '/')
		path[--len] = '\0';
}

int trust_add(struct trust *trust, const char *dir, struct reason *why)
{
	auto_close int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return reason_set(why, -errno, "trusted directory %s: %s", dir, strerror(errno));
	if (mem_grow(&trust->roots, &trust->cap_roots, trust->nr_roots + 1, sizeof *trust->roots) < 0)
		return -ENOMEM;
	auto_free char *real = realpath(dir, NULL);
	auto_free char *given = *dir == '/' ? strdup(dir) : NULL;
	if (!real)
		return reason_set(why, -errno, "trusted directory %s: %s", dir, strerror(errno));
	strip_slashes(real);
	if (given)
		strip_slashes(given);
	struct trust_root *root = &trust->roots[trust->nr_roots++];
	struct stat st = {0};
	fstat(fd, &st);
	*root = (struct trust_root){.real = take_ptr(real), .given = take_ptr(given), .fd = take_fd(&fd), .dev = st.st_dev};
	return 0;
}

int trust_add_open(struct trust *trust, int fd, const char *real)
{
	auto_close int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	auto_free char *copy = strdup(real);
	if (own < 0)
		return -errno;
	if (!copy || mem_grow(&trust->roots, &trust->cap_roots, trust->nr_roots + 1, sizeof *trust->roots) < 0)
		return -ENOMEM;
	strip_slashes(copy);
	struct stat st = {0};
	fstat(own, &st);
	trust->roots[trust->nr_roots++] = (struct trust_root){.real = take_ptr(copy), .fd = take_fd(&own), .dev = st.st_dev};
	return 0;
}

int trust_forbid(struct trust *trust, const char *dir)
{
	free(trust->forbidden);
	trust->forbidden = strdup(dir);
	return trust->forbidden ? 0 : -ENOMEM;
}

void trust_allow_devices(struct trust *trust, bool allow)
{
	trust->allow_devices = allow;
}

/* What of PATH comes after the directory DIR ("" or "/…"); NULL when it isn't DIR or below. */
static const char *path_below(const char *path, const char *dir)
{
	size_t len = strlen(dir);
	if (strncmp(path, dir, len) != 0 || (path[len] != '/' && path[len] != '\0'))
		return NULL;
	return path + len;
}

/* The innermost one: whoever may write to the directory around it, SOURCE around the store, can't put another one in its place. */
static const struct trust_root *root_of(const struct trust *trust, const char *real)
{
	const struct trust_root *root = NULL;
	for (size_t i = 0; i < trust->nr_roots; i++)
		if (path_below(real, trust->roots[i].real) && (!root || strlen(trust->roots[i].real) > strlen(root->real)))
			root = &trust->roots[i];
	return root;
}

/* A directory above a trusted one: known to be real, so that it can be passed without a look at it. */
static bool is_above_root(const struct trust *trust, const char *real)
{
	for (size_t i = 0; i < trust->nr_roots; i++)
		if (path_below(trust->roots[i].real, real))
			return true;
	return false;
}

/* A path under resolution: REAL is done, REST is to come. */
struct walk {
	char real[PATH_MAX];
	char rest[PATH_MAX];
	int nr_links;
};

/* Starts again at the absolute PATH, with a trusted directory's given name replaced by its real one. */
static int walk_restart(const struct trust *trust, struct walk *walk, const char *path)
{
	walk->real[0] = '\0';
	for (size_t i = 0; i < trust->nr_roots; i++) {
		const char *below = trust->roots[i].given ? path_below(path, trust->roots[i].given) : NULL;
		if (below) {
			strcpy(walk->real, trust->roots[i].real);
			path = below;
			break;
		}
	}
	if (strlen(path) >= sizeof walk->rest)
		return -ENAMETOOLONG;
	memmove(walk->rest, path, strlen(path) + 1);
	return 0;
}

/* Takes the next component off REST into NAME; false at the end. */
static bool walk_next(struct walk *walk, char name[NAME_MAX + 1], int *err)
{
	char *p = walk->rest + strspn(walk->rest, "/");
	size_t len = strcspn(p, "/");
	if (!len)
		return false;
	if (len > NAME_MAX) {
		*err = -ENAMETOOLONG;
		return false;
	}
	memcpy(name, p, len);
	name[len] = '\0';
	memmove(walk->rest, p + len, strlen(p + len) + 1);
	return true;
}

/* REAL has just got the component that begins at NAME_AT: goes where it points when it is a symlink. */
static int walk_follow(const struct trust *trust, struct walk *walk, size_t name_at)
{
	char target[PATH_MAX];
	ssize_t n = readlink(walk->real, target, sizeof target - 1);
	if (n < 0)
		return errno == EINVAL ? 0 : -errno;
	target[n] = '\0';
	if (++walk->nr_links > SYMLINKS_MAX)
		return -ELOOP;
	char joined[2 * PATH_MAX];
	snprintf(joined, sizeof joined, "%s/%s", target, walk->rest);
	if (strlen(joined) >= PATH_MAX)
		return -ENAMETOOLONG;
	if (*target == '/')
		return walk_restart(trust, walk, joined);
	walk->real[name_at] = '\0';
	strcpy(walk->rest, joined);
	return 0;
}

/* Whether what WALK has just come to, at NAME_AT, is a mount of vmsnapfs. The root's device says so where nobody has looked at the directory around it. */
static bool is_mount(const struct trust *trust, struct walk *walk, size_t name_at, const struct trust_root *root)
{
	struct statx stx;
	dev_t around = root->dev;
	char slash = walk->real[name_at];
	walk->real[name_at] = '\0';
	if (!is_above_root(trust, walk->real) && statx(AT_FDCWD, walk->real, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, 0, &stx) == 0)
		around = makedev(stx.stx_dev_major, stx.stx_dev_minor);
	walk->real[name_at] = slash;
	return mounts_lies_on(AT_FDCWD, walk->real, around);
}

static int walk_step(const struct trust *trust, struct walk *walk, const char *name)
{
	size_t at = strlen(walk->real);
	if (strcmp(name, ".") == 0)
		return 0;
	if (strcmp(name, "..") == 0) {
		char *slash = strrchr(walk->real, '/');
		if (slash)
			*slash = '\0';
		return 0;
	}
	if (at + 1 + strlen(name) >= sizeof walk->real)
		return -ENAMETOOLONG;
	walk->real[at] = '/';
	strcpy(walk->real + at + 1, name);
	if (trust->forbidden && path_below(walk->real, trust->forbidden))
		return -EACCES;
	if (is_above_root(trust, walk->real))
		return 0;
	const struct trust_root *root = root_of(trust, walk->real);
	if (!root || is_mount(trust, walk, at, root))
		return -EACCES;
	return walk_follow(trust, walk, at);
}

/* `json:…`, `nbd://…`: a protocol where QEMU would see one, a colon before the first slash. */
static bool is_protocol(const char *name)
{
	return name[strcspn(name, ":/")] == ':';
}

static int walk_all(const struct trust *trust, struct walk *walk)
{
	char name[NAME_MAX + 1];
	int err = 0;
	while (!err && walk_next(walk, name, &err))
		err = walk_step(trust, walk, name);
	return err;
}

int trust_resolve(const struct trust *trust, const char *base_dir, const char *name, char **ret_path,
		  struct reason *why)
{
	if (is_protocol(name))
		return reason_set(why, -EACCES, "%s is a protocol, not a file: it is never followed", name);
	char path[PATH_MAX];
	int n = *name == '/' ? snprintf(path, sizeof path, "%s", name)
			     : snprintf(path, sizeof path, "%s/%s", base_dir ? base_dir : "", name);
	if (n < 0 || (size_t)n >= sizeof path)
		return reason_set(why, -ENAMETOOLONG, "%.200s…: the path is too long", name);
	auto_free struct walk *walk = malloc(sizeof *walk);
	if (!walk)
		return -ENOMEM;
	walk->nr_links = 0;
	int err = walk_restart(trust, walk, path);
	if (!err)
		err = walk_all(trust, walk);
	if (!err && !root_of(trust, walk->real))
		err = -EACCES;
	if (err == -EACCES)
		return reason_set(why, err, "%s leads outside the trusted directories; name its directory with -o trust=DIR if it is meant", path);
	if (err)
		return reason_set(why, err, "%s: %s", path, strerror(-err));
	*ret_path = strdup(walk->real);
	return *ret_path ? 0 : -ENOMEM;
}

static int open_beneath(const struct trust_root *root, const char *real, int open_flags)
{
	const char *below = real + strlen(root->real);
	below += strspn(below, "/");
	if (!*below)
		below = "."; /* the directory itself */
	struct open_how how = {
		/* openat2 refuses what has no meaning together with O_PATH. */
		.flags = (uint64_t)(open_flags | O_CLOEXEC | (open_flags & O_PATH ? 0 : O_NONBLOCK | O_NOCTTY)),
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	long fd = syscall(SYS_openat2, root->fd, below, &how, sizeof how);
	return fd < 0 ? -errno : (int)fd;
}

/* What may be opened: looked at before the open, for opening a device or FIFO can have effects of its own. */
static bool is_acceptable(const struct trust *trust, const struct stat *st)
{
	return S_ISREG(st->st_mode) || (S_ISBLK(st->st_mode) && trust->allow_devices);
}

int trust_open(const struct trust *trust, const char *base_dir, const char *name, int open_flags, char **ret_path,
	       struct reason *why)
{
	auto_free char *real = NULL;
	int err = trust_resolve(trust, base_dir, name, &real, why);
	if (err)
		return err;
	const struct trust_root *root = root_of(trust, real);
	auto_close int peek = open_beneath(root, real, O_PATH);
	if (peek < 0)
		return reason_set(why, peek == -ELOOP || peek == -EXDEV ? -EACCES : peek, "%s: %s", real, strerror(-peek));
	struct stat st;
	if (fstat(peek, &st) < 0)
		return reason_set(why, -errno, "%s: %s", real, strerror(errno));
	if (!is_acceptable(trust, &st))
		return reason_set(why, -EACCES, "%s is not a regular file%s", real,
				  S_ISBLK(st.st_mode) ? " (-o block_devices allows block devices)" : "");
	auto_close int fd = open_beneath(root, real, open_flags);
	if (fd < 0)
		return reason_set(why, fd == -ELOOP || fd == -EXDEV ? -EACCES : fd, "%s: %s", real, strerror(-fd));
	if (fstat(fd, &st) < 0 || !is_acceptable(trust, &st))
		return reason_set(why, -EACCES, "%s was exchanged while it was opened", real);
	if (ret_path)
		*ret_path = take_ptr(real);
	return take_fd(&fd);
}
