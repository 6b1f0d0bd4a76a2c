/* How much space snapshots take: alone, and with others.
 *
 * Of two snapshots of which either holds what the other one does, neither frees it alone: what is unique to each doesn't add up to what all
 * take. Approximate are: what a layer's file takes beyond its data, which counts as used and not as hidden; and a layer that several need, which
 * after a deletion only one needs: that a merge will free some of it isn't foreseen. */
#ifndef STORE_SPACE_H
#define STORE_SPACE_H

#include <stdint.h>

#include "store/vm.h"

struct space;
struct store;

/* The store's layers and what they take, at this moment: for several snapshots one after the other. */
int space_new(struct store *store, struct space **ret);
void space_free(struct space *space);

/* RET_USED: bytes that the chains of its disks take in the store. RET_UNIQUE: bytes that come back when it is deleted: layers that nobody else
 * needs, and what the only layer over one hides of it. */
void space_of(struct space *space, const struct vm_snapshot *snapshot, uint64_t *ret_used, uint64_t *ret_unique);

#endif
