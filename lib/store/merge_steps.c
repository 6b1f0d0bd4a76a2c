#include "store/merge_steps.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/merge.h"
#include "store/full_raw.h"
#include "store/store_internal.h"

#define CHUNK	   (4u << 20)	 /* between two looks at `stop`; what a guest's flush may have to wait for */
#define WHOLE_CHUNK (32u << 20) /* of a whole chain: all processors have something to do */
#define FLUSH_EACH  (128u << 20) /* of a whole chain */
#define ZEROS_CHUNK (1ull << 30) /* of zeros */

/* --- the destination ------------------------------------------------------------------------------------------------ */

/* What is pushed shows to who reads the destination by itself: where somebody does, the top takes up all. */
static int cannot_push(struct merge *m, int err)
{
	merge_close_dest(m);
	m->pull_only = err == -EBUSY && !m->into_raw;
	return m->pull_only ? MERGE_AGAIN : err;
}

static int claim_dest(struct merge *m, struct reason *why)
{
	int err = m->into ? head_claim(m->dest, m->store->images, why) : 0;
	return err ? cannot_push(m, err) : 0;
}

int merge_check_readers(struct merge *m, const struct view *beneath_head, struct reason *why)
{
	auto_free struct stat *files = mem_new_array(m->into + 1, sizeof *files);
	int err = files ? 0 : -ENOMEM;
	for (size_t i = 0; !err && i <= m->into; i++) {
		const struct layer_place at = layer_place(m->store, m->run.names[i]);
		if (fstatat(at.dirfd, at.name, &files[i], 0) < 0) /* of a device, whose name is often a link */
			err = -errno;
	}
	if (!err && views_read_without(m->store->images, beneath_head, &files[m->into], files, m->into))
		err = cannot_push(m, reason_set(why, -EBUSY, "%s is read by who opened it before it became what it is now", m->run.names[m->into]));
	return err;
}

int merge_open_dest(struct merge *m, struct reason *why)
{
	struct store *store = m->store;
	const char *name = m->run.names[m->into];
	auto_free char *path = layer_path(store, name);
	const struct layer_place at = layer_place(store, name);
	struct view *below = NULL;
	struct layer_place to_open = at;
	auto_close int device = -1;
	int err = path ? layer_place_to_open(store, name, O_RDWR, &to_open, &device, why) : -ENOMEM;
	/* A device's name is often a link; it is the device that is written to. */
	if (!err && (device >= 0 ? fstat(device, &m->dest_st) : fstatat(at.dirfd, at.name, &m->dest_st, AT_SYMLINK_NOFOLLOW)) < 0)
		err = -errno;
	if (!err)
		err = layers_open_beneath(store, name, &below, why);
	if (err)
		return err;
	/* Before the first write: those who have it open must not take it for changed. */
	err = image_cache_expect_changes(store->images, m->dest_st.st_dev, m->dest_st.st_ino, true);
	if (!err) {
		err = layer_format(name) == IMAGE_RAW ? head_open_raw_frozen(to_open.dirfd, to_open.name, path, &m->dest, why)
						       : head_open_frozen(to_open.dirfd, to_open.name, path, below, &m->dest, why);
		if (err)
			image_cache_expect_changes(store->images, m->dest_st.st_dev, m->dest_st.st_ino, false);
	}
	view_put(below);
	return err ? err : claim_dest(m, why);
}

int merge_close_dest(struct merge *m)
{
	if (!m->dest)
		return 0;
	int err = head_close(take_ptr(m->dest));
	image_cache_expect_changes(m->store->images, m->dest_st.st_dev, m->dest_st.st_ino, false);
	return err;
}

int merge_view_error(struct view *view, int err, struct reason *why)
{
	if (err != -ESTALE || !view_check(view))
		return err == -ESTALE ? MERGE_AGAIN : err;
	size_t i = view_depth(view) - 1;
	while (i && image_is_unchanged(view_layer(view, i)))
		i--;
	return reason_set(why, -EBUSY, "%s was changed by another program while it was copied", image_path(view_layer(view, i)));
}

int merge_lock_view(struct view *view, struct reason *why)
{
	return merge_view_error(view, view_lock(view, why), why);
}

