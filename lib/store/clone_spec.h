/* What a clone's disks are to be: the rows of a clone_spec, put together and checked before anything is made. */
#ifndef STORE_CLONE_SPEC_H
#define STORE_CLONE_SPEC_H

#include "store/layers.h"
#include "store/store.h"

struct clone_disk {
	struct disk_spec spec; /* strings are those of the clone_spec */
	char volume[LAYER_NAME_MAX]; /* room for SPEC's, where its ending had to be put to it */
	bool full;	       /* it is to depend on nothing */
	bool raw;	       /* and be a raw file or a block device */
};

/* Each row names a disk of these: -ENOENT. */
int clone_spec_check(const struct clone_spec *spec, const struct vm_disk *disks, size_t nr_disks, struct reason *why);

/* What becomes of FROM. -EINVAL: that can't be. -ENOENT: there is no such pool. -EEXIST: the volume is there. */
int clone_spec_disk(struct store *store, const struct clone_spec *spec, const struct vm_disk *from, struct clone_disk *ret, struct reason *why);

/* Bytes that the disk has, for a source of SOURCE_SIZE. -EINVAL: less, without leave. */
int clone_disk_size(const struct clone_disk *disk, uint64_t source_size, uint64_t *ret, struct reason *why);

/* How its volume is named as a layer, in a clone NAME: that of DISK's own choice, or a new one. */
int clone_disk_volume(struct store *store, const struct clone_disk *disk, const char *name, const char *target, char layer[LAYER_NAME_MAX]);

#endif
