#include "block/table_cache.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/mem.h"

#define NR_SHARDS  16u
#define NR_BUCKETS 512u /* of a shard */

struct entry {
	struct table_page page; /* first: a page's address is its entry's */
	uint64_t serial, page_no;
	struct entry *next;	   /* in its bucket */
	struct entry *older, *newer; /* by last use */
	unsigned shard;
	unsigned nr_users;
};

struct shard {
	pthread_mutex_t lock;
	/* protected by lock: all below, and the entries' links and nr_users */
	struct entry *buckets[NR_BUCKETS];
	struct entry *oldest, *newest;
	size_t nr_entries;
};

struct table_cache {
	size_t max_entries; /* of a shard */
	struct shard shards[NR_SHARDS];
};

int table_cache_new(size_t max_bytes, struct table_cache **ret)
{
	struct table_cache *cache = calloc(1, sizeof *cache);
	if (!cache)
		return -ENOMEM;
	cache->max_entries = max_bytes / sizeof(struct entry) / NR_SHARDS + 1;
	for (unsigned i = 0; i < NR_SHARDS; i++)
		pthread_mutex_init(&cache->shards[i].lock, NULL);
	*ret = cache;
	return 0;
}

void table_cache_free(struct table_cache *cache)
{
	if (!cache)
		return;
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		for (struct entry *e = cache->shards[i].oldest, *newer; e; e = newer) {
			newer = e->newer;
			free(e);
		}
		pthread_mutex_destroy(&cache->shards[i].lock);
	}
	free(cache);
}

static uint64_t hash(uint64_t serial, uint64_t page_no)
{
	uint64_t h = (serial * 0x9e3779b97f4a7c15ull) ^ (page_no * 0xc2b2ae3d27d4eb4full);
	return h ^ h >> 29;
}

static struct entry **bucket_of(struct shard *shard, uint64_t h)
{
	return &shard->buckets[(h / NR_SHARDS) % NR_BUCKETS];
}

static void lru_unlink(struct shard *shard, struct entry *e)
{
	*(e->older ? &e->older->newer : &shard->oldest) = e->newer;
	*(e->newer ? &e->newer->older : &shard->newest) = e->older;
}

static void lru_push(struct shard *shard, struct entry *e)
{
	e->older = shard->newest;
	e->newer = NULL;
	*(shard->newest ? &shard->newest->newer : &shard->oldest) = e;
	shard->newest = e;
}

static struct entry *lookup_locked(struct shard *shard, uint64_t h, uint64_t serial, uint64_t page_no)
{
	for (struct entry *e = *bucket_of(shard, h); e; e = e->next) {
		if (e->serial == serial && e->page_no == page_no) {
			lru_unlink(shard, e);
			lru_push(shard, e);
			e->nr_users++;
			return e;
		}
	}
	return NULL;
}

static void evict_locked(struct shard *shard, size_t max_entries)
{
	for (struct entry *e = shard->oldest, *newer; e && shard->nr_entries > max_entries; e = newer) {
		newer = e->newer;
		if (e->nr_users)
			continue;
		struct entry **link = bucket_of(shard, hash(e->serial, e->page_no));
		while (*link != e)
			link = &(*link)->next;
		*link = e->next;
		lru_unlink(shard, e);
		shard->nr_entries--;
		free(e);
	}
}

static void insert_locked(struct shard *shard, uint64_t h, struct entry *e)
{
	struct entry **bucket = bucket_of(shard, h);
	e->next = *bucket;
	*bucket = e;
	lru_push(shard, e);
	shard->nr_entries++;
}

int table_cache_get(struct table_cache *cache, uint64_t serial, int fd, uint64_t off, const struct table_page **ret)
{
	uint64_t page_no = off >> TABLE_PAGE_BITS;
	uint64_t h = hash(serial, page_no);
	struct shard *shard = &cache->shards[h % NR_SHARDS];
	pthread_mutex_lock(&shard->lock);
	struct entry *found = lookup_locked(shard, h, serial, page_no);
	pthread_mutex_unlock(&shard->lock);
	if (found) {
		*ret = &found->page;
		return 0;
	}
	auto_free struct entry *made = calloc(1, sizeof *made);
	if (!made)
		return -ENOMEM;
	int err = file_read_padded(fd, &made->page, sizeof made->page, page_no << TABLE_PAGE_BITS);
	if (err)
		return err;
	made->serial = serial;
	made->page_no = page_no;
	made->shard = (unsigned)(h % NR_SHARDS);
	made->nr_users = 1;
	pthread_mutex_lock(&shard->lock);
	found = lookup_locked(shard, h, serial, page_no);
	if (!found) {
		evict_locked(shard, cache->max_entries);
		found = take_ptr(made);
		insert_locked(shard, h, found);
	}
	pthread_mutex_unlock(&shard->lock);
	*ret = &found->page;
	return 0;
}

void table_cache_put(struct table_cache *cache, const struct table_page *page)
{
	struct entry *e = (struct entry *)(uintptr_t)page;
	struct shard *shard = &cache->shards[e->shard];
	pthread_mutex_lock(&shard->lock);
	e->nr_users--;
	pthread_mutex_unlock(&shard->lock);
}
