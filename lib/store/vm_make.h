/* Making struct vm: for those parts of the store that describe VMs. What is made here is changed only until it is published. */
#ifndef STORE_VM_MAKE_H
#define STORE_VM_MAKE_H

#include "store/vm.h"

/* An empty description with one reference; NULL when memory is out. */
struct vm *vm_new(enum vm_kind kind, enum vm_place place);

/* A deep copy with one reference. */
struct vm *vm_copy(const struct vm *vm);

/* Adds an element of zeros (NULL when memory is out); pointers to earlier ones are void afterwards. */
struct vm_disk *vm_disk_add(struct vm_disk **disks, size_t *nr_disks);
struct vm_snapshot *vm_snapshot_add(struct vm *vm);

/* A snapshot of no VM, with one reference; NULL when memory is out. */
struct vm_snapshot *vm_snapshot_new(void);
/* A deep copy, to be changed, with one reference. */
struct vm_snapshot *vm_snapshot_copy(const struct vm_snapshot *snapshot);
struct vm_snapshot *vm_snapshot_ref(struct vm_snapshot *snapshot);
void vm_snapshot_put(struct vm_snapshot *snapshot);
/* Adds it to the description, which takes the reference over on success alone. */
int vm_snapshot_append(struct vm *vm, struct vm_snapshot *snapshot);
/* The snapshot I, as one that belongs to this description alone. */
struct vm_snapshot *vm_snapshot_own(struct vm *vm, size_t i);
/* Takes snapshot I out; `current` stays with what it was, or becomes -1. */
void vm_snapshot_drop(struct vm *vm, size_t i);

/* The reference of a layer of the store in a description. */
typedef void (*vm_layer_fn)(void *ctx, const struct vm_disk *disk);
/* Calls FN for each disk of a managed VM that names a layer: heads, snapshots, a preview's saved state. */
void vm_each_layer(const struct vm *vm, vm_layer_fn fn, void *ctx);

/* The disk that names LAYER, else any that may lie over it: whom a job on it is said to work for. NULL: the VM has none. */
const struct vm_disk *vm_disk_over_layer(const struct vm *vm, const char *layer);

/* Takes disk I out of the description. */
void vm_disk_drop(struct vm *vm, size_t i);
void vm_disk_done(struct vm_disk *disk);

/* Copies into TO, all zeros before; the caller releases it with vm_disk_done(), also on failure. */
int vm_disk_copy(struct vm_disk *to, const struct vm_disk *from);

/* Forgets where the data was to come from. */
void vm_disk_clear_pending(struct vm_disk *disk);

/* What a job is to make of it: nothing any more; the same as of FROM. */
void vm_disk_clear_goal(struct vm_disk *disk);
int vm_disk_copy_goal(struct vm_disk *to, const struct vm_disk *from);

/* Marks the disk as one that can't be served. */
void vm_disk_set_error(struct vm_disk *disk, int err, const char *text);

/* Copies TEXT (NULL stays NULL) over *FIELD, freeing what was there. -ENOMEM. */
int text_set(char **field, const char *text);

#endif
