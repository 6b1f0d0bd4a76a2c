/* Bare images: a leaf image that no XML and no other image refers to is a VM of one disk. Each file of its backing chain is a snapshot, and so is
 * each internal snapshot. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/name.h"
#include "store/found.h"
#include "store/store_internal.h"

#define DISK_TARGET    "vda"
#define DISK_FILE_NAME "vda.img"

/* --- names ---------------------------------------------------------------------------------------------------------- */

static const char *const image_endings[] = {".qcow2", ".qcow", ".raw", ".img"};

static const char *image_ending(const char *name)
{
	size_t len = strlen(name);
	for (size_t i = 0; i < sizeof image_endings / sizeof *image_endings; i++) {
		size_t ending_len = strlen(image_endings[i]);
		if (len > ending_len && strcmp(name + len - ending_len, image_endings[i]) == 0)
			return name + len - ending_len;
	}
	return NULL;
}

bool bare_is_image_name(const char *name)
{
	return image_ending(name);
}

/* What the name says of the format. */
static enum image_format declared_format(const char *path)
{
	const char *ending = image_ending(path);
	if (ending && strcmp(ending, ".qcow2") == 0)
		return IMAGE_QCOW2;
	return ending && strcmp(ending, ".raw") == 0 ? IMAGE_RAW : IMAGE_PROBE;
}

/* The file's name without directory and ending; the caller frees. */
static char *image_title(const char *path)
{
	const char *name = strrchr(path, '/') + 1;
	const char *ending = image_ending(name);
	auto_free char *title = strndup(name, ending ? (size_t)(ending - name) : strlen(name));
	return title ? name_make_valid(title) : NULL;
}

/* --- facts ---------------------------------------------------------------------------------------------------------- */

/* What an image opened in a certain format says of other files. */
struct image_fact {
	char *path; /* real */
	char *named; /* as it was named first: relative names in its header start from there */
	enum image_format format;
	uint64_t stamp;
	int err; /* of opening it, with the reason */
	char *error_text;
	char *backing; /* real path; NULL: none, or not one that may be opened */
	char *backing_named;
	enum image_format backing_format;
	char *data;
	bool visited; /* scratch */
};

/* In order of arrival; a path in two formats is two facts. */
struct fact_table {
	struct intern keys;
	struct image_fact *facts; /* facts[key - 1] */
	size_t nr_facts, cap_facts;
};

struct image_facts {
	struct fact_table known; /* of the last look */
};

int image_facts_new(struct image_facts **ret)
{
	*ret = calloc(1, sizeof **ret);
	return *ret ? 0 : -ENOMEM;
}

static void fact_done(struct image_fact *fact)
{
	free(fact->path);
	free(fact->named);
	free(fact->error_text);
	free(fact->backing);
	free(fact->backing_named);
	free(fact->data);
	*fact = (struct image_fact){0};
}

static void fact_table_done(struct fact_table *table)
{
	for (size_t i = 0; i < table->nr_facts; i++)
		fact_done(&table->facts[i]);
	free(table->facts);
	intern_done(&table->keys);
	*table = (struct fact_table){0};
}

void image_facts_free(struct image_facts *facts)
{
	if (!facts)
		return;
	fact_table_done(&facts->known);
	free(facts);
}

/* NAME as it is written in DIR, and what it resolves to. */
static int resolve(struct store *store, const char *dir, const char *name, char **ret_named, char **ret_real, struct reason *why)
{
	int err = trust_resolve(store->trust, dir, name, ret_real, why);
	if (err)
		return err;
	int n = *name == '/' ? asprintf(ret_named, "%s", name) : asprintf(ret_named, "%s/%s", dir, name);
	return n < 0 ? -ENOMEM : 0;
}

static int fact_fail(struct image_fact *fact, int err, const struct reason *why)
{
	fact->err = err;
	return text_set(&fact->error_text, *why->text ? why->text : strerror(-err));
}

