#include "store/layers_priv.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "store/flats.h"
#include "store/full.h"
#include "store/full_raw.h"
#include "store/heads.h"
#include "store/merge.h"
#include "store/store_internal.h"
#include "store/vm_make.h"

#define BUCKETS_MIN 256u /* of the table; a power of two */

/* --- the table -------------------------------------------------------------------------------------------------- */

void layer_row_set_beneath(struct layer_row *row, const char *beneath)
{
	snprintf(row->beneath, sizeof row->beneath, "%s", beneath ? beneath : "");
}

static struct layer_row **bucket_of(const struct layers *layers, const char *name)
{
	return &layers->buckets[hash_text(HASH_START, name) & (layers->nr_buckets - 1)];
}

struct layer_row *layer_row_find_locked(const struct layers *layers, const char *name)
{
	struct layer_row *row = layers->nr_buckets ? *bucket_of(layers, name) : NULL;
	while (row && strcmp(row->name, name) != 0)
		row = row->next;
	return row;
}

/* Twice as many buckets; the first time, BUCKETS_MIN. */
static int grow_buckets_locked(struct layers *layers)
{
	struct layers grown = {.nr_buckets = layers->nr_buckets ? layers->nr_buckets * 2 : BUCKETS_MIN};
	grown.buckets = mem_new_array(grown.nr_buckets, sizeof(struct layer_row *));
	if (!grown.buckets)
		return -ENOMEM;
	for_each_row(layers, row) {
		struct layer_row **bucket = bucket_of(&grown, row->name);
		row->next = *bucket;
		*bucket = row;
	}
	free(layers->buckets);
	layers->buckets = grown.buckets;
	layers->nr_buckets = grown.nr_buckets;
	return 0;
}

/* One row a name: what is needed is marked in one place only. */
static int row_add_locked(struct layers *layers, const char *name, const char *beneath, unsigned nr_pins)
{
	struct layer_row *row = layer_row_find_locked(layers, name);
	if (!row) {
		if (layers->nr_rows == layers->nr_buckets && grow_buckets_locked(layers) < 0)
			return -ENOMEM;
		row = calloc(1, sizeof *row);
		if (!row)
			return -ENOMEM;
		snprintf(row->name, sizeof row->name, "%s", name);
		struct layer_row **bucket = bucket_of(layers, name);
		row->next = *bucket;
		*bucket = row;
		layers->nr_rows++;
	}
	row->nr_pins += nr_pins;
	layer_row_set_beneath(row, beneath);
	return 0;
}

static void row_remove_locked(struct layers *layers, struct layer_row *row)
{
	struct layer_row **at = bucket_of(layers, row->name);
	while (*at != row)
		at = &(*at)->next;
	*at = row->next;
	layers->nr_rows--;
	free(row);
}

/* By somebody who didn't use it before. */
static bool is_usable(const struct layer_row *row)
{
	return !row->merging && !row->spoiled;
}

/* A base that is still to be copied (a raw file) comes into the table when it is there. */
static bool can_lie_over_locked(const struct layers *layers, const char *beneath)
{
	const struct layer_row *row = beneath ? layer_row_find_locked(layers, beneath) : NULL;
	return !beneath || (row ? is_usable(row) : layers->unknown || layer_format(beneath) == IMAGE_RAW);
}

int layers_add(struct store *store, const char *name, const char *beneath)
{
	pthread_mutex_lock(&store->lock);
	int err = can_lie_over_locked(&store->layers, beneath) ? row_add_locked(&store->layers, name, beneath, 1) : -ESTALE;
	pthread_mutex_unlock(&store->lock);
	return err;
}

int layers_add_new(struct store *store, const char *name, const char *beneath)
{
	pthread_mutex_lock(&store->lock);
	int err = layer_row_find_locked(&store->layers, name) ? -EEXIST : can_lie_over_locked(&store->layers, beneath) ? 0 : -ESTALE;
	if (!err)
		err = row_add_locked(&store->layers, name, beneath, 1);
	pthread_mutex_unlock(&store->lock);
	return err;
}

