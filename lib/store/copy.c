/* Copies between open disks. Where the two allow it the copy is a blank disk that is put over what it is a copy of, and ranges that are
 * shared with that. Anything else is read and written. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store/disk_file.h"
#include "store/freeze.h"
#include "store/full.h"
#include "store/managed.h"
#include "store/pending.h"
#include "store/store_internal.h"

#define COPY_CHUNK	(1u << 20)
#define NOT_SHARED	(-EXDEV) /* copy it the plain way */
#define APART_MAX	(256ull << 20)
#define FREEZE_LEN_MIN	(1u << 20) /* a disk that is written to isn't frozen for less, unless it is smaller */

/* --- putting a blank disk over a frozen one ---------------------------------------------------------------------------------- */

/* The disk of ENTRY's VM with this layer; -1: none, it was removed. */
static int find_disk(const struct vm *vm, const char *layer)
{
	for (size_t i = 0; vm && i < vm->nr_disks; i++)
		if (vm->disks[i].layer && strcmp(vm->disks[i].layer, layer) == 0) /* one that was found in a pool has none */
			return (int)i;
	return -1;
}

/* vm.xml must say where the data is before the header names a base that isn't there yet. */
static int commit_pending(struct store *store, struct open_head *oh, const struct frozen *from, struct vm **ret_vm, int *ret_disk,
			  struct reason *why)
{
	struct vm *now = table_current(store, oh->entry);
	int i = find_disk(now, oh->layer);
	struct vm *next = i < 0 ? NULL : vm_copy(now);
	vm_put(now);
	if (!next)
		return i < 0 ? NOT_SHARED : -ENOMEM;
	int err = pending_set(&next->disks[i], from);
	if (!err)
		err = managed_commit(store, oh->entry, vm_ref(next), why);
	if (err) {
		vm_put(next);
		return err;
	}
	*ret_vm = next;
	*ret_disk = i;
	return 0;
}

/* It may have failed after that. */
static bool was_put_over(struct open_head *oh)
{
	struct view *below = head_below(oh->head);
	view_put(below);
	return below;
}

static int adopt_internal(struct store *store, struct open_head *oh, const struct frozen *from, uint64_t virtual_size,
			  struct reason *why)
{
	struct vm *vm = NULL;
	int i = 0;
	int err = head_relock(oh, from->view, why);
	if (!err)
		err = commit_pending(store, oh, from, &vm, &i, why);
	if (err)
		return err;
	const struct vm_disk *disk = &vm->disks[i];
	struct overlay_spec spec = {
		.virtual_size = virtual_size, .backing_name = disk->pending_base, .backing_format = IMAGE_RAW};
	layers_set_beneath(store, oh->layer, disk->pending_base);
	err = head_adopt(oh->head, from->view, &spec);
	int job_err = was_put_over(oh) ? pending_add_job(store, vm, disk) : 0;
	if (err && !was_put_over(oh))
		managed_settle(store, oh->entry, oh->layer);
	vm_put(vm);
	return err ? err : job_err;
}

static int adopt_file(struct store *store, struct open_head *oh, const struct frozen *from, uint64_t virtual_size,
		      struct reason *why)
{
	auto_free char *backing = NULL;
	char layer_name[LAYER_NAME_MAX];
	const char *layer = layer_of_path(store, from->path, layer_name) ? layer_name : NULL;
	int err = layer_backing_name(store, oh->layer, from->path, &backing, why);
	/* Its last user may be removing it just now. */
	if (!err && layer)
		err = layers_pin(store, layer);
	if (err)
		return err;
	/* Its chain may be another than when it was opened. */
	struct view *view = NULL;
	const struct disk_source source = {from->path, from->format, NULL};
	err = layers_open_view(store, &source, &view, why);
	if (!err)
		err = head_relock(oh, view, why);
	struct overlay_spec spec = {.virtual_size = virtual_size, .backing_name = backing, .backing_format = from->format};
	if (!err) {
		layers_set_beneath(store, oh->layer, layer);
		err = head_adopt(oh->head, view, &spec);
	}
	view_put(view);
	if (layer)
		layers_unpin(store, layer);
	return err;
}

