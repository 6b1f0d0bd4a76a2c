/* Compressed clusters, decompressed: kept a while, made once for all who want them, and made ahead by threads of its own for those who
 * read on. The threads start with the first such wish. */
#ifndef BLOCK_CLUSTER_CACHE_H
#define BLOCK_CLUSTER_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "block/codecs.h"

struct cluster_cache;
struct image;

/* The cache holds MAX_BYTES at most, and what is being read or made right now. */
int cluster_cache_new(size_t max_bytes, struct cluster_cache **ret);
/* Ends the threads; lets go of the images of what they hadn't begun. Nobody may read any more. */
void cluster_cache_stop(struct cluster_cache *cache);
void cluster_cache_free(struct cluster_cache *cache);

/* Copies LEN bytes at OFF of the decompressed cluster. Errors as codecs_read's. */
int cluster_cache_read(struct cluster_cache *cache, const struct compressed_cluster *cluster, uint32_t off, void *buf,
		       size_t len);

/* Somebody will soon want the cluster, which is one of IMAGE: has it made meanwhile, when there is a thread and room for it. Doesn't block. */
void cluster_cache_want(struct cluster_cache *cache, const struct compressed_cluster *cluster, struct image *image);

/* How many bytes ahead of a reader are worth wanting: 0 where there is one processor only. */
size_t cluster_cache_ahead_bytes(const struct cluster_cache *cache);

#endif
