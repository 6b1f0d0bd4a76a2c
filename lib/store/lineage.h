/* Names and parents of snapshots as somebody else's metadata has them, made into ones that can be shown. */
#ifndef STORE_LINEAGE_H
#define STORE_LINEAGE_H

#include "store/vm.h"

/* The snapshots of VM are in order of time, with names and parents as they were written. Afterwards each name is valid and unique, and each
 * parent is the name of another snapshot of the VM that isn't younger; no chain of parents comes back to itself. A parent that
 * several bear the name of is the first of them. -ENOMEM. */
int lineage_settle(struct vm *vm);

#endif
