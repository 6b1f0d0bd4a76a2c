#include "fs/page_cache.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "store/intern.h"

#define SLOTS 4096 /* two files in one slot cost cached pages, never correctness */

struct page_cache {
	pthread_mutex_t lock;
	/* protected by lock */
	struct page_cache_slot {
		uint64_t ino, content;
	} slots[SLOTS];
};

int page_cache_new(struct page_cache **ret)
{
	struct page_cache *cache = calloc(1, sizeof *cache);
	if (!cache)
		return -ENOMEM;
	pthread_mutex_init(&cache->lock, NULL);
	*ret = cache;
	return 0;
}

void page_cache_free(struct page_cache *cache)
{
	if (!cache)
		return;
	pthread_mutex_destroy(&cache->lock);
	free(cache);
}

bool page_cache_is_current(struct page_cache *cache, uint64_t ino, uint64_t content)
{
	struct page_cache_slot *slot = &cache->slots[hash_bytes(HASH_START, &ino, sizeof ino) % SLOTS];
	pthread_mutex_lock(&cache->lock);
	bool current = slot->ino == ino && slot->content == content;
	slot->ino = ino;
	slot->content = content;
	pthread_mutex_unlock(&cache->lock);
	return current;
}
