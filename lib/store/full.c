#include "store/full.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store/full_raw.h"
#include "store/managed.h"
#include "store/merge.h"
#include "store/merge_steps.h"
#include "store/snapshot.h"
#include "store/store_internal.h"

#define ATTEMPTS_MAX 64u /* of which each saw the chain change */

/* --- what there is to do --------------------------------------------------------------------------------------------------- */

enum full_state {
	FULL_WAITS, /* for something else to happen first */
	FULL_TO_DO,
	FULL_ON_BASE, /* it lies over the raw file that it is to become, where that can be */
	FULL_DONE,
};

static int has_backing(struct store *store, const char *layer, bool *ret)
{
	struct image *image = NULL;
	int err = layer_open_image(store, layer, &image, NULL);
	if (!err)
		*ret = image_backing_name(image);
	image_put(image);
	return err;
}

/* How far DISK, a disk of the VM with this id, is, and the layer that it is about. */
static enum full_state look(struct store *store, uint32_t vm_id, const struct vm_disk *disk, struct layer_own *ret)
{
	bool backed = false;
	if (!disk->layer || disk->pending_path || disk->error || layers_find_own(store, vm_id, disk->layer, ret) || ret->kept)
		return FULL_WAITS;
	if (disk->full_base && strcmp(ret->beneath, disk->full_base) == 0)
		return FULL_ON_BASE;
	if (*ret->beneath)
		return FULL_TO_DO;
	if (has_backing(store, ret->bottom, &backed))
		return FULL_WAITS;
	return backed || (disk->full_base && strcmp(ret->bottom, disk->full_base) != 0) ? FULL_TO_DO : FULL_DONE;
}

/* A disk of VM, now or in a snapshot, that has a goal. */
typedef void (*goal_fn)(void *ctx, const struct vm *vm, const struct vm_disk *disk);

struct each_goal {
	const struct vm *vm;
	goal_fn fn;
	void *ctx;
};

static void call_if_goal(void *ctx, const struct vm_disk *disk)
{
	const struct each_goal *each = ctx;
	if (disk->full)
		each->fn(each->ctx, each->vm, disk);
}

static void each_goal(const struct vm *vm, goal_fn fn, void *ctx)
{
	struct each_goal each = {vm, fn, ctx};
	vm_each_layer(vm, call_if_goal, &each);
}

/* --- planning ---------------------------------------------------------------------------------------------------------------- */

static const struct job_kind kind;

/* Where the bytes come from, for people; the caller frees. NULL: nobody knows. */
static char *source_of(struct store *store, const char *layer)
{
	struct view *below = NULL;
	char *path = NULL;
	if (layers_open_beneath(store, layer, &below, NULL) == 0 && below)
		path = strdup(image_path(view_layer(below, 0)));
	view_put(below);
	return path;
}

static void plan_disk(void *ctx, const struct vm *vm, const struct vm_disk *disk)
{
	struct store *store = ctx;
	struct layer_own own;
	if (look(store, vm->id, disk, &own) == FULL_WAITS)
		return;
	auto_free char *path = layer_path(store, own.bottom);
	auto_free char *source = source_of(store, own.bottom);
	auto_free char *base = disk->full_base ? layer_path(store, disk->full_base) : NULL;
	const struct vm_disk work = {.file_name = disk->file_name, .full_base = disk->full_base, .path = base ? base : path, .pending_path = source};
	int err = path ? jobs_add(store, &kind, vm, &work, own.bottom) : -ENOMEM;
	if (err && err != -EEXIST)
		store_event(store, vm->name, "disk %s is made independent of its source at the next start: %s", disk->file_name, strerror(-err));
}

static void set_true(void *ctx, const struct vm *vm, const struct vm_disk *disk)
{
	(void)vm;
	(void)disk;
	*(bool *)ctx = true;
}

/* References to the managed VMs with goals; the caller frees. */
static size_t list_vms(struct store *store, struct vm ***ret)
{
	size_t nr = 0, cap = 0;
	*ret = NULL;
	pthread_mutex_lock(&store->lock);
	for (size_t e = 0; e < store->nr_entries; e++) {
		struct vm *vm = store->entries[e]->vm;
		bool any = false;
		if (vm && vm->kind == VM_MANAGED)
			each_goal(vm, set_true, &any);
		if (any && mem_grow(ret, &cap, nr + 1, sizeof(struct vm *)) == 0)
			(*ret)[nr++] = vm_ref(vm);
	}
	pthread_mutex_unlock(&store->lock);
	return nr;
}

