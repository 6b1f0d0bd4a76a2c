#include "fs/attr.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "fs/text.h"
#include "fs/tree.h"
#include "meta/action.h"

#define SECTOR	     512
#define SIZE_UNKNOWN SECTOR /* tar and others don't open what has no bytes, and would store a disk that can't be read as an empty file, without a word */

mode_t attr_type(enum node_kind kind)
{
	if (kind == NODE_CURRENT || kind == NODE_CLONE_LINK)
		return S_IFLNK;
	return place_is_dir(&(struct place){.node = {.kind = kind}}) ? S_IFDIR : S_IFREG;
}

double attr_entry_timeout(const struct place *parent)
{
	switch (parent->node.kind) {
	case NODE_CLONES_OF: /* mkdir in it makes a directory where a link is found then */
	case NODE_JOBS:
	case NODE_ACTIONS:
		return 0;
	case NODE_VM: /* not everybody sees the same (veil.h), and a rename gives a name to something else */
	case NODE_DISKS:
	case NODE_SNAPSHOTS:
		return place_is_managed(parent) ? 0 : ATTR_SECONDS;
	case NODE_NONE:
	case NODE_ROOT:
	case NODE_README:
	case NODE_EVENTS:
	case NODE_VMS:
	case NODE_CLONES:
	case NODE_CLONE_LINK:
	case NODE_POOLS:
	case NODE_JOB:
	case NODE_STATUS:
	case NODE_VM_EVENTS:
	case NODE_CURRENT:
	case NODE_SCRATCH:
	case NODE_SNAPSHOT:
	case NODE_SNAPSHOT_XML:
	case NODE_MEMORY:
	case NODE_DOMAIN:
	case NODE_DISK:
	case NODE_ACTION:
	case NODE_KINDS:
		break;
	}
	return ATTR_SECONDS;
}

bool attr_may_read(uid_t uid, bool overrides, const gid_t *groups, size_t nr_groups, uid_t owner, gid_t group, mode_t mode)
{
	if (overrides)
		return true;
	if (uid == owner)
		return mode & S_IRUSR;
	for (size_t i = 0; i < nr_groups; i++)
		if (groups[i] == group)
			return mode & S_IRGRP;
	return mode & S_IROTH;
}

static uint64_t sectors(uint64_t bytes)
{
	return bytes / SECTOR + (bytes % SECTOR != 0);
}

/* --- times, owners, modes ------------------------------------------------------------------------------------------ */

static struct timespec last_change(struct fs *fs, const struct place *place)
{
	if (place->snapshot)
		return (struct timespec){.tv_sec = (time_t)place->snapshot->created};
	if (place->node.kind == NODE_EVENTS || place->node.kind == NODE_VM_EVENTS)
		return events_changed(fs->events);
	if (place->vm)
		return place->vm->changed;
	time_t changed = (time_t)atomic_load(&fs->changed);
	return changed > fs->started.tv_sec ? (struct timespec){.tv_sec = changed} : fs->started;
}

/* Those of the host's directory, but for its group's and others' right to write, which the mount doesn't give. */
static mode_t pool_permissions(struct fs *fs, const struct place *place)
{
	mode_t mode = place->vm->mode;
	return mode | (mode & 0444) >> 2 | (store_is_writable(fs->store) ? 0200 : 0);
}

static mode_t permissions(struct fs *fs, const struct place *place)
{
	bool managed = place_is_managed(place);
	if (place->node.kind == NODE_DISKS && place_is_pool(place))
		return pool_permissions(fs, place);
	switch (place->node.kind) {
	case NODE_VMS:
	case NODE_CLONES:
	case NODE_CLONES_OF:
	case NODE_JOBS:
		return store_is_writable(fs->store) ? 0755 : 0555;
	case NODE_VM:
	case NODE_DISKS:
	case NODE_SNAPSHOTS:
	case NODE_ACTIONS:
		return managed ? 0755 : 0555;
	case NODE_ROOT:
	case NODE_POOLS:
	case NODE_SNAPSHOT:
		return 0555;
	case NODE_CURRENT:
	case NODE_CLONE_LINK:
		return 0777;
	case NODE_STATUS:
	case NODE_VM_EVENTS:
		return managed ? 0644 : 0444; /* rm asks before it removes what can't be written */
	case NODE_JOB:
	case NODE_ACTION: /* of a found VM too: who writes to it learns what to do instead */
		return 0644;
	case NODE_NONE:
	case NODE_README:
	case NODE_EVENTS:
	case NODE_SCRATCH:
	case NODE_SNAPSHOT_XML: /* see fill_config */
	case NODE_DOMAIN:
	case NODE_MEMORY:
	case NODE_DISK:
	case NODE_KINDS:
		break;
	}
	return 0444;
}

/* It may hold passwords. */
static void fill_config(const struct place *place, struct stat *st)
{
	struct access access;
	store_config_access(place->vm, place->snapshot, &access);
	st->st_uid = access.uid;
	st->st_gid = access.gid;
	st->st_mode = S_IFREG | access.mode | (place->node.kind == NODE_DOMAIN && place_is_managed(place) ? 0200 : 0);
}