/* Reads the header. Only want of memory is a failure: anything else is a fact. */
static int fact_read(struct store *store, struct image_fact *fact)
{
	struct reason why = {0};
	struct image *image = NULL;
	int err = image_open(store->images, NULL, fact->named, fact->format, &image, &why);
	if (err)
		return err == -ENOMEM ? err : fact_fail(fact, err, &why);
	const char *slash = strrchr(fact->named, '/');
	auto_free char *dir = strndup(fact->named, slash == fact->named ? 1 : (size_t)(slash - fact->named));
	const char *backing = image_backing_name(image);
	err = dir ? text_set(&fact->data, image_data_path(image)) : -ENOMEM;
	if (!err && backing) {
		fact->backing_format = image_backing_format(image);
		err = resolve(store, dir, backing, &fact->backing_named, &fact->backing, &why);
		if (err && err != -ENOMEM) {
			reason_prefix(&why, err, "%s: its backing file: ", fact->path);
			err = fact_fail(fact, err, &why);
		}
	}
	image_put(image);
	return err;
}

struct bare_scan {
	struct store *store;
	struct fact_table *known; /* of the last look: what is still true is moved out of it */
	struct fact_table now;
};

/* The number of the fact about PATH (NAMED) read as FORMAT, taken over from the last look or read; negative errno. */
static ssize_t fact_get(struct bare_scan *scan, const char *path, const char *named, enum image_format format)
{
	auto_free char *key = NULL;
	struct stat st;
	if (asprintf(&key, "%d%s", (int)format, path) < 0)
		return -ENOMEM;
	uint32_t id = intern_lookup(&scan->now.keys, key);
	if (id)
		return (ssize_t)id - 1;
	if (mem_grow(&scan->now.facts, &scan->now.cap_facts, scan->now.nr_facts + 1, sizeof *scan->now.facts) < 0)
		return -ENOMEM;
	uint64_t stamp = lstat(path, &st) < 0 ? 0 : stamp_make(&st);
	uint32_t old_id = intern_lookup(&scan->known->keys, key);
	struct image_fact *old = old_id ? &scan->known->facts[old_id - 1] : NULL;
	struct image_fact *fact = &scan->now.facts[scan->now.nr_facts];
	int err = 0;
	if (old && old->path && old->stamp == stamp && strcmp(old->named, named) == 0) {
		*fact = *old;
		fact->visited = false;
		*old = (struct image_fact){0};
	} else {
		*fact = (struct image_fact){.format = format, .stamp = stamp};
		if (text_set(&fact->path, path) || text_set(&fact->named, named))
			err = -ENOMEM;
		if (!err)
			err = fact_read(scan->store, fact);
	}
	if (!err && !intern_add(&scan->now.keys, key))
		err = -ENOMEM;
	if (err) {
		fact_done(fact);
		return err;
	}
	return (ssize_t)scan->now.nr_facts++;
}

/* The fact about what lies beneath fact I; negative: nothing that can be followed. */
static ssize_t fact_below(struct bare_scan *scan, size_t i)
{
	const struct image_fact *fact = &scan->now.facts[i];
	if (!fact->backing)
		return -ENOENT;
	/* Copies: the table may move. */
	auto_free char *path = strdup(fact->backing);
	auto_free char *named = strdup(fact->backing_named);
	return path && named ? fact_get(scan, path, named, fact->backing_format) : -ENOMEM;
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
static int note_chain(struct bare_scan *scan, struct leaves *leaves, size_t top)
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
	return i == -ENOMEM ? -ENOMEM : 0;
}

static void unvisit_all(struct bare_scan *scan)
{
	for (size_t i = 0; i < scan->now.nr_facts; i++)
		scan->now.facts[i].visited = false;
}

/* Marks all facts of the chain; true when there was anything new. */
static bool mark_chain(struct bare_scan *scan, size_t top)
{
	bool any = false;
	for (ssize_t i = (ssize_t)top; i >= 0 && !scan->now.facts[i].visited; i = fact_below(scan, (size_t)i))
		any = scan->now.facts[i].visited = true;
	return any;
}

