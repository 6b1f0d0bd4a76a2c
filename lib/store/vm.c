#include "store/vm.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store/vm_make.h"

#define UUID_TEXT_LEN 36

/* What is allocated: the description and its references. */
struct vm_counted {
	struct vm vm;
	atomic_uint nr_refs;
};

struct snapshot_counted {
	struct vm_snapshot snapshot;
	atomic_uint nr_refs;
};

struct vm *vm_new(enum vm_kind kind, enum vm_place place)
{
	struct vm_counted *counted = calloc(1, sizeof *counted);
	if (!counted)
		return NULL;
	atomic_init(&counted->nr_refs, 1);
	counted->vm.kind = kind;
	counted->vm.place = place;
	counted->vm.mode = 0400;
	counted->vm.current = -1;
	return &counted->vm;
}

struct vm *vm_ref(struct vm *vm)
{
	atomic_fetch_add_explicit(&((struct vm_counted *)vm)->nr_refs, 1, memory_order_relaxed);
	return vm;
}

void vm_disk_clear_pending(struct vm_disk *disk)
{
	free(take_ptr(disk->pending_path));
	free(take_ptr(disk->pending_snapshot));
	free(take_ptr(disk->pending_base));
	free(take_ptr(disk->pending_row));
}

void vm_disk_clear_goal(struct vm_disk *disk)
{
	disk->full = disk->preallocate = false;
	free(take_ptr(disk->full_base));
}

int vm_disk_copy_goal(struct vm_disk *to, const struct vm_disk *from)
{
	to->full = from->full;
	to->preallocate = from->preallocate;
	return text_set(&to->full_base, from->full_base);
}

void vm_disk_done(struct vm_disk *disk)
{
	vm_disk_clear_goal(disk);
	free(disk->file_name);
	free(disk->target);
	free(disk->path);
	free(disk->snapshot);
	free(disk->layer);
	free(disk->error_text);
	vm_disk_clear_pending(disk);
	*disk = (struct vm_disk){0};
}

static void snapshot_done(struct vm_snapshot *snapshot)
{
	for (size_t i = 0; i < snapshot->nr_disks; i++)
		vm_disk_done(&snapshot->disks[i]);
	free(snapshot->disks);
	free(snapshot->name);
	free(snapshot->uuid);
	free(snapshot->parent);
	free(snapshot->state);
	free(snapshot->description);
	free(snapshot->memory_path);
	free(snapshot->metadata_path);
	free(snapshot->left_out);
	free(snapshot->config);
	free(snapshot->row);
}

struct vm_snapshot *vm_snapshot_new(void)
{
	struct snapshot_counted *counted = calloc(1, sizeof *counted);
	if (!counted)
		return NULL;
	atomic_init(&counted->nr_refs, 1);
	counted->snapshot.memory_disk = -1;
	return &counted->snapshot;
}

struct vm_snapshot *vm_snapshot_ref(struct vm_snapshot *snapshot)
{
	if (snapshot)
		atomic_fetch_add_explicit(&((struct snapshot_counted *)snapshot)->nr_refs, 1, memory_order_relaxed);
	return snapshot;
}

void vm_snapshot_put(struct vm_snapshot *snapshot)
{
	if (!snapshot || atomic_fetch_sub(&((struct snapshot_counted *)snapshot)->nr_refs, 1) != 1)
		return;
	snapshot_done(snapshot);
	free(snapshot);
}

void vm_put(struct vm *vm)
{
	if (!vm || atomic_fetch_sub(&((struct vm_counted *)vm)->nr_refs, 1) != 1)
		return;
	for (size_t i = 0; i < vm->nr_disks; i++)
		vm_disk_done(&vm->disks[i]);
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		vm_snapshot_put(vm->snapshots[i]);
	vm_snapshot_put(vm->saved);
	free(vm->disks);
	free(vm->snapshots);
	free(vm->name);
	free(vm->uuid);
	free(vm->xml_path);
	free(vm->domain_name);
	free(vm->config);
	free(vm->origin);
	free(vm->memory_path);
	free(vm->preview);
	free(vm);
}

int text_set(char **field, const char *text)
{
	char *copy = text ? strdup(text) : NULL;
	if (text && !copy)
		return -ENOMEM;
	free(*field);
	*field = copy;
	return 0;
}

/* Makes room for one more element and zeros it; arrays have room for the next power of two. */
static void *array_add(void *array_ptr, size_t *nr, size_t elem_size)
{
	size_t cap = 0;
	if (*nr) {
		for (cap = 1; cap < *nr; cap *= 2)
			;
	}
	if (*nr == cap) {
		void *grown = reallocarray(*(void **)array_ptr, cap ? cap * 2 : 1, elem_size);
		if (!grown)
			return NULL;
		*(void **)array_ptr = grown;
	}
	char *elem = (char *)*(void **)array_ptr + *nr * elem_size;
	memset(elem, 0, elem_size);
	(*nr)++;
	return elem;
}

struct vm_disk *vm_disk_add(struct vm_disk **disks, size_t *nr_disks)
{
	return array_add(disks, nr_disks, sizeof **disks);
}

