/* What one layer alone says of a run of guest bytes. */
#include <errno.h>
#include <sched.h>
#include <unistd.h>

#include "base/file.h"
#include "block/image_priv.h"
#include "block/qcow2_format.h"
#include "block/qcow2_l2.h"
#include "block/raw.h"

/* Looks at an L2 entry that is being written: each word of it is written in no time. */
#define NR_AGAIN 1000u

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static int raw_layer_map(const struct image *image, uint64_t off, uint64_t len, bool exact, struct extent *ret)
{
	*ret = (struct extent){.kind = EXTENT_DATA, .host_off = off, .len = len};
	if (exact)
		raw_map(image->fd, off, len, ret);
	return 0;
}

/* Looks up an L1 entry; where it is empty, RET_EMPTY says how many are from here on (in this page, at least one, MAX at
 * most). */
static int l1_lookup(const struct layer *layer, uint64_t l1_index, uint64_t max, uint64_t *ret_l2_offset,
                     uint64_t *ret_empty)
{
	struct table_cache *tables = image_cache_tables(layer->image->cache);
	uint64_t byte = layer->l1_offset + l1_index * 8;
	const struct table_page *page;
	int err = table_cache_get(tables, layer->image->serial, layer->image->fd, byte, &page);
	if (err)
		return err;
	unsigned word = (unsigned)(byte >> 3) & (TABLE_PAGE_WORDS - 1);
	*ret_l2_offset = be64_get(page->words[word]) & QCOW2_OFFSET_MASK;
	uint64_t nr = 0;
	max = min_u64(max, layer->l1_size - l1_index);
	while (nr < max && word + nr < TABLE_PAGE_WORDS && !(be64_get(page->words[word + nr]) & QCOW2_OFFSET_MASK))
		nr++;
	*ret_empty = nr;
	table_cache_put(tables, page);
	return 0;
}

int layer_l2_table(const struct layer *layer, uint64_t guest_off, uint64_t end, uint64_t *ret_l2_offset,
                   uint64_t *ret_empty_end)
{
	unsigned span_bits = qcow2_l2_span_bits(&layer->image->header.geo);
	uint64_t l1_index = guest_off >> span_bits, nr_empty = 0;
	*ret_l2_offset = 0;
	*ret_empty_end = end;
	if (l1_index >= layer->l1_size)
		return 0;
	int err = l1_lookup(layer, l1_index, ((end - 1) >> span_bits) - l1_index + 1, ret_l2_offset, &nr_empty);
	if (!err && l1_index + nr_empty < layer->l1_size)
		*ret_empty_end = min_u64(end, (l1_index + nr_empty) << span_bits);
	return err;
}

static int l2_map(const struct layer *layer, uint64_t l2_offset, uint64_t guest_off, struct extent *ret)
{
	const struct image *image = layer->image;
	const struct qcow2_geometry *geo = &image->header.geo;
	if (!qcow2_table_fits(geo, l2_offset, qcow2_cluster_size(geo)))
		return -EUCLEAN;
	unsigned words = qcow2_l2_words(geo);
	uint64_t l2_index = (guest_off >> geo->cluster_bits) & ((1ull << geo->l2_bits) - 1);
	uint64_t byte = l2_offset + l2_index * words * 8;
	struct table_cache *tables = image_cache_tables(image->cache);
	const struct table_page *page;
	int err = table_cache_get(tables, image->serial, image->fd, byte, &page);
	if (err)
		return err;
	unsigned word = (unsigned)(byte >> 3) & (TABLE_PAGE_WORDS - 1);
	uint64_t in_page = (TABLE_PAGE_WORDS - word) / words;
	uint64_t nr = min_u64(in_page, (1ull << geo->l2_bits) - l2_index);
	err = qcow2_l2_run(geo, page->words + word, (size_t)nr, guest_off & (qcow2_cluster_size(geo) - 1), ret);
	table_cache_put(tables, page);
	return err;
}

int layer_map_again(const struct layer *layer, uint64_t guest_off, struct extent *ret)
{
	const struct image *image = layer->image;
	const struct qcow2_geometry *geo = &image->header.geo;
	uint64_t l2_offset = 0, empty_end = 0;
	unsigned words = qcow2_l2_words(geo);
	uint64_t l2_index = (guest_off >> geo->cluster_bits) & ((1ull << geo->l2_bits) - 1);
	int err = -EUCLEAN;
	for (unsigned i = 0; atomic_load(&image->changing) && err == -EUCLEAN && i < NR_AGAIN; i++) {
		be64 entry[2];
		if (i)
			sched_yield();
		err = layer_l2_table(layer, guest_off, guest_off + 1, &l2_offset, &empty_end);
		if (!err && (!l2_offset || !qcow2_table_fits(geo, l2_offset, qcow2_cluster_size(geo))))
			return -EUCLEAN;
		if (!err)
			err = file_read_padded(image->fd, entry, words * sizeof *entry, l2_offset + l2_index * words * sizeof *entry);
		if (!err)
			err = qcow2_l2_run(geo, entry, 1, guest_off & (qcow2_cluster_size(geo) - 1), ret);
	}
	return err;
}

static int qcow2_map(const struct layer *layer, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	struct extent e = {.kind = EXTENT_UNALLOCATED};
	uint64_t l2_offset = 0, empty_end = guest_off;
	int err = layer_l2_table(layer, guest_off, guest_off + min_u64(len, UINT64_MAX - guest_off), &l2_offset, &empty_end);
	e.len = empty_end - guest_off;
	if (!err && l2_offset)
		err = l2_map(layer, l2_offset, guest_off, &e);
	if (err == -EUCLEAN)
		err = layer_map_again(layer, guest_off, &e);
	*ret = e;
	return err;
}

int layer_map(const struct layer *layer, uint64_t guest_off, uint64_t len, bool exact, struct extent *ret)
{
	int err = layer->image->format == IMAGE_RAW ? raw_layer_map(layer->image, guest_off, len, exact, ret)
						    : qcow2_map(layer, guest_off, len, ret);
	if (err)
		return err;
	ret->guest_off = guest_off;
	ret->len = min_u64(ret->len, len);
	ret->image = ret->kind == EXTENT_DATA || ret->kind == EXTENT_COMPRESSED ? layer->image : NULL;
	return 0;
}
