/* Raw files and block devices that disks become: made in the background, put beneath what they are a copy of, and then taken for the disk itself. */
#ifndef STORE_FULL_RAW_H
#define STORE_FULL_RAW_H

#include "store/jobs.h"
#include "store/layers.h"

struct store;

/* Takes the name BASE: an empty file, or the device that has it. *SIZE is the disk's; a device says another. -EEXIST, -EBUSY, -ENOSPC. */
int full_raw_reserve(struct store *store, const char *base, const struct layer_owner *owner, uint64_t *size, struct reason *why);

/* Nobody wants BASE any more, unless something lies over it. */
void full_raw_drop(struct store *store, const char *base);

/* Fills BASE with what lies beneath LAYER, as far as LAYER is long, and gives it its name; it is in the table then, pinned. What was done before,
 * by a daemon that was killed, isn't done again. -ESTALE: nobody wants it any more. */
int full_raw_make(struct store *store, struct job *job, const char *layer, const char *base, bool preallocate, struct reason *why);

/* It lies beneath LAYER. */
void full_raw_made(struct store *store, const char *base);

/* At the start: forgets how far those were that nobody wants. */
void full_raw_clear_leftovers(struct store *store);

#endif
