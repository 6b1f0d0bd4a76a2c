#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "store/disk_file.h"
#include "store/flats.h"
#include "store/full.h"
#include "store/managed.h"
#include "store/source.h"
#include "store/stat.h"
#include "store/store_internal.h"

/* --- opening ------------------------------------------------------------------------------------------------------------ */

static struct disk_file *file_new(struct store *store, enum disk_file_kind kind)
{
	struct disk_file *file = calloc(1, sizeof *file);
	if (!file)
		return NULL;
	file->store = store;
	file->kind = kind;
	file->fd = -1;
	return file;
}

/* Frees the shell; head and locks are the caller's to give back. */
static void file_free(struct disk_file *file)
{
	if (!file)
		return;
	frozen_put(file->frozen);
	view_put(file->view);
	free(file->pinned);
	free(file->outside);
	if (file->fd >= 0)
		close(file->fd);
	free(file);
}

static int open_view(struct store *store, const struct vm_snapshot *snapshot, const struct vm_disk *disk, struct disk_file **ret,
		     struct reason *why)
{
	struct disk_file *file = file_new(store, DISK_FILE_VIEW);
	struct disk_source source = {disk->path, disk->format, disk->snapshot};
	if (!file)
		return -ENOMEM;
	int err = layers_open_locked(store, &source, &file->view, why);
	/* The disk is there: rsync and tar would take it for one that has just been removed, and go on as if nothing were the matter. */
	if (err == -ENOENT)
		err = -EIO;
	/* A VM's disk of now isn't frozen: its owner may go on writing to it. */
	if (!err && snapshot && (err = frozen_new(store, file->view, disk->path, disk->snapshot, &file->frozen, why)))
		view_unlock(file->view);
	if (err) {
		file_free(file);
		return err;
	}
	file->created = snapshot ? snapshot->created : 0;
	*ret = file;
	return 0;
}

/* The layer stays what it is until the file is closed: not by its snapshot, which may be deleted, but for the file's sake. */
static int open_pinned_view(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk,
			    struct disk_file **ret, struct reason *why)
{
	if (layers_pin(store, disk->layer) < 0)
		return reason_set(why, -ENOENT, "the snapshot has been deleted");
	auto_free char *layer = strdup(disk->layer);
	int err = layer ? open_view(store, snapshot, disk, ret, why) : -ENOMEM;
	if (err) {
		layers_unpin(store, disk->layer);
		return err;
	}
	(*ret)->pinned = take_ptr(layer);
	(*ret)->vm_id = vm->id;
	(*ret)->snapshot_id = snapshot->id;
	return 0;
}

/* When the snapshot was deleted while the file was open, its space comes back now. */
static void unpin(struct disk_file *file)
{
	struct store *store = file->store;
	if (!file->pinned)
		return;
	frozen_put(take_ptr(file->frozen));
	view_put(take_ptr(file->view)); /* it may be the last who has the files open */
	layers_unpin(store, file->pinned);
	struct vm *vm = table_current(store, table_entry(store, file->vm_id));
	bool is_deleted = !vm || !vm_snapshot_by_id(vm, file->snapshot_id);
	vm_put(vm);
	if (is_deleted)
		layers_sweep(store);
}

/* In a pool a device, or a file that another program has put in the place of ours, can be read all the same. */
static bool is_ours(struct store *store, const struct vm_disk *disk)
{
	return !layer_pool(store, disk->layer) || layer_file_exists(store, disk->layer);
}

static int open_head_locked(struct store *store, struct entry *entry, const struct vm_disk *disk_now, bool writable, struct disk_file **ret, struct reason *why)
{
	struct disk_file *file = file_new(store, DISK_FILE_HEAD);
	int err = file ? head_get(store, entry, disk_now, &file->head, why) : -ENOMEM;
	if (err) {
		file_free(file);
		return err;
	}
	file->writable = writable;
	if (writable)
		file->head->nr_writers++;
	*ret = file;
	return 0;
}

static int open_head_file(struct store *store, const struct vm *vm, const struct vm_disk *disk, bool writable,
			  struct disk_file **ret, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = managed_begin(store, vm, &entry, &now, why);
	if (err)
		return err;
	/* The description that the caller has may be old: its layer may be another VM's by now, or have gone into another one. */
	const struct vm_disk *disk_now = vm_disk_by_id(now->disks, now->nr_disks, disk->id);
	bool only_looked_at = disk_now && !writable && !is_ours(store, disk_now);
	if (!disk_now)
		err = reason_set(why, -ENOENT, "the disk has been removed");
	else if (!only_looked_at)
		err = open_head_locked(store, entry, disk_now, writable, ret, why);
	vm_ref(now);
	managed_end(entry, now);
	if (only_looked_at)
		err = open_view(store, NULL, disk_now, ret, why);
	vm_put(now);
	return err;
}

