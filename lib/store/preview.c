/* Going back: what the VM is becomes a composition of its snapshots, or of its own disks.
 *
 * Each disk that comes from a snapshot is a new overlay over the layer that the snapshot names; the layers that were the heads' until then are
 * frozen as they are, and named by the state that is kept (a preview's <saved>, a snapshot before-restore-TIME) or by nobody. No disk is open
 * meanwhile, so no gate has to be closed. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "block/merge.h"
#include "store/manifest.h"
#include "store/snapshot.h"
#include "store/store_internal.h"
#include "store/text.h"

#define WAIT_MS 5000 /* for those who only look at a disk, and for a merge that works on one */

enum keep { KEEP_NOTHING, KEEP_UNLESS_EQUAL, KEEP_SAVED };

struct composing {
	struct store *store;
	const struct vm *now;
	struct vm *next;
	enum keep keep;
	char (*layers)[LAYER_NAME_MAX]; /* made, and pinned */
	size_t nr_layers, max_layers;
};

/* --- whether a state is that of a snapshot -------------------------------------------------------------------------------- */

/* The number of layers in VIEW above that of BASE; -1: it isn't among them. */
static int layers_above(struct store *store, const struct view *view, const struct vm_disk *base)
{
	for (size_t i = 0; i < view_depth(view); i++) {
		char name[LAYER_NAME_MAX];
		if (layer_of_path(store, image_path(view_layer(view, i)), name) && strcmp(name, base->layer) == 0)
			return (int)i;
	}
	return -1;
}

/* Whether the top NR layers hold nothing at all. */
static bool are_empty(struct view *view, size_t nr)
{
	uint64_t size = view_virtual_size(view);
	for (uint64_t off = 0; off < size;) {
		struct extent e;
		if (view_map_top(view, nr, off, size - off, &e) || e.kind != EXTENT_UNALLOCATED)
			return false;
		off += e.len;
	}
	return true;
}

/* Whether nothing was written to DISK, a head or what was one, since it was put over the snapshot's; there may be more empty overlays
 * in between. */
static bool is_untouched(struct store *store, const struct vm_disk *disk, const struct vm_disk *base)
{
	struct overlay_facts facts;
	struct view *view = NULL;
	auto_free char *path = layer_path(store, disk->layer);
	const struct disk_source source = {path, disk->format, NULL};
	if (strcmp(disk->layer, base->layer) == 0)
		return true;
	if (!path || layer_settle(store, disk->layer, &facts, NULL) || !facts.empty ||
	    layers_open_view(store, &source, &view, NULL))
		return false;
	int above = layers_above(store, view, base);
	bool same = above > 0 && image_virtual_size(view_layer(view, (size_t)above)) == facts.virtual_size && are_empty(view, (size_t)above);
	view_put(view);
	return same;
}

static bool same_config(struct store *store, const struct vm *vm, const char *config, const struct vm_snapshot *snapshot)
{
	auto_free char *text = NULL, *then = NULL, *shown = NULL;
	size_t len = 0;
	return text_config(store, vm, snapshot, &text, &len, NULL) == 0 &&
	       text_domain(store, vm, text, snapshot->disks, snapshot->nr_disks, &then, NULL) == 0 &&
	       text_domain(store, vm, config, snapshot->disks, snapshot->nr_disks, &shown, NULL) == 0 && strcmp(then, shown) == 0;
}

static bool equals_snapshot(struct store *store, const struct vm *vm, const struct vm_disk *disks, size_t nr_disks, const char *config,
			    const struct vm_snapshot *snapshot)
{
	size_t nr = 0;
	if (!snapshot || snapshot->left_out || !same_config(store, vm, config, snapshot))
		return false;
	for (size_t i = 0; i < nr_disks; i++) {
		if (!disks[i].target)
			continue;
		const struct vm_disk *base = vm_find_disk(snapshot->disks, snapshot->nr_disks, disks[i].file_name);
		if (!base || disks[i].error || !is_untouched(store, &disks[i], base))
			return false;
		nr++;
	}
	return nr == snapshot->nr_disks;
}

