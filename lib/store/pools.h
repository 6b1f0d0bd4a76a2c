/* Pools: further directories that images of the store lie in (-o pool=NAME:DIR). Fixed while the store is open. */
#ifndef STORE_POOLS_H
#define STORE_POOLS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/reason.h"

struct pool_config;
struct store;

#define POOL_NAME_MAX 40

struct pool {
	char *name;
	char *dir; /* absolute, real */
	int dirfd;
};

/* Opens the directories. -EINVAL: a bad name, two of one name. */
int pools_open(struct store *store, const struct pool_config *configs, size_t nr, struct reason *why);
void pools_close(struct store *store);

/* NAME_LEN bytes of NAME; NULL: there is no such pool. */
const struct pool *pool_find(const struct store *store, const char *name, size_t name_len);

/* Whether FILE in the pool was made here, and is still that file: only such ones are ever unlinked or written to. */
bool pool_owns(const struct store *store, const struct pool *pool, const char *file);

#endif
