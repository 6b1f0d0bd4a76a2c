#include "store/managed.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <uuid/uuid.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "meta/domain.h"
#include "meta/xml.h"
#include "store/full_raw.h"
#include "store/jobs.h"
#include "store/manifest.h"
#include "store/snapshot.h"
#include "store/store_internal.h"

#define NVRAM_MAX    (64u << 20) /* the largest UEFI variable stores are 4 MiB (aarch64: 64 MiB) */
#define GONE_PREFIX  ".gone-"

int managed_check(struct store *store, const struct vm *vm, struct reason *why)
{
	if (vm && vm->kind != VM_MANAGED)
		return reason_set(why, -EROFS, "%s was found in SOURCE and is never written to: clone it, or use the tool that owns it",
				  vm->name);
	if (vm && vm->is_stand_in)
		return reason_set(why, -EROFS, "the description of a VM of the store can't be read, and may be that of pool %s. Mend that and mount again", vm->name);
	if (!store->writable)
		return reason_set(why, -EROFS, "there is no store that can be written: mount with -o store=DIR");
	return 0;
}

int managed_begin(struct store *store, const struct vm *vm, struct entry **ret_entry, struct vm **ret_now, struct reason *why)
{
	int err = managed_check(store, vm, why);
	if (err)
		return err;
	struct entry *entry = table_entry(store, vm->id);
	if (!entry)
		return -ENOENT;
	pthread_mutex_lock(&entry->change);
	struct vm *now = table_current(store, entry);
	if (!now) {
		pthread_mutex_unlock(&entry->change);
		return reason_set(why, -ENOENT, "%s has been removed", vm->name);
	}
	*ret_entry = entry;
	*ret_now = now;
	return 0;
}

void managed_end(struct entry *entry, struct vm *now)
{
	pthread_mutex_unlock(&entry->change);
	vm_put(now);
}

int managed_begin_settled(struct store *store, const struct vm *vm, struct entry **ret_entry, struct vm **ret_now, struct reason *why)
{
	for (;;) {
		int err = managed_begin(store, vm, ret_entry, ret_now, why);
		if (err)
			return err;
		const struct vm_disk *pending = NULL;
		for (size_t i = 0; i < (*ret_now)->nr_disks; i++)
			if ((*ret_now)->disks[i].pending_path && !(*ret_now)->disks[i].error)
				pending = &(*ret_now)->disks[i];
		if (!pending)
			return 0;
		auto_free char *layer = strdup(pending->layer);
		managed_end(*ret_entry, *ret_now);
		err = layer ? jobs_wait(store, layer, why) : -ENOMEM;
		if (err)
			return err;
	}
}

/* vm.xml may name what was refused. It says again what the VM is; where that fails too, nothing that either may need is unlinked until the next start,
 * which shows the one or the other. */
static void put_back(struct store *store, struct entry *entry)
{
	struct vm *now = table_current(store, entry);
	struct vm *again = now ? vm_copy(now) : NULL;
	if (!again || manifest_save(store, again, NULL, NULL) < 0) {
		layers_keep_all(store);
		store_event(store, now ? now->name : NULL, "its vm.xml can't be written: what was just refused may have happened after the next start");
	}
	vm_put(again);
	vm_put(now);
}

int managed_commit(struct store *store, struct entry *entry, struct vm *next, struct reason *why)
{
	bool unsure = false;
	/* What can fail comes first: disk and table must say the same. */
	pthread_mutex_lock(&store->lock);
	int err = table_number_locked(entry, next);
	pthread_mutex_unlock(&store->lock);
	if (!err)
		err = manifest_save(store, next, &unsure, why);
	if (unsure)
		put_back(store, entry);
	if (!err)
		err = table_publish(store, entry, next);
	if (err)
		vm_put(next);
	return err;
}

/* A failure costs a copy that nobody needs: the header decides (see beneath_open). */
void managed_settle(struct store *store, struct entry *entry, const char *layer)
{
	struct vm *now = table_current(store, entry);
	for (size_t i = 0; now && i < now->nr_disks; i++) {
		if (!now->disks[i].pending_path || strcmp(now->disks[i].layer, layer) != 0)
			continue;
		struct vm *next = vm_copy(now);
		if (next) {
			vm_disk_clear_pending(&next->disks[i]);
			managed_commit(store, entry, next, NULL);
		}
		jobs_forget_layer(store, layer);
	}
	vm_put(now);
}

/* --- identity --------------------------------------------------------------------------------------------------------- */