/* Whether some fact about PATH was reached. */
static bool is_reached(struct bare_scan *scan, const char *path)
{
	for (int format = IMAGE_PROBE; format <= IMAGE_QCOW2; format++) {
		auto_free char *key = NULL;
		uint32_t id = asprintf(&key, "%d%s", format, path) < 0 ? 0 : intern_lookup(&scan->now.keys, key);
		if (id && scan->now.facts[id - 1].visited)
			return true;
	}
	return false;
}

/* --- making a VM ------------------------------------------------------------------------------------------------------------ */

struct chain {
	size_t *facts; /* top first */
	size_t nr_facts, cap_facts;
};

/* Leaves no fact marked: none is before. */
static int chain_collect(struct bare_scan *scan, size_t top, struct chain *ret)
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

static uint64_t chain_hash(struct bare_scan *scan, const struct chain *chain)
{
	uint64_t hash = HASH_START;
	for (size_t i = 0; i < chain->nr_facts; i++) {
		const struct image_fact *fact = &scan->now.facts[chain->facts[i]];
		hash = hash_bytes(hash_text(hash, fact->path), &fact->stamp, sizeof fact->stamp);
	}
	return hash;
}

static int set_disk(struct vm_disk *disk, const struct image_fact *fact, const char *snapshot)
{
	disk->format = fact->format;
	if (text_set(&disk->file_name, DISK_FILE_NAME) || text_set(&disk->target, DISK_TARGET) ||
	    text_set(&disk->path, fact->named) || text_set(&disk->snapshot, snapshot))
		return -ENOMEM;
	return 0;
}

/* A snapshot of the one disk; NAME is made valid and unique. NULL: memory is out. */
static struct vm_snapshot *add_snapshot(struct vm *vm, struct intern *taken, const char *name, const struct image_fact *fact,
					const char *internal)
{
	struct vm_snapshot *snapshot = vm_snapshot_add(vm);
	if (!snapshot)
		return NULL;
	snapshot->name = unique_name(taken, name);
	struct vm_disk *disk = vm_disk_add(&snapshot->disks, &snapshot->nr_disks);
	const char *parent = vm->nr_snapshots > 1 ? vm->snapshots[vm->nr_snapshots - 2].name : NULL;
	if (!snapshot->name || !disk || set_disk(disk, fact, internal) || text_set(&snapshot->parent, parent))
		return NULL;
	return snapshot;
}

static int by_date(const void *a, const void *b)
{
	const struct image_snapshot *x = *(const struct image_snapshot *const *)a;
	const struct image_snapshot *y = *(const struct image_snapshot *const *)b;
	if (x->date_sec != y->date_sec)
		return x->date_sec < y->date_sec ? -1 : 1;
	if (x->date_nsec != y->date_nsec)
		return x->date_nsec < y->date_nsec ? -1 : 1;
	return x < y ? -1 : x > y; /* rows of one table */
}

/* How view_open() is told of ROW: by its tag where that means it, else by its id. NULL: neither does. */
static const char *handle_of(const struct image *image, const struct image_snapshot *row)
{
	const char *const names[] = {row->name, row->id};
	for (size_t i = 0; i < 2; i++) {
		int found = names[i] && *names[i] ? image_find_snapshot(image, names[i]) : -1;
		if (found >= 0 && image_snapshot(image, (uint32_t)found) == row)
			return names[i];
	}
	return NULL;
}

static int add_internal(struct vm *vm, struct intern *taken, const struct image_fact *fact, const struct image *image,
			const struct image_snapshot *row)
{
	const char *handle = handle_of(image, row);
	const char *name = row->name && *row->name ? row->name : row->id;
	struct vm_snapshot *snapshot = add_snapshot(vm, taken, name, fact, handle ? handle : row->id);
	if (!snapshot)
		return -ENOMEM;
	if (!handle)
		vm_disk_set_error(&snapshot->disks[0], -EOPNOTSUPP, "another snapshot of the image has the same tag and number");
	snapshot->created = row->date_sec;
	snapshot->memory_disk = row->vm_state_size ? 0 : -1;
	return text_set(&snapshot->state, row->vm_state_size ? "running" : "shutoff");
}

