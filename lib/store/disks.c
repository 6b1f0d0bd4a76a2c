/* The disks of a managed VM: new ones, renamed ones, removed ones. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "store/disk_file.h"
#include "store/full_raw.h"
#include "store/jobs.h"
#include "store/managed.h"
#include "store/manifest.h"
#include "store/pool_vm.h"
#include "store/store_internal.h"

#define MAX_DISKS ((1u << DISK_ID_BITS) - 1)

static int check_name(const char *name, struct reason *why)
{
	int err = manifest_check_file_name(name);
	return err ? reason_set(why, err, "%s: not a name for a disk", name) : 0;
}

/* Index of the disk FILE_NAME; -1: none. */
static int find_disk(const struct vm *vm, const char *file_name)
{
	for (size_t i = 0; i < vm->nr_disks; i++)
		if (strcmp(vm->disks[i].file_name, file_name) == 0)
			return (int)i;
	return -1;
}

/* Of a pool. */
static int refuse_found(const struct vm *vm, const char *file_name, struct reason *why)
{
	return reason_set(why, -EROFS, "%s wasn't made here but found in the directory of pool %s: it is only shown. Use the tool that made it", file_name,
			  vm->name);
}

/* --- removing --------------------------------------------------------------------------------------------------------------- */

/* DISK is about to lose its name: who has it open mustn't see, by its number, what gets that next. */
static int keep_apart(struct store *store, struct entry *entry, const struct vm_disk *disk)
{
	return head_lookup(store, disk) ? table_renumber_disk(store, entry, disk->file_name) : 0;
}

/* DISK is no disk of the VM any more. Who has it open goes on; its layer goes when nobody does. */
static void let_go(struct store *store, const struct vm_disk *disk)
{
	struct open_head *oh = head_lookup(store, disk);
	if (oh)
		oh->removed = true;
	jobs_forget_layer(store, disk->layer);
	if (disk->full_base)
		full_raw_drop(store, disk->full_base);
}

static int remove_locked(struct store *store, struct entry *entry, const struct vm *now, const char *file_name, struct reason *why)
{
	int i = find_disk(now, file_name);
	if (i < 0)
		return reason_set(why, -ENOENT, "%s has no disk %s", now->name, file_name);
	if (now->disks[i].found)
		return refuse_found(now, file_name, why);
	struct vm *next = vm_copy(now);
	if (!next)
		return -ENOMEM;
	vm_disk_drop(next, (size_t)i);
	int err = keep_apart(store, entry, &now->disks[i]);
	if (err)
		vm_put(next);
	else
		err = managed_commit(store, entry, next, why);
	if (!err)
		let_go(store, &now->disks[i]);
	return err;
}

int disk_remove(struct store *store, struct vm *vm, const char *file_name, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = managed_begin(store, vm, &entry, &now, why);
	if (err)
		return err;
	int i = find_disk(now, file_name);
	err = i < 0 ? 0 : head_check_foreign(store, &now->disks[i], why);
	if (!err)
		err = remove_locked(store, entry, now, file_name, why);
	managed_end(entry, now);
	if (!err)
		layers_sweep(store);
	return err;
}

/* --- making ------------------------------------------------------------------------------------------------------------------- */

/* A copy of NOW with a disk more. */
static int with_disk(struct store *store, const struct vm *now, const char *file_name, const char *layer, struct vm **ret)
{
	struct vm *next = vm_copy(now);
	struct vm_disk *disk = next ? vm_disk_add(&next->disks, &next->nr_disks) : NULL;
	if (disk) {
		disk->format = layer_format(layer);
		disk->path = layer_path(store, layer);
		disk->target = now->place == PLACE_POOLS ? NULL : manifest_target_of(file_name);
	}
	if (!disk || !disk->path || text_set(&disk->file_name, file_name) || text_set(&disk->layer, layer)) {
		vm_put(next);
		return -ENOMEM;
	}
	*ret = next;
	return 0;
}

static int commit_disk(struct store *store, struct entry *entry, const struct vm *now, const char *file_name, const char *layer,
		       struct open_head **ret, struct reason *why)
{
	struct vm *next = NULL;
	int err = layer_sync_dir(store, layer, why);
	if (!err)
		err = with_disk(store, now, file_name, layer, &next);
	if (!err)
		err = managed_commit(store, entry, vm_ref(next), why);
	if (!err) {
		err = head_get(store, entry, &next->disks[next->nr_disks - 1], ret, why);
		if (err)
			remove_locked(store, entry, next, file_name, NULL);
	}
	vm_put(next);
	return err;
}

