#include "store/stat.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "store/source.h"
#include "store/store_internal.h"

#define NR_SLOTS    32768u /* 4 MiB */
#define FAILED_MS   1000   /* a disk that can't be served is looked at again after this */
#define CHECK_MS    5000   /* and any other: who may read it depends on every file of its chain, and on their directories */

/* One disk, as it was when its top file had that stamp. Which slot is told by a hash of the ids: the later disk wins. */
struct stat_slot {
	uint32_t vm_id, snapshot_id, disk_id;
	uint64_t stamp;
	int err;
	int64_t at_ms;
	struct disk_stat stat;
	uint64_t chain;	  /* stamp of the files that were counted; 0: none */
	uint64_t counted; /* bytes that they have allocated */
};

struct stat_cache {
	pthread_mutex_t lock;
	struct stat_slot slots[NR_SLOTS]; /* protected by lock */
};

int stat_cache_new(struct stat_cache **ret)
{
	*ret = calloc(1, sizeof **ret);
	if (!*ret)
		return -ENOMEM;
	pthread_mutex_init(&(*ret)->lock, NULL);
	return 0;
}

void stat_cache_free(struct stat_cache *cache)
{
	if (!cache)
		return;
	pthread_mutex_destroy(&cache->lock);
	free(cache);
}

static int64_t now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static struct stat_slot *slot_of(struct stat_cache *cache, const struct stat_slot *key)
{
	uint32_t ids[] = {key->vm_id, key->snapshot_id, key->disk_id};
	uint64_t hash = hash_bytes(HASH_START, ids, sizeof ids);
	return &cache->slots[(hash ^ hash >> 32) % NR_SLOTS];
}

static bool is_of(const struct stat_slot *slot, const struct stat_slot *key)
{
	return slot->vm_id == key->vm_id && slot->snapshot_id == key->snapshot_id && slot->disk_id == key->disk_id;
}

/* Fills in what is remembered of KEY's ids and stamp; false: it isn't to be relied on, but for what was counted. */
static bool cache_lookup(struct stat_cache *cache, struct stat_slot *key)
{
	pthread_mutex_lock(&cache->lock);
	const struct stat_slot *slot = slot_of(cache, key);
	bool hit = is_of(slot, key) && slot->stamp == key->stamp;
	bool fresh = hit && now_ms() - slot->at_ms < (slot->err ? FAILED_MS : CHECK_MS);
	if (fresh) {
		*key = *slot;
	} else if (hit && !slot->err) {
		key->chain = slot->chain;
		key->counted = slot->counted;
	}
	pthread_mutex_unlock(&cache->lock);
	return fresh;
}

static void cache_store(struct stat_cache *cache, const struct stat_slot *entry)
{
	pthread_mutex_lock(&cache->lock);
	*slot_of(cache, entry) = *entry;
	pthread_mutex_unlock(&cache->lock);
}

/* --- views ------------------------------------------------------------------------------------------------------------------ */

/* Of the files that VIEW reads, as they are. */
static uint64_t chain_stamp(const struct view *view)
{
	uint64_t hash = HASH_START;
	for (size_t i = 0; i < view_depth(view); i++) {
		uint64_t stamp = stamp_make(image_stat(view_layer(view, i)));
		hash = hash_bytes(hash, &stamp, sizeof stamp);
	}
	return hash ? hash : 1;
}

static uint64_t hash_snapshot(uint64_t hash, const struct image_snapshot *snapshot)
{
	uint64_t words[] = {(uint64_t)snapshot->date_sec, snapshot->date_nsec, snapshot->l1_offset, snapshot->l1_size, snapshot->virtual_size};
	return hash_text(hash_bytes(hash, words, sizeof words), snapshot->id);
}

/* STAMP says when the file last changed. */
static uint64_t hash_file(uint64_t hash, const struct stat *st, bool stamp)
{
	uint64_t words[] = {st->st_dev, st->st_ino, stamp ? stamp_make(st) : 0};
	return hash_bytes(hash, words, sizeof words);
}