/* --- pieces --------------------------------------------------------------------------------------------------------- */

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Of a whole chain what was there already counts too, for it goes on where it was: its share of the disk. */
static void add_progress(struct merge *m, uint64_t stored, uint64_t off, uint64_t size)
{
	struct job_progress *progress = &m->job->progress;
	if (m->whole)
		atomic_store(&progress->done, (uint64_t)((double)atomic_load(&progress->total) * ((double)off / (double)size)));
	else
		atomic_fetch_add(&progress->done, stored);
}

int merge_each(struct merge *m, struct view *view, size_t nr_layers, uint64_t size, merge_fn fn, void *ctx)
{
	for (uint64_t off = 0; off < size;) {
		struct extent e;
		uint64_t stored = 0;
		if (atomic_load(&m->job->progress.stop))
			return -ECANCELED;
		if (m->run.is_head && atomic_load(&m->entry->nr_waiting))
			return MERGE_AGAIN; /* somebody wants the disks closed */
		int err = view_map_top(view, nr_layers, off, size - off, &e);
		if (err)
			return err;
		uint64_t len = e.len;
		if (e.kind != EXTENT_UNALLOCATED) {
			len = min_u64(size - off, e.kind == EXTENT_ZERO && e.len > CHUNK ? min_u64(e.len, ZEROS_CHUNK) : m->whole ? WHOLE_CHUNK : CHUNK);
			err = fn(m, ctx, off, len, &stored);
		}
		if (err)
			return err;
		off += len;
		add_progress(m, stored, off, size);
	}
	return 0;
}

/* --- pull ----------------------------------------------------------------------------------------------------------- */

static int pull_piece(struct merge *m, void *ctx, uint64_t guest_off, uint64_t len, uint64_t *ret_stored)
{
	(void)ctx;
	int err = head_pull(m->dest, m->nr_pulled, guest_off, len, ret_stored);
	return err ? err : merge_flush_some(m, m->dest, *ret_stored);
}

int merge_flush_some(struct merge *m, struct head *head, uint64_t stored)
{
	m->nr_unflushed += stored;
	if (!m->whole || m->nr_unflushed < FLUSH_EACH)
		return 0;
	m->nr_unflushed = 0;
	return head_flush(head);
}

void merge_plan_pull(struct merge *m, const struct view *below)
{
	uint64_t total = 0;
	m->nr_pulled = m->whole ? view_depth(below) : m->run.nr - 1 - m->into;
	if (m->whole && view_allocated((struct view *)below, &total) == 0) {
		atomic_store(&m->job->progress.done, 0);
		atomic_store(&m->job->progress.total, total);
	}
}

/* How HEAD's header may say already what it is to say: an attempt before this one wrote that, and failed to hear so. */
static bool may_be_rebased(const struct merge *m, const struct view *below)
{
	char name[LAYER_NAME_MAX];
	if (!below || m->whole)
		return !below;
	return !layer_of_path(m->store, image_path(view_layer(below, 0)), name) || strcmp(name, m->run.names[m->into + 1]) != 0;
}

int merge_pull(struct merge *m, struct reason *why)
{
	struct view *below = head_below(m->dest);
	if (may_be_rebased(m, below)) {
		view_put(below);
		return merge_rebase_again(m, m->dest, NULL, why);
	}
	/* Nobody else writes to what is being copied. */
	int err = merge_lock_view(below, why);
	if (!err) {
		merge_plan_pull(m, below);
		err = head_pull(m->dest, m->nr_pulled, 0, 0, NULL); /* begins it, should there be nothing to do */
		if (!err)
			err = merge_each(m, below, m->nr_pulled, head_virtual_size(m->dest), pull_piece, NULL);
		err = merge_view_error(below, err, why);
		view_unlock(below);
	}
	view_put(below);
	if (!err)
		err = head_flush(m->dest);
	return err ? err : merge_rebase(m, m->dest, NULL, why);
}

