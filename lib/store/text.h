/* What the store's texts are made from. */
#ifndef STORE_TEXT_H
#define STORE_TEXT_H

#include "store/store.h"

/* The configuration of VM (SNAPSHOT NULL: as it is now) as a whole <domain>, as its source has it: without the store's own disks. The
 * caller frees. */
int text_config(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, char **ret, size_t *ret_len,
		struct reason *why);

/* CONFIG, a whole <domain>, as it is shown of a VM with these disks: its name, its UUID, their files. The caller frees. */
int text_domain(struct store *store, const struct vm *vm, const char *config, const struct vm_disk *disks, size_t nr_disks, char **ret,
		struct reason *why);

#endif
