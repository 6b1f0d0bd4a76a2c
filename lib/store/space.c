#include "store/space.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "store/store_internal.h"

struct space_row {
	struct layer_use use;
	uint64_t bytes;
	bool added_up;
	uint64_t used; /* with what lies beneath; once it is added up */
};

struct space {
	struct store *store;
	struct space_row *rows; /* in order of name */
	size_t nr_rows;
};

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct space_row *)a)->use.name, ((const struct space_row *)b)->use.name);
}

static struct space_row *find_row(const struct space *space, const char *name)
{
	struct space_row key;
	snprintf(key.use.name, sizeof key.use.name, "%s", name ? name : "");
	return space->nr_rows && *key.use.name ? bsearch(&key, space->rows, space->nr_rows, sizeof key, by_name) : NULL;
}

void space_free(struct space *space)
{
	if (!space)
		return;
	free(space->rows);
	free(space);
}

int space_new(struct store *store, struct space **ret)
{
	struct layer_use *uses = NULL;
	size_t nr = 0;
	struct space *space = calloc(1, sizeof *space);
	int err = space ? layers_list_uses(store, &uses, &nr) : -ENOMEM;
	if (!err && !(space->rows = mem_new_array(nr, sizeof *space->rows)))
		err = -ENOMEM;
	for (size_t i = 0; !err && i < nr; i++) {
		struct stat st;
		struct layer_place at = layer_place(store, uses[i].name);
		bool there = fstatat(at.dirfd, at.name, &st, AT_SYMLINK_NOFOLLOW) == 0;
		space->rows[i] = (struct space_row){.use = uses[i], .bytes = there ? (uint64_t)st.st_blocks * 512 : 0};
	}
	free(uses);
	if (err) {
		space_free(space);
		return err;
	}
	space->store = store;
	space->nr_rows = nr;
	if (nr)
		qsort(space->rows, nr, sizeof *space->rows, by_name);
	*ret = space;
	return 0;
}

/* Each row is added up once, however many chains go through it: down to one that has its sum, and up again. What a damaged chain comes back
 * to counts as added up. */
static uint64_t add_up(struct space *space, struct space_row *top)
{
	uint64_t sum = 0;
	struct space_row *row = top;
	for (; row && !row->added_up; row = find_row(space, row->use.beneath)) {
		row->added_up = true;
		sum += row->bytes;
	}
	const struct space_row *end = row;
	sum += end ? end->used : 0;
	for (row = top; row && row != end; row = find_row(space, row->use.beneath)) {
		row->used = sum;
		sum -= row->bytes;
	}
	return top->used;
}

/* --- what comes back ---------------------------------------------------------------------------------------------------- */

static int open_alone(struct store *store, const char *name, struct view **ret)
{
	auto_free char *path = layer_path(store, name);
	const struct disk_source source = {path, layer_format(name), NULL};
	if (!path)
		return -ENOMEM;
	pthread_rwlock_rdlock(&store->layout);
	int err = view_open_over(store->images, &source, NULL, ret, NULL);
	pthread_rwlock_unlock(&store->layout);
	return err;
}

/* Bytes that the layer alone has in a range. */
static int count_data(struct view *layer, uint64_t off, uint64_t len, uint64_t *ret)
{
	uint64_t size = view_virtual_size(layer);
	uint64_t end = off + len < size ? off + len : size;
	while (off < end) {
		struct extent e;
		int err = view_map_top(layer, 1, off, end - off, &e);
		if (err)
			return err;
		if (e.kind == EXTENT_DATA)
			*ret += e.len;
		off += e.len;
	}
	return 0;
}

/* Bytes of the layer BELOW that the one above hides. */
static int count_hidden(struct view *above, struct view *below, uint64_t *ret)
{
	uint64_t size = view_virtual_size(above), nr = 0;
	for (uint64_t off = 0; off < size;) {
		struct extent e;
		int err = view_map_top(above, 1, off, size - off, &e);
		if (!err && e.kind != EXTENT_UNALLOCATED)
			err = count_data(below, off, e.len, &nr);
		if (err)
			return err;
		off += e.len;
	}
	*ret = nr;
	return 0;
}

/* What a merge of ROW with the only layer over it frees. When that can't be told, nothing. */
static uint64_t hidden_bytes(struct space *space, const struct space_row *row)
{
	struct view *above = NULL, *below = NULL;
	uint64_t nr = 0;
	if (!row->bytes || !strstr(row->use.name, ".qcow2"))
		return 0;
	int err = open_alone(space->store, row->use.child, &above);
	if (!err)
		err = open_alone(space->store, row->use.name, &below);
	if (!err)
		err = count_hidden(above, below, &nr);
	view_put(above);
	view_put(below);
	return err ? 0 : nr < row->bytes ? nr : row->bytes;
}

/* When the only snapshot that names TOP is deleted: all of it and of what only it needs, or what a merge with the layer over it frees. */
static uint64_t freed_bytes(struct space *space, const struct space_row *top)
{
	uint64_t freed = 0;
	size_t nr = 0;
	if (top->use.nr_names != 1 || top->use.nr_children > 1)
		return 0;
	if (top->use.nr_children)
		return hidden_bytes(space, top);
	for (const struct space_row *row = top; row && nr++ < space->nr_rows && (row == top || (!row->use.nr_names && row->use.nr_children == 1));
	     row = find_row(space, row->use.beneath))
		freed += row->bytes;
	return freed;
}

void space_of(struct space *space, const struct vm_snapshot *snapshot, uint64_t *ret_used, uint64_t *ret_unique)
{
	*ret_used = *ret_unique = 0;
	for (size_t i = 0; i < snapshot->nr_disks; i++) {
		struct space_row *row = snapshot->disks[i].layer ? find_row(space, snapshot->disks[i].layer) : NULL;
		if (!row)
			continue;
		*ret_used += add_up(space, row);
		*ret_unique += freed_bytes(space, row);
	}
}

int store_snapshot_space(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, uint64_t *ret_used,
			 uint64_t *ret_unique)
{
	struct space *space = NULL;
	if (vm->kind != VM_MANAGED || !store->writable)
		return -ENODATA;
	int err = space_new(store, &space);
	if (!err)
		space_of(space, snapshot, ret_used, ret_unique);
	space_free(space);
	return err;
}