/* How the destination's header names what the header of LAST, in another directory, calls NAME. */
static int name_from_dest(struct merge *m, const char *last, char **name, struct reason *why)
{
	struct store *store = m->store;
	const char *dest = m->run.names[m->into];
	auto_free char *real = NULL;
	auto_free char *old_name = take_ptr(*name);
	if (layers_share_dir(last, dest)) {
		*name = take_ptr(old_name);
		return 0;
	}
	int err = trust_resolve(store->trust, layer_place(store, last).dir, old_name, &real, why);
	return err ? err : layer_backing_name(store, dest, real, name, why);
}

/* What lies below the run, and how the destination's header is to name that; NAME NULL: nothing. */
static int open_below_run(struct merge *m, struct view **ret, char **ret_name, enum image_format *ret_format, struct reason *why)
{
	struct store *store = m->store;
	struct image *last = NULL;
	const char *last_name = m->run.names[m->run.nr - 1];
	pthread_rwlock_rdlock(&store->layout);
	int err = layer_open_image(store, last_name, &last, why);
	if (!err) {
		const char *name = image_backing_name(last);
		*ret_name = name ? strdup(name) : NULL;
		*ret_format = image_backing_format(last);
		err = name && !*ret_name ? -ENOMEM : view_open_backing(store->images, last, ret, why);
		image_put(last);
	}
	if (!err && *ret_name)
		err = name_from_dest(m, last_name, ret_name, why);
	pthread_rwlock_unlock(&store->layout);
	return err;
}

/* What is to lie beneath the head. AGAIN: it may be there already (merge_may_be_rebased()), BENEATH, and reads the same; the name is written once more to be
 * stable. */
struct lower {
	struct view *view;
	char *name;
	enum image_format format;
	bool again;
	struct view *beneath;
};

/* Who opens a chain by name sees the layers of the run below the head, or none of them. */
static int rebase_locked(struct merge *m, struct head *head, const struct lower *to)
{
	if (!m->whole && !layers_run_is_current(m->store, &m->run))
		return MERGE_AGAIN;
	int err = to->again ? head_exchange_base(head, to->beneath, to->view, to->name, to->format) : head_rebase(head, to->view, to->name, to->format);
	if (err)
		return err == -ESTALE ? MERGE_AGAIN : err;
	layers_close_run(m->store, &m->run, m->into);
	if (m->dest)
		image_cache_forget(m->store->images, m->dest_st.st_dev, m->dest_st.st_ino);
	return 0;
}

/* What comes beneath a head in use: locked before it does, and what lay there until then unlocked only afterwards. */
static int lock_lower(const struct open_head *oh, struct view *lower, struct reason *why)
{
	return oh && lower ? merge_lock_view(lower, why) : 0;
}

static void settle_locks(struct open_head *oh, struct view *lower, bool is_beneath)
{
	if (oh && is_beneath) {
		head_relock(oh, lower, NULL); /* it is locked: that doesn't fail */
		frozen_put(take_ptr(oh->origin)); /* what lies beneath it now doesn't read as that does */
	}
	if (oh && lower)
		view_unlock(lower);
}

static int rebase(struct merge *m, struct head *head, struct open_head *oh, bool again, struct reason *why)
{
	struct lower to = {.format = IMAGE_PROBE, .again = again, .beneath = head_below(head)};
	int err = m->whole ? 0 : open_below_run(m, &to.view, &to.name, &to.format, why);
	/* Nothing is pulled from it all the same: what lies there now isn't the run. */
	if (!err && again && !view_equal(to.view, to.beneath))
		err = reason_set(why, -EBUSY, "%s lies over something else than what is to be merged", m->run.names[m->into]);
	if (!err && !(err = lock_lower(oh, to.view, why))) {
		pthread_rwlock_wrlock(&m->store->layout);
		err = rebase_locked(m, head, &to);
		pthread_rwlock_unlock(&m->store->layout);
		settle_locks(oh, to.view, !err);
	}
	view_put(to.beneath);
	view_put(to.view);
	free(to.name);
	return err;
}

int merge_rebase(struct merge *m, struct head *head, struct open_head *oh, struct reason *why)
{
	return rebase(m, head, oh, false, why);
}