uint64_t stat_content(const struct store *store, const struct view *view)
{
	const struct image_snapshot *snapshot = view_snapshot(view);
	uint64_t hash = snapshot ? hash_snapshot(HASH_START, snapshot) : HASH_START;
	for (size_t i = 0; i < view_depth(view); i++) {
		char layer[LAYER_NAME_MAX];
		const struct image *image = view_layer(view, i);
		/* A VM's image goes on changing, its internal snapshots don't. */
		bool stamp = !(i == 0 && snapshot) && !layer_of_path(store, image_path(image), layer);
		hash = hash_file(hash, image_stat(image), stamp);
		if (image_data_stat(image))
			hash = hash_file(hash, image_data_stat(image), stamp);
	}
	return hash;
}

/* view_allocated(), which may have to read all tables, where KNOWN doesn't tell it. What was counted is put there. KNOWN and VIEW may be NULL. */
static int count(struct view *view, struct stat_slot *known, uint64_t *ret)
{
	uint64_t chain = view && known ? chain_stamp(view) : 0;
	*ret = known ? known->counted : 0;
	if (!view || (known && known->chain == chain)) {
		*ret = view ? *ret : 0;
		return 0;
	}
	int err = view_allocated(view, ret);
	if (!err && known) {
		known->chain = chain;
		known->counted = *ret;
	}
	return err;
}

static int stat_counted(struct view *view, int64_t created, struct stat_slot *known, struct disk_stat *ret)
{
	struct access access;
	uint64_t allocated = 0;
	int err = count(view, known, &allocated);
	if (err)
		return err;
	view_access(view, &access);
	*ret = (struct disk_stat){
		.virtual_size = view_virtual_size(view),
		.allocated = allocated,
		.uid = access.uid,
		.gid = access.gid,
		.mode = access.mode,
		.mtime = created ? (struct timespec){.tv_sec = created} : image_stat(view_layer(view, 0))->st_mtim,
		.depth = view_depth(view),
	};
	return 0;
}

int stat_view(struct view *view, int64_t created, struct disk_stat *ret)
{
	return stat_counted(view, created, NULL, ret);
}

/* --- heads ------------------------------------------------------------------------------------------------------------------- */

/* Takes away what the files beneath don't grant. That the store's own directory is closed to others doesn't count: its layers
 * are reached through the mount. */
static void restrict_by_view(struct store *store, struct access *access, const struct view *view)
{
	struct access_path last = ACCESS_PATH_INIT;
	for (size_t i = 0; i < view_depth(view); i++) {
		const struct image *image = view_layer(view, i);
		access_restrict(access, image_stat(image));
		char layer[LAYER_NAME_MAX];
		if (!layer_of_path(store, image_path(image), layer))
			access_restrict_by_path(access, &last, image_path(image), image_stat(image));
		const char *data = image_data_path(image);
		if (data) {
			access_restrict(access, image_data_stat(image));
			access_restrict_by_path(access, &last, data, image_data_stat(image));
		}
	}
	access_path_done(&last);
}

/* FILE is the head's own file; BENEATH may be NULL. */
static int stat_over(struct store *store, const struct stat *file, uint64_t virtual_size, struct view *beneath, struct stat_slot *known,
		     struct disk_stat *ret)
{
	struct access access = {.uid = file->st_uid, .gid = file->st_gid, .mode = (file->st_mode | 0400) & 0444};
	uint64_t allocated = 0;
	int err = count(beneath, known, &allocated);
	if (err)
		return err;
	if (beneath)
		restrict_by_view(store, &access, beneath);
	allocated += S_ISBLK(file->st_mode) ? virtual_size : (uint64_t)file->st_blocks * 512;
	*ret = (struct disk_stat){
		.virtual_size = virtual_size,
		.allocated = allocated < virtual_size ? allocated : virtual_size,
		.uid = file->st_uid,
		.gid = file->st_gid,
		.mode = access.mode | ((file->st_mode | 0200) & 0222),
		.mtime = file->st_mtim,
		.depth = 1 + (beneath ? view_depth(beneath) : 0),
	};
	return 0;
}

