#include "store/pool_vm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "meta/domain.h"
#include "store/heads.h"
#include "store/managed.h"
#include "store/manifest.h"
#include "store/store_internal.h"

#define LOOK_MS	  1000
#define FOUND_MAX 3000u /* with those that are made here, more than a VM has numbers for */

struct pool *pool_of_vm(const struct store *store, const struct vm *vm)
{
	return vm && vm->place == PLACE_POOLS ? pool_find(store, vm->name, strlen(vm->name)) : NULL;
}

/* --- the VM ----------------------------------------------------------------------------------------------------------- */

static int make_vm(struct store *store, const struct pool *pool, struct reason *why)
{
	struct vm *vm = managed_new(PLACE_POOLS, pool->name, geteuid(), getegid()), *made = NULL;
	int err = vm ? domain_minimal(vm->name, vm->uuid, &vm->config) : -ENOMEM;
	/* A second description would hide the volumes of the first for ever. */
	if (!err && store->lacks_vms)
		vm->is_stand_in = true;
	if (!err && store->writable && !store->lacks_vms) {
		err = managed_add(store, vm, NULL, &made, why);
		vm_put(made);
		return err;
	}
	struct entry *entry = err ? NULL : table_intern(store, vm->uuid);
	if (!err)
		err = entry ? table_publish(store, entry, vm) : -ENOMEM;
	if (err)
		vm_put(vm);
	return err;
}

/* Files that couldn't have their volume's name yet. */
static void rename_files(struct store *store, struct entry *entry)
{
	struct vm *now = table_current(store, entry);
	for (size_t i = 0; now && i < now->nr_disks; i++)
		if (!now->disks[i].found)
			pool_volume_rename_file(store, entry, now->disks[i].file_name, NULL);
	vm_put(now);
}

/* A rename that was interrupted left the file with its old name. */
static void finish_renames(struct store *store, struct vm *vm)
{
	struct entry *entry = table_entry(store, vm->id);
	pthread_mutex_lock(&entry->change);
	rename_files(store, entry);
	pthread_mutex_unlock(&entry->change);
	layers_unlink_unneeded(store);
}

int pool_vms_load(struct store *store, struct reason *why)
{
	int err = 0;
	for (size_t i = 0; !err && i < store->nr_pools; i++) {
		struct vm *vm = table_find(store, PLACE_POOLS, store->pools[i].name);
		if (!vm)
			err = make_vm(store, &store->pools[i], why);
		else if (store->writable && !store->layers.unknown)
			finish_renames(store, vm);
		vm_put(vm);
	}
	return err;
}

/* --- what is found in the directory ------------------------------------------------------------------------------------ */

static int64_t now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* A regular file, or a block device, itself or by a symbolic link to where it is trusted. */
static bool is_volume(const struct store *store, const struct pool *pool, const char *name, bool *ret_device)
{
	struct stat st;
	if (fstatat(pool->dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return false;
	if (S_ISLNK(st.st_mode)) {
		auto_free char *real = NULL;
		if (trust_resolve(store->trust, pool->dir, name, &real, NULL) < 0 || lstat(real, &st) < 0)
			return false;
	}
	*ret_device = S_ISBLK(st.st_mode);
	return S_ISREG(st.st_mode) || (S_ISBLK(st.st_mode) && store->allow_devices);
}

static bool ends_with(const char *name, const char *ending)
{
	size_t len = strlen(name), ending_len = strlen(ending);
	return len > ending_len && strcmp(name + len - ending_len, ending) == 0;
}

/* As of bare images: the name may say it, else the file's beginning does. */
static enum image_format format_of(const char *name, bool is_device)
{
	if (is_device || ends_with(name, ".raw"))
		return IMAGE_RAW;
	return ends_with(name, ".qcow2") ? IMAGE_QCOW2 : IMAGE_PROBE;
}

static int add_found(struct vm *vm, const struct pool *pool, const char *name, bool is_device)
{
	struct vm_disk *disk = vm_disk_add(&vm->disks, &vm->nr_disks);
	char layer[LAYER_NAME_MAX];
	if (!disk)
		return -ENOMEM;
	disk->found = true;
	disk->format = format_of(name, is_device);
	snprintf(layer, sizeof layer, "%s/%s", pool->name, name);
	if (asprintf(&disk->path, "%s/%s", pool->dir, name) < 0) {
		disk->path = NULL;
		return -ENOMEM;
	}
	/* A device is written in its place. */
	return text_set(&disk->file_name, name) || (is_device && text_set(&disk->layer, layer)) ? -ENOMEM : 0;
}

/* Whether a file of the directory is shown as found: what was made here is either the VM's, and has been added, or a layer of others. */
static bool is_found(const struct store *store, struct pool *pool, const struct vm *vm, const char *name, bool *ret_device)
{
	return name_check(name) == 0 && strlen(name) <= POOL_FILE_MAX && !vm_find_disk(vm->disks, vm->nr_disks, name) &&
	       is_volume(store, pool, name, ret_device) && !pool_owns(pool, name);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct vm_disk *)a)->file_name, ((const struct vm_disk *)b)->file_name);
}

