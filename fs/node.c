#include "fs/node.h"

#include <assert.h>
#include <errno.h>

#include "store/vm.h"

#define ROOT_INO 1u /* FUSE_ROOT_ID */

#define SNAPSHOT_SHIFT DISK_ID_BITS
#define VM_SHIFT       (SNAPSHOT_SHIFT + SNAPSHOT_ID_BITS)
#define KIND_SHIFT     (VM_SHIFT + VM_ID_BITS)

static_assert(KIND_SHIFT + 6 == 64, "a node number has 64 bits");
static_assert(NODE_KINDS <= 64, "the kind has 6 bits");

static uint32_t bits(uint64_t ino, unsigned shift, unsigned nr)
{
	return (uint32_t)(ino >> shift & ((1u << nr) - 1));
}

uint64_t node_ino(struct node node)
{
	if (node.kind == NODE_ROOT)
		return ROOT_INO;
	return (uint64_t)node.kind << KIND_SHIFT | (uint64_t)node.vm << VM_SHIFT | (uint64_t)node.snapshot << SNAPSHOT_SHIFT |
	       node.disk;
}

int node_parse(uint64_t ino, struct node *ret)
{
	if (ino == ROOT_INO) {
		*ret = (struct node){.kind = NODE_ROOT};
		return 0;
	}
	uint32_t kind = bits(ino, KIND_SHIFT, 6);
	if (kind <= NODE_ROOT || kind >= NODE_KINDS)
		return -ESTALE;
	*ret = (struct node){.kind = kind,
			     .vm = bits(ino, VM_SHIFT, VM_ID_BITS),
			     .snapshot = bits(ino, SNAPSHOT_SHIFT, SNAPSHOT_ID_BITS),
			     .disk = bits(ino, 0, DISK_ID_BITS)};
	return 0;
}

struct node node_numbered(enum node_kind kind, uint32_t vm, uint32_t number)
{
	return (struct node){.kind = kind,
			     .vm = vm,
			     .snapshot = number >> DISK_ID_BITS,
			     .disk = number & ((1u << DISK_ID_BITS) - 1)};
}

uint32_t node_number(struct node node)
{
	return node.snapshot << DISK_ID_BITS | node.disk;
}