static int add_internals(struct store *store, struct vm *vm, struct intern *taken, const struct image_fact *fact)
{
	struct image *image = NULL;
	int err = image_open(store->images, NULL, fact->named, fact->format, &image, NULL);
	if (err)
		return err == -ENOMEM ? err : 0; /* is a fact already */
	uint32_t nr = image_nr_snapshots(image);
	const struct image_snapshot **rows = mem_new_array(nr, sizeof *rows);
	if (!rows)
		err = -ENOMEM;
	for (uint32_t i = 0; !err && i < nr; i++)
		rows[i] = image_snapshot(image, i);
	if (!err && nr)
		qsort(rows, nr, sizeof *rows, by_date);
	for (uint32_t i = 0; !err && i < nr; i++)
		err = add_internal(vm, taken, fact, image, rows[i]);
	free(rows);
	image_put(image);
	return err;
}

/* A file of the chain that others lie on: what it holds is the disk as it was when the next one was begun. */
static int add_file_snapshot(struct vm *vm, struct intern *taken, const struct image_fact *fact)
{
	auto_free char *title = image_title(fact->path);
	struct vm_snapshot *snapshot = title ? add_snapshot(vm, taken, title, fact, NULL) : NULL;
	struct stat st;
	if (!snapshot)
		return -ENOMEM;
	if (lstat(fact->path, &st) == 0)
		snapshot->created = st.st_mtim.tv_sec;
	return text_set(&snapshot->state, "disk-snapshot");
}

static int add_snapshots(struct bare_scan *scan, const struct chain *chain, struct vm *vm)
{
	struct intern taken = {0};
	int err = 0;
	for (size_t i = chain->nr_facts; !err && i-- > 0;) {
		const struct image_fact *fact = &scan->now.facts[chain->facts[i]];
		err = add_internals(scan->store, vm, &taken, fact);
		if (!err && i > 0)
			err = add_file_snapshot(vm, &taken, fact);
	}
	intern_done(&taken);
	vm->current = (int)vm->nr_snapshots - 1;
	return err;
}

static int fill_vm(struct vm *vm, const struct image_fact *leaf)
{
	struct stat st;
	if (lstat(leaf->path, &st) == 0) {
		vm->changed = st.st_mtim;
		vm->uid = st.st_uid;
		vm->gid = st.st_gid;
		vm->mode = st.st_mode & 0444;
	}
	vm->name = image_title(leaf->path);
	vm->uuid = uuid_of_path(leaf->path);
	struct vm_disk *disk = vm_disk_add(&vm->disks, &vm->nr_disks);
	return vm->name && vm->uuid && disk ? set_disk(disk, leaf, NULL) : -ENOMEM;
}

static int note_errors(struct bare_scan *scan, const struct chain *chain, struct found_vm *ret)
{
	struct strbuf complaint = {0};
	for (size_t i = 0; i < chain->nr_facts; i++) {
		const struct image_fact *fact = &scan->now.facts[chain->facts[i]];
		if (fact->err)
			complain(&complaint, "%s", fact->error_text);
	}
	return complaint.len || complaint.failed ? strbuf_take(&complaint, &ret->complaint, NULL) : 0;
}

static int read_bare(struct bare_scan *scan, const struct chain *chain, uint64_t hash, struct found_vm *ret)
{
	const struct image_fact *leaf = &scan->now.facts[chain->facts[0]];
	*ret = (struct found_vm){.hash = hash, .fresh = true, .vm = vm_new(VM_FOUND_BARE, PLACE_VMS)};
	int err = ret->vm ? fill_vm(ret->vm, leaf) : -ENOMEM;
	if (!err)
		err = text_set(&ret->path, leaf->path);
	if (!err)
		err = add_snapshots(scan, chain, ret->vm);
	return err ? err : note_errors(scan, chain, ret);
}