static const struct vm_snapshot *current_of(const struct vm *vm)
{
	return vm->current >= 0 ? vm->snapshots[vm->current] : NULL;
}

/* --- composing -------------------------------------------------------------------------------------------------------------- */

static int overlay_over(struct composing *c, const struct vm_disk *from, struct vm_disk *disk, struct reason *why)
{
	struct image *image = NULL;
	int err = c->nr_layers < c->max_layers ? layer_open_image(c->store, from->layer, &image, why) : -EINVAL;
	if (err)
		return err;
	const struct overlay_spec spec = {.virtual_size = image_virtual_size(image)};
	const struct stat *st = image_stat(image);
	const struct layer_owner owner = {st->st_mode & 0777, st->st_uid, st->st_gid};
	char *name = c->layers[c->nr_layers];
	err = layer_create(c->store, &spec, from->layer, &owner, name, why);
	image_put(image);
	if (err)
		return err;
	c->nr_layers++;
	free(disk->path);
	disk->path = layer_path(c->store, name);
	return disk->path ? text_set(&disk->layer, name) : -ENOMEM;
}

/* Puts a disk into the next state: FROM of a snapshot, or of the state now where that is kept. */
static int add_over(struct composing *c, const struct vm_disk *from, struct reason *why)
{
	struct vm_disk *disk = vm_disk_add(&c->next->disks, &c->next->nr_disks);
	if (!disk)
		return -ENOMEM;
	disk->format = IMAGE_QCOW2;
	if (text_set(&disk->file_name, from->file_name) || text_set(&disk->target, from->target))
		return -ENOMEM;
	int err = vm_disk_copy_goal(disk, from);
	if (!err)
		err = overlay_over(c, from, disk, why);
	return err ? reason_prefix(why, err, "disk %s: ", from->file_name) : 0;
}

/* A disk of now that goes on. */
static int add_kept(struct composing *c, const struct vm_disk *from, struct reason *why)
{
	if (c->keep != KEEP_NOTHING && from->target && !from->error)
		return add_over(c, from, why);
	struct vm_disk *disk = vm_disk_add(&c->next->disks, &c->next->nr_disks);
	return disk ? vm_disk_copy(disk, from) : -ENOMEM;
}

static const struct preview_disk *override_of(const struct preview_spec *spec, const struct vm_disk *disk)
{
	for (size_t i = 0; i < spec->nr_disks; i++)
		if (vm_disk_index(disk, 1, spec->disks[i].disk) == 0)
			return &spec->disks[i];
	return NULL;
}

/* The disks of now that go on: all, or with a whole snapshot those that it left out, and scratch files. */
static int add_all_kept(struct composing *c, const struct preview_spec *spec, const struct vm_snapshot *base, struct reason *why)
{
	int err = 0;
	for (size_t i = 0; !err && i < c->now->nr_disks; i++) {
		const struct vm_disk *disk = &c->now->disks[i];
		bool goes_on = !disk->target || !base || snapshot_left_out(base, disk->target);
		if (goes_on && !(disk->target && override_of(spec, disk)))
			err = add_kept(c, disk, why);
	}
	return err;
}

static int add_from_base(struct composing *c, const struct preview_spec *spec, const struct vm_snapshot *base, struct reason *why)
{
	int err = 0;
	for (size_t i = 0; !err && base && i < base->nr_disks; i++)
		if (!override_of(spec, &base->disks[i]))
			err = add_over(c, &base->disks[i], why);
	return err;
}

/* The same disk can be named in several ways. */
static bool is_named_twice(const struct preview_spec *spec, const struct preview_disk *wanted, const struct vm_disk *disk)
{
	for (size_t i = 0; i < spec->nr_disks; i++)
		if (&spec->disks[i] != wanted && vm_disk_index(disk, 1, spec->disks[i].disk) == 0)
			return true;
	return false;
}