int layers_pin(struct store *store, const char *name)
{
	pthread_mutex_lock(&store->lock);
	struct layer_row *row = layer_row_find_locked(&store->layers, name);
	int err = (row ? is_usable(row) : store->layers.unknown) ? 0 : -ESTALE;
	if (row && !err)
		row->nr_pins++;
	pthread_mutex_unlock(&store->lock);
	return err;
}

void layers_unpin(struct store *store, const char *name)
{
	pthread_mutex_lock(&store->lock);
	struct layer_row *row = layer_row_find_locked(&store->layers, name);
	if (row && row->nr_pins)
		row->nr_pins--;
	pthread_mutex_unlock(&store->lock);
}

void layers_set_beneath(struct store *store, const char *name, const char *beneath)
{
	pthread_mutex_lock(&store->lock);
	struct layer_row *row = layer_row_find_locked(&store->layers, name);
	if (row)
		layer_row_set_beneath(row, beneath);
	pthread_mutex_unlock(&store->lock);
}

void layers_forget(struct store *store, const char *name)
{
	pthread_mutex_lock(&store->lock);
	struct layer_row *row = layer_row_find_locked(&store->layers, name);
	if (row)
		row_remove_locked(&store->layers, row);
	pthread_mutex_unlock(&store->lock);
}

void layers_done(struct layers *layers)
{
	for_each_row(layers, row)
		free(row);
	free(layers->buckets);
	*layers = (struct layers){0};
}

/* How a header in the directory of NAME says that it lies over BENEATH. */
static int name_beneath(struct store *store, const char *name, const char *beneath, struct overlay_spec *spec, char **ret_backing,
			struct reason *why)
{
	auto_free char *path = layer_path(store, beneath);
	int err = path ? layer_backing_name(store, name, path, ret_backing, why) : -ENOMEM;
	spec->backing_name = *ret_backing;
	spec->backing_format = layer_format(beneath);
	return err;
}

int layer_create(struct store *store, const struct overlay_spec *spec, const char *beneath, const struct layer_owner *owner,
		 char name[LAYER_NAME_MAX], struct reason *why)
{
	auto_free char *backing = NULL;
	struct overlay_spec overlay = *spec;
	int err = 0;
	if (!*name) /* no files are made in a directory of devices */
		layer_name_beside(name, beneath && !layer_is_device(store, beneath) ? beneath : "", ".qcow2");
	if (beneath && !spec->backing_name)
		err = name_beneath(store, name, beneath, &overlay, &backing, why);
	if (err)
		return err;
	/* In the table first: a sweep must not take the file for the rest of something. */
	err = layers_add_new(store, name, beneath);
	if (err == -EEXIST)
		return reason_set(why, err, "%s exists", name);
	if (err == -ESTALE)
		return reason_set(why, err, "what it should lie over has been deleted");
	if (err)
		return err;
	err = layer_file_make_overlay(store, name, &overlay, owner, why);
	if (err)
		layers_forget(store, name);
	return err;
}

void layer_abandon(struct store *store, const char *name)
{
	layer_file_unlink(store, name);
	layers_forget(store, name);
}

void layer_drop(struct store *store, const char *name, bool tried)
{
	if (tried)
		layers_forget(store, name);
	else
		layer_abandon(store, name);
}

int layer_sync_dir(struct store *store, const char *name, struct reason *why)
{
	struct layer_place at = layer_place(store, name);
	int err = dir_sync(at.dirfd);
	return err ? reason_set(why, err, "%s: %s", at.dir, strerror(-err)) : 0;
}

int layer_settle(struct store *store, const char *name, struct overlay_facts *ret, struct reason *why)
{
	struct layer_place at;
	auto_close int device = -1;
	auto_free char *path = layer_path(store, name);
	int err = path ? layer_place_to_open(store, name, O_RDWR | O_EXCL, &at, &device, why) : -ENOMEM;
	if (err)
		return err;
	return layer_format(name) == IMAGE_RAW ? raw_settle(at.dirfd, at.name, path, ret, why) : overlay_settle(at.dirfd, at.name, path, ret, why);
}

