#include "block/view.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/image_priv.h"
#include "block/qcow2_format.h"
#include "block/readahead.h"

/* What view_allocated spends (see index_map()) before it takes the files' word for it. */
#define ALLOCATED_COST_MAX 65536u

/* Extents that a read asks the index for at a time. */
#define READ_EXTENTS 16u

/* Bytes of a compressed cluster that is worth being made ahead. */
#define WANTED_MIN (16u << 10)

/* How long view_check()'s word is good for, at least, for each layer that it must ask; and how many times as long as it takes: reading is never
 * slowed down by more than a hundredth, wherever the files are. */
#define CHECK_NS     25000
#define CHECK_ROW_NS 1000000 /* it reads a snapshot table */
#define CHECK_SHARE  100

struct view {
	atomic_uint nr_users;
	atomic_int_fast64_t next_check_ns; /* of the monotonic clock */
	atomic_int_fast64_t check_took_ns; /* the last one */
	struct image_cache *cache; /* borrowed */
	struct layer *layers;      /* top first */
	size_t nr_layers, cap_layers;
	uint64_t virtual_size;
	struct chain_id *chain_id;
	struct readahead readahead; /* of what is compressed */
	/* protected by image_cache_lock_views() */
	unsigned nr_locks;
	struct list link; /* while there are any */
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* --- opening ---------------------------------------------------------------------------------------------------- */

static void view_free(struct view *view)
{
	if (!view)
		return;
	for (size_t i = 0; i < view->nr_layers; i++)
		image_put(view->layers[i].image);
	if (view->chain_id)
		chain_id_put(image_cache_chain_ids(view->cache), view->chain_id);
	readahead_done(&view->readahead);
	free(view->layers);
	free(view);
}

/* Takes over the reference to IMAGE, also on failure. */
static int push_layer(struct view *view, struct image *image, const struct image_snapshot *snapshot)
{
	if (mem_grow(&view->layers, &view->cap_layers, view->nr_layers + 1, sizeof *view->layers) < 0) {
		image_put(image);
		return -ENOMEM;
	}
	view->layers[view->nr_layers++] = (struct layer){
		.image = image,
		.snapshot = snapshot,
		.l1_offset = snapshot ? snapshot->l1_offset : image->header.l1_offset,
		.l1_size = snapshot ? snapshot->l1_size : image->header.l1_size,
		.virtual_size = snapshot ? snapshot->virtual_size & ~511ull : image->virtual_size,
	};
	return 0;
}

/* The directory in which NAME, itself relative to DIR, names its own backing file: as it is written, not as it resolves,
 * which is how QEMU has it. */
static char *named_dir(const char *dir, const char *name)
{
	const char *slash = strrchr(name, '/');
	char *made = NULL;
	if (!slash)
		return strdup(dir ? dir : "/");
	int head = slash == name ? 1 : (int)(slash - name);
	if (*name == '/' || !dir)
		return strndup(name, (size_t)head);
	return asprintf(&made, "%s/%.*s", dir, head, name) < 0 ? NULL : made;
}

/* Brent: a chain that comes back to itself meets a layer that was marked. */
struct loop_guard {
	const struct image *marked;
	size_t steps, limit;
};

static bool loop_guard_hit(struct loop_guard *guard, const struct image *image)
{
	if (image == guard->marked)
		return true;
	if (++guard->steps >= guard->limit) {
		guard->marked = image;
		guard->limit *= 2;
		guard->steps = 0;
	}
	return false;
}

/* Pushes the chain below IMAGE, whose own backing name is relative to *DIR. */
static int push_backing(struct image_cache *cache, struct view *view, struct image *image, char **dir, struct reason *why)
{
	struct loop_guard guard = {.marked = image, .limit = 1};
	while (image_backing_name(image)) {
		const char *name = image_backing_name(image);
		struct image *below = NULL;
		int err = image_open(cache, *dir, name, image_backing_format(image), &below, why);
		if (err)
			return reason_prefix(why, err, "backing file of %s: ", image_path(image));
		char *next_dir = named_dir(*dir, name);
		free(*dir);
		*dir = next_dir;
		bool loop = loop_guard_hit(&guard, below);
		err = push_layer(view, below, NULL);
		if (err || !*dir)
			return -ENOMEM;
		if (loop)
			return reason_set(why, -EUCLEAN, "%s: its backing chain comes back to itself", image_path(below));
		image = below;
	}
	return 0;
}

static struct view *view_new(struct image_cache *cache)
{
	struct view *view = calloc(1, sizeof *view);
	if (view) {
		atomic_init(&view->nr_users, 1);
		view->cache = cache;
		readahead_init(&view->readahead);
	}
	return view;
}

static int push_top(struct image_cache *cache, struct view *view, const struct disk_source *source, struct reason *why)
{
	struct image *image = NULL;
	int err = image_open(cache, NULL, source->path, source->format, &image, why);
	if (err)
		return err;
	const struct image_snapshot *snapshot = NULL;
	if (source->snapshot) {
		int i = image_find_snapshot(image, source->snapshot);
		if (i < 0) {
			image_put(image);
			return reason_set(why, -ENOENT, "%s has no internal snapshot %s", source->path, source->snapshot);
		}
		snapshot = image_snapshot(image, (uint32_t)i);
	}
	return push_layer(view, image, snapshot);
}

/* The layers are complete, or opening them failed with ERR. */
static int finish_open(struct view *view, int err, struct view **ret)
{
	if (!err)
		err = chain_id_get(image_cache_chain_ids(view->cache), view->layers, view->nr_layers, &view->chain_id);
	if (err) {
		view_free(view);
		return err;
	}
	view->virtual_size = view->layers[0].virtual_size;
	*ret = view;
	return 0;
}

int view_open(struct image_cache *cache, const struct disk_source *source, struct view **ret, struct reason *why)
{
	struct view *view = view_new(cache);
	auto_free char *dir = named_dir(NULL, source->path);
	int err = view && dir ? push_top(cache, view, source, why) : -ENOMEM;
	if (!err)
		err = push_backing(cache, view, view->layers[0].image, &dir, why);
	return finish_open(view, err, ret);
}

int view_open_backing(struct image_cache *cache, struct image *image, struct view **ret, struct reason *why)
{
	if (!image_backing_name(image)) {
		*ret = NULL;
		return 0;
	}
	struct view *view = view_new(cache);
	auto_free char *dir = named_dir(NULL, image_path(image));
	int err = view && dir ? push_backing(cache, view, image, &dir, why) : -ENOMEM;
	return finish_open(view, err, ret);
}

/* The layers of BELOW, each with a further reference. */
static int push_layers_of(struct view *view, const struct view *below)
{
	if (mem_grow(&view->layers, &view->cap_layers, view->nr_layers + below->nr_layers, sizeof *view->layers) < 0)
		return -ENOMEM;
	for (size_t i = 0; i < below->nr_layers; i++) {
		view->layers[view->nr_layers] = below->layers[i];
		image_ref(view->layers[view->nr_layers++].image);
	}
	return 0;
}

int view_open_over(struct image_cache *cache, const struct disk_source *top, struct view *below, struct view **ret, struct reason *why)
{
	struct view *view = view_new(cache);
	int err = view ? push_top(cache, view, top, why) : -ENOMEM;
	if (!err && below)
		err = push_layers_of(view, below);
	if (!err)
		err = chain_id_get_over(image_cache_chain_ids(cache), &view->layers[0], below ? below->chain_id : NULL, &view->chain_id);
	if (err) {
		view_free(view);
		return err;
	}
	view->virtual_size = view->layers[0].virtual_size;
	*ret = view;
	return 0;
}

struct view *view_ref(struct view *view)
{
	if (view)
		atomic_fetch_add(&view->nr_users, 1);
	return view;
}

void view_put(struct view *view)
{
	if (view && atomic_fetch_sub(&view->nr_users, 1) == 1)
		view_free(view);
}

/* --- what it is ---------------------------------------------------------------------------------------------------- */

uint64_t view_virtual_size(const struct view *view)
{
	return view->virtual_size;
}

size_t view_depth(const struct view *view)
{
	return view->nr_layers;
}

struct image *view_layer(const struct view *view, size_t i)
{
	return view->layers[i].image;
}

const struct image_snapshot *view_snapshot(const struct view *view)
{
	return view->layers[0].snapshot;
}

bool view_equal(const struct view *a, const struct view *b)
{
	if (!a || !b || a->nr_layers != b->nr_layers)
		return a == b;
	for (size_t i = 0; i < a->nr_layers; i++)
		if (a->layers[i].image != b->layers[i].image || a->layers[i].l1_offset != b->layers[i].l1_offset ||
		    a->layers[i].l1_size != b->layers[i].l1_size || a->layers[i].virtual_size != b->layers[i].virtual_size)
			return false;
	return true;
}

void view_access(const struct view *view, struct access *ret)
{
	struct access_path last = ACCESS_PATH_INIT;
	access_init(ret, image_stat(view->layers[0].image));
	for (size_t i = 0; i < view->nr_layers; i++) {
		const struct image *image = view->layers[i].image;
		access_restrict(ret, &image->st);
		access_restrict_by_path(ret, &last, image->path, &image->st);
		if (image->data_fd >= 0) {
			access_restrict(ret, &image->data_st);
			access_restrict_by_path(ret, &last, image->data_path, &image->data_st);
		}
	}
	access_path_done(&last);
}

/* --- what it was opened as ------------------------------------------------------------------------------------------ */

/* The image of an internal snapshot may go on changing: the snapshot doesn't, as long as it is there. */
static bool top_is_unchanged(const struct view *view)
{
	const struct layer *top = &view->layers[0];
	return image_is_unchanged(top->image) || (top->snapshot && image_has_still(top->image, top->snapshot));
}

int view_check(struct view *view)
{
	for (size_t i = 1; i < view->nr_layers; i++)
		if (!image_is_unchanged(view->layers[i].image))
			return -ESTALE;
	return top_is_unchanged(view) ? 0 : -ESTALE;
}

static int64_t now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

/* Between two checks, of which one takes TOOK. */
static int64_t check_interval(const struct view *view, int64_t took)
{
	int64_t least = (int64_t)view->nr_layers * CHECK_NS + (view->layers[0].snapshot ? CHECK_ROW_NS : 0);
	return took * CHECK_SHARE > least ? took * CHECK_SHARE : least;
}

/* What to say of what was just read or mapped with the result ERR: is it what the files hold? An error may come of it that it isn't. */
static int checked(struct view *view, int err)
{
	int64_t begun = now_ns(), took = atomic_load(&view->check_took_ns);
	int_fast64_t next = atomic_load(&view->next_check_ns);
	/* One thread asks for all; the others wait for its answer no longer than it usually takes until the next question. */
	if (!err && (begun < next || !atomic_compare_exchange_strong(&view->next_check_ns, &next, begun + check_interval(view, took))))
		return 0;
	int stale = view_check(view);
	int64_t end = now_ns();
	atomic_store(&view->check_took_ns, end - begun);
	/* Of two the shorter: one that was held up says nothing of the files. After what is stale the next reader is to ask too. */
	took = end - begun < took ? end - begun : took;
	atomic_store(&view->next_check_ns, stale ? 0 : end + check_interval(view, took));
	return stale ? stale : err;
}

/* --- reading --------------------------------------------------------------------------------------------------------- */

/* The first extent through the layers [FIRST, END), by asking each. EXACT: see layer_map(). */
static int map_some(const struct view *view, size_t first, size_t end, uint64_t guest_off, uint64_t len, bool exact, struct extent *ret)
{
	enum extent_kind kind = EXTENT_UNALLOCATED;
	for (size_t i = first; i < end; i++) {
		const struct layer *layer = &view->layers[i];
		if (guest_off >= layer->virtual_size) {
			kind = EXTENT_ZERO; /* a shorter layer hides what is longer below it */
			break;
		}
		struct extent e;
		int err = layer_map(layer, guest_off, min_u64(len, layer->virtual_size - guest_off), exact, &e);
		if (err)
			return err;
		if (e.kind != EXTENT_UNALLOCATED) {
			*ret = e;
			return 0;
		}
		len = e.len;
	}
	*ret = (struct extent){.guest_off = guest_off, .len = len, .kind = kind};
	return 0;
}

/* Where the index can't tell. */
static int map_layers(const struct view *view, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	int err = map_some(view, 0, view->nr_layers, guest_off, len, false, ret);
	if (!err && ret->kind == EXTENT_UNALLOCATED)
		ret->kind = EXTENT_ZERO;
	return err;
}

static struct chain chain_of(const struct view *view)
{
	return (struct chain){view->layers, view->nr_layers, view->virtual_size, view->chain_id};
}

/* At most NR extents. COST: see index_map(). */
static int map_piece(const struct view *view, uint64_t guest_off, uint64_t len, struct extent *ret, size_t nr, size_t *ret_nr,
		     uint64_t *cost)
{
	*ret_nr = 1;
	if (guest_off >= view->virtual_size) {
		*ret = (struct extent){.guest_off = guest_off, .len = len, .kind = EXTENT_ZERO};
		return 0;
	}
	struct chain chain = chain_of(view);
	int err = index_map(image_cache_index(view->cache), &chain, guest_off, len, ret, nr, ret_nr, cost);
	if (!err || err == -EUCLEAN)
		return err;
	*ret_nr = 1;
	return map_layers(view, guest_off, len, ret);
}

/* Where no layer has an L2 table nothing is to be looked up, be it terabytes: how many bytes from GUEST_OFF on are such. The last layer
 * is asked first: most chains have something in it. */
static uint64_t empty_len(const struct view *view, uint64_t guest_off, uint64_t len, uint64_t *cost)
{
	uint64_t end = guest_off + min_u64(len, UINT64_MAX - guest_off);
	for (size_t i = view->nr_layers; i-- > 0 && guest_off < end;) {
		const struct layer *layer = &view->layers[i];
		uint64_t l2_offset = 0, empty_end = end;
		if (guest_off >= layer->virtual_size)
			continue; /* neither it nor what is below it has anything here */
		++*cost;
		if (layer->image->format == IMAGE_RAW ||
		    layer_l2_table(layer, guest_off, end, &l2_offset, &empty_end) < 0 || l2_offset)
			return 0;
		end = empty_end;
	}
	return end - guest_off;
}

/* What the index knows, unless it is zeros to the span's end: these may go on for long. */
static bool map_known(const struct view *view, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	struct chain chain = chain_of(view);
	uint64_t span_end = guest_off | ((1ull << view->chain_id->span_bits) - 1);
	if (guest_off >= view->virtual_size || !index_peek(image_cache_index(view->cache), &chain, guest_off, len, ret))
		return false;
	return ret->kind != EXTENT_ZERO || ret->len == len || guest_off + ret->len - 1 < span_end;
}

/* A raw layer's holes, which only a look at the file tells. */
static int map_raw_holes(struct extent *e)
{
	struct layer layer = {.image = e->image};
	return layer_map(&layer, e->guest_off, e->len, true, e);
}

static int map_exactly(const struct view *view, uint64_t guest_off, uint64_t len, struct extent *ret, uint64_t *cost)
{
	size_t nr = 0;
	struct extent e;
	int err = 0;
	if (!map_known(view, guest_off, len, &e)) {
		e = (struct extent){.guest_off = guest_off, .len = empty_len(view, guest_off, len, cost), .kind = EXTENT_ZERO};
		if (!e.len)
			err = map_piece(view, guest_off, len, &e, 1, &nr, cost);
	}
	if (!err && e.kind == EXTENT_DATA && e.image->format == IMAGE_RAW)
		err = map_raw_holes(&e);
	if (!err)
		*ret = e;
	return err;
}

int view_map(struct view *view, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	uint64_t cost = 0;
	int err = map_exactly(view, guest_off, len, ret, &cost);
	return checked(view, err);
}

int view_map_top(struct view *view, size_t nr_layers, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	return nr_layers <= view->nr_layers ? map_some(view, 0, nr_layers, guest_off, len, true, ret) : -EINVAL;
}

int view_map_beneath(struct view *view, size_t nr_layers, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	int err = map_some(view, nr_layers, view->nr_layers, guest_off, len, true, ret);
	if (!err && ret->kind == EXTENT_UNALLOCATED)
		ret->kind = EXTENT_ZERO;
	return err;
}

int extent_fd(const struct extent *extent)
{
	return image_data_fd(extent->image);
}

static struct compressed_cluster compressed_cluster_of(const struct extent *e)
{
	const struct image *image = e->image;
	return (struct compressed_cluster){
		.serial = image->serial,
		.fd = image->fd,
		.host_off = e->host_off,
		.host_len = e->host_len,
		.compression = image->header.compression,
		.cluster_size = (uint32_t)qcow2_cluster_size(&image->header.geo),
	};
}

static int read_extent(const struct extent *e, void *buf)
{
	switch (e->kind) {
	case EXTENT_DATA: return file_read_padded(image_data_fd(e->image), buf, e->len, e->host_off);
	case EXTENT_COMPRESSED:;
		struct compressed_cluster cluster = compressed_cluster_of(e);
		return cluster_cache_read(image_cache_clusters(e->image->cache), &cluster, e->cluster_off, buf, e->len);
	case EXTENT_ZERO:
	case EXTENT_UNALLOCATED: memset(buf, 0, e->len); return 0;
	}
	return -EINVAL;
}

bool extent_continues(const struct extent *a, const struct extent *b)
{
	if (a->kind != b->kind || a->kind == EXTENT_COMPRESSED)
		return false;
	return a->kind == EXTENT_ZERO || (a->image == b->image && a->host_off + a->len == b->host_off);
}

/* Collects extents that one read serves. */
struct run {
	struct extent e;
	char *to;
};

static int run_add(struct run *run, const struct extent *e)
{
	if (run->e.len && extent_continues(&run->e, e)) {
		run->e.len += e->len;
		return 0;
	}
	int err = run->e.len ? read_extent(&run->e, run->to) : 0;
	run->to += run->e.len;
	run->e = *e;
	return err;
}

/* A cluster that is made faster than another thread is woken isn't worth it. */
static void want_extents(const struct view *view, const struct extent *extents, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		if (extents[i].kind == EXTENT_COMPRESSED) {
			struct compressed_cluster cluster = compressed_cluster_of(&extents[i]);
			if (cluster.cluster_size >= WANTED_MIN)
				cluster_cache_want(image_cache_clusters(view->cache), &cluster, extents[i].image);
		}
	}
}

