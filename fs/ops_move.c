/* Removing and renaming. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "fs/ops.h"
#include "fs/tree.h"
#include "meta/action.h"

/* --- unlink ----------------------------------------------------------------------------------------------------------- */

/* Service files can't be removed: see veil.h. */
static int unlink_in_vm(struct fs *fs, const struct place *vm, const char *name)
{
	enum node_kind kind = tree_service_kind(name);
	if (scratch_unlink(fs->scratch, vm->node.vm, name) == 0)
		return 0;
	if (kind == NODE_NONE)
		return -ENOENT;
	veil_remove(fs->veil, vm->node.vm, kind);
	return 0;
}

static int unlink_in_actions(struct fs *fs, const struct place *actions, const char *name)
{
	char path[TREE_SCRATCH_MAX];
	struct node node = {.kind = NODE_ACTION, .vm = actions->node.vm, .disk = action_kind_by_name(name)};
	if (scratch_unlink(fs->scratch, actions->node.vm, tree_scratch_name(actions, name, path)) == 0)
		return 0;
	if (!node.disk)
		return -ENOENT;
	veil_remove(fs->veil, node.vm, veil_name(node));
	return 0;
}

static int unlink_file(struct fs *fs, const struct place *parent, const char *name, struct reason *why)
{
	if (parent->node.kind == NODE_JOBS)
		return store_job_cancel(fs->store, name, why);
	if (parent->node.kind == NODE_CLONES_OF)
		return reason_set(why, -EPERM, "this only points at the clone. rmdir the clone itself");
	if (!place_is_managed(parent))
		return -EROFS;
	if (parent->node.kind == NODE_DISKS)
		return disk_remove(fs->store, parent->vm, name, why);
	if (parent->node.kind == NODE_VM)
		return unlink_in_vm(fs, parent, name);
	if (parent->node.kind == NODE_ACTIONS)
		return unlink_in_actions(fs, parent, name);
	return -EROFS;
}

void ops_unlink(fuse_req_t req, fuse_ino_t parent_ino, const char *name)
{
	struct reason why = {0};
	auto_place struct place parent = {0};
	if (!ops_place(req, parent_ino, &parent))
		return;
	int err = unlink_file(ops_fs(req), &parent, name, &why);
	if (err)
		ops_fail(req, &parent, "rm", name, err, &why);
	else
		fuse_reply_err(req, 0);
}

/* --- rmdir ------------------------------------------------------------------------------------------------------------ */

static int remove_vm(struct fs *fs, const struct place *vm, struct reason *why)
{
	if (vm->node.kind != NODE_VM)
		return reason_set(why, -EPERM, "it lists the clones of a snapshot, and is always there");
	if (!place_is_managed(vm))
		return -EROFS;
	handles_wait_closed(fs->handles, vm->node.vm);
	int err = store_remove(fs->store, vm->vm, why);
	if (err)
		return err;
	scratch_forget(fs->scratch, vm->node.vm);
	ops_vms_changed(fs);
	return 0;
}

/* rm -r removes a VM's folders before the VM. */
static int remove_folder(struct fs *fs, const struct place *vm, const char *name, struct reason *why)
{
	enum node_kind kind = tree_service_kind(name);
	size_t nr = kind == NODE_DISKS ? vm->vm->nr_disks : kind == NODE_SNAPSHOTS ? vm->vm->nr_snapshots : 0;
	if (nr)
		return reason_set(why, -ENOTEMPTY, "it isn't empty");
	veil_remove(fs->veil, vm->node.vm, kind);
	return 0;
}

/* *RET_SUBJECT: what a message is about. */
static int remove_dir(struct fs *fs, const struct place *parent, const char *name, struct place *ret_subject,
		      struct reason *why)
{
	if (parent->node.kind == NODE_VMS || parent->node.kind == NODE_CLONES) {
		int err = tree_lookup(fs, parent, name, 0, ret_subject);
		return err ? err : remove_vm(fs, ret_subject, why);
	}
	place_copy(parent, ret_subject);
	if (parent->node.kind == NODE_SNAPSHOTS && place_is_managed(parent))
		return store_snapshot_delete(fs->store, parent->vm, name, SNAPSHOT_DROP, why);
	if (parent->node.kind == NODE_VM && place_is_managed(parent))
		return remove_folder(fs, parent, name, why);
	return -EROFS;
}

void ops_rmdir(fuse_req_t req, fuse_ino_t parent_ino, const char *name)
{
	struct reason why = {0};
	auto_place struct place parent = {0};
	auto_place struct place subject = {0};
	if (!ops_place(req, parent_ino, &parent))
		return;
	int err = remove_dir(ops_fs(req), &parent, name, &subject, &why);
	if (err)
		ops_fail(req, subject.vm ? &subject : &parent, "rmdir", subject.node.kind == NODE_VM && !parent.vm ? NULL : name,
			 err, &why);
	else
		fuse_reply_err(req, 0);
}

/* --- rename ----------------------------------------------------------------------------------------------------------- */

