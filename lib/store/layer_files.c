#include "store/layer_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "store/store_internal.h"

struct pool *layer_pool(const struct store *store, const char *name)
{
	const char *slash = strchr(name, '/');
	return slash ? pool_find(store, name, (size_t)(slash - name)) : NULL;
}

int layer_check_place(const struct store *store, const char *name, struct reason *why)
{
	const char *slash = strchr(name, '/');
	if (!slash || layer_pool(store, name))
		return 0;
	int len = (int)(slash - name);
	return reason_set(why, -ENODEV, "it lies in the pool %.*s, which isn't given: mount with -o pool=%.*s:DIR", len, name, len, name);
}

bool layer_is_device(struct store *store, const char *name)
{
	struct stat st;
	const struct layer_place at = layer_place(store, name);
	return layer_pool(store, name) && fstatat(at.dirfd, at.name, &st, 0) == 0 && S_ISBLK(st.st_mode);
}

static int complain(struct reason *why, const struct layer_place *at, int err)
{
	return reason_set(why, err, "%s/%s: %s", at->dir, at->name, strerror(-err));
}

/* Where we aren't root all is ours, whoever asked. */
static void give_to(struct store *store, const struct layer_place *at, int fd, const struct layer_owner *owner)
{
	if ((owner->uid != geteuid() || owner->gid != getegid()) && fchown(fd, owner->uid, owner->gid) < 0 && errno != EPERM)
		store_event(store, NULL, "%s/%s: can't be given to user %u: %s", at->dir, at->name, owner->uid, strerror(errno));
}

/* --- overlays ------------------------------------------------------------------------------------------------------------ */

/* A link to a device is followed where any other name would be. */
static int check_device(struct store *store, const struct layer_place *at)
{
	struct stat st;
	auto_free char *real = NULL;
	if (fstatat(at->dirfd, at->name, &st, 0) < 0 || !S_ISBLK(st.st_mode))
		return 0;
	return store->allow_devices ? trust_resolve(store->trust, at->dir, at->name, &real, NULL) : -EACCES;
}

/* PART: what is to get its name; "": it is a block device, which has it. */
static int make_in_pool(struct store *store, struct pool *pool, const struct layer_place *at, const struct overlay_spec *spec, mode_t mode,
			char part[POOL_PART_MAX], struct reason *why)
{
	int err = check_device(store, at);
	if (!err)
		err = pool_part_begin(pool, at->name, POOL_NEW, part);
	if (err)
		return err;
	auto_free char *path = NULL;
	if (*part)
		err = overlay_create(at->dirfd, part, spec, mode);
	else if (asprintf(&path, "%s/%s", at->dir, at->name) < 0)
		err = -ENOMEM;
	else
		err = overlay_create_in_device(at->dirfd, at->name, path, spec, why);
	if (err)
		pool_part_abandon(pool, at->name);
	return err;
}

int layer_file_make_overlay(struct store *store, const char *name, const struct overlay_spec *spec, const struct layer_owner *owner, struct reason *why)
{
	int err = layer_check_place(store, name, why);
	if (err)
		return err;
	struct pool *pool = layer_pool(store, name);
	struct layer_place at = layer_place(store, name), made = at;
	mode_t mode = (owner->mode & 0777) | 0600;
	char part[POOL_PART_MAX];
	err = pool ? make_in_pool(store, pool, &at, spec, mode, part, why) : overlay_create(at.dirfd, at.name, spec, mode);
	if (err)
		return why && *why->text ? err : complain(why, &at, err);
	bool is_device = pool && !*part;
	made.name = pool ? part : at.name;
	auto_close int fd = is_device ? -1 : openat(made.dirfd, made.name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0)
		give_to(store, &at, fd, owner);
	err = pool ? pool_part_publish(pool, at.name, POOL_NEW, -1) : 0;
	if (err) {
		pool_part_abandon(pool, at.name);
		return complain(why, &at, err);
	}
	return 0;
}

/* --- raw files ----------------------------------------------------------------------------------------------------------- */

static void part_name(char part[LAYER_TEMPORARY_MAX], const char *name)
{
	snprintf(part, LAYER_TEMPORARY_MAX, "%s.part", name);
}

static int open_part(struct store *store, const struct layer_place *at, const char *part, const struct layer_owner *owner, bool again)
{
	int fd = openat(at->dirfd, part, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_CREAT | (again ? 0 : O_EXCL), (owner->mode & 0777) | 0600);
	if (fd < 0)
		return -errno;
	give_to(store, at, fd, owner);
	return fd;
}

static int begin_in_pool(struct store *store, struct pool *pool, const struct layer_place *at, const struct layer_owner *owner, bool again)
{
	char part[POOL_PART_MAX];
	int err = check_device(store, at);
	if (!err)
		err = pool_part_begin(pool, at->name, again ? POOL_CONTINUE : POOL_NEW, part);
	if (err)
		return err;
	int fd = *part ? open_part(store, at, part, owner, again) : openat(at->dirfd, at->name, O_RDWR | O_EXCL | O_CLOEXEC);
	err = fd < 0 ? -errno : 0;
	if (fd < 0 && !again)
		pool_part_abandon(pool, at->name);
	return err ? err : fd;
}

