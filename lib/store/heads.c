#include "store/heads.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "block/image_locks.h"
#include "store/pending.h"
#include "store/store_internal.h"

/* --- frozen disks ------------------------------------------------------------------------------------------------ */

/* PATH with its directory resolved: relative names in the image's own header mean the same from there. */
static int with_real_dir(struct store *store, const char *path, char **ret, struct reason *why)
{
	const char *slash = strrchr(path, '/');
	if (!slash)
		return -EINVAL;
	auto_free char *dir = strndup(path, slash == path ? 1 : (size_t)(slash - path));
	auto_free char *real = NULL;
	if (!dir)
		return -ENOMEM;
	int err = trust_resolve(store->trust, NULL, dir, &real, why);
	if (err)
		return err;
	return asprintf(ret, "%s%s", strcmp(real, "/") == 0 ? "" : real, slash) < 0 ? -ENOMEM : 0;
}

int frozen_new(struct store *store, struct view *view, const char *path, const char *snapshot, struct frozen **ret,
	       struct reason *why)
{
	struct frozen *frozen = calloc(1, sizeof *frozen);
	if (!frozen)
		return -ENOMEM;
	atomic_init(&frozen->nr_refs, 1);
	frozen->view = view_ref(view);
	frozen->format = image_format(view_layer(view, 0));
	int err = text_set(&frozen->snapshot, snapshot);
	if (!err)
		err = with_real_dir(store, path, &frozen->path, why);
	if (err) {
		frozen_put(frozen);
		return err;
	}
	*ret = frozen;
	return 0;
}

struct frozen *frozen_ref(struct frozen *frozen)
{
	if (frozen)
		atomic_fetch_add(&frozen->nr_refs, 1);
	return frozen;
}

void frozen_put(struct frozen *frozen)
{
	if (!frozen || atomic_fetch_sub(&frozen->nr_refs, 1) != 1)
		return;
	view_put(frozen->view);
	free(frozen->path);
	free(frozen->snapshot);
	free(frozen);
}

/* --- opening and closing ---------------------------------------------------------------------------------------- */

/* Between vm.xml and the header the header decides: a disk that was emptied, or wasn't put over its snapshot yet when the daemon was
 * killed, has no use for the snapshot. */
static bool names_pending_base(const struct vm_disk *disk, const struct image *image)
{
	const char *backing = image_backing_name(image);
	const char *slash = backing ? strrchr(backing, '/') : NULL; /* from a pool: no other file has that name */
	return disk->pending_path && backing && strcmp(slash ? slash + 1 : backing, disk->pending_base) == 0;
}

int beneath_open(struct store *store, const struct vm_disk *disk, struct view **ret, struct reason *why)
{
	struct image *image = NULL;
	struct view *beneath = NULL;
	pthread_rwlock_rdlock(&store->layout);
	int err = layer_open_image(store, disk->layer, &image, why);
	bool pending = !err && names_pending_base(disk, image);
	if (!err && !pending)
		err = view_open_backing(store->images, image, &beneath, why);
	pthread_rwlock_unlock(&store->layout);
	if (pending)
		err = pending_open(store, disk, &beneath, why);
	image_put(image);
	if (!err)
		*ret = beneath;
	return err;
}

int head_relock(struct open_head *oh, struct view *view, struct reason *why)
{
	int err = view ? view_lock(view, why) : 0;
	if (err)
		return err;
	if (oh->locked) {
		view_unlock(oh->locked);
		view_put(oh->locked);
	}
	oh->locked = view_ref(view);
	return 0;
}

static int open_layer(struct store *store, const char *layer, struct view *beneath, struct head **ret, struct reason *why)
{
	auto_free char *path = layer_path(store, layer);
	struct layer_place at;
	auto_close int device = -1;
	const struct pool *pool = layer_pool(store, layer);
	int err = path ? layer_place_to_open(store, layer, O_RDWR | O_EXCL, &at, &device, why) : -ENOMEM;
	if (!err && layer_format(layer) == IMAGE_RAW)
		err = beneath ? -EUCLEAN : head_open_raw(at.dirfd, at.name, path, ret, why);
	else if (!err)
		err = head_open(at.dirfd, at.name, path, beneath, ret, why);
	if (!err && pool)
		head_set_names(*ret, &pool->head_names);
	return err;
}

