#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/head_priv.h"
#include "block/qcow2_format.h"
#include "block/qcow2_l2.h"

static uint64_t refs_per_block(const struct space *space)
{
	return 1ull << (space->cluster_bits - 1); /* 16 bit each */
}

static bool is_used(const struct space *space, uint64_t cluster)
{
	return space->used[cluster / 8] & 1u << (cluster % 8);
}

static void set_used(struct space *space, uint64_t cluster, bool used)
{
	uint8_t bit = (uint8_t)(1u << (cluster % 8));
	space->used[cluster / 8] = (uint8_t)(used ? space->used[cluster / 8] | bit : space->used[cluster / 8] & ~bit);
	space->stale_blocks[cluster / refs_per_block(space)] = true;
}

/* --- the walk at the opening -------------------------------------------------------------------------------------- */

static int claim(struct space *space, uint64_t host_off, uint64_t len, const char *what, struct reason *why)
{
	uint64_t first = host_off >> space->cluster_bits;
	uint64_t nr = (len + (1ull << space->cluster_bits) - 1) >> space->cluster_bits;
	if (host_off & ((1ull << space->cluster_bits) - 1) || nr > space->nr_clusters || first > space->nr_clusters - nr)
		return reason_set(why, -EUCLEAN, "%s at %llu lies outside the file", what, (unsigned long long)host_off);
	for (uint64_t i = first; i < first + nr; i++) {
		if (is_used(space, i))
			return reason_set(why, -EUCLEAN, "%s at %llu belongs to something else as well", what, (unsigned long long)host_off);
		set_used(space, i, true);
	}
	return 0;
}

static int scan_l2(struct space *space, int fd, const struct qcow2_geometry *geo, uint64_t l2_offset, be64 *table,
		   struct reason *why)
{
	uint64_t cluster_size = qcow2_cluster_size(geo);
	int err = claim(space, l2_offset, cluster_size, "an L2 table", why);
	if (!err)
		err = file_read_padded(fd, table, cluster_size, l2_offset);
	for (size_t i = 0; i < 1ull << geo->l2_bits && !err; i++) {
		struct qcow2_l2_entry l2 = qcow2_l2_get(geo, table, i);
		if (l2.entry & QCOW2_COMPRESSED)
			err = reason_set(why, -EOPNOTSUPP, "it holds compressed clusters, which aren't written to");
		else if (l2.entry & QCOW2_OFFSET_MASK)
			err = claim(space, l2.entry & QCOW2_OFFSET_MASK, cluster_size, "a data cluster", why);
	}
	return err;
}

static int scan_refcounts(struct space *space, int fd, const struct qcow2_header *h, struct reason *why)
{
	uint64_t bytes = (uint64_t)h->reftable_clusters << space->cluster_bits;
	int err = claim(space, h->reftable_offset, bytes, "the refcount table", why);
	if (!err)
		err = file_read_padded(fd, space->reftable, bytes, h->reftable_offset);
	for (uint64_t i = 0; i < space->nr_refblocks && !err; i++) {
		uint64_t block = be64_get(space->reftable[i]) & QCOW2_REFTABLE_MASK;
		if (block)
			err = claim(space, block, 1ull << space->cluster_bits, "a refcount block", why);
	}
	return err;
}

static int scan_all(struct space *space, int fd, const struct qcow2_header *h, const be64 *l1, struct reason *why)
{
	auto_free be64 *table = malloc(qcow2_cluster_size(&h->geo));
	if (!table)
		return -ENOMEM;
	int err = claim(space, 0, qcow2_cluster_size(&h->geo), "the header", why);
	if (!err)
		err = claim(space, h->l1_offset, (uint64_t)h->l1_size * 8, "the L1 table", why);
	if (!err)
		err = scan_refcounts(space, fd, h, why);
	for (uint32_t i = 0; i < h->l1_size && !err; i++) {
		uint64_t l2_offset = be64_get(l1[i]) & QCOW2_OFFSET_MASK;
		if (l2_offset)
			err = scan_l2(space, fd, &h->geo, l2_offset, table, why);
	}
	return err;
}

