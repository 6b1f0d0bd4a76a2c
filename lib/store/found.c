#include "store/found.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "store/image_facts.h"
#include "store/store_internal.h"

#define PAUSE_NS 20000000 /* between two looks in the background */
#define REFRESH_MS    1000
#define PATIENCE_MS   3000 /* for a look at SOURCE: a disk may not answer */
#define RETRY_MS      5000 /* what couldn't be read is tried again */
#define REFRESH_SHARE 10   /* a look that takes T is repeated after 10 T at the earliest */
#define MANY_VMS      100
#define MANY_IMAGES   2000
#define METADATA_SHARE 5000u /* this many snapshots' metadata are read in one look, for what they name */

struct found {
	pthread_mutex_t refresh;
	/* protected by refresh */
	struct source source;
	struct found_vm *vms;
	size_t nr_vms;
	struct image_facts *facts;
	uint64_t nr_looks;
	int64_t retry_ms; /* of the monotonic clock: the next look reads what couldn't be read; 0: there is nothing */
	bool needs_snapshot_refs; /* there are images that perhaps only snapshots name */

	atomic_int_fast64_t next_ms; /* of the monotonic clock: no look before */
	atomic_bool looked;	      /* once at least: the domains are there to see */
	pthread_mutex_t first_lock;
	pthread_cond_t first_done; /* looked has become true */
	atomic_bool incomplete;   /* more metadata are to be read: see METADATA_SHARE */
	atomic_bool ending;
	bool started;
	pthread_t thread;

	pthread_mutex_t ask_lock;
	pthread_cond_t asked_cond, done_cond;
	/* protected by ask_lock */
	bool asked, busy; /* for a look; with one */
	uint64_t nr_done;
};

/* --- small things ------------------------------------------------------------------------------------------------------- */

int found_new(struct found **ret)
{
	struct found *found = calloc(1, sizeof *found);
	if (!found)
		return -ENOMEM;
	pthread_mutex_init(&found->refresh, NULL);
	pthread_mutex_init(&found->first_lock, NULL);
	pthread_cond_init(&found->first_done, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&found->ask_lock, NULL);
	pthread_cond_init(&found->asked_cond, &attr);
	pthread_cond_init(&found->done_cond, &attr);
	pthread_condattr_destroy(&attr);
	int err = image_facts_new(&found->facts);
	if (err)
		found_free(found);
	else
		*ret = found;
	return err;
}

static void vms_free(struct found_vm *vms, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		found_vm_done(&vms[i]);
	free(vms);
}

void found_free(struct found *found)
{
	if (!found)
		return;
	pthread_mutex_lock(&found->ask_lock);
	atomic_store(&found->ending, true);
	pthread_cond_broadcast(&found->asked_cond);
	pthread_mutex_unlock(&found->ask_lock);
	if (found->started)
		pthread_join(found->thread, NULL);
	vms_free(found->vms, found->nr_vms);
	source_done(&found->source);
	image_facts_free(found->facts);
	pthread_cond_destroy(&found->done_cond);
	pthread_cond_destroy(&found->asked_cond);
	pthread_mutex_destroy(&found->ask_lock);
	pthread_cond_destroy(&found->first_done);
	pthread_mutex_destroy(&found->first_lock);
	pthread_mutex_destroy(&found->refresh);
	free(found);
}

/* --- reading ------------------------------------------------------------------------------------------------------------------ */

struct look {
	struct store *store;
	struct found *found;
	struct source source;
	struct found_vm *vms;
	size_t nr_vms, cap_vms;
};

/* The libvirt VMs come first and are in order of path, as SOURCE's files are. */
static struct found_vm *find_old_libvirt(struct found *found, size_t *at, const char *path)
{
	while (*at < found->nr_vms && (!found->vms[*at].path || strcmp(found->vms[*at].path, path) < 0))
		++*at;
	struct found_vm *old = *at < found->nr_vms ? &found->vms[*at] : NULL;
	return old && old->vm && old->vm->kind == VM_FOUND_LIBVIRT && strcmp(old->path, path) == 0 ? old : NULL;
}

/* A domain of this look that wasn't in the last one as it is now. */
struct new_domain {
	struct source_file *file;
	size_t vm; /* its place in the list */
	int err;
};

struct reading {
	struct look *look;
	struct new_domain *domains;
	size_t nr_domains, cap_domains;
};