int vm_snapshot_append(struct vm *vm, struct vm_snapshot *snapshot)
{
	if (mem_grow(&vm->snapshots, &vm->cap_snapshots, vm->nr_snapshots + 1, sizeof *vm->snapshots) < 0)
		return -ENOMEM;
	vm->snapshots[vm->nr_snapshots++] = snapshot;
	return 0;
}

struct vm_snapshot *vm_snapshot_add(struct vm *vm)
{
	struct vm_snapshot *snapshot = vm_snapshot_new();
	if (snapshot && vm_snapshot_append(vm, snapshot) < 0)
		vm_snapshot_put(take_ptr(snapshot));
	return snapshot;
}

struct vm_snapshot *vm_snapshot_own(struct vm *vm, size_t i)
{
	struct vm_snapshot *own = vm_snapshot_copy(vm->snapshots[i]);
	if (own) {
		vm_snapshot_put(vm->snapshots[i]);
		vm->snapshots[i] = own;
	}
	return own;
}

void vm_snapshot_drop(struct vm *vm, size_t i)
{
	vm_snapshot_put(vm->snapshots[i]);
	vm->nr_snapshots--;
	memmove(&vm->snapshots[i], &vm->snapshots[i + 1], (vm->nr_snapshots - i) * sizeof *vm->snapshots);
	if (vm->current == (int)i)
		vm->current = -1;
	else if (vm->current > (int)i)
		vm->current--;
}

/* The array keeps its allocation: array_add() only ever asks for more than the next power of two below it. */
void vm_disk_drop(struct vm *vm, size_t i)
{
	vm_disk_done(&vm->disks[i]);
	vm->nr_disks--;
	memmove(&vm->disks[i], &vm->disks[i + 1], (vm->nr_disks - i) * sizeof *vm->disks);
}

void vm_disk_set_error(struct vm_disk *disk, int err, const char *text)
{
	disk->error = err;
	free(disk->error_text);
	disk->error_text = strdup(text); /* without memory the number has to do */
}

int vm_disk_copy(struct vm_disk *to, const struct vm_disk *from)
{
	to->id = from->id;
	to->format = from->format;
	to->pending_format = from->pending_format;
	to->shareable = from->shareable;
	to->found = from->found;
	to->error = from->error;
	if (text_set(&to->file_name, from->file_name) || text_set(&to->target, from->target) ||
	    text_set(&to->path, from->path) || text_set(&to->snapshot, from->snapshot) ||
	    text_set(&to->layer, from->layer) || text_set(&to->pending_path, from->pending_path) ||
	    text_set(&to->pending_snapshot, from->pending_snapshot) ||
	    text_set(&to->pending_base, from->pending_base) || text_set(&to->pending_row, from->pending_row) ||
	    text_set(&to->error_text, from->error_text))
		return -ENOMEM;
	return vm_disk_copy_goal(to, from);
}

static int disks_copy(struct vm_disk **to, size_t *nr_to, const struct vm_disk *from, size_t nr_from)
{
	for (size_t i = 0; i < nr_from; i++) {
		struct vm_disk *disk = vm_disk_add(to, nr_to);
		if (!disk || vm_disk_copy(disk, &from[i]))
			return -ENOMEM;
	}
	return 0;
}

static int snapshot_copy_into(struct vm_snapshot *to, const struct vm_snapshot *from)
{
	to->id = from->id;
	to->created = from->created;
	to->memory_disk = from->memory_disk;
	if (text_set(&to->name, from->name) || text_set(&to->uuid, from->uuid) ||
	    text_set(&to->parent, from->parent) || text_set(&to->state, from->state) ||
	    text_set(&to->description, from->description) || text_set(&to->memory_path, from->memory_path) ||
	    text_set(&to->metadata_path, from->metadata_path) || text_set(&to->left_out, from->left_out) || text_set(&to->config, from->config))
		return -ENOMEM;
	return disks_copy(&to->disks, &to->nr_disks, from->disks, from->nr_disks);
}

struct vm_snapshot *vm_snapshot_copy(const struct vm_snapshot *snapshot)
{
	struct vm_snapshot *copy = vm_snapshot_new();
	if (copy && snapshot_copy_into(copy, snapshot))
		vm_snapshot_put(take_ptr(copy));
	return copy;
}

static int vm_copy_into(struct vm *to, const struct vm *from)
{
	to->id = from->id;
	to->changed = from->changed;
	to->created = from->created;
	to->uid = from->uid;
	to->gid = from->gid;
	to->mode = from->mode;
	to->current = from->current;
	to->is_brief = from->is_brief;
	to->is_stand_in = from->is_stand_in;
	if (text_set(&to->name, from->name) || text_set(&to->uuid, from->uuid) ||
	    text_set(&to->xml_path, from->xml_path) || text_set(&to->domain_name, from->domain_name) || text_set(&to->config, from->config) ||
	    text_set(&to->origin, from->origin) || text_set(&to->memory_path, from->memory_path) || text_set(&to->preview, from->preview) ||
	    disks_copy(&to->disks, &to->nr_disks, from->disks, from->nr_disks))
		return -ENOMEM;
	for (size_t i = 0; i < from->nr_snapshots; i++) {
		if (vm_snapshot_append(to, from->snapshots[i]) < 0)
			return -ENOMEM;
		vm_snapshot_ref(from->snapshots[i]);
	}
	to->saved = vm_snapshot_ref(from->saved);
	return 0;
}

