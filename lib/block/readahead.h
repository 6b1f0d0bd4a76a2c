/* Tells reading on from jumping about: how far ahead of a reader it is worth to prepare what takes time. Several readers of one disk are told
 * apart, and the requests of one may come a little out of order: the kernel's readahead sends them side by side. */
#ifndef BLOCK_READAHEAD_H
#define BLOCK_READAHEAD_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define READAHEAD_STREAMS 4u

struct readahead {
	pthread_mutex_t lock;
	/* protected by lock */
	struct readahead_stream {
		uint64_t end;	/* of what was read */
		uint64_t ahead; /* of what was prepared */
		uint64_t window;
	} streams[READAHEAD_STREAMS];
	unsigned next;
};

void readahead_init(struct readahead *ra);
void readahead_done(struct readahead *ra);

/* [GUEST_OFF, +LEN) is being read: prepare from *RET_FROM on so many bytes, at most MAX in front of the reader; 0: nothing. */
uint64_t readahead_next(struct readahead *ra, uint64_t guest_off, uint64_t len, uint64_t max, uint64_t *ret_from);

#endif
