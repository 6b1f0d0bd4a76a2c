/* Which VMs there are: their numbers, their names, their descriptions. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store/found.h"
#include "store/store_internal.h"
#include "store/whole.h"

#define VM_ID_MAX	((1u << VM_ID_BITS) - 1)
#define SNAPSHOT_ID_MAX ((1u << SNAPSHOT_ID_BITS) - 1)
#define DISK_ID_MAX	((1u << DISK_ID_BITS) - 1)

static struct entry *entry_new(const char *key)
{
	struct entry *entry = calloc(1, sizeof *entry);
	if (!entry)
		return NULL;
	entry->key = strdup(key);
	if (!entry->key) {
		free(entry);
		return NULL;
	}
	pthread_mutex_init(&entry->change, NULL);
	return entry;
}

static void entry_free(struct entry *entry)
{
	vm_put(entry->vm);
	intern_done(&entry->snapshot_names);
	intern_done(&entry->disk_names);
	pthread_mutex_destroy(&entry->change);
	free(entry->key);
	free(entry);
}

static struct entry *table_intern_locked(struct store *store, const char *key)
{
	uint32_t id = intern_lookup(&store->keys, key);
	if (id)
		return store->entries[id - 1];
	if (store->nr_entries >= VM_ID_MAX ||
	    mem_grow(&store->entries, &store->cap_entries, store->nr_entries + 1, sizeof *store->entries) < 0)
		return NULL;
	struct entry *entry = entry_new(key);
	if (!entry)
		return NULL;
	entry->id = intern_add(&store->keys, key);
	if (!entry->id) {
		entry_free(entry);
		return NULL;
	}
	store->entries[store->nr_entries++] = entry;
	return entry;
}

struct entry *table_intern(struct store *store, const char *key)
{
	pthread_mutex_lock(&store->lock);
	struct entry *entry = table_intern_locked(store, key);
	pthread_mutex_unlock(&store->lock);
	return entry;
}

struct entry *table_entry(struct store *store, uint32_t vm_id)
{
	pthread_mutex_lock(&store->lock);
	struct entry *entry = vm_id && vm_id <= store->nr_entries ? store->entries[vm_id - 1] : NULL;
	pthread_mutex_unlock(&store->lock);
	return entry;
}

struct vm *table_current(struct store *store, struct entry *entry)
{
	pthread_mutex_lock(&store->lock);
	struct vm *vm = entry->vm ? vm_ref(entry->vm) : NULL;
	pthread_mutex_unlock(&store->lock);
	return vm;
}

/* Whether a disk of VM has the number already. */
static bool disk_id_in_use(const struct vm *vm, uint32_t id)
{
	if (!vm)
		return false;
	for (size_t i = 0; i < vm->nr_disks; i++)
		if (vm->disks[i].id == id)
			return true;
	for (size_t s = 0; s < vm->nr_snapshots; s++)
		for (size_t i = 0; i < vm->snapshots[s]->nr_disks; i++)
			if (vm->snapshots[s]->disks[i].id == id)
				return true;
	return false;
}

/* Copying programs make scratch files of ever new names: once all numbers have been used, the one that was given up longest ago
 * gets a new meaning. */
static uint32_t disk_id_recycle(struct entry *entry, const struct vm *vm, const char *name)
{
	for (uint32_t tries = 0; tries < DISK_ID_MAX; tries++) {
		uint32_t id = entry->next_reuse++ % DISK_ID_MAX + 1;
		if (!disk_id_in_use(vm, id) && !disk_id_in_use(entry->vm, id))
			return intern_reuse(&entry->disk_names, id, name) ? 0 : id;
	}
	return 0;
}

static int disks_number(struct entry *entry, const struct vm *vm, struct vm_disk *disks, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		const char *name = disks[i].file_name;
		disks[i].id = intern_lookup(&entry->disk_names, name);
		if (!disks[i].id && entry->disk_names.nr_names < DISK_ID_MAX)
			disks[i].id = intern_add(&entry->disk_names, name);
		else if (!disks[i].id)
			disks[i].id = disk_id_recycle(entry, vm, name);
		if (!disks[i].id)
			return -ENOSPC;
	}
	return 0;
}

