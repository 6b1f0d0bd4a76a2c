/* What the store's texts are made from. */
#ifndef STORE_TEXT_H
#define STORE_TEXT_H

#include "store/store.h"

/* The configuration of VM (SNAPSHOT NULL: as it is now) as a whole <domain>, as its source has it: without the store's own disks. The
 * caller frees. */
int text_config(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, char **ret, size_t *ret_len,
		struct reason *why);

#endif
