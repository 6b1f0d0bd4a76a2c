/* Making things: clones, disks, and whatever a copying program thinks it has to make. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/name.h"
#include "fs/control.h"
#include "fs/ops.h"
#include "fs/tree.h"
#include "meta/action.h"

#define CALLER_GROUPS_MAX 65536

/* --- clones ----------------------------------------------------------------------------------------------------------- */

int ops_load_caller(fuse_req_t req, struct caller_ids *ret)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	gid_t *groups = mem_new_array(CALLER_GROUPS_MAX, sizeof *groups);
	if (!groups)
		return -ENOMEM;
	groups[0] = ctx->gid;
	int more = fuse_req_getgroups(req, CALLER_GROUPS_MAX - 1, groups + 1);
	if (more > CALLER_GROUPS_MAX - 1)
		more = CALLER_GROUPS_MAX - 1;
	*ret = (struct caller_ids){.uid = ctx->uid,
				   .overrides = callers_overrides_permissions(ctx->uid, ctx->pid),
				   .groups = groups,
				   .nr_groups = 1 + (size_t)(more > 0 ? more : 0)};
	return 0;
}

bool ops_caller_may_read(void *ids_ptr, uid_t owner, gid_t group, mode_t mode)
{
	const struct caller_ids *ids = ids_ptr;
	return attr_may_read(ids->uid, ids->overrides, ids->groups, ids->nr_groups, owner, group, mode);
}

static int check_may_read(struct fs *fs, struct caller_ids *ids, const struct vm *from, const struct vm_snapshot *snapshot,
			  const struct vm_disk *disk, struct reason *why)
{
	struct disk_stat ds = {0};
	if (disk_stat(fs->store, from, snapshot, disk, &ds, NULL) < 0)
		return 0; /* such a disk isn't cloned */
	if (ops_caller_may_read(ids, ds.uid, ds.gid, ds.mode))
		return 0;
	return reason_set(why, -EACCES, "user %u may not read the images of %s", (unsigned)ids->uid, disk->file_name);
}

int ops_check_may_read_config(fuse_req_t req, const struct vm *vm, const struct vm_snapshot *snapshot, struct reason *why)
{
	struct caller_ids ids;
	struct access access;
	int err = ops_load_caller(req, &ids);
	if (err)
		return err;
	store_config_access(vm, snapshot, &access);
	if (!ops_caller_may_read(&ids, access.uid, access.gid, access.mode))
		err = reason_set(why, -EACCES, "user %u may not read the configuration", (unsigned)ids.uid);
	free(ids.groups);
	return err;
}

int ops_check_may_clone(fuse_req_t req, const struct vm *from, const struct vm_snapshot *snapshot, const struct vm_disk *only,
			struct reason *why)
{
	struct caller_ids ids;
	size_t nr = only ? 1 : snapshot ? snapshot->nr_disks : from->nr_disks;
	const struct vm_disk *disks = only ? only : snapshot ? snapshot->disks : from->disks;
	int err = only ? 0 : ops_check_may_read_config(req, from, snapshot, why);
	if (!err)
		err = ops_load_caller(req, &ids);
	if (err)
		return err;
	for (size_t i = 0; !err && i < nr; i++)
		err = check_may_read(ops_fs(req), &ids, from, snapshot, &disks[i], why);
	free(ids.groups);
	return err;
}

/* The new VM is owned by who made it. */
static int make_vm(fuse_req_t req, const struct place *parent, const char *name, struct place *ret, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	struct vm *vm = NULL;
	int err;
	if (parent->node.kind == NODE_CLONES_OF) {
		err = ops_check_may_clone(req, parent->vm, parent->snapshot, NULL, why);
		if (!err)
			err = store_clone(fs->store, parent->vm, parent->snapshot, name, ctx->uid, ctx->gid, &vm, why);
	} else {
		err = store_create(fs->store, name, ctx->uid, ctx->gid, &vm, why);
	}
	return err ? err : place_of_vm((struct node){.kind = NODE_VM, .vm = vm->id}, vm, ret);
}