/* The caller holds the change lock, and swap exclusively. */
static int adopt_locked(struct store *store, struct open_head *oh, struct frozen *from, uint64_t virtual_size, struct reason *why)
{
	if (!oh->head || !head_is_blank(oh->head))
		return NOT_SHARED;
	int err = from->snapshot ? adopt_internal(store, oh, from, virtual_size, why) : adopt_file(store, oh, from, virtual_size, why);
	if (err && !was_put_over(oh)) {
		head_relock(oh, NULL, NULL);
		layers_set_beneath(store, oh->layer, NULL);
	}
	if (err)
		return err;
	frozen_put(oh->origin);
	oh->origin = frozen_ref(from);
	full_source_changed(store, oh->entry, oh->layer);
	atomic_store(&oh->hinting, false);
	return 0;
}

/* Puts the blank disk over FROM, where its first VIRTUAL_SIZE bytes read as FROM's. */
static int adopt(struct disk_file *to, struct frozen *from, uint64_t virtual_size, struct reason *why)
{
	struct open_head *oh = to->head;
	pthread_mutex_lock(&oh->entry->change);
	pthread_rwlock_wrlock(&oh->swap);
	int err = adopt_locked(to->store, oh, from, virtual_size, why);
	pthread_rwlock_unlock(&oh->swap);
	/* Without the goal it is a thin copy, which reads the same. */
	bool full = !err && to->store->clone_full && full_want(to->store, oh->entry, oh->layer, NULL) == 0;
	pthread_mutex_unlock(&oh->entry->change);
	if (full)
		full_plan(to->store);
	return err;
}

/* A pool's volumes depend on nothing: they are never put over anything, and nothing over them. */
static bool lies_in_pool(struct disk_file *file)
{
	if (file->kind != DISK_FILE_HEAD)
		return false;
	struct vm *vm = table_current(file->store, file->head->entry);
	bool is_volume = vm && vm->place == PLACE_POOLS;
	vm_put(vm);
	pthread_rwlock_rdlock(&file->head->swap);
	bool in_pool = is_volume || strchr(file->head->layer, '/');
	pthread_rwlock_unlock(&file->head->swap);
	return in_pool;
}

/* --- sharing with a frozen disk -------------------------------------------------------------------------------------------------- */

/* Whether BENEATH, over which the head lies, is FROM, or what FROM has been copied to since. */
static bool is_over(const struct open_head *oh, const struct view *beneath, const struct view *from)
{
	return beneath && (view_equal(beneath, from) || (oh->origin && view_equal(oh->origin->view, from)));
}

static int share_if_over(struct open_head *oh, const struct view *from, uint64_t off, uint64_t len)
{
	struct view *beneath = head_below(oh->head);
	int err = is_over(oh, beneath, from) ? head_share(oh->head, beneath, off, len) : NOT_SHARED;
	view_put(beneath);
	return err == -ESTALE ? NOT_SHARED : err; /* a job has put something else beneath it */
}

/* Shares a range with FROM if the disk lies over it. */
static int share_over(struct disk_file *to, const struct view *from, uint64_t off, uint64_t len)
{
	struct open_head *oh = to->head;
	pthread_rwlock_rdlock(&oh->swap);
	int err = oh->head ? share_if_over(oh, from, off, len) : oh->lost_err;
	pthread_rwlock_unlock(&oh->swap);
	return err;
}

static int share_frozen(struct frozen *from, struct disk_file *to, uint64_t off, uint64_t len, struct reason *why)
{
	int err = share_over(to, from->view, off, len);
	if (err != NOT_SHARED)
		return err;
	/* A header says whole sectors; what is left is shared like any further range. */
	uint64_t adopted = off ? 0 : len & ~511ull;
	err = adopt(to, from, adopted, why);
	/* A name that no header can hold, a writer somewhere: the bytes can still be copied. */
	if (err == -ENAMETOOLONG || err == -EBUSY || err == -EINVAL || err == -ESTALE)
		return NOT_SHARED;
	return !err && (off || adopted < len) ? share_over(to, from->view, off, len) : err;
}