int stat_head(struct store *store, struct open_head *oh, struct disk_stat *ret)
{
	pthread_rwlock_rdlock(&oh->swap);
	int err = oh->lost_err;
	if (oh->head) {
		struct stat st;
		struct view *beneath = head_below(oh->head);
		head_stat(oh->head, &st);
		err = stat_over(store, &st, head_virtual_size(oh->head), beneath, NULL, ret);
		view_put(beneath);
	}
	pthread_rwlock_unlock(&oh->swap);
	return err;
}

/* A managed disk that isn't open. */
static int stat_closed_head(struct store *store, const struct vm_disk *disk, struct stat_slot *known, struct disk_stat *ret, struct reason *why)
{
	struct image *image = NULL;
	struct view *beneath = NULL;
	int err = layer_open_image(store, disk->layer, &image, why);
	if (err)
		return err;
	err = beneath_open(store, disk, &beneath, why);
	if (!err)
		err = stat_over(store, image_stat(image), image_virtual_size(image), beneath, known, ret);
	view_put(beneath);
	image_put(image);
	return err;
}

/* --- disks --------------------------------------------------------------------------------------------------------------------- */

static int stat_frozen(struct store *store, const struct vm_snapshot *snapshot, const struct vm_disk *disk, struct stat_slot *known,
		       struct disk_stat *ret, struct reason *why)
{
	struct disk_source source = {disk->path, disk->format, disk->snapshot};
	struct view *view = NULL;
	int err = layers_open_view(store, &source, &view, why);
	if (!err)
		err = stat_counted(view, snapshot ? snapshot->created : 0, known, ret);
	view_put(view);
	return err;
}

/* The top file of the disk: its stamp, and what is known when all else fails. */
static int stat_top(struct store *store, const struct vm_disk *disk, const struct vm_snapshot *snapshot, struct stat_slot *key,
		    struct reason *why)
{
	auto_free char *real = NULL;
	struct stat st;
	int err = trust_resolve(store->trust, NULL, disk->path, &real, why);
	if (err)
		return err;
	if (lstat(real, &st) < 0)
		return reason_set(why, -errno, "%s: %s", real, strerror(errno));
	key->stamp = hash_text(stamp_make(&st), disk->path);
	if (disk->layer) {
		uint64_t nr_merges = layers_nr_merges(store);
		key->stamp = hash_bytes(key->stamp, &nr_merges, sizeof nr_merges);
	}
	key->stat.uid = st.st_uid;
	key->stat.gid = st.st_gid;
	key->stat.mode = st.st_mode & (disk->layer ? 0666 : 0444);
	key->stat.mtime = snapshot && snapshot->created ? (struct timespec){.tv_sec = snapshot->created} : st.st_mtim;
	return 0;
}

/* The open head of a managed disk, with one more who looks at it; NULL: it isn't open. */
static struct open_head *borrow_head(struct store *store, const struct vm *vm, const struct vm_disk *disk)
{
	struct entry *entry = table_entry(store, vm->id);
	pthread_mutex_lock(&entry->change);
	struct open_head *oh = head_lookup(store, disk);
	if (oh) {
		oh->nr_users++;
		oh->nr_lookers++;
	}
	pthread_mutex_unlock(&entry->change);
	return oh;
}

static int return_head(struct store *store, struct open_head *oh)
{
	struct entry *entry = oh->entry;
	pthread_mutex_lock(&entry->change);
	oh->nr_lookers--;
	int err = head_put_locked(store, oh);
	pthread_mutex_unlock(&entry->change);
	return err;
}