/* The run may have become longer since that attempt: only what it was then is done. Whether it has. */
static bool shorten_run(struct merge *m, struct head *head)
{
	char name[LAYER_NAME_MAX];
	struct view *below = head_below(head);
	bool is_layer = below && layer_of_path(m->store, image_path(view_layer(below, 0)), name);
	size_t i = m->into + 2;
	while (is_layer && i < m->run.nr && strcmp(m->run.names[i], name) != 0)
		i++;
	view_put(below);
	if (!is_layer || i >= m->run.nr)
		return false;
	memcpy(m->run.below, name, LAYER_NAME_MAX);
	m->run.nr = i;
	return true;
}

int merge_rebase_again(struct merge *m, struct head *head, struct open_head *oh, struct reason *why)
{
	const struct layer_run run = m->run;
	bool is_shorter = shorten_run(m, head);
	int err = rebase(m, head, oh, true, why);
	m->run = run;
	return !err && is_shorter ? MERGE_AGAIN : err;
}

bool merge_may_be_rebased(struct merge *m, struct head *head)
{
	struct view *below = head_below(head);
	bool may_be = may_be_rebased(m, below);
	view_put(below);
	return may_be;
}

/* --- space ------------------------------------------------------------------------------------------------------------- */

int merge_each_piece(struct merge *m, uint64_t size, int (*fn)(void *ctx, uint64_t guest_off, uint64_t len), void *ctx)
{
	int err = 0;
	atomic_store(&m->job->progress.done, 0);
	atomic_store(&m->job->progress.total, size);
	for (uint64_t off = 0, len; !err && off < size; off += len) {
		len = min_u64(size - off, WHOLE_CHUNK);
		if (atomic_load(&m->job->progress.stop))
			return -ECANCELED;
		if (m->run.is_head && atomic_load(&m->entry->nr_waiting))
			return MERGE_AGAIN;
		err = fn(ctx, off, len);
		atomic_store(&m->job->progress.done, off + len);
	}
	return err;
}

static int preallocate_piece(void *ctx, uint64_t guest_off, uint64_t len)
{
	return head_preallocate(ctx, guest_off, len);
}

int merge_preallocate(struct merge *m, struct reason *why)
{
	int err = merge_open_dest(m, why);
	if (!err)
		err = merge_each_piece(m, head_virtual_size(m->dest), preallocate_piece, m->dest);
	int close_err = merge_close_dest(m);
	return err ? err : close_err;
}

/* --- another base ---------------------------------------------------------------------------------------------------- */

/* Whether what lies BENEATH is what the new base is a copy of. Who empties a disk, or puts it over something else, changes that. */
static bool is_over_source(const struct merge *m, const struct view *beneath)
{
	char source[FULL_SOURCE_MAX];
	full_raw_describe(beneath, source);
	return strcmp(source, m->source) == 0;
}

int merge_exchange(struct merge *m, struct head *head, struct open_head *oh, struct reason *why)
{
	struct store *store = m->store;
	auto_free char *path = layer_path(store, m->run.below);
	auto_free char *name = NULL;
	const struct disk_source source = {path, layer_format(m->run.below), NULL};
	struct view *view = NULL, *beneath = head_below(head);
	bool is_current = full_raw_is_goal(store, m->entry, m->run.below) && is_over_source(m, beneath);
	int err = !is_current ? MERGE_AGAIN : path ? layer_backing_name(store, m->run.names[0], path, &name, why) : -ENOMEM;
	if (!err)
		err = layers_open_view(store, &source, &view, why);
	if (!err && !(err = lock_lower(oh, view, why))) {
		pthread_rwlock_wrlock(&store->layout);
		err = head_exchange_base(head, beneath, view, name, source.format);
		if (!err)
			layers_close_run(store, &m->run, 0);
		if (!err && m->dest)
			image_cache_forget(store->images, m->dest_st.st_dev, m->dest_st.st_ino);
		pthread_rwlock_unlock(&store->layout);
		settle_locks(oh, view, !err);
	}
	view_put(beneath);
	view_put(view);
	return err == -ESTALE ? MERGE_AGAIN : err;
}

int merge_exchange_base(struct merge *m, struct reason *why)
{
	int err = merge_open_dest(m, why);
	if (!err) {
		pthread_mutex_lock(&m->entry->change);
		err = merge_exchange(m, m->dest, NULL, why);
		pthread_mutex_unlock(&m->entry->change);
	}
	int close_err = merge_close_dest(m);
	return err ? err : close_err;
}