void full_note_waiting(struct store *store, const struct vm *vm)
{
	bool any = false;
	for (size_t i = 0; i < vm->nr_disks; i++)
		any |= vm->disks[i].full;
	if (any && store->layers.unknown)
		store_event(store, vm->name, "it goes on depending on its source for now: nothing is made independent while something that the store "
			    "names can't be read, a missing pool say. Mend that and mount again");
}

void full_plan(struct store *store)
{
	struct vm **vms = NULL;
	size_t nr = store->writable && !store->layers.unknown ? list_vms(store, &vms) : 0;
	for (size_t i = 0; i < nr; i++) {
		each_goal(vms[i], plan_disk, store);
		vm_put(vms[i]);
	}
	free(vms);
}

/* --- changing goals ------------------------------------------------------------------------------------------------------------- */

/* What becomes of a disk's goal: whether it changed. */
typedef bool (*change_fn)(void *ctx, struct vm_disk *disk);

static bool change_disks(struct vm_disk *disks, size_t nr, change_fn fn, void *ctx)
{
	bool any = false;
	for (size_t i = 0; i < nr; i++)
		any = fn(ctx, &disks[i]) || any;
	return any;
}

/* SNAPSHOT, or a changed copy in its place. */
static int change_snapshot(struct vm_snapshot **snapshot, change_fn fn, void *ctx, bool *ret_any)
{
	struct vm_snapshot *own = vm_snapshot_copy(*snapshot);
	if (!own)
		return -ENOMEM;
	bool any = change_disks(own->disks, own->nr_disks, fn, ctx);
	if (any) {
		struct vm_snapshot *old = *snapshot;
		*snapshot = own;
		own = old;
		*ret_any = true;
	}
	vm_snapshot_put(own);
	return 0;
}

/* Calls FN for each disk of ENTRY's VM, now and in snapshots, and commits what changed. The caller holds the change lock. *RET_ANY: something did. */
static int change_goals(struct store *store, struct entry *entry, change_fn fn, void *ctx, bool *ret_any, struct reason *why)
{
	struct vm *now = table_current(store, entry);
	struct vm *next = now ? vm_copy(now) : NULL;
	if (!next) {
		vm_put(now);
		return now ? -ENOMEM : -ENOENT;
	}
	int err = 0;
	bool any = change_disks(next->disks, next->nr_disks, fn, ctx);
	for (size_t i = 0; !err && i < next->nr_snapshots; i++)
		err = change_snapshot(&next->snapshots[i], fn, ctx, &any);
	if (!err && next->saved)
		err = change_snapshot(&next->saved, fn, ctx, &any);
	vm_put(now);
	*ret_any = any;
	if (!err && any)
		return managed_commit(store, entry, next, why);
	vm_put(next);
	return err;
}

struct wanting {
	struct store *store;
	uint32_t vm_id;
	const char *layer; /* of the one disk; NULL: see the list */
	const char *const *names;
	size_t nr_names;
};

static bool is_wanted(const struct wanting *w, const struct vm_disk *disk)
{
	if (w->layer)
		return strcmp(disk->layer, w->layer) == 0;
	for (size_t i = 0; i < w->nr_names; i++)
		if (vm_disk_index(disk, 1, w->names[i]) == 0)
			return true;
	return !w->nr_names;
}

static bool want_disk(void *ctx, struct vm_disk *disk)
{
	const struct wanting *w = ctx;
	struct layer_own own;
	if (disk->full || !is_wanted(w, disk) || look(w->store, w->vm_id, disk, &own) == FULL_DONE)
		return false;
	disk->full = true;
	return true;
}

int full_want(struct store *store, struct entry *entry, const char *layer, struct reason *why)
{
	struct wanting wanting = {.store = store, .vm_id = entry->id, .layer = layer};
	bool any = false;
	return change_goals(store, entry, want_disk, &wanting, &any, why);
}