/* And that was told. */
static bool was_unread(const struct look *look, const struct source_file *file)
{
	const struct source_file *was = source_find(&look->found->source, file->path);
	return was && was->stamp == file->stamp && was->kind == SOURCE_UNREAD;
}

/* Of many at a time. */
static void read_domain(void *ctx, size_t i)
{
	struct reading *reading = ctx;
	struct new_domain *domain = &reading->domains[i];
	struct store *store = reading->look->store;
	struct found_vm *vm = &reading->look->vms[domain->vm];
	struct reason why = {0};
	vm->path = strdup(domain->file->path);
	domain->err = vm->path ? libvirt_read(store, domain->file, vm, &why) : -ENOMEM;
	if (domain->err && domain->err != -ENOMEM && !was_unread(reading->look, domain->file))
		store_event(store, NULL, "a VM isn't shown: %s", *why.text ? why.text : strerror(-domain->err));
}

/* Takes those out of the list that can't be read. */
static int drop_failed(struct reading *reading)
{
	struct look *look = reading->look;
	size_t kept = 0;
	for (size_t i = 0; i < reading->nr_domains; i++) {
		if (reading->domains[i].err == -ENOMEM)
			return -ENOMEM;
		if (reading->domains[i].err) {
			/* Until it changes, or is tried again. */
			reading->domains[i].file->kind = source_error_may_pass(reading->domains[i].err) ? SOURCE_UNREAD : SOURCE_OTHER;
			found_vm_done(&look->vms[reading->domains[i].vm]);
		}
	}
	for (size_t i = 0; i < look->nr_vms; i++)
		if (look->vms[i].vm)
			look->vms[kept++] = look->vms[i];
	look->nr_vms = kept;
	return 0;
}

/* Takes the domain over from the last look, or notes that it is to be read. */
static int add_domain(struct reading *reading, struct source_file *file, size_t *old_at)
{
	struct look *look = reading->look;
	if (mem_grow(&look->vms, &look->cap_vms, look->nr_vms + 1, sizeof *look->vms) < 0)
		return -ENOMEM;
	struct found_vm *made = &look->vms[look->nr_vms];
	struct found_vm *old = find_old_libvirt(look->found, old_at, file->path);
	if (old && old->hash == file->stamp) {
		*made = *old;
		/* The copy keeps the list in order for those that follow. */
		*old = (struct found_vm){.path = strdup(made->path)};
	} else {
		if (mem_grow(&reading->domains, &reading->cap_domains, reading->nr_domains + 1, sizeof *reading->domains) < 0)
			return -ENOMEM;
		reading->domains[reading->nr_domains++] = (struct new_domain){.file = file, .vm = look->nr_vms};
		*made = (struct found_vm){.hash = file->stamp, .fresh = true};
	}
	look->nr_vms++;
	return 0;
}

static int look_at_domains(struct look *look)
{
	struct reading reading = {.look = look};
	size_t old_at = 0;
	int err = 0;
	for (size_t i = 0; !err && i < look->source.nr_files; i++)
		if (look->source.files[i].kind == SOURCE_DOMAIN)
			err = add_domain(&reading, &look->source.files[i], &old_at);
	if (!err) {
		parallel_for(reading.nr_domains, read_domain, &reading);
		err = drop_failed(&reading);
	}
	free(reading.domains);
	return err;
}

/* Appends what REFS holds, borrowed. */
static int borrow_refs(struct file_refs *to, const struct file_refs *refs)
{
	if (!refs->nr_refs)
		return 0;
	if (mem_grow(&to->refs, &to->cap_refs, to->nr_refs + refs->nr_refs, sizeof *to->refs) < 0)
		return -ENOMEM;
	memcpy(to->refs + to->nr_refs, refs->refs, refs->nr_refs * sizeof *to->refs);
	to->nr_refs += refs->nr_refs;
	return 0;
}

/* What the snapshots of VM name. *BUDGET: how many more metadata are to be read in this look. */
static int read_snapshot_refs(struct look *look, struct found_vm *vm, size_t *budget)
{
	struct metadata_files files = {0};
	struct vm *whole = NULL;
	auto_free char *complaint = NULL;
	file_refs_done(&vm->snapshot_refs);
	vm->snapshot_refs_stamp = metadata_stamp(look->store, vm->vm);
	int err = metadata_list(look->store, vm->vm, &files);
	if (!err)
		err = libvirt_read_snapshots(look->store, vm->vm, &files, &whole, &vm->snapshot_refs, &complaint);
	*budget -= files.nr_files < *budget ? files.nr_files : *budget;
	metadata_files_done(&files);
	vm_put(whole);
	return err;
}

