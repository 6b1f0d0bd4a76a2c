/* Compressed clusters, decompressed, kept a while. */
#ifndef BLOCK_CLUSTER_CACHE_H
#define BLOCK_CLUSTER_CACHE_H

#include <stddef.h>
#include <stdint.h>

struct cluster_cache;

int cluster_cache_new(size_t max_bytes, struct cluster_cache **ret);
void cluster_cache_free(struct cluster_cache *cache);

/* A compressed cluster: where it lies and how it was made. */
struct compressed_cluster {
	uint64_t serial; /* of the image */
	int fd;
	uint64_t host_off;
	uint32_t host_len; /* at most: the last sector may be filled up with other things, or end with the file */
	unsigned compression; /* QCOW2_COMPRESSION_* */
	uint32_t cluster_size;
};

/* Copies LEN bytes at OFF of the decompressed cluster. Memory is bounded by the cluster's size, whatever the stream says. -EUCLEAN: it doesn't
 * decompress to a whole cluster. */
int cluster_cache_read(struct cluster_cache *cache, const struct compressed_cluster *cluster, uint32_t off, void *buf,
		       size_t len);

#endif