static int add_all_found(struct store *store, struct pool *pool, struct vm *vm)
{
	DIR *dir = dir_open_at(pool->dirfd, ".");
	size_t nr_made = vm->nr_disks;
	bool is_device = false, too_many = false;
	int err = dir ? 0 : -errno;
	for (struct dirent *de; !err && (de = readdir(dir));) {
		too_many = vm->nr_disks - nr_made >= FOUND_MAX;
		if (too_many)
			break;
		if (is_found(store, pool, vm, de->d_name, &is_device))
			err = add_found(vm, pool, de->d_name, is_device);
	}
	if (dir)
		closedir(dir);
	if (too_many && !pool->said_too_many)
		store_event(store, NULL, "pool %s: only %u of the files in %s are shown", pool->name, FOUND_MAX, pool->dir);
	pool->said_too_many = too_many;
	if (!err && vm->nr_disks > nr_made)
		qsort(vm->disks + nr_made, vm->nr_disks - nr_made, sizeof *vm->disks, by_name);
	return err;
}

static bool is_same(const struct vm *a, const struct vm *b)
{
	bool same = a->nr_disks == b->nr_disks && a->uid == b->uid && a->gid == b->gid && a->mode == b->mode &&
		    a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec;
	for (size_t i = 0; same && i < a->nr_disks; i++)
		same = strcmp(a->disks[i].file_name, b->disks[i].file_name) == 0 && a->disks[i].found == b->disks[i].found &&
		       a->disks[i].format == b->disks[i].format && !a->disks[i].layer == !b->disks[i].layer;
	return same;
}

/* The directory's owner, times and read bits are the VM's. */
static int look(struct store *store, struct pool *pool, const struct vm *now, struct vm **ret)
{
	struct stat st;
	struct vm *next = vm_copy(now);
	if (!next)
		return -ENOMEM;
	for (size_t i = next->nr_disks; i-- > 0;)
		if (next->disks[i].found)
			vm_disk_drop(next, i);
	int err = fstat(pool->dirfd, &st) < 0 ? -errno : add_all_found(store, pool, next);
	if (err) {
		vm_put(next);
		return err;
	}
	next->uid = st.st_uid;
	next->gid = st.st_gid;
	next->mode = st.st_mode & 0444;
	next->changed = st.st_mtim;
	*ret = next;
	return 0;
}

/* The caller holds the change lock. */
static bool refresh_locked(struct store *store, struct pool *pool, struct entry *entry)
{
	if (store->writable) {
		rename_files(store, entry);
		layers_unlink_unneeded(store);
	}
	struct vm *now = table_current(store, entry), *next = NULL;
	int err = now ? look(store, pool, now, &next) : -ENOENT;
	bool changed = !err && !is_same(now, next);
	if (changed && table_publish(store, entry, next) == 0)
		next = NULL;
	vm_put(next);
	vm_put(now);
	return changed;
}