static bool has_disk(const struct vm *vm, const char *name)
{
	bool found = vm_disk_index(vm->disks, vm->nr_disks, name) >= 0;
	for (size_t i = 0; !found && i < vm->nr_snapshots; i++)
		found = vm_disk_index(vm->snapshots[i]->disks, vm->snapshots[i]->nr_disks, name) >= 0;
	return found || (vm->saved && vm_disk_index(vm->saved->disks, vm->saved->nr_disks, name) >= 0);
}

int store_flatten(struct store *store, struct vm *vm, const char *const *disks, size_t nr_disks, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	bool any = false;
	int err = managed_begin(store, vm, &entry, &now, why);
	if (err)
		return err;
	for (size_t i = 0; !err && i < nr_disks; i++)
		if (!has_disk(now, disks[i]))
			err = reason_set(why, -ENOENT, "%s has no disk %s", now->name, disks[i]);
	struct wanting wanting = {.store = store, .vm_id = entry->id, .names = disks, .nr_names = nr_disks};
	if (!err)
		err = change_goals(store, entry, want_disk, &wanting, &any, why);
	managed_end(entry, now);
	if (err)
		return err;
	full_plan(store);
	now = table_current(store, entry);
	if (now)
		full_note_waiting(store, now);
	vm_put(now);
	return 0;
}

struct ending {
	struct store *store;
	uint32_t vm_id;
	const char *bottom; /* the goals that are about it end, whatever the state; NULL: those that are reached */
	bool preallocated;  /* the bottom is */
	const char *layer;
	char base[LAYER_NAME_MAX]; /* that they were about; "": none */
};

static bool end_reached(void *ctx, struct vm_disk *disk)
{
	const struct ending *e = ctx;
	struct layer_own own;
	enum full_state state = disk->full ? look(e->store, e->vm_id, disk, &own) : FULL_WAITS;
	if (state != FULL_DONE && state != FULL_ON_BASE)
		return false;
	if (disk->preallocate && !(e->preallocated && strcmp(own.bottom, e->layer) == 0))
		return false;
	vm_disk_clear_goal(disk);
	return true;
}

static bool end_about(void *ctx, struct vm_disk *disk)
{
	struct ending *e = ctx;
	struct layer_own own;
	if (!disk->full || look(e->store, e->vm_id, disk, &own) == FULL_WAITS)
		return false;
	/* Where the head is pushed into a raw file, what it was lies beneath it for a while. */
	if (strcmp(own.bottom, e->bottom) != 0 && !layers_is_own(e->store, e->vm_id, disk->layer, e->bottom))
		return false;
	if (disk->full_base)
		snprintf(e->base, sizeof e->base, "%s", disk->full_base);
	vm_disk_clear_goal(disk);
	return true;
}

/* --- the job ---------------------------------------------------------------------------------------------------------------------- */

struct finding {
	struct store *store;
	const char *bottom;
	bool found;
	struct layer_own own;
	enum full_state state;
	bool preallocate;
	char base[LAYER_NAME_MAX]; /* "": none */
	char head[LAYER_NAME_MAX]; /* of a disk of now that has it; "": none */
};

static void find_goal(void *ctx, const struct vm *vm, const struct vm_disk *disk)
{
	struct finding *f = ctx;
	struct layer_own own;
	enum full_state state = look(f->store, vm->id, disk, &own);
	if (state == FULL_WAITS || strcmp(own.bottom, f->bottom) != 0)
		return;
	f->found = true;
	f->own = own;
	f->state = state;
	if (disk->full_base)
		snprintf(f->base, sizeof f->base, "%s", disk->full_base);
	if (disk >= vm->disks && disk < vm->disks + vm->nr_disks)
		snprintf(f->head, sizeof f->head, "%s", disk->layer);
	f->preallocate = f->preallocate || disk->preallocate;
}

static void find(struct store *store, const struct job *job, struct finding *ret)
{
	struct vm *vm = table_current(store, table_entry(store, job->vm_id));
	*ret = (struct finding){.store = store, .bottom = job->layer};
	if (vm)
		each_goal(vm, find_goal, ret);
	vm_put(vm);
}

