#include "fs/tree.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "meta/action.h"

/* The names that are the same everywhere. */
static const struct fixed_name {
	enum node_kind parent;
	const char *name;
	enum node_kind kind;
} fixed_names[] = {
	{NODE_ROOT, "README.txt", NODE_README},
	{NODE_ROOT, "events", NODE_EVENTS},
	{NODE_ROOT, "vms", NODE_VMS},
	{NODE_ROOT, "clones", NODE_CLONES},
	{NODE_ROOT, "jobs", NODE_JOBS},
	{NODE_ROOT, "pools", NODE_POOLS},
	{NODE_VM, "domain.xml", NODE_DOMAIN},
	{NODE_VM, "status", NODE_STATUS},
	{NODE_VM, "disks", NODE_DISKS},
	{NODE_VM, "memory", NODE_MEMORY},
	{NODE_VM, "current", NODE_CURRENT},
	{NODE_VM, "snapshots", NODE_SNAPSHOTS},
	{NODE_VM, "actions", NODE_ACTIONS},
	{NODE_VM, "events", NODE_VM_EVENTS},
	{NODE_ACTIONS, "snapshot", NODE_ACTION},
	{NODE_ACTIONS, "preview", NODE_ACTION},
	{NODE_ACTIONS, "commit", NODE_ACTION},
	{NODE_ACTIONS, "undo", NODE_ACTION},
	{NODE_ACTIONS, "restore", NODE_ACTION},
	{NODE_ACTIONS, "delete", NODE_ACTION},
	{NODE_ACTIONS, "clone", NODE_ACTION},
	{NODE_ACTIONS, "flatten", NODE_ACTION},
	{NODE_SNAPSHOT, "domain.xml", NODE_DOMAIN},
	{NODE_SNAPSHOT, "snapshot.xml", NODE_SNAPSHOT_XML},
	{NODE_SNAPSHOT, "disks", NODE_DISKS},
	{NODE_SNAPSHOT, "memory", NODE_MEMORY},
};

#define for_each_fixed_name(f) \
	for (const struct fixed_name *f = fixed_names; f < fixed_names + sizeof fixed_names / sizeof *fixed_names; f++)

/* Not every VM has all of them. DIR is whole where "current" is asked for. */
static bool fixed_name_exists(struct fs *fs, const struct fixed_name *fixed, const struct place *dir)
{
	if (fixed->kind == NODE_POOLS)
		return store_nr_pools(fs->store);
	if (fixed->kind == NODE_CURRENT)
		return dir->vm->current >= 0;
	if (fixed->kind == NODE_MEMORY && !dir->snapshot)
		return dir->vm->memory_path;
	if (fixed->kind == NODE_MEMORY)
		return dir->snapshot->memory_disk >= 0 || dir->snapshot->memory_path;
	return true;
}

const char *tree_scratch_name(const struct place *dir, const char *name, char path[TREE_SCRATCH_MAX])
{
	if (dir->node.kind != NODE_ACTIONS)
		return name;
	snprintf(path, TREE_SCRATCH_MAX, "actions/%s", name);
	return path;
}

enum node_kind tree_service_kind(const char *name)
{
	for_each_fixed_name(fixed)
		if (fixed->parent == NODE_VM && !strcmp(fixed->name, name))
			return fixed->kind;
	return NODE_NONE;
}

/* A node in the VM, or in the snapshot, of PLACE. */
static struct node node_beside(const struct place *place, enum node_kind kind)
{
	return (struct node){.kind = kind, .vm = place->node.vm, .snapshot = place->node.snapshot};
}

/* What FIXED is in the directory DIR. */
static struct node fixed_node(const struct fixed_name *fixed, const struct place *dir)
{
	struct node node = node_beside(dir, fixed->kind);
	if (fixed->kind == NODE_ACTION)
		node.disk = action_kind_by_name(fixed->name);
	return node;
}

/* See veil.h. */
static bool fixed_name_is_hidden(struct fs *fs, const struct fixed_name *fixed, const struct place *dir, pid_t thread)
{
	return (fixed->parent == NODE_VM || fixed->parent == NODE_ACTIONS) &&
	       veil_hides(fs->veil, dir->node.vm, veil_name(fixed_node(fixed, dir)), thread);
}