static void disks_unnumber(struct vm_disk *disks, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		disks[i].id = 0;
}

int table_number_locked(struct entry *entry, struct vm *vm)
{
	vm->id = entry->id;
	disks_unnumber(vm->disks, vm->nr_disks);
	int err = disks_number(entry, vm, vm->disks, vm->nr_disks);
	for (size_t i = 0; !err && i < vm->nr_snapshots; i++) {
		struct vm_snapshot *snapshot = vm->snapshots[i];
		if (vm->kind == VM_MANAGED && snapshot->id)
			continue; /* shared with an earlier description, which others read */
		snapshot->id = intern_add(&entry->snapshot_names, vm->kind == VM_MANAGED ? snapshot->uuid : snapshot->name);
		if (!snapshot->id || snapshot->id > SNAPSHOT_ID_MAX)
			return -ENOSPC;
		disks_unnumber(snapshot->disks, snapshot->nr_disks);
		err = disks_number(entry, vm, snapshot->disks, snapshot->nr_disks);
	}
	return err;
}

/* "/": no disk is called that. */
int table_renumber_disk(struct store *store, struct entry *entry, const char *file_name)
{
	char nobody[16];
	pthread_mutex_lock(&store->lock);
	uint32_t id = intern_lookup(&entry->disk_names, file_name);
	snprintf(nobody, sizeof nobody, "/%u", id);
	int err = id ? intern_reuse(&entry->disk_names, id, nobody) : 0;
	pthread_mutex_unlock(&store->lock);
	return err;
}

int table_publish_locked(struct store *store, struct entry *entry, struct vm *vm)
{
	int err = table_number_locked(entry, vm);
	if (err)
		return err;
	if (!entry->vm || entry->vm->place != vm->place || strcmp(entry->vm->name, vm->name) != 0)
		store->index_stale = true;
	whole_drop_locked(store, entry);
	vm_put(entry->vm);
	entry->vm = vm;
	return 0;
}

int table_publish(struct store *store, struct entry *entry, struct vm *vm)
{
	pthread_mutex_lock(&store->lock);
	int err = table_publish_locked(store, entry, vm);
	pthread_mutex_unlock(&store->lock);
	return err;
}

void table_withdraw_locked(struct store *store, struct entry *entry)
{
	if (entry->vm && entry->vm->kind == VM_MANAGED) {
		intern_done(&entry->snapshot_names);
		intern_done(&entry->disk_names);
	}
	whole_drop_locked(store, entry);
	vm_put(take_ptr(entry->vm));
	store->index_stale = true;
}

void table_withdraw(struct store *store, struct entry *entry)
{
	pthread_mutex_lock(&store->lock);
	table_withdraw_locked(store, entry);
	pthread_mutex_unlock(&store->lock);
}

/* --- names ---------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
	return strcmp((*(struct entry *const *)a)->vm->name, (*(struct entry *const *)b)->vm->name);
}

static int index_add(struct vm_index *index, struct entry *entry)
{
	if (mem_grow(&index->entries, &index->cap_entries, index->nr_entries + 1, sizeof *index->entries) < 0)
		return -ENOMEM;
	index->entries[index->nr_entries++] = entry;
	return 0;
}

/* While names stay as they are, an entry that gets another description keeps its position. */
static int index_refresh_locked(struct store *store)
{
	if (!store->index_stale)
		return 0;
	for (int place = 0; place < NR_PLACES; place++)
		store->index[place].nr_entries = 0;
	for (size_t i = 0; i < store->nr_entries; i++) {
		struct entry *entry = store->entries[i];
		if (entry->vm && index_add(&store->index[entry->vm->place], entry) < 0)
			return -ENOMEM;
	}
	for (int place = 0; place < NR_PLACES; place++)
		if (store->index[place].nr_entries)
			qsort(store->index[place].entries, store->index[place].nr_entries, sizeof(struct entry *), by_name);
	store->index_stale = false;
	return 0;
}

