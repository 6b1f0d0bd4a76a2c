/* Which layers of a chain are one VM's own. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "store/layers_priv.h"
#include "store/store_internal.h"
#include "store/vm_make.h"

static void mark_elsewhere(void *ctx, const struct vm_disk *disk)
{
	struct layers *layers = ctx;
	for (struct layer_row *row = layer_row_find_locked(layers, disk->layer); row && !row->elsewhere;) {
		row->elsewhere = true;
		row = *row->beneath ? layer_row_find_locked(layers, row->beneath) : NULL;
	}
}

struct naming {
	struct layers *layers;
	const struct vm *vm;
};

static void mark_named(void *ctx, const struct vm_disk *disk)
{
	const struct naming *n = ctx;
	const struct vm *vm = n->vm;
	struct layer_row *row = layer_row_find_locked(n->layers, disk->layer);
	if (!row)
		return;
	row->named = true;
	row->is_head = row->is_head || (disk >= vm->disks && disk < vm->disks + vm->nr_disks);
	row->kept = row->kept || (vm->saved && disk >= vm->saved->disks && disk < vm->saved->disks + vm->saved->nr_disks);
}

/* Fills in of the scratch: named, is_head and kept as far as VM is concerned, and elsewhere. */
static void mark_locked(struct store *store, uint32_t vm_id)
{
	struct layers *layers = &store->layers;
	for_each_row(layers, row)
		row->named = row->is_head = row->kept = row->elsewhere = false;
	for (size_t e = 0; e < store->nr_entries; e++) {
		const struct entry *entry = store->entries[e];
		struct naming naming = {layers, entry->vm};
		if (entry->vm && entry->id == vm_id)
			vm_each_layer(entry->vm, mark_named, &naming);
		else if (entry->vm)
			vm_each_layer(entry->vm, mark_elsewhere, layers);
	}
}

static bool is_own(const struct layer_row *row)
{
	return row->named || (!row->elsewhere && layer_format(row->name) == IMAGE_QCOW2);
}

static int find_locked(const struct layers *layers, const char *name, struct layer_own *ret)
{
	const struct layer_row *bottom = NULL;
	size_t nr = 0;
	/* A damaged store may have a chain that comes back to its top. */
	for (const struct layer_row *row = layer_row_find_locked(layers, name); row && is_own(row) && nr++ < layers->nr_rows;
	     row = *row->beneath ? layer_row_find_locked(layers, row->beneath) : NULL)
		bottom = row;
	if (!bottom)
		return -ENOENT;
	*ret = (struct layer_own){.is_head = bottom->is_head, .kept = bottom->kept};
	memcpy(ret->bottom, bottom->name, sizeof ret->bottom);
	memcpy(ret->beneath, bottom->beneath, sizeof ret->beneath);
	return 0;
}

int layers_find_own(struct store *store, uint32_t vm_id, const char *name, struct layer_own *ret)
{
	pthread_mutex_lock(&store->lock);
	mark_locked(store, vm_id);
	int err = find_locked(&store->layers, name, ret);
	pthread_mutex_unlock(&store->lock);
	return err;
}

bool layers_is_own(struct store *store, uint32_t vm_id, const char *top, const char *name)
{
	const struct layers *layers = &store->layers;
	bool found = false;
	size_t nr = 0;
	pthread_mutex_lock(&store->lock);
	mark_locked(store, vm_id);
	for (const struct layer_row *row = layer_row_find_locked(layers, top); row && is_own(row) && !found && nr++ < layers->nr_rows;
	     row = *row->beneath ? layer_row_find_locked(layers, row->beneath) : NULL)
		found = strcmp(row->name, name) == 0;
	pthread_mutex_unlock(&store->lock);
	return found;
}