static int add_override(struct composing *c, const struct preview_spec *spec, const struct preview_disk *wanted, const struct vm_snapshot *base,
			struct reason *why)
{
	size_t s = 0;
	if (!wanted->snapshot) {
		bool known = vm_disk_index(c->now->disks, c->now->nr_disks, wanted->disk) >= 0 ||
			     (base && vm_disk_index(base->disks, base->nr_disks, wanted->disk) >= 0);
		return known ? 0 : reason_set(why, -ENOENT, "there is no disk %s", wanted->disk);
	}
	int err = snapshot_find(c->now, wanted->snapshot, &s, why);
	if (err)
		return err;
	const struct vm_snapshot *snapshot = c->now->snapshots[s];
	int i = vm_disk_index(snapshot->disks, snapshot->nr_disks, wanted->disk);
	if (i < 0)
		return reason_set(why, -ENOENT, "snapshot %s has no disk %s", snapshot->name, wanted->disk);
	if (is_named_twice(spec, wanted, &snapshot->disks[i]) ||
	    vm_find_disk(c->next->disks, c->next->nr_disks, snapshot->disks[i].file_name))
		return reason_set(why, -EINVAL, "disk %s is named twice", wanted->disk);
	return add_over(c, &snapshot->disks[i], why);
}

static int compose_disks(struct composing *c, const struct preview_spec *spec, const struct vm_snapshot *base, struct reason *why)
{
	while (c->next->nr_disks)
		vm_disk_drop(c->next, c->next->nr_disks - 1);
	int err = add_all_kept(c, spec, base, why);
	if (!err)
		err = add_from_base(c, spec, base, why);
	for (size_t i = 0; !err && i < spec->nr_disks; i++)
		err = add_override(c, spec, &spec->disks[i], base, why);
	return err;
}

/* Configuration and `current`: those of the snapshot named for it. */
static int compose_config(struct composing *c, const struct preview_spec *spec, struct reason *why)
{
	const char *name = spec->config ? spec->config : spec->snapshot;
	size_t i = 0, len = 0;
	char *text = NULL;
	if (!name)
		return 0;
	int err = snapshot_find(c->now, name, &i, why);
	if (!err)
		err = text_config(c->store, c->now, c->now->snapshots[i], &text, &len, why);
	if (err)
		return err;
	free(c->next->config);
	c->next->config = text;
	c->next->current = (int)i;
	return 0;
}

/* RAM fits its own configuration alone. A whole snapshot brings its own along. */
static int compose_memory(struct composing *c, const struct preview_spec *spec, struct reason *why)
{
	const char *config = spec->config ? spec->config : spec->snapshot;
	bool whole = spec->snapshot && !spec->config && !spec->nr_disks;
	const char *name = spec->memory ? spec->memory : whole ? spec->snapshot : NULL;
	size_t i = 0;
	if (!name)
		return config ? text_set(&c->next->memory_path, NULL) : 0;
	int err = snapshot_find(c->now, name, &i, why);
	if (err)
		return err;
	if (!config || vm_snapshot_lookup(c->now, config) != (int)i)
		return reason_set(why, -EINVAL, "the RAM of %s goes with the configuration of %s alone", name, name);
	if (spec->memory && !c->now->snapshots[i]->memory_path)
		return reason_set(why, -ENOENT, "snapshot %s holds no RAM", name);
	return text_set(&c->next->memory_path, c->now->snapshots[i]->memory_path);
}

static int compose(struct composing *c, const struct preview_spec *spec, struct reason *why)
{
	size_t i = 0;
	int err = spec->snapshot ? snapshot_find(c->now, spec->snapshot, &i, why) : 0;
	const struct vm_snapshot *base = !err && spec->snapshot ? c->now->snapshots[i] : NULL;
	if (!err)
		err = compose_config(c, spec, why);
	if (!err)
		err = compose_memory(c, spec, why);
	return err ? err : compose_disks(c, spec, base, why);
}

