/* Managed VMs: what the parts that change them share. */
#ifndef STORE_MANAGED_H
#define STORE_MANAGED_H

#include "store/heads.h"
#include "store/vm_make.h"

struct entry;
struct store;

/* A file is closed for us a moment after close(2) has returned, longer on a busy host: so long who finds a disk open waits before it says so. */
#define MANAGED_CLOSING_MS 500

/* -EROFS, with the reason, unless VM is a managed one in a store that can be written. */
int managed_check(struct store *store, const struct vm *vm, struct reason *why);

/* Takes the change lock of the VM that an old description VM belongs to, and gives its description of now; -ENOENT, without the
 * lock: the VM is gone. The caller puts *RET_NOW. */
int managed_begin(struct store *store, const struct vm *vm, struct entry **ret_entry, struct vm **ret_now, struct reason *why);
/* The same, once no disk of the VM is pending: waits for their jobs. -EBUSY: one of these failed. */
int managed_begin_settled(struct store *store, const struct vm *vm, struct entry **ret_entry, struct vm **ret_now, struct reason *why);
void managed_end(struct entry *entry, struct vm *now);

/* Makes NEXT (taken over, whatever happens) what the VM is, on disk and then in the table. The caller holds the change lock. On failure
 * the disk may have either state: what NEXT needs must not be deleted. */
int managed_commit(struct store *store, struct entry *entry, struct vm *next, struct reason *why);

/* The disk with LAYER isn't pending any more, if it was: it was emptied. The caller holds the change lock. */
void managed_settle(struct store *store, struct entry *entry, const char *layer);

/* Brings a new VM, complete but for its directory, into being: directory, vm.xml, table. NEXT is taken over; RET gets a reference. Its
 * layers are stable and pinned. */
int managed_add(struct store *store, struct vm *next, const char *nvram_source, struct vm **ret, struct reason *why);

/* A description of a new VM: name, UUID, owner, time; no disks, no configuration. */
struct vm *managed_new(enum vm_place place, const char *name, uid_t uid, gid_t gid);

/* Where the NVRAM of VM lies, or will: the caller frees. */
char *managed_nvram_path(struct store *store, const struct vm *vm);

/* TEXT, a domain XML of somebody else, with the identity of VM. RET_NVRAM gets the path of the file to copy for it (NULL: none); both are
 * the caller's to free. */
int managed_adopt_config(struct store *store, const struct vm *vm, const char *text, size_t len, char **ret_config,
			 char **ret_nvram, struct reason *why);

/* Reads STORE/vms; vm.xml files that can't be read are events. Returns how many there were. */
int managed_load_all(struct store *store, size_t *ret_nr_bad);

/* Clears away directories without vm.xml, and beside the snapshots' files what no vm.xml names. */
void managed_clear_leftovers(struct store *store);

#endif
