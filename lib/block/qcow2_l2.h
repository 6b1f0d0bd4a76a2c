/* What an L2 table says of a run of guest bytes; the same for images that are read and for the head that is written. */
#ifndef BLOCK_QCOW2_L2_H
#define BLOCK_QCOW2_L2_H

#include "base/bytes.h"
#include "block/qcow2_header.h"
#include "block/view.h"

/* One entry of the table. */
struct qcow2_l2_entry {
	uint64_t entry;
	uint64_t bitmap; /* extended L2 only: low half allocated, high half reads as zeros */
};

/* 8-byte words that an entry takes. */
static inline unsigned qcow2_l2_words(const struct qcow2_geometry *geo)
{
	return geo->extended_l2 ? 2 : 1;
}

struct qcow2_l2_entry qcow2_l2_get(const struct qcow2_geometry *geo, const be64 *words, size_t index);

/* The run of one kind that begins OFF_IN bytes into the first of NR entries: RET's kind, length (to the end of the entries at most) and
 * host place; its guest_off and image are the caller's to fill in. -EUCLEAN: the entry is damaged. */
int qcow2_l2_run(const struct qcow2_geometry *geo, const be64 *words, size_t nr, uint64_t off_in, struct extent *ret);

#endif
