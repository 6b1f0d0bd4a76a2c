/* Freezing heads: the layers that a managed VM writes to become ones that never change again, with new overlays on top.
 *
 * The steps, and what a crash after each leaves:
 *   1  every chosen disk that is open is flushed; one that isn't is looked at (nobody else, a QEMU say, writes to it), and stays closed
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
	char layer[LAYER_NAME_MAX]; /* holds it, for ever; "": not chosen, or it was blank, and nothing was done */
	uint64_t virtual_size; /* whole sectors, as in its header */
	struct layer_owner owner; /* of the head's file */
};

struct freeze_spec {
	const bool *chosen; /* by index in the description; none of them may be pending */
	bool blanks_too;    /* of a disk that nothing was ever written to, too, a layer is kept */
	/* Makes NEXT, which has the new overlays in it already, what the VM is to become, in the same commit. FROZEN has a row for each disk, by index
	 * in the description of before. NULL: no more than that. Called with the gates closed. */
	int (*amend)(void *ctx, struct vm *next, const struct frozen_disk *frozen, struct reason *why);
	void *ctx;
};

/* Freezes disks of *NOW (the VM's description, replaced by the new one); RET has a row for each disk of the VM. The caller holds the
 * change lock. -EBUSY: another program has one open. */
int freeze_disks(struct store *store, struct entry *entry, struct vm **now, const struct freeze_spec *spec, struct frozen_disk *ret,
		 struct reason *why);

#endif