struct vm *managed_new(enum vm_place place, const char *name, uid_t uid, gid_t gid)
{
	struct vm *vm = vm_new(VM_MANAGED, place);
	char text[37];
	uuid_t uuid;
	uuid_generate(uuid);
	uuid_unparse_lower(uuid, text);
	if (!vm || text_set(&vm->name, name) || text_set(&vm->uuid, text)) {
		vm_put(vm);
		return NULL;
	}
	vm->uid = uid;
	vm->gid = gid;
	vm->created = time(NULL);
	return vm;
}

/* virt-clone's name for it, where that isn't too long for a file. */
char *managed_nvram_path(struct store *store, const struct vm *vm)
{
	char *path = NULL;
	bool fits = strlen(vm->name) < 240;
	int n = asprintf(&path, "%s/vms/%s/%s_VARS.fd", store->store_dir, vm->uuid, fits ? vm->name : "NVRAM");
	return n < 0 ? NULL : path;
}

/* An event for each line. */
static void report_notes(struct store *store, const struct vm *vm, const char *notes)
{
	for (size_t len; *notes; notes += len + (notes[len] == '\n')) {
		len = strcspn(notes, "\n");
		store_event(store, vm->name, "%.*s", (int)len, notes);
	}
}

int managed_adopt_config(struct store *store, const struct vm *vm, const char *text, size_t len, char **ret_config,
			 char **ret_nvram, struct reason *why)
{
	struct domain domain;
	int err = domain_parse_text(text, len, &domain, why);
	if (err)
		return err;
	auto_free char *nvram_source = take_ptr(domain.nvram);
	domain_done(&domain);
	/* A file that can't be read isn't named: libvirt then makes a new one from its template. */
	auto_close int fd = nvram_source ? trust_open(store->trust, NULL, nvram_source, O_RDONLY, NULL, NULL) : -1;
	if (nvram_source && fd < 0) {
		store_event(store, vm->name, "its NVRAM %s can't be read (%s): the clone starts with a new one", nvram_source, strerror(-fd));
		free(take_ptr(nvram_source));
	}
	auto_free char *nvram = nvram_source ? managed_nvram_path(store, vm) : NULL;
	auto_free char *notes = NULL;
	err = domain_clone_identity(text, len, vm->name, vm->uuid, nvram, ret_config, &notes, why);
	if (!err)
		report_notes(store, vm, notes);
	if (!err && ret_nvram)
		*ret_nvram = take_ptr(nvram_source);
	return err;
}

static int copy_nvram(struct store *store, const struct vm *vm, int dirfd, const char *source)
{
	auto_free char *path = managed_nvram_path(store, vm);
	auto_close int from = trust_open(store->trust, NULL, source, O_RDONLY, NULL, NULL);
	auto_free char *bytes = NULL;
	size_t len = 0;
	if (!path)
		return -ENOMEM;
	int err = from < 0 ? from : file_load(from, NVRAM_MAX, &bytes, &len);
	if (!err)
		err = file_replace(dirfd, strrchr(path, '/') + 1, bytes, len, 0600, NULL);
	if (err)
		store_event(store, vm->name, "its NVRAM %s can't be copied: %s", source, strerror(-err));
	return 0;
}

/* --- making ------------------------------------------------------------------------------------------------------------- */