/* Also when it then can't be opened: who tries again looks for it by this name. */
static void set_layer(struct store *store, struct open_head *oh, const char *layer)
{
	/* What the disk was put over lies under more than this now: nothing can be shared with it any more. */
	if (strcmp(oh->layer, layer) != 0)
		frozen_put(take_ptr(oh->origin));
	pthread_mutex_lock(&store->lock);
	snprintf(oh->layer, sizeof oh->layer, "%s", layer);
	pthread_mutex_unlock(&store->lock);
}

int head_attach(struct store *store, struct open_head *oh, const char *layer, struct view *beneath, struct reason *why)
{
	set_layer(store, oh, layer);
	int err = head_relock(oh, beneath, why);
	if (err)
		return err == -ESTALE ? -EAGAIN : err;
	err = open_layer(store, layer, beneath, &oh->head, why);
	if (err) {
		oh->lost_err = err;
		head_relock(oh, NULL, NULL);
		return err;
	}
	return 0;
}

int head_detach(struct open_head *oh)
{
	if (oh->head)
		oh->lost_size = head_virtual_size(oh->head);
	int err = oh->head ? head_close(take_ptr(oh->head)) : 0;
	if (err)
		atomic_store(&oh->unsaved_err, err);
	oh->lost_err = -EIO;
	head_relock(oh, NULL, NULL);
	return err;
}

static void open_head_free(struct open_head *oh)
{
	if (!oh)
		return;
	frozen_put(oh->hint);
	frozen_put(oh->origin);
	pthread_rwlock_destroy(&oh->swap);
	free(oh);
}

static struct open_head *open_head_new(struct entry *entry)
{
	struct open_head *oh = calloc(1, sizeof *oh);
	if (!oh)
		return NULL;
	oh->entry = entry;
	pthread_rwlockattr_t attr;
	pthread_rwlockattr_init(&attr);
	/* Who exchanges the head must get its turn while readers keep coming. */
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&oh->swap, &attr);
	pthread_rwlockattr_destroy(&attr);
	return oh;
}

struct open_head *head_lookup(struct store *store, const struct vm_disk *disk)
{
	pthread_mutex_lock(&store->lock);
	struct open_head *oh = store->heads;
	while (oh && strcmp(oh->layer, disk->layer) != 0)
		oh = oh->next;
	pthread_mutex_unlock(&store->lock);
	return oh;
}

int head_reattach(struct store *store, struct open_head *oh, const struct vm_disk *disk, struct reason *why)
{
	int err = -EAGAIN;
	set_layer(store, oh, disk->layer);
	for (unsigned i = 0; i < OPEN_TRIES && err == -EAGAIN; i++) {
		struct view *beneath = NULL;
		err = beneath_open(store, disk, &beneath, why);
		if (!err)
			err = head_attach(store, oh, disk->layer, beneath, why);
		view_put(beneath);
	}
	return err == -EAGAIN ? reason_set(why, -EBUSY, "%s is being changed by another program", disk->path) : err;
}

/* A head that was lost (the disk was full when it should have been opened again, say) gets another chance with each new user. */
static void retry_lost(struct store *store, struct open_head *oh, const struct vm_disk *disk)
{
	pthread_rwlock_wrlock(&oh->swap);
	if (!oh->head)
		head_reattach(store, oh, disk, NULL);
	pthread_rwlock_unlock(&oh->swap);
}

void head_revive(struct store *store, struct open_head *oh)
{
	struct timespec now_ts;
	clock_gettime(CLOCK_MONOTONIC, &now_ts);
	if (atomic_load(&oh->no_revival) == now_ts.tv_sec || pthread_mutex_trylock(&oh->entry->change) != 0)
		return;
	atomic_store(&oh->no_revival, now_ts.tv_sec);
	struct vm *now = table_current(store, oh->entry);
	for (size_t i = 0; now && i < now->nr_disks; i++)
		if (now->disks[i].layer && strcmp(now->disks[i].layer, oh->layer) == 0 && !now->disks[i].error)
			retry_lost(store, oh, &now->disks[i]);
	vm_put(now);
	pthread_mutex_unlock(&oh->entry->change);
}