static int pull_frozen(struct merge *m, struct reason *why)
{
	int err = merge_open_dest(m, why);
	if (!err)
		err = merge_pull(m, why);
	int close_err = merge_close_dest(m);
	return err ? err : close_err;
}

/* All that lies beneath becomes the layer's. */
static int pull_layer(struct store *store, struct job *job, const struct layer_own *own, struct reason *why)
{
	char name[1][LAYER_NAME_MAX];
	memcpy(name[0], own->bottom, LAYER_NAME_MAX);
	struct merge m = {.store = store, .job = job, .entry = table_entry(store, job->vm_id), .whole = true};
	m.run = (struct layer_run){.names = name, .nr = 1, .vm_id = job->vm_id, .is_head = own->is_head};
	int err = own->is_head ? merge_head(&m, why) : pull_frozen(&m, why);
	if (!err && heads_reopen_beneath(store, name, 1))
		store_event(store, NULL, "a disk over layer %s can't be opened anew: its source is kept open until the disk is closed", name[0]);
	return err;
}

/* Where the filesystem can't, it stays sparse. */
static int preallocate(struct store *store, struct job *job, const struct layer_own *own, struct reason *why)
{
	char name[1][LAYER_NAME_MAX];
	memcpy(name[0], own->bottom, LAYER_NAME_MAX);
	struct merge m = {.store = store, .job = job, .entry = table_entry(store, job->vm_id)};
	m.run = (struct layer_run){.names = name, .nr = 1, .vm_id = job->vm_id, .is_head = own->is_head};
	int err = own->is_head ? merge_preallocate_head(&m, why) : merge_preallocate(&m, why);
	if (err == -EOPNOTSUPP)
		store_event(store, NULL, "%s: its filesystem can't allocate space beforehand: it stays sparse", job->disk.path);
	return err == -EOPNOTSUPP ? 0 : err;
}

struct leaving {
	struct store *store;
	uint32_t vm_id;
	const char *bottom; /* the goals that are about it; NULL: that of LAYER alone */
	const char *layer;
	const char *base;
};

static bool leave_base_of(void *ctx, struct vm_disk *disk)
{
	const struct leaving *l = ctx;
	struct layer_own own;
	if (!disk->full_base || strcmp(disk->full_base, l->base) != 0)
		return false;
	if (l->layer ? strcmp(disk->layer, l->layer) != 0
		     : look(l->store, l->vm_id, disk, &own) == FULL_WAITS || strcmp(own.bottom, l->bottom) != 0)
		return false;
	free(take_ptr(disk->full_base));
	return true;
}

/* The goal stays, without the raw file. The caller holds the change lock. */
static int leave_base_locked(struct entry *entry, struct leaving *leaving, struct reason *why)
{
	auto_free char *path = layer_path(leaving->store, leaving->base);
	bool any = false;
	int err = change_goals(leaving->store, entry, leave_base_of, leaving, &any, why);
	if (!err && any)
		store_event(leaving->store, NULL, "%s is what another state of the disk is made into: this one becomes independent, and stays qcow2",
			    path ? path : leaving->base);
	return err;
}

/* It has become part of another disk. */
static int leave_base(struct store *store, const struct job *job, const struct finding *f, struct reason *why)
{
	struct entry *entry = table_entry(store, job->vm_id);
	struct leaving leaving = {.store = store, .vm_id = job->vm_id, .bottom = f->own.bottom, .base = f->base};
	pthread_mutex_lock(&entry->change);
	int err = leave_base_locked(entry, &leaving, why);
	pthread_mutex_unlock(&entry->change);
	return err ? err : MERGE_AGAIN;
}

struct sharing {
	const char *base;
	unsigned nr;
};

static void count_sharing(void *ctx, const struct vm_disk *disk)
{
	struct sharing *s = ctx;
	s->nr += disk->full_base && strcmp(disk->full_base, s->base) == 0;
}

void full_source_changed(struct store *store, struct entry *entry, const char *layer)
{
	struct vm *now = table_current(store, entry);
	for (size_t i = 0; now && i < now->nr_disks; i++) {
		const struct vm_disk *disk = &now->disks[i];
		struct sharing sharing = {.base = disk->full_base};
		if (strcmp(disk->layer, layer) != 0 || !disk->full_base)
			continue;
		vm_each_layer(now, count_sharing, &sharing);
		struct leaving leaving = {.store = store, .vm_id = now->id, .layer = layer, .base = disk->full_base};
		if (sharing.nr > 1)
			leave_base_locked(entry, &leaving, NULL);
	}
	vm_put(now);
}