struct node tree_parent(const struct place *place)
{
	switch (place->node.kind) {
	case NODE_CLONES_OF:
	case NODE_CLONE_LINK:
		return (struct node){.kind = NODE_CLONES};
	case NODE_JOB:
		return (struct node){.kind = NODE_JOBS};
	case NODE_VM:
		return (struct node){.kind = place->vm->place == PLACE_VMS ? NODE_VMS : NODE_CLONES};
	case NODE_STATUS:
	case NODE_VM_EVENTS:
	case NODE_CURRENT:
	case NODE_SNAPSHOTS:
	case NODE_ACTIONS:
	case NODE_SCRATCH:
		return (struct node){.kind = NODE_VM, .vm = place->node.vm};
	case NODE_ACTION:
		return (struct node){.kind = NODE_ACTIONS, .vm = place->node.vm};
	case NODE_SNAPSHOT:
		return (struct node){.kind = NODE_SNAPSHOTS, .vm = place->node.vm};
	case NODE_SNAPSHOT_XML:
	case NODE_MEMORY:
	case NODE_DOMAIN:
	case NODE_DISKS:
		if (place_is_pool(place))
			return (struct node){.kind = NODE_POOLS};
		return node_beside(place, place->snapshot ? NODE_SNAPSHOT : NODE_VM);
	case NODE_DISK:
		return node_beside(place, NODE_DISKS);
	case NODE_NONE:
	case NODE_ROOT:
	case NODE_README:
	case NODE_EVENTS:
	case NODE_VMS:
	case NODE_CLONES:
	case NODE_JOBS:
	case NODE_POOLS:
	case NODE_KINDS:
		break;
	}
	return (struct node){.kind = NODE_ROOT};
}

/* --- clones/VM@SNAPSHOT --------------------------------------------------------------------------------------------- */

/* Whether VM was cloned from what the directory DIR stands for. */
static bool is_clone_of(const struct vm *vm, const struct place *dir)
{
	size_t vm_len = strlen(dir->vm->name);
	return vm->origin && !strncmp(vm->origin, dir->vm->name, vm_len) && vm->origin[vm_len] == '@' &&
	       !strcmp(vm->origin + vm_len + 1, dir->snapshot ? dir->snapshot->name : "");
}

/* The place of VM@SNAPSHOT, split at AT, if there are such a VM and snapshot. */
static int lookup_clones_of_at(struct fs *fs, const char *name, const char *at, struct place *ret)
{
	char vm_name[NAME_MAX + 1];
	snprintf(vm_name, sizeof vm_name, "%.*s", (int)(at - name), name);
	struct vm *vm = store_find(fs->store, PLACE_VMS, vm_name);
	if (!vm)
		vm = store_find(fs->store, PLACE_CLONES, vm_name);
	if (!vm)
		return -ENOENT;
	const struct vm_snapshot *snapshot = vm_find_snapshot(vm, at + 1);
	if (!snapshot && (at[1] || vm->kind != VM_MANAGED)) {
		vm_put(vm);
		return -ENOENT;
	}
	struct node node = {.kind = NODE_CLONES_OF, .vm = vm->id, .snapshot = snapshot ? snapshot->id : 0};
	return place_of_vm(node, vm, ret);
}

/* Both names may have an '@' in them: the last one that makes sense splits. */
static int lookup_clones_of(struct fs *fs, const char *name, struct place *ret)
{
	for (const char *at = name + strlen(name); at-- > name;)
		if (*at == '@' && lookup_clones_of_at(fs, name, at, ret) == 0)
			return 0;
	return -ENOENT;
}

static int lookup_clone_link(struct fs *fs, const struct place *dir, const char *name, struct place *ret)
{
	for (int place = PLACE_CLONES; place >= PLACE_VMS; place--) {
		struct vm *vm = store_find_brief(fs->store, place, name);
		if (vm && is_clone_of(vm, dir))
			return place_of_vm((struct node){.kind = NODE_CLONE_LINK, .vm = vm->id}, vm, ret);
		vm_put(vm);
	}
	return -ENOENT;
}