/* clones/VM@SNAPSHOT where there is that VM and no such snapshot: a slip, not a name for an empty VM. */
static int check_new_name(struct fs *fs, const struct place *parent, const char *name, struct reason *why)
{
	const char *at = strrchr(name, '@');
	if (parent->node.kind != NODE_CLONES || !at)
		return 0;
	auto_free char *vm_name = strndup(name, (size_t)(at - name));
	struct vm *vm = vm_name ? store_find(fs->store, PLACE_VMS, vm_name) : NULL;
	if (!vm)
		return 0;
	vm_put(vm);
	return reason_set(why, -ENOENT, "%s has no snapshot %s", vm_name, at + 1);
}

static int mkdir_vm(fuse_req_t req, const struct place *parent, const char *name, struct place *ret, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	int err = check_new_name(fs, parent, name, why);
	if (!err)
		err = make_vm(req, parent, name, ret, why);
	if (err)
		return err;
	if (parent->node.kind == NODE_CLONES && callers_is_copying_tree(fs->callers, ops_thread(req), place_ino(parent), name))
		veil_cover(fs->veil, ret->vm->id, ops_thread(req));
	ops_vms_changed(fs);
	return 0;
}

/* The folders of a VM are there already, though not everybody may see them yet. */
static int mkdir_in_vm(struct fs *fs, const struct place *vm, const char *name, struct place *ret, struct reason *why)
{
	enum node_kind kind = tree_service_kind(name);
	if (kind != NODE_DISKS && kind != NODE_SNAPSHOTS && kind != NODE_ACTIONS)
		return reason_set(why, -EPERM, "a VM has no other folders than disks, snapshots and actions");
	veil_lift(fs->veil, vm->node.vm, kind);
	return place_of_vm((struct node){.kind = kind, .vm = vm->node.vm}, vm_ref(vm->vm), ret);
}

static int mkdir_snapshot(fuse_req_t req, const struct place *parent, const char *name, struct place *ret, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	if (veil_is_maker(fs->veil, parent->node.vm, ops_thread(req)))
		return reason_set(why, -EOPNOTSUPP, "snapshots can't be copied into a VM: copy one into clones/, or take one with mkdir");
	const struct snapshot_spec spec = {.name = name};
	auto_place struct place now = {0};
	int err = store_snapshot_create(fs->store, parent->vm, &spec, why);
	if (!err)
		err = place_open(fs, place_ino(parent), &now);
	return err ? err : tree_lookup(fs, &now, name, 0, ret);
}

static int make_dir(fuse_req_t req, const struct place *parent, const char *name, struct place *ret, struct reason *why)
{
	if (parent->node.kind == NODE_CLONES || parent->node.kind == NODE_CLONES_OF)
		return mkdir_vm(req, parent, name, ret, why);
	if (!place_is_managed(parent))
		return -EROFS;
	if (parent->node.kind == NODE_VM)
		return mkdir_in_vm(ops_fs(req), parent, name, ret, why);
	if (parent->node.kind == NODE_SNAPSHOTS)
		return mkdir_snapshot(req, parent, name, ret, why);
	return reason_set(why, -EPERM, "only disks go here");
}

/* mkdir must answer with a directory where a link is found from now on. It isn't the VM's own: the kernel keeps a directory
 * in one place alone, and would have to move it from here to clones/ at the next look (ESTALE, when a rename is under way). */
static void reply_made_clone(fuse_req_t req, const struct place *parent, const struct place *child)
{
	struct fuse_entry_param entry;
	int err = ops_entry(req, parent, child, &entry);
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	entry.ino = entry.attr.st_ino = node_ino((struct node){.kind = NODE_CLONE_LINK, .vm = child->node.vm});
	entry.entry_timeout = 0;
	fuse_reply_entry(req, &entry);
}

