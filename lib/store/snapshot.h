/* Snapshots of managed VMs: what the parts that make, apply and delete them share. The operations themselves are in store.h. */
#ifndef STORE_SNAPSHOT_H
#define STORE_SNAPSHOT_H

#include "store/managed.h"
#include "store/store.h"

struct store;

/* By name, or failing that by UUID; -ENOENT, with the reason. */
int snapshot_find(const struct vm *vm, const char *name, size_t *ret, struct reason *why);

/* A snapshot of NAME (NULL: none) that was taken now and has no disks yet: UUID, time, paths, state, its parent what is current. NULL: memory
 * is out. */
struct vm_snapshot *snapshot_new(struct store *store, const struct vm *vm, const char *name);

/* Adds a disk like FROM, with the content that LAYER holds. */
int snapshot_add_disk(struct store *store, struct vm_snapshot *snapshot, const struct vm_disk *from, const char *layer);

/* Notes that the disk with TARGET isn't part of it. */
int snapshot_leave_out(struct vm_snapshot *snapshot, const char *target);
bool snapshot_left_out(const struct vm_snapshot *snapshot, const char *target);

/* Writes STORE/vms/UUID/snapshots/UUID.xml, stable: the snapshot with CONFIG, the VM's at that moment. */
int snapshot_write_file(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const char *config, struct reason *why);

/* snapshot_memory.c: copies the file with the RAM that SPEC names into an unnamed one in the store: by shared extents where the filesystem has
 * them, as sparse as it is, stable. Takes no lock. */
int snapshot_copy_memory(struct store *store, const struct snapshot_spec *spec, int *ret_fd, struct reason *why);
/* Gives the copy FD its name, as the snapshot's RAM. */
int snapshot_place_memory(struct store *store, const struct vm *vm, struct vm_snapshot *snapshot, int fd, struct reason *why);

/* Unlinks the files of a snapshot that no vm.xml names; NOW may go on using its RAM. */
void snapshot_unlink_files(const struct vm *now, const struct vm_snapshot *snapshot);
/* The same, of those that BEFORE had and NOW hasn't. */
void snapshot_unlink_dropped(const struct vm *before, const struct vm *now);

/* Unlinks whatever lies beside the snapshots' files without being named by NOW. */
void snapshot_clear_files(struct store *store, const struct vm *now);

/* -EBUSY while there is a preview. */
int snapshot_check_no_preview(const struct vm *now, const char *what, struct reason *why);

/* A name made from PREFIX and the time that no snapshot of the VM has; the caller frees. */
char *snapshot_name_by_time(const struct vm *vm, const char *prefix);

#endif
