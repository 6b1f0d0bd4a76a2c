/* Clones: new overlays over what a snapshot holds, and one new VM. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "meta/domain.h"
#include "store/clone_spec.h"
#include "store/freeze.h"
#include "store/full.h"
#include "store/full_raw.h"
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
	const struct clone_spec *spec;
	struct clone_disk *plans; /* of the source's disks */
	struct vm *next;
	char (*layers)[LAYER_NAME_MAX]; /* made, and pinned */
	size_t nr_layers;
	size_t max_layers;
	char (*bases)[LAYER_NAME_MAX]; /* what disks are to become: names that were taken */
	size_t nr_bases;
	bool is_volume; /* of a pool, not a VM */
	bool commit_tried; /* a vm.xml may name the layers, whatever was returned */
	bool hopeless; /* what failed isn't the source of one disk */
};

static const struct vm_disk *source_disks(const struct cloning *c, size_t *ret_nr)
{
	*ret_nr = c->snapshot ? c->snapshot->nr_disks : c->from->nr_disks;
	return c->snapshot ? c->snapshot->disks : c->from->disks;
}

/* Before anything is made: what is asked for, of each disk of the source. */
static int plan(struct cloning *c, struct reason *why)
{
	size_t nr = 0;
	const struct vm_disk *disks = source_disks(c, &nr);
	c->plans = mem_new_array(nr + 1, sizeof *c->plans);
	c->layers = mem_new_array(nr + 1, sizeof *c->layers);
	c->bases = mem_new_array(nr + 1, sizeof *c->bases);
	c->max_layers = nr;
	if (!c->plans || !c->layers || !c->bases)
		return -ENOMEM;
	int err = clone_spec_check(c->spec, disks, nr, why);
	for (size_t i = 0; !err && i < nr; i++)
		err = clone_spec_disk(c->store, c->spec, &disks[i], &c->plans[i], why);
	return err;
}

static int set_names(struct cloning *c, struct vm_disk *disk, const struct vm_disk *from, const struct clone_disk *plan, struct reason *why)
{
	const char *target = plan->spec.target;
	auto_free char *file_name = NULL;
	if (asprintf(&file_name, "%s%s", target ? target : from->file_name, target ? ".img" : "") < 0)
		return -ENOMEM;
	if (vm_find_disk(c->next->disks, c->next->nr_disks - 1, file_name))
		return reason_set(why, -EEXIST, "two disks are called %s", file_name);
	disk->file_name = take_ptr(file_name);
	return text_set(&disk->target, target ? target : from->target);
}

/* A raw file, or a block device, which says how large the disk is. What is written meanwhile lies beside it, but in no directory of devices. */
static int reserve_base(struct cloning *c, struct vm_disk *disk, const struct layer_owner *owner, uint64_t *size, char *layer, struct reason *why)
{
	char *base = c->bases[c->nr_bases];
	memcpy(base, layer, LAYER_NAME_MAX);
	int err = full_raw_reserve(c->store, base, owner, size, why);
	if (err)
		return err;
	c->nr_bases++;
	layer_name_beside(layer, layer_is_device(c->store, base) ? "" : base, ".qcow2");
	return text_set(&disk->full_base, base);
}

/* What a job is to make of it, how large it is, and the name of its layer. */
static int set_goal(struct cloning *c, struct vm_disk *disk, const struct clone_disk *plan, const struct layer_owner *owner, uint64_t *size, char *layer,
		    struct reason *why)
{
	disk->full = plan->full;
	disk->preallocate = plan->spec.allocation == ALLOCATION_FULL;
	int err = clone_disk_volume(c->store, plan, c->next->name, disk->target ? disk->target : disk->file_name, layer);
	return !err && plan->raw ? reserve_base(c, disk, owner, size, layer, why) : err;
}