/* The request [GUEST_OFF, +LEN) meets a compressed cluster: what follows it is decompressed meanwhile, in the request and, for who reads on,
 * behind it. */
static void want_ahead(struct view *view, uint64_t guest_off, uint64_t len)
{
	struct extent extents[READ_EXTENTS];
	uint64_t from = 0, cost = 0;
	uint64_t ahead = readahead_next(&view->readahead, guest_off, len, cluster_cache_ahead_bytes(image_cache_clusters(view->cache)), &from);
	uint64_t end = min_u64(from + ahead, view->virtual_size);
	size_t nr = 0;
	while (from < end && map_piece(view, from, end - from, extents, READ_EXTENTS, &nr, &cost) == 0) {
		want_extents(view, extents, nr);
		from = extents[nr - 1].guest_off + extents[nr - 1].len;
	}
}

static size_t find_compressed(const struct extent *extents, size_t nr)
{
	size_t i = 0;
	while (i < nr && extents[i].kind != EXTENT_COMPRESSED)
		i++;
	return i;
}

int view_read(struct view *view, void *buf, size_t len, uint64_t guest_off)
{
	struct run run = {.to = buf};
	uint64_t start = guest_off, end = guest_off + len;
	bool any_compressed = false;
	while (guest_off < end) {
		struct extent extents[READ_EXTENTS];
		size_t nr = 0;
		uint64_t cost = 0;
		int err = map_piece(view, guest_off, end - guest_off, extents, READ_EXTENTS, &nr, &cost);
		size_t first = err ? nr : find_compressed(extents, nr);
		if (!err && first < nr) {
			want_extents(view, extents + first + !any_compressed, nr - first - !any_compressed);
			if (!any_compressed)
				want_ahead(view, start, len);
			any_compressed = true;
		}
		for (size_t i = 0; i < nr && !err; i++) {
			err = run_add(&run, &extents[i]);
			guest_off += extents[i].len;
		}
		if (err)
			return checked(view, err);
	}
	return checked(view, run.e.len ? read_extent(&run.e, run.to) : 0);
}

