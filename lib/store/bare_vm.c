/* The VM that a bare image is: one disk; each file of its backing chain is a snapshot, and so is each internal snapshot. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "base/name.h"
#include "store/bare.h"
#include "store/store_internal.h"

#define DISK_TARGET    "vda"
#define DISK_FILE_NAME "vda.img"

static const char *const image_endings[] = {".qcow2", ".qcow", ".raw", ".img"};

const char *bare_image_ending(const char *name)
{
	size_t len = strlen(name);
	for (size_t i = 0; i < sizeof image_endings / sizeof *image_endings; i++) {
		size_t ending_len = strlen(image_endings[i]);
		if (len > ending_len && strcmp(name + len - ending_len, image_endings[i]) == 0)
			return name + len - ending_len;
	}
	return NULL;
}

/* The file's name without directory and ending; the caller frees. */
static char *image_title(const char *path)
{
	const char *name = strrchr(path, '/') + 1;
	const char *ending = bare_image_ending(name);
	auto_free char *title = strndup(name, ending ? (size_t)(ending - name) : strlen(name));
	return title ? name_make_valid(title) : NULL;
}

/* --- the VM -------------------------------------------------------------------------------------------------------- */

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
	const char *parent = vm->nr_snapshots > 1 ? vm->snapshots[vm->nr_snapshots - 2]->name : NULL;
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

static int add_internals(struct fact_scan *scan, struct vm *vm, struct intern *taken, struct image_fact *fact)
{
	struct image *image = NULL;
	int err = image_open(scan->store->images, NULL, fact->named, fact->format, &image, NULL);
	fact_note_unread(scan, fact, err);
	if (err)
		return err == -ENOMEM ? err : 0; /* is mostly a fact already */
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

static int add_snapshots(struct fact_scan *scan, const struct chain *chain, struct vm *vm)
{
	struct intern taken = {0};
	int err = 0;
	for (size_t i = chain->nr_facts; !err && i-- > 0;) {
		struct image_fact *fact = &scan->now.facts[chain->facts[i]];
		err = add_internals(scan, vm, &taken, fact);
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

static int note_errors(struct fact_scan *scan, const struct chain *chain, struct found_vm *ret)
{
	struct strbuf complaint = {0};
	for (size_t i = 0; i < chain->nr_facts; i++) {
		const struct image_fact *fact = &scan->now.facts[chain->facts[i]];
		if (fact->err)
			complain(&complaint, "%s", fact->error_text);
	}
	return complaint.len || complaint.failed ? strbuf_take(&complaint, &ret->complaint, NULL) : 0;
}

int bare_read(struct fact_scan *scan, const struct chain *chain, struct found_vm *ret)
{
	const struct image_fact *leaf = &scan->now.facts[chain->facts[0]];
	*ret = (struct found_vm){.fresh = true, .vm = vm_new(VM_FOUND_BARE, PLACE_VMS)};
	int err = ret->vm ? fill_vm(ret->vm, leaf) : -ENOMEM;
	if (!err)
		err = text_set(&ret->path, leaf->path);
	if (!err)
		err = add_snapshots(scan, chain, ret->vm);
	return err ? err : note_errors(scan, chain, ret);
}
