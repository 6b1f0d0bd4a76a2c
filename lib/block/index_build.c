/* Builds one span of the index: asks the layers, top down, for what isn't resolved yet.
 *
 * Tables are read past the table cache, a page or less of each layer: nobody needs the same bytes a second time. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/index_priv.h"
#include "block/qcow2_format.h"
#include "block/qcow2_l2.h"

/* Reading a stretch of a table takes as long as a few layers that have none there. */
#define LOADED_COSTS 4u

/* Bytes of the span, from its start. */
struct range {
	uint32_t from, to;
};

struct ranges {
	struct range *items;
	size_t nr, cap;
};

struct builder {
	struct index *index;
	const struct chain *chain;
	uint64_t start; /* of the span */
	unsigned span_bits;
	struct ranges todo; /* in order: what no layer has answered for yet */
	struct ranges left; /* what the layer that is being asked leaves to those below */
	struct index_extent *found;
	size_t nr_found, cap_found;
	size_t layer;
	uint64_t nr_asked, nr_loaded;

	/* the stretch of an L2 table that is loaded */
	struct qcow2_window {
		uint64_t from, to; /* guest bytes; none when equal */
		bool empty;        /* the layer has no L2 table here */
		be64 words[TABLE_PAGE_WORDS];
	} window;
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

unsigned index_layer_span_bits(const struct layer *layer)
{
	const struct qcow2_geometry *geo = &layer->image->header.geo;
	if (layer->image->format != IMAGE_QCOW2)
		return INDEX_MAX_SPAN_BITS;
	unsigned bits = geo->cluster_bits + TABLE_PAGE_BITS - (geo->extended_l2 ? 4 : 3);
	return bits < INDEX_MAX_SPAN_BITS ? bits : INDEX_MAX_SPAN_BITS;
}

/* --- collecting ----------------------------------------------------------------------------------------------- */

static int ranges_push(struct ranges *ranges, uint64_t from, uint64_t to)
{
	if (ranges->nr && ranges->items[ranges->nr - 1].to == from) {
		ranges->items[ranges->nr - 1].to = (uint32_t)to;
		return 0;
	}
	if (mem_grow(&ranges->items, &ranges->cap, ranges->nr + 1, sizeof *ranges->items) < 0)
		return -ENOMEM;
	ranges->items[ranges->nr++] = (struct range){(uint32_t)from, (uint32_t)to};
	return 0;
}

static int leave(struct builder *b, uint64_t guest_off, uint64_t end)
{
	return ranges_push(&b->left, guest_off - b->start, end - b->start);
}

static int found_push(struct builder *b, uint64_t guest_off, struct index_extent e)
{
	if (b->nr_found == b->cap_found && mem_grow(&b->found, &b->cap_found, b->nr_found + 1, sizeof *b->found) < 0)
		return -ENOMEM;
	e.sector = (guest_off - b->start) >> 9 & 0xffff;
	b->found[b->nr_found++] = e;
	return 0;
}

static int found_plain(struct builder *b, uint64_t guest_off, enum index_kind kind)
{
	return found_push(b, guest_off, (struct index_extent){.kind = kind & 3});
}

/* What a layer says of a run inside it. */
static int take_run(struct builder *b, const struct extent *e)
{
	struct index_extent found = {.layer = b->layer & (INDEX_MAX_LAYERS - 1), .host_off = e->host_off};
	switch (e->kind) {
	case EXTENT_UNALLOCATED: return leave(b, e->guest_off, e->guest_off + e->len);
	case EXTENT_ZERO: return found_plain(b, e->guest_off, INDEX_ZERO);
	case EXTENT_DATA: return found_push(b, e->guest_off, found);
	case EXTENT_COMPRESSED:
		found.kind = INDEX_COMPRESSED;
		found.sectors = (((e->host_len + (e->host_off & 511)) >> 9) - 1) & 0x3fff;
		return found_push(b, e->guest_off, found);
	}
	return -EINVAL;
}

/* --- one qcow2 layer --------------------------------------------------------------------------------------------- */

/* Loads the entries for guest bytes from GUEST_OFF on, as far as the table, the page and what is asked for go. */
static int load_window(struct builder *b, const struct layer *layer, uint64_t l2_offset, uint64_t guest_off,
                       uint64_t end)
{
	const struct qcow2_geometry *geo = &layer->image->header.geo;
	struct qcow2_window *w = &b->window;
	unsigned words = qcow2_l2_words(geo), span_bits = qcow2_l2_span_bits(geo);
	uint64_t table_start = guest_off >> span_bits << span_bits;
	uint64_t first = (guest_off - table_start) >> geo->cluster_bits;
	uint64_t last = (min_u64(end, table_start + (1ull << span_bits)) - 1 - table_start) >> geo->cluster_bits;
	uint64_t nr = min_u64(last + 1 - first, TABLE_PAGE_WORDS / words);
	w->from = w->to = 0;
	b->nr_loaded++;
	int err = file_read_padded(layer->image->fd, w->words, (size_t)(nr * words * sizeof(be64)),
	                           l2_offset + first * words * sizeof(be64));
	if (err)
		return err;
	w->empty = false;
	w->from = table_start + (first << geo->cluster_bits);
	w->to = table_start + ((first + nr) << geo->cluster_bits);
	return 0;
}

/* Entries that say nothing are most of a deep chain's: they are passed quickly. */
static uint64_t skip_empty(const struct builder *b, const struct qcow2_geometry *geo, uint64_t guest_off, uint64_t end)
{
	const struct qcow2_window *w = &b->window;
	unsigned words = qcow2_l2_words(geo);
	size_t i = (size_t)((guest_off - w->from) >> geo->cluster_bits) * words;
	size_t stop = (size_t)((min_u64(end, w->to) - 1 - w->from) >> geo->cluster_bits) * words + words;
	size_t at = i;
	while (at < stop && !be64_get(w->words[at]))
		at++;
	at -= at % words; /* both words of an extended entry */
	if (at == i)
		return guest_off;
	return min_u64(end, w->from + ((uint64_t)(at / words) << geo->cluster_bits));
}

/* Guest bytes within the window. */
static int walk_window(struct builder *b, const struct layer *layer, uint64_t guest_off, uint64_t end)
{
	const struct qcow2_geometry *geo = &layer->image->header.geo;
	unsigned words = qcow2_l2_words(geo);
	uint64_t cluster_size = qcow2_cluster_size(geo);
	int err = 0;
	while (guest_off < end && !err) {
		uint64_t next = skip_empty(b, geo, guest_off, end);
		if (next > guest_off) {
			err = leave(b, guest_off, next);
			guest_off = next;
			continue;
		}
		size_t index = (size_t)((guest_off - b->window.from) >> geo->cluster_bits);
		size_t nr = (size_t)((b->window.to - b->window.from) >> geo->cluster_bits) - index;
		struct extent e = {0};
		if (qcow2_l2_run(geo, b->window.words + index * words, nr, guest_off & (cluster_size - 1), &e) < 0 &&
		    layer_map_again(layer, guest_off, &e) < 0) {
			next = min_u64(end, (guest_off | (cluster_size - 1)) + 1);
			err = found_plain(b, guest_off, INDEX_DAMAGED);
		} else {
			e.guest_off = guest_off;
			e.len = min_u64(e.len, end - guest_off);
			next = guest_off + e.len;
			err = take_run(b, &e);
		}
		guest_off = next;
	}
	return err;
}

/* Makes the window begin at GUEST_OFF; it needn't reach END. */
static int find_window(struct builder *b, const struct layer *layer, uint64_t guest_off, uint64_t end)
{
	const struct qcow2_geometry *geo = &layer->image->header.geo;
	uint64_t l2_offset = 0, empty_end = 0;
	int err = layer_l2_table(layer, guest_off, end, &l2_offset, &empty_end);
	if (err)
		return err;
	if (l2_offset)
		return qcow2_table_fits(geo, l2_offset, qcow2_cluster_size(geo))
		           ? load_window(b, layer, l2_offset, guest_off, end)
		           : -EUCLEAN;
	b->window.empty = true;
	b->window.from = guest_off;
	b->window.to = empty_end;
	return 0;
}

/* Guest bytes [GUEST_OFF, END) of the layer; further ones up to LAST are to be asked for. */
static int ask_qcow2(struct builder *b, const struct layer *layer, uint64_t guest_off, uint64_t end, uint64_t last)
{
	unsigned span_bits = qcow2_l2_span_bits(&layer->image->header.geo);
	struct qcow2_window *w = &b->window;
	int err = 0;
	for (uint64_t stop; guest_off < end && !err; guest_off = stop) {
		bool loaded = guest_off >= w->from && guest_off < w->to;
		err = loaded ? 0 : find_window(b, layer, guest_off, last);
		stop = min_u64(end, w->to);
		if (err == -EUCLEAN) {
			stop = min_u64(end, ((guest_off >> span_bits) + 1) << span_bits);
			err = found_plain(b, guest_off, INDEX_DAMAGED);
		} else if (!err) {
			err = w->empty ? leave(b, guest_off, stop) : walk_window(b, layer, guest_off, stop);
		}
	}
	return err;
}

/* --- the walk */

static int ask_range(struct builder *b, const struct layer *layer, uint64_t guest_off, uint64_t end, uint64_t last)
{
	int err = 0;
	uint64_t inside = guest_off < layer->virtual_size ? min_u64(end, layer->virtual_size) : guest_off;
	if (guest_off < inside && layer->image->format == IMAGE_QCOW2)
		err = ask_qcow2(b, layer, guest_off, inside, last);
	else if (guest_off < inside)
		err = take_run(b, &(struct extent){.guest_off = guest_off,
		                                   .len = inside - guest_off,
		                                   .kind = EXTENT_DATA,
		                                   .host_off = guest_off});
	if (!err && inside < end) /* a shorter layer hides what is longer below it */
		err = found_plain(b, inside, INDEX_ZERO);
	return err;
}

static int ask_layer(struct builder *b)
{
	const struct layer *layer = &b->chain->layers[b->layer];
	int err = 0;
	b->nr_asked++;
	b->window.from = b->window.to = 0;
	uint64_t last = b->start + b->todo.items[b->todo.nr - 1].to;
	last = min_u64(last, layer->virtual_size);
	for (size_t i = 0; i < b->todo.nr && !err; i++)
		err = ask_range(b, layer, b->start + b->todo.items[i].from, b->start + b->todo.items[i].to, last);
	return err;
}

/* What is known of the chain from this layer on: [GUEST_OFF, END) as far as it goes. MISSING is the last span that wasn't there. */
static int take_known(struct builder *b, const struct chain_id *id, uint64_t *guest_off, uint64_t end, uint64_t *missing)
{
	uint64_t mask = (1ull << id->span_bits) - 1;
	struct index_piece piece;
	int err = 0;
	while (*guest_off < end && !err) {
		uint64_t span_start = *guest_off & ~mask;
		uint64_t stop = min_u64(end, span_start + mask + 1);
		uint64_t span_no = *guest_off >> id->span_bits;
		if (span_no == *missing)
			break;
		if (!index_lookup(b->index, id->number, span_no, id->span_bits, *guest_off - span_start, stop - span_start, &piece)) {
			*missing = span_no;
			break;
		}
		for (size_t i = 0; i < piece.nr && !err; i++) {
			struct index_extent e = piece.extents[i];
			uint64_t at = span_start + index_sector_off(&e);
			if (at < *guest_off) {
				if (e.kind == INDEX_DATA)
					e.host_off += *guest_off - at;
				at = *guest_off;
			}
			if (e.kind == INDEX_DATA || e.kind == INDEX_COMPRESSED)
				e.layer = (e.layer + b->layer) & (INDEX_MAX_LAYERS - 1);
			err = found_push(b, at, e);
		}
		*guest_off = min_u64(end, span_start + piece.end);
	}
	return err;
}

static int take_all_known(struct builder *b, const struct chain_id *id)
{
	uint64_t missing = UINT64_MAX;
	int err = 0;
	for (size_t i = 0; i < b->todo.nr && !err; i++) {
		uint64_t guest_off = b->start + b->todo.items[i].from, end = b->start + b->todo.items[i].to;
		err = take_known(b, id, &guest_off, end, &missing);
		if (!err && guest_off < end)
			err = leave(b, guest_off, end);
	}
	return err;
}

/* What the last step left is what the next one is asked for. */
static void turn(struct builder *b)
{
	struct ranges done = b->todo;
	b->todo = b->left;
	b->left = done;
	b->left.nr = 0;
}

static int walk(struct builder *b)
{
	const struct chain *chain = b->chain;
	const struct chain_id *id = chain->id;
	uint64_t end = min_u64(b->start + (1ull << b->span_bits), chain->virtual_size);
	int err = ranges_push(&b->todo, 0, end - b->start);
	for (b->layer = 0; b->layer < chain->nr_layers && b->todo.nr && !err; b->layer++, id = id->below) {
		if (b->layer && atomic_load_explicit(&id->has_spans, memory_order_relaxed)) {
			err = take_all_known(b, id);
			turn(b);
		}
		if (!err && b->todo.nr) {
			err = ask_layer(b);
			turn(b);
		}
	}
	for (size_t i = 0; i < b->todo.nr && !err; i++)
		err = found_plain(b, b->start + b->todo.items[i].from, INDEX_ZERO);
	if (!err && end < b->start + (1ull << b->span_bits))
		err = found_plain(b, end, INDEX_ZERO);
	return err;
}

/* --- sorting and merging */

#define SORT_BITS 9u

/* Each layer's finds come in order and are few in most; what is nearly sorted by its high bits is finished by
 * insertion. */
static int sort_found(struct builder *b)
{
	uint32_t starts[(1u << SORT_BITS) + 1] = {0};
	unsigned shift = b->span_bits - 9 - SORT_BITS;
	auto_free struct index_extent *sorted = mem_new_array(b->nr_found, sizeof *sorted);
	if (!sorted)
		return -ENOMEM;
	for (size_t i = 0; i < b->nr_found; i++)
		starts[(b->found[i].sector >> shift) + 1]++;
	for (size_t i = 0; i < 1u << SORT_BITS; i++)
		starts[i + 1] += starts[i];
	for (size_t i = 0; i < b->nr_found; i++)
		sorted[starts[b->found[i].sector >> shift]++] = b->found[i];
	for (size_t i = 1; i < b->nr_found; i++) {
		struct index_extent e = sorted[i];
		size_t at = i;
		for (; at && sorted[at - 1].sector > e.sector; at--)
			sorted[at] = sorted[at - 1];
		sorted[at] = e;
	}
	free(b->found);
	b->found = take_ptr(sorted);
	return 0;
}

static bool continues(const struct index_extent *a, const struct index_extent *b)
{
	if (a->kind != b->kind || a->kind == INDEX_COMPRESSED)
		return false;
	return a->kind != INDEX_DATA ||
	       (a->layer == b->layer && a->host_off + index_sector_off(b) - index_sector_off(a) == b->host_off);
}

static void merge_found(struct builder *b)
{
	size_t nr = 0;
	for (size_t i = 0; i < b->nr_found; i++)
		if (!nr || !continues(&b->found[nr - 1], &b->found[i]))
			b->found[nr++] = b->found[i];
	b->nr_found = nr;
}

int index_build(struct index *index, const struct chain *chain, uint64_t span_no, struct index_built *ret)
{
	auto_free struct builder *b = malloc(sizeof *b);
	if (!b)
		return -ENOMEM;
	*b = (struct builder){.index = index, .chain = chain, .span_bits = chain->id->span_bits};
	b->start = span_no << b->span_bits;
	int err = walk(b);
	if (!err)
		err = sort_found(b);
	if (!err) {
		merge_found(b);
		*ret = (struct index_built){
			.extents = take_ptr(b->found),
			.nr = b->nr_found,
			.nr_asked = b->nr_asked,
			.cost = b->nr_asked + b->nr_loaded * LOADED_COSTS,
		};
	}
	free(b->found);
	free(b->todo.items);
	free(b->left.items);
	return err;
}
