/* Merges whose top layer is a VM's disk, which a guest may be writing to meanwhile. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/merge.h"
#include "store/managed.h"
#include "store/merge_steps.h"
#include "store/store_internal.h"

#define REST_MAX   (4u << 20) /* is written while the guest waits */
#define ROUNDS_MAX 8u	      /* a guest that writes faster than we do is made to wait */
#define REOPEN_TRIES 100u     /* ten milliseconds each: somebody has the file open for a moment */

/* The head while we hold it. */
struct hold {
	struct merge *m;
	struct entry *entry;
	struct vm *now; /* with the change lock: its description */
	size_t disk;	 /* index in it */
	struct open_head *oh;
	bool swap_held;
	bool unsure; /* which of two files is the disk: they hold the same, and nobody knows which one the next start finds */
};

static int find_head(const struct vm *vm, const char *layer)
{
	for (size_t i = 0; vm && i < vm->nr_disks; i++)
		if (vm->disks[i].layer && strcmp(vm->disks[i].layer, layer) == 0) /* one that was found in a pool has none */
			return (int)i;
	return -1;
}

/* Takes the change lock, and keeps the head open as one who only looks: the VM doesn't count as in use. */
static int hold_begin(struct merge *m, struct hold *h, struct reason *why)
{
	*h = (struct hold){.m = m, .entry = table_entry(m->store, m->run.vm_id)};
	pthread_mutex_lock(&h->entry->change);
	h->now = table_current(m->store, h->entry);
	int i = find_head(h->now, m->run.names[0]);
	int err = i < 0 ? MERGE_AGAIN : 0;
	if (!err && (h->now->disks[i].error || h->now->disks[i].pending_path))
		err = -ESTALE;
	if (!err)
		err = head_get(m->store, h->entry, &h->now->disks[i], &h->oh, why);
	if (err) {
		pthread_mutex_unlock(&h->entry->change);
		vm_put(h->now);
		return err;
	}
	h->disk = (size_t)i;
	h->oh->nr_lookers++;
	return 0;
}

static void hold_unlock(struct hold *h)
{
	if (h->swap_held)
		pthread_rwlock_unlock(&h->oh->swap);
	h->swap_held = false;
	pthread_mutex_unlock(&h->entry->change);
	vm_put(take_ptr(h->now));
}

/* The caller holds the change lock again, or still. */
static int hold_end(struct hold *h)
{
	if (h->swap_held)
		pthread_rwlock_unlock(&h->oh->swap);
	h->oh->nr_lookers--;
	int err = head_put_locked(h->m->store, h->oh);
	pthread_mutex_unlock(&h->entry->change);
	vm_put(h->now);
	return err;
}

static bool is_still_top(const struct hold *h)
{
	return h->oh->head && strcmp(h->oh->layer, h->m->run.names[0]) == 0;
}

/* And lies over the rest of the run: it may have been emptied, of which the table hears a moment later. */
static bool lies_over_run(const struct hold *h)
{
	struct view *below = is_still_top(h) ? head_below(h->oh->head) : NULL;
	bool lies_over = below && layers_run_is_current(h->m->store, &h->m->run);
	view_put(below);
	return lies_over;
}

static int flush_shared(struct hold *h)
{
	pthread_rwlock_rdlock(&h->oh->swap);
	int err = is_still_top(h) ? head_flush(h->oh->head) : MERGE_AGAIN;
	pthread_rwlock_unlock(&h->oh->swap);
	return err;
}

static void close_gate(struct hold *h)
{
	pthread_rwlock_wrlock(&h->oh->swap);
	h->swap_held = true;
}

/* --- pull: into the head --------------------------------------------------------------------------------------------- */

