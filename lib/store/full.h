/* Disks that are to depend on nothing but their VM's own layers: clones in full, flattened VMs.
 *
 * vm.xml keeps the goal with each disk, now and in snapshots. The lowest layer of the disk's chain that is the VM's own takes up all that lies
 * beneath, in the background, while it is used as before; then it is rebased to nothing, and the goal goes from vm.xml. Header and vm.xml are right
 * at every moment, and what is pulled already isn't pulled again: a daemon that is killed leaves nothing to clear away.
 *
 * A snapshot that is taken meanwhile freezes the layer that it was for: it is that layer still, found anew from what the store holds. */
#ifndef STORE_FULL_H
#define STORE_FULL_H

#include "base/reason.h"

struct entry;
struct store;
struct vm;

/* Adds a job for each layer that a goal is about. At the start, and whenever a goal was set or chains have changed. */
void full_plan(struct store *store);

/* Says so in an event if VM has a goal that nothing works towards, because not all of the store could be read at the start. */
void full_note_waiting(struct store *store, const struct vm *vm);

/* Sets the goal for the disk with LAYER of ENTRY's VM, whose change lock the caller holds. */
int full_want(struct store *store, struct entry *entry, const char *layer, struct reason *why);

/* The disk with LAYER of ENTRY's VM, whose change lock the caller holds, lies over another source now, or over none. A raw file that it was to become stays
 * that of the snapshots which are to become it, too. */
void full_source_changed(struct store *store, struct entry *entry, const char *layer);

#endif
