/* An entry's way: QUEUED (wanted ahead, not begun) -> BUSY -> READY, or gone with an error. Whoever reads a QUEUED one takes it over.
 * A reader of a whole cluster that nobody has yet decompresses it into its own buffer and keeps nothing: then the BUSY entry has no data, and gets
 * it only when somebody else waits. */
#include "block/cluster_cache.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/list.h"
#include "base/mem.h"
#include "block/image_priv.h"

#define NR_BUCKETS  1024u
#define MAX_WORKERS 8u
#define MAX_QUEUED  64u

enum entry_state { ENTRY_QUEUED, ENTRY_BUSY, ENTRY_READY };

struct entry {
	struct compressed_cluster cluster;
	/* protected by the cache's lock */
	enum entry_state state;
	int err;
	unsigned nr_users; /* READY: who copies; BUSY: who makes it and who waits */
	char *data;	   /* written by who makes it, constant once READY */
	struct image *image; /* QUEUED, and BUSY in a worker: a reference */
	struct entry *next;  /* in its bucket */
	struct list node;    /* QUEUED: in the queue; READY: among the ready ones, by last use */
};

struct cluster_cache {
	size_t max_bytes;
	unsigned max_workers;
	struct codecs *codecs;
	pthread_mutex_t lock;
	pthread_cond_t done;   /* an entry is BUSY no longer */
	pthread_cond_t queued; /* there is work, or it's over */
	/* protected by lock */
	struct entry *buckets[NR_BUCKETS];
	struct list queue, ready; /* oldest first */
	size_t nr_queued, bytes; /* BYTES: data of all entries, and what the queued ones will have */
	pthread_t workers[MAX_WORKERS];
	unsigned nr_workers, nr_idle;
	bool stopping;
};

int cluster_cache_new(size_t max_bytes, struct cluster_cache **ret)
{
	struct cluster_cache *cache = calloc(1, sizeof *cache);
	if (!cache)
		return -ENOMEM;
	long nr_cpus = sysconf(_SC_NPROCESSORS_ONLN);
	cache->max_bytes = max_bytes;
	cache->max_workers = nr_cpus < 2 ? 0 : nr_cpus < (long)MAX_WORKERS ? (unsigned)nr_cpus : MAX_WORKERS;
	pthread_mutex_init(&cache->lock, NULL);
	pthread_cond_init(&cache->done, NULL);
	pthread_cond_init(&cache->queued, NULL);
	list_init(&cache->queue);
	list_init(&cache->ready);
	int err = codecs_new(&cache->codecs);
	if (err)
		cluster_cache_free(cache);
	else
		*ret = cache;
	return err;
}

size_t cluster_cache_ahead_bytes(const struct cluster_cache *cache)
{
	return cache->max_workers ? cache->max_bytes / 8 : 0;
}

/* --- entries ------------------------------------------------------------------------------------------------------ */

static struct entry **bucket_of(struct cluster_cache *cache, const struct compressed_cluster *cluster)
{
	uint64_t h = (cluster->serial * 0x9e3779b97f4a7c15ull) ^ (cluster->host_off * 0xc2b2ae3d27d4eb4full);
	return &cache->buckets[(h ^ h >> 32) % NR_BUCKETS];
}

static struct entry *lookup_locked(struct cluster_cache *cache, const struct compressed_cluster *cluster)
{
	struct entry *e = *bucket_of(cache, cluster);
	while (e && (e->cluster.serial != cluster->serial || e->cluster.host_off != cluster->host_off ||
		     e->cluster.host_len != cluster->host_len))
		e = e->next;
	return e;
}

static struct entry *insert_locked(struct cluster_cache *cache, const struct compressed_cluster *cluster, enum entry_state state)
{
	struct entry *e = calloc(1, sizeof *e);
	if (!e)
		return NULL;
	struct entry **bucket = bucket_of(cache, cluster);
	e->cluster = *cluster;
	e->state = state;
	e->next = *bucket;
	list_init(&e->node);
	*bucket = e;
	return e;
}