int space_scan(struct space *space, int fd, const struct qcow2_header *header, const be64 *l1, struct reason *why)
{
	off_t end = lseek(fd, 0, SEEK_END);
	if (end < 0)
		return -errno;
	space->cluster_bits = header->geo.cluster_bits;
	space->nr_clusters = ((uint64_t)end + qcow2_cluster_size(&header->geo) - 1) >> space->cluster_bits;
	space->nr_refblocks = ((uint64_t)header->reftable_clusters << space->cluster_bits) / 8;
	if (space->nr_clusters > space->nr_refblocks * refs_per_block(space))
		return reason_set(why, -EUCLEAN, "the file is longer than its refcount table can tell");
	space->used_cap = (size_t)(space->nr_clusters / 8 + 1024);
	space->used = calloc(1, space->used_cap);
	space->reftable = calloc(space->nr_refblocks + 1, sizeof *space->reftable);
	space->stale_blocks = calloc(space->nr_refblocks + 1, sizeof *space->stale_blocks);
	if (!space->used || !space->reftable || !space->stale_blocks)
		return -ENOMEM;
	int err = scan_all(space, fd, header, l1, why);
	/* A clean file's refcounts are exact, a dirty one's are all written anew. */
	if (!(header->incompatible & QCOW2_INCOMPAT_DIRTY))
		memset(space->stale_blocks, 0, (size_t)space->nr_refblocks);
	return err;
}

void space_done(struct space *space)
{
	free(space->used);
	free(space->reftable);
	free(space->stale_blocks);
	*space = (struct space){0};
}

/* --- allocation ------------------------------------------------------------------------------------------------------ */

int space_alloc(struct space *space, uint64_t *ret_host_off, bool *ret_fresh)
{
	uint64_t i = space->hint;
	while (i < space->nr_clusters && is_used(space, i))
		i += space->used[i / 8] == 0xff ? 8 - i % 8 : 1;
	if (i > space->nr_clusters)
		i = space->nr_clusters;
	if (i >= space->nr_refblocks * refs_per_block(space))
		return -EFBIG;
	*ret_fresh = i == space->nr_clusters;
	if (*ret_fresh) {
		if (mem_grow(&space->used, &space->used_cap, (size_t)(i / 8 + 1), 1) < 0)
			return -ENOMEM;
		space->nr_clusters = i + 1;
	}
	set_used(space, i, true);
	space->hint = i + 1;
	*ret_host_off = i << space->cluster_bits;
	return 0;
}

void space_release(struct space *space, uint64_t host_off)
{
	uint64_t cluster = host_off >> space->cluster_bits;
	set_used(space, cluster, false);
	if (cluster < space->hint)
		space->hint = cluster;
}

/* --- writing refcounts ------------------------------------------------------------------------------------------------- */

/* Every block that has something to say gets a place; giving it one may make a further block necessary. */
static int place_blocks(struct space *space)
{
	for (bool again = true; again;) {
		again = false;
		for (uint64_t i = 0; i < space->nr_refblocks && i * refs_per_block(space) < space->nr_clusters; i++) {
			if (!space->stale_blocks[i] || be64_get(space->reftable[i]))
				continue;
			uint64_t host_off = 0;
			bool fresh;
			int err = space_alloc(space, &host_off, &fresh);
			if (err)
				return err;
			space->reftable[i] = be64_make(host_off);
			space->reftable_stale = true;
			again = true;
		}
	}
	return 0;
}

static int write_block(const struct space *space, int fd, uint64_t index, be16 *block)
{
	uint64_t nr = refs_per_block(space), first = index * nr;
	/* Behind the file's last cluster the block is a hole, and stays one, but for the rest of a 4 KiB page. */
	if (nr > space->nr_clusters - first)
		nr = (space->nr_clusters - first + 2047) / 2048 * 2048;
	if (nr > refs_per_block(space))
		nr = refs_per_block(space);
	for (uint64_t i = 0; i < nr; i++)
		block[i] = be16_make(first + i < space->nr_clusters && is_used(space, first + i));
	return file_write(fd, block, (size_t)nr * sizeof *block, be64_get(space->reftable[index]) & QCOW2_REFTABLE_MASK);
}

int space_write(struct space *space, int fd, const struct qcow2_header *header)
{
	auto_free be16 *block = malloc((size_t)refs_per_block(space) * sizeof *block);
	if (!block)
		return -ENOMEM;
	int err = place_blocks(space);
	for (uint64_t i = 0; i < space->nr_refblocks && !err; i++) {
		if (space->stale_blocks[i] && be64_get(space->reftable[i]))
			err = write_block(space, fd, i, block);
	}
	/* The blocks are stable before the table names them: it is the one place that tells a block from data. */
	if (!err && space->reftable_stale)
		err = file_sync(fd);
	if (!err && space->reftable_stale)
		err = file_write(fd, space->reftable, (size_t)space->nr_refblocks * 8, header->reftable_offset);
	if (err)
		return err;
	memset(space->stale_blocks, 0, (size_t)space->nr_refblocks);
	space->reftable_stale = false;
	return 0;
}