struct vm *vm_copy(const struct vm *vm)
{
	struct vm *copy = vm_new(vm->kind, vm->place);
	if (copy && vm_copy_into(copy, vm)) {
		vm_put(copy);
		return NULL;
	}
	return copy;
}

const struct vm_snapshot *vm_find_snapshot(const struct vm *vm, const char *name)
{
	int i = vm_snapshot_index(vm, name);
	return i < 0 ? NULL : vm->snapshots[i];
}

int vm_snapshot_index(const struct vm *vm, const char *name)
{
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		if (strcmp(vm->snapshots[i]->name, name) == 0)
			return (int)i;
	return -1;
}

int vm_snapshot_lookup(const struct vm *vm, const char *name)
{
	int found = vm_snapshot_index(vm, name);
	for (size_t i = 0; found < 0 && i < vm->nr_snapshots; i++)
		if (vm->snapshots[i]->uuid && strcasecmp(vm->snapshots[i]->uuid, name) == 0)
			found = (int)i;
	return found;
}

const struct vm_snapshot *vm_snapshot_by_id(const struct vm *vm, uint32_t id)
{
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		if (vm->snapshots[i]->id == id)
			return vm->snapshots[i];
	return NULL;
}

const struct vm_disk *vm_find_disk(const struct vm_disk *disks, size_t nr, const char *file_name)
{
	for (size_t i = 0; i < nr; i++)
		if (strcmp(disks[i].file_name, file_name) == 0)
			return &disks[i];
	return NULL;
}

/* Whether NAME is the file at PATH: the whole of PATH, or, of a file that is called by a UUID, its name with or without the ending. Other files' names
 * aren't looked at: a volume may well be called like another disk. */
static bool is_file(const char *path, const char *name)
{
	if (!path)
		return false;
	const char *slash = strrchr(path, '/');
	const char *base = slash ? slash + 1 : path;
	if (!strcmp(path, name))
		return true;
	return strcspn(base, ".") == UUID_TEXT_LEN && !strncasecmp(base, name, UUID_TEXT_LEN) && (!name[UUID_TEXT_LEN] || !strcmp(base, name));
}

bool vm_disk_has_image(const struct vm_disk *disk, const char *name)
{
	return is_file(disk->layer, name) || is_file(disk->path, name);
}

int vm_disk_index(const struct vm_disk *disks, size_t nr, const char *name)
{
	for (size_t i = 0; i < nr; i++)
		if (!strcmp(disks[i].file_name, name) || (disks[i].target && !strcmp(disks[i].target, name)))
			return (int)i;
	for (size_t i = 0; i < nr; i++)
		if (disks[i].target && vm_disk_has_image(&disks[i], name))
			return (int)i;
	return -1;
}

const char *vm_disk_target(const struct vm *vm, const char *name)
{
	int found = vm_disk_index(vm->disks, vm->nr_disks, name);
	const char *target = found < 0 ? NULL : vm->disks[found].target;
	for (size_t i = 0; !target && i < vm->nr_snapshots; i++) {
		const struct vm_snapshot *then = vm->snapshots[i];
		found = vm_disk_index(then->disks, then->nr_disks, name);
		target = found < 0 ? NULL : then->disks[found].target;
	}
	return target;
}

const struct vm_disk *vm_disk_by_id(const struct vm_disk *disks, size_t nr, uint32_t id)
{
	for (size_t i = 0; i < nr; i++)
		if (disks[i].id == id)
			return &disks[i];
	return NULL;
}

static void each_layer_of(const struct vm_disk *disks, size_t nr, vm_layer_fn fn, void *ctx)
{
	for (size_t i = 0; i < nr; i++)
		if (disks[i].layer && !disks[i].found) /* a device that is only shown is nobody's layer */
			fn(ctx, &disks[i]);
}

void vm_each_layer(const struct vm *vm, vm_layer_fn fn, void *ctx)
{
	if (vm->kind != VM_MANAGED)
		return;
	each_layer_of(vm->disks, vm->nr_disks, fn, ctx);
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		each_layer_of(vm->snapshots[i]->disks, vm->snapshots[i]->nr_disks, fn, ctx);
	if (vm->saved)
		each_layer_of(vm->saved->disks, vm->saved->nr_disks, fn, ctx);
}

struct finding {
	const char *layer;
	const struct vm_disk *found;
};

static void find_disk(void *ctx, const struct vm_disk *disk)
{
	struct finding *f = ctx;
	if (!f->found && strcmp(disk->layer, f->layer) == 0)
		f->found = disk;
}

const struct vm_disk *vm_disk_over_layer(const struct vm *vm, const char *layer)
{
	struct finding finding = {.layer = layer};
	vm_each_layer(vm, find_disk, &finding);
	return finding.found ? finding.found : vm->nr_disks ? vm->disks : NULL;
}
