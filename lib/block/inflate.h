/* Raw deflate (RFC 1951) where all of the input lies in memory and the length of the output is known: about twice as fast as zlib's, which has to
 * be able to stop anywhere. It takes only what it is sure of; zlib has the last word on the rest. */
#ifndef BLOCK_INFLATE_H
#define BLOCK_INFLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define INFLATE_LIT_BITS  11u
#define INFLATE_DIST_BITS 8u
/* A complete code has at least two symbols below each first-level entry that leads to a second level. */
#define INFLATE_LIT_TABLE  ((1u << INFLATE_LIT_BITS) + 144u * (1u << (15 - INFLATE_LIT_BITS)))
#define INFLATE_DIST_TABLE ((1u << INFLATE_DIST_BITS) + 16u * (1u << (15 - INFLATE_DIST_BITS)))

/* What decoding needs room for: contents don't matter before or after. */
struct inflate_tables {
	uint32_t lit[INFLATE_LIT_TABLE];
	uint32_t dist[INFLATE_DIST_TABLE];
	uint8_t lens[288 + 32];
};

/* Whether the first OUT_LEN bytes of the stream IN are now in OUT. Never reads or writes outside of either; what OUT holds after a
 * failure is undefined. */
bool inflate_whole(struct inflate_tables *tables, const void *in, size_t in_len, void *out, size_t out_len);

#endif
