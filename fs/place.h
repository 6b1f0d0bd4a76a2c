/* A place in the tree: what a node number stands for now, with a reference to its VM. */
#ifndef FS_PLACE_H
#define FS_PLACE_H

#include <stdbool.h>

#include "fs/fs.h"
#include "fs/node.h"

struct place {
	struct node node;
	struct vm *vm;			     /* NULL: of none. Brief (vm.h) where neither a snapshot nor the current one is meant */
	const struct vm_snapshot *snapshot; /* NULL: the VM as it is now */
	const struct vm_disk *disk;	     /* of a NODE_DISK */
};

/* -ENOENT: it has gone; -ESTALE: there never was such a number. */
int place_open(struct fs *fs, uint64_t ino, struct place *ret);
/* The same, of a VM that is at hand; takes the reference over, whatever it returns. */
int place_of_vm(struct node node, struct vm *vm, struct place *ret);
/* The place with its VM's snapshots. */
int place_whole(struct fs *fs, const struct place *place, struct place *ret);
void place_copy(const struct place *place, struct place *ret);
void place_done(struct place *place);

#define auto_place __attribute__((cleanup(place_done)))

uint64_t place_ino(const struct place *place);

/* Of a managed VM, and not of a snapshot: what operations may change. */
bool place_is_managed(const struct place *place);

/* A pool's directory, or a volume in it. */
bool place_is_pool(const struct place *place);

bool place_is_dir(const struct place *place);

/* The disks that a NODE_DISKS lists. */
const struct vm_disk *place_disks(const struct place *place, size_t *ret_nr);

/* The path of NAME (NULL: nothing) in PLACE, for messages: within the VM if there is one ("disks/vda.img"), else within the mount
 * ("clones/new"). */
void place_path(struct fs *fs, const struct place *place, const char *name, char *buf, size_t buf_len);

#endif