int layer_allocated(struct store *store, const char *name, uint64_t *ret_bytes)
{
	struct layer_place at = layer_place(store, name);
	auto_close int device = -1;
	int err = layer_is_device(store, name) ? layer_place_to_open(store, name, O_RDONLY, &at, &device, NULL) : 0;
	return err ? err : overlay_allocated(at.dirfd, at.name, ret_bytes);
}

int layer_open_image(struct store *store, const char *name, struct image **ret, struct reason *why)
{
	struct layer_place at = layer_place(store, name);
	return image_open(store->images, at.dir, at.name, layer_format(name), ret, why);
}

int layers_open_view(struct store *store, const struct disk_source *source, struct view **ret, struct reason *why)
{
	pthread_rwlock_rdlock(&store->layout);
	int err = view_open(store->images, source, ret, why);
	pthread_rwlock_unlock(&store->layout);
	return err;
}

/* Whether the files are still what they were when they were opened: asked once their locks are ours. The image of an internal
 * snapshot may go on changing: the snapshot doesn't. */
static bool is_current(const struct view *view)
{
	for (size_t i = view_snapshot(view) ? 1 : 0; i < view_depth(view); i++)
		if (!image_is_current(view_layer(view, i)))
			return false;
	return true;
}

int layers_open_locked(struct store *store, const struct disk_source *source, struct view **ret, struct reason *why)
{
	for (int attempt = 0; attempt < OPEN_TRIES; attempt++) {
		struct view *view = NULL;
		int err = layers_open_view(store, source, &view, why);
		if (err)
			return err;
		err = view_lock(view, why);
		if (!err && is_current(view)) {
			*ret = view;
			return 0;
		}
		if (!err)
			view_unlock(view);
		view_put(view);
		if (err && err != -ESTALE)
			return err;
	}
	return reason_set(why, -EBUSY, "%s is being changed by another program", source->path);
}

int layers_open_beneath(struct store *store, const char *name, struct view **ret, struct reason *why)
{
	struct image *image = NULL;
	pthread_rwlock_rdlock(&store->layout);
	int err = layer_open_image(store, name, &image, why);
	if (!err) {
		err = view_open_backing(store->images, image, ret, why);
		image_put(image);
	}
	pthread_rwlock_unlock(&store->layout);
	return err;
}

/* --- what is needed ----------------------------------------------------------------------------------------------- */

/* Follows what lies beneath until it comes to a row that is marked. */
static void mark_chain(struct layers *layers, const char *name, uint32_t vm_id)
{
	struct layer_row *row = *name ? layer_row_find_locked(layers, name) : NULL;
	while (row && !row->needed) {
		row->needed = true;
		row->vm_id = vm_id;
		row = *row->beneath ? layer_row_find_locked(layers, row->beneath) : NULL;
	}
}

static void mark_named(struct layers *layers, const char *name, uint32_t vm_id)
{
	struct layer_row *row = *name ? layer_row_find_locked(layers, name) : NULL;
	if (!row)
		return;
	row->named = true;
	mark_chain(layers, name, vm_id);
	/* Of the VMs that need it, the job that merges it is that of one which names it. */
	row->vm_id = vm_id ? vm_id : row->vm_id;
}

struct marking {
	struct layers *layers;
	const struct vm *vm;
};

static bool is_among(const struct vm_disk *disk, const struct vm_disk *disks, size_t nr)
{
	return disk >= disks && disk < disks + nr;
}

static void mark_disk(void *ctx, const struct vm_disk *disk)
{
	const struct marking *m = ctx;
	mark_named(m->layers, disk->layer, m->vm->id);
	if (disk->full_base) /* it may be made already, and lie beneath nothing yet */
		mark_chain(m->layers, disk->full_base, m->vm->id);
	struct layer_row *row = layer_row_find_locked(m->layers, disk->layer);
	if (row)
		row->nr_names++;
	if (row && is_among(disk, m->vm->disks, m->vm->nr_disks)) {
		row->is_head = true;
		row->vm_id = m->vm->id;
	} else if (row && m->vm->saved && is_among(disk, m->vm->saved->disks, m->vm->saved->nr_disks)) {
		row->kept = true;
	}
}