/* --- the state that is left behind ---------------------------------------------------------------------------------------- */

/* Nobody has the disks open; what a crash has left dirty is repaired. */
static int settle_disks(struct composing *c, struct reason *why)
{
	for (size_t i = 0; i < c->now->nr_disks; i++) {
		const struct vm_disk *disk = &c->now->disks[i];
		struct overlay_facts facts;
		int err = disk->target && !disk->error ? layer_settle(c->store, disk->layer, &facts, why) : 0;
		if (err)
			return reason_prefix(why, err, "disk %s: ", disk->file_name);
	}
	return 0;
}

/* "config=S1 vda=S2 vdb=none", or a snapshot's name. */
static char *preview_words(const struct preview_spec *spec)
{
	struct strbuf b = {0};
	char *words = NULL;
	if (spec->snapshot)
		strbuf_addf(&b, " %s", spec->snapshot);
	if (spec->config)
		strbuf_addf(&b, " config=%s", spec->config);
	if (spec->memory)
		strbuf_addf(&b, " memory=%s", spec->memory);
	for (size_t i = 0; i < spec->nr_disks; i++)
		strbuf_addf(&b, " %s=%s", spec->disks[i].disk, spec->disks[i].snapshot ? spec->disks[i].snapshot : "none");
	int err = strbuf_take(&b, &words, NULL);
	strbuf_done(&b);
	if (!err && *words)
		memmove(words, words + 1, strlen(words));
	return err ? NULL : words;
}

static struct vm_snapshot *state_now(struct composing *c, const char *name)
{
	struct vm_snapshot *state = snapshot_new(c->store, c->now, name);
	int err = state ? text_set(&state->memory_path, c->now->memory_path) : -ENOMEM;
	for (size_t i = 0; !err && i < c->now->nr_disks; i++)
		if (c->now->disks[i].target && !c->now->disks[i].error)
			err = snapshot_add_disk(c->store, state, &c->now->disks[i], c->now->disks[i].layer);
	if (!err)
		err = text_set(&state->config, c->now->config);
	if (err)
		vm_snapshot_put(take_ptr(state));
	return state;
}

/* A saved state becomes a snapshot with a name. STATE is taken over. */
static int keep_as_snapshot(struct store *store, struct vm *next, struct vm_snapshot *state, struct reason *why)
{
	auto_free char *name = state ? snapshot_name_by_time(next, "before-restore-") : NULL;
	auto_free char *config = name ? take_ptr(state->config) : NULL;
	int err = config && text_set(&state->name, name) == 0 ? 0 : -ENOMEM;
	if (!err)
		err = snapshot_write_file(store, next, state, config, why);
	if (!err)
		err = vm_snapshot_append(next, state);
	if (err)
		vm_snapshot_put(state);
	return err;
}

static void report_kept(struct store *store, const struct vm *vm)
{
	store_event(store, vm->name, "the state before is kept as snapshot %s; rmdir it when it isn't needed",
		    vm->snapshots[vm->nr_snapshots - 1]->name);
}

static int keep_state(struct composing *c, const struct preview_spec *spec, struct reason *why)
{
	switch (c->keep) {
	case KEEP_NOTHING: return 0;
	case KEEP_UNLESS_EQUAL: return keep_as_snapshot(c->store, c->next, state_now(c, NULL), why);
	case KEEP_SAVED: break;
	}
	c->next->saved = state_now(c, NULL);
	auto_free char *words = preview_words(spec);
	return c->next->saved && words ? text_set(&c->next->preview, words) : -ENOMEM;
}

/* --- the change as a whole ---------------------------------------------------------------------------------------------------- */