static int pull_piece(struct merge *m, void *ctx, uint64_t guest_off, uint64_t len, uint64_t *ret_stored)
{
	struct hold *h = ctx;
	pthread_rwlock_rdlock(&h->oh->swap);
	int err = is_still_top(h) ? head_pull(h->oh->head, m->nr_pulled, guest_off, len, ret_stored) : MERGE_AGAIN;
	if (!err)
		err = merge_flush_some(m, h->oh->head, *ret_stored);
	pthread_rwlock_unlock(&h->oh->swap);
	return err;
}

static int pull_all(struct hold *h, struct reason *why)
{
	pthread_rwlock_rdlock(&h->oh->swap);
	struct view *below = is_still_top(h) ? head_below(h->oh->head) : NULL;
	uint64_t size = below ? head_virtual_size(h->oh->head) : 0;
	pthread_rwlock_unlock(&h->oh->swap);
	if (below)
		merge_plan_pull(h->m, below);
	int err = below ? pull_piece(h->m, h, 0, 0, &(uint64_t){0}) : MERGE_AGAIN; /* begins it, should there be nothing to do */
	if (!err)
		err = merge_each(h->m, below, h->m->nr_pulled, size, pull_piece, h);
	if (below)
		err = merge_view_error(below, err, why);
	view_put(below);
	return err ? err : flush_shared(h);
}

/* *RET_ANY: there is no more to be pulled. The gate is open again afterwards. */
static int rebase_again(struct hold *h, bool *ret_any, struct reason *why)
{
	pthread_rwlock_wrlock(&h->oh->swap);
	*ret_any = is_still_top(h) && merge_may_be_rebased(h->m, h->oh->head);
	int err = *ret_any ? merge_rebase_again(h->m, h->oh->head, h->oh, why) : 0;
	pthread_rwlock_unlock(&h->oh->swap);
	return err;
}

static int pull_into_head(struct merge *m, struct reason *why)
{
	struct hold h;
	int err = hold_begin(m, &h, why);
	if (err)
		return err;
	bool again = false;
	err = rebase_again(&h, &again, why);
	if (again) {
		int close_err = hold_end(&h);
		return err ? err : close_err;
	}
	hold_unlock(&h);
	err = pull_all(&h, why);
	pthread_mutex_lock(&h.entry->change);
	if (!err) {
		close_gate(&h);
		err = is_still_top(&h) ? merge_rebase(m, h.oh->head, h.oh, why) : MERGE_AGAIN;
	}
	int close_err = hold_end(&h);
	return err ? err : close_err;
}

static int preallocate_piece(void *ctx, uint64_t guest_off, uint64_t len)
{
	struct hold *h = ctx;
	pthread_rwlock_rdlock(&h->oh->swap);
	int err = is_still_top(h) ? head_preallocate(h->oh->head, guest_off, len) : MERGE_AGAIN;
	pthread_rwlock_unlock(&h->oh->swap);
	return err;
}

int merge_preallocate_head(struct merge *m, struct reason *why)
{
	struct hold h;
	int err = hold_begin(m, &h, why);
	if (err)
		return err;
	hold_unlock(&h);
	pthread_rwlock_rdlock(&h.oh->swap);
	bool is_top = is_still_top(&h);
	uint64_t size = is_top ? head_virtual_size(h.oh->head) : 0;
	pthread_rwlock_unlock(&h.oh->swap);
	err = is_top ? merge_each_piece(m, size, preallocate_piece, &h) : MERGE_AGAIN;
	if (!err)
		err = flush_shared(&h);
	pthread_mutex_lock(&h.entry->change);
	int close_err = hold_end(&h);
	return err ? err : close_err;
}

int merge_exchange_head_base(struct merge *m, struct reason *why)
{
	struct hold h;
	int err = hold_begin(m, &h, why);
	if (err)
		return err;
	err = flush_shared(&h); /* most of it without stopping anybody */
	if (!err) {
		close_gate(&h);
		err = is_still_top(&h) ? merge_exchange(m, h.oh->head, h.oh, why) : MERGE_AGAIN;
	}
	int close_err = hold_end(&h);
	return err ? err : close_err;
}

/* --- push: the head goes down ---------------------------------------------------------------------------------------- */

