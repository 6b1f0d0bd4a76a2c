#include "store/whole.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "store/found.h"

#define SNAPSHOTS_KEPT 30000u /* of all VMs together: some 20 MiB */
#define CHECK_MS       1000
#define CHECK_SHARE    10 /* what takes T to check is checked again after 10 T at the earliest */

struct whole {
	struct list link; /* in store->wholes, the last one looked at first */
	struct entry *entry;
	struct vm *vm;
	uint64_t hash; /* of the metadata it was made from */
	int64_t next_check_ms;
};

static int64_t now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* A VM without snapshots takes room, too. */
static size_t weight_of(const struct vm *vm)
{
	return vm->nr_snapshots + 1;
}

void whole_drop_locked(struct store *store, struct entry *entry)
{
	struct whole *whole = take_ptr(entry->whole);
	if (!whole)
		return;
	list_remove(&whole->link);
	store->wholes_weight -= weight_of(whole->vm);
	vm_put(whole->vm);
	free(whole);
}

static void keep_locked(struct store *store, struct whole *whole)
{
	whole_drop_locked(store, whole->entry);
	whole->entry->whole = whole;
	store->wholes_weight += weight_of(whole->vm);
	list_push(store->wholes.next, &whole->link);
	while (store->wholes_weight > SNAPSHOTS_KEPT && store->wholes.prev != &whole->link)
		whole_drop_locked(store, list_entry(store->wholes.prev, struct whole, link)->entry);
}

/* A reference to what is kept, if it needn't be checked; NULL: it does, or there is none. */
static struct vm *find_checked(struct store *store, struct entry *entry)
{
	int64_t now = now_ms();
	pthread_mutex_lock(&store->lock);
	struct whole *whole = entry->whole;
	struct vm *vm = whole && now < whole->next_check_ms ? vm_ref(whole->vm) : NULL;
	if (vm) {
		list_remove(&whole->link);
		list_push(store->wholes.next, &whole->link);
	}
	pthread_mutex_unlock(&store->lock);
	return vm;
}

/* After a listing of the metadata that was begun at that time and is done now. */
static int64_t next_check(int64_t begun)
{
	int64_t now = now_ms(), pause = (now - begun) * CHECK_SHARE;
	return now + (pause > CHECK_MS ? pause : CHECK_MS);
}

/* The same, if it was made from the same metadata. */
static struct vm *find_unchanged(struct store *store, struct entry *entry, uint64_t hash, int64_t next_check_ms)
{
	pthread_mutex_lock(&store->lock);
	struct whole *whole = entry->whole;
	struct vm *vm = whole && whole->hash == hash ? vm_ref(whole->vm) : NULL;
	if (vm)
		whole->next_check_ms = next_check_ms;
	pthread_mutex_unlock(&store->lock);
	return vm;
}

/* What is wrong is said when it is read, and again only when it has become something else. */
static void report(struct store *store, struct entry *entry, const struct vm *vm, char *complaint)
{
	uint64_t hash = complaint ? hash_text(HASH_START, complaint) : 0;
	bool is_new = hash && hash != entry->snapshots_complaint;
	entry->snapshots_complaint = hash;
	for (char *line = is_new ? complaint : NULL; line;) {
		char *end = strchrnul(line, '\n');
		store_event(store, vm->name, "%.*s", (int)(end - line), line);
		line = *end ? end + 1 : NULL;
	}
}

/* Gives VM its numbers, and keeps it if it was made from what the entry's description is still. Takes VM over on success. */
static int keep(struct store *store, struct entry *entry, const struct vm *brief, struct vm *vm, uint64_t hash, int64_t next_check_ms)
{
	struct whole *whole = malloc(sizeof *whole);
	if (!whole)
		return -ENOMEM;
	*whole = (struct whole){.entry = entry, .vm = vm, .hash = hash, .next_check_ms = next_check_ms};
	pthread_mutex_lock(&store->lock);
	int err = table_number_locked(entry, vm);
	if (!err && entry->vm == brief) {
		vm_ref(vm);
		keep_locked(store, take_ptr(whole));
	}
	pthread_mutex_unlock(&store->lock);
	free(whole);
	return err;
}

static struct vm *read_metadata(struct store *store, struct entry *entry, const struct vm *brief, const struct metadata_files *files,
				int64_t next_check_ms)
{
	struct file_refs refs = {0};
	struct vm *vm = NULL;
	auto_free char *complaint = NULL;
	int err = libvirt_read_snapshots(store, brief, files, &vm, &refs, &complaint);
	file_refs_done(&refs);
	if (err)
		return NULL;
	report(store, entry, vm, complaint);
	if (keep(store, entry, brief, vm, files->hash, next_check_ms))
		vm_put(take_ptr(vm));
	return vm;
}

/* The caller holds entry->change: one reads, the others wait for it. */
static struct vm *look(struct store *store, struct entry *entry)
{
	struct vm *brief = table_current(store, entry);
	if (!brief || !brief->is_brief)
		return brief;
	struct metadata_files files = {0};
	int64_t begun = now_ms();
	struct vm *vm = NULL;
	if (metadata_list(store, brief, &files) == 0) {
		int64_t next_check_ms = next_check(begun);
		vm = find_unchanged(store, entry, files.hash, next_check_ms);
		if (!vm)
			vm = read_metadata(store, entry, brief, &files, next_check_ms);
	}
	metadata_files_done(&files);
	vm_put(brief);
	return vm;
}

struct vm *whole_get(struct store *store, struct vm *vm)
{
	if (!vm || !vm->is_brief)
		return vm;
	struct entry *entry = table_entry(store, vm->id);
	vm_put(vm);
	struct vm *whole = find_checked(store, entry);
	if (whole)
		return whole;
	pthread_mutex_lock(&entry->change);
	whole = find_checked(store, entry); /* somebody may have looked meanwhile */
	if (!whole)
		whole = look(store, entry);
	pthread_mutex_unlock(&entry->change);
	return whole;
}