struct bare_result {
	/* The bare VMs of the last look, by path. */
	struct intern old_paths;
	struct found_vm **olds; /* olds[number - 1] */
	struct found_vm **vms;
	size_t *nr_vms, *cap_vms;
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
		if (!old[i].vm || old[i].domain_name)
			continue;
		uint32_t number = intern_add(&result->old_paths, old[i].path);
		if (!number)
			return -ENOMEM;
		result->olds[number - 1] = &old[i];
	}
	return 0;
}

static int add_leaf(struct bare_scan *scan, size_t top, struct bare_result *result)
{
	struct chain chain = {0};
	int err = chain_collect(scan, top, &chain);
	if (!err)
		err = mem_grow(result->vms, result->cap_vms, *result->nr_vms + 1, sizeof **result->vms);
	if (err) {
		free(chain.facts);
		return err;
	}
	uint64_t hash = chain_hash(scan, &chain);
	struct found_vm *old = find_old(result, scan->now.facts[top].path);
	struct found_vm *made = &(*result->vms)[*result->nr_vms];
	if (old && old->vm && old->hash == hash) {
		*made = *old;
		*old = (struct found_vm){0};
	} else {
		err = read_bare(scan, &chain, hash, made);
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
static int resolve_named(struct bare_scan *scan, const struct source *source, const struct file_refs *named, struct leaves *leaves)
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

/* The images that nothing in libvirt's files names; sets *RET_ANY. */
static int push_candidates(struct bare_scan *scan, const struct source *source, struct leaves *leaves)
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
static int push_named(struct bare_scan *scan, const struct file_refs *named, struct leaves *leaves)
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

static int find_leaves(struct bare_scan *scan, const struct source *source, const struct file_refs *named,
		       struct leaves *leaves, size_t *ret_nr_candidates)
{
	int err = resolve_named(scan, source, named, leaves);
	if (!err)
		err = push_candidates(scan, source, leaves);
	*ret_nr_candidates = leaves->nr_tops;
	if (!err && leaves->nr_tops)
		err = push_named(scan, named, leaves);
	for (size_t i = 0; !err && i < leaves->nr_tops; i++)
		err = note_chain(scan, leaves, leaves->tops[i]);
	return err;
}

/* Images that nothing reaches refer to each other in a circle: one of each circle is shown, and its disk says what is wrong. */
static int add_circles(struct bare_scan *scan, struct leaves *leaves, size_t nr_candidates, struct bare_result *result)
{
	for (size_t i = 0; i < leaves->nr_tops; i++)
		if (i >= nr_candidates || !intern_lookup(&leaves->referred, scan->now.facts[leaves->tops[i]].path))
			mark_chain(scan, leaves->tops[i]);
	struct chain circles = {0};
	int err = 0;
	for (size_t i = 0; !err && i < nr_candidates; i++) {
		size_t top = leaves->tops[i];
		const char *path = scan->now.facts[top].path;
		if (is_reached(scan, path) || intern_lookup(&leaves->data, path))
			continue;
		mark_chain(scan, top);
		err = mem_grow(&circles.facts, &circles.cap_facts, circles.nr_facts + 1, sizeof *circles.facts);
		if (!err)
			circles.facts[circles.nr_facts++] = top;
	}
	unvisit_all(scan);
	for (size_t i = 0; !err && i < circles.nr_facts; i++)
		err = add_leaf(scan, circles.facts[i], result);
	free(circles.facts);
	return err;
}

int bare_find(struct store *store, struct image_facts *facts, const struct source *source, const struct file_refs *named,
	      struct found_vm *old, size_t nr_old, struct found_vm **vms, size_t *nr_vms, size_t *cap_vms)
{
	struct bare_scan scan = {.store = store, .known = &facts->known};
	struct bare_result result = {.vms = vms, .nr_vms = nr_vms, .cap_vms = cap_vms};
	struct leaves leaves = {0};
	size_t nr_candidates = 0;
	int err = index_old(&result, old, nr_old);
	if (!err)
		err = find_leaves(&scan, source, named, &leaves, &nr_candidates);
	unvisit_all(&scan);
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
	fact_table_done(&facts->known);
	facts->known = scan.now;
	return err;
}