/* What creat(2) makes comes as CREATE. */
void ops_mknod(fuse_req_t req, fuse_ino_t parent_ino, const char *name, mode_t mode, dev_t rdev)
{
	(void)mode;
	(void)rdev;
	struct reason why = {0};
	auto_place struct place parent = {0};
	if (ops_place(req, parent_ino, &parent))
		ops_fail(req, &parent, "make", name, reason_set(&why, -EPERM, "devices, pipes and sockets can't be made here"), &why);
}

void ops_mkdir(fuse_req_t req, fuse_ino_t parent_ino, const char *name, mode_t mode)
{
	(void)mode;
	struct reason why = {0};
	auto_place struct place parent = {0};
	auto_place struct place child = {0};
	if (!ops_place(req, parent_ino, &parent))
		return;
	int err = make_dir(req, &parent, name, &child, &why);
	if (err) {
		ops_fail(req, &parent, "mkdir", name, err, &why);
		return;
	}
	callers_note_making(ops_fs(req)->callers, ops_thread(req));
	if (parent.node.kind == NODE_CLONES_OF)
		reply_made_clone(req, &parent, &child);
	else
		ops_reply_entry(req, &parent, &child);
}

/* --- files ------------------------------------------------------------------------------------------------------------ */

/* What a copy of a VM or snapshot brings along and nobody wants to keep: we have our own. */
static bool is_unwanted(const char *name)
{
	auto_free char *final = name_final(name);
	enum node_kind kind = final ? tree_service_kind(final) : NODE_NONE;
	return final && (kind == NODE_STATUS || kind == NODE_VM_EVENTS || kind == NODE_CURRENT ||
			 !strcmp(final, "snapshot.xml") || !strcmp(final, "memory"));
}

static int create_scratch(fuse_req_t req, const struct place *vm, const char *name, mode_t mode, struct place *ret,
			  struct handle **ret_handle)
{
	struct fs *fs = ops_fs(req);
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	struct stat st = {.st_uid = ctx->uid, .st_gid = ctx->gid, .st_mode = mode & 0777};
	uint32_t number;
	char path[TREE_SCRATCH_MAX];
	bool in_actions = vm->node.kind == NODE_ACTIONS;
	int err = scratch_create(fs->scratch, vm->node.vm, tree_scratch_name(vm, name, path), &st, in_actions || is_unwanted(name), &number);
	if (err)
		return err;
	if (!in_actions)
		veil_lift(fs->veil, vm->node.vm, tree_service_kind(name));
	err = place_of_vm(node_numbered(NODE_SCRATCH, vm->node.vm, number), vm_ref(vm->vm), ret);
	*ret_handle = err ? NULL : handle_new(fs, ret, HANDLE_SCRATCH, true);
	if (!*ret_handle)
		scratch_close(fs->scratch, number);
	return err ? err : *ret_handle ? 0 : -ENOMEM;
}

/* domain.xml where it was not seen: it is there, and gets new text. */
static int create_domain(struct fs *fs, const struct place *vm, mode_t mode, struct place *ret, struct handle **ret_handle)
{
	int err = store_chmod_domain(fs->store, vm->vm, mode);
	err = err ? err : place_of_vm((struct node){.kind = NODE_DOMAIN, .vm = vm->node.vm}, vm_ref(vm->vm), ret);
	if (err)
		return err;
	veil_lift(fs->veil, vm->node.vm, NODE_DOMAIN);
	*ret_handle = handle_new(fs, ret, HANDLE_DOMAIN, true);
	return *ret_handle ? 0 : -ENOMEM;
}