struct move {
	const struct place *from, *to; /* directories */
	const char *name, *new_name;
	bool replaces; /* what has the new name, if anything */
};

static int rename_vm(struct fs *fs, const struct move *move, struct reason *why)
{
	auto_place struct place vm = {0};
	auto_place struct place target = {0};
	int err = tree_lookup(fs, move->from, move->name, 0, &vm);
	if (err)
		return err;
	if (vm.node.kind != NODE_VM || !place_is_managed(&vm))
		return -EROFS;
	if (move->to->node.kind != NODE_VMS && move->to->node.kind != NODE_CLONES)
		return reason_set(why, -EPERM, "a VM's place is vms/ or clones/");
	if (tree_lookup(fs, move->to, move->new_name, 0, &target) == 0)
		return reason_set(why, -EEXIST, "there is %s already", move->new_name);
	enum vm_place place = move->to->node.kind == NODE_VMS ? PLACE_VMS : PLACE_CLONES;
	err = store_rename(fs->store, vm.vm, place, move->new_name, why);
	if (!err)
		ops_vms_changed(fs);
	return err;
}

static int rename_disk(struct fs *fs, const struct move *move, struct reason *why)
{
	if (move->to->node.kind == NODE_VM)
		return reason_set(why, -EPERM, "only a VM's disks/ holds disks");
	if (move->to->node.kind != NODE_DISKS || move->to->node.vm != move->from->node.vm)
		return -EXDEV;
	if (!move->replaces && vm_find_disk(move->to->vm->disks, move->to->vm->nr_disks, move->new_name))
		return -EEXIST;
	return disk_rename(fs->store, move->from->vm, move->name, move->new_name, why);
}

/* An editor saves: its scratch file becomes the configuration. */
static int scratch_to_domain(struct fs *fs, const struct move *move, uint32_t number, struct reason *why)
{
	auto_free char *text = NULL;
	size_t len;
	int err = scratch_text(fs->scratch, number, &text, &len);
	if (!err)
		err = store_set_domain(fs->store, move->from->vm, text, len, why);
	struct stat st;
	if (!err && scratch_stat(fs->scratch, number, &st) == 0)
		err = store_chmod_domain(fs->store, move->from->vm, st.st_mode);
	if (err)
		return err;
	veil_lift(fs->veil, move->from->node.vm, NODE_DOMAIN);
	return scratch_unlink(fs->scratch, move->from->node.vm, move->name);
}

/* What of PATH comes after PREFIX; NULL: it doesn't begin so. */
static const char *after(const char *path, const char *prefix)
{
	size_t len = strlen(prefix);
	return path && !strncmp(path, prefix, len) ? path + len : NULL;
}

/* The rest of TARGET, seen from the VM's directory, behind that directory: "snapshots/S". */
static const char *within_vm(struct fs *fs, const struct place *vm, const char *target)
{
	char dir[PATH_MAX];
	const char *rest = target;
	while (after(rest, "./"))
		rest = after(rest, "./");
	snprintf(dir, sizeof dir, "../%s/", vm->vm->name);
	if (after(rest, dir))
		return after(rest, dir);
	snprintf(dir, sizeof dir, "%s/%s/%s/", fs->mount_dir, vm->vm->place == PLACE_VMS ? "vms" : "clones", vm->vm->name);
	return *rest == '/' ? after(rest, dir) : rest;
}

const struct vm_snapshot *ops_links_to_snapshot(struct fs *fs, const struct place *vm, const char *target)
{
	const char *name = after(within_vm(fs, vm, target), "snapshots/");
	return name ? vm_find_snapshot(vm->vm, name) : NULL;
}

int ops_restore_link(struct fs *fs, const struct place *vm, const char *target, struct reason *why)
{
	const struct vm_snapshot *snapshot = ops_links_to_snapshot(fs, vm, target);
	if (!snapshot)
		return reason_set(why, -ENOENT, "%s: current can only point to one of the VM's snapshots, as snapshots/NAME", target);
	handles_wait_closed(fs->handles, vm->node.vm);
	int err = store_restore(fs->store, vm->vm, snapshot->name, false, why);
	if (!err)
		ops_vms_changed(fs);
	return err;
}

/* A link takes the place of `current`. */
static int scratch_to_current(struct fs *fs, const struct move *move, uint32_t number, struct reason *why)
{
	struct stat st;
	auto_free char *text = NULL;
	size_t len;
	int err = scratch_stat(fs->scratch, number, &st);
	if (!err && S_ISLNK(st.st_mode)) {
		err = scratch_text(fs->scratch, number, &text, &len);
		if (!err)
			err = ops_restore_link(fs, move->from, text, why);
		if (!err)
			veil_lift(fs->veil, move->from->node.vm, NODE_CURRENT);
	}
	return err ? err : scratch_unlink(fs->scratch, move->from->node.vm, move->name);
}