/* Tried, never waited for: who changes the VM may be asking. */
bool pool_vm_refresh(struct store *store, const struct vm *vm)
{
	struct pool *pool = pool_of_vm(store, vm);
	struct entry *entry = pool ? table_entry(store, vm->id) : NULL;
	bool changed = false;
	if (!entry || now_ms() < atomic_load(&pool->next_look_ms) || pthread_mutex_trylock(&entry->change) != 0)
		return false;
	if (now_ms() >= atomic_load(&pool->next_look_ms)) {
		changed = refresh_locked(store, pool, entry);
		atomic_store(&pool->next_look_ms, now_ms() + LOOK_MS);
	}
	pthread_mutex_unlock(&entry->change);
	return changed;
}

/* --- volumes ------------------------------------------------------------------------------------------------------------ */

static const char *ending_of(enum image_format format)
{
	return format == IMAGE_QCOW2 ? ".qcow2" : ".raw";
}

static bool can_be_file(const char *name)
{
	return name_check(name) == 0 && strlen(name) <= POOL_FILE_MAX;
}

/* Files that are to become the layer's all at once: there is nothing to fill in. */
static int make_raw(struct store *store, const char *layer, const struct layer_owner *owner, struct reason *why)
{
	int fd = -1;
	int err = layer_file_begin(store, layer, owner, false, &fd, why);
	if (err)
		return err;
	err = layer_file_finish(store, layer, fd, why);
	close(fd);
	if (err)
		layer_file_cancel(store, layer);
	return err;
}

static int make_layer(struct store *store, char layer[LAYER_NAME_MAX], const struct layer_owner *owner, struct reason *why)
{
	if (layer_format(layer) == IMAGE_QCOW2)
		return layer_create(store, &(struct overlay_spec){0}, NULL, owner, layer, why);
	int err = layers_add_new(store, layer, NULL);
	if (err)
		return reason_set(why, err, "%s: %s", layer, strerror(-err));
	err = make_raw(store, layer, owner, why);
	if (err)
		layers_forget(store, layer);
	return err;
}

static bool layer_is_known(struct store *store, const char *layer)
{
	bool known = layers_pin(store, layer) == 0;
	if (known)
		layers_unpin(store, layer);
	return known;
}

int pool_volume_make(struct store *store, const struct vm *vm, const char *file_name, const struct layer_owner *owner, char layer[LAYER_NAME_MAX],
		     struct reason *why)
{
	const struct pool *pool = pool_of_vm(store, vm);
	auto_free char *final = name_final(file_name);
	if (!final)
		return -ENOMEM;
	enum image_format format = layer_format(final);
	if (strlen(final) > POOL_FILE_MAX)
		return reason_set(why, -ENAMETOOLONG, "the name of a volume has at most %d bytes", POOL_FILE_MAX);
	if (!pool)
		return reason_set(why, -ENODEV, "the pool %s isn't given: mount with -o pool=%s:DIR", vm->name, vm->name);
	int err = -EEXIST;
	snprintf(layer, LAYER_NAME_MAX, "%s/%s", pool->name, file_name);
	if (can_be_file(file_name) && layer_format(file_name) == format) {
		err = make_layer(store, layer, owner, why);
		if (err == -EEXIST && layers_is_named(store, layer))
			return reason_set(why, err, "%s is the disk of a clone", layer);
		if (err != -EEXIST || !layer_is_known(store, layer))
			return err;
		/* One that was removed, or replaced, and is open still: this one gets its name when that has gone. */
	}
	snprintf(layer, LAYER_NAME_MAX, "%s/", pool->name);
	layer_name_new(layer + strlen(layer), ending_of(format));
	return make_layer(store, layer, owner, why);
}

int pool_check_rename(const char *layer, const char *new_name, struct reason *why)
{
	auto_free char *final = name_final(new_name);
	if (!final)
		return -ENOMEM;
	if (strlen(final) > POOL_FILE_MAX)
		return reason_set(why, -ENAMETOOLONG, "the name of a volume has at most %d bytes", POOL_FILE_MAX);
	if (layer_format(layer) == layer_format(final))
		return 0;
	return reason_set(why, -EXDEV, "it is a %s image, and %s would be a %s one: copy it under that name", image_format_name(layer_format(layer)),
			  new_name, image_format_name(layer_format(final)));
}

/* --- names of files ------------------------------------------------------------------------------------------------------- */

