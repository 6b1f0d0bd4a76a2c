/* Found libvirt VMs with their snapshots: read when somebody looks, kept for those that were looked at last.
 *
 * What is forgotten is read again with the same numbers, for the names' numbers are kept (struct entry). Of a VM that is looked at, the
 * metadata are looked at again at most once a second. */
#ifndef STORE_WHOLE_H
#define STORE_WHOLE_H

#include "store/store_internal.h"

/* The VM with its snapshots as they are now; takes the reference to VM (may be NULL) over. NULL: it is gone, or memory is out. */
struct vm *whole_get(struct store *store, struct vm *vm);

/* The entry's description is another one, or gone. */
void whole_drop_locked(struct store *store, struct entry *entry);

#endif