static int rename_scratch(struct fs *fs, const struct move *move, uint32_t number, struct reason *why)
{
	enum node_kind kind = tree_service_kind(move->new_name);
	uint32_t vm = move->from->node.vm;
	if (!move->replaces && (kind != NODE_NONE || scratch_find(fs->scratch, vm, move->new_name)))
		return -EEXIST;
	if (kind == NODE_DOMAIN)
		return scratch_to_domain(fs, move, number, why);
	if (kind == NODE_CURRENT)
		return scratch_to_current(fs, move, number, why);
	if (kind == NODE_DISKS || kind == NODE_SNAPSHOTS || kind == NODE_ACTIONS)
		return -EISDIR;
	if (kind != NODE_NONE) /* a copying program puts its own status or events in place: ours stay */
		return scratch_unlink(fs->scratch, vm, move->name);
	return scratch_rename(fs->scratch, vm, move->name, move->new_name);
}

/* An editor makes a backup of the configuration by moving it away. */
static int domain_to_scratch(fuse_req_t req, const struct move *move, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	uint32_t vm = move->from->node.vm, number;
	if (tree_service_kind(move->new_name) != NODE_NONE)
		return -EPERM;
	if (!move->replaces && scratch_find(fs->scratch, vm, move->new_name))
		return -EEXIST;
	auto_free char *text = NULL;
	size_t len = 0;
	int err = store_domain_xml(fs->store, move->from->vm, NULL, fs->mount_dir, &text, &len, NULL, why);
	if (err)
		return err;
	scratch_unlink(fs->scratch, vm, move->new_name);
	struct stat st = {.st_uid = move->from->vm->uid, .st_gid = move->from->vm->gid, .st_mode = 0644};
	err = scratch_create(fs->scratch, vm, move->new_name, &st, false, &number);
	if (err)
		return err;
	err = scratch_write(fs->scratch, number, text, len, 0);
	scratch_close(fs->scratch, number);
	if (!err)
		veil_remove(fs->veil, vm, NODE_DOMAIN);
	return err;
}

static int rename_in_vm(fuse_req_t req, const struct move *move, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	uint32_t number = scratch_find(fs->scratch, move->from->node.vm, move->name);
	bool same_dir = move->to->node.kind == NODE_VM && move->to->node.vm == move->from->node.vm;
	if (!number && tree_service_kind(move->name) != NODE_DOMAIN)
		return -EPERM;
	if (!same_dir)
		return number ? -EXDEV : -EPERM;
	return number ? rename_scratch(fs, move, number, why) : domain_to_scratch(req, move, why);
}

static int rename_snapshot(struct fs *fs, const struct move *move, struct reason *why)
{
	if (move->to->node.kind != NODE_SNAPSHOTS || move->to->node.vm != move->from->node.vm)
		return reason_set(why, -EROFS, "a snapshot stays with its VM: clone it");
	return store_snapshot_rename(fs->store, move->from->vm, move->name, move->new_name, why);
}

/* A copying program puts its own in place: ours stay. */
static int rename_in_actions(struct fs *fs, const struct move *move)
{
	char path[TREE_SCRATCH_MAX];
	bool same_dir = move->to->node.kind == NODE_ACTIONS && move->to->node.vm == move->from->node.vm;
	struct node node = {.kind = NODE_ACTION, .vm = move->from->node.vm, .disk = action_kind_by_name(move->new_name)};
	if (!same_dir || !node.disk || !move->replaces)
		return -EPERM;
	int err = scratch_unlink(fs->scratch, node.vm, tree_scratch_name(move->from, move->name, path));
	if (err)
		return -EPERM;
	veil_lift(fs->veil, node.vm, veil_name(node));
	return 0;
}

static int rename_any(fuse_req_t req, const struct move *move, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	if (move->from->node.kind == NODE_ACTIONS && place_is_managed(move->from))
		return rename_in_actions(fs, move);
	if (move->from->node.kind == NODE_VMS || move->from->node.kind == NODE_CLONES)
		return rename_vm(fs, move, why);
	if (move->from->node.kind == NODE_CLONES_OF || move->from->node.kind == NODE_JOBS)
		return -EPERM;
	/* Never EXDEV for what can't be removed: mv would copy it all first. */
	if (!place_is_managed(move->from))
		return -EROFS;
	if (move->from->node.kind == NODE_SNAPSHOTS)
		return rename_snapshot(fs, move, why);
	return move->from->node.kind == NODE_DISKS ? rename_disk(fs, move, why) : rename_in_vm(req, move, why);
}

void ops_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent, const char *new_name,
		unsigned flags)
{
	struct reason why = {0};
	auto_place struct place from = {0};
	auto_place struct place to = {0};
	if (flags & ~(unsigned)RENAME_NOREPLACE) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	if (!ops_place(req, parent, &from) || !ops_place(req, new_parent, &to))
		return;
	struct move move = {.from = &from, .to = &to, .name = name, .new_name = new_name, .replaces = !(flags & RENAME_NOREPLACE)};
	int err = rename_any(req, &move, &why);
	if (!err || err == -EXDEV)
		fuse_reply_err(req, -err);
	else
		ops_fail(req, &from, "mv", name, err, &why);
}