/* vm.xml names the new name, which the file has beside the old one. */
static int commit_name(struct store *store, struct entry *entry, const struct vm *now, size_t i, const char *layer)
{
	struct vm *next = vm_copy(now);
	if (!next)
		return -ENOMEM;
	struct vm_disk *disk = &next->disks[i];
	free(disk->path);
	disk->path = layer_path(store, layer);
	if (!disk->path || text_set(&disk->layer, layer)) {
		vm_put(next);
		return -ENOMEM;
	}
	return managed_commit(store, entry, next, NULL);
}

/* The file has both names while vm.xml changes; the sweep takes the old one away. */
static int give_name(struct store *store, struct entry *entry, const struct vm *now, size_t i, const char *layer)
{
	char old[LAYER_NAME_MAX];
	snprintf(old, sizeof old, "%s", now->disks[i].layer);
	int err = layers_add_new(store, layer, NULL);
	if (err)
		return err;
	err = layer_file_link(store, old, layer);
	if (err) {
		layers_forget(store, layer);
		return err;
	}
	err = layer_sync_dir(store, layer, NULL);
	if (!err)
		err = commit_name(store, entry, now, i, layer);
	/* Of a failed commit nobody knows which one vm.xml names. */
	if (err)
		layers_forget(store, layer);
	else
		layers_unpin(store, layer);
	struct layer_place at = layer_place(store, layer);
	struct stat st;
	if (fstatat(at.dirfd, at.name, &st, AT_SYMLINK_NOFOLLOW) == 0)
		image_cache_forget(store->images, st.st_dev, st.st_ino); /* known by the name it had */
	return err;
}

/* By the file's new name; all that was written to it is stable. The caller holds swap exclusively. */
static void reopen_head(struct store *store, struct entry *entry, const char *file_name, struct open_head *oh)
{
	struct reason why = {0};
	struct vm *now = table_current(store, entry);
	const struct vm_disk *disk = vm_find_disk(now->disks, now->nr_disks, file_name);
	int err = head_detach(oh);
	if (err)
		oh->lost_err = err;
	else
		err = head_reattach(store, oh, disk, &why);
	if (err)
		store_event(store, NULL, "pool %s: %s can't be opened again: %s; close it in all programs and open it anew", now->name, file_name,
			    *why.text ? why.text : strerror(-err));
	vm_put(now);
}

/* What can't be written is for the next fsync to say, which a head that is opened anew wouldn't know of: then the file keeps the name that it has. */
static int rename_file(struct store *store, struct entry *entry, const struct vm *now, size_t i, const char *layer)
{
	struct open_head *oh = head_lookup(store, &now->disks[i]);
	if (!oh)
		return give_name(store, entry, now, i, layer);
	pthread_rwlock_wrlock(&oh->swap);
	int err = oh->head ? head_flush(oh->head) : 0;
	if (!err)
		err = give_name(store, entry, now, i, layer);
	if (!err)
		reopen_head(store, entry, now->disks[i].file_name, oh);
	pthread_rwlock_unlock(&oh->swap);
	return err;
}

void pool_volume_rename_file(struct store *store, struct entry *entry, const char *file_name, struct reason *why)
{
	char layer[LAYER_NAME_MAX];
	struct vm *now = table_current(store, entry);
	const struct pool *pool = pool_of_vm(store, now);
	const struct vm_disk *disk = pool ? vm_find_disk(now->disks, now->nr_disks, file_name) : NULL;
	/* What a job works on keeps its name until that is done. */
	if (disk && !disk->found && !disk->error && !disk->full && !disk->pending_path && can_be_file(file_name) &&
	    layer_format(file_name) == disk->format) {
		snprintf(layer, sizeof layer, "%s/%s", pool->name, file_name);
		int err = strcmp(layer, disk->layer) == 0 ? 0 : rename_file(store, entry, now, (size_t)(disk - now->disks), layer);
		if (err)
			reason_set(why, err, "pool %s: the file of %s keeps its name %s: %s", pool->name, file_name, strchr(disk->layer, '/') + 1,
				   strerror(-err));
	}
	vm_put(now);
}
