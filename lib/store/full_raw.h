/* Raw files and block devices that disks become: made in the background, put beneath what they are a copy of, and then taken for the disk itself. */
#ifndef STORE_FULL_RAW_H
#define STORE_FULL_RAW_H

#include <errno.h>

#include "store/jobs.h"
#include "store/layers.h"

struct entry;
struct store;
struct view;

/* Takes the name BASE: an empty file, or the device that has it. *SIZE is the disk's; a device says another. -EEXIST, -EBUSY, -ENOSPC. */
int full_raw_reserve(struct store *store, const char *base, const struct layer_owner *owner, uint64_t *size, struct reason *why);

/* A disk isn't to become BASE any more, as vm.xml says already. It goes, unless another disk is, or it is a layer: then the sweep knows when that goes. */
void full_raw_drop(struct store *store, const char *base);

/* Whether a disk of ENTRY's VM, now or in a snapshot, is to become BASE. Exact while the caller holds the change lock. */
bool full_raw_is_goal(struct store *store, struct entry *entry, const char *base);

/* Which source it is that lies BENEATH a layer (NULL: none): nobody writes to one, so that another differs in something. */
#define FULL_SOURCE_MAX 128u
void full_raw_describe(const struct view *beneath, char source[FULL_SOURCE_MAX]);

/* Fills BASE with what lies beneath LAYER, as far as LAYER is long, and gives it its name; it is in the table then, pinned. What was done before,
 * by a daemon that was killed, isn't done again, if it was for the same layer and the same source. SOURCE: what it is a copy of. -EAGAIN: it is no goal any
 * more. FULL_RAW_TAKEN: it has become part of another disk. */
#define FULL_RAW_TAKEN (-EADDRINUSE)
int full_raw_make(struct store *store, struct job *job, const char *layer, const char *base, bool preallocate, char source[FULL_SOURCE_MAX],
		  struct reason *why);

/* How far BASE was matters no more: it lies beneath its layer and is going to be written to, or it has gone. */
void full_raw_forget(struct store *store, const char *base);

/* At the start: forgets how far those were that nobody wants. */
void full_raw_clear_leftovers(struct store *store);

#endif