void layers_mark_locked(struct store *store)
{
	struct layers *layers = &store->layers;
	for_each_row(layers, row) {
		row->needed = row->named = row->is_head = row->kept = false;
		row->nr_names = row->nr_children = 0;
		row->child = NULL;
		row->vm_id = 0;
	}
	for (size_t e = 0; e < store->nr_entries; e++) {
		struct marking marking = {layers, store->entries[e]->vm};
		if (marking.vm)
			vm_each_layer(marking.vm, mark_disk, &marking);
	}
	for_each_row(layers, row)
		if (row->nr_pins)
			mark_named(layers, row->name, 0);
	for (const struct open_head *oh = store->heads; oh; oh = oh->next)
		mark_named(layers, oh->layer, 0);
}

/* Takes the rows that nobody needs out of the table into RET; what can't be listed for want of memory stays for the next time. */
static size_t take_unneeded_locked(struct layers *layers, char (**ret)[LAYER_NAME_MAX])
{
	size_t nr = 0;
	for_each_row(layers, row)
		nr += !row->needed;
	*ret = mem_new_array(nr, sizeof **ret);
	if (!*ret)
		return 0;
	nr = 0;
	for_each_row(layers, row) {
		if (row->needed)
			continue;
		memcpy((*ret)[nr++], row->name, LAYER_NAME_MAX);
		row_remove_locked(layers, row);
	}
	return nr;
}

void layers_unlink_unneeded(struct store *store)
{
	auto_free char(*unneeded)[LAYER_NAME_MAX] = NULL;
	if (!store->writable)
		return;
	pthread_mutex_lock(&store->lock);
	size_t nr = 0;
	if (!store->layers.unknown) {
		layers_mark_locked(store);
		nr = take_unneeded_locked(&store->layers, &unneeded);
	}
	pthread_mutex_unlock(&store->lock);
	for (size_t i = 0; i < nr; i++) {
		layer_file_unlink(store, unneeded[i]);
		if (layer_format(unneeded[i]) == IMAGE_RAW)
			full_raw_forget(store, unneeded[i]);
	}
	if (nr) {
		flats_trim(store->flats);
		image_cache_trim(store->images);
	}
}

void layers_sweep(struct store *store)
{
	layers_unlink_unneeded(store);
	merges_plan(store);
	full_plan(store);
}

/* --- at the start ---------------------------------------------------------------------------------------------- */

/* Reads from the header of NAME which layer of ours lies beneath; BENEATH becomes "" for none. */
static int read_beneath(struct store *store, const char *name, char beneath[LAYER_NAME_MAX], bool *ret_dirty, struct reason *why)
{
	struct image *image = NULL;
	*beneath = '\0';
	*ret_dirty = false;
	if (layer_format(name) == IMAGE_RAW)
		return 0;
	int err = layer_check_place(store, name, why);
	if (!err)
		err = layer_open_image(store, name, &image, why);
	if (err)
		return err;
	const char *backing = image_backing_name(image);
	auto_free char *real = NULL;
	*ret_dirty = image_is_dirty(image);
	if (backing && !strchr(name, '/') && !strchr(backing, '/') && layer_name_is_valid(backing)) /* it needn't be there yet */
		snprintf(beneath, LAYER_NAME_MAX, "%s", backing);
	else if (backing && trust_resolve(store->trust, layer_place(store, name).dir, backing, &real, NULL) < 0)
		err = store->lacks_pools ? reason_set(why, -ENODEV, "%s may lie in a pool that isn't given", backing) : 0;
	else if (backing && !layer_of_path(store, real, beneath))
		*beneath = '\0';
	image_put(image);
	return err;
}