static int make_dir(struct store *store, struct vm *vm, int *ret_fd, struct reason *why)
{
	if (mkdirat(store->vms_fd, vm->uuid, 0700) < 0)
		return reason_set(why, -errno, "%s/vms/%s: %s", store->store_dir, vm->uuid, strerror(errno));
	auto_close int fd = openat(store->vms_fd, vm->uuid, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	if (fd < 0)
		return -errno;
	/* Only root can give files away; else all is ours, whoever asked. */
	if (fchown(fd, vm->uid, vm->gid) < 0 && errno != EPERM)
		return -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	vm->uid = st.st_uid;
	vm->gid = st.st_gid;
	*ret_fd = take_fd(&fd);
	return 0;
}

static void remove_dir(int at, const char *name)
{
	DIR *dir = dir_open_at(at, name);
	if (!dir)
		return;
	for (struct dirent *de; (de = readdir(dir));)
		if (strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0 && unlinkat(dirfd(dir), de->d_name, 0) < 0 && errno == EISDIR)
			remove_dir(dirfd(dir), de->d_name);
	closedir(dir);
	unlinkat(at, name, AT_REMOVEDIR);
}

/* The layers are stable already: their directory was synced before this is called. vm.xml is stable before the directory that
 * holds the VM's is synced: a VM that is there after a crash is whole. */
static int write_new(struct store *store, struct vm *next, const char *nvram_source, struct reason *why)
{
	auto_close int fd = -1;
	int err = make_dir(store, next, &fd, why);
	if (!err && nvram_source)
		err = copy_nvram(store, next, fd, nvram_source);
	if (!err)
		err = manifest_save(store, next, NULL, why);
	if (!err && dir_sync(store->vms_fd) < 0)
		err = reason_set(why, -EIO, "%s/vms: can't be made durable", store->store_dir);
	return err;
}

/* Where its vm.xml stays, the next start shows the VM: then nothing that it names may be unlinked. */
static void take_back(struct store *store, const char *uuid)
{
	auto_free char *path = NULL;
	remove_dir(store->vms_fd, uuid);
	if (asprintf(&path, "%s/" MANIFEST_NAME, uuid) < 0 || faccessat(store->vms_fd, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0 || dir_sync(store->vms_fd) < 0)
		layers_keep_all(store);
}

int managed_add(struct store *store, struct vm *next, const char *nvram_source, struct vm **ret, struct reason *why)
{
	auto_free char *uuid = strdup(next->uuid);
	struct entry *entry = uuid ? table_intern(store, uuid) : NULL;
	int err = entry ? write_new(store, next, nvram_source, why) : -ENOMEM;
	if (!err) {
		vm_ref(next);
		err = table_publish(store, entry, next);
		if (err)
			vm_put(next);
	}
	if (err) {
		if (uuid)
			take_back(store, uuid);
		vm_put(next);
		return err;
	}
	*ret = next;
	return 0;
}

int store_create(struct store *store, const char *name, uid_t uid, gid_t gid, struct vm **ret, struct reason *why)
{
	int err = managed_check(store, NULL, why);
	if (!err && (err = name_check(name)))
		reason_set(why, err, "%s: not a name for a VM", name);
	struct reservation r;
	if (!err && (err = table_reserve(store, &r, PLACE_CLONES, name)))
		return reason_set(why, err, "clones/%s exists", name);
	if (err)
		return err;
	struct vm *next = managed_new(PLACE_CLONES, name, uid, gid);
	if (next)
		next->mode = 0400; /* what comes may hold passwords: store_chmod_domain() */
	err = next ? domain_minimal(next->name, next->uuid, &next->config) : -ENOMEM;
	if (!err)
		err = managed_add(store, next, NULL, ret, why);
	else
		vm_put(next);
	table_release(store, &r);
	return err;
}

/* --- changing ----------------------------------------------------------------------------------------------------------- */

/* A new name may need a block of the directory that a full filesystem doesn't have. */
static int remove_without_space(struct store *store, struct entry *entry, const struct vm *now, struct reason *why)
{
	bool unsure = false;
	int err = manifest_remove(store, now, &unsure);
	/* What stays shown must be there at the next start, too: with no vm.xml its layers would be swept then. */
	if (unsure)
		put_back(store, entry);
	if (err)
		return reason_set(why, err, "%s/vms/%s: %s", store->store_dir, now->uuid, strerror(-err));
	remove_dir(store->vms_fd, now->uuid);
	return 0;
}

/* Takes the VM's directory out of vms/ with one rename, durably; then what is in it. */
static int remove_durably(struct store *store, struct entry *entry, const struct vm *now, struct reason *why)
{
	auto_free char *gone = NULL;
	if (asprintf(&gone, GONE_PREFIX "%s", now->uuid) < 0)
		return -ENOMEM;
	int err = file_rename(store->vms_fd, now->uuid, gone);
	if (err == -ENOSPC || err == -EDQUOT)
		return remove_without_space(store, entry, now, why);
	if (err)
		return reason_set(why, err, "%s/vms/%s: %s", store->store_dir, now->uuid, strerror(-err));
	if (dir_sync(store->vms_fd) == 0) {
		remove_dir(store->vms_fd, gone);
		return 0;
	}
	if (file_rename(store->vms_fd, gone, now->uuid) == 0)
		return reason_set(why, -EIO, "%s/vms: can't be made durable", store->store_dir);
	/* It is removed, though a power cut may undo that: then it is whole. Shown any longer it would take writes that no start would find. */
	layers_keep_all(store);
	return 0;
}

/* Begins a change of a VM of which no disk is open; one may be open nevertheless. */
static int begin_unused(struct store *store, const struct vm *vm, struct entry **ret_entry, struct vm **ret_now, struct reason *why)
{
	for (int ms = 0;; ms++) {
		int err = managed_begin(store, vm, ret_entry, ret_now, why);
		bool in_use = !err && (heads_in_use(store, *ret_entry) || heads_check_foreign(store, *ret_now, NULL));
		if (err || ms >= MANAGED_CLOSING_MS || !in_use)
			return err;
		managed_end(*ret_entry, *ret_now);
		usleep(1000);
	}
}

int store_remove(struct store *store, struct vm *vm, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = begin_unused(store, vm, &entry, &now, why);
	if (err)
		return err;
	if (now->saved)
		err = snapshot_check_no_preview(now, "removing the VM", why);
	else if (now->nr_snapshots)
		err = reason_set(why, -ENOTEMPTY, "%s has snapshots: delete them first", now->name);
	else if (heads_in_use(store, entry))
		err = reason_set(why, -EBUSY, "%s: a disk is open", now->name);
	else
		err = heads_check_foreign(store, now, why);
	if (!err)
		err = remove_durably(store, entry, now, why);
	if (!err) {
		heads_removed(store, entry);
		table_withdraw(store, entry);
		jobs_forget_vm(store, vm->id);
	}
	for (size_t i = 0; !err && i < now->nr_disks; i++)
		if (now->disks[i].full_base)
			full_raw_drop(store, now->disks[i].full_base);
	managed_end(entry, now);
	if (!err) {
		layers_sweep(store);
	}
	return err;
}

static int rename_to(struct store *store, struct entry *entry, const struct vm *now, enum vm_place place, const char *name,
		     struct reason *why)
{
	struct reservation r;
	int err = table_reserve(store, &r, place, name);
	if (err)
		return reason_set(why, err, "%s/%s exists", place == PLACE_VMS ? "vms" : "clones", name);
	struct vm *next = vm_copy(now);
	if (next)
		next->place = place;
	if (!next || text_set(&next->name, name)) {
		vm_put(next);
		err = -ENOMEM;
	} else {
		err = managed_commit(store, entry, next, why);
	}
	table_release(store, &r);
	return err;
}

int store_rename(struct store *store, struct vm *vm, enum vm_place place, const char *name, struct reason *why)
{
	int err = name_check(name);
	if (err)
		return reason_set(why, err, "%s: not a name for a VM", name);
	struct entry *entry = NULL;
	struct vm *now = NULL;
	err = managed_begin(store, vm, &entry, &now, why);
	if (err)
		return err;
	if (now->place != place || strcmp(now->name, name) != 0)
		err = rename_to(store, entry, now, place, name, why);
	managed_end(entry, now);
	return err;
}

/* The UUID in TEXT, a domain XML; the caller frees. NULL in RET: it has none. */
static int uuid_of(const char *text, size_t len, char **ret, struct reason *why)
{
	struct domain domain;
	int err = domain_parse_text(text, len, &domain, why);
	if (err)
		return err;
	*ret = take_ptr(domain.uuid);
	domain_done(&domain);
	return 0;
}

static int replace_nvram(struct store *store, const struct vm *vm, const char *source)
{
	auto_close int fd = openat(store->vms_fd, vm->uuid, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : copy_nvram(store, vm, fd, source);
}

static int set_domain(struct store *store, struct entry *entry, const struct vm *now, const char *text, size_t len,
		      struct reason *why)
{
	auto_free char *uuid = NULL;
	auto_free char *config = NULL;
	auto_free char *nvram = NULL;
	int err = memchr(text, '\0', len) ? reason_set(why, -EINVAL, "the text has a NUL byte in it") : uuid_of(text, len, &uuid, why);
	if (err)
		return err;
	if (uuid && strcasecmp(uuid, now->uuid) == 0)
		config = strndup(text, len);
	else
		err = managed_adopt_config(store, now, text, len, &config, &nvram, why);
	if (!err && nvram)
		err = replace_nvram(store, now, nvram);
	struct vm *next = err ? NULL : vm_copy(now);
	if (!err && (!next || !config))
		err = -ENOMEM;
	if (err) {
		vm_put(next);
		return err;
	}
	free(next->config);
	next->config = take_ptr(config);
	return managed_commit(store, entry, next, why);
}

int store_set_domain(struct store *store, struct vm *vm, const char *text, size_t len, struct reason *why)
{
	if (len > XML_TEXT_MAX)
		return reason_set(why, -EINVAL, "a domain XML of more than %u bytes", XML_TEXT_MAX);
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = managed_begin(store, vm, &entry, &now, why);
	if (err)
		return err;
	err = set_domain(store, entry, now, text, len, why);
	managed_end(entry, now);
	return err;
}

int store_chmod_domain(struct store *store, struct vm *vm, mode_t mode)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = managed_begin(store, vm, &entry, &now, NULL);
	if (err)
		return err;
	mode = (mode & 0444) | 0400;
	struct vm *next = now->mode == mode ? NULL : vm_copy(now);
	if (next) {
		next->mode = mode;
		err = managed_commit(store, entry, next, NULL);
	} else if (now->mode != mode) {
		err = -ENOMEM;
	}
	managed_end(entry, now);
	return err;
}

/* --- at the start --------------------------------------------------------------------------------------------------------- */

static bool is_uuid(const char *name)
{
	uuid_t uuid;
	return strlen(name) == 36 && uuid_parse(name, uuid) == 0;
}

/* Names are unique by construction; a store put together by hand may say otherwise. */
static int make_name_unique(struct store *store, struct vm *vm)
{
	struct vm *other;
	for (unsigned n = 2; (other = table_find(store, vm->place, vm->name)); n++) {
		vm_put(other);
		char *name = NULL;
		char *tilde = n > 2 ? strrchr(vm->name, '~') : NULL;
		if (tilde)
			*tilde = '\0';
		if (asprintf(&name, "%s~%u", vm->name, n) < 0)
			return -ENOMEM;
		free(vm->name);
		vm->name = name;
	}
	return 0;
}

static void clear_temporaries(struct store *store, const char *uuid)
{
	DIR *dir = dir_open_at(store->vms_fd, uuid);
	if (!dir)
		return;
	for (struct dirent *de; (de = readdir(dir));)
		if (file_is_temporary(de->d_name))
			unlinkat(dirfd(dir), de->d_name, 0);
	closedir(dir);
}

struct missing {
	struct store *store;
	const struct vm *vm;
};

/* Before the description is published: nobody else has it. */
static void note_missing_pool(void *ctx, const struct vm_disk *seen)
{
	const struct missing *m = ctx;
	struct vm_disk *disk = (struct vm_disk *)(uintptr_t)seen;
	struct reason why = {0};
	int err = layer_check_place(m->store, disk->layer, &why);
	if (!err || disk->error)
		return;
	disk->error = err;
	free(disk->error_text);
	disk->error_text = strdup(why.text);
	if (m->vm->place != PLACE_POOLS)
		store_event(m->store, m->vm->name, "disk %s: %s", disk->file_name, why.text);
}

static void note_missing_pools(struct store *store, struct vm *vm)
{
	struct missing missing = {store, vm};
	vm_each_layer(vm, note_missing_pool, &missing);
}

static int load_one(struct store *store, const char *uuid)
{
	struct reason why = {0};
	struct vm *vm = NULL;
	int err = manifest_load(store, uuid, &vm, &why);
	if (err == -ENOENT)
		return err; /* the rest of an operation that didn't come to its end */
	if (!err)
		err = make_name_unique(store, vm);
	if (!err)
		note_missing_pools(store, vm);
	struct entry *entry = err ? NULL : table_intern(store, uuid);
	if (!err)
		err = entry ? table_publish(store, entry, vm) : -ENOMEM;
	if (!err && store->writable)
		clear_temporaries(store, uuid);
	if (err) {
		vm_put(vm);
		store_event(store, NULL, "a VM of the store isn't shown: %s", *why.text ? why.text : strerror(-err));
	}
	return err;
}

int managed_load_all(struct store *store, size_t *ret_nr_bad)
{
	DIR *dir = dir_open_at(store->vms_fd, ".");
	if (!dir)
		return -errno;
	size_t nr_bad = 0;
	for (struct dirent *de; (de = readdir(dir));) {
		int err = is_uuid(de->d_name) ? load_one(store, de->d_name) : 0;
		if (err && err != -ENOENT)
			nr_bad++;
	}
	closedir(dir);
	*ret_nr_bad = nr_bad;
	return 0;
}

static bool is_leftover(struct store *store, const char *name)
{
	if (strncmp(name, GONE_PREFIX, strlen(GONE_PREFIX)) == 0)
		return is_uuid(name + strlen(GONE_PREFIX));
	return is_uuid(name) && !intern_lookup(&store->keys, name);
}

void managed_clear_leftovers(struct store *store)
{
	for (size_t e = 0; e < store->nr_entries; e++)
		if (store->entries[e]->vm)
			snapshot_clear_files(store, store->entries[e]->vm);
	DIR *dir = dir_open_at(store->vms_fd, ".");
	if (!dir)
		return;
	for (struct dirent *de; (de = readdir(dir));)
		if (is_leftover(store, de->d_name))
			remove_dir(store->vms_fd, de->d_name);
	closedir(dir);
}
