#include "store/pools.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "store/store_internal.h"

static bool is_below(const char *path, const char *dir)
{
	size_t len = dir ? strlen(dir) : 0;
	return len && strncmp(path, dir, len) == 0 && (!path[len] || path[len] == '/');
}

static int open_ledger_dir(int at, const char *name, bool make)
{
	if (make && mkdirat(at, name, 0700) < 0 && errno != EEXIST)
		return -errno;
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* A store that can only be read may have none: then nothing is known to be ours. */
static int open_ledger(struct store *store, struct pool *pool, struct reason *why)
{
	if (store->store_fd < 0)
		return 0;
	auto_close int all = open_ledger_dir(store->store_fd, "pools", store->writable);
	pool->ledger_fd = all < 0 ? all : open_ledger_dir(all, pool->name, store->writable);
	int err = pool->ledger_fd < 0 ? pool->ledger_fd : 0;
	/* A ledger that is lost makes what is in the pool somebody else's. */
	if (!err && store->writable && !(err = dir_sync(all)))
		err = dir_sync(store->store_fd);
	if (err && pool->ledger_fd >= 0)
		close(pool->ledger_fd);
	if (err)
		pool->ledger_fd = -1;
	return err && store->writable ? reason_set(why, err, "%s/pools/%s: %s", store->store_dir, pool->name, strerror(-err)) : 0;
}

/* A directory with two names would have two ledgers. */
static int check_apart(const struct store *store, const struct pool *pool, struct reason *why)
{
	struct stat st, other;
	if (store->store_fd >= 0 && is_below(pool->dir, store->store_dir))
		return reason_set(why, -EINVAL, "pool %s: %s lies inside the store %s", pool->name, pool->dir, store->store_dir);
	if (fstat(pool->dirfd, &st) < 0)
		return -errno;
	for (const struct pool *p = store->pools; p < pool; p++)
		if (fstat(p->dirfd, &other) == 0 && other.st_dev == st.st_dev && other.st_ino == st.st_ino)
			return reason_set(why, -EINVAL, "pools %s and %s are one directory, %s", p->name, pool->name, pool->dir);
	return 0;
}

static int open_pool(struct store *store, const struct pool_config *config, struct reason *why)
{
	if (strlen(config->name) > POOL_NAME_MAX || name_check(config->name) < 0)
		return reason_set(why, -EINVAL, "%s: not a name for a pool", config->name);
	if (pool_find(store, config->name, strlen(config->name)))
		return reason_set(why, -EINVAL, "two pools are called %s", config->name);
	struct pool *pool = &store->pools[store->nr_pools++];
	*pool = (struct pool){.name = strdup(config->name), .dir = strdup(config->dir), .dirfd = -1, .ledger_fd = -1, .head_names = pool_head_names};
	pthread_mutex_init(&pool->lock, NULL);
	if (!pool->name || !pool->dir)
		return -ENOMEM;
	pool->dirfd = open(config->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (pool->dirfd < 0)
		return reason_set(why, -errno, "pool %s: %s: %s", config->name, config->dir, strerror(errno));
	int err = check_apart(store, pool, why);
	return err ? err : open_ledger(store, pool, why);
}

static bool is_empty_dir(int at, const char *name)
{
	DIR *dir = dir_open_at(at, name);
	bool empty = true;
	for (struct dirent *de; dir && empty && (de = readdir(dir));)
		empty = *de->d_name == '.';
	if (dir)
		closedir(dir);
	return empty;
}

/* The ledgers of other pools stay as they are, and so does all that may be needed by what is in them. */
static void note_missing(struct store *store)
{
	auto_close int all = store->store_fd < 0 ? -1 : open_ledger_dir(store->store_fd, "pools", false);
	DIR *dir = all < 0 ? NULL : dir_open_at(all, ".");
	for (struct dirent *de; dir && (de = readdir(dir));) {
		if (*de->d_name == '.' || pool_find(store, de->d_name, strlen(de->d_name)) || is_empty_dir(all, de->d_name))
			continue;
		store->lacks_pools = true;
		store_event(store, NULL, "the pool %s isn't given, but images of this store lie in it: mount with -o pool=%s:DIR", de->d_name, de->d_name);
	}
	if (dir)
		closedir(dir);
}

int pools_open(struct store *store, const struct pool_config *configs, size_t nr, struct reason *why)
{
	int err = 0;
	store->pools = mem_new_array(nr + 1, sizeof *store->pools);
	if (!store->pools)
		return -ENOMEM;
	for (size_t i = 0; !err && i < nr; i++)
		err = open_pool(store, &configs[i], why);
	if (!err)
		note_missing(store);
	return err;
}

void pools_close(struct store *store)
{
	for (size_t i = 0; i < store->nr_pools; i++) {
		struct pool *pool = &store->pools[i];
		free(pool->name);
		free(pool->dir);
		if (pool->dirfd >= 0)
			close(pool->dirfd);
		if (pool->ledger_fd >= 0)
			close(pool->ledger_fd);
		pthread_mutex_destroy(&pool->lock);
	}
	free(take_ptr(store->pools));
	store->nr_pools = 0;
}

struct pool *pool_find(const struct store *store, const char *name, size_t name_len)
{
	for (size_t i = 0; i < store->nr_pools; i++)
		if (strlen(store->pools[i].name) == name_len && memcmp(store->pools[i].name, name, name_len) == 0)
			return &store->pools[i];
	return NULL;
}