static void put_in(struct store *store, struct open_head *oh)
{
	pthread_mutex_lock(&store->lock);
	oh->next = store->heads;
	store->heads = oh;
	pthread_mutex_unlock(&store->lock);
}

static void take_out(struct store *store, struct open_head *oh)
{
	pthread_mutex_lock(&store->lock);
	for (struct open_head **at = &store->heads; *at; at = &(*at)->next) {
		if (*at == oh) {
			*at = oh->next;
			break;
		}
	}
	pthread_mutex_unlock(&store->lock);
}

int head_get(struct store *store, struct entry *entry, const struct vm_disk *disk, struct open_head **ret,
	     struct reason *why)
{
	if (disk->error)
		return reason_set(why, disk->error, "%s", disk->error_text ? disk->error_text : strerror(-disk->error));
	struct open_head *oh = head_lookup(store, disk);
	if (oh) {
		retry_lost(store, oh, disk);
		oh->nr_users++;
		*ret = oh;
		return 0;
	}
	oh = open_head_new(entry);
	if (!oh)
		return -ENOMEM;
	set_layer(store, oh, disk->layer);
	put_in(store, oh); /* what comes beneath it from now on, it hears of */
	int err = head_reattach(store, oh, disk, why);
	if (err) {
		take_out(store, oh);
		open_head_free(oh);
		return err;
	}
	oh->nr_users = 1;
	*ret = oh;
	return 0;
}

int head_put_locked(struct store *store, struct open_head *oh)
{
	if (atomic_fetch_sub(&oh->nr_users, 1) != 1)
		return 0;
	head_detach(oh);
	int err = atomic_load(&oh->unsaved_err);
	take_out(store, oh);
	bool removed = oh->removed;
	open_head_free(oh);
	if (removed)
		layers_sweep(store);
	return err;
}

int head_put(struct store *store, struct open_head *oh)
{
	struct entry *entry = oh->entry;
	pthread_mutex_lock(&entry->change);
	int err = head_put_locked(store, oh);
	pthread_mutex_unlock(&entry->change);
	return err;
}

bool heads_in_use(struct store *store, const struct entry *entry)
{
	pthread_mutex_lock(&store->lock);
	const struct open_head *oh = store->heads;
	while (oh && (oh->entry != entry || oh->removed || oh->nr_users == oh->nr_lookers))
		oh = oh->next;
	pthread_mutex_unlock(&store->lock);
	return oh;
}

int head_check_foreign(struct store *store, const struct vm_disk *disk, struct reason *why)
{
	if (!disk->layer || disk->found || head_lookup(store, disk))
		return 0;
	auto_free char *path = layer_path(store, disk->layer);
	auto_close int fd = path ? open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC) : -1;
	if (fd < 0)
		return path ? 0 : -ENOMEM; /* nobody has it, either */
	return image_locks_take(fd, IMAGE_LOCK_WRITE, path, why) == -EBUSY ? -EBUSY : 0;
}

int heads_check_foreign(struct store *store, const struct vm *now, struct reason *why)
{
	int err = 0;
	for (size_t i = 0; i < now->nr_disks && !err; i++)
		err = head_check_foreign(store, &now->disks[i], why);
	return err;
}

bool heads_have_writer(struct store *store, const struct entry *entry)
{
	pthread_mutex_lock(&store->lock);
	const struct open_head *oh = store->heads;
	while (oh && (oh->entry != entry || !oh->nr_writers))
		oh = oh->next;
	pthread_mutex_unlock(&store->lock);
	return oh;
}

bool heads_are_open(struct store *store, const struct entry *entry)
{
	pthread_mutex_lock(&store->lock);
	const struct open_head *oh = store->heads;
	while (oh && (oh->entry != entry || oh->removed))
		oh = oh->next;
	pthread_mutex_unlock(&store->lock);
	return oh;
}