/* --- push ------------------------------------------------------------------------------------------------------------- */

struct push {
	struct view *above;
	size_t nr_layers;
};

static int push_piece(struct merge *m, void *ctx, uint64_t guest_off, uint64_t len, uint64_t *ret_stored)
{
	struct push *p = ctx;
	return head_absorb(m->dest, p->above, p->nr_layers, guest_off, len, ret_stored);
}

int merge_push(struct merge *m, size_t first, size_t nr_layers, struct reason *why)
{
	auto_free char *path = layer_path(m->store, m->run.names[first]);
	struct disk_source source = {path, layer_format(m->run.names[first]), NULL};
	struct push push = {.nr_layers = nr_layers};
	int err = path ? layers_open_view(m->store, &source, &push.above, why) : -ENOMEM;
	if (err)
		return err;
	layers_spoil_run(m->store, &m->run, m->into);
	err = merge_lock_view(push.above, why);
	if (!err) {
		err = merge_each(m, push.above, nr_layers, view_virtual_size(push.above), push_piece, &push);
		err = merge_view_error(push.above, err, why);
		view_unlock(push.above);
	}
	view_put(push.above);
	return err ? err : head_flush(m->dest);
}

int merge_look_like(int dirfd, const char *name, const struct stat *st)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, st->st_mtim};
	/* As an ordinary user all is ours. */
	if (fchownat(dirfd, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW) < 0 && errno != EPERM)
		return -errno;
	if (fchmodat(dirfd, name, st->st_mode & 07777, 0) < 0 || utimensat(dirfd, name, times, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	return 0;
}

/* The old name stays until the next sweep, so that the chain is whole in between. */
static int take_place_locked(struct merge *m, struct reason *why)
{
	struct store *store = m->store;
	const struct layer_place top = layer_place(store, m->run.names[0]), dest = layer_place(store, m->run.names[m->into]);
	char tmp[LAYER_TEMPORARY_MAX];
	if (!layers_run_is_current(store, &m->run))
		return MERGE_AGAIN;
	int err = layer_file_begin_replace(store, m->run.names[0], tmp);
	if (!err && linkat(dest.dirfd, dest.name, top.dirfd, tmp, 0) < 0)
		err = -errno;
	if (err)
		return reason_set(why, err, "%s/%s: %s", top.dir, top.name, strerror(-err));
	err = layer_file_replace(store, m->run.names[0], tmp);
	if (err) {
		unlinkat(top.dirfd, tmp, 0);
		return reason_set(why, err, "%s/%s: %s", top.dir, top.name, strerror(-err));
	}
	/* The name is stable before what it replaces is unlinked; else nothing may be. */
	if (dir_sync(top.dirfd) < 0) {
		store_event(store, NULL, "%s can't be made durable: nothing in it is tidied up until the next start", top.dir);
		layers_keep_all(store);
	}
	layers_close_run(store, &m->run, 0);
	image_cache_forget(store->images, m->dest_st.st_dev, m->dest_st.st_ino);
	return 0;
}

int merge_look_like_top(struct merge *m, const struct stat *owner)
{
	struct image_cache *images = m->store->images;
	const struct layer_place dest = layer_place(m->store, m->run.names[m->into]);
	int err = image_cache_expect_changes(images, m->dest_st.st_dev, m->dest_st.st_ino, true);
	if (err)
		return err;
	err = merge_look_like(dest.dirfd, dest.name, owner);
	image_cache_expect_changes(images, m->dest_st.st_dev, m->dest_st.st_ino, false);
	return err;
}

int merge_take_place(struct merge *m, const struct stat *owner, struct reason *why)
{
	const struct layer_place dest = layer_place(m->store, m->run.names[m->into]);
	int err = merge_look_like_top(m, owner);
	if (err)
		return reason_set(why, err, "%s/%s: %s", dest.dir, dest.name, strerror(-err));
	pthread_rwlock_wrlock(&m->store->layout);
	err = take_place_locked(m, why);
	pthread_rwlock_unlock(&m->store->layout);
	return err;
}