/* Begins a change of a VM of which no disk is open. */
static int begin_closed(struct store *store, const struct vm *vm, struct entry **ret_entry, struct vm **ret_now, struct reason *why)
{
	struct entry *entry = table_entry(store, vm->id);
	if (entry)
		entry->nr_waiting++;
	int err = 0;
	for (int ms = 0;; ms++) {
		err = managed_begin_settled(store, vm, ret_entry, ret_now, why);
		if (err)
			break;
		if (!heads_are_open(store, entry)) {
			err = heads_check_foreign(store, *ret_now, why);
			if (err)
				managed_end(*ret_entry, *ret_now);
			break;
		}
		bool in_use = heads_in_use(store, entry);
		managed_end(*ret_entry, *ret_now);
		if (ms >= (in_use ? MANAGED_CLOSING_MS : WAIT_MS)) {
			err = reason_set(why, -EBUSY, "%s: a disk is open; shut the VM down, or close the program that has it open", vm->name);
			break;
		}
		usleep(1000);
	}
	if (entry)
		entry->nr_waiting--;
	return err;
}

/* ERR: of what came before; then nothing is committed. */
static int commit_composed(struct composing *c, struct entry *entry, int err, struct reason *why)
{
	bool commit_tried = false;
	for (size_t i = 0; !err && i < c->nr_layers; i++)
		if (!i || !layers_share_dir(c->layers[i], c->layers[i - 1]))
			err = layer_sync_dir(c->store, c->layers[i], why);
	if (!err) {
		commit_tried = true;
		vm_ref(c->next);
		err = managed_commit(c->store, entry, c->next, why);
	}
	if (!err)
		snapshot_clear_files(c->store, c->next);
	for (size_t i = 0; i < c->nr_layers; i++) {
		if (!err)
			layers_unpin(c->store, c->layers[i]);
		else
			layer_drop(c->store, c->layers[i], commit_tried);
	}
	free(c->layers);
	vm_put(c->next);
	return err;
}

/* Room for the layers of all disks that the next state can have. */
static int expect_layers(struct composing *c, const struct preview_spec *spec)
{
	size_t nr = c->now->nr_disks + spec->nr_disks;
	int base = spec->snapshot ? vm_snapshot_lookup(c->now, spec->snapshot) : -1;
	if (base >= 0)
		nr += c->now->snapshots[base]->nr_disks;
	c->layers = mem_new_array(nr ? nr : 1, sizeof *c->layers);
	c->max_layers = nr;
	return c->layers ? 0 : -ENOMEM;
}

/* NOW is the VM's description; the caller holds the change lock, and no disk is open. */
static int become(struct store *store, struct entry *entry, const struct vm *now, const struct preview_spec *spec, enum keep keep,
		  struct reason *why)
{
	struct composing c = {.store = store, .now = now, .keep = keep};
	if (keep == KEEP_UNLESS_EQUAL && equals_snapshot(store, now, now->disks, now->nr_disks, now->config, current_of(now)))
		c.keep = KEEP_NOTHING;
	c.next = vm_copy(now);
	int err = c.next ? expect_layers(&c, spec) : -ENOMEM;
	if (!err)
		err = settle_disks(&c, why);
	if (!err)
		err = compose(&c, spec, why);
	if (!err)
		err = keep_state(&c, spec, why);
	struct vm *next = c.next ? vm_ref(c.next) : NULL;
	err = commit_composed(&c, entry, err, why);
	if (!err && c.keep == KEEP_UNLESS_EQUAL)
		report_kept(store, next);
	vm_put(next);
	return err;
}

int store_restore(struct store *store, struct vm *vm, const char *snapshot, bool discard, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	const struct preview_spec spec = {.snapshot = snapshot};
	int err = begin_closed(store, vm, &entry, &now, why);
	if (err)
		return err;
	err = snapshot_check_no_preview(now, "going back to a snapshot", why);
	if (!err)
		err = become(store, entry, now, &spec, discard ? KEEP_NOTHING : KEEP_UNLESS_EQUAL, why);
	managed_end(entry, now);
	if (!err)
		layers_sweep(store);
	return err;
}

int store_preview(struct store *store, struct vm *vm, const struct preview_spec *spec, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = begin_closed(store, vm, &entry, &now, why);
	if (err)
		return err;
	err = snapshot_check_no_preview(now, "previewing something else", why);
	if (!err)
		err = become(store, entry, now, spec, KEEP_SAVED, why);
	managed_end(entry, now);
	return err;
}

