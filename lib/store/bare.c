/* Bare images: a leaf image that no XML and no other image refers to is a VM. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store/bare.h"
#include "store/store_internal.h"

bool bare_is_image_name(const char *name)
{
	return bare_image_ending(name);
}

/* What the name says of the format. */
static enum image_format declared_format(const char *path)
{
	const char *ending = bare_image_ending(path);
	if (ending && strcmp(ending, ".qcow2") == 0)
		return IMAGE_QCOW2;
	return ending && strcmp(ending, ".raw") == 0 ? IMAGE_RAW : IMAGE_PROBE;
}

/* --- which images are leaves -------------------------------------------------------------------------------------------- */

struct leaves {
	struct intern referred; /* paths that another file names */
	struct intern data; /* those of them that it names as its external data file */
	size_t *tops; /* facts that chains begin with: candidates, and what libvirt VMs name */
	size_t nr_tops, cap_tops;
};

static int push_top(struct leaves *leaves, ssize_t fact)
{
	if (fact < 0)
		return (int)fact;
	if (mem_grow(&leaves->tops, &leaves->cap_tops, leaves->nr_tops + 1, sizeof *leaves->tops) < 0)
		return -ENOMEM;
	leaves->tops[leaves->nr_tops++] = (size_t)fact;
	return 0;
}

/* Follows the chain below TOP as far as it wasn't yet, and notes what it names. */
static int note_chain(struct fact_scan *scan, struct leaves *leaves, size_t top)
{
	ssize_t i = (ssize_t)top;
	while (i >= 0 && !scan->now.facts[i].visited) {
		struct image_fact *fact = &scan->now.facts[i];
		fact->visited = true;
		if ((fact->backing && !intern_add(&leaves->referred, fact->backing)) ||
		    (fact->data && (!intern_add(&leaves->referred, fact->data) || !intern_add(&leaves->data, fact->data))))
			return -ENOMEM;
		i = fact_below(scan, (size_t)i);
	}
	return i == -ENOMEM || i == -ECANCELED ? (int)i : 0;
}

static void mark_chain(struct fact_scan *scan, size_t top)
{
	for (ssize_t i = (ssize_t)top; i >= 0 && !scan->now.facts[i].visited; i = fact_below(scan, (size_t)i))
		scan->now.facts[i].visited = true;
}

/* --- one leaf --------------------------------------------------------------------------------------------------------- */

/* Leaves no fact marked: none is before. */
static int chain_collect(struct fact_scan *scan, size_t top, struct chain *ret)
{
	int err = 0;
	for (ssize_t i = (ssize_t)top; i >= 0 && !scan->now.facts[i].visited; i = fact_below(scan, (size_t)i)) {
		err = mem_grow(&ret->facts, &ret->cap_facts, ret->nr_facts + 1, sizeof *ret->facts);
		if (err)
			break;
		scan->now.facts[i].visited = true;
		ret->facts[ret->nr_facts++] = (size_t)i;
	}
	for (size_t i = 0; i < ret->nr_facts; i++)
		scan->now.facts[ret->facts[i]].visited = false;
	return err;
}

static uint64_t chain_hash(struct fact_scan *scan, const struct chain *chain)
{
	uint64_t hash = HASH_START;
	for (size_t i = 0; i < chain->nr_facts; i++) {
		const struct image_fact *fact = &scan->now.facts[chain->facts[i]];
		hash = hash_bytes(hash_text(hash, fact->path), &fact->stamp, sizeof fact->stamp);
	}
	return hash;
}

struct bare_result {
	/* The bare VMs of the last look, by path. */
	struct intern old_paths;
	struct found_vm **olds; /* olds[number - 1] */
	struct found_vm **vms;
	size_t *nr_vms, *cap_vms;
	bool all_known; /* what snapshots name */
};

static struct found_vm *find_old(const struct bare_result *result, const char *path)
{
	uint32_t number = intern_lookup(&result->old_paths, path);
	return number ? result->olds[number - 1] : NULL;
}