/* Whether NAME is among the first NR layers of the chain from TOP. */
static bool is_in_chain(const struct layers *layers, const char *top, size_t nr, const char *name)
{
	for (const struct layer_row *row = layer_row_find_locked(layers, top); row && nr--; row = layer_row_find_locked(layers, row->beneath))
		if (strcmp(row->name, name) == 0)
			return true;
	return false;
}

/* Enters NAME and what lies beneath it, as far down as the table doesn't know it yet. */
static int load_chain(struct store *store, const char *name, struct reason *why)
{
	char next[LAYER_NAME_MAX], beneath[LAYER_NAME_MAX];
	size_t nr = 0;
	snprintf(next, sizeof next, "%s", name);
	for (; *next && !layer_row_find_locked(&store->layers, next); nr++) {
		bool dirty = false;
		int err = read_beneath(store, next, beneath, &dirty, why);
		if (err)
			return err;
		err = row_add_locked(&store->layers, next, beneath, 0);
		if (err)
			return err;
		layer_row_find_locked(&store->layers, next)->dirty = dirty;
		memcpy(next, beneath, sizeof next);
	}
	/* One that was in the table before can't lead back to these. */
	if (*next && is_in_chain(&store->layers, name, nr, next))
		return reason_set(why, -EUCLEAN, "%s: its backing chain comes back to %s", name, next);
	return 0;
}