static void unlink_locked(struct cluster_cache *cache, struct entry *e)
{
	struct entry **link = bucket_of(cache, &e->cluster);
	while (*link != e)
		link = &(*link)->next;
	*link = e->next;
	list_remove(&e->node);
}

static void entry_free(struct entry *e)
{
	free(e->data);
	free(e);
}

/* Lets the oldest go until LEN bytes more are within the limit. False: those that are left are in use. */
static bool make_room_locked(struct cluster_cache *cache, size_t len)
{
	for (struct list *at = cache->ready.next, *next; at != &cache->ready && cache->bytes + len > cache->max_bytes; at = next) {
		struct entry *e = list_entry(at, struct entry, node);
		next = at->next;
		if (e->nr_users)
			continue;
		unlink_locked(cache, e);
		cache->bytes -= e->cluster.cluster_size;
		entry_free(e);
	}
	return cache->bytes + len <= cache->max_bytes;
}

/* E is made, or it failed: it stays for those who wait, and with data for those who come. */
static void finish_locked(struct cluster_cache *cache, struct entry *e, int err)
{
	e->err = err;
	e->state = ENTRY_READY;
	e->nr_users--;
	if (!err && e->data)
		list_push(&cache->ready, &e->node);
	else
		unlink_locked(cache, e); /* whoever waits still has it */
	pthread_cond_broadcast(&cache->done);
}

static void release_locked(struct cluster_cache *cache, struct entry *e)
{
	if (--e->nr_users == 0 && (e->err || !e->data))
		entry_free(e);
	else if (cache->bytes > cache->max_bytes)
		make_room_locked(cache, 0);
}

/* --- the threads ------------------------------------------------------------------------------------------------------ */

/* Out of the queue. The image is the caller's to put, without the lock. */
static struct image *dequeue_locked(struct cluster_cache *cache, struct entry *e)
{
	list_remove(&e->node);
	cache->nr_queued--;
	e->state = ENTRY_BUSY;
	e->nr_users = 1;
	return take_ptr(e->image);
}

static int make_data(struct cluster_cache *cache, const struct compressed_cluster *cluster, char **ret)
{
	auto_free char *data = malloc(cluster->cluster_size);
	int err = data ? codecs_read(cache->codecs, cluster, data) : -ENOMEM;
	if (!err)
		*ret = take_ptr(data);
	return err;
}

static void work_locked(struct cluster_cache *cache, struct entry *e)
{
	struct image *image = dequeue_locked(cache, e);
	char *data = NULL;
	pthread_mutex_unlock(&cache->lock);
	int err = make_data(cache, &e->cluster, &data);
	image_put(image);
	pthread_mutex_lock(&cache->lock);
	e->data = data;
	if (err)
		cache->bytes -= e->cluster.cluster_size;
	finish_locked(cache, e, err);
	if (err && !e->nr_users)
		entry_free(e);
}

static void *worker_main(void *arg)
{
	struct cluster_cache *cache = arg;
	pthread_mutex_lock(&cache->lock);
	while (!cache->stopping) {
		if (!list_is_empty(&cache->queue)) {
			work_locked(cache, list_entry(cache->queue.next, struct entry, node));
			continue;
		}
		cache->nr_idle++;
		pthread_cond_wait(&cache->queued, &cache->lock);
		cache->nr_idle--;
	}
	pthread_mutex_unlock(&cache->lock);
	return NULL;
}

/* Signals are for the threads of the program. */
static void start_worker_locked(struct cluster_cache *cache)
{
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&cache->workers[cache->nr_workers], NULL, worker_main, cache) == 0)
		cache->nr_workers++;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void cluster_cache_want(struct cluster_cache *cache, const struct compressed_cluster *cluster, struct image *image)
{
	pthread_mutex_lock(&cache->lock);
	struct entry *e = lookup_locked(cache, cluster);
	bool room = !e && cache->max_workers && cache->nr_queued < MAX_QUEUED && make_room_locked(cache, cluster->cluster_size);
	e = room ? insert_locked(cache, cluster, ENTRY_QUEUED) : NULL;
	if (e) {
		e->image = image_ref(image);
		cache->bytes += cluster->cluster_size;
		list_push(&cache->queue, &e->node);
		cache->nr_queued++;
		if (!cache->nr_idle && cache->nr_workers < cache->max_workers)
			start_worker_locked(cache);
		pthread_cond_signal(&cache->queued);
	}
	pthread_mutex_unlock(&cache->lock);
}