static int index_old(struct bare_result *result, struct found_vm *old, size_t nr_old)
{
	result->olds = mem_new_array(nr_old, sizeof(struct found_vm *));
	if (!result->olds)
		return -ENOMEM;
	for (size_t i = 0; i < nr_old; i++) {
		if (!old[i].vm || old[i].vm->kind != VM_FOUND_BARE)
			continue;
		uint32_t number = intern_add(&result->old_paths, old[i].path);
		if (!number)
			return -ENOMEM;
		result->olds[number - 1] = &old[i];
	}
	return 0;
}

static int add_leaf(struct fact_scan *scan, size_t top, struct bare_result *result)
{
	struct chain chain = {0};
	struct found_vm *old = find_old(result, scan->now.facts[top].path);
	if (!old && !result->all_known)
		return 0;
	int err = chain_collect(scan, top, &chain);
	if (!err)
		err = mem_grow(result->vms, result->cap_vms, *result->nr_vms + 1, sizeof **result->vms);
	if (err) {
		free(chain.facts);
		return err;
	}
	uint64_t hash = chain_hash(scan, &chain);
	struct found_vm *made = &(*result->vms)[*result->nr_vms];
	if (old && old->vm && old->hash == hash) {
		*made = *old;
		*old = (struct found_vm){0};
	} else {
		err = bare_read(scan, &chain, made);
		made->hash = chain_hash(scan, &chain); /* without those that it couldn't open */
		if (err)
			found_vm_done(made);
	}
	if (!err)
		++*result->nr_vms;
	free(chain.facts);
	return err;
}

/* --- the whole of SOURCE -------------------------------------------------------------------------------------------------------- */

/* Resolves what libvirt VMs name. Paths that are in the list of SOURCE's files are real already. */
static int resolve_named(struct fact_scan *scan, const struct source *source, const struct file_refs *named, struct leaves *leaves)
{
	struct intern seen = {0};
	int err = 0;
	for (size_t i = 0; !err && i < named->nr_refs; i++) {
		const char *path = named->refs[i].path;
		size_t nr_seen = seen.nr_names;
		if (!intern_add(&seen, path))
			err = -ENOMEM;
		if (err || seen.nr_names == nr_seen)
			continue;
		auto_free char *real = NULL;
		if (*path == '/' && source_find(source, path))
			real = strdup(path);
		else if (trust_resolve(scan->store->trust, NULL, path, &real, NULL))
			continue;
		if (!real || !intern_add(&leaves->referred, real))
			err = -ENOMEM;
	}
	intern_done(&seen);
	return err;
}

/* The images that nothing in libvirt's files names. */
static int push_candidates(struct fact_scan *scan, const struct source *source, struct leaves *leaves)
{
	for (size_t i = 0; i < source->nr_files; i++) {
		const char *path = source->files[i].path;
		if (source->files[i].kind != SOURCE_IMAGE || intern_lookup(&leaves->referred, path))
			continue;
		int err = push_top(leaves, fact_get(scan, path, path, declared_format(path)));
		if (err)
			return err;
	}
	return 0;
}

/* The chains of libvirt's images are looked into only now: where no candidate is left nobody needs to know. */
static int push_named(struct fact_scan *scan, const struct file_refs *named, struct leaves *leaves)
{
	for (size_t i = 0; i < named->nr_refs; i++) {
		auto_free char *real = NULL;
		const char *path = named->refs[i].path;
		if (trust_resolve(scan->store->trust, NULL, path, &real, NULL))
			continue;
		int err = push_top(leaves, fact_get(scan, real, path, named->refs[i].format));
		if (err)
			return err;
	}
	return 0;
}

static int note_chains(struct fact_scan *scan, struct leaves *leaves, size_t first_top)
{
	int err = 0;
	for (size_t i = first_top; !err && i < leaves->nr_tops; i++)
		err = note_chain(scan, leaves, leaves->tops[i]);
	return err;
}

static bool any_is_left(const struct fact_scan *scan, const struct leaves *leaves, size_t nr_candidates)
{
	for (size_t i = 0; i < nr_candidates; i++)
		if (!intern_lookup(&leaves->referred, scan->now.facts[leaves->tops[i]].path))
			return true;
	return false;
}

