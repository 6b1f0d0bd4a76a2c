#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "store/flats.h"
#include "store/found.h"
#include "store/full.h"
#include "store/full_raw.h"
#include "store/heads.h"
#include "store/jobs.h"
#include "store/managed.h"
#include "store/merge.h"
#include "store/repair.h"
#include "store/pending.h"
#include "store/pool_vm.h"
#include "store/spare.h"
#include "store/stat.h"
#include "store/store_internal.h"
#include "store/text_size.h"
#include "store/whole.h"

#define STORE_NAME ".vmsnapfs"

void store_event(struct store *store, const char *vm_name, const char *fmt, ...)
{
	char text[2048];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (store->log.event)
		store->log.event(store->log.ctx, vm_name, text);
}

/* --- the store directory ---------------------------------------------------------------------------------------------------- */

/* Whoever can write to the store's directories makes us write where he likes: what its files say is done with our rights. So
 * nobody else may, and in SOURCE, which is only shown, a store that somebody else has put there isn't ours. One that was named is what
 * the user says it is. */
static int check_safe(const struct store *store, int fd, const char *name, struct reason *why)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	const char *slash = *name ? "/" : "";
	if (st.st_mode & 022)
		return reason_set(why, -EPERM, "%s%s%s may be written by others than its owner: take that away (chmod go-w)", store->store_dir, slash, name);
	if (!store->is_named && st.st_uid && st.st_uid != geteuid())
		return reason_set(why, -EPERM, "%s%s%s belongs to user %u, and all that it says would be done with the rights of user %u", store->store_dir,
				  slash, name, (unsigned)st.st_uid, (unsigned)geteuid());
	return 0;
}