/* A disk whose data isn't copied yet: its base may be there or not. */
static int load_pending(struct store *store, const struct vm_disk *disk, struct reason *why)
{
	char beneath[LAYER_NAME_MAX];
	bool dirty = false;
	int err = layer_row_find_locked(&store->layers, disk->layer) ? 0 : read_beneath(store, disk->layer, beneath, &dirty, why);
	if (!err)
		err = row_add_locked(&store->layers, disk->layer, disk->pending_base, 0);
	if (!err && faccessat(layer_place(store, disk->pending_base).dirfd, layer_place(store, disk->pending_base).name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
		err = row_add_locked(&store->layers, disk->pending_base, NULL, 0);
	return err;
}

int layers_list_dirty(struct store *store, struct dirty_layer **ret, size_t *ret_nr)
{
	*ret_nr = 0;
	pthread_mutex_lock(&store->lock);
	*ret = mem_new_array(store->layers.nr_rows + 1, sizeof **ret);
	if (*ret)
		layers_mark_locked(store);
	for_each_row(&store->layers, row)
		if (*ret && row->dirty && row->needed && !row->is_head) {
			struct dirty_layer *dirty = &(*ret)[(*ret_nr)++];
			memcpy(dirty->name, row->name, LAYER_NAME_MAX);
			dirty->vm_id = row->vm_id;
		}
	pthread_mutex_unlock(&store->lock);
	return *ret ? 0 : -ENOMEM;
}

struct loading {
	struct store *store;
	bool pending; /* these alone, or the others alone */
	struct reason *why;
	int err;
};

static void load_disk(void *ctx, const struct vm_disk *disk)
{
	struct loading *l = ctx;
	if (!l->err && !disk->pending_path == !l->pending)
		l->err = l->pending ? load_pending(l->store, disk, l->why) : load_chain(l->store, disk->layer, l->why);
}

/* Before any other thread: without the lock. */
static int load_disks(struct store *store, bool pending, struct reason *why)
{
	struct loading loading = {store, pending, why, 0};
	for (size_t e = 0; e < store->nr_entries; e++)
		if (store->entries[e]->vm)
			vm_each_layer(store->entries[e]->vm, load_disk, &loading);
	return loading.err;
}

/* The pending ones first: their bases may not be there yet, and a chain that leads to one is known from there on. */
int layers_load(struct store *store, struct reason *why)
{
	int err = load_disks(store, true, why);
	return err ? err : load_disks(store, false, why);
}

static int settle_header(struct store *store, const char *name)
{
	struct layer_place at = layer_place(store, name);
	auto_close int fd = -1;
	if (layer_format(name) == IMAGE_RAW)
		return 0;
	if (layer_is_device(store, name)) {
		int err = layer_place_to_open(store, name, O_RDONLY, &at, &fd, NULL);
		return err ? err : file_sync(fd);
	}
	fd = openat(at.dirfd, at.name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	return fd < 0 ? -errno : file_sync(fd);
}

int layers_settle(struct store *store)
{
	int err = 0;
	for_each_row(&store->layers, row)
		err = err ? err : settle_header(store, row->name);
	return err;
}

struct wanted {
	const char *layer;
	bool found;
};

static void note_wanted(void *ctx, const struct vm_disk *disk)
{
	struct wanted *w = ctx;
	if (disk->full_base && strcmp(disk->full_base, w->layer) == 0)
		w->found = true;
}

/* In the table, or about to be made. */
static bool is_wanted(void *ctx, const char *layer)
{
	struct store *store = ctx;
	struct wanted wanted = {layer, layer_row_find_locked(&store->layers, layer)};
	for (size_t e = 0; !wanted.found && e < store->nr_entries; e++)
		if (store->entries[e]->vm)
			vm_each_layer(store->entries[e]->vm, note_wanted, &wanted);
	return wanted.found;
}

bool layers_is_wanted(struct store *store, const char *name)
{
	pthread_mutex_lock(&store->lock);
	bool wanted = is_wanted(store, name);
	pthread_mutex_unlock(&store->lock);
	return wanted;
}

static void note_named(void *ctx, const struct vm_disk *disk)
{
	struct wanted *w = ctx;
	if (strcmp(disk->layer, w->layer) == 0)
		w->found = true;
}

static void find_named_locked(struct store *store, struct wanted *wanted)
{
	for (size_t e = 0; !wanted->found && e < store->nr_entries; e++)
		if (store->entries[e]->vm)
			vm_each_layer(store->entries[e]->vm, note_named, wanted);
}

bool layers_is_named(struct store *store, const char *name)
{
	struct wanted wanted = {name, false};
	pthread_mutex_lock(&store->lock);
	find_named_locked(store, &wanted);
	pthread_mutex_unlock(&store->lock);
	return wanted.found;
}

static bool is_used_locked(struct store *store, const struct layer_row *used)
{
	struct wanted wanted = {used->name, used->nr_pins || used->merging};
	for_each_row(&store->layers, row)
		wanted.found = wanted.found || strcmp(row->beneath, used->name) == 0;
	for (const struct open_head *oh = store->heads; oh; oh = oh->next)
		wanted.found = wanted.found || strcmp(oh->layer, used->name) == 0;
	find_named_locked(store, &wanted);
	return wanted.found;
}

bool layers_take_unused(struct store *store, const char *name)
{
	pthread_mutex_lock(&store->lock);
	struct layer_row *row = layer_row_find_locked(&store->layers, name);
	bool unused = !store->layers.unknown && !(row && is_used_locked(store, row));
	if (row && unused)
		row_remove_locked(&store->layers, row);
	pthread_mutex_unlock(&store->lock);
	return unused;
}

static bool is_leftover(struct store *store, const char *name)
{
	char made[LAYER_NAME_MAX];
	size_t len = strlen(name);
	bool is_part = len > 5 && len < sizeof made && strcmp(name + len - 5, ".part") == 0;
	snprintf(made, sizeof made, "%.*s", (int)(is_part ? len - 5 : len), name);
	return layer_is_leftover_name(name) && !is_wanted(store, made);
}

void layers_clear_leftovers(struct store *store)
{
	DIR *dir = dir_open_at(store->layers_fd, ".");
	if (!dir)
		return;
	for (struct dirent *de; (de = readdir(dir));)
		if (is_leftover(store, de->d_name))
			unlinkat(store->layers_fd, de->d_name, 0);
	closedir(dir);
	for (size_t i = 0; i < store->nr_pools; i++)
		pool_clear_leftovers(store, &store->pools[i], is_wanted, store);
}
