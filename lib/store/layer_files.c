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
#include "block/image_locks.h"
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

/* --- devices ------------------------------------------------------------------------------------------------------------- */

/* A link to a device is followed where any other name would be. It may lead elsewhere by now, so what is open is what counts. */
static int open_device(struct store *store, const char *name, int flags, struct reason *why)
{
	struct stat st;
	const struct layer_place at = layer_place(store, name);
	auto_close int fd = trust_open(store->trust, at.dir, at.name, flags, NULL, why);
	if (fd == -EBUSY)
		return reason_set(why, fd, "%s/%s is in use by the system (mounted, or part of another device)", at.dir, at.name);
	if (fd < 0)
		return fd;
	if (fstat(fd, &st) < 0)
		return -errno;
	return S_ISBLK(st.st_mode) ? take_fd(&fd) : reason_set(why, -ENOTBLK, "%s/%s isn't a block device any more", at.dir, at.name);
}

static int check_same_device(struct store *store, const char *name, int fd, struct reason *why)
{
	const struct layer_place at = layer_place(store, name);
	int err = pool_check_device(layer_pool(store, name), at.name, fd);
	if (err == -ESTALE)
		return reason_set(why, err, "%s/%s isn't what was made or taken here under that name, but a block device: put back what was there", at.dir, at.name);
	return err ? complain(why, &at, err) : 0;
}

/* For who gives it to a disk: nobody else has it, by whatever name. Its locks are held while it is open. */
static int take_device(struct store *store, const char *name, struct reason *why)
{
	struct stat st;
	char file[POOL_FILE_MAX + 1];
	auto_free char *path = layer_path(store, name);
	const struct layer_place at = layer_place(store, name);
	auto_close int fd = path ? open_device(store, name, O_RDWR | O_EXCL, why) : -ENOMEM;
	if (fd < 0)
		return fd;
	int err = image_locks_take(fd, IMAGE_LOCK_WRITE, path, why);
	if (!err && fstat(fd, &st) < 0)
		err = -errno;
	for (size_t i = 0; !err && i < store->nr_pools; i++) {
		struct pool *pool = &store->pools[i];
		if (pool_find_device(pool, st.st_rdev, file) && (pool != layer_pool(store, name) || strcmp(file, at.name) != 0))
			err = reason_set(why, -EBUSY, "%s is a device that a disk lies on already, as %s/%s", path, pool->dir, file);
	}
	return err ? err : take_fd(&fd);
}

int layer_place_to_open(struct store *store, const char *name, int flags, struct layer_place *ret, int *ret_device, struct reason *why)
{
	*ret = layer_place(store, name);
	if (!layer_is_device(store, name))
		return layer_check_owner(store, name, why);
	auto_close int fd = open_device(store, name, flags, why);
	int err = fd < 0 ? fd : check_same_device(store, name, fd, why);
	if (err)
		return err;
	*ret_device = take_fd(&fd);
	*ret = (struct layer_place){*ret_device, "", ret->dir};
	return 0;
}

/* The part of what is to be NAME; of a block device there is none (""), *RET_DEVICE is the device then, and -1 otherwise. */
static int begin_part(struct store *store, const char *name, enum pool_making how, char part[POOL_PART_MAX], int *ret_device, struct reason *why)
{
	const struct layer_place at = layer_place(store, name);
	auto_close int device = -1;
	*ret_device = -1;
	if (layer_is_device(store, name) && (device = take_device(store, name, why)) < 0)
		return device;
	int err = pool_part_begin(layer_pool(store, name), at.name, how, device, part);
	if (err == -EEXIST && device >= 0)
		return reason_set(why, -EBUSY, "%s/%s: a disk of a clone lies on this device", at.dir, at.name);
	if (!err)
		*ret_device = take_fd(&device);
	return err;
}

/* --- overlays ------------------------------------------------------------------------------------------------------------ */

/* PART: what is to get its name; "": it is a block device, which has it. */
static int make_in_pool(struct store *store, const char *name, const struct overlay_spec *spec, mode_t mode, char part[POOL_PART_MAX], struct reason *why)
{
	struct pool *pool = layer_pool(store, name);
	const struct layer_place at_name = layer_place(store, name), *at = &at_name;
	auto_free char *path = layer_path(store, name);
	auto_close int device = -1;
	int err = path ? begin_part(store, name, POOL_NEW, part, &device, why) : -ENOMEM;
	if (err)
		return err;
	err = device >= 0 ? overlay_create_in_device(device, "", path, spec, why) : overlay_create(at->dirfd, part, spec, mode);
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
	err = pool ? make_in_pool(store, name, spec, mode, part, why) : overlay_create(at.dirfd, at.name, spec, mode);
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

static int begin_in_pool(struct store *store, const char *name, const struct layer_owner *owner, bool again, struct reason *why)
{
	char part[POOL_PART_MAX];
	const struct layer_place at = layer_place(store, name);
	auto_close int device = -1;
	int err = begin_part(store, name, again ? POOL_CONTINUE : POOL_NEW, part, &device, why);
	if (err)
		return err;
	if (device >= 0)
		return take_fd(&device);
	int fd = open_part(store, &at, part, owner, again);
	if (fd < 0 && !again)
		pool_part_abandon(layer_pool(store, name), at.name);
	return fd;
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
	struct reason of_pool = {0};
	int fd = pool ? begin_in_pool(store, name, owner, again, &of_pool) : begin_in_store(store, &at, owner, again);
	if (fd < 0)
		return *of_pool.text ? reason_set(why, fd, "%s", of_pool.text) : complain(why, &at, fd);
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
	return file_rename(at->dirfd, part, at->name);
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
		return pool_part_begin(pool, at.name, POOL_REPLACE, -1, tmp);
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
	return file_rename(at.dirfd, tmp, at.name);
}