static bool snapshot_refs_hold(struct store *store, const struct found_vm *vm)
{
	return vm->snapshot_refs_stamp && vm->snapshot_refs_stamp == metadata_stamp(store, vm->vm);
}

static int snapshot_refs(void *ctx, struct file_refs *refs, bool *ret_all)
{
	struct look *look = ctx;
	size_t budget = METADATA_SHARE;
	look->found->needs_snapshot_refs = true;
	for (size_t i = 0; i < look->nr_vms; i++) {
		struct found_vm *vm = &look->vms[i];
		if (vm->vm->kind != VM_FOUND_LIBVIRT)
			continue;
		int err = 0;
		if (!snapshot_refs_hold(look->store, vm) && budget)
			err = read_snapshot_refs(look, vm, &budget);
		if (!err)
			err = borrow_refs(refs, &vm->snapshot_refs);
		if (err)
			return err;
	}
	*ret_all = budget > 0;
	atomic_store(&look->found->incomplete, !*ret_all);
	return 0;
}

static int look_at_images(struct look *look)
{
	struct file_refs named = {0};
	int err = 0;
	look->found->needs_snapshot_refs = false;
	atomic_store(&look->found->incomplete, false);
	for (size_t i = 0; !err && i < look->nr_vms; i++)
		err = borrow_refs(&named, &look->vms[i].refs);
	if (!err)
		err = bare_find(look->store, look->found->facts, &look->source, &named, snapshot_refs, look, look->found->vms,
				look->found->nr_vms, &look->vms, &look->nr_vms, &look->cap_vms);
	free(named.refs);
	return err;
}

/* --- publishing ------------------------------------------------------------------------------------------------------------------- */

/* What is wrong with a VM is said when it is read, and again only when it has become something else. */
static void report(struct look *look, const struct found_vm *vm)
{
	if (!vm->complaint || !vm->fresh)
		return;
	for (size_t i = 0; i < look->found->nr_vms; i++) {
		const struct found_vm *old = &look->found->vms[i];
		if (old->complaint && strcmp(old->complaint, vm->complaint) == 0 && strcmp(old->path, vm->path) == 0)
			return;
	}
	for (char *line = vm->complaint; line;) {
		char *end = strchrnul(line, '\n');
		store_event(look->store, vm->vm->name, "%.*s", (int)(end - line), line);
		line = *end ? end + 1 : NULL;
	}
}

/* Names in vms/ that aren't for found VMs. */
static int take_managed_names_locked(struct store *store, struct intern *taken)
{
	for (size_t i = 0; i < store->nr_entries; i++) {
		const struct vm *vm = store->entries[i]->vm;
		if (vm && vm->kind == VM_MANAGED && vm->place == PLACE_VMS && !intern_add(taken, vm->name))
			return -ENOMEM;
	}
	for (const struct reservation *r = store->reservations; r; r = r->next)
		if (r->place == PLACE_VMS && !intern_add(taken, r->name))
			return -ENOMEM;
	return 0;
}

/* The description under the name that is free; unchanged where it was shown so before. */
static int show_as(struct found_vm *found, char *name)
{
	if (found->shown && strcmp(found->shown->name, name) == 0)
		return 0;
	struct vm *vm = strcmp(found->vm->name, name) == 0 ? vm_ref(found->vm) : vm_copy(found->vm);
	if (!vm || (vm != found->vm && text_set(&vm->name, name))) {
		vm_put(vm);
		return -ENOMEM;
	}
	vm_put(found->shown);
	found->shown = vm;
	return 0;
}

static int publish_one_locked(struct look *look, struct entry *entry, struct intern *taken, struct found_vm *found)
{
	auto_free char *name = unique_name(taken, found->vm->name);
	int err = name ? show_as(found, name) : -ENOMEM;
	if (err)
		return err;
	entry->last_look = look->found->nr_looks;
	if (entry->vm == found->shown)
		return 0;
	err = table_publish_locked(look->store, entry, vm_ref(found->shown));
	if (err)
		vm_put(found->shown);
	return err;
}

