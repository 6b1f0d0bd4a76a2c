/* Names for chains: two chains with the same layers in the same states, all the way down, have the same id, however
 * often they were opened. What the id stands for never changes, so whatever was found out of a chain may be kept under
 * it. */
#ifndef BLOCK_CHAIN_IDS_H
#define BLOCK_CHAIN_IDS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct layer;

/* Of a layer and all that lies below it. Counted references; each holds the one below. */
struct chain_id {
	uint64_t number;        /* never used again */
	struct chain_id *below; /* NULL: the last layer */
	unsigned span_bits;     /* log2 of the guest bytes that the index treats as one: see index.h */
	atomic_bool has_spans;  /* the index has, or had, something under this id */

	/* what makes it */
	uint64_t serial, l1_offset, virtual_size;
	uint32_t l1_size;

	/* protected by the lock of its table */
	unsigned nr_users;
	struct chain_id *next;          /* in its bucket */
	struct chain_id *older, *newer; /* among the unused ones */
};

struct chain_ids;

int chain_ids_new(struct chain_ids **ret);
void chain_ids_free(struct chain_ids *ids);

/* The id of the chain of NR layers, top first. An id that nobody uses is remembered for a while. -ENOMEM. */
int chain_id_get(struct chain_ids *ids, const struct layer *layers, size_t nr, struct chain_id **ret);
/* The same for LAYER over the chain that BELOW stands for (NULL: over nothing), in constant time. */
int chain_id_get_over(struct chain_ids *ids, const struct layer *layer, struct chain_id *below, struct chain_id **ret);
void chain_id_put(struct chain_ids *ids, struct chain_id *id);

#endif
