/* Pools as they are shown: each is a managed VM that nobody sees as one (PLACE_POOLS), named like the pool. Its disks are the volumes: those that were made here,
 * which vm.xml names, and those that are found in the directory, which it doesn't; a look at the directory, at most a second old, tells which these are. */
#ifndef STORE_POOL_VM_H
#define STORE_POOL_VM_H

#include "base/reason.h"
#include "store/layer_files.h"
#include "store/vm.h"

struct entry;
struct pool;
struct store;

/* At the start, behind the managed VMs: the VMs of pools that have none yet are made. */
int pool_vms_load(struct store *store, struct reason *why);
/* Looks for found volumes of VM, the pool's, unless somebody has just done that. True: there is another description now. */
bool pool_vm_refresh(struct store *store, const struct vm *vm);

/* The pool that VM stands for; NULL: it is none, or one that this mount doesn't have. */
struct pool *pool_of_vm(const struct store *store, const struct vm *vm);

/* Makes an empty volume FILE_NAME in the pool of VM: its layer, pinned. A name that no file of a pool may have (a copying program's temporary one) is one of
 * the mount alone, until it is renamed. */
int pool_volume_make(struct store *store, const struct vm *vm, const char *file_name, const struct layer_owner *owner, char layer[LAYER_NAME_MAX],
		     struct reason *why);
/* -EXDEV: a volume whose layer is LAYER can't be called NEW_NAME, whose ending says another format: mv(1) copies it then. */
int pool_check_rename(const char *layer, const char *new_name, struct reason *why);
/* Lets the file of volume FILE_NAME be called so in the pool's directory, where that is possible; else WHY says why not (what is open still has the name, say),
 * and each look at the directory tries again. The caller holds the change lock, and sweeps the layers afterwards. */
void pool_volume_rename_file(struct store *store, struct entry *entry, const char *file_name, struct reason *why);

#endif