int view_read_vmstate(struct view *view, void *buf, size_t len, uint64_t off)
{
	const struct layer *layer = &view->layers[0];
	if (!layer->snapshot || !layer->snapshot->vm_state_size)
		return -ENOENT;
	/* QEMU keeps it right behind the disk, as it was then, at the next L2 table's first byte. */
	const struct qcow2_geometry *geo = &layer->image->header.geo;
	uint64_t start = qcow2_l1_needed(geo, layer->snapshot->virtual_size) << qcow2_l2_span_bits(geo);
	char *to = buf;
	while (len) {
		struct extent e;
		int err = layer_map(layer, start + off, len, false, &e);
		if (!err)
			err = read_extent(&e, to);
		if (err)
			return checked(view, err);
		to += e.len;
		off += e.len;
		len -= e.len;
	}
	return checked(view, 0);
}

static uint64_t files_bytes(const struct view *view)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < view->nr_layers; i++) {
		const struct image *image = view->layers[i].image;
		sum += (uint64_t)(image->data_fd >= 0 ? image->data_st : image->st).st_blocks * 512;
	}
	return sum;
}

int view_allocated(struct view *view, uint64_t *ret_bytes)
{
	uint64_t cost = 0, sum = 0;
	for (uint64_t off = 0; off < view->virtual_size;) {
		struct extent e;
		int err = map_exactly(view, off, view->virtual_size - off, &e, &cost);
		if (err)
			return err;
		if (e.kind != EXTENT_ZERO)
			sum += e.len;
		off += e.len;
		if (++cost > ALLOCATED_COST_MAX) {
			sum = min_u64(files_bytes(view), view->virtual_size);
			break;
		}
	}
	*ret_bytes = sum;
	return 0;
}