/* The chains of what snapshots name, only now: on most hosts no image is left that a domain's own chains don't reach. */
static int note_snapshots(struct fact_scan *scan, const struct source *source, snapshot_refs_fn snapshot_refs, void *ctx,
			  struct leaves *leaves, bool *ret_all)
{
	struct file_refs named = {0};
	size_t first_top = leaves->nr_tops;
	int err = snapshot_refs(ctx, &named, ret_all);
	if (!err)
		err = resolve_named(scan, source, &named, leaves);
	if (!err)
		err = push_named(scan, &named, leaves);
	free(named.refs); /* the paths are borrowed */
	return err ? err : note_chains(scan, leaves, first_top);
}

static int find_leaves(struct fact_scan *scan, const struct source *source, const struct file_refs *named,
		       struct leaves *leaves, size_t *ret_nr_candidates)
{
	int err = resolve_named(scan, source, named, leaves);
	if (!err)
		err = push_candidates(scan, source, leaves);
	*ret_nr_candidates = leaves->nr_tops;
	if (!err && leaves->nr_tops)
		err = push_named(scan, named, leaves);
	return err ? err : note_chains(scan, leaves, 0);
}

/* Images that nothing reaches refer to each other in a circle: one of each circle is shown, and its disk says what is wrong. */
static int add_circles(struct fact_scan *scan, struct leaves *leaves, size_t nr_candidates, struct bare_result *result)
{
	for (size_t i = 0; i < leaves->nr_tops; i++)
		if (i >= nr_candidates || !intern_lookup(&leaves->referred, scan->now.facts[leaves->tops[i]].path))
			mark_chain(scan, leaves->tops[i]);
	struct chain circles = {0};
	int err = 0;
	for (size_t i = 0; !err && i < nr_candidates; i++) {
		size_t top = leaves->tops[i];
		const char *path = scan->now.facts[top].path;
		if (fact_is_visited(scan, path) || intern_lookup(&leaves->data, path))
			continue;
		mark_chain(scan, top);
		err = mem_grow(&circles.facts, &circles.cap_facts, circles.nr_facts + 1, sizeof *circles.facts);
		if (!err)
			circles.facts[circles.nr_facts++] = top;
	}
	fact_unvisit_all(scan);
	for (size_t i = 0; !err && i < circles.nr_facts; i++)
		err = add_leaf(scan, circles.facts[i], result);
	free(circles.facts);
	return err;
}

int bare_find(struct store *store, struct image_facts *facts, const struct source *source, const struct file_refs *named,
	      snapshot_refs_fn snapshot_refs, void *ctx, struct found_vm *old, size_t nr_old, struct found_vm **vms, size_t *nr_vms, size_t *cap_vms)
{
	struct fact_scan scan = {.store = store, .known = &facts->known};
	struct bare_result result = {.vms = vms, .nr_vms = nr_vms, .cap_vms = cap_vms, .all_known = true};
	struct leaves leaves = {0};
	size_t nr_candidates = 0;
	int err = index_old(&result, old, nr_old);
	if (!err)
		err = find_leaves(&scan, source, named, &leaves, &nr_candidates);
	if (!err && any_is_left(&scan, &leaves, nr_candidates))
		err = note_snapshots(&scan, source, snapshot_refs, ctx, &leaves, &result.all_known);
	fact_unvisit_all(&scan);
	for (size_t i = 0; !err && i < nr_candidates; i++)
		if (!intern_lookup(&leaves.referred, scan.now.facts[leaves.tops[i]].path))
			err = add_leaf(&scan, leaves.tops[i], &result);
	if (!err)
		err = add_circles(&scan, &leaves, nr_candidates, &result);
	intern_done(&result.old_paths);
	free(result.olds);
	intern_done(&leaves.referred);
	intern_done(&leaves.data);
	free(leaves.tops);
	fact_scan_done(&scan, facts);
	return err;
}