/* Adds a disk like FROM, as PLAN has it, to the new VM, over what SPEC and BENEATH say. */
static int add_disk(struct cloning *c, const struct vm_disk *from, const struct clone_disk *plan, const struct overlay_spec *spec,
		    const char *beneath, const struct frozen *pending, struct reason *why)
{
	struct vm_disk *disk = vm_disk_add(&c->next->disks, &c->next->nr_disks);
	if (!disk || c->nr_layers == c->max_layers)
		return -ENOMEM;
	char *name = c->layers[c->nr_layers];
	disk->format = IMAGE_QCOW2;
	struct overlay_spec overlay = *spec;
	struct layer_owner owner = {plan->spec.mode_bits ? plan->spec.mode_bits : 0600, c->next->uid, c->next->gid};
	c->hopeless = true;
	int err = set_names(c, disk, from, plan, why);
	if (!err)
		err = clone_disk_size(plan, spec->virtual_size, &overlay.virtual_size, why);
	if (!err)
		err = set_goal(c, disk, plan, &owner, &overlay.virtual_size, name, why);
	if (!err && pending)
		err = pending_set(disk, pending);
	if (err)
		return err;
	if (!*name)
		layer_name_new(name, ".qcow2");
	auto_free char *backing = NULL;
	auto_free char *base = pending ? layer_path(c->store, disk->pending_base) : NULL;
	if (pending && !base)
		return -ENOMEM;
	if (pending) {
		overlay.backing_name = base;
		overlay.backing_format = IMAGE_RAW;
		beneath = disk->pending_base;
	}
	if (overlay.backing_name)
		err = layer_backing_name(c->store, name, overlay.backing_name, &backing, why);
	if (err)
		return err;
	overlay.backing_name = backing;
	err = layer_create(c->store, &overlay, beneath, &owner, name, why);
	if (err)
		return err;
	c->hopeless = false;
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

static int add_over_view(struct cloning *c, const struct vm_disk *from, const struct clone_disk *plan, struct view *view, struct reason *why)
{
	struct frozen *frozen = NULL;
	int err = frozen_new(c->store, view, from->path, from->snapshot, &frozen, why);
	if (err)
		return err;
	char layer[LAYER_NAME_MAX];
	bool is_layer = layer_of_path(c->store, frozen->path, layer);
	struct overlay_spec spec = {.virtual_size = view_virtual_size(view), .backing_format = frozen->format};
	if (!is_layer && !frozen->snapshot)
		spec.backing_name = frozen->path;
	err = add_disk(c, from, plan, &spec, is_layer ? layer : NULL, frozen->snapshot ? frozen : NULL, why);
	frozen_put(frozen);
	return err;
}

static int clone_disk(struct cloning *c, const struct vm_disk *from, const struct clone_disk *plan, struct reason *why)
{
	if (from->error)
		return reason_set(why, from->error, "%s", from->error_text ? from->error_text : strerror(-from->error));
	if (from->shareable)
		return reason_set(why, -EOPNOTSUPP, "it is shared with other VMs, which write to it");
	struct disk_source source = {from->path, from->format, from->snapshot};
	struct view *view = NULL;
	/* Locked for the moment only: nobody writes to what is about to be a backing file. */
	int err = layers_open_locked(c->store, &source, &view, why);
	if (err)
		return err;
	err = add_over_view(c, from, plan, view, why);
	view_unlock(view);
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
		int err = c->plans[i].spec.left_out ? 0 : clone_disk(c, from, &c->plans[i], &disk_why);
		if (err && source_is_gone(c, why))
			return -ENOENT;
		if (err && is_skippable(err) && !c->hopeless && !c->is_volume) {
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
		if (!from->target || from->error || c->plans[i].spec.left_out) {
			if (from->error)
				store_event(c->store, c->next->name, "disk %s of %s isn't cloned: %s", from->file_name, now->name,
					    from->error_text ? from->error_text : strerror(-from->error));
			continue;
		}
		struct overlay_spec spec = {.virtual_size = frozen[i].virtual_size};
		const char *beneath = *frozen[i].layer ? frozen[i].layer : NULL;
		int err = add_disk(c, from, &c->plans[i], &spec, beneath, NULL, why);
		if (err)
			return reason_prefix(why, err, "disk %s: ", from->file_name);
	}
	return 0;
}

/* Disks that others write to stay where they are. */
static int leave_out_shared(struct cloning *c, const struct vm *now, struct reason *why)
{
	struct domain domain;
	if (!now->config || c->is_volume)
		return 0;
	int err = domain_parse_text(now->config, strlen(now->config), &domain, why);
	if (err)
		return err;
	for (size_t i = 0; i < domain.nr_disks; i++) {
		int disk = domain.disks[i].shareable ? vm_disk_index(now->disks, now->nr_disks, domain.disks[i].target) : -1;
		if (disk < 0 || c->plans[disk].spec.left_out)
			continue;
		store_event(c->store, c->next->name, "disk %s of %s isn't cloned: it is shared with other VMs, which write to it",
			    now->disks[disk].file_name, now->name);
		c->plans[disk].spec.left_out = true;
	}
	domain_done(&domain);
	return 0;
}

static int freeze_and_clone(struct cloning *c, struct entry *entry, struct vm **now, struct reason *why)
{
	size_t nr = (*now)->nr_disks;
	auto_free bool *chosen = mem_new_array(nr, sizeof *chosen);
	auto_free struct frozen_disk *frozen = mem_new_array(nr, sizeof *frozen);
	int err = chosen && frozen ? plan(c, why) : -ENOMEM;
	if (!err)
		err = leave_out_shared(c, *now, why);
	for (size_t i = 0; !err && i < nr; i++)
		chosen[i] = (*now)->disks[i].target && !(*now)->disks[i].error && !c->plans[i].spec.left_out;
	const struct freeze_spec spec = {.chosen = chosen};
	if (!err)
		err = freeze_disks(c->store, entry, now, &spec, frozen, why);
	return err ? err : clone_heads(c, *now, frozen, why);
}

/* --- both ------------------------------------------------------------------------------------------------------------------- */

static bool changes_config(const struct clone_disk *plan)
{
	return !plan->spec.left_out && (plan->spec.target || plan->spec.bus || plan->spec.renew_serial);
}

/* With the source's disks that come along, and no others: their names are free then. */
static int with_source_disks(struct cloning *c, char **text, struct reason *why)
{
	size_t nr = 0, nr_files = 0;
	const struct vm_disk *disks = source_disks(c, &nr);
	auto_free struct domain_disk_file *files = mem_new_array(nr + 1, sizeof *files);
	char *rendered = NULL;
	if (!files)
		return -ENOMEM;
	for (size_t i = 0; i < nr; i++)
		if (disks[i].target && disks[i].path && !c->plans[i].spec.left_out)
			files[nr_files++] = (struct domain_disk_file){.target = disks[i].target, .path = disks[i].path, .format = "qcow2"};
	int err = domain_render(*text, strlen(*text), NULL, NULL, files, nr_files, &rendered, why);
	if (err)
		return err;
	free(*text);
	*text = rendered;
	return 0;
}

/* Names, buses and serial numbers of disks. */
static int change_config(struct cloning *c, char **text, struct reason *why)
{
	size_t nr = 0;
	const struct vm_disk *disks = source_disks(c, &nr);
	bool rendered = false;
	int err = 0;
	for (size_t i = 0; !err && i < nr; i++) {
		const struct disk_spec *spec = &c->plans[i].spec;
		char *changed = NULL;
		if (!disks[i].target || !disks[i].path || !changes_config(&c->plans[i]))
			continue;
		if (!rendered)
			err = with_source_disks(c, text, why);
		rendered = true;
		if (!err)
			err = domain_change_disk(*text, strlen(*text), disks[i].target, spec->target ? spec->target : disks[i].target, spec->bus,
						 spec->renew_serial, &changed, why);
		if (!err) {
			free(*text);
			*text = changed;
		}
	}
	return err;
}

static int source_config(struct cloning *c, char **ret, size_t *ret_len, struct reason *why)
{
	int err = 0;
	if (!c->spec->domain)
		err = text_config(c->store, c->from, c->snapshot, ret, ret_len, why);
	else if (memchr(c->spec->domain, '\0', c->spec->domain_len))
		err = reason_set(why, -EINVAL, "the domain has a NUL byte in it");
	else if (!(*ret = strndup(c->spec->domain, c->spec->domain_len)))
		err = -ENOMEM;
	if (!err)
		err = change_config(c, ret, why);
	if (!err)
		*ret_len = strlen(*ret);
	return err;
}

/* Layers are stable under their names before a vm.xml names them. */
static int sync_layers(struct cloning *c, struct reason *why)
{
	int err = 0;
	for (size_t i = 0; !err && i < c->nr_layers; i++)
		if (!i || !layers_share_dir(c->layers[i], c->layers[i - 1]))
			err = layer_sync_dir(c->store, c->layers[i], why);
	return err;
}

static bool has_target(const struct vm_disk *disks, size_t nr, const char *target)
{
	for (size_t i = 0; i < nr; i++)
		if (disks[i].target && strcmp(disks[i].target, target) == 0)
			return true;
	return false;
}

static void report_left_out(struct cloning *c)
{
	const char *words = c->snapshot && c->snapshot->left_out ? c->snapshot->left_out : "";
	for (size_t len; words += strspn(words, " "), (len = strcspn(words, " ")) > 0; words += len)
		store_event(c->store, c->next->name, "disk %.*s of %s isn't cloned: it isn't part of the snapshot", (int)len, words, c->next->origin);
}

/* Says which disks of the configuration the clone hasn't because nothing of them was there to be cloned. What else isn't cloned was said before. */
static void report_missing(struct cloning *c, const char *config, size_t len)
{
	struct domain domain;
	const struct vm_disk *disks = c->snapshot ? c->snapshot->disks : c->from->disks;
	size_t nr = c->snapshot ? c->snapshot->nr_disks : c->from->nr_disks;
	if (domain_parse_text(config, len, &domain, NULL) < 0)
		return;
	for (size_t i = 0; i < domain.nr_disks; i++) {
		const struct domain_disk *disk = &domain.disks[i];
		if (disk->kind == DOMAIN_DISK_OTHER || !disk->path || has_target(disks, nr, disk->target) ||
		    has_target(c->next->disks, c->next->nr_disks, disk->target))
			continue;
		store_event(c->store, c->next->name, "disk %s of %s isn't cloned: %s", disk->target, c->next->origin,
			    disk->shareable ? "it is shared with other VMs, and isn't part of the snapshot" : "it isn't part of the snapshot");
	}
	domain_done(&domain);
	report_left_out(c);
}

static int finish(struct cloning *c, struct vm **ret, struct reason *why)
{
	auto_free char *text = NULL;
	auto_free char *nvram = NULL;
	size_t len = 0;
	int err = source_config(c, &text, &len, why);
	if (!err)
		err = managed_adopt_config(c->store, c->next, text, len, &c->next->config, &nvram, why);
	if (!err)
		err = sync_layers(c, why);
	if (err)
		return err;
	report_missing(c, text, len);
	return managed_add(c->store, take_ptr(c->next), nvram, ret, why);
}

/* POOL's description with the volume; a device that was found under its name isn't any more. */
static int with_volume(struct cloning *c, const struct vm *now, struct vm **ret, struct reason *why)
{
	const struct vm_disk *made = &c->next->disks[0];
	const char *name = strchr(made->full_base ? made->full_base : made->layer, '/') + 1;
	struct vm *next = vm_copy(now);
	int err = next ? 0 : -ENOMEM;
	for (size_t i = next ? next->nr_disks : 0; i-- > 0;)
		if (strcmp(next->disks[i].file_name, name) != 0)
			continue;
		else if (next->disks[i].found)
			vm_disk_drop(next, i);
		else
			err = reason_set(why, -EEXIST, "pools/%s/%s exists", now->name, name);
	struct vm_disk *disk = err ? NULL : vm_disk_add(&next->disks, &next->nr_disks);
	if (!err && (!disk || vm_disk_copy(disk, made) || text_set(&disk->file_name, name) || text_set(&disk->target, NULL)))
		err = -ENOMEM;
	if (err)
		vm_put(next);
	else
		*ret = next;
	return err;
}

/* The one disk that was made becomes a volume of its pool. */
static int add_volume(struct cloning *c, struct vm **ret, struct reason *why)
{
	struct vm *pool = c->next->nr_disks ? table_find(c->store, PLACE_POOLS, c->spec->all.pool) : NULL;
	struct entry *entry = NULL;
	struct vm *now = NULL, *next = NULL;
	if (!pool)
		return reason_set(why, -ENOENT, "%s", c->next->nr_disks ? "the pool has gone" : "the disk can't be read: see the events");
	int err = sync_layers(c, why);
	if (!err)
		err = managed_begin(c->store, pool, &entry, &now, why);
	vm_put(pool);
	if (err)
		return err;
	err = with_volume(c, now, &next, why);
	if (!err) {
		c->commit_tried = true;
		err = managed_commit(c->store, entry, vm_ref(next), why);
	}
	managed_end(entry, now);
	if (err)
		vm_put(next);
	else
		*ret = next;
	return err;
}

static int clone_now(struct cloning *c, struct vm **ret, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = managed_begin_settled(c->store, c->from, &entry, &now, why);
	if (err)
		return err;
	c->from = now;
	err = freeze_and_clone(c, entry, &now, why);
	c->from = now;
	if (!err && !c->is_volume)
		err = finish(c, ret, why);
	managed_end(entry, now);
	/* The lock of one VM at a time. */
	return !err && c->is_volume ? add_volume(c, ret, why) : err;
}

static int clone_snapshot(struct cloning *c, struct vm **ret, struct reason *why)
{
	int err = plan(c, why);
	if (!err)
		err = clone_disks(c, why);
	if (!err && (err = c->is_volume ? add_volume(c, ret, why) : finish(c, ret, why)) && source_is_gone(c, why))
		err = -ENOENT;
	return err;
}

static void cloning_done(struct cloning *c, int err)
{
	for (size_t i = 0; i < c->nr_layers; i++) {
		if (err)
			layer_drop(c->store, c->layers[i], c->commit_tried);
		else
			layers_unpin(c->store, c->layers[i]);
	}
	for (size_t i = 0; err && !c->commit_tried && i < c->nr_bases; i++)
		layer_file_cancel(c->store, c->bases[i]);
	vm_put(c->next);
	free(c->layers);
	free(c->bases);
	free(c->plans);
}

static int set_origin(struct cloning *c)
{
	int n = c->snapshot ? asprintf(&c->next->origin, "%s@%s", c->from->name, c->snapshot->name)
			    : asprintf(&c->next->origin, "%s", c->from->name);
	return n < 0 ? -ENOMEM : 0;
}

/* Who may read its configuration: whoever may read what it is made from, but for that one's group, if the clone has another. */
static mode_t config_mode(const struct cloning *c)
{
	struct access access;
	store_config_access(c->from, c->snapshot, &access);
	bool same_group = access.gid == c->spec->gid;
	return access.mode & (same_group || access.mode & 0004 ? 0444 : 0404);
}

static int clone_into(struct cloning *c, const char *name, struct vm **ret, struct reason *why)
{
	c->next = managed_new(c->is_volume ? PLACE_POOLS : PLACE_CLONES, name, c->spec->uid, c->spec->gid);
	int err = c->next ? set_origin(c) : -ENOMEM;
	if (!err) {
		c->next->mode = config_mode(c) | 0400;
		err = c->snapshot ? clone_snapshot(c, ret, why) : clone_now(c, ret, why);
	}
	cloning_done(c, err);
	for (size_t i = 0; !err && i < (*ret)->nr_disks; i++) {
		int job_err = (*ret)->disks[i].pending_path ? pending_add_job(c->store, *ret, &(*ret)->disks[i]) : 0;
		if (job_err && job_err != -EEXIST)
			store_event(c->store, name, "disk %s is copied at the next start: out of memory", (*ret)->disks[i].file_name);
	}
	if (err)
		return err;
	full_plan(c->store);
	full_note_waiting(c->store, *ret);
	return 0;
}

/* What is too long for a name is cut off where a character begins. */
static char *copy_name(const char *of, unsigned n)
{
	char number[16] = "", *name = NULL;
	if (n > 1)
		snprintf(number, sizeof number, "_%u", n);
	size_t len = strlen(of), room = 255 - strlen("copy_of_") - strlen(number);
	for (len = len < room ? len : room; len && ((unsigned char)of[len] & 0xc0) == 0x80;)
		len--;
	return asprintf(&name, "copy_of_%.*s%s", (int)len, of, number) < 0 ? NULL : name;
}

/* The name that is asked for, or the first of copy_of_NAME, copy_of_NAME_2, … that is free; the caller frees. */
static int reserve_name(struct store *store, const struct vm *from, const char *wanted, struct reservation *r, char **ret, struct reason *why)
{
	for (unsigned n = 1;; n++) {
		auto_free char *name = wanted ? strdup(wanted) : NULL;
		if (!wanted)
			name = copy_name(from->name, n);
		if (!name)
			return -ENOMEM;
		int err = name_check(name);
		if (err)
			return reason_set(why, err, "%s: not a name for a VM", name);
		err = table_reserve(store, r, PLACE_CLONES, name);
		if (err == -EEXIST && !wanted)
			continue;
		if (err)
			return reason_set(why, err, "clones/%s exists", name);
		*ret = take_ptr(name); /* which R refers to */
		return 0;
	}
}

int store_clone_with(struct store *store, struct vm *from, const struct vm_snapshot *snapshot, const struct clone_spec *spec,
		     struct vm **ret, struct reason *why)
{
	auto_free char *name = NULL;
	struct reservation r;
	int err = managed_check(store, NULL, why);
	if (err)
		return err;
	if (!snapshot && from->kind != VM_MANAGED)
		return reason_set(why, -EROFS, "%s was found in SOURCE: its state of now isn't frozen; clone one of its snapshots", from->name);
	if (spec->domain && spec->domain_len > XML_TEXT_MAX)
		return reason_set(why, -EINVAL, "a domain XML of more than %u bytes", XML_TEXT_MAX);
	err = reserve_name(store, from, spec->name, &r, &name, why);
	if (err)
		return err;
	for (int i = 0; i < STALE_TRIES; i++) {
		struct cloning c = {.store = store, .from = from, .snapshot = snapshot, .spec = spec};
		err = clone_into(&c, name, ret, why);
		if (err != -ESTALE)
			break;
		usleep(1000); /* a merge took what was just frozen */
	}
	table_release(store, &r);
	return err;
}

int store_clone(struct store *store, struct vm *from, const struct vm_snapshot *snapshot, const char *name, uid_t uid,
		gid_t gid, struct vm **ret, struct reason *why)
{
	const struct clone_spec spec = {.name = name, .uid = uid, .gid = gid};
	return store_clone_with(store, from, snapshot, &spec, ret, why);
}

int store_clone_volume(struct store *store, struct vm *from, const struct vm_snapshot *snapshot, const struct disk_spec *spec, uid_t uid,
		       gid_t gid, struct reason *why)
{
	struct clone_spec one = {.uid = uid, .gid = gid, .all = *spec, .disks = &(struct disk_spec){.disk = spec->disk}, .nr_disks = 1, .only_listed = true};
	struct vm *pool = NULL;
	int err = managed_check(store, NULL, why);
	if (err)
		return err;
	if (!spec->pool)
		return reason_set(why, -EINVAL, "a volume needs a pool: say in which");
	if (!snapshot && from->kind != VM_MANAGED)
		return reason_set(why, -EROFS, "%s was found in SOURCE: its state of now isn't frozen; clone one of its snapshots", from->name);
	one.all.disk = one.all.target = one.all.bus = NULL;
	for (int i = 0; i < STALE_TRIES; i++) {
		struct cloning c = {.store = store, .from = from, .snapshot = snapshot, .spec = &one, .is_volume = true};
		err = clone_into(&c, from->name, &pool, why);
		if (err != -ESTALE)
			break;
		usleep(1000);
	}
	if (!err)
		vm_put(pool);
	return err;
}