static int publish_all(struct look *look, struct entry *const *entries)
{
	struct store *store = look->store;
	struct intern taken = {0};
	look->found->nr_looks++;
	pthread_mutex_lock(&store->lock);
	int err = take_managed_names_locked(store, &taken);
	for (size_t i = 0; !err && i < look->nr_vms; i++)
		err = publish_one_locked(look, entries[i], &taken, &look->vms[i]);
	for (size_t i = 0; !err && i < store->nr_entries; i++) {
		struct entry *entry = store->entries[i];
		if (entry->vm && entry->vm->kind != VM_MANAGED && entry->last_look != look->found->nr_looks)
			table_withdraw_locked(store, entry);
	}
	pthread_mutex_unlock(&store->lock);
	intern_done(&taken);
	return err;
}

static int publish(struct look *look)
{
	struct entry **entries = mem_new_array(look->nr_vms, sizeof *entries);
	int err = entries ? 0 : -ENOMEM;
	for (size_t i = 0; !err && i < look->nr_vms; i++) {
		entries[i] = table_intern(look->store, look->vms[i].path);
		if (!entries[i])
			err = -ENOMEM;
	}
	if (!err)
		err = publish_all(look, entries);
	free(entries);
	for (size_t i = 0; !err && i < look->nr_vms; i++) {
		report(look, &look->vms[i]);
		look->vms[i].fresh = false;
	}
	return err;
}

/* --- the look -------------------------------------------------------------------------------------------------------- */

static int64_t now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void set_looked(struct found *found)
{
	pthread_mutex_lock(&found->first_lock);
	atomic_store(&found->looked, true);
	pthread_cond_broadcast(&found->first_done);
	pthread_mutex_unlock(&found->first_lock);
}

/* Whether so many images, mostly of domains, are to be read that nobody should wait for it before the first VM is seen. */
static bool has_many_images(const struct look *look)
{
	size_t nr = 0;
	for (size_t i = 0; i < look->source.nr_files; i++)
		nr += look->source.files[i].kind == SOURCE_IMAGE;
	return look->nr_vms >= MANY_VMS && nr > look->nr_vms * 2 + MANY_IMAGES;
}

static int look_again(struct look *look)
{
	struct found *found = look->found;
	if (look->source.truncated && !found->source.truncated)
		store_event(look->store, NULL, "%s holds more files than are looked at: some VMs aren't shown", look->store->source_dir);
	int err = look_at_domains(look);
	if (!err && !atomic_load(&found->looked) && has_many_images(look)) {
		err = publish(look);
		set_looked(found);
	}
	if (!err)
		err = look_at_images(look);
	if (!err)
		err = publish(look);
	/* What was moved from the old list to the new one is lost to the old one: the new one stays also after a failure. */
	vms_free(found->vms, found->nr_vms);
	found->vms = look->vms;
	found->nr_vms = look->nr_vms;
	return err;
}

/* Images that were taken for VMs may be a snapshot's now, or the other way round. */
static bool snapshots_changed(struct store *store)
{
	struct found *found = store->found;
	if (!found->needs_snapshot_refs)
		return false;
	for (size_t i = 0; i < found->nr_vms; i++)
		if (found->vms[i].vm && found->vms[i].vm->kind == VM_FOUND_LIBVIRT && !snapshot_refs_hold(store, &found->vms[i]))
			return true;
	return false;
}

static void tell_unread(const struct look *look)
{
	const struct source *now = &look->source, *was = &look->found->source;
	if (!now->unread || (was->unread && strcmp(now->unread, was->unread) == 0 && now->nr_unread == was->nr_unread))
		return;
	const char *path = now->unread;
	if (now->nr_unread == 1)
		store_event(look->store, NULL, "%s can't be read, and what lies in it isn't shown: %s", path, strerror(-now->unread_err));
	else
		store_event(look->store, NULL, "%zu directories can't be read, and what lies in them isn't shown, the first %s: %s", now->nr_unread, path,
			    strerror(-now->unread_err));
}

static bool has_unread(const struct source *source)
{
	bool any = false;
	for (size_t i = 0; i < source->nr_files && !any; i++)
		any = source->files[i].kind == SOURCE_UNREAD;
	return any;
}

