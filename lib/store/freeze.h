/* Freezing heads: the layers that a managed VM writes to become ones that never change again, with new overlays on top.
 *
 * The steps, and what a crash after each leaves:
 *   1  every chosen disk is opened (so nobody else, a QEMU say, writes to it) and flushed
 *   2  the gates close: writes under way have ended, others wait; one moment for all disks
 *   3  new overlays over the old layers, stable                                       (leftovers, cleared at the next start)
 *   4  the old heads are closed: the layers are clean and complete
 *   5  vm.xml names the new overlays                                                  (the VM reads as before)
 *   6  the new overlays are opened, the gates open
 * A failure before 5 opens the old layers again. */
#ifndef STORE_FREEZE_H
#define STORE_FREEZE_H

#include "store/heads.h"

struct entry;
struct store;

/* A disk as it was when the gate was closed. */
struct frozen_disk {
	char layer[LAYER_NAME_MAX]; /* holds it, for ever; "": it was blank, and nothing was done */
	uint64_t virtual_size; /* whole sectors, as in its header */
	struct layer_owner owner; /* of the head's file */
};

/* Freezes the disks of *NOW (the VM's description, replaced by the new one) for which CHOSEN is true, none of which may be pending;
 * RET has a row for each disk of the VM. The caller holds the change lock. -EBUSY: another program has one open. */
int freeze_disks(struct store *store, struct entry *entry, struct vm **now, const bool *chosen, struct frozen_disk *ret,
		 struct reason *why);

#endif