/* A copy of a VM brings the files in actions/ along, by their names or by rsync's temporary ones; what is in them does nothing. */
static int create_action(fuse_req_t req, const struct place *actions, const char *name, mode_t mode, struct place *ret,
			 struct handle **ret_handle, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	struct node node = {.kind = NODE_ACTION, .vm = actions->node.vm, .disk = action_kind_by_name(name)};
	auto_free char *final = name_final(name);
	if (!node.disk && (!final || !action_kind_by_name(final)))
		return reason_set(why, -EPERM, "there is no such action");
	if (!node.disk)
		return create_scratch(req, actions, name, mode, ret, ret_handle);
	struct control *control = NULL;
	int err = place_of_vm(node, vm_ref(actions->vm), ret);
	if (!err)
		err = control_new(fuse_req_ctx(req)->pid, &control);
	*ret_handle = err ? NULL : handle_new(fs, ret, HANDLE_ACTION, true);
	if (!*ret_handle) {
		control_free(control);
		return err ? err : -ENOMEM;
	}
	(*ret_handle)->control = control;
	veil_lift(fs->veil, actions->node.vm, veil_name(node));
	return 0;
}

static int create_disk(fuse_req_t req, const struct place *disks, const char *name, mode_t mode, struct place *ret,
		       struct handle **ret_handle, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	struct disk_file *file = NULL;
	int err = disk_create(fs->store, disks->vm, name, mode & 0777, ctx->uid, ctx->gid, &file, why);
	if (err)
		return err;
	struct vm *vm = store_get(fs->store, disks->node.vm);
	const struct vm_disk *disk = vm ? vm_find_disk(vm->disks, vm->nr_disks, name) : NULL;
	if (!disk) {
		vm_put(vm);
		disk_close(file, NULL);
		return -ENOENT;
	}
	err = place_of_vm((struct node){.kind = NODE_DISK, .vm = vm->id, .disk = disk->id}, vm, ret);
	*ret_handle = err ? NULL : handle_new(fs, ret, HANDLE_DISK, true);
	if (!*ret_handle) {
		disk_close(file, NULL);
		return err ? err : -ENOMEM;
	}
	handle_set_disk(fs, *ret_handle, file);
	sources_hint(fs->sources, file, name, ops_thread(req));
	return 0;
}

static int create_file(fuse_req_t req, const struct place *parent, const char *name, mode_t mode, struct place *ret,
		       struct handle **ret_handle, struct reason *why)
{
	if (parent->node.kind == NODE_CLONES || parent->node.kind == NODE_CLONES_OF)
		return reason_set(why, -EPERM, "clones are directories: mkdir, or cp -r of a snapshot");
	if (!place_is_managed(parent))
		return -EROFS;
	if (parent->node.kind == NODE_DISKS)
		return create_disk(req, parent, name, mode, ret, ret_handle, why);
	if (parent->node.kind == NODE_ACTIONS)
		return create_action(req, parent, name, mode, ret, ret_handle, why);
	if (parent->node.kind != NODE_VM)
		return -EPERM;
	enum node_kind kind = tree_service_kind(name);
	if (kind == NODE_DISKS || kind == NODE_SNAPSHOTS || kind == NODE_ACTIONS)
		return -EEXIST;
	if (kind == NODE_DOMAIN)
		return create_domain(ops_fs(req), parent, mode, ret, ret_handle);
	return create_scratch(req, parent, name, mode, ret, ret_handle);
}

/* Somebody else has just made it, and the caller wouldn't mind. */
static int open_existing(fuse_req_t req, const struct place *parent, const char *name, struct place *ret,
			 struct fuse_file_info *fi, struct reason *why)
{
	int err = tree_lookup(ops_fs(req), parent, name, 0, ret);
	return err ? err : ops_open_place(req, ret, fi, why);
}