static void refresh_locked(struct store *store)
{
	struct found *found = store->found;
	struct look look = {.store = store, .found = found};
	bool again = found->retry_ms && now_ms() >= found->retry_ms;
	int err = source_walk(store, &found->source, again, &look.source);
	if (err)
		return;
	tell_unread(&look);
	bool same = !again && source_equal(&look.source, &found->source) && !atomic_load(&found->incomplete) && !snapshots_changed(store);
	if (!same) {
		err = look_again(&look);
		found->retry_ms = found->facts->any_unread || has_unread(&look.source) ? now_ms() + RETRY_MS : 0;
	}
	source_done(&found->source);
	if (err)
		source_done(&look.source); /* the next look finds it all changed */
	else
		found->source = look.source;
}

static void refresh_timed(struct store *store, bool first)
{
	struct found *found = store->found;
	int64_t begun = now_ms();
	refresh_locked(store);
	int64_t ended = now_ms();
	int64_t pause = first ? 0 : (ended - begun) * REFRESH_SHARE; /* the first look reads everything: no measure */
	atomic_store(&found->next_ms, ended + (pause > REFRESH_MS ? pause : REFRESH_MS));
}

/* Once only, whoever comes first; the others wait until there is something to see. */
static void look_first(struct store *store)
{
	struct found *found = store->found;
	if (pthread_mutex_trylock(&found->refresh) == 0) {
		if (!atomic_load(&found->looked))
			refresh_timed(store, true);
		set_looked(found);
		pthread_mutex_unlock(&found->refresh);
		return;
	}
	pthread_mutex_lock(&found->first_lock);
	while (!atomic_load(&found->looked))
		pthread_cond_wait(&found->first_done, &found->first_lock);
	pthread_mutex_unlock(&found->first_lock);
}

/* The thread in the background looks, for only so long can be waited for it. */
static void ask_for_look(struct found *found)
{
	struct timespec end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += PATIENCE_MS / 1000;
	pthread_mutex_lock(&found->ask_lock);
	/* Somebody has asked already: what was there a second ago will do. */
	if (!found->asked && !found->busy) {
		uint64_t nr_done = found->nr_done;
		found->asked = true;
		pthread_cond_signal(&found->asked_cond);
		while (found->nr_done == nr_done && pthread_cond_timedwait(&found->done_cond, &found->ask_lock, &end) == 0)
			continue;
	}
	pthread_mutex_unlock(&found->ask_lock);
}

void found_refresh(struct store *store)
{
	struct found *found = store->found;
	if (!atomic_load(&found->looked))
		look_first(store);
	if (now_ms() < atomic_load(&found->next_ms))
		return;
	if (found->started) {
		ask_for_look(found);
	} else if (pthread_mutex_trylock(&found->refresh) == 0) {
		refresh_timed(store, false);
		pthread_mutex_unlock(&found->refresh);
	}
}

bool found_is_ending(struct store *store)
{
	return atomic_load(&store->found->ending);
}

/* --- in the background ------------------------------------------------------------------------------------------------ */

/* ask_lock is held, but not while it looks. */
static void look_now_locked(struct store *store, bool first)
{
	struct found *found = store->found;
	found->asked = false;
	found->busy = true;
	pthread_mutex_unlock(&found->ask_lock);
	pthread_mutex_lock(&found->refresh);
	refresh_timed(store, first);
	pthread_mutex_unlock(&found->refresh);
	pthread_mutex_lock(&found->ask_lock);
	found->busy = false;
	found->nr_done++;
	pthread_cond_broadcast(&found->done_cond);
}

static void look_for_more(struct store *store)
{
	struct found *found = store->found;
	while (atomic_load(&found->incomplete) && !atomic_load(&found->ending)) {
		pthread_mutex_lock(&found->ask_lock);
		look_now_locked(store, true);
		pthread_mutex_unlock(&found->ask_lock);
		nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL); /* whatever it is that isn't to be read */
	}
}

static void look_when_asked(struct store *store)
{
	struct found *found = store->found;
	pthread_mutex_lock(&found->ask_lock);
	while (!atomic_load(&found->ending)) {
		if (found->asked)
			look_now_locked(store, false);
		else
			pthread_cond_wait(&found->asked_cond, &found->ask_lock);
	}
	pthread_mutex_unlock(&found->ask_lock);
}

static void *read_all(void *arg)
{
	struct store *store = arg;
	look_first(store);
	look_for_more(store);
	look_when_asked(store);
	return NULL;
}

int found_start(struct store *store)
{
	/* Signals are for the thread that serves. */
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	int err = -pthread_create(&store->found->thread, NULL, read_all, store);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	store->found->started = !err;
	return err;
}
