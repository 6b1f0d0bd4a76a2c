/* Node numbers: what a file of the mount is, in the 64 bits that the kernel hands back with each request.
 *
 * They are computed, not stored: kind (6 bits), VM (26), snapshot (20; 0: the VM as it is now), disk (12). So there is nothing
 * to count or to forget, a number keeps its meaning while the store is open, and what has gone is noticed where it is used.
 * The number is st_ino too. The root is 1, as FUSE has it. */
#ifndef FS_NODE_H
#define FS_NODE_H

#include <stdint.h>

enum node_kind {
	NODE_NONE, /* never in a number */
	NODE_ROOT,
	NODE_README,
	NODE_EVENTS,
	NODE_VMS,
	NODE_CLONES,
	NODE_CLONES_OF, /* clones/VM@SNAPSHOT; snapshot 0: clones/VM@ */
	NODE_CLONE_LINK, /* in it, a link to the clone; the VM is the clone */
	NODE_JOBS,
	NODE_POOLS, /* a pool in it is the NODE_DISKS of its VM */
	NODE_JOB, /* has a number instead of a VM */
	NODE_VM,
	NODE_STATUS,
	NODE_VM_EVENTS,
	NODE_CURRENT,
	NODE_SNAPSHOTS,
	NODE_ACTIONS,
	NODE_ACTION, /* the number of the disk is the enum action_kind */
	NODE_SCRATCH, /* a VM and a number */
	NODE_SNAPSHOT,
	NODE_SNAPSHOT_XML,
	NODE_MEMORY,
	NODE_DOMAIN, /* from here on also of a VM as it is now */
	NODE_DISKS,
	NODE_DISK,
	NODE_KINDS
};

struct node {
	enum node_kind kind;
	uint32_t vm, snapshot, disk;
};

uint64_t node_ino(struct node node);

/* -ESTALE: no number of ours. */
int node_parse(uint64_t ino, struct node *ret);

/* Kinds that are told apart by a number: it takes the place of snapshot and disk. */
struct node node_numbered(enum node_kind kind, uint32_t vm, uint32_t number);
uint32_t node_number(struct node node);

#endif
