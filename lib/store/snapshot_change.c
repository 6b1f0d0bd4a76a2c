/* Renaming and deleting snapshots: rows of vm.xml. What nobody needs any more is the sweep's and the merges' business. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/name.h"
#include "store/snapshot.h"
#include "store/store_internal.h"

/* --- renaming --------------------------------------------------------------------------------------------------------------- */

/* Those whose parent is OLD get PARENT. */
static int reparent(struct vm *next, const char *old, const char *parent)
{
	for (size_t i = 0; i < next->nr_snapshots; i++) {
		if (!next->snapshots[i]->parent || strcmp(next->snapshots[i]->parent, old) != 0)
			continue;
		struct vm_snapshot *own = vm_snapshot_own(next, i);
		if (!own || text_set(&own->parent, parent))
			return -ENOMEM;
	}
	if (!next->saved || !next->saved->parent || strcmp(next->saved->parent, old) != 0)
		return 0;
	struct vm_snapshot *saved = vm_snapshot_copy(next->saved);
	if (!saved)
		return -ENOMEM;
	vm_snapshot_put(next->saved);
	next->saved = saved;
	return text_set(&saved->parent, parent);
}

static int rename_in(struct vm *next, size_t i, const char *new_name)
{
	auto_free char *old = strdup(next->snapshots[i]->name);
	struct vm_snapshot *own = old ? vm_snapshot_own(next, i) : NULL;
	if (!own || text_set(&own->name, new_name))
		return -ENOMEM;
	return reparent(next, old, new_name);
}

int store_snapshot_rename(struct store *store, struct vm *vm, const char *name, const char *new_name, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	size_t i = 0;
	int err = name_check(new_name);
	if (err)
		return reason_set(why, err, "%s: not a name for a snapshot", new_name);
	if ((err = managed_begin(store, vm, &entry, &now, why)))
		return err;
	err = snapshot_find(now, name, &i, why);
	if (!err && strcmp(now->snapshots[i]->name, new_name) != 0) {
		if (vm_snapshot_index(now, new_name) >= 0)
			err = reason_set(why, -EEXIST, "%s has a snapshot %s already", now->name, new_name);
		struct vm *next = err ? NULL : vm_copy(now);
		if (!err)
			err = next ? rename_in(next, i, new_name) : -ENOMEM;
		if (!err)
			err = managed_commit(store, entry, next, why);
		else
			vm_put(next);
	}
	managed_end(entry, now);
	return err;
}

/* --- deleting ---------------------------------------------------------------------------------------------------------------- */

static bool has_children(const struct vm *vm, const char *name)
{
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		if (vm->snapshots[i]->parent && strcmp(vm->snapshots[i]->parent, name) == 0)
			return true;
	return false;
}

/* Takes the snapshot out; what came after it comes after its parent now. */
static int drop(struct vm *next, size_t i)
{
	struct vm_snapshot *gone = vm_snapshot_ref(next->snapshots[i]);
	bool was_current = next->current == (int)i;
	vm_snapshot_drop(next, i);
	if (was_current && gone->parent)
		next->current = vm_snapshot_index(next, gone->parent);
	int err = reparent(next, gone->name, gone->parent);
	vm_snapshot_put(gone);
	return err;
}

/* The snapshot takes its parent's place and name: the parent has its state from then on. */
static int fold_into_parent(struct vm *next, size_t i, struct reason *why)
{
	auto_free char *name = strdup(next->snapshots[i]->name);
	int parent = next->snapshots[i]->parent ? vm_snapshot_index(next, next->snapshots[i]->parent) : -1;
	if (parent < 0)
		return reason_set(why, -EPERM, "%s has no parent and nothing goes on from it: its state would be lost; use discard, or rmdir",
				  next->snapshots[i]->name);
	auto_free char *parent_name = strdup(next->snapshots[parent]->name);
	bool was_current = next->current == parent;
	int err = name && parent_name ? drop(next, (size_t)parent) : -ENOMEM;
	int own = err ? -1 : vm_snapshot_index(next, name);
	if (own < 0)
		return -ENOMEM;
	if (was_current)
		next->current = own;
	return rename_in(next, (size_t)own, parent_name);
}

/* The snapshot and all that descend from it. */
static int drop_tree(struct vm *next, size_t root)
{
	bool *doomed = mem_new_array(next->nr_snapshots, sizeof *doomed);
	if (!doomed)
		return -ENOMEM;
	doomed[root] = true;
	for (bool more = true; more;) {
		more = false;
		for (size_t i = 0; i < next->nr_snapshots; i++) {
			int parent = doomed[i] || !next->snapshots[i]->parent ? -1 : vm_snapshot_index(next, next->snapshots[i]->parent);
			if (parent >= 0 && doomed[parent])
				more = doomed[i] = true;
		}
	}
	int err = 0;
	for (size_t i = next->nr_snapshots; !err && i-- > 0;)
		if (doomed[i])
			err = drop(next, i);
	free(doomed);
	return err;
}

static int apply_delete(struct vm *next, size_t i, enum snapshot_delete how, struct reason *why)
{
	const char *name = next->snapshots[i]->name;
	bool goes_on = has_children(next, name) || next->current == (int)i;
	switch (how) {
	case SNAPSHOT_DROP: break;
	case SNAPSHOT_MERGE:
		if (!goes_on)
			return reason_set(why, -EPERM, "nothing goes on from %s: its state would be lost; use merge-force, discard, or rmdir", name);
		break;
	case SNAPSHOT_MERGE_FORCE:
		if (!goes_on)
			return fold_into_parent(next, i, why);
		break;
	case SNAPSHOT_DISCARD:
		if (has_children(next, name))
			return reason_set(why, -ENOTEMPTY, "%s has children, which a discard would drop with it: use discard-force, merge, or rmdir",
					  name);
		break;
	case SNAPSHOT_DISCARD_FORCE: return drop_tree(next, i);
	}
	return drop(next, i);
}

int store_snapshot_delete(struct store *store, struct vm *vm, const char *name, enum snapshot_delete how, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	size_t i = 0;
	int err = managed_begin(store, vm, &entry, &now, why);
	if (err)
		return err;
	err = snapshot_check_no_preview(now, "deleting a snapshot", why);
	if (!err)
		err = snapshot_find(now, name, &i, why);
	struct vm *next = err ? NULL : vm_copy(now);
	if (!err)
		err = next ? apply_delete(next, i, how, why) : -ENOMEM;
	if (!err) {
		vm_ref(next);
		err = managed_commit(store, entry, next, why);
		if (!err) {
			snapshot_unlink_dropped(now, next);
			layers_resume_runs(store, now);
		}
	}
	vm_put(next);
	managed_end(entry, now);
	if (!err)
		layers_sweep(store);
	return err;
}
