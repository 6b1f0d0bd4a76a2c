#include "store/pools.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/name.h"
#include "store/store_internal.h"

static int open_pool(struct store *store, const struct pool_config *config, struct reason *why)
{
	if (strlen(config->name) > POOL_NAME_MAX || name_check(config->name) < 0)
		return reason_set(why, -EINVAL, "%s: not a name for a pool", config->name);
	if (pool_find(store, config->name, strlen(config->name)))
		return reason_set(why, -EINVAL, "two pools are called %s", config->name);
	struct pool *pool = &store->pools[store->nr_pools++];
	*pool = (struct pool){.name = strdup(config->name), .dir = strdup(config->dir), .dirfd = -1};
	if (!pool->name || !pool->dir)
		return -ENOMEM;
	pool->dirfd = open(config->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return pool->dirfd < 0 ? reason_set(why, -errno, "pool %s: %s: %s", config->name, config->dir, strerror(errno)) : 0;
}

int pools_open(struct store *store, const struct pool_config *configs, size_t nr, struct reason *why)
{
	int err = 0;
	store->pools = mem_new_array(nr + 1, sizeof *store->pools);
	if (!store->pools)
		return -ENOMEM;
	for (size_t i = 0; !err && i < nr; i++)
		err = open_pool(store, &configs[i], why);
	return err;
}

void pools_close(struct store *store)
{
	for (size_t i = 0; i < store->nr_pools; i++) {
		free(store->pools[i].name);
		free(store->pools[i].dir);
		if (store->pools[i].dirfd >= 0)
			close(store->pools[i].dirfd);
	}
	free(take_ptr(store->pools));
	store->nr_pools = 0;
}

const struct pool *pool_find(const struct store *store, const char *name, size_t name_len)
{
	for (size_t i = 0; i < store->nr_pools; i++)
		if (strlen(store->pools[i].name) == name_len && memcmp(store->pools[i].name, name, name_len) == 0)
			return &store->pools[i];
	return NULL;
}

bool pool_owns(const struct store *store, const struct pool *pool, const char *file)
{
	(void)store;
	(void)pool;
	(void)file;
	return false;
}