static int open_disk(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk,
		     bool writable, struct disk_file **ret, struct reason *why)
{
	if (disk->error)
		return reason_set(why, disk->error, "%s", disk->error_text ? disk->error_text : strerror(-disk->error));
	if (writable && snapshot)
		return reason_set(why, -EROFS, "a snapshot is never written to: clone it");
	if (writable) {
		int err = managed_check(store, vm, why);
		if (err)
			return err;
		if (disk->found && !disk->layer)
			return reason_set(why, -EROFS, "it wasn't made here but found in the directory of pool %s: it is only shown", vm->name);
		if (disk->found && layer_file_exists(store, disk->layer))
			return reason_set(why, -EBUSY, "a disk of a clone lies on this device");
	}
	if (disk->layer && !snapshot && store->writable)
		return open_head_file(store, vm, disk, writable, ret, why);
	if (disk->pending_path)
		return reason_set(why, -EIO, "its data isn't copied yet from %s, and the store can't be written", disk->pending_path);
	return disk->layer && snapshot && store->writable ? open_pinned_view(store, vm, snapshot, disk, ret, why)
							  : open_view(store, snapshot, disk, ret, why);
}

int disk_open(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk,
	      bool writable, struct disk_file **ret, struct reason *why)
{
	struct reason own = {0};
	int err = open_disk(store, vm, snapshot, disk, writable, ret, &own);
	if (err)
		reason_set(why, err, "%s%s%s: %s", snapshot ? snapshot->name : "", snapshot ? ": " : "", disk->file_name,
			   *own.text ? own.text : strerror(-err));
	return err;
}

int disk_close(struct disk_file *file, struct reason *why)
{
	int err = 0;
	if (!file)
		return 0;
	switch (file->kind) {
	case DISK_FILE_HEAD:
		if (file->writable)
			file->head->nr_writers--;
		err = head_put(file->store, file->head);
		if (err)
			reason_set(why, err, "writing back what was written last failed: %s", strerror(-err));
		break;
	case DISK_FILE_VIEW:
	case DISK_FILE_VMSTATE:
		view_unlock(file->view);
		unpin(file);
		break;
	case DISK_FILE_PLAIN: break;
	}
	file_free(file);
	return err;
}

/* --- RAM ------------------------------------------------------------------------------------------------------------------- */

static int open_plain(struct store *store, const char *path, bool is_ours, struct disk_file **ret, struct reason *why)
{
	struct disk_file *file = file_new(store, DISK_FILE_PLAIN);
	if (!file)
		return -ENOMEM;
	int fd = trust_open(store->trust, NULL, path, O_RDONLY, is_ours ? NULL : &file->outside, why);
	if (fd < 0) {
		file_free(file);
		return fd;
	}
	file->fd = fd;
	*ret = file;
	return 0;
}

/* The RAM is in one of the internal snapshots, the metadata doesn't say in which. RET is locked. */
static int open_vmstate(struct store *store, const struct vm_snapshot *snapshot, struct view **ret, struct reason *why)
{
	for (size_t i = (size_t)snapshot->memory_disk; i < snapshot->nr_disks; i++) {
		const struct vm_disk *disk = &snapshot->disks[i];
		struct disk_source source = {disk->path, disk->format, disk->snapshot};
		if (!disk->snapshot || disk->error)
			continue;
		struct view *view = NULL;
		int err = layers_open_locked(store, &source, &view, why);
		if (err)
			return err;
		if (view_snapshot(view)->vm_state_size) {
			*ret = view;
			return 0;
		}
		view_unlock(view);
		view_put(view);
	}
	return reason_set(why, -ENOENT, "no disk of the snapshot holds RAM");
}

int memory_open(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, struct disk_file **ret,
		struct reason *why)
{
	struct view *view = NULL;
	const char *path = snapshot ? snapshot->memory_path : vm->memory_path;
	if (!path && (!snapshot || snapshot->memory_disk < 0))
		return reason_set(why, -ENOENT, "no RAM is kept with it");
	int err = path ? open_plain(store, path, vm->kind == VM_MANAGED, ret, why) : open_vmstate(store, snapshot, &view, why);
	if (!err && view) {
		*ret = file_new(store, DISK_FILE_VMSTATE);
		err = *ret ? 0 : -ENOMEM;
		if (!err)
			(*ret)->view = view_ref(view);
		else
			view_unlock(view);
	}
	view_put(view);
	if (!err && snapshot)
		(*ret)->created = snapshot->created;
	return err;
}