int tree_link_target(struct fs *fs, const struct place *place, char **ret_target)
{
	char *target;
	int len = -1;
	size_t text_len;
	if (place->node.kind == NODE_SCRATCH)
		return scratch_text(fs->scratch, node_number(place->node), ret_target, &text_len);
	if (place->node.kind == NODE_CLONE_LINK)
		len = asprintf(&target, place->vm->place == PLACE_CLONES ? "../%s" : "../../vms/%s", place->vm->name);
	else if (place->node.kind == NODE_CURRENT && place->vm->current >= 0)
		len = asprintf(&target, "snapshots/%s", place->vm->snapshots[place->vm->current]->name);
	else
		return -EINVAL;
	if (len < 0)
		return -ENOMEM;
	*ret_target = target;
	return 0;
}

/* --- lookup ----------------------------------------------------------------------------------------------------------- */

/* The place NODE in the VM of PARENT. */
static int open_in_vm(const struct place *parent, struct node node, struct place *ret)
{
	return place_of_vm(node, parent->vm ? vm_ref(parent->vm) : NULL, ret);
}

static int lookup_fixed(struct fs *fs, const struct place *parent, const char *name, pid_t thread, struct place *ret)
{
	for_each_fixed_name(fixed) {
		if (fixed->parent != parent->node.kind || strcmp(fixed->name, name) || !fixed_name_exists(fs, fixed, parent))
			continue;
		if (fixed_name_is_hidden(fs, fixed, parent, thread))
			return -ENOENT;
		return open_in_vm(parent, fixed_node(fixed, parent), ret);
	}
	return -ENOENT;
}

static int lookup_vm(struct fs *fs, enum vm_place place, const char *name, struct place *ret)
{
	struct vm *vm = store_find_brief(fs->store, place, name);
	return vm ? place_of_vm((struct node){.kind = NODE_VM, .vm = vm->id}, vm, ret) : -ENOENT;
}

static int lookup_pool(struct fs *fs, const char *name, struct place *ret)
{
	struct vm *vm = store_find_brief(fs->store, PLACE_POOLS, name);
	return vm ? place_of_vm((struct node){.kind = NODE_DISKS, .vm = vm->id}, vm, ret) : -ENOENT;
}

static int lookup_snapshot(struct fs *fs, const struct place *parent, const char *name, struct place *ret)
{
	auto_place struct place whole = {0};
	int err = place_whole(fs, parent, &whole);
	const struct vm_snapshot *snapshot = err ? NULL : vm_find_snapshot(whole.vm, name);
	if (!snapshot)
		return -ENOENT;
	return open_in_vm(&whole, (struct node){.kind = NODE_SNAPSHOT, .vm = whole.vm->id, .snapshot = snapshot->id}, ret);
}

static int lookup_disk(const struct place *parent, const char *name, struct place *ret)
{
	size_t nr;
	const struct vm_disk *disks = place_disks(parent, &nr);
	const struct vm_disk *disk = vm_find_disk(disks, nr, name);
	if (!disk)
		return -ENOENT;
	struct node node = node_beside(parent, NODE_DISK);
	node.disk = disk->id;
	return open_in_vm(parent, node, ret);
}

static int lookup_scratch(struct fs *fs, const struct place *parent, const char *name, struct place *ret)
{
	char path[TREE_SCRATCH_MAX];
	uint32_t number = scratch_find(fs->scratch, parent->node.vm, tree_scratch_name(parent, name, path));
	return number ? open_in_vm(parent, node_numbered(NODE_SCRATCH, parent->node.vm, number), ret) : -ENOENT;
}

static int lookup_job(struct fs *fs, const char *name, struct place *ret)
{
	auto_free char *names = NULL;
	int err = store_jobs(fs->store, &names);
	if (err)
		return err;
	char *rest = names;
	for (const char *job = strsep(&rest, "\n"); job; job = strsep(&rest, "\n"))
		if (*job && !strcmp(job, name)) {
			uint32_t number = job_numbers_get(fs->job_numbers, job);
			*ret = (struct place){.node = node_numbered(NODE_JOB, 0, number)};
			return number ? 0 : -ENOMEM;
		}
	return -ENOENT;
}

static int lookup_in_vm(struct fs *fs, const struct place *parent, const char *name, pid_t thread, struct place *ret)
{
	auto_place struct place whole = {0};
	int err = tree_service_kind(name) == NODE_CURRENT ? place_whole(fs, parent, &whole) : 0;
	if (!err)
		err = lookup_fixed(fs, whole.vm ? &whole : parent, name, thread, ret);
	return err ? lookup_scratch(fs, parent, name, ret) : 0;
}