/* --- sharing with a head ----------------------------------------------------------------------------------------------------------- */

/* Freezes the disk that FROM is now; RET is what it was. NOT_SHARED: that doesn't work, or isn't worth it. */
static int freeze_locked(struct disk_file *from, struct vm **now, char layer[LAYER_NAME_MAX], struct reason *why)
{
	int i = find_disk(*now, from->head->layer);
	if (i < 0 || (*now)->disks[i].pending_path)
		return NOT_SHARED;
	auto_free bool *chosen = mem_new_array((*now)->nr_disks, sizeof *chosen);
	auto_free struct frozen_disk *frozen = mem_new_array((*now)->nr_disks, sizeof *frozen);
	if (!chosen || !frozen)
		return -ENOMEM;
	chosen[i] = true;
	const struct freeze_spec spec = {.chosen = chosen};
	int err = freeze_disks(from->store, from->head->entry, now, &spec, frozen, why);
	if (!err)
		memcpy(layer, frozen[i].layer, LAYER_NAME_MAX);
	return !err && !*layer ? NOT_SHARED : err;
}

static int freeze_head(struct disk_file *from, struct frozen **ret, struct reason *why)
{
	struct entry *entry = from->head->entry;
	char layer[LAYER_NAME_MAX] = "";
	pthread_mutex_lock(&entry->change);
	struct vm *now = table_current(from->store, entry);
	int err = now ? freeze_locked(from, &now, layer, why) : NOT_SHARED;
	pthread_mutex_unlock(&entry->change);
	vm_put(now);
	if (err)
		return err;
	auto_free char *path = layer_path(from->store, layer);
	struct disk_source source = {path, layer_format(layer), NULL};
	struct view *view = NULL;
	err = path ? layers_open_view(from->store, &source, &view, why) : -ENOMEM;
	if (!err)
		err = frozen_new(from->store, view, path, NULL, ret, why);
	view_put(view);
	return err;
}

static bool is_blank(struct disk_file *file)
{
	pthread_rwlock_rdlock(&file->head->swap);
	bool blank = file->head->head && head_is_blank(file->head->head);
	pthread_rwlock_unlock(&file->head->swap);
	return blank;
}

static struct view *beneath_of(struct disk_file *file)
{
	pthread_rwlock_rdlock(&file->head->swap);
	struct view *beneath = file->head->head ? head_below(file->head->head) : NULL;
	pthread_rwlock_unlock(&file->head->swap);
	return beneath;
}

/* The first extent of FROM at OFF; *RET_SAME: it is what BENEATH has there. */
static int map_compared(struct disk_file *from, struct view *beneath, uint64_t off, uint64_t len, uint64_t *ret_len, bool *ret_same)
{
	struct extent head_e, view_e;
	pthread_rwlock_rdlock(&from->head->swap);
	int err = from->head->head ? head_map(from->head->head, off, len, &head_e) : from->head->lost_err;
	pthread_rwlock_unlock(&from->head->swap);
	if (!err)
		err = view_map(beneath, off, head_e.len, &view_e);
	if (err)
		return err;
	*ret_len = view_e.len;
	*ret_same = head_e.kind == view_e.kind &&
		    (head_e.kind == EXTENT_ZERO || (head_e.image == view_e.image && head_e.host_off == view_e.host_off));
	return 0;
}

static int copy_plain(struct disk_file *from, uint64_t from_off, struct disk_file *to, uint64_t to_off, uint64_t len);

/* Both lie over BENEATH: what FROM hasn't written since is shared, the rest copied. */
static int share_pieces(struct disk_file *from, struct disk_file *to, struct view *beneath, uint64_t off, uint64_t len)
{
	while (len) {
		uint64_t n = 0;
		bool same = false;
		int err = map_compared(from, beneath, off, len, &n, &same);
		if (!err)
			err = same ? share_over(to, beneath, off, n) : NOT_SHARED;
		if (err == NOT_SHARED)
			err = copy_plain(from, off, to, off, n);
		if (err)
			return err;
		off += n;
		len -= n;
	}
	return 0;
}