static int reopen(struct hold *h)
{
	struct reason why = {0};
	const struct vm_disk *disk = &h->now->disks[h->disk];
	int err = head_reattach(h->m->store, h->oh, disk, &why);
	for (unsigned i = 0; err == -EBUSY && i < REOPEN_TRIES; i++) {
		usleep(10000);
		err = head_reattach(h->m->store, h->oh, disk, &why);
	}
	if (err)
		store_event(h->m->store, h->now->name, "disk %s can't be opened again: %s; close it in all programs and open it anew",
			    disk->file_name, *why.text ? why.text : strerror(-err));
	return err;
}

static bool are_same_file(int dirfd, const char *name, const char *other)
{
	struct stat st, other_st;
	return fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && fstatat(dirfd, other, &other_st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       st.st_ino == other_st.st_ino;
}

/* TMP takes the head's name. After a failure MOVED has it again, and *RET_UNSURE says that nobody knows what a power cut leaves: either shows the same, as long as
 * MOVED is there too. */
static int take_name(struct hold *h, const char *tmp, const char *moved, bool *ret_unsure)
{
	struct merge *m = h->m;
	const struct layer_place top = layer_place(m->store, m->run.names[0]);
	int dirfd = top.dirfd;
	int err = layer_file_replace(m->store, m->run.names[0], tmp);
	if (!err)
		err = dir_sync(dirfd);
	if (!err)
		return 0;
	*ret_unsure = true;
	if (are_same_file(dirfd, top.name, moved))
		return err;
	char again[LAYER_TEMPORARY_MAX];
	bool back = layer_file_begin_replace(m->store, m->run.names[0], again) == 0 && linkat(dirfd, moved, dirfd, again, 0) == 0 &&
		    layer_file_replace(m->store, m->run.names[0], again) == 0;
	/* What would be written to the new one could be lost with its name. */
	if (!back) {
		h->unsure = true;
		layers_keep_all(m->store);
	}
	return err;
}

/* The head's file becomes MOVED, under which it is frozen, and a new overlay over that has the head's name. */
static int put_over(struct hold *h, const char *moved, const struct overlay_spec *spec, const struct stat *owner, bool *ret_unsure)
{
	struct merge *m = h->m;
	const struct layer_place top = layer_place(m->store, m->run.names[0]);
	int dirfd = top.dirfd;
	const char *moved_file = spec->backing_name;
	char tmp[LAYER_TEMPORARY_MAX];
	int err = layer_file_begin_replace(m->store, m->run.names[0], tmp);
	if (err)
		return err;
	err = layer_file_link(m->store, m->run.names[0], moved);
	if (!err)
		err = overlay_create(dirfd, tmp, spec, 0600);
	if (!err)
		err = merge_look_like(dirfd, tmp, owner);
	/* What is beneath is stable before it is named, and the head written back. */
	if (!err)
		err = dir_sync(dirfd);
	if (!err)
		err = head_detach(h->oh);
	pthread_rwlock_wrlock(&m->store->layout);
	if (!err)
		err = take_name(h, tmp, moved_file, ret_unsure);
	if (!err)
		layers_grow_run(m->store, &m->run, moved);
	pthread_rwlock_unlock(&m->store->layout);
	if (err)
		unlinkat(dirfd, tmp, 0);
	return err;
}

/* Puts a new overlay on top, under the same name; the head is closed then, and what it was is frozen, in the run and still to be pushed. The
 * gate is closed. After a failure it is as it was. */
static int restack(struct hold *h, struct reason *why)
{
	struct merge *m = h->m;
	struct stat owner;
	char moved[LAYER_NAME_MAX];
	bool unsure = false;
	head_stat(h->oh->head, &owner);
	struct overlay_spec spec = {
		.virtual_size = (head_virtual_size(h->oh->head) + 511) & ~511ull, .backing_format = IMAGE_QCOW2};
	layer_name_beside(moved, m->run.names[0], ".qcow2");
	spec.backing_name = layer_place(m->store, moved).name; /* in the same directory */
	/* All that may fail comes before the names change: what can be read from the files, the table must know. */
	int err = layers_reserve_run(&m->run);
	if (!err)
		err = layers_add(m->store, moved, NULL);
	if (err)
		return err;
	err = put_over(h, moved, &spec, &owner, &unsure);
	if (!err) {
		m->into++;
		image_cache_forget(m->store->images, owner.st_dev, owner.st_ino); /* known by the name it had */
		return 0;
	}
	layer_drop(m->store, moved, unsure);
	if (!h->oh->head && !h->unsure)
		reopen(h);
	return reason_set(why, err, "%s: a new overlay over it: %s", m->run.names[0], strerror(-err));
}

/* vm.xml may name the raw file all the same, which would lack what is written to the head from now on. */
static void take_back(struct hold *h)
{
	struct store *store = h->m->store;
	struct vm *old = vm_copy(h->now);
	if (old && managed_commit(store, h->entry, old, NULL) == 0)
		return;
	h->unsure = true;
	layers_keep_all(store);
}

/* Both hold the same: so that it stays so, nothing is written to either until the next start. */
static int lose(struct hold *h)
{
	struct vm *lost = vm_copy(h->now);
	h->oh->lost_err = -EIO;
	if (lost)
		vm_disk_set_error(&lost->disks[h->disk], -EIO, "its directory, or vm.xml, can't be written: what is written to the disk now might not be found again");
	if (lost && table_publish(h->m->store, h->entry, lost))
		vm_put(lost);
	store_event(h->m->store, h->now->name, "disk %s: its directory, or vm.xml, can't be written: the disk can't be used until the next start. Nothing is lost that was written",
		    h->now->disks[h->disk].file_name);
	return -EIO;
}

/* The raw file NAME is the disk: all is in it, and stable. */
static int take_over(struct hold *h, const char *name, const struct stat *owner, const struct overlay_facts *facts, struct reason *why)
{
	struct store *store = h->m->store;
	struct vm *next = vm_copy(h->now);
	struct vm_disk *disk = next ? &next->disks[h->disk] : NULL;
	auto_free char *path = layer_path(store, name);
	int err = disk && path && text_set(&disk->layer, name) == 0 ? 0 : -ENOMEM;
	if (!err && !S_ISBLK(facts->st.st_mode))
		err = merge_look_like_top(h->m, owner);
	if (err) {
		vm_put(next);
		return err;
	}
	free(disk->path);
	disk->path = take_ptr(path);
	disk->format = IMAGE_RAW;
	vm_disk_clear_goal(disk);
	err = managed_commit(store, h->entry, vm_ref(next), why);
	if (err) {
		vm_put(next);
		take_back(h);
		return err;
	}
	vm_put(h->now);
	h->now = next;
	layers_become_top(store, name);
	store_event(store, h->now->name, "disk %s depends on nothing any more: it is the raw %s %s", h->now->disks[h->disk].file_name,
		    S_ISBLK(facts->st.st_mode) ? "device" : "file", h->now->disks[h->disk].path);
	return 0;
}

/* The gate is closed, the head is closed and has nothing that isn't in the destination, or is what restack() has just made. */
static int finish_closed(struct hold *h, bool rest, const struct stat *owner, struct reason *why)
{
	struct merge *m = h->m;
	struct overlay_facts facts;
	const char *name = m->run.names[m->into];
	int err = rest ? merge_push(m, 1, 1, why) : 0;
	int close_err = merge_close_dest(m);
	if (err || close_err)
		return err ? err : close_err;
	/* Who has it open now would keep us from opening it as the head. */
	err = layer_settle(m->store, name, &facts, why);
	if (err)
		return err;
	return m->into_raw ? take_over(h, name, owner, &facts, why) : merge_take_place(m, owner, why);
}

static int step_closed(struct hold *h, unsigned round, bool *ret_done, struct reason *why)
{
	struct merge *m = h->m;
	if (!lies_over_run(h))
		return MERGE_AGAIN;
	uint64_t size = head_virtual_size(h->oh->head), rest = 0;
	uint64_t dest_size = (size + 511) & ~511ull;
	if (dest_size != head_virtual_size(m->dest) && m->into_raw) {
		int err = head_resize(m->dest, dest_size);
		if (err)
			return reason_set(why, err, "%s can't have the size of the disk: %s", m->run.names[m->into], strerror(-err));
	}
	if (dest_size != head_virtual_size(m->dest)) {
		m->pull_only = true;
		return MERGE_AGAIN;
	}
	struct stat owner;
	head_stat(h->oh->head, &owner);
	bool untouched = head_is_untouched(h->oh->head);
	int err = untouched ? 0 : layer_allocated(m->store, m->run.names[0], &rest);
	if (!err)
		err = untouched ? head_detach(h->oh) : restack(h, why);
	if (err && h->oh->head)
		return err;
	/* Zeros cost the overlay nothing, and a raw file perhaps much: those of the first round are written while the guest goes on. */
	bool is_little = rest <= REST_MAX && (round || untouched || !m->into_raw);
	bool last = is_little || round >= ROUNDS_MAX;
	atomic_fetch_add(&m->job->progress.total, round ? rest : 0);
	if (!err && last)
		err = finish_closed(h, !untouched, &owner, why);
	int open_err = h->unsure ? lose(h) : reopen(h);
	if (!open_err && head_virtual_size(h->oh->head) != size)
		open_err = head_resize(h->oh->head, size);
	*ret_done = !err && last;
	return err ? err : open_err;
}

/* Takes the head out from under the guest; *RET_DONE: it is the destination now, else what it was is to be pushed. */
static int step(struct merge *m, unsigned round, bool *ret_done, struct reason *why)
{
	struct hold h;
	int err = hold_begin(m, &h, why);
	if (err)
		return err;
	err = flush_shared(&h); /* most of it without stopping anybody */
	if (!err) {
		close_gate(&h);
		err = step_closed(&h, round, ret_done, why);
	}
	int close_err = hold_end(&h);
	return err ? err : close_err;
}

/* What is frozen over the raw file may be larger than what that is a copy of. */
static int make_room(struct merge *m, struct reason *why)
{
	uint64_t size = head_virtual_size(m->dest);
	int err = 0;
	for (size_t i = 1; !err && i < m->into; i++) {
		struct image *image = NULL;
		err = layer_open_image(m->store, m->run.names[i], &image, why);
		if (!err && image_virtual_size(image) > size)
			size = image_virtual_size(image);
		image_put(image);
	}
	if (!err && size > head_virtual_size(m->dest))
		err = head_resize(m->dest, size);
	return err;
}

static int check_readers(struct merge *m, struct reason *why)
{
	struct hold h;
	int err = hold_begin(m, &h, why);
	if (err)
		return err;
	err = merge_check_readers(m, h.oh->locked, why);
	int close_err = hold_end(&h);
	return err ? err : close_err;
}

static int push_head(struct merge *m, struct reason *why)
{
	int err = check_readers(m, why);
	if (!err)
		err = merge_open_dest(m, why);
	if (!err && m->into_raw)
		err = make_room(m, why);
	if (!err && m->into + 1 < m->run.nr)
		err = merge_pull(m, why);
	/* What is frozen already. */
	if (!err && m->into > 1)
		err = merge_push(m, 1, m->into - 1, why);
	bool done = false;
	for (unsigned round = 0; !err && !done; round++) {
		err = step(m, round, &done, why);
		if (!err && !done)
			err = merge_push(m, 1, 1, why);
	}
	int close_err = merge_close_dest(m);
	return err ? err : close_err;
}

int merge_head(struct merge *m, struct reason *why)
{
	return m->into ? push_head(m, why) : pull_into_head(m, why);
}