int memory_stat(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, struct disk_stat *ret,
		struct reason *why)
{
	struct disk_file *file = NULL;
	*ret = (struct disk_stat){.mode = 0444};
	int err = memory_open(store, vm, snapshot, &file, why);
	if (err)
		return err;
	err = disk_fstat(file, ret);
	disk_close(file, NULL);
	return err;
}

/* --- what it is ---------------------------------------------------------------------------------------------------------------- */

bool disk_is_head(const struct disk_file *file)
{
	return file->kind == DISK_FILE_HEAD;
}

uint64_t disk_virtual_size(struct disk_file *file)
{
	uint64_t virtual_size = 0;
	struct stat st;
	switch (file->kind) {
	case DISK_FILE_HEAD:
		pthread_rwlock_rdlock(&file->head->swap);
		virtual_size = file->head->head ? head_virtual_size(file->head->head) : file->head->lost_size;
		pthread_rwlock_unlock(&file->head->swap);
		break;
	case DISK_FILE_VIEW: virtual_size = view_virtual_size(file->view); break;
	case DISK_FILE_VMSTATE: virtual_size = view_snapshot(file->view)->vm_state_size; break;
	case DISK_FILE_PLAIN: virtual_size = fstat(file->fd, &st) < 0 ? 0 : (uint64_t)st.st_size; break;
	}
	return virtual_size;
}

static int stat_plain(struct disk_file *file, struct disk_stat *ret)
{
	struct stat st;
	struct access access;
	struct access_path last = ACCESS_PATH_INIT;
	if (fstat(file->fd, &st) < 0)
		return -errno;
	access_init(&access, &st);
	if (file->outside)
		access_restrict_by_path(&access, &last, file->outside, &st);
	access_path_done(&last);
	*ret = (struct disk_stat){
		.virtual_size = (uint64_t)st.st_size,
		.allocated = (uint64_t)st.st_blocks * 512,
		.uid = access.uid,
		.gid = access.gid,
		.mode = access.mode,
		.mtime = file->created ? (struct timespec){.tv_sec = file->created} : st.st_mtim,
		.depth = 1,
	};
	return 0;
}

int disk_fstat(struct disk_file *file, struct disk_stat *ret)
{
	int err = 0;
	switch (file->kind) {
	case DISK_FILE_HEAD: err = stat_head(file->store, file->head, ret); break;
	case DISK_FILE_VIEW: err = stat_view(file->view, file->created, ret); break;
	case DISK_FILE_VMSTATE:
		err = stat_view(file->view, file->created, ret);
		ret->virtual_size = ret->allocated = disk_virtual_size(file);
		break;
	case DISK_FILE_PLAIN: err = stat_plain(file, ret); break;
	}
	return err;
}

int disk_check(struct disk_file *file)
{
	return file->kind == DISK_FILE_VIEW || file->kind == DISK_FILE_VMSTATE ? view_check(file->view) : 0;
}

uint64_t disk_content(struct disk_file *file)
{
	struct stat st;
	switch (file->kind) {
	case DISK_FILE_HEAD: break; /* it changes all the time */
	case DISK_FILE_VIEW:
	case DISK_FILE_VMSTATE: return stat_content(file->store, file->view);
	case DISK_FILE_PLAIN: return fstat(file->fd, &st) < 0 ? 0 : stamp_make(&st);
	}
	return 0;
}

/* --- reading and writing -------------------------------------------------------------------------------------------------------- */

/* Begins an operation on the head; NULL, with *RET_ERR: it was lost. The next one may find it again: who has heard of this knows that what he wrote last needn't be
 * there. */
static struct head *head_enter(struct disk_file *file, int *ret_err)
{
	pthread_rwlock_rdlock(&file->head->swap);
	struct head *head = file->head->head;
	if (!head) {
		*ret_err = file->head->lost_err ? file->head->lost_err : -EIO;
		pthread_rwlock_unlock(&file->head->swap);
		head_revive(file->store, file->head);
	}
	return head;
}

static void head_leave(struct disk_file *file)
{
	pthread_rwlock_unlock(&file->head->swap);
}

static int read_head(struct disk_file *file, void *buf, size_t len, uint64_t off)
{
	int err = 0;
	struct head *head = head_enter(file, &err);
	if (!head)
		return err;
	err = head_read(head, buf, len, off);
	head_leave(file);
	return err;
}

int disk_read(struct disk_file *file, void *buf, size_t len, uint64_t off)
{
	switch (file->kind) {
	case DISK_FILE_HEAD: return read_head(file, buf, len, off);
	case DISK_FILE_VIEW: return view_read(file->view, buf, len, off);
	case DISK_FILE_VMSTATE: return view_read_vmstate(file->view, buf, len, off);
	case DISK_FILE_PLAIN: return file_read_padded(file->fd, buf, len, off);
	}
	return -EINVAL;
}