/* --- locks -------------------------------------------------------------------------------------------------------------- */

static enum image_lock_kind lock_kind(const struct view *view, size_t i)
{
	return i == 0 && view->layers[0].snapshot ? IMAGE_LOCK_QUIET : IMAGE_LOCK_READ;
}

static void unlock_first(struct view *view, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		image_unlock(view->layers[i].image, lock_kind(view, i));
}

/* We have written into one of its files since, or found it changed: who wrote didn't know of this reader. */
static bool is_stale_locked(const struct view *view)
{
	bool stale = false;
	for (size_t i = view->layers[0].snapshot ? 1 : 0; i < view->nr_layers; i++)
		stale = stale || view->layers[i].image->stale;
	return stale;
}

/* Enters it into the list, in which views_read_without() looks. */
static int register_lock(struct view *view)
{
	struct list *views = image_cache_lock_views(view->cache);
	int err = view->nr_locks == 0 && is_stale_locked(view) ? -ESTALE : 0;
	if (!err && view->nr_locks++ == 0)
		list_push(views, &view->link);
	image_cache_unlock_views(view->cache);
	return err;
}

static void unregister_lock(struct view *view)
{
	image_cache_lock_views(view->cache);
	if (--view->nr_locks == 0)
		list_remove(&view->link);
	image_cache_unlock_views(view->cache);
}