static int share_head(struct disk_file *from, struct disk_file *to, uint64_t off, uint64_t len, struct reason *why)
{
	if (from->head == to->head)
		return NOT_SHARED;
	uint64_t size = disk_virtual_size(from);
	if (is_blank(to) && off == 0 && (len >= size || len >= FREEZE_LEN_MIN)) {
		struct frozen *frozen = NULL;
		int err = freeze_head(from, &frozen, why);
		if (!err)
			err = share_frozen(frozen, to, off, len, why);
		frozen_put(frozen);
		return err == -EBUSY ? NOT_SHARED : err;
	}
	struct view *beneath = beneath_of(from), *other = beneath_of(to);
	int err = beneath && view_equal(beneath, other) ? share_pieces(from, to, beneath, off, len) : NOT_SHARED;
	view_put(beneath);
	view_put(other);
	return err;
}

/* --- plain copies ------------------------------------------------------------------------------------------------------------------- */

/* The end of the run of data or zeros at OFF. */
static uint64_t run_end(struct disk_file *from, uint64_t off, uint64_t end, bool *ret_data)
{
	uint64_t at = end;
	int err = disk_seek(from, off, true, &at);
	*ret_data = err == 0 && at == off;
	if (err && err != -ENXIO) { /* a map that can't be read: then the read says what is wrong */
		*ret_data = true;
		return end;
	}
	if (*ret_data && disk_seek(from, off, false, &at))
		at = end;
	return err == -ENXIO || at > end ? end : at;
}

static int copy_data(struct disk_file *from, uint64_t from_off, struct disk_file *to, uint64_t to_off, uint64_t len, char *buf)
{
	while (len) {
		size_t n = len < COPY_CHUNK ? (size_t)len : COPY_CHUNK;
		int err = disk_read(from, buf, n, from_off);
		if (!err)
			err = disk_write(to, buf, n, to_off);
		if (err)
			return err;
		from_off += n;
		to_off += n;
		len -= n;
	}
	return 0;
}

/* Zeros within the disk; what would lie behind its end comes with its growth. */
static int copy_zeros(struct disk_file *to, uint64_t off, uint64_t len)
{
	uint64_t size = disk_virtual_size(to);
	return off < size ? disk_discard(to, off, len < size - off ? len : size - off) : 0;
}

static int copy_plain(struct disk_file *from, uint64_t from_off, struct disk_file *to, uint64_t to_off, uint64_t len)
{
	auto_free char *buf = malloc(COPY_CHUNK);
	if (!buf)
		return -ENOMEM;
	uint64_t end = from_off + len;
	for (uint64_t off = from_off; off < end;) {
		bool data = false;
		uint64_t next = run_end(from, off, end, &data);
		uint64_t at = to_off + (off - from_off);
		int err = data ? copy_data(from, off, to, at, next - off, buf) : copy_zeros(to, at, next - off);
		if (err)
			return err;
		off = next;
	}
	return to_off + len > disk_virtual_size(to) ? disk_resize(to, to_off + len) : 0;
}

/* The run of data at OFF that lies in one piece of one file, or the first extent of something else. */
static int map_run(struct view *view, uint64_t off, uint64_t len, struct extent *ret)
{
	int err = view_map(view, off, len, ret);
	while (!err && ret->kind == EXTENT_DATA && ret->len < len) {
		struct extent next;
		err = view_map(view, off + ret->len, len - ret->len, &next);
		if (err || !extent_continues(ret, &next))
			break;
		ret->len += next.len;
	}
	return err;
}

