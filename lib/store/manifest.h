/* STORE/vms/UUID/vm.xml: what a managed VM is.
 *
 *   <vm uuid='…' place='clones' created='1700000000' mode='0400'>
 *     <name>web-test</name>
 *     <origin>web@upgraded</origin>                              where it was cloned from, in words
 *     <disk target='vda' file='vda.img' layer='UUID.qcow2' format='qcow2'>
 *       <pending path='/…' format='qcow2' snapshot='tag' base='UUID.raw' row='…'/>      see pending.h
 *       <full base='UUID.raw' preallocate='yes'/>                see full.h
 *     </disk>
 *     <snapshot uuid='…' parent='UUID' created='1700000000' state='running' left-out='vdc'
 *               memory='UUID'>                                   in order of time; memory: its RAM is snapshots/UUID.memory
 *       <name>before</name> <description>…</description>
 *       <disk target='vda' file='vda.img' layer='UUID.qcow2' format='qcow2'/>
 *     </snapshot>
 *     <current snapshot='UUID'/>
 *     <saved uuid='…' parent='UUID' …>…</saved>                  the state before the preview: the same, with <config> instead of a name
 *     <preview>upgraded</preview>                                what is previewed, in words
 *     <memory snapshot='UUID'/>                                  whose RAM belongs to the state now
 *     <config>…</config>                                         the domain XML, byte for byte, as text
 *   </vm>
 *
 * Each snapshot's configuration is the <domain> in STORE/vms/UUID/snapshots/UUID.xml, which is written and stable before vm.xml names it. What
 * vm.xml says of a snapshot is right, where the two differ.
 *
 * A disk without target is a scratch file of a copying program: kept as well, since it may be all that there is of somebody's
 * data. The layer's own header says what lies beneath it.
 *
 * place='pools': the volumes that were made in the pool of that name; file='…' is their name in pools/NAME/. */
#ifndef STORE_MANIFEST_H
#define STORE_MANIFEST_H

#include <sys/types.h>

#include "store/vm.h"
#include "base/reason.h"

struct store;

#define MANIFEST_NAME "vm.xml"

/* Makes VM's vm.xml say what VM says, atomically and durably. The directory must be there. -EINVAL: something in it can't be
 * written as XML. Sets VM's time of change. *RET_UNSURE: as file_replace()'s. */
int manifest_save(struct store *store, struct vm *vm, bool *ret_unsure, struct reason *why);

/* Takes VM's vm.xml away, durably: its directory is a leftover then. *RET_UNSURE, set where it was tried: whether it has gone, nobody knows. */
int manifest_remove(struct store *store, const struct vm *vm, bool *ret_unsure);

/* Reads STORE/vms/UUID/vm.xml. Whatever it says is checked: -EUCLEAN, -EINVAL. -ENOENT: there is none. */
int manifest_load(struct store *store, const char *uuid, struct vm **ret, struct reason *why);

/* The paths of a snapshot's own files; the caller frees. NULL: memory is out. */
char *manifest_snapshot_path(struct store *store, const struct vm *vm, const char *snapshot_uuid, const char *ending);

/* "vda.img" gives "vda" (the caller frees); NULL: not the name of a disk. */
char *manifest_target_of(const char *file_name);

/* Names in disks/ of managed VMs: as name_check(), but a leading dot is allowed: scratch files have it. */
int manifest_check_file_name(const char *name);

#endif