void cluster_cache_stop(struct cluster_cache *cache)
{
	pthread_mutex_lock(&cache->lock);
	cache->stopping = true;
	pthread_cond_broadcast(&cache->queued);
	pthread_mutex_unlock(&cache->lock);
	for (; cache->nr_workers; cache->nr_workers--)
		pthread_join(cache->workers[cache->nr_workers - 1], NULL);
	while (!list_is_empty(&cache->queue)) {
		struct entry *e = list_entry(cache->queue.next, struct entry, node);
		image_put(e->image);
		unlink_locked(cache, e);
		entry_free(e);
	}
}

void cluster_cache_free(struct cluster_cache *cache)
{
	if (!cache)
		return;
	cluster_cache_stop(cache);
	for (size_t i = 0; i < NR_BUCKETS; i++) {
		for (struct entry *e = cache->buckets[i], *next; e; e = next) {
			next = e->next;
			entry_free(e);
		}
	}
	codecs_free(cache->codecs);
	pthread_mutex_destroy(&cache->lock);
	pthread_cond_destroy(&cache->done);
	pthread_cond_destroy(&cache->queued);
	free(cache);
}

/* --- reading -------------------------------------------------------------------------------------------------------------- */

/* Makes E, which is BUSY and the caller's, into BUF when that is for all of it. */
static int make_and_copy(struct cluster_cache *cache, struct entry *e, uint32_t off, void *buf, size_t len)
{
	bool whole = off == 0 && len == e->cluster.cluster_size;
	char *data = NULL;
	int err = whole ? codecs_read(cache->codecs, &e->cluster, buf) : make_data(cache, &e->cluster, &data);
	if (!err && !whole)
		memcpy(buf, data + off, len);
	pthread_mutex_lock(&cache->lock);
	if (!err && whole && e->nr_users > 1) { /* somebody waits for it */
		data = malloc(len);
		if (data)
			memcpy(data, buf, len);
		else
			e->err = -ENOMEM;
	}
	if (data) {
		make_room_locked(cache, e->cluster.cluster_size);
		cache->bytes += e->cluster.cluster_size;
		e->data = data;
	}
	finish_locked(cache, e, err ? err : e->err);
	if (!e->nr_users && !e->data)
		entry_free(e);
	pthread_mutex_unlock(&cache->lock);
	return err;
}

static int wait_and_copy(struct cluster_cache *cache, struct entry *e, uint32_t off, void *buf, size_t len)
{
	e->nr_users++;
	while (e->state == ENTRY_BUSY)
		pthread_cond_wait(&cache->done, &cache->lock);
	int err = e->err;
	if (!err) {
		list_remove(&e->node);
		list_push(&cache->ready, &e->node);
		pthread_mutex_unlock(&cache->lock);
		memcpy(buf, e->data + off, len);
		pthread_mutex_lock(&cache->lock);
	}
	release_locked(cache, e);
	pthread_mutex_unlock(&cache->lock);
	return err;
}

int cluster_cache_read(struct cluster_cache *cache, const struct compressed_cluster *cluster, uint32_t off, void *buf,
		       size_t len)
{
	struct image *image = NULL;
	pthread_mutex_lock(&cache->lock);
	struct entry *e = lookup_locked(cache, cluster);
	if (e && e->state != ENTRY_QUEUED)
		return wait_and_copy(cache, e, off, buf, len);
	if (e) {
		image = dequeue_locked(cache, e);
		cache->bytes -= cluster->cluster_size;
	} else {
		e = insert_locked(cache, cluster, ENTRY_BUSY);
		if (e)
			e->nr_users = 1;
	}
	pthread_mutex_unlock(&cache->lock);
	if (!e)
		return -ENOMEM;
	int err = make_and_copy(cache, e, off, buf, len);
	if (image)
		image_put(image);
	return err;
}
