/* Who needs which layer, and which of them can become one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store/layers_priv.h"
#include "store/store_internal.h"
#include "store/vm_make.h"

static void count_children_locked(struct layers *layers)
{
	for_each_row(layers, row) {
		struct layer_row *beneath = row->needed && *row->beneath ? layer_row_find_locked(layers, row->beneath) : NULL;
		if (!beneath)
			continue;
		beneath->nr_children++;
		beneath->child = row;
	}
}

static size_t list_uses_locked(struct layers *layers, struct layer_use *ret)
{
	size_t nr = 0;
	for_each_row(layers, row) {
		if (!row->needed)
			continue;
		struct layer_use *use = &ret[nr++];
		*use = (struct layer_use){.nr_names = row->nr_names, .nr_children = row->nr_children};
		memcpy(use->name, row->name, LAYER_NAME_MAX);
		memcpy(use->beneath, row->beneath, LAYER_NAME_MAX);
		if (row->child)
			memcpy(use->child, row->child->name, LAYER_NAME_MAX);
	}
	return nr;
}

int layers_list_uses(struct store *store, struct layer_use **ret, size_t *ret_nr)
{
	pthread_mutex_lock(&store->lock);
	layers_mark_locked(store);
	count_children_locked(&store->layers);
	*ret = mem_new_array(store->layers.nr_rows + 1, sizeof **ret);
	*ret_nr = *ret ? list_uses_locked(&store->layers, *ret) : 0;
	pthread_mutex_unlock(&store->lock);
	return *ret ? 0 : -ENOMEM;
}

static bool is_mergeable(const struct layer_row *row)
{
	return row->needed && !row->named && row->nr_children == 1 && layer_format(row->name) == IMAGE_QCOW2;
}

/* The mergeable layers below TOP, which isn't one. A pin without a VM, or a head that is open but no disk any more, is about to go; the state
 * before a preview may be opened for writing at any moment. */
static int run_below_locked(const struct layers *layers, const struct layer_row *top, struct layer_run *ret)
{
	size_t cap = 0;
	*ret = (struct layer_run){.vm_id = top->vm_id, .is_head = top->is_head};
	if (!top->needed || !top->vm_id || top->kept || is_mergeable(top) || layer_format(top->name) != IMAGE_QCOW2)
		return -ENOENT;
	/* A damaged store may have a chain that comes back to its top. */
	for (const struct layer_row *row = top; row && ret->nr < layers->nr_rows && (row == top || is_mergeable(row));
	     row = *row->beneath ? layer_row_find_locked(layers, row->beneath) : NULL) {
		if (mem_grow(&ret->names, &cap, ret->nr + 1, sizeof *ret->names) < 0) {
			layer_run_done(ret);
			return -ENOMEM;
		}
		memcpy(ret->names[ret->nr++], row->name, LAYER_NAME_MAX);
		memcpy(ret->below, row->beneath, LAYER_NAME_MAX);
	}
	if (ret->nr > 1)
		return 0;
	layer_run_done(ret);
	return -ENOENT;
}

void layer_run_done(struct layer_run *run)
{
	free(run->names);
	*run = (struct layer_run){0};
}

static int find_runs_locked(struct store *store, struct layer_run **ret, size_t *ret_nr)
{
	struct layers *layers = &store->layers;
	size_t cap = 0;
	layers_mark_locked(store);
	count_children_locked(layers);
	for_each_row(layers, row) {
		struct layer_run run;
		const struct layer_row *beneath = *row->beneath ? layer_row_find_locked(layers, row->beneath) : NULL;
		if (row->cancelled || !beneath || beneath->merging)
			continue;
		int err = run_below_locked(layers, row, &run);
		if (!err && mem_grow(ret, &cap, *ret_nr + 1, sizeof **ret) < 0) {
			layer_run_done(&run);
			err = -ENOMEM;
		}
		if (err == -ENOMEM)
			return err;
		if (!err)
			(*ret)[(*ret_nr)++] = run;
	}
	return 0;
}

int layers_find_runs(struct store *store, struct layer_run **ret, size_t *ret_nr)
{
	*ret = NULL;
	*ret_nr = 0;
	pthread_mutex_lock(&store->lock);
	int err = store->writable && !store->layers.unknown ? find_runs_locked(store, ret, ret_nr) : 0;
	pthread_mutex_unlock(&store->lock);
	return err;
}

static void set_merging_locked(struct layers *layers, const struct layer_run *run, bool merging)
{
	for (size_t i = 1; i < run->nr; i++) {
		struct layer_row *row = layer_row_find_locked(layers, run->names[i]);
		if (row)
			row->merging = merging;
	}
}

int layers_begin_run(struct store *store, const char *name, struct layer_run *ret)
{
	struct layers *layers = &store->layers;
	pthread_mutex_lock(&store->lock);
	layers_mark_locked(store);
	count_children_locked(layers);
	struct layer_row *top = layer_row_find_locked(layers, name);
	int err = top && !layers->unknown ? run_below_locked(layers, top, ret) : -ENOENT;
	if (!err) {
		top->nr_pins++;
		set_merging_locked(layers, ret, true);
	}
	pthread_mutex_unlock(&store->lock);
	return err;
}

