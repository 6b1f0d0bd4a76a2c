/* The inside of an image, for lib/block alone. */
#ifndef BLOCK_IMAGE_PRIV_H
#define BLOCK_IMAGE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/list.h"
#include "block/chain_ids.h"
#include "block/cluster_cache.h"
#include "block/image.h"
#include "block/image_locks.h"
#include "block/index.h"
#include "block/qcow2_header.h"
#include "block/table_cache.h"
#include "block/view.h"

struct image {
	struct image_cache *cache; /* borrowed */
	uint64_t serial;	   /* what the bounded caches know it by; never used again */
	int fd;
	int data_fd; /* qcow2's external data file; -1: the image itself has the data */
	char *path; /* real */
	struct stat st;
	enum image_format declared; /* IMAGE_PROBE stays so here */
	enum image_format format;
	uint64_t virtual_size;
	enum image_format backing_format;
	/* qcow2 */
	struct qcow2_header header;
	struct image_snapshot *snapshots;
	char *data_path;
	struct stat data_st;

	/* We write, or wrote, into the file: its times say nothing, and an entry of a table may be seen half written. */
	atomic_bool changing;

	/* protected by cache->lock */
	unsigned nr_users;
	bool stale; /* no longer in the cache: goes with its last user */
	struct image *older, *newer; /* among the unused ones, by last use */
	struct image *next;	     /* in its bucket */

	pthread_mutex_t users_lock;
	/* protected by users_lock: who has image locks */
	unsigned nr_readers, nr_quiet;
};

/* The state of an image that a layer shows. */
struct layer {
	struct image *image; /* a reference */
	const struct image_snapshot *snapshot; /* NULL: active */
	uint64_t l1_offset;
	uint32_t l1_size;
	uint64_t virtual_size;
};

/* Where a qcow2 layer has the L2 table for GUEST_OFF; 0: nowhere, nor for what follows up to RET_EMPTY_END, END at most. The offset is
 * unchecked. */
int layer_l2_table(const struct layer *layer, uint64_t guest_off, uint64_t end, uint64_t *ret_l2_offset, uint64_t *ret_empty_end);

/* The run at GUEST_OFF, whose L2 entry was found damaged, from the file itself: it may have been half written. To the cluster's end at most; its
 * guest_off and image are the caller's to fill in. -EUCLEAN: it is damaged. */
int layer_map_again(const struct layer *layer, uint64_t guest_off, struct extent *ret);

/* The views that are locked (view.c), under the lock that also protects what images say of the cache. */
struct list *image_cache_lock_views(struct image_cache *cache);
void image_cache_unlock_views(struct image_cache *cache);

struct table_cache *image_cache_tables(const struct image_cache *cache);
struct cluster_cache *image_cache_clusters(const struct image_cache *cache);
struct index *image_cache_index(const struct image_cache *cache);
struct chain_ids *image_cache_chain_ids(const struct image_cache *cache);

/* A further reference to one that is in use. */
struct image *image_ref(struct image *image);

/* Where the bytes of its EXTENT_DATA are. */
int image_data_fd(const struct image *image);

/* A reference to the open image of that file, if it is in the cache and still what was opened; else NULL. */
struct image *image_lookup(struct image_cache *cache, const struct stat *st, enum image_format declared);

/* Whether image_cache_expect_changes() is on for its file. */
bool image_is_written_by_us(const struct image *image);

/* image_locks_claim() of a file of FORMAT for which changes are expected: our own views don't count, nor are they refused later. */
int image_claim(struct image_cache *cache, enum image_format format, int fd, const char *path, struct reason *why);

/* KIND is IMAGE_LOCK_READ or IMAGE_LOCK_QUIET; calls nest. */
int image_lock(struct image *image, enum image_lock_kind kind, struct reason *why);
void image_unlock(struct image *image, enum image_lock_kind kind);

/* The first extent of the layer alone at GUEST_OFF, at most LEN bytes. EXACT: the holes of a raw file are zeros, else it
 * is data all through. No check against virtual_size: the vmstate lies behind it. */
int layer_map(const struct layer *layer, uint64_t guest_off, uint64_t len, bool exact, struct extent *ret);

#endif