int tree_lookup(struct fs *fs, const struct place *parent, const char *name, pid_t thread, struct place *ret)
{
	if (!strcmp(name, ".")) /* asked of files too, for NFS */
		return open_in_vm(parent, parent->node, ret);
	if (!place_is_dir(parent))
		return -ENOTDIR;
	if (strlen(name) > NAME_MAX)
		return -ENAMETOOLONG;
	if (!strcmp(name, ".."))
		return place_open(fs, node_ino(tree_parent(parent)), ret);
	switch ((int)parent->node.kind) {
	case NODE_VMS:
		return lookup_vm(fs, PLACE_VMS, name, ret);
	case NODE_CLONES:
		return lookup_vm(fs, PLACE_CLONES, name, ret) == 0 ? 0 : lookup_clones_of(fs, name, ret);
	case NODE_CLONES_OF:
		return lookup_clone_link(fs, parent, name, ret);
	case NODE_SNAPSHOTS:
		return lookup_snapshot(fs, parent, name, ret);
	case NODE_DISKS:
		return lookup_disk(parent, name, ret);
	case NODE_JOBS:
		return lookup_job(fs, name, ret);
	case NODE_POOLS:
		return lookup_pool(fs, name, ret);
	case NODE_VM:
		return lookup_in_vm(fs, parent, name, thread, ret);
	case NODE_ACTIONS:
		return lookup_fixed(fs, parent, name, thread, ret) == 0 ? 0 : lookup_scratch(fs, parent, name, ret);
	}
	return lookup_fixed(fs, parent, name, thread, ret);
}

/* --- listing ---------------------------------------------------------------------------------------------------------- */

void dir_list_free(struct dir_list *list)
{
	if (!list)
		return;
	for (size_t i = 0; i < list->nr_entries; i++)
		free(list->entries[i].name);
	free(list->entries);
	free(list);
}

static int list_add_at(struct dir_list *list, const char *name, struct node node, off_t next_off)
{
	char *copy = strdup(name);
	if (!copy || mem_grow(&list->entries, &list->cap_entries, list->nr_entries + 1, sizeof *list->entries) < 0) {
		free(copy);
		return -ENOMEM;
	}
	list->entries[list->nr_entries++] = (struct dir_entry){.name = copy, .node = node, .next_off = next_off};
	return 0;
}

static int list_add(struct dir_list *list, const char *name, struct node node)
{
	return list_add_at(list, name, node, (off_t)list->nr_entries + 1);
}

static int list_fixed(struct fs *fs, const struct place *dir, struct dir_list *list)
{
	int err = 0;
	for_each_fixed_name(fixed) {
		if (fixed->parent != dir->node.kind || !fixed_name_exists(fs, fixed, dir))
			continue;
		if (fixed_name_is_hidden(fs, fixed, dir, 0))
			continue;
		err = err ? err : list_add(list, fixed->name, fixed_node(fixed, dir));
	}
	return err;
}

/* The clones of OF among the VMs of a place, as links. */
static int list_clones_of(struct fs *fs, enum vm_place place, const struct place *of, struct dir_list *list)
{
	auto_free struct vm **vms = NULL;
	size_t nr = 0;
	int err = store_list(fs->store, place, &vms, &nr);
	if (err)
		return err;
	for (size_t i = 0; i < nr; i++) {
		if (!err && is_clone_of(vms[i], of))
			err = list_add(list, vms[i]->name, (struct node){.kind = NODE_CLONE_LINK, .vm = vms[i]->id});
		vm_put(vms[i]);
	}
	return err;
}

static int list_snapshots(struct fs *fs, const struct place *dir, struct dir_list *list)
{
	auto_place struct place whole = {0};
	int err = place_whole(fs, dir, &whole);
	for (size_t i = 0; !err && i < whole.vm->nr_snapshots; i++) {
		const struct vm_snapshot *snapshot = whole.vm->snapshots[i];
		err = list_add(list, snapshot->name,
			       (struct node){.kind = NODE_SNAPSHOT, .vm = whole.vm->id, .snapshot = snapshot->id});
	}
	return err;
}

static int list_disks(const struct place *dir, struct dir_list *list)
{
	int err = 0;
	size_t nr;
	const struct vm_disk *disks = place_disks(dir, &nr);
	for (size_t i = 0; !err && i < nr; i++) {
		struct node node = node_beside(dir, NODE_DISK);
		node.disk = disks[i].id;
		err = list_add(list, disks[i].file_name, node);
	}
	return err;
}