int disk_write(struct disk_file *file, const void *buf, size_t len, uint64_t off)
{
	if (!file->writable)
		return -EBADF;
	if (atomic_load(&file->head->hinting))
		copy_try_hint(file, buf, len, off);
	int err = 0;
	struct head *head = head_enter(file, &err);
	if (!head)
		return err;
	err = head_write(head, buf, len, off);
	head_leave(file);
	return err;
}

/* A disk that was emptied depends on nothing any more. The header says so already; now vm.xml and the tables. */
static void let_go_beneath(struct disk_file *file)
{
	struct store *store = file->store;
	struct open_head *oh = file->head;
	pthread_mutex_lock(&oh->entry->change);
	pthread_rwlock_wrlock(&oh->swap);
	struct view *beneath = oh->head ? head_below(oh->head) : NULL;
	if (oh->head && !beneath) {
		head_relock(oh, NULL, NULL);
		frozen_put(take_ptr(oh->origin));
		layers_set_beneath(store, oh->layer, NULL);
		managed_settle(store, oh->entry, oh->layer);
		full_source_changed(store, oh->entry, oh->layer);
	}
	view_put(beneath);
	pthread_rwlock_unlock(&oh->swap);
	pthread_mutex_unlock(&oh->entry->change);
	layers_sweep(store);
}

/* It stays as large as it is. Who empties it goes on to write what isn't zeros alone. */
static int resize_device(struct head *head, uint64_t virtual_size)
{
	uint64_t end = head_virtual_size(head);
	if (virtual_size > end)
		return -ENOSPC;
	return virtual_size ? 0 : head_discard(head, 0, end);
}

int disk_resize(struct disk_file *file, uint64_t virtual_size)
{
	int err = 0;
	if (!file->writable)
		return -EBADF;
	struct head *head = head_enter(file, &err);
	if (!head)
		return err;
	err = head_is_device(head) ? resize_device(head, virtual_size) : head_resize(head, virtual_size);
	bool stacked = file->head->locked;
	head_leave(file);
	if (!err && !virtual_size && stacked)
		let_go_beneath(file);
	return err;
}

int disk_discard(struct disk_file *file, uint64_t off, uint64_t len)
{
	int err = 0;
	if (!file->writable)
		return -EBADF;
	struct head *head = head_enter(file, &err);
	if (!head)
		return err;
	err = head_discard(head, off, len);
	head_leave(file);
	return err;
}

int disk_flush(struct disk_file *file)
{
	int err = 0;
	if (file->kind != DISK_FILE_HEAD)
		return 0;
	struct head *head = head_enter(file, &err);
	if (!head)
		return err;
	err = head_flush(head);
	/* Once; not by who only reads. */
	int unsaved = file->writable ? atomic_exchange(&file->head->unsaved_err, 0) : 0;
	head_leave(file);
	return unsaved ? unsaved : err;
}

/* --- sparse maps -------------------------------------------------------------------------------------------------------------------- */

static int map_at(struct disk_file *file, uint64_t off, uint64_t len, struct extent *ret)
{
	int err = 0;
	if (file->kind == DISK_FILE_VIEW)
		return view_map(file->view, off, len, ret);
	struct head *head = head_enter(file, &err);
	if (!head)
		return err;
	err = head_map(head, off, len, ret);
	head_leave(file);
	return err;
}

static int seek_plain(struct disk_file *file, uint64_t off, bool data, uint64_t *ret)
{
	off_t at = lseek(file->fd, (off_t)off, data ? SEEK_DATA : SEEK_HOLE);
	if (at < 0)
		return -errno;
	*ret = (uint64_t)at;
	return 0;
}

int disk_seek(struct disk_file *file, uint64_t off, bool data, uint64_t *ret)
{
	uint64_t end = disk_virtual_size(file);
	if (off >= end)
		return -ENXIO;
	if (file->kind == DISK_FILE_PLAIN)
		return seek_plain(file, off, data, ret);
	if (file->kind == DISK_FILE_VMSTATE) {
		*ret = data ? off : end;
		return 0;
	}
	while (off < end) {
		struct extent e;
		int err = map_at(file, off, end - off, &e);
		if (err)
			return err;
		if ((e.kind != EXTENT_ZERO) == data) {
			*ret = off;
			return 0;
		}
		off += e.len;
	}
	*ret = end;
	return data ? -ENXIO : 0;
}

/* --- flat files -------------------------------------------------------------------------------------------------------------------- */

int disk_flat_open(struct disk_file *file)
{
	return file->kind == DISK_FILE_VIEW && file->frozen ? flats_open(file->store->flats, file->view) : -ENOENT;
}

void disk_flat_want(struct disk_file *file)
{
	if (file->kind == DISK_FILE_VIEW && file->frozen)
		flats_want(file->store->flats, file->view);
}
