/* Clones: new overlays over what a snapshot holds, and one new VM. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "store/freeze.h"
#include "store/jobs.h"
#include "store/managed.h"
#include "store/pending.h"
#include "store/store_internal.h"
#include "store/text.h"

#define STALE_TRIES 1000

struct cloning {
	struct store *store;
	const struct vm *from;
	const struct vm_snapshot *snapshot; /* NULL: as it is now */
	struct vm *next;
	char (*layers)[LAYER_NAME_MAX]; /* made, and pinned */
	size_t nr_layers;
	size_t max_layers;
};

/* Adds a disk like FROM to the new VM, with a layer made by SPEC. */
static int add_disk(struct cloning *c, const struct vm_disk *from, const struct overlay_spec *spec, const char *beneath,
		    const struct frozen *pending, struct reason *why)
{
	struct vm_disk *disk = vm_disk_add(&c->next->disks, &c->next->nr_disks);
	if (!disk || c->nr_layers == c->max_layers)
		return -ENOMEM;
	disk->format = IMAGE_QCOW2;
	if (text_set(&disk->file_name, from->file_name) || text_set(&disk->target, from->target))
		return -ENOMEM;
	int err = pending ? pending_set(disk, pending) : 0;
	if (err)
		return err;
	struct overlay_spec overlay = *spec;
	if (pending) {
		overlay.backing_name = disk->pending_base;
		overlay.backing_format = IMAGE_RAW;
		beneath = disk->pending_base;
	}
	struct layer_owner owner = {0600, c->next->uid, c->next->gid};
	char *name = c->layers[c->nr_layers];
	err = layer_create(c->store, &overlay, beneath, &owner, name, why);
	if (err)
		return err;
	c->nr_layers++;
	disk->path = layer_path(c->store, name);
	return disk->path ? text_set(&disk->layer, name) : -ENOMEM;
}

/* --- from a snapshot ------------------------------------------------------------------------------------------------------ */

/* The disk can't come along; the VM can. */
static bool is_skippable(int err)
{
	return err == -ENOENT || err == -EACCES || err == -EUCLEAN || err == -EOPNOTSUPP;
}

static int add_over_view(struct cloning *c, const struct vm_disk *from, struct view *view, struct reason *why)
{
	struct frozen *frozen = NULL;
	auto_free char *backing = NULL;
	int err = frozen_new(c->store, view, from->path, from->snapshot, &frozen, why);
	if (err)
		return err;
	struct overlay_spec spec = {.virtual_size = view_virtual_size(view)};
	if (!frozen->snapshot) {
		err = layer_backing_name(c->store, "", frozen->path, &backing, why);
		spec.backing_name = backing;
		spec.backing_format = frozen->format;
	}
	char layer[LAYER_NAME_MAX];
	if (!err)
		err = add_disk(c, from, &spec, layer_of_path(c->store, frozen->path, layer) ? layer : NULL, frozen->snapshot ? frozen : NULL, why);
	frozen_put(frozen);
	return err;
}

static int clone_disk(struct cloning *c, const struct vm_disk *from, struct reason *why)
{
	if (from->error)
		return reason_set(why, from->error, "%s", from->error_text ? from->error_text : strerror(-from->error));
	if (from->shareable)
		return reason_set(why, -EOPNOTSUPP, "it is shared with other VMs, which write to it");
	struct disk_source source = {from->path, from->format, from->snapshot};
	struct view *view = NULL;
	int err = layers_open_view(c->store, &source, &view, why);
	if (err)
		return err;
	/* For the moment only: nobody writes to what is about to be a backing file. */
	err = view_lock(view, why);
	if (!err) {
		err = add_over_view(c, from, view, why);
		view_unlock(view);
	}
	view_put(view);
	return err;
}

/* Whether the snapshot of a managed VM was deleted meanwhile: its layers may have gone, or are being merged. */
static bool source_is_gone(const struct cloning *c, struct reason *why)
{
	if (!c->snapshot || c->from->kind != VM_MANAGED)
		return false;
	struct vm *now = store_get(c->store, c->from->id);
	bool there = now && vm_snapshot_by_id(now, c->snapshot->id);
	vm_put(now);
	if (!there)
		reason_set(why, -ENOENT, "snapshot %s of %s has been deleted", c->snapshot->name, c->from->name);
	return !there;
}

static int clone_disks(struct cloning *c, struct reason *why)
{
	for (size_t i = 0; i < c->snapshot->nr_disks; i++) {
		const struct vm_disk *from = &c->snapshot->disks[i];
		struct reason disk_why = {0};
		size_t nr_disks = c->next->nr_disks;
		int err = clone_disk(c, from, &disk_why);
		if (err && source_is_gone(c, why))
			return -ENOENT;
		if (err && is_skippable(err)) {
			store_event(c->store, c->next->name, "disk %s of %s isn't cloned: %s", from->file_name, c->next->origin,
				    *disk_why.text ? disk_why.text : strerror(-err));
			while (c->next->nr_disks > nr_disks)
				vm_disk_drop(c->next, nr_disks);
		} else if (err) {
			return reason_set(why, err, "disk %s: %s", from->file_name, *disk_why.text ? disk_why.text : strerror(-err));
		}
	}
	return 0;
}

/* --- from a managed VM's state now ------------------------------------------------------------------------------------------- */