int view_lock(struct view *view, struct reason *why)
{
	int err = register_lock(view);
	if (err)
		return reason_set(why, err, "%s, or what it lies over, was changed while it was opened", image_path(view->layers[0].image));
	for (size_t i = 0; i < view->nr_layers; i++) {
		err = image_lock(view->layers[i].image, lock_kind(view, i), why);
		if (err) {
			unlock_first(view, i);
			unregister_lock(view);
			return err;
		}
	}
	return 0;
}

void view_unlock(struct view *view)
{
	unlock_first(view, view->nr_layers);
	unregister_lock(view);
}

static bool has_file(const struct view *view, const struct stat *file)
{
	for (size_t i = 0; i < view->nr_layers; i++) {
		const struct stat *st = &view->layers[i].image->st;
		if (st->st_dev == file->st_dev && st->st_ino == file->st_ino)
			return true;
	}
	return false;
}

static bool reads_without(const struct view *view, const struct stat *file, const struct stat *over, size_t nr)
{
	bool has_all = true;
	if (!has_file(view, file))
		return false;
	for (size_t i = 0; i < nr && has_all; i++)
		has_all = has_file(view, &over[i]);
	return !has_all;
}

bool views_read_without(struct image_cache *cache, const struct view *but, const struct stat *file, const struct stat *over, size_t nr)
{
	bool any = false;
	struct list *views = image_cache_lock_views(cache);
	for (struct list *link = views->next; link != views && !any; link = link->next) {
		const struct view *view = list_entry(link, struct view, link);
		/* Somebody else may have locked the same one. */
		any = (view != but || view->nr_locks > 1) && reads_without(view, file, over, nr);
	}
	image_cache_unlock_views(cache);
	return any;
}
