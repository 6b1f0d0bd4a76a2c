/* The collapsed index: where the bytes of a chain lie, whichever layer has them, so that a read costs the same at every
 * depth.
 *
 * The guest's bytes are cut into spans. The first that looks into one has all layers asked for it once, top down, and
 * what they say is kept as one sorted array of extents, 16 bytes each. A frozen chain never changes, so a span stays
 * exact; it is known by the chain's id (chain_ids.h), so that every view with the same layers below shares it; and
 * where it is built, what is known of the chain further down is taken over as it stands.
 *
 * Spans lie one behind the other in rings of a fixed size: no byte more than the limit, and the oldest that wasn't used
 * again makes room. What doesn't fit, or can't be built for now (-EIO), isn't kept: then the caller asks the layers. */
#ifndef BLOCK_INDEX_H
#define BLOCK_INDEX_H

#include <stddef.h>
#include <stdint.h>

#include "block/view.h"

struct index;
struct layer;
struct chain_id;

/* A chain as its view has it: borrowed. */
struct chain {
	const struct layer *layers; /* top first */
	size_t nr_layers;
	uint64_t virtual_size;
	struct chain_id *id;
};

int index_new(size_t max_bytes, struct index **ret);
void index_free(struct index *index);

/* The extents from GUEST_OFF on, in order and without a gap: at least one, at most NR, LEN bytes together at most, and none beyond the
 * span. GUEST_OFF is inside the disk. Raw layers are data all through. What finding them out took is added to COST: 1 is a look at a
 * layer. -EUCLEAN: damaged right there. Another error: the layers must be asked one by one. */
int index_map(struct index *index, const struct chain *chain, uint64_t guest_off, uint64_t len, struct extent *ret, size_t nr,
	      size_t *ret_nr, uint64_t *cost);

/* The same for one extent of a span that is there already; false: it isn't, or it's damaged. */
bool index_peek(struct index *index, const struct chain *chain, uint64_t guest_off, uint64_t len, struct extent *ret);

/* log2 of the guest bytes for which one page of a layer's table speaks: a span isn't larger for any layer. */
unsigned index_layer_span_bits(const struct layer *layer);

struct index_stats {
	uint64_t nr_hits, nr_built; /* spans */
	uint64_t nr_asked;          /* layers, to build them */
	uint64_t nr_spans, bytes;   /* now; BYTES counts all that it takes */
};
void index_get_stats(struct index *index, struct index_stats *ret);

#endif