/* A raw one is at the end of it alone. */
static int raw_run_locked(const struct layers *layers, const struct layer_row *top, const char *last, struct layer_run *ret)
{
	size_t cap = 0;
	*ret = (struct layer_run){0};
	if (!top || !top->is_head || top->nr_names != 1 || top->nr_children)
		return -ENOENT;
	*ret = (struct layer_run){.vm_id = top->vm_id, .is_head = true};
	for (const struct layer_row *row = top; row && ret->nr < layers->nr_rows; row = layer_row_find_locked(layers, row->beneath)) {
		if (row != top && (row->named || row->nr_children != 1))
			break;
		if (mem_grow(&ret->names, &cap, ret->nr + 1, sizeof *ret->names) < 0) {
			layer_run_done(ret);
			return -ENOMEM;
		}
		memcpy(ret->names[ret->nr++], row->name, LAYER_NAME_MAX);
		if (strcmp(row->name, last) == 0)
			return 0;
	}
	layer_run_done(ret);
	return -ENOENT;
}

int layers_begin_raw_run(struct store *store, const char *name, const char *last, struct layer_run *ret)
{
	struct layers *layers = &store->layers;
	pthread_mutex_lock(&store->lock);
	layers_mark_locked(store);
	count_children_locked(layers);
	struct layer_row *top = layer_row_find_locked(layers, name);
	int err = layers->unknown ? -ENOENT : raw_run_locked(layers, top, last, ret);
	if (!err) {
		top->nr_pins++;
		set_merging_locked(layers, ret, true);
	}
	pthread_mutex_unlock(&store->lock);
	return err;
}

int layers_reserve_run(struct layer_run *run)
{
	size_t cap = run->nr;
	return mem_grow(&run->names, &cap, run->nr + 1, sizeof *run->names);
}

void layers_grow_run(struct store *store, struct layer_run *run, const char *moved)
{
	memmove(run->names + 2, run->names + 1, (run->nr - 1) * sizeof *run->names);
	run->nr++;
	snprintf(run->names[1], LAYER_NAME_MAX, "%s", moved);
	pthread_mutex_lock(&store->lock);
	struct layer_row *top = layer_row_find_locked(&store->layers, run->names[0]);
	struct layer_row *row = layer_row_find_locked(&store->layers, moved);
	layer_row_set_beneath(row, top->beneath);
	layer_row_set_beneath(top, moved);
	row->nr_pins--;
	set_merging_locked(&store->layers, run, true);
	pthread_mutex_unlock(&store->lock);
}

void layers_spoil_run(struct store *store, const struct layer_run *run, size_t into)
{
	pthread_mutex_lock(&store->lock);
	for (size_t i = 1; i <= into; i++) {
		struct layer_row *row = layer_row_find_locked(&store->layers, run->names[i]);
		if (row)
			row->spoiled = true;
	}
	pthread_mutex_unlock(&store->lock);
}

void layers_become_top(struct store *store, const char *name)
{
	pthread_mutex_lock(&store->lock);
	struct layer_row *row = layer_row_find_locked(&store->layers, name);
	if (row)
		row->spoiled = row->merging = false;
	store->layers.nr_merges++;
	pthread_mutex_unlock(&store->lock);
}

bool layers_run_is_current(struct store *store, const struct layer_run *run)
{
	pthread_mutex_lock(&store->lock);
	const struct layer_row *top = layer_row_find_locked(&store->layers, run->names[0]);
	bool is_current = top && strcmp(top->beneath, run->names[1]) == 0;
	pthread_mutex_unlock(&store->lock);
	return is_current;
}

void layers_close_run(struct store *store, const struct layer_run *run, size_t into)
{
	pthread_mutex_lock(&store->lock);
	struct layer_row *row = layer_row_find_locked(&store->layers, run->names[into]);
	if (row)
		layer_row_set_beneath(row, run->below);
	store->layers.nr_merges++;
	pthread_mutex_unlock(&store->lock);
}

uint64_t layers_nr_merges(struct store *store)
{
	pthread_mutex_lock(&store->lock);
	uint64_t nr = store->layers.nr_merges;
	pthread_mutex_unlock(&store->lock);
	return nr;
}

void layers_end_run(struct store *store, struct layer_run *run)
{
	pthread_mutex_lock(&store->lock);
	set_merging_locked(&store->layers, run, false);
	pthread_mutex_unlock(&store->lock);
	layers_unpin(store, run->names[0]);
	layer_run_done(run);
}

void layers_keep_all(struct store *store)
{
	pthread_mutex_lock(&store->lock);
	store->layers.unknown = true;
	pthread_mutex_unlock(&store->lock);
}

void layers_cancel_run(struct store *store, const char *name)
{
	pthread_mutex_lock(&store->lock);
	struct layer_row *row = layer_row_find_locked(&store->layers, name);
	if (row)
		row->cancelled = true;
	pthread_mutex_unlock(&store->lock);
}

/* Each row once, however many chains go through it. */
static void resume_chain_locked(struct layers *layers, const char *name)
{
	for (struct layer_row *row = layer_row_find_locked(layers, name); row && !row->needed; row = layer_row_find_locked(layers, row->beneath)) {
		row->needed = true;
		row->cancelled = false;
	}
}

static void resume_disk(void *ctx, const struct vm_disk *disk)
{
	resume_chain_locked(ctx, disk->layer);
}

void layers_resume_runs(struct store *store, const struct vm *vm)
{
	pthread_mutex_lock(&store->lock);
	for_each_row(&store->layers, row)
		row->needed = false;
	vm_each_layer(vm, resume_disk, &store->layers);
	pthread_mutex_unlock(&store->lock);
}