/* Shares what there is at FROM_OFF. *RET_LEN: how much was, or how much is to be copied instead (NOT_SHARED). */
static int clone_run(struct disk_file *from, uint64_t from_off, struct disk_file *to, uint64_t to_off, uint64_t *ret_len, bool *ret_never)
{
	struct extent e;
	int err = map_run(from->view, from_off, *ret_len, &e);
	if (err)
		return err;
	*ret_len = e.len;
	if (e.kind != EXTENT_DATA)
		return NOT_SHARED;
	pthread_rwlock_rdlock(&to->head->swap);
	err = to->head->head ? head_clone_extent(to->head->head, &e, to_off, ret_len) : to->head->lost_err;
	pthread_rwlock_unlock(&to->head->swap);
	*ret_never = err == -EXDEV;
	return err == -EINVAL ? NOT_SHARED : err;
}

/* Neither is put over the other: blocks are shared where both lie on one filesystem that can, else copied, not for too long at a time. */
static ssize_t copy_apart(struct disk_file *from, uint64_t from_off, struct disk_file *to, uint64_t to_off, uint64_t len)
{
	bool never = from->kind != DISK_FILE_VIEW;
	uint64_t copied = 0;
	for (uint64_t done = 0; done < len;) {
		uint64_t n = len - done;
		int err = never ? NOT_SHARED : clone_run(from, from_off + done, to, to_off + done, &n, &never);
		if (err == NOT_SHARED) {
			n = n < APART_MAX - copied ? n : APART_MAX - copied;
			err = copy_plain(from, from_off + done, to, to_off + done, n);
			copied += n;
		}
		if (err)
			return err;
		done += n;
		if (copied >= APART_MAX)
			return (ssize_t)done;
	}
	return (ssize_t)len;
}

ssize_t disk_copy(struct disk_file *from, uint64_t from_off, struct disk_file *to, uint64_t to_off, uint64_t len,
		  struct reason *why)
{
	if (!to->writable)
		return -EBADF;
	uint64_t size = disk_virtual_size(from);
	len = from_off >= size ? 0 : len < size - from_off ? len : size - from_off;
	if (!len)
		return 0;
	if (to_off > INT64_MAX - len)
		return -EFBIG;
	int err = NOT_SHARED;
	if (lies_in_pool(to) || lies_in_pool(from))
		return copy_apart(from, from_off, to, to_off, len);
	if (from_off == to_off && from->frozen)
		err = share_frozen(from->frozen, to, from_off, len, why);
	else if (from_off == to_off && from->kind == DISK_FILE_HEAD)
		err = share_head(from, to, from_off, len, why);
	if (err == NOT_SHARED)
		err = copy_plain(from, from_off, to, to_off, len);
	return err ? err : (ssize_t)len;
}

/* --- hints --------------------------------------------------------------------------------------------------------------------------- */

void disk_hint_source(struct disk_file *to, struct disk_file *from)
{
	if (to->kind != DISK_FILE_HEAD || !from->frozen || !is_blank(to) || lies_in_pool(to))
		return;
	struct open_head *oh = to->head;
	pthread_rwlock_wrlock(&oh->swap);
	struct frozen *old = oh->hint;
	oh->hint = frozen_ref(from->frozen);
	pthread_rwlock_unlock(&oh->swap);
	frozen_put(old);
	atomic_store(&oh->hinting, true);
}

static bool has_same_bytes(struct view *view, const void *buf, size_t len, uint64_t off)
{
	auto_free char *bytes = malloc(len);
	return bytes && view_read(view, bytes, len, off) == 0 && memcmp(bytes, buf, len) == 0;
}

void copy_try_hint(struct disk_file *to, const void *buf, size_t len, uint64_t off)
{
	struct open_head *oh = to->head;
	pthread_rwlock_rdlock(&oh->swap);
	struct frozen *hint = frozen_ref(oh->hint);
	bool blank = oh->head && head_is_blank(oh->head);
	pthread_rwlock_unlock(&oh->swap);
	/* The write that follows stores nothing where it equals what then lies beneath; a failure here only costs space. */
	if (hint && blank && len && off + len <= view_virtual_size(hint->view) && has_same_bytes(hint->view, buf, len, off))
		adopt(to, hint, 0, NULL);
	atomic_store(&oh->hinting, false);
	frozen_put(hint);
}