static int create_locked(struct store *store, struct entry *entry, const struct vm *now, const char *file_name,
			 const struct layer_owner *owner, struct open_head **ret, struct reason *why)
{
	char layer[LAYER_NAME_MAX] = "";
	if (find_disk(now, file_name) >= 0)
		return reason_set(why, -EEXIST, "%s exists", file_name);
	if (now->nr_disks >= MAX_DISKS)
		return reason_set(why, -ENOSPC, "%s has %u disks already", now->name, MAX_DISKS);
	int err = now->place == PLACE_POOLS ? pool_volume_make(store, now, file_name, owner, layer, why)
					    : layer_create(store, &(struct overlay_spec){0}, NULL, owner, layer, why);
	if (err)
		return err;
	err = commit_disk(store, entry, now, file_name, layer, ret, why);
	layers_unpin(store, layer);
	return err;
}

int disk_create(struct store *store, struct vm *vm, const char *file_name, mode_t mode, uid_t uid, gid_t gid,
		struct disk_file **ret, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = check_name(file_name, why);
	struct disk_file *file = err ? NULL : calloc(1, sizeof *file);
	if (!err)
		err = file ? managed_begin(store, vm, &entry, &now, why) : -ENOMEM;
	if (err) {
		free(file);
		return err;
	}
	*file = (struct disk_file){.store = store, .kind = DISK_FILE_HEAD, .writable = true, .fd = -1};
	struct layer_owner owner = {mode, uid, gid};
	err = create_locked(store, entry, now, file_name, &owner, &file->head, why);
	managed_end(entry, now);
	if (err) {
		free(file);
		layers_sweep(store);
		return err;
	}
	file->head->nr_writers++;
	*ret = file;
	return 0;
}

/* --- renaming ----------------------------------------------------------------------------------------------------------------- */

static int rename_locked(struct store *store, struct entry *entry, const struct vm *now, const char *old_name, const char *new_name,
			 struct reason *why)
{
	int from = find_disk(now, old_name), replaced = find_disk(now, new_name);
	if (from < 0)
		return reason_set(why, -ENOENT, "%s has no disk %s", now->name, old_name);
	if (from == replaced)
		return 0;
	if (now->disks[from].found || (replaced >= 0 && now->disks[replaced].found))
		return refuse_found(now, now->disks[from].found ? old_name : new_name, why);
	int err = now->place == PLACE_POOLS ? pool_check_rename(now->disks[from].layer, new_name, why) : 0;
	if (!err && replaced >= 0)
		err = head_check_foreign(store, &now->disks[replaced], why);
	if (err)
		return err;
	struct vm *next = vm_copy(now);
	if (!next)
		return -ENOMEM;
	struct vm_disk *disk = &next->disks[from];
	free(disk->target);
	disk->target = now->place == PLACE_POOLS ? NULL : manifest_target_of(new_name);
	if (text_set(&disk->file_name, new_name) || (replaced >= 0 && keep_apart(store, entry, &now->disks[replaced]))) {
		vm_put(next);
		return -ENOMEM;
	}
	if (replaced >= 0)
		vm_disk_drop(next, (size_t)replaced);
	err = managed_commit(store, entry, next, why);
	if (!err && replaced >= 0)
		let_go(store, &now->disks[replaced]);
	return err;
}

int disk_rename(struct store *store, struct vm *vm, const char *old_name, const char *new_name, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = check_name(new_name, why);
	if (!err)
		err = managed_begin(store, vm, &entry, &now, why);
	if (err)
		return err;
	err = rename_locked(store, entry, now, old_name, new_name, why);
	if (!err && now->place == PLACE_POOLS) {
		layers_unlink_unneeded(store); /* what was replaced has the file's name */
		pool_volume_rename_file(store, entry, new_name, NULL);
	}
	managed_end(entry, now);
	if (!err)
		layers_sweep(store);
	return err;
}

/* Of a device: accepted and forgotten, for cp -p's sake. */
static int chmod_layer(struct store *store, const char *layer, mode_t mode)
{
	struct stat st;
	const struct layer_place at = layer_place(store, layer);
	int err = layer_check_owner(store, layer, NULL);
	if (err || layer_is_device(store, layer))
		return err;
	auto_close int fd = openat(at.dirfd, at.name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	return !S_ISREG(st.st_mode) ? -ESTALE : fchmod(fd, mode) < 0 ? -errno : 0;
}

int disk_chmod(struct store *store, struct vm *vm, const char *file_name, mode_t mode)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = managed_begin(store, vm, &entry, &now, NULL);
	if (err)
		return err;
	int i = find_disk(now, file_name);
	if (i < 0)
		err = -ENOENT;
	else if (now->disks[i].found)
		err = now->disks[i].layer ? 0 : -EROFS;
	else
		err = chmod_layer(store, now->disks[i].layer, (mode & 0777) | 0600);
	managed_end(entry, now);
	return err;
}