static struct vm *table_find_locked(struct store *store, enum vm_place place, const char *name)
{
	struct vm vm = {.name = (char *)(uintptr_t)name};
	struct entry key = {.vm = &vm}, *key_ptr = &key;
	const struct vm_index *index = &store->index[place];
	if (index_refresh_locked(store) < 0 || !index->nr_entries)
		return NULL;
	struct entry **found = bsearch(&key_ptr, index->entries, index->nr_entries, sizeof key_ptr, by_name);
	return found ? (*found)->vm : NULL;
}

struct vm *table_find(struct store *store, enum vm_place place, const char *name)
{
	pthread_mutex_lock(&store->lock);
	struct vm *vm = table_find_locked(store, place, name);
	if (vm)
		vm_ref(vm);
	pthread_mutex_unlock(&store->lock);
	return vm;
}

int table_list(struct store *store, enum vm_place place, struct vm ***ret, size_t *ret_nr)
{
	struct vm **vms = NULL;
	pthread_mutex_lock(&store->lock);
	int err = index_refresh_locked(store);
	size_t nr = store->index[place].nr_entries;
	if (!err && !(vms = mem_new_array(nr, sizeof *vms)))
		err = -ENOMEM;
	for (size_t i = 0; !err && i < nr; i++)
		vms[i] = vm_ref(store->index[place].entries[i]->vm);
	pthread_mutex_unlock(&store->lock);
	if (err)
		return err;
	*ret = vms;
	*ret_nr = nr;
	return 0;
}

int table_list_from(struct store *store, enum vm_place place, uint32_t first_id, size_t max, struct vm ***ret, size_t *ret_nr)
{
	struct vm **vms = mem_new_array(max, sizeof *vms);
	size_t nr = 0;
	if (!vms)
		return -ENOMEM;
	pthread_mutex_lock(&store->lock);
	for (size_t i = first_id ? first_id - 1 : 0; i < store->nr_entries && nr < max; i++) {
		struct vm *vm = store->entries[i]->vm;
		if (vm && vm->place == place)
			vms[nr++] = vm_ref(vm);
	}
	pthread_mutex_unlock(&store->lock);
	*ret = vms;
	*ret_nr = nr;
	return 0;
}

bool table_is_reserved_locked(struct store *store, enum vm_place place, const char *name)
{
	for (const struct reservation *r = store->reservations; r; r = r->next)
		if (r->place == place && strcmp(r->name, name) == 0)
			return true;
	return false;
}

int table_reserve(struct store *store, struct reservation *r, enum vm_place place, const char *name)
{
	*r = (struct reservation){.place = place, .name = name};
	if (place == PLACE_VMS)
		found_refresh(store);
	pthread_mutex_lock(&store->lock);
	int err = 0;
	if (table_find_locked(store, place, name) || table_is_reserved_locked(store, place, name)) {
		err = -EEXIST;
	} else {
		r->next = store->reservations;
		store->reservations = r;
	}
	pthread_mutex_unlock(&store->lock);
	return err;
}

void table_release(struct store *store, struct reservation *r)
{
	pthread_mutex_lock(&store->lock);
	for (struct reservation **at = &store->reservations; *at; at = &(*at)->next) {
		if (*at == r) {
			*at = r->next;
			break;
		}
	}
	pthread_mutex_unlock(&store->lock);
}

void table_done(struct store *store)
{
	for (size_t i = 0; i < store->nr_entries; i++) {
		whole_drop_locked(store, store->entries[i]);
		entry_free(store->entries[i]);
	}
	free(store->entries);
	intern_done(&store->keys);
	for (int place = 0; place < NR_PLACES; place++)
		free(store->index[place].entries);
}