void heads_removed(struct store *store, const struct entry *entry)
{
	pthread_mutex_lock(&store->lock);
	for (struct open_head *oh = store->heads; oh; oh = oh->next)
		if (oh->entry == entry)
			oh->removed = true;
	pthread_mutex_unlock(&store->lock);
}

/* --- after a merge ------------------------------------------------------------------------------------------------ */

static bool passes_through(struct store *store, const struct view *view, char (*names)[LAYER_NAME_MAX], size_t nr)
{
	for (size_t i = 0; view && i < view_depth(view); i++) {
		char layer[LAYER_NAME_MAX];
		bool is_layer = layer_of_path(store, image_path(view_layer(view, i)), layer);
		for (size_t n = 0; is_layer && n < nr; n++)
			if (strcmp(layer, names[n]) == 0)
				return true;
	}
	return false;
}

static int replace_beneath(struct store *store, struct open_head *oh)
{
	struct view *fresh = NULL;
	int err = layers_open_beneath(store, oh->layer, &fresh, NULL);
	if (err || !fresh)
		return err;
	pthread_rwlock_wrlock(&oh->swap);
	if (oh->head && !(err = head_relock(oh, fresh, NULL)))
		head_replace_below(oh->head, fresh);
	pthread_rwlock_unlock(&oh->swap);
	view_put(fresh);
	return err;
}

/* The caller holds the VM's change lock. */
static int reopen_beneath(struct store *store, struct open_head *oh, char (*names)[LAYER_NAME_MAX], size_t nr)
{
	pthread_rwlock_rdlock(&oh->swap);
	struct view *old = oh->head ? head_below(oh->head) : NULL;
	pthread_rwlock_unlock(&oh->swap);
	bool affected = passes_through(store, old, names, nr);
	view_put(old);
	if (!affected)
		return 0;
	int err = -ESTALE;
	for (unsigned i = 0; i < OPEN_TRIES && err == -ESTALE; i++)
		err = replace_beneath(store, oh);
	return err == -ESTALE ? -EBUSY : err;
}

/* The open heads of ENTRY; the caller frees. */
static size_t list_heads(struct store *store, const struct entry *entry, struct open_head ***ret, int *ret_err)
{
	size_t nr = 0, cap = 0;
	struct open_head **list = NULL;
	pthread_mutex_lock(&store->lock);
	for (struct open_head *oh = store->heads; oh; oh = oh->next) {
		if (oh->entry != entry)
			continue;
		if (mem_grow(&list, &cap, nr + 1, sizeof(struct open_head *)) < 0)
			*ret_err = -ENOMEM;
		else
			list[nr++] = oh;
	}
	pthread_mutex_unlock(&store->lock);
	*ret = list;
	return nr;
}

static int reopen_beneath_all_of(struct store *store, struct entry *entry, char (*names)[LAYER_NAME_MAX], size_t nr)
{
	auto_free struct open_head **list = NULL;
	int first_err = 0;
	pthread_mutex_lock(&entry->change); /* so none of them goes */
	size_t nr_heads = list_heads(store, entry, &list, &first_err);
	for (size_t i = 0; i < nr_heads; i++) {
		int err = reopen_beneath(store, list[i], names, nr);
		first_err = first_err ? first_err : err;
	}
	pthread_mutex_unlock(&entry->change);
	return first_err;
}

int heads_reopen_beneath(struct store *store, char (*names)[LAYER_NAME_MAX], size_t nr)
{
	int first_err = 0;
	pthread_mutex_lock(&store->lock);
	size_t nr_entries = store->nr_entries;
	auto_free bool *has_heads = mem_new_array(nr_entries + 1, sizeof *has_heads);
	for (const struct open_head *oh = store->heads; has_heads && oh; oh = oh->next)
		has_heads[oh->entry->id] = true;
	pthread_mutex_unlock(&store->lock);
	if (!has_heads)
		return -ENOMEM;
	for (uint32_t id = 1; id <= nr_entries; id++) {
		int err = has_heads[id] ? reopen_beneath_all_of(store, table_entry(store, id), names, nr) : 0;
		first_err = first_err ? first_err : err;
	}
	return first_err;
}
