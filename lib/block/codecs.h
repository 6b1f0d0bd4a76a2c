/* Decompresses clusters. What a decompressor allocates is kept for the next cluster, one set for each thread at work. */
#ifndef BLOCK_CODECS_H
#define BLOCK_CODECS_H

#include <stdint.h>

/* A compressed cluster: where it lies and how it was made. */
struct compressed_cluster {
	uint64_t serial; /* of the image */
	int fd;
	uint64_t host_off;
	uint32_t host_len; /* at most: the last sector may be filled up with other things, or end with the file */
	unsigned compression; /* QCOW2_COMPRESSION_* */
	uint32_t cluster_size;
};

struct codecs;

int codecs_new(struct codecs **ret);
void codecs_free(struct codecs *codecs);

/* Reads the cluster and decompresses it into OUT, cluster_size bytes. Memory is bounded by the cluster's size, whatever the stream says.
 * -EUCLEAN: it doesn't make a whole cluster. -EIO, -ENOMEM. */
int codecs_read(struct codecs *codecs, const struct compressed_cluster *cluster, void *out);

#endif
