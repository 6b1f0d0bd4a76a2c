#include "store/freeze.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "store/managed.h"
#include "store/store_internal.h"

struct freeze_item {
	size_t disk; /* index in the description */
	struct open_head *oh; /* NULL: nobody has it open */
	struct overlay_facts facts; /* of one that isn't open */
	struct view *below; /* of one that is: what lay beneath, kept locked until the new head is open; NULL also where it couldn't be */
	bool had_below;
	bool gate_closed;
	bool closed; /* the old head */
	char fresh[LAYER_NAME_MAX]; /* "": the disk is blank */
	uint64_t virtual_size; /* to the byte, as who has it open sees it */
};

struct freezing {
	struct store *store;
	struct entry *entry;
	struct vm *now;
	struct vm *next;
	const struct freeze_spec *spec;
	struct frozen_disk *frozen; /* by index in the description */
	struct freeze_item *items;
	size_t nr_items;
	bool commit_tried; /* vm.xml may name the new overlays, whatever was returned */
};

static const struct vm_disk *disk_of(const struct freezing *f, const struct freeze_item *item)
{
	return &f->now->disks[item->disk];
}

/* Most of the flush without stopping anybody. */
static int open_item(struct freezing *f, struct freeze_item *item, struct reason *why)
{
	int err = head_get(f->store, f->entry, disk_of(f, item), &item->oh, why);
	if (err)
		return err;
	f->nr_items++;
	pthread_rwlock_rdlock(&item->oh->swap);
	err = item->oh->head ? head_flush(item->oh->head) : item->oh->lost_err;
	pthread_rwlock_unlock(&item->oh->swap);
	return err ? reason_set(why, err, "flushing it: %s", strerror(-err)) : 0;
}

/* Nobody can open the disk while the change lock is held: its chain, which may be long, isn't needed. */
static int settle_item(struct freezing *f, struct freeze_item *item, struct reason *why)
{
	const struct vm_disk *disk = disk_of(f, item);
	if (disk->error)
		return reason_set(why, disk->error, "%s", disk->error_text ? disk->error_text : strerror(-disk->error));
	int err = layer_settle(f->store, disk->layer, &item->facts, why);
	if (!err)
		f->nr_items++;
	return err;
}

/* Step 1. */
static int open_disks(struct freezing *f, struct reason *why)
{
	for (size_t i = 0; i < f->now->nr_disks; i++) {
		if (!f->spec->chosen[i])
			continue;
		struct freeze_item *item = &f->items[f->nr_items];
		item->disk = i;
		int err = head_lookup(f->store, &f->now->disks[i]) ? open_item(f, item, why) : settle_item(f, item, why);
		if (err)
			return reason_prefix(why, err, "disk %s: ", f->now->disks[i].file_name);
	}
	return 0;
}

/* Step 2. Heads of one VM are always locked in order of disk, so two freezes can't wait for each other. */
static void close_gates(struct freezing *f)
{
	for (size_t i = 0; i < f->nr_items; i++) {
		if (!f->items[i].oh)
			continue;
		pthread_rwlock_wrlock(&f->items[i].oh->swap);
		f->items[i].gate_closed = true;
	}
}

/* What the disk is, now that nobody writes to it. */
static int look(struct freeze_item *item, struct stat *ret_st, bool *ret_blank)
{
	if (!item->oh) {
		*ret_st = item->facts.st;
		*ret_blank = item->facts.empty && !item->facts.has_backing;
		item->virtual_size = item->facts.virtual_size;
		return 0;
	}
	struct head *head = item->oh->head;
	if (!head)
		return item->oh->lost_err;
	head_stat(head, ret_st);
	*ret_blank = head_is_blank(head);
	item->virtual_size = head_virtual_size(head);
	return 0;
}

static int make_overlay(struct freezing *f, struct freeze_item *item, struct reason *why)
{
	struct frozen_disk *frozen = &f->frozen[item->disk];
	struct stat st;
	bool blank = false;
	int err = look(item, &st, &blank);
	if (err)
		return err;
	frozen->owner = (struct layer_owner){st.st_mode & 0777, st.st_uid, st.st_gid};
	frozen->virtual_size = (item->virtual_size + 511) & ~511ull;
	if (blank && !f->spec->blanks_too)
		return 0;
	snprintf(frozen->layer, sizeof frozen->layer, "%s", disk_of(f, item)->layer);
	struct overlay_spec spec = {.virtual_size = frozen->virtual_size};
	err = layer_create(f->store, &spec, frozen->layer, &frozen->owner, item->fresh, why);
	if (err)
		*item->fresh = '\0';
	return err;
}

/* Step 3. */
static int make_overlays(struct freezing *f, struct reason *why)
{
	const char *last = NULL;
	int err = 0;
	for (size_t i = 0; !err && i < f->nr_items; i++)
		err = make_overlay(f, &f->items[i], why);
	/* Each directory once: mostly there is one. */
	for (size_t i = 0; !err && i < f->nr_items; i++) {
		const char *fresh = f->items[i].fresh;
		if (!*fresh || (last && layers_share_dir(last, fresh)))
			continue;
		err = layer_sync_dir(f->store, fresh, why);
		last = fresh;
	}
	return err;
}

