#include "fs/place.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "meta/action.h"

const struct vm_disk *place_disks(const struct place *place, size_t *ret_nr)
{
	*ret_nr = place->snapshot ? place->snapshot->nr_disks : place->vm->nr_disks;
	return place->snapshot ? place->snapshot->disks : place->vm->disks;
}

/* Finds what the numbers in the node stand for in place->vm. */
static int place_resolve(struct place *place)
{
	const struct node *node = &place->node;
	if (node->kind == NODE_SCRATCH)
		return 0;
	if (node->kind == NODE_ACTION)
		return node->disk > ACTION_NONE && node->disk < ACTION_KINDS && !node->snapshot ? 0 : -ESTALE;
	if (node->snapshot) {
		place->snapshot = vm_snapshot_by_id(place->vm, node->snapshot);
		if (!place->snapshot)
			return -ENOENT;
	}
	if (node->kind == NODE_DISK) {
		size_t nr;
		const struct vm_disk *disks = place_disks(place, &nr);
		place->disk = vm_disk_by_id(disks, nr, node->disk);
		if (!place->disk)
			return -ENOENT;
	}
	return 0;
}

int place_of_vm(struct node node, struct vm *vm, struct place *ret)
{
	struct place place = {.node = node, .vm = vm};
	int err = place_resolve(&place);
	if (err)
		vm_put(vm);
	else
		*ret = place;
	return err;
}

int place_open(struct fs *fs, uint64_t ino, struct place *ret)
{
	struct node node;
	int err = node_parse(ino, &node);
	if (err)
		return err;
	if (!node.vm) {
		*ret = (struct place){.node = node};
		return 0;
	}
	bool whole = node.kind == NODE_CURRENT || (node.kind != NODE_SCRATCH && node.snapshot);
	struct vm *vm = whole ? store_get(fs->store, node.vm) : store_get_brief(fs->store, node.vm);
	return vm ? place_of_vm(node, vm, ret) : -ENOENT;
}

int place_whole(struct fs *fs, const struct place *place, struct place *ret)
{
	struct vm *vm = store_whole(fs->store, vm_ref(place->vm));
	return vm ? place_of_vm(place->node, vm, ret) : -ENOENT;
}

void place_copy(const struct place *place, struct place *ret)
{
	*ret = *place;
	if (ret->vm)
		vm_ref(ret->vm);
}

void place_done(struct place *place)
{
	vm_put(place->vm);
	*place = (struct place){0};
}

uint64_t place_ino(const struct place *place)
{
	return node_ino(place->node);
}

bool place_is_managed(const struct place *place)
{
	return place->vm && place->vm->kind == VM_MANAGED && !place->snapshot;
}

bool place_is_pool(const struct place *place)
{
	return place->vm && place->vm->place == PLACE_POOLS;
}

bool place_is_dir(const struct place *place)
{
	switch (place->node.kind) {
	case NODE_ROOT:
	case NODE_VMS:
	case NODE_CLONES:
	case NODE_CLONES_OF:
	case NODE_JOBS:
	case NODE_POOLS:
	case NODE_VM:
	case NODE_SNAPSHOTS:
	case NODE_ACTIONS:
	case NODE_SNAPSHOT:
	case NODE_DISKS:
		return true;
	case NODE_NONE:
	case NODE_README:
	case NODE_EVENTS:
	case NODE_CLONE_LINK:
	case NODE_JOB:
	case NODE_STATUS:
	case NODE_VM_EVENTS:
	case NODE_CURRENT:
	case NODE_ACTION:
	case NODE_SCRATCH:
	case NODE_SNAPSHOT_XML:
	case NODE_MEMORY:
	case NODE_DOMAIN:
	case NODE_DISK:
	case NODE_KINDS:
		break;
	}
	return false;
}

/* The last component of the place's own path; SPARE is room for it where it is no constant. */
static const char *own_name(struct fs *fs, const struct place *place, char **spare)
{
	switch (place->node.kind) {
	case NODE_README:
		return "README.txt";
	case NODE_EVENTS:
	case NODE_VM_EVENTS:
		return "events";
	case NODE_VMS:
		return "vms";
	case NODE_CLONES:
		return "clones";
	case NODE_JOBS:
		return "jobs";
	case NODE_POOLS:
		return "pools";
	case NODE_JOB:
		*spare = job_numbers_name(fs->job_numbers, node_number(place->node));
		return *spare;
	case NODE_STATUS:
		return "status";
	case NODE_CURRENT:
		return "current";
	case NODE_SNAPSHOTS:
		return "snapshots";
	case NODE_ACTIONS:
		return "actions";
	case NODE_ACTION:
		return action_name(place->node.disk);
	case NODE_SCRATCH:
		*spare = scratch_name(fs->scratch, node_number(place->node));
		return *spare;
	case NODE_SNAPSHOT_XML:
		return "snapshot.xml";
	case NODE_MEMORY:
		return "memory";
	case NODE_DOMAIN:
		return "domain.xml";
	case NODE_DISKS:
		return "disks";
	case NODE_DISK:
		return place->disk->file_name;
	case NODE_NONE:
	case NODE_ROOT:
	case NODE_CLONES_OF:
	case NODE_CLONE_LINK:
	case NODE_VM:
	case NODE_SNAPSHOT:
	case NODE_KINDS:
		break;
	}
	return NULL;
}

void place_path(struct fs *fs, const struct place *place, const char *name, char *buf, size_t buf_len)
{
	auto_free char *spare = NULL;
	const char *parts[6] = {0};
	size_t nr = 0;
	if (place_is_pool(place)) {
		parts[nr++] = "pools";
		parts[nr++] = place->vm->name;
		parts[nr++] = place->disk ? place->disk->file_name : NULL;
	} else if (place->node.kind == NODE_CLONES_OF) {
		parts[nr++] = "clones";
		if (asprintf(&spare, "%s@%s", place->vm->name, place->snapshot ? place->snapshot->name : "") >= 0)
			parts[nr++] = spare;
	} else {
		if (place->snapshot) {
			parts[nr++] = "snapshots";
			parts[nr++] = place->snapshot->name;
		}
		if (place->node.kind == NODE_DISK)
			parts[nr++] = "disks";
		if (place->node.kind == NODE_ACTION)
			parts[nr++] = "actions";
		if (place->node.kind == NODE_JOB)
			parts[nr++] = "jobs";
		parts[nr++] = own_name(fs, place, &spare);
	}
	if (place->node.kind == NODE_VM && !name) {
		parts[nr++] = place->vm->place == PLACE_VMS ? "vms" : "clones";
		parts[nr++] = place->vm->name;
	}
	parts[nr++] = name;
	size_t len = 0;
	*buf = '\0';
	for (size_t i = 0; i < nr; i++)
		if (parts[i] && len < buf_len)
			len += (size_t)snprintf(buf + len, buf_len - len, "%s%s", len ? "/" : "", parts[i]);
}