static int clone_heads(struct cloning *c, const struct vm *now, const struct frozen_disk *frozen, struct reason *why)
{
	for (size_t i = 0; i < now->nr_disks; i++) {
		const struct vm_disk *from = &now->disks[i];
		if (!from->target || from->error) {
			if (from->error)
				store_event(c->store, c->next->name, "disk %s of %s isn't cloned: %s", from->file_name, now->name,
					    from->error_text ? from->error_text : strerror(-from->error));
			continue;
		}
		struct overlay_spec spec = {.virtual_size = frozen[i].virtual_size};
		const char *beneath = *frozen[i].layer ? frozen[i].layer : NULL;
		int err = add_disk(c, from, &spec, beneath, NULL, why);
		if (err)
			return err;
	}
	return 0;
}

/* Reserves room for the layers of NR disks. */
static int expect_layers(struct cloning *c, size_t nr)
{
	c->layers = mem_new_array(nr, sizeof *c->layers);
	c->max_layers = nr;
	return c->layers ? 0 : -ENOMEM;
}

static int freeze_and_clone(struct cloning *c, struct entry *entry, struct vm **now, struct reason *why)
{
	size_t nr = (*now)->nr_disks;
	auto_free bool *chosen = mem_new_array(nr, sizeof *chosen);
	auto_free struct frozen_disk *frozen = mem_new_array(nr, sizeof *frozen);
	int err = chosen && frozen ? expect_layers(c, nr) : -ENOMEM;
	for (size_t i = 0; !err && i < nr; i++)
		chosen[i] = (*now)->disks[i].target && !(*now)->disks[i].error;
	const struct freeze_spec spec = {.chosen = chosen};
	if (!err)
		err = freeze_disks(c->store, entry, now, &spec, frozen, why);
	return err ? err : clone_heads(c, *now, frozen, why);
}

/* --- both ------------------------------------------------------------------------------------------------------------------- */

static int finish(struct cloning *c, struct vm **ret, struct reason *why)
{
	auto_free char *text = NULL;
	auto_free char *nvram = NULL;
	size_t len = 0;
	int err = text_config(c->store, c->from, c->snapshot, &text, &len, why);
	if (!err)
		err = managed_adopt_config(c->store, c->next, text, len, &c->next->config, &nvram, why);
	/* Layers are stable under their names before a vm.xml names them. */
	for (size_t i = 0; !err && i < c->nr_layers; i++)
		if (!i || !layers_share_dir(c->layers[i], c->layers[i - 1]))
			err = layer_sync_dir(c->store, c->layers[i], why);
	return err ? err : managed_add(c->store, take_ptr(c->next), nvram, ret, why);
}

static int clone_now(struct cloning *c, struct vm **ret, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = managed_begin_settled(c->store, c->from, &entry, &now, why);
	if (err)
		return err;
	err = freeze_and_clone(c, entry, &now, why);
	c->from = now;
	if (!err)
		err = finish(c, ret, why);
	managed_end(entry, now);
	return err;
}

static int clone_snapshot(struct cloning *c, struct vm **ret, struct reason *why)
{
	int err = expect_layers(c, c->snapshot->nr_disks);
	if (!err)
		err = clone_disks(c, why);
	if (!err && (err = finish(c, ret, why)) && source_is_gone(c, why))
		err = -ENOENT;
	return err;
}

static void cloning_done(struct cloning *c, int err)
{
	for (size_t i = 0; i < c->nr_layers; i++) {
		if (err)
			layer_abandon(c->store, c->layers[i]);
		else
			layers_unpin(c->store, c->layers[i]);
	}
	vm_put(c->next);
	free(c->layers);
}

static int set_origin(struct cloning *c)
{
	int n = c->snapshot ? asprintf(&c->next->origin, "%s@%s", c->from->name, c->snapshot->name)
			    : asprintf(&c->next->origin, "%s", c->from->name);
	return n < 0 ? -ENOMEM : 0;
}

static int clone_into(struct cloning *c, const char *name, uid_t uid, gid_t gid, struct vm **ret, struct reason *why)
{
	c->next = managed_new(PLACE_CLONES, name, uid, gid);
	int err = c->next ? set_origin(c) : -ENOMEM;
	if (!err) {
		c->next->mode = c->from->mode;
		err = c->snapshot ? clone_snapshot(c, ret, why) : clone_now(c, ret, why);
	}
	cloning_done(c, err);
	for (size_t i = 0; !err && i < (*ret)->nr_disks; i++)
		if ((*ret)->disks[i].pending_path && pending_add_job(c->store, *ret, &(*ret)->disks[i]))
			store_event(c->store, name, "disk %s is copied at the next start: out of memory", (*ret)->disks[i].file_name);
	return err;
}

int store_clone(struct store *store, struct vm *from, const struct vm_snapshot *snapshot, const char *name, uid_t uid,
		gid_t gid, struct vm **ret, struct reason *why)
{
	int err = managed_check(store, NULL, why);
	if (err)
		return err;
	if (!snapshot && from->kind != VM_MANAGED)
		return reason_set(why, -EROFS, "%s was found in SOURCE: its state of now isn't frozen; clone one of its snapshots", from->name);
	if ((err = name_check(name)))
		return reason_set(why, err, "%s: not a name for a VM", name);
	struct reservation r;
	if ((err = table_reserve(store, &r, PLACE_CLONES, name)))
		return reason_set(why, err, "clones/%s exists", name);
	for (int i = 0; i < STALE_TRIES; i++) {
		struct cloning c = {.store = store, .from = from, .snapshot = snapshot};
		err = clone_into(&c, name, uid, gid, ret, why);
		if (err != -ESTALE)
			break;
		usleep(1000); /* a merge took what was just frozen */
	}
	table_release(store, &r);
	return err;
}
