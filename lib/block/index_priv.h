/* The inside of the index: what its rings hold and what builds it. */
#ifndef BLOCK_INDEX_PRIV_H
#define BLOCK_INDEX_PRIV_H

#include <assert.h>

#include "block/image_priv.h"
#include "block/index.h"

#define INDEX_MIN_SPAN_BITS 18u /* one page of a table with clusters of 512 bytes */
#define INDEX_MAX_SPAN_BITS 25u /* the same with 64 KiB; and what fits into index_extent.sector */
#define INDEX_MAX_LAYERS    (1u << 24)

enum index_kind { INDEX_DATA, INDEX_ZERO, INDEX_COMPRESSED, INDEX_DAMAGED };

/* Ends where the next one begins, or with the span. Every boundary of every format is a multiple of 512. */
struct index_extent {
	uint64_t sector : 16;  /* where it begins in the span, in 512 bytes */
	uint64_t kind : 2;     /* enum index_kind */
	uint64_t layer : 24;   /* DATA, COMPRESSED: which of the chain, 0 is the top */
	uint64_t sectors : 14; /* COMPRESSED: further sectors, as the L2 entry has it */
	uint64_t host_off;     /* DATA, COMPRESSED */
};
static_assert(sizeof(struct index_extent) == 16, "index extent");

static inline uint64_t index_sector_off(const struct index_extent *e)
{
	return (uint64_t)e->sector << 9;
}

/* What is kept of a stretch inside one span. */
#define INDEX_PIECE_MAX 16u
struct index_piece {
	struct index_extent extents[INDEX_PIECE_MAX];
	size_t nr;
	uint64_t end; /* of the last one, in the span */
};

/* Copies the extents of [FROM, TO) in the span number SPAN_NO of the chain ID, as many as fit. False: it isn't there.
 */
bool index_lookup(struct index *index, uint64_t id, uint64_t span_no, unsigned span_bits, uint64_t from, uint64_t to,
                  struct index_piece *ret);

/* A finished span. The caller frees the extents. */
struct index_built {
	struct index_extent *extents;
	size_t nr;
	uint64_t nr_asked; /* layers */
	uint64_t cost;	   /* as index_map() has it */
};

/* Asks the layers for one span. -EIO, -ENOMEM; what is damaged becomes an extent. */
int index_build(struct index *index, const struct chain *chain, uint64_t span_no, struct index_built *ret);

#endif