/* The raw file is made, and comes beneath the layer in the place of what it is a copy of. */
static int base_layer(struct store *store, struct job *job, const struct finding *f, struct reason *why)
{
	char name[1][LAYER_NAME_MAX], source[FULL_SOURCE_MAX];
	int err = full_raw_make(store, job, f->own.bottom, f->base, f->preallocate, source, why);
	if (err == FULL_RAW_TAKEN)
		return leave_base(store, job, f, why);
	if (err)
		return err;
	memcpy(name[0], f->own.bottom, LAYER_NAME_MAX);
	struct merge m = {.store = store, .job = job, .entry = table_entry(store, job->vm_id), .source = source};
	m.run = (struct layer_run){.names = name, .nr = 1, .vm_id = job->vm_id, .is_head = f->own.is_head};
	memcpy(m.run.below, f->base, LAYER_NAME_MAX);
	err = f->own.is_head ? merge_exchange_head_base(&m, why) : merge_exchange_base(&m, why);
	if (!err)
		full_raw_forget(store, f->base);
	layers_unpin(store, f->base);
	if (!err && heads_reopen_beneath(store, name, 1))
		store_event(store, NULL, "a disk over layer %s can't be opened anew: its source is kept open until the disk is closed", name[0]);
	return err;
}

/* Where only the disk of now needs it, that becomes the raw file. */
static int push_into_base(struct store *store, struct job *job, const struct finding *f, struct reason *why)
{
	struct merge m = {.store = store, .job = job, .entry = table_entry(store, job->vm_id), .into_raw = true};
	int err = layers_begin_raw_run(store, f->head, f->base, &m.run);
	if (err)
		return err == -ENOENT ? 0 : err; /* it stays what the chain begins with */
	m.into = m.run.nr - 1;
	full_raw_forget(store, f->base);
	uint64_t total = 0;
	if (layer_allocated(store, f->head, &total) == 0) {
		atomic_store(&job->progress.done, 0);
		atomic_store(&job->progress.total, total);
	}
	err = merge_head(&m, why);
	layers_end_run(store, &m.run);
	return err;
}

/* Goals that are reached go from vm.xml. */
static int settle(struct store *store, const struct job *job, bool preallocated, struct reason *why)
{
	struct entry *entry = table_entry(store, job->vm_id);
	struct ending ending = {.store = store, .vm_id = job->vm_id, .layer = job->layer, .preallocated = preallocated};
	bool any = false;
	pthread_mutex_lock(&entry->change);
	int err = change_goals(store, entry, end_reached, &ending, &any, why);
	struct vm *now = err || !any ? NULL : table_current(store, entry);
	pthread_mutex_unlock(&entry->change);
	if (now)
		store_event(store, now->name, "disk %s depends on nothing any more but the VM's own layers (%s)", job->disk.file_name, job->disk.path);
	vm_put(now);
	return err == -ENOENT ? 0 : err;
}

/* Other files that aren't there may come back: a pool's, a device that isn't active. */
static bool is_source_gone(struct store *store, const char *layer)
{
	struct image *image = NULL;
	struct view *view = NULL;
	bool has_layer = layer_open_image(store, layer, &image, NULL) == 0;
	int err = has_layer ? layers_open_beneath(store, layer, &view, NULL) : 0;
	image_put(image);
	view_put(view);
	return err == -ENOENT;
}