static int stat_disk(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk,
		     struct stat_slot *key, struct reason *why)
{
	if (disk->error) {
		key->stat.mode = 0444;
		if (disk->path && (disk->layer || *disk->path == '/'))
			stat_top(store, disk, snapshot, key, NULL);
		return reason_set(why, disk->error, "%s", disk->error_text ? disk->error_text : strerror(-disk->error));
	}
	struct open_head *oh = disk->layer ? borrow_head(store, vm, disk) : NULL;
	if (oh) {
		int err = stat_head(store, oh, &key->stat);
		int close_err = return_head(store, oh);
		return err ? err : close_err;
	}
	key->stat.mode = 0444;
	int err = stat_top(store, disk, snapshot, key, why);
	if (err || cache_lookup(store->stats, key))
		return err ? err : reason_set(why, key->err, "%s", key->err ? strerror(-key->err) : "");
	struct disk_stat made;
	err = disk->layer ? stat_closed_head(store, disk, key, &made, why) : stat_frozen(store, snapshot, disk, key, &made, why);
	if (!err)
		key->stat = made;
	key->err = err;
	key->at_ms = now_ms();
	cache_store(store->stats, key);
	return err;
}

/* The VM's description, if the disk's layer is another by now than in VM, which may be old: then the one that VM names may be gone. NULL: it isn't. */
static struct vm *newer_description(struct store *store, const struct vm *vm, const struct vm_disk *disk)
{
	struct vm *now = disk->layer ? table_current(store, table_entry(store, vm->id)) : NULL;
	const struct vm_disk *disk_now = now ? vm_disk_by_id(now->disks, now->nr_disks, disk->id) : NULL;
	if (disk_now && disk_now->layer && strcmp(disk_now->layer, disk->layer) != 0)
		return now;
	vm_put(now);
	return NULL;
}

int disk_stat(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk,
	      struct disk_stat *ret, struct reason *why)
{
	struct stat_slot key = {.vm_id = vm->id, .snapshot_id = snapshot ? snapshot->id : 0, .disk_id = disk->id};
	if (why)
		why->text[0] = '\0';
	int err = stat_disk(store, vm, snapshot, disk, &key, why);
	struct vm *now = err && !snapshot ? newer_description(store, vm, disk) : NULL;
	if (now)
		err = disk_stat(store, now, NULL, vm_disk_by_id(now->disks, now->nr_disks, disk->id), ret, why);
	else
		*ret = key.stat;
	vm_put(now);
	return err;
}

bool disk_forget_failure(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk)
{
	const struct stat_slot key = {.vm_id = vm->id, .snapshot_id = snapshot ? snapshot->id : 0, .disk_id = disk->id};
	pthread_mutex_lock(&store->stats->lock);
	struct stat_slot *slot = slot_of(store->stats, &key);
	bool failed = slot->err && is_of(slot, &key);
	if (failed)
		*slot = (struct stat_slot){0};
	pthread_mutex_unlock(&store->stats->lock);
	return failed;
}

static void add_layers(struct strbuf *b, const struct view *view)
{
	for (size_t i = 0; view && i < view_depth(view); i++)
		strbuf_addf(b, "%s\n", image_path(view_layer(view, i)));
}

static int list_chain(struct store *store, const struct vm_disk *disk, char **ret, struct reason *why)
{
	if (disk->error)
		return reason_set(why, disk->error, "%s", disk->error_text ? disk->error_text : strerror(-disk->error));
	struct strbuf b = {0};
	struct view *view = NULL;
	int err;
	if (disk->layer) {
		strbuf_addf(&b, "%s\n", disk->path);
		err = beneath_open(store, disk, &view, why);
	} else {
		struct disk_source source = {disk->path, disk->format, disk->snapshot};
		err = layers_open_view(store, &source, &view, why);
	}
	add_layers(&b, view);
	view_put(view);
	if (!err)
		return strbuf_take(&b, ret, NULL);
	strbuf_done(&b);
	return err;
}

int disk_chain(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk,
	       char **ret, struct reason *why)
{
	int err = list_chain(store, disk, ret, why);
	struct vm *now = err && !snapshot ? newer_description(store, vm, disk) : NULL;
	if (now)
		err = disk_chain(store, now, NULL, vm_disk_by_id(now->disks, now->nr_disks, disk->id), ret, why);
	vm_put(now);
	return err;
}