/* --- the end of a preview -------------------------------------------------------------------------------------------------------- */

static int check_preview(const struct vm *now, struct reason *why)
{
	return now->saved ? 0 : reason_set(why, -EINVAL, "%s: nothing is being previewed", now->name);
}

static int end_preview(struct vm *next)
{
	vm_snapshot_put(take_ptr(next->saved));
	return text_set(&next->preview, NULL);
}

static int commit_preview(struct store *store, struct entry *entry, const struct vm *now, bool discard, struct reason *why)
{
	const struct vm_snapshot *saved = now->saved;
	const struct vm_snapshot *parent = saved->parent ? vm_find_snapshot(now, saved->parent) : NULL;
	bool keep = !discard && !equals_snapshot(store, now, saved->disks, saved->nr_disks, saved->config, parent);
	struct vm *next = vm_copy(now);
	if (!next)
		return -ENOMEM;
	int err = keep ? keep_as_snapshot(store, next, vm_snapshot_copy(saved), why) : 0;
	if (!err)
		err = end_preview(next);
	if (err) {
		vm_put(next);
		return err;
	}
	vm_ref(next);
	err = managed_commit(store, entry, next, why);
	if (!err)
		snapshot_clear_files(store, next);
	if (!err && keep)
		report_kept(store, next);
	vm_put(next);
	return err;
}

int store_preview_commit(struct store *store, struct vm *vm, bool discard, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = managed_begin(store, vm, &entry, &now, why);
	if (err)
		return err;
	err = check_preview(now, why);
	if (!err)
		err = commit_preview(store, entry, now, discard, why);
	managed_end(entry, now);
	if (!err)
		layers_sweep(store);
	return err;
}

/* The disks of before are overlays over what was kept of them; scratch files stay as they are now. */
static int undo_disks(struct composing *c, struct reason *why)
{
	const struct vm_snapshot *saved = c->now->saved;
	int err = 0;
	while (c->next->nr_disks)
		vm_disk_drop(c->next, c->next->nr_disks - 1);
	for (size_t i = 0; !err && i < c->now->nr_disks; i++)
		if (!c->now->disks[i].target)
			err = add_kept(c, &c->now->disks[i], why);
		else if (!vm_find_disk(saved->disks, saved->nr_disks, c->now->disks[i].file_name))
			store_event(c->store, c->now->name, "disk %s, which came with the preview, goes with it", c->now->disks[i].file_name);
	for (size_t i = 0; !err && i < saved->nr_disks; i++)
		err = add_over(c, &saved->disks[i], why);
	return err;
}

static int undo_facts(struct composing *c)
{
	const struct vm_snapshot *saved = c->now->saved;
	c->next->current = saved->parent ? vm_snapshot_index(c->now, saved->parent) : -1;
	if (text_set(&c->next->config, saved->config) || text_set(&c->next->memory_path, saved->memory_path))
		return -ENOMEM;
	return end_preview(c->next);
}

static int undo_preview(struct store *store, struct entry *entry, const struct vm *now, struct reason *why)
{
	struct composing c = {.store = store, .now = now, .next = vm_copy(now), .max_layers = now->saved->nr_disks};
	c.layers = mem_new_array(c.max_layers ? c.max_layers : 1, sizeof *c.layers);
	int err = c.next && c.layers ? undo_disks(&c, why) : -ENOMEM;
	if (!err)
		err = undo_facts(&c);
	return commit_composed(&c, entry, err, why);
}

int store_preview_undo(struct store *store, struct vm *vm, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	int err = begin_closed(store, vm, &entry, &now, why);
	if (err)
		return err;
	err = check_preview(now, why);
	if (!err)
		err = undo_preview(store, entry, now, why);
	managed_end(entry, now);
	if (!err)
		layers_sweep(store);
	return err;
}