void ops_create(fuse_req_t req, fuse_ino_t parent_ino, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	struct fs *fs = ops_fs(req);
	struct reason why = {0};
	struct handle *handle = NULL;
	struct fuse_entry_param entry;
	auto_place struct place parent = {0};
	auto_place struct place child = {0};
	if (!ops_place(req, parent_ino, &parent))
		return;
	int err = create_file(req, &parent, name, mode, &child, &handle, &why);
	if (!err) {
		fi->fh = (uintptr_t)handle;
		fi->direct_io = handle->kind != HANDLE_DISK;
	} else if (err == -EEXIST && !(fi->flags & O_EXCL)) {
		err = open_existing(req, &parent, name, &child, fi, &why);
		handle = err ? NULL : ops_handle(fi);
	}
	if (!err)
		err = ops_entry(req, &parent, &child, &entry);
	if (err) {
		if (handle)
			handle_put(fs, handle);
		ops_fail(req, &parent, "create", name, err, &why);
		return;
	}
	callers_note_making(fs->callers, ops_thread(req));
	if (fuse_reply_create(req, &entry, fi) < 0)
		handle_put(fs, handle);
}

/* --- links ------------------------------------------------------------------------------------------------------------ */

/* What is answered to who made a link. */
static void fill_link_entry(const struct place *vm, struct node node, const char *target, struct fuse_entry_param *ret)
{
	*ret = (struct fuse_entry_param){.ino = node_ino(node),
					 .attr = {.st_ino = node_ino(node),
						  .st_mode = S_IFLNK | 0777,
						  .st_nlink = 1,
						  .st_size = (off_t)strlen(target),
						  .st_uid = vm->vm->uid,
						  .st_gid = vm->vm->gid}};
}

/* ln -s snapshots/S current: go back to it. A copy of a VM brings its `current` along: accepted, and not kept. */
static int create_current(fuse_req_t req, const struct place *vm, const char *target, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	bool is_copy = veil_hides(fs->veil, vm->node.vm, NODE_CURRENT, ops_thread(req)) ||
		       (!ops_links_to_snapshot(fs, vm, target) && callers_is_copying(fs->callers, ops_thread(req)));
	int err = is_copy ? 0 : ops_restore_link(fs, vm, target, why);
	if (!err)
		veil_lift(fs->veil, vm->node.vm, NODE_CURRENT);
	return err;
}

/* ln -sf makes the link under a name of its own and renames it. */
static int create_scratch_link(fuse_req_t req, const struct place *vm, const char *name, const char *target, struct node *ret, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	uint32_t number = 0;
	const struct stat st = {.st_uid = vm->vm->uid, .st_gid = vm->vm->gid, .st_mode = S_IFLNK | 0777};
	if (!ops_links_to_snapshot(fs, vm, target))
		return reason_set(why, -EPERM, "the only link here is current, to one of the VM's snapshots");
	int err = scratch_create(fs->scratch, vm->node.vm, name, &st, false, &number);
	if (err)
		return err;
	err = scratch_write(fs->scratch, number, target, strlen(target), 0);
	scratch_close(fs->scratch, number);
	*ret = node_numbered(NODE_SCRATCH, vm->node.vm, number);
	return err;
}

void ops_symlink(fuse_req_t req, const char *target, fuse_ino_t parent_ino, const char *name)
{
	struct reason why = {0};
	struct fuse_entry_param entry;
	auto_place struct place parent = {0};
	if (!ops_place(req, parent_ino, &parent))
		return;
	struct node node = {.kind = NODE_CURRENT, .vm = parent.node.vm};
	int err = -EROFS;
	if (place_is_managed(&parent) && parent.node.kind != NODE_VM)
		err = reason_set(&why, -EPERM, "there are no links here");
	else if (place_is_managed(&parent) && tree_service_kind(name) == NODE_CURRENT)
		err = create_current(req, &parent, target, &why);
	else if (place_is_managed(&parent))
		err = create_scratch_link(req, &parent, name, target, &node, &why);
	if (err) {
		ops_fail(req, &parent, "ln -s", name, err, &why);
		return;
	}
	fill_link_entry(&parent, node, target, &entry);
	fuse_reply_entry(req, &entry);
}