static int list_pools(struct fs *fs, struct dir_list *list)
{
	int err = 0;
	for (size_t i = 0; !err && i < store_nr_pools(fs->store); i++) {
		const char *name = store_pool_name(fs->store, i);
		struct vm *vm = store_find_brief(fs->store, PLACE_POOLS, name);
		if (vm)
			err = list_add(list, name, (struct node){.kind = NODE_DISKS, .vm = vm->id});
		vm_put(vm);
	}
	return err;
}

static int list_jobs(struct fs *fs, struct dir_list *list)
{
	auto_free char *names = NULL;
	int err = store_jobs(fs->store, &names);
	char *rest = names;
	for (const char *job = err ? NULL : strsep(&rest, "\n"); job && !err; job = strsep(&rest, "\n"))
		if (*job)
			err = list_add(list, job, node_numbered(NODE_JOB, 0, job_numbers_get(fs->job_numbers, job)));
	return err;
}

static int list_vm(struct fs *fs, const struct place *dir, struct dir_list *list)
{
	auto_place struct place whole = {0};
	int err = place_whole(fs, dir, &whole);
	if (!err)
		err = list_fixed(fs, &whole, list);
	for (size_t i = 0; !err; i++) {
		uint32_t number = 0;
		auto_free char *name = scratch_list(fs->scratch, dir->node.vm, i, &number);
		if (!name)
			break;
		err = list_add(list, name, node_numbered(NODE_SCRATCH, dir->node.vm, number));
	}
	return err;
}

static int list_children(struct fs *fs, const struct place *dir, struct dir_list *list)
{
	int err;
	switch ((int)dir->node.kind) {
	case NODE_CLONES_OF:
		err = list_clones_of(fs, PLACE_CLONES, dir, list);
		return err ? err : list_clones_of(fs, PLACE_VMS, dir, list);
	case NODE_SNAPSHOTS:
		return list_snapshots(fs, dir, list);
	case NODE_DISKS:
		return list_disks(dir, list);
	case NODE_JOBS:
		return list_jobs(fs, list);
	case NODE_POOLS:
		return list_pools(fs, list);
	case NODE_VM:
		return list_vm(fs, dir, list);
	}
	return list_fixed(fs, dir, list);
}

static int list_dots(const struct place *dir, struct dir_list *list)
{
	int err = list_add(list, ".", dir->node);
	return err ? err : list_add(list, "..", tree_parent(dir));
}

int tree_list(struct fs *fs, const struct place *dir, struct dir_list **ret)
{
	struct dir_list *list = calloc(1, sizeof *list);
	if (!list)
		return -ENOMEM;
	int err = list_dots(dir, list);
	if (!err)
		err = list_children(fs, dir, list);
	if (err)
		dir_list_free(list);
	else
		*ret = list;
	return err;
}

bool tree_is_paged(const struct place *dir)
{
	return dir->node.kind == NODE_VMS || dir->node.kind == NODE_CLONES;
}

/* After the dots the offset behind a VM is its id and VM_OFF: so it means the same whatever comes, goes or is renamed. */
#define VM_OFF 2

int tree_list_page(struct fs *fs, const struct place *dir, off_t off, size_t max, struct dir_list **ret)
{
	auto_free struct vm **vms = NULL;
	size_t nr = 0;
	struct dir_list *list = calloc(1, sizeof *list);
	if (!list)
		return -ENOMEM;
	int err = off < VM_OFF ? list_dots(dir, list) : 0;
	uint32_t first_id = off < VM_OFF ? 1 : (uint32_t)(off - VM_OFF) + 1;
	if (!err)
		err = store_list_from(fs->store, dir->node.kind == NODE_VMS ? PLACE_VMS : PLACE_CLONES, first_id, max, &vms, &nr);
	for (size_t i = 0; i < nr; i++) {
		if (!err)
			err = list_add_at(list, vms[i]->name, (struct node){.kind = NODE_VM, .vm = vms[i]->id}, (off_t)vms[i]->id + VM_OFF);
		vm_put(vms[i]);
	}
	if (err)
		dir_list_free(list);
	else
		*ret = list;
	return err;
}