/* Step 4. */
static int close_heads(struct freezing *f, struct reason *why)
{
	for (size_t i = 0; i < f->nr_items; i++) {
		struct freeze_item *item = &f->items[i];
		if (!*item->fresh || !item->oh)
			continue;
		/* Its locks are held on: a thousand layers aren't unlocked and locked again. */
		item->below = head_below(item->oh->head);
		item->had_below = item->below;
		int err = item->below ? view_lock(item->below, why) : 0;
		if (err)
			view_put(take_ptr(item->below));
		item->closed = true;
		err = head_detach(item->oh);
		if (err)
			return reason_set(why, err, "disk %s: writing it back: %s", disk_of(f, item)->file_name, strerror(-err));
	}
	return 0;
}

/* Step 5. */
static int commit(struct freezing *f, struct reason *why)
{
	struct vm *next = vm_copy(f->now);
	if (!next)
		return -ENOMEM;
	bool any = f->spec->amend;
	for (size_t i = 0; i < f->nr_items; i++) {
		struct vm_disk *disk = &next->disks[f->items[i].disk];
		if (!*f->items[i].fresh)
			continue;
		any = true;
		free(disk->path);
		disk->path = layer_path(f->store, f->items[i].fresh);
		disk->format = IMAGE_QCOW2;
		if (!disk->path || text_set(&disk->layer, f->items[i].fresh)) {
			vm_put(next);
			return -ENOMEM;
		}
	}
	int err = f->spec->amend ? f->spec->amend(f->spec->ctx, next, f->frozen, why) : 0;
	f->commit_tried = any && !err;
	if (!err)
		err = any ? managed_commit(f->store, f->entry, vm_ref(next), why) : 0;
	if (err || !any) {
		vm_put(next);
		return err;
	}
	vm_put(f->now);
	f->now = next;
	return 0;
}

/* After a commit what lies beneath the new overlay is the old one over what lay beneath that: nothing is walked. */
static int reopen(struct freezing *f, struct freeze_item *item, struct reason *why)
{
	const char *old = f->frozen[item->disk].layer;
	auto_free char *path = layer_path(f->store, old);
	if (!path || item->had_below != !!item->below || strcmp(disk_of(f, item)->layer, item->fresh) != 0)
		return head_reattach(f->store, item->oh, disk_of(f, item), why);
	const struct disk_source top = {path, layer_format(old), NULL};
	struct view *beneath = NULL;
	int err = view_open_over(f->store->images, &top, item->below, &beneath, why);
	if (!err)
		err = head_attach(f->store, item->oh, item->fresh, beneath, why);
	view_put(beneath);
	return err ? head_reattach(f->store, item->oh, disk_of(f, item), why) : 0;
}

/* Step 6, or what undoes step 4: opens what the description names now. Who has no other user than us needn't be opened. */
static void reopen_heads(struct freezing *f)
{
	for (size_t i = 0; i < f->nr_items; i++) {
		struct freeze_item *item = &f->items[i];
		if (!item->closed || item->oh->nr_users == 1)
			continue;
		struct reason why = {0};
		int err = reopen(f, item, &why);
		if (!err && head_virtual_size(item->oh->head) != item->virtual_size)
			err = head_resize(item->oh->head, item->virtual_size);
		if (err)
			store_event(f->store, f->now->name, "disk %s can't be opened again: %s; close it in all programs and open it anew",
				    disk_of(f, item)->file_name, *why.text ? why.text : strerror(-err));
	}
}

/* After a failure. */
static void drop_overlays(struct freezing *f)
{
	for (size_t i = 0; i < f->nr_items; i++) {
		const char *fresh = f->items[i].fresh;
		if (*fresh)
			layer_drop(f->store, fresh, f->commit_tried);
	}
}

static void let_go(struct freezing *f)
{
	for (size_t i = 0; i < f->nr_items; i++) {
		struct freeze_item *item = &f->items[i];
		if (*item->fresh)
			layers_unpin(f->store, item->fresh);
		if (item->below) {
			view_unlock(item->below);
			view_put(item->below);
		}
		if (item->gate_closed)
			pthread_rwlock_unlock(&item->oh->swap);
		if (item->oh)
			head_put_locked(f->store, item->oh);
	}
	free(f->items);
}

int freeze_disks(struct store *store, struct entry *entry, struct vm **now, const struct freeze_spec *spec, struct frozen_disk *ret,
		 struct reason *why)
{
	struct freezing f = {.store = store, .entry = entry, .now = *now, .spec = spec, .frozen = ret};
	f.items = mem_new_array((*now)->nr_disks, sizeof *f.items);
	memset(ret, 0, (*now)->nr_disks * sizeof *ret);
	int err = f.items ? open_disks(&f, why) : -ENOMEM;
	if (!err) {
		close_gates(&f);
		err = make_overlays(&f, why);
	}
	if (!err)
		err = close_heads(&f, why);
	if (!err)
		err = commit(&f, why);
	reopen_heads(&f);
	if (err)
		drop_overlays(&f);
	let_go(&f);
	*now = f.now;
	return err;
}