/* What the disk reads from now on is anybody's guess, so it reads nothing. */
static void mark_lost(struct store *store, const struct job *job, const struct reason *why)
{
	struct entry *entry = table_entry(store, job->vm_id);
	pthread_mutex_lock(&entry->change);
	struct vm *now = table_current(store, entry);
	struct vm *next = now ? vm_copy(now) : NULL;
	for (size_t i = 0; next && i < next->nr_disks; i++) {
		struct layer_own own;
		struct vm_disk *disk = &next->disks[i];
		if (!disk->full || look(store, next->id, disk, &own) != FULL_TO_DO || strcmp(own.bottom, job->layer) != 0)
			continue;
		vm_disk_set_error(disk, -EIO, why->text);
		store_event(store, next->name, "disk %s can't be read any more: the source was deleted before all of it was copied: %s. What the disk itself holds is in %s",
			    disk->file_name, why->text, job->disk.path);
	}
	if (next && table_publish(store, entry, next))
		vm_put(next);
	pthread_mutex_unlock(&entry->change);
	vm_put(now);
}

static int attempt(struct store *store, struct job *job, struct reason *why)
{
	struct finding finding;
	find(store, job, &finding);
	if (!finding.found)
		return 0;
	int err = 0;
	if (finding.state == FULL_TO_DO)
		err = *finding.base ? base_layer(store, job, &finding, why) : pull_layer(store, job, &finding.own, why);
	if (!err && *finding.base)
		err = push_into_base(store, job, &finding, why);
	else if (!err && finding.preallocate)
		err = preallocate(store, job, &finding.own, why);
	return err ? err : settle(store, job, true, why);
}

static int run(struct store *store, struct job *job, struct reason *why)
{
	int err = MERGE_AGAIN;
	for (unsigned nr_again = 0; err == MERGE_AGAIN && nr_again < ATTEMPTS_MAX; nr_again++) {
		jobs_let_others_first(store, job);
		err = attempt(store, job, why);
	}
	if (err == -ENOENT && is_source_gone(store, job->layer)) {
		mark_lost(store, job, why);
		return -ESTALE;
	}
	if (err == MERGE_AGAIN)
		err = -EBUSY;
	layers_unlink_unneeded(store);
	if (!err || err == -ECANCELED)
		merges_plan(store); /* what was kept from being merged meanwhile */
	if (!err) /* a merge may have made another layer the one that it is about */
		full_plan(store);
	return err;
}

static void report(struct store *store, const struct job *job, int err, const struct reason *why)
{
	struct vm *vm = table_current(store, table_entry(store, job->vm_id));
	if (vm)
		store_event(store, vm->name, "disk %s: making it independent of %s failed: %s; it stays usable, and it is tried again", job->disk.file_name,
			    job->disk.pending_path ? job->disk.pending_path : "its source", *why->text ? why->text : strerror(-err));
	vm_put(vm);
}

static void describe(const struct job *job, struct strbuf *b)
{
	if (job->disk.pending_path)
		strbuf_addf(b, "source: %s\n", job->disk.pending_path);
	strbuf_addf(b, "target: %s\n", job->disk.path);
}

static int cancelled(struct store *store, uint32_t vm_id, const char *layer, struct reason *why)
{
	struct entry *entry = table_entry(store, vm_id);
	struct ending ending = {.store = store, .vm_id = vm_id, .bottom = layer};
	auto_free char *path = layer_path(store, layer);
	bool any = false;
	pthread_mutex_lock(&entry->change);
	int err = change_goals(store, entry, end_about, &ending, &any, why);
	struct vm *now = table_current(store, entry);
	if (!err && *ending.base)
		full_raw_drop(store, ending.base);
	pthread_mutex_unlock(&entry->change);
	const struct vm_disk *disk = now ? vm_disk_over_layer(now, layer) : NULL;
	/* A volume that isn't what was asked for is none. */
	bool is_volume = !err && any && disk && now->place == PLACE_POOLS;
	if (is_volume && (err = disk_remove(store, now, disk->file_name, why)) == 0)
		store_event(store, now->name, "volume %s is gone again: the job that made it was cancelled", disk->file_name);
	else if (!err && any && disk)
		store_event(store, now->name, "disk %s goes on depending on what it lies over (%s): the job that would have ended that was cancelled",
			    disk->file_name, path ? path : layer);
	vm_put(now);
	layers_unlink_unneeded(store);
	return err == -ENOENT ? 0 : err;
}

static const struct job_kind kind = {
	.verb = "flatten",
	.title = "flatten: all that the disk has from elsewhere becomes its own",
	.id_ending = "-flatten",
	.describe = describe,
	.run = run,
	.report = report,
	.cancelled = cancelled,
};