static void fill_common(struct fs *fs, const struct place *place, struct stat *st)
{
	*st = (struct stat){.st_ino = place_ino(place),
			    .st_mode = attr_type(place->node.kind) | permissions(fs, place),
			    .st_nlink = 1,
			    .st_uid = place->vm ? place->vm->uid : fs->uid,
			    .st_gid = place->vm ? place->vm->gid : fs->gid,
			    .st_blksize = 4096,
			    .st_mtim = last_change(fs, place)};
	/* Who may make something in clones/ */
	if (place->node.kind == NODE_CLONES_OF || (place->node.kind == NODE_ACTION && place->node.disk == ACTION_CLONE)) {
		st->st_uid = fs->uid;
		st->st_gid = fs->gid;
	}
	st->st_atim = st->st_ctim = st->st_mtim;
}

/* --- kinds of files ------------------------------------------------------------------------------------------------- */

/* Of a disk that can't be read. Who has it open goes on reading: it ends for him where it did. */
static uint64_t size_when_opened(struct fs *fs, const struct place *place)
{
	struct handle *handle = handles_find(fs->handles, place_ino(place));
	if (!handle)
		return SIZE_UNKNOWN;
	uint64_t virtual_size = disk_virtual_size(handle->disk);
	handle_put(fs, handle);
	return virtual_size;
}

static void fill_disk(struct fs *fs, const struct place *place, const struct handle *handle, pid_t thread, struct stat *st)
{
	struct disk_stat ds = {.uid = st->st_uid, .gid = st->st_gid, .mode = 0400, .mtime = st->st_mtim};
	int err = 0;
	if (handle && handle->kind == HANDLE_DISK)
		err = disk_fstat(handle->disk, &ds);
	else if (place->node.kind == NODE_MEMORY)
		err = memory_stat(fs->store, place->vm, place->snapshot, &ds, NULL);
	else
		err = disk_stat(fs->store, place->vm, place->snapshot, place->disk, &ds, NULL);
	if (err)
		ds.virtual_size = ds.allocated = size_when_opened(fs, place);
	st->st_size = (off_t)ds.virtual_size;
	st->st_mode = S_IFREG | ds.mode;
	st->st_uid = ds.uid;
	st->st_gid = ds.gid;
	if (!place->snapshot)
		st->st_mtim = st->st_ctim = st->st_atim = ds.mtime;
	/* Holes are shown neither to who copies (callers.h), nor of a file that is being written: the kernel doesn't write its dirty pages
	 * back before it asks for holes, and cp and tar would miss them. */
	bool full = handles_has_writer(fs->handles, place_ino(place)) || callers_is_copying(fs->callers, thread);
	st->st_blocks = (blkcnt_t)sectors(full ? ds.virtual_size : ds.allocated);
}

static int fill_text(struct fs *fs, const struct place *place, const struct handle *handle, struct stat *st)
{
	uint64_t file_size = 0;
	if (handle && handle->kind == HANDLE_TEXT) {
		file_size = handle->text_len;
	} else if (!handles_edited_size(fs->handles, place_ino(place), &file_size)) {
		size_t len = 0;
		int err = text_size(fs, place, &len);
		if (err && place->node.kind == NODE_JOB)
			return -ENOENT; /* a text that can't be read is there; a job that has ended isn't */
		file_size = len;
	}
	st->st_size = (off_t)file_size;
	return 0;
}

static int fill_scratch(struct fs *fs, const struct place *place, struct stat *st)
{
	struct stat scratch;
	int err = scratch_stat(fs->scratch, node_number(place->node), &scratch);
	if (err)
		return err;
	st->st_size = scratch.st_size;
	st->st_mode = (S_ISLNK(scratch.st_mode) ? S_IFLNK : S_IFREG) | (scratch.st_mode & 0777);
	st->st_uid = scratch.st_uid;
	st->st_gid = scratch.st_gid;
	st->st_mtim = st->st_ctim = st->st_atim = scratch.st_mtim;
	return 0;
}

static int fill_link(struct fs *fs, const struct place *place, struct stat *st)
{
	auto_free char *target = NULL;
	if (tree_link_target(fs, place, &target) < 0)
		return -ENOENT;
	st->st_size = (off_t)strlen(target);
	return 0;
}

int attr_load(struct fs *fs, const struct place *place, const struct handle *handle, pid_t thread, struct stat *ret,
	      double *ret_timeout)
{
	int err = 0;
	fill_common(fs, place, ret);
	*ret_timeout = S_ISDIR(ret->st_mode) ? ATTR_SECONDS : 0;
	if (place->node.kind == NODE_DISK || place->node.kind == NODE_MEMORY) {
		fill_disk(fs, place, handle, thread, ret);
		return 0;
	}
	if (place->node.kind == NODE_DOMAIN || place->node.kind == NODE_SNAPSHOT_XML)
		fill_config(place, ret);
	if (S_ISLNK(ret->st_mode))
		err = fill_link(fs, place, ret);
	else if (text_is(place))
		err = fill_text(fs, place, handle, ret);
	else if (place->node.kind == NODE_SCRATCH)
		err = fill_scratch(fs, place, ret);
	else if (place->node.kind == NODE_EVENTS || place->node.kind == NODE_VM_EVENTS)
		ret->st_size = (off_t)events_size(fs->events, place->vm ? place->vm->name : NULL);
	ret->st_blocks = (blkcnt_t)sectors((uint64_t)ret->st_size);
	return err;
}