static int begin_in_store(struct store *store, const struct layer_place *at, const struct layer_owner *owner, bool again)
{
	char part[LAYER_TEMPORARY_MAX];
	part_name(part, at->name);
	return faccessat(at->dirfd, at->name, F_OK, AT_SYMLINK_NOFOLLOW) == 0 ? -EEXIST : open_part(store, at, part, owner, again);
}

int layer_file_begin(struct store *store, const char *name, const struct layer_owner *owner, bool again, int *ret_fd, struct reason *why)
{
	int err = layer_check_place(store, name, why);
	if (err)
		return err;
	struct pool *pool = layer_pool(store, name);
	struct layer_place at = layer_place(store, name);
	int fd = pool ? begin_in_pool(store, pool, &at, owner, again) : begin_in_store(store, &at, owner, again);
	if (fd < 0)
		return complain(why, &at, fd);
	*ret_fd = fd;
	return 0;
}

static int finish_in_store(const struct layer_place *at, int fd)
{
	char part[LAYER_TEMPORARY_MAX];
	struct stat st, own;
	part_name(part, at->name);
	if (fstatat(at->dirfd, part, &st, AT_SYMLINK_NOFOLLOW) < 0 || fstat(fd, &own) < 0 || st.st_ino != own.st_ino)
		return -ESTALE;
	return renameat(at->dirfd, part, at->dirfd, at->name) < 0 ? -errno : 0;
}

int layer_file_finish(struct store *store, const char *name, int fd, struct reason *why)
{
	int err = layer_check_place(store, name, why);
	if (err)
		return err;
	struct pool *pool = layer_pool(store, name);
	struct layer_place at = layer_place(store, name);
	err = pool ? pool_part_publish(pool, at.name, POOL_NEW, fd) : finish_in_store(&at, fd);
	if (err == -ENOENT) /* it was cancelled */
		err = -ESTALE;
	if (!err)
		err = dir_sync(at.dirfd);
	return err ? complain(why, &at, err) : 0;
}

void layer_file_cancel(struct store *store, const char *name)
{
	struct pool *pool = layer_pool(store, name);
	struct layer_place at = layer_place(store, name);
	char part[LAYER_TEMPORARY_MAX];
	if (pool) {
		pool_part_abandon(pool, at.name);
	} else {
		part_name(part, at.name);
		unlinkat(at.dirfd, part, 0);
	}
}

bool layer_file_is_finished(struct store *store, const char *name)
{
	struct pool *pool = layer_pool(store, name);
	struct layer_place at = layer_place(store, name);
	return pool ? pool_has(pool, at.name) : faccessat(at.dirfd, at.name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

bool layer_file_exists(struct store *store, const char *name)
{
	struct pool *pool = layer_pool(store, name);
	struct layer_place at = layer_place(store, name);
	return pool ? pool_owns(pool, at.name) : faccessat(at.dirfd, at.name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

int layer_check_owner(struct store *store, const char *name, struct reason *why)
{
	struct stat st;
	struct layer_place at = layer_place(store, name);
	if (!layer_pool(store, name) || layer_file_exists(store, name) || fstatat(at.dirfd, at.name, &st, 0) < 0 || S_ISBLK(st.st_mode))
		return 0;
	return reason_set(why, -EROFS, "%s/%s isn't the file that was made here: it is only shown", at.dir, at.name);
}

/* --- names ------------------------------------------------------------------------------------------------------------------ */

void layer_file_unlink(struct store *store, const char *name)
{
	struct pool *pool = layer_pool(store, name);
	struct layer_place at = layer_place(store, name);
	if (pool)
		pool_unlink(pool, at.name);
	else
		unlinkat(at.dirfd, at.name, 0);
}

int layer_file_link(struct store *store, const char *name, const char *new_name)
{
	struct pool *pool = layer_pool(store, name);
	struct layer_place from = layer_place(store, name), to = layer_place(store, new_name);
	if (pool)
		return pool == layer_pool(store, new_name) ? pool_link(pool, from.name, to.name) : -EXDEV;
	return linkat(from.dirfd, from.name, to.dirfd, to.name, 0) < 0 ? -errno : 0;
}

int layer_file_begin_replace(struct store *store, const char *name, char tmp[LAYER_TEMPORARY_MAX])
{
	struct pool *pool = layer_pool(store, name);
	struct layer_place at = layer_place(store, name);
	if (pool)
		return pool_part_begin(pool, at.name, POOL_REPLACE, tmp);
	layer_temporary_name(tmp, name);
	unlinkat(at.dirfd, tmp, 0);
	return 0;
}

int layer_file_replace(struct store *store, const char *name, const char *tmp)
{
	struct pool *pool = layer_pool(store, name);
	struct layer_place at = layer_place(store, name);
	if (pool)
		return pool_part_publish(pool, at.name, POOL_REPLACE, -1);
	return renameat(at.dirfd, tmp, at.dirfd, at.name) < 0 ? -errno : 0;
}