static int open_subdir(struct store *store, const char *name, bool make, int *ret_fd, struct reason *why)
{
	if (make && mkdirat(store->store_fd, name, 0700) < 0 && errno != EEXIST)
		return -errno;
	int fd = openat(store->store_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return make ? check_safe(store, fd, name, why) : 0;
}

/* All that will be promised lies below it: its name is stable before. Who made it may have been killed before this. */
static int sync_name(const char *dir)
{
	auto_free char *parent = strdup(dir);
	char *slash = parent ? strrchr(parent, '/') : NULL;
	if (!slash)
		return parent ? 0 : -ENOMEM;
	slash[slash == parent] = '\0';
	auto_close int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int err = fd < 0 ? 0 : dir_sync(fd); /* one that we may not read was there before us */
	return err == -EINVAL || err == -EROFS ? 0 : err;
}

/* A link in SOURCE isn't followed: whoever made it says where the store is, then. */
static int open_top(struct store *store, bool make, struct reason *why)
{
	if (make && mkdir(store->store_dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	store->store_fd = open(store->store_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (store->is_named ? 0 : O_NOFOLLOW));
	if (store->store_fd < 0 && !store->is_named && errno == ENOTDIR)
		return reason_set(why, -EPERM, "%s is a link, or a file", store->store_dir);
	auto_free char *real = store->store_fd < 0 ? NULL : realpath(store->store_dir, NULL);
	if (!real)
		return -errno;
	free(store->store_dir);
	store->store_dir = take_ptr(real);
	return make ? check_safe(store, store->store_fd, "", why) : 0;
}

/* Makes what is missing. -EROFS, -EACCES, -EPERM: it can't be written. */
static int open_dirs(struct store *store, bool make, struct reason *why)
{
	int err = open_top(store, make, why);
	if (!err)
		err = open_subdir(store, "layers", make, &store->layers_fd, why);
	if (!err)
		err = open_subdir(store, "vms", make, &store->vms_fd, why);
	if (!err && make && !(err = dir_sync(store->store_fd)))
		err = sync_name(store->store_dir);
	if (!err && make && (faccessat(store->layers_fd, ".", W_OK, AT_EACCESS) < 0 || faccessat(store->vms_fd, ".", W_OK, AT_EACCESS) < 0))
		err = -errno;
	if (!err && asprintf(&store->layers_dir, "%s/layers", store->store_dir) < 0)
		err = -ENOMEM;
	return err;
}

static void close_dirs(struct store *store)
{
	int *fds[] = {&store->lock_fd, &store->layers_fd, &store->vms_fd, &store->store_fd};
	for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
		if (*fds[i] >= 0)
			close(take_fd(fds[i]));
	free(take_ptr(store->layers_dir));
	pools_close(store);
}

static int write_pid(struct store *store)
{
	char text[32];
	int len = snprintf(text, sizeof text, "%ld\n", (long)getpid());
	/* Not emptied before: on a full filesystem its block would be somebody else's. It is there for people to read, and worth no refusal. */
	int err = file_write(store->lock_fd, text, (size_t)len, 0);
	if (!err && ftruncate(store->lock_fd, len) < 0)
		err = -errno;
	return err == -ENOSPC || err == -EDQUOT ? 0 : err;
}

/* In the place of its pid: a daemon that has ended in order, and knew of everything that it did. */
#define NOBODY "0"

static bool has_ended_in_order(struct store *store)
{
	char text[sizeof NOBODY] = "";
	return file_read(store->lock_fd, text, sizeof NOBODY, 0) > 0 && text[0] == NOBODY[0];
}

/* Whose name is still there, in its place: no block is needed. */
static void say_ended_in_order(struct store *store)
{
	if (store->writable && !store->layers.unknown && !file_write(store->lock_fd, NOBODY "\n", sizeof NOBODY, 0) && ftruncate(store->lock_fd, sizeof NOBODY) < 0)
		return; /* what is behind it doesn't matter */
}

#define TICK_MS	  20
#define ENDING "ending\n" /* behind its pid: it has been unmounted, and will let go */
#define NOTICE_MS 500	  /* until who has been unmounted knows */
#define ENDING_MS 30000	  /* until what was written is on the disk */

void store_say_ending(struct store *store)
{
	struct stat st;
	/* Who doesn't find it there isn't waited for. */
	if (store->writable && fstat(store->lock_fd, &st) == 0 && file_write(store->lock_fd, ENDING, strlen(ENDING), (uint64_t)st.st_size) < 0)
		return;
}

/* Who has the store, and whether it is about to let go. */
static bool look_at_holder(struct store *store, char pid[16])
{
	char text[32] = "";
	ssize_t n = file_read(store->lock_fd, text, sizeof text - 1, 0);
	size_t len = n > 0 ? strcspn(text, "\n") : 0;
	snprintf(pid, 16, "%.*s", (int)len, text);
	return n > 0 && strstr(text, "\n" ENDING);
}

/* Where who has it is ending, the lock is waited for. */
static int wait_for_lock(struct store *store, char pid[16])
{
	const struct timespec tick = {.tv_nsec = TICK_MS * 1000000L};
	bool ending = false;
	for (unsigned waited = 0; flock(store->lock_fd, LOCK_EX | LOCK_NB) < 0; waited += TICK_MS) {
		if (errno != EWOULDBLOCK)
			return -errno;
		ending = look_at_holder(store, pid);
		if (waited >= (ending ? ENDING_MS : NOTICE_MS))
			return -EBUSY;
		nanosleep(&tick, NULL);
	}
	return 0;
}

/* flock(2): the lock goes with the open file description, through the fork that makes the daemon, and away with it. */
static int take_lock(struct store *store, struct reason *why)
{
	char pid[16] = "";
	store->lock_fd = openat(store->store_fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (store->lock_fd < 0)
		return -errno;
	int err = wait_for_lock(store, pid);
	if (err == -EBUSY)
		return reason_set(why, err, "the store %s is in use by another vmsnapfs (process %s); unmount that first, or name another store with -o store=DIR",
				  store->store_dir, pid);
	if (err)
		return reason_set(why, err, "%s/lock: %s", store->store_dir, strerror(-err));
	store->is_settled = has_ended_in_order(store);
	return write_pid(store);
}

static bool means_read_only(int err)
{
	return err == -EROFS || err == -EACCES || err == -EPERM;
}

/* What is there can be looked at, without a lock: it is what it was at this moment. */
static void open_to_read(struct store *store)
{
	if (open_dirs(store, false, NULL))
		close_dirs(store);
}

/* Opens the store for writing, else for reading, else goes without. */
static int open_store_dir(struct store *store, bool read_only, struct reason *why)
{
	if (read_only) {
		open_to_read(store);
		return 0;
	}
	struct reason unsafe = {0};
	int err = open_dirs(store, true, &unsafe);
	if (!err)
		err = take_lock(store, why);
	if (!err) {
		store->writable = true;
		return 0;
	}
	close_dirs(store);
	if (!means_read_only(err))
		return err == -EBUSY ? err : reason_set(why, err, "the store %s can't be used; name another one with -o store=DIR", store->store_dir);
	if (*unsafe.text)
		store_event(store, NULL, "the mount is read-only: %s; or name a store with -o store=DIR", unsafe.text);
	else
		store_event(store, NULL, "the store %s can't be written (%s): the mount is read-only; name another one with -o store=DIR",
			    store->store_dir, strerror(-err));
	open_to_read(store);
	return 0;
}

/* --- opening -------------------------------------------------------------------------------------------------------------------- */

static int copy_config(struct store *store, const struct store_config *config)
{
	store->log = config->log;
	store->allow_devices = config->allow_devices;
	store->clone_full = config->clone_full;
	if (text_set(&store->source_dir, config->source_dir) || text_set(&store->snapshots_dir, config->snapshots_dir) ||
	    text_set(&store->mountpoint, config->mountpoint))
		return -ENOMEM;
	store->is_named = config->store_dir;
	if (config->store_dir)
		return text_set(&store->store_dir, config->store_dir);
	const char *slash = strcmp(config->source_dir, "/") == 0 ? "" : "/";
	return asprintf(&store->store_dir, "%s%s" STORE_NAME, config->source_dir, slash) < 0 ? -ENOMEM : 0;
}

/* Names are followed below these. The store is opened before: it is one of them. */
static int set_up_trust(struct store *store, const struct store_config *config, struct reason *why)
{
	int err = trust_new(&store->trust);
	if (!err)
		err = trust_add(store->trust, store->source_dir, why);
	if (!err && store->store_fd >= 0)
		err = trust_add_open(store->trust, store->store_fd, store->store_dir);
	if (!err && store->snapshots_dir)
		err = trust_add(store->trust, store->snapshots_dir, why);
	for (size_t i = 0; !err && i < config->nr_trust_dirs; i++)
		err = trust_add(store->trust, config->trust_dirs[i], why);
	for (size_t i = 0; !err && i < store->nr_pools; i++)
		err = trust_add(store->trust, store->pools[i].dir, why);
	if (!err && store->mountpoint)
		err = trust_forbid(store->trust, store->mountpoint);
	if (!err)
		trust_allow_devices(store->trust, store->allow_devices);
	return err;
}

static int make_parts(struct store *store, const struct store_config *config)
{
	int err = image_cache_new(store->trust, config->index_bytes, &store->images);
	if (!err)
		err = found_new(&store->found);
	if (!err)
		err = jobs_new(&store->jobs);
	if (!err)
		err = text_sizes_new(&store->text_sizes);
	if (!err)
		err = flats_new(store, &store->flats);
	return err ? err : stat_cache_new(&store->stats);
}

static int sync_dir(int at, const char *name)
{
	auto_close int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd >= 0 ? dir_sync(fd) : errno == ENOENT ? 0 : -errno;
}

static int sync_vm(struct store *store, const struct vm *vm)
{
	char snapshots[64];
	snprintf(snapshots, sizeof snapshots, "%s/" SNAPSHOTS_DIR, vm->uuid);
	int err = sync_dir(store->vms_fd, vm->uuid);
	return err ? err : sync_dir(store->vms_fd, snapshots);
}

/* What a daemon that was killed, or couldn't sync, has left is seen, and may all the same not be what a power cut leaves. It is, before
 * anything is cleared away because of it. */
static int settle_store(struct store *store)
{
	if (store->is_settled)
		return 0;
	int err = dir_sync(store->layers_fd);
	if (!err)
		err = dir_sync(store->vms_fd);
	for (size_t e = 0; !err && e < store->nr_entries; e++)
		if (store->entries[e]->vm && store->entries[e]->vm->kind == VM_MANAGED)
			err = sync_vm(store, store->entries[e]->vm);
	for (size_t i = 0; !err && i < store->nr_pools; i++) {
		err = dir_sync(store->pools[i].dirfd);
		if (!err && store->pools[i].ledger_fd >= 0)
			err = dir_sync(store->pools[i].ledger_fd);
	}
	/* The header of a layer whose merge had come to its end says that it doesn't need what is about to go. */
	if (!err)
		err = layers_settle(store);
	store->is_settled = !err;
	return err;
}

/* Managed VMs, and the rest of what was interrupted. Nothing is cleared away where anything couldn't be read. */
static int load_managed(struct store *store, struct reason *why)
{
	size_t nr_bad = 0;
	if (store->vms_fd < 0)
		return 0;
	int err = managed_load_all(store, &nr_bad);
	if (err)
		return reason_set(why, err, "%s/vms: %s", store->store_dir, strerror(-err));
	if (!store->writable)
		return 0;
	struct reason unread = {0};
	err = layers_load(store, &unread);
	store->lacks_vms = nr_bad != 0;
	store->layers.unknown = err || nr_bad;
	if (store->layers.unknown) {
		store_event(store, NULL, "the store %s isn't tidied up: %s%s%s", store->store_dir,
			    err ? "a layer of a VM can't be read" : "the description of a VM can't be read", *unread.text ? ": " : "", unread.text);
		return 0;
	}
	err = settle_store(store);
	if (err) {
		store->layers.unknown = true;
		store_event(store, NULL, "the store %s isn't tidied up: its directories can't be made durable: %s", store->store_dir, strerror(-err));
		return 0;
	}
	managed_clear_leftovers(store);
	layers_clear_leftovers(store);
	full_raw_clear_leftovers(store);
	spare_make(store);
	return 0;
}

static struct store *store_new(void)
{
	struct store *store = calloc(1, sizeof *store);
	if (!store)
		return NULL;
	store->store_fd = store->layers_fd = store->vms_fd = store->lock_fd = -1;
	pthread_rwlockattr_t attr;
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&store->layout, &attr);
	pthread_rwlockattr_destroy(&attr);
	pthread_mutex_init(&store->lock, NULL);
	pthread_mutex_init(&store->spare_lock, NULL);
	list_init(&store->wholes);
	return store;
}

int store_open(const struct store_config *config, struct store **ret, struct reason *why)
{
	struct store *store = store_new();
	int err = store ? copy_config(store, config) : -ENOMEM;
	if (!err)
		err = open_store_dir(store, config->read_only, why);
	if (!err)
		err = pools_open(store, config->pools, config->nr_pools, why);
	if (!err)
		err = set_up_trust(store, config, why);
	if (!err)
		err = make_parts(store, config);
	if (!err)
		err = load_managed(store, why);
	if (!err)
		err = pool_vms_load(store, why);
	if (err) {
		store_close(store);
		return err;
	}
	*ret = store;
	return 0;
}

int store_start(struct store *store)
{
	int err = found_start(store);
	if (err || !store->writable)
		return err;
	err = write_pid(store); /* the daemon's, now that it has forked */
	if (!err)
		err = pending_add_jobs(store);
	if (!err) {
		repair_plan(store);
		merges_plan(store);
		full_plan(store);
	}
	return err ? err : jobs_start(store);
}

void store_close(struct store *store)
{
	if (!store)
		return;
	jobs_free(store->jobs);
	flats_free(store->flats);
	found_free(store->found);
	stat_cache_free(store->stats);
	text_sizes_free(store->text_sizes);
	table_done(store);
	say_ended_in_order(store);
	layers_done(&store->layers);
	image_cache_free(store->images);
	trust_free(store->trust);
	close_dirs(store);
	pthread_rwlock_destroy(&store->layout);
	pthread_mutex_destroy(&store->lock);
	pthread_mutex_destroy(&store->spare_lock);
	free(store->source_dir);
	free(store->store_dir);
	free(store->snapshots_dir);
	free(store->mountpoint);
	free(store);
}

/* --- looking -------------------------------------------------------------------------------------------------------------------- */

int store_dirfd(const struct store *store)
{
	return store->store_fd;
}

bool store_is_writable(const struct store *store)
{
	return store->writable;
}

int store_statvfs(struct store *store, struct statvfs *ret)
{
	int err = store->store_fd >= 0 ? fstatvfs(store->store_fd, ret) : statvfs(store->source_dir, ret);
	return err < 0 ? -errno : 0;
}

size_t store_nr_pools(const struct store *store)
{
	return store->nr_pools;
}

const char *store_pool_name(const struct store *store, size_t i)
{
	return store->pools[i].name;
}

int store_pool_statvfs(struct store *store, const struct vm *vm, struct statvfs *ret)
{
	const struct pool *pool = pool_of_vm(store, vm);
	return !pool ? -ENODEV : fstatvfs(pool->dirfd, ret) < 0 ? -errno : 0;
}

struct image_cache *store_images(struct store *store)
{
	return store->images;
}

/* The pool's VM as its directory is now. */
static struct vm *refreshed(struct store *store, struct vm *vm)
{
	if (!vm || !pool_vm_refresh(store, vm))
		return vm;
	struct entry *entry = table_entry(store, vm->id);
	vm_put(vm);
	return table_current(store, entry);
}

struct vm *store_find_brief(struct store *store, enum vm_place place, const char *name)
{
	if (place == PLACE_POOLS)
		return pool_find(store, name, strlen(name)) ? refreshed(store, table_find(store, place, name)) : NULL;
	found_refresh(store);
	return table_find(store, place, name);
}

struct vm *store_get_brief(struct store *store, uint32_t vm_id)
{
	found_refresh(store);
	struct entry *entry = table_entry(store, vm_id);
	return entry ? refreshed(store, table_current(store, entry)) : NULL;
}

struct vm *store_whole(struct store *store, struct vm *vm)
{
	return whole_get(store, vm);
}

struct vm *store_find(struct store *store, enum vm_place place, const char *name)
{
	return whole_get(store, store_find_brief(store, place, name));
}

struct vm *store_get(struct store *store, uint32_t vm_id)
{
	return whole_get(store, store_get_brief(store, vm_id));
}

int store_list(struct store *store, enum vm_place place, struct vm ***ret, size_t *ret_nr)
{
	found_refresh(store);
	return table_list(store, place, ret, ret_nr);
}

int store_list_from(struct store *store, enum vm_place place, uint32_t first_id, size_t max, struct vm ***ret, size_t *ret_nr)
{
	found_refresh(store);
	return table_list_from(store, place, first_id, max, ret, ret_nr);
}
