#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/head_priv.h"
#include "block/qcow2_format.h"
#include "block/qcow2_l2.h"

#define MAX_REFBLOCKS (QCOW2_MAX_REFTABLE_BYTES / 8)
#define SCAN_AHEAD    16u /* L2 tables */

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
	if (used != is_used(space, cluster))
		space->nr_free += used ? -1ull : 1;
	space->used[cluster / 8] = (uint8_t)(used ? space->used[cluster / 8] | bit : space->used[cluster / 8] & ~bit);
	enum block_state *block = &space->stale_blocks[cluster / refs_per_block(space)];
	if (*block == BLOCK_WRITTEN)
		*block = BLOCK_STALE;
}

static uint64_t blocks_needed(const struct space *space)
{
	return (space->nr_clusters + refs_per_block(space) - 1) / refs_per_block(space);
}

/* Clusters of a table for twice the blocks that are needed. */
static uint64_t longer_reftable_clusters(const struct space *space)
{
	uint64_t per_cluster = (1ull << space->cluster_bits) / 8;
	uint64_t nr = 2 * blocks_needed(space) < MAX_REFBLOCKS ? 2 * blocks_needed(space) : MAX_REFBLOCKS;
	return (nr + per_cluster - 1) / per_cluster;
}

/* What writing the refcounts of a fixed space may take. */
static void reserve(struct space *space)
{
	space->nr_reserved = space->fixed && blocks_needed(space) > space->nr_refblocks ? longer_reftable_clusters(space) : 0;
	for (uint64_t i = 0; space->fixed && i < blocks_needed(space); i++)
		space->nr_reserved += i >= space->nr_refblocks || !be64_get(space->reftable[i]);
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

/* The usual case of claim, in a few instructions: a terabyte has 8 million clusters. */
static inline bool claim_free(struct space *space, uint64_t host_off)
{
	uint64_t cluster = host_off >> space->cluster_bits;
	if (host_off & ((1ull << space->cluster_bits) - 1) || cluster >= space->nr_clusters || is_used(space, cluster))
		return false;
	set_used(space, cluster, true);
	return true;
}

static int scan_l2(struct space *space, int fd, const struct qcow2_geometry *geo, uint64_t l2_offset, be64 *table,
		   struct reason *why)
{
	uint64_t cluster_size = qcow2_cluster_size(geo);
	int err = claim(space, l2_offset, cluster_size, "an L2 table", why);
	if (!err)
		err = file_read_padded(fd, table, cluster_size, l2_offset);
	unsigned words = qcow2_l2_words(geo);
	for (size_t i = 0; i < words << geo->l2_bits && !err; i += words) {
		uint64_t entry = be64_get(table[i]), host_off = entry & QCOW2_OFFSET_MASK;
		uint64_t bitmap = words > 1 ? be64_get(table[i + 1]) : 0;
		uint32_t allocated = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32);
		/* I6: what is allocated without a place would be written to at offset 0. */
		if (!(entry & QCOW2_COMPRESSED) && ((allocated && !host_off) || (allocated & zero)))
			err = reason_set(why, -EUCLEAN, "an L2 entry says that a cluster is allocated, and not where");
		else if (entry & QCOW2_COMPRESSED)
			err = reason_set(why, -EOPNOTSUPP, "it holds compressed clusters, which aren't written to");
		else if (host_off && !claim_free(space, host_off))
			err = claim(space, host_off, cluster_size, "a data cluster", why);
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
		uint64_t ahead = i + SCAN_AHEAD < h->l1_size ? be64_get(l1[i + SCAN_AHEAD]) & QCOW2_OFFSET_MASK : 0;
		if (ahead)
			posix_fadvise(fd, (off_t)ahead, (off_t)qcow2_cluster_size(&h->geo), POSIX_FADV_WILLNEED);
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
	space->nr_clusters = ((uint64_t)end + (space->fixed ? 0 : qcow2_cluster_size(&header->geo) - 1)) >> space->cluster_bits;
	space->nr_free = space->nr_clusters;
	space->nr_refblocks = ((uint64_t)header->reftable_clusters << space->cluster_bits) / 8;
	bool clean = !(header->incompatible & QCOW2_INCOMPAT_DIRTY);
	uint64_t nr_blocks = space->nr_clusters / refs_per_block(space) + 1;
	if (nr_blocks > MAX_REFBLOCKS || (clean && !space->fixed && space->nr_clusters > space->nr_refblocks * refs_per_block(space)))
		return reason_set(why, -EUCLEAN, "the file is longer than its refcount table can tell");
	space->used_cap = (size_t)(space->nr_clusters / 8 + 1024);
	space->used = calloc(1, space->used_cap);
	space->reftable = calloc(space->nr_refblocks + 1, sizeof *space->reftable);
	space->stale_cap = (size_t)(nr_blocks > space->nr_refblocks ? nr_blocks : space->nr_refblocks);
	space->stale_blocks = calloc(space->stale_cap, sizeof *space->stale_blocks);
	if (!space->used || !space->reftable || !space->stale_blocks)
		return -ENOMEM;
	int err = scan_all(space, fd, header, l1, why);
	/* A clean file's refcounts are exact, a dirty one's are all written anew. */
	if (clean)
		memset(space->stale_blocks, 0, space->stale_cap * sizeof *space->stale_blocks);
	space->reftable_stale = !clean;
	reserve(space);
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

/* Makes the file NR clusters longer. */
static int extend(struct space *space, uint64_t nr)
{
	if (space->fixed)
		return -ENOSPC;
	uint64_t end = space->nr_clusters + nr, nr_blocks = end / refs_per_block(space) + 1;
	if (nr_blocks > MAX_REFBLOCKS)
		return -EFBIG;
	if (mem_grow(&space->used, &space->used_cap, (size_t)(end / 8 + 1), 1) < 0 ||
	    mem_grow(&space->stale_blocks, &space->stale_cap, (size_t)nr_blocks, sizeof *space->stale_blocks) < 0)
		return -ENOMEM;
	space->nr_clusters = end;
	return 0;
}

/* The first free run of a fixed space. */
static int find_run(const struct space *space, uint64_t nr, uint64_t *ret_first)
{
	uint64_t len = 0;
	for (uint64_t i = space->hint; i < space->nr_clusters; i++) {
		len = is_used(space, i) ? 0 : len + 1;
		if (len == nr) {
			*ret_first = i + 1 - nr;
			return space->nr_free >= space->nr_reserved + nr ? 0 : -ENOSPC;
		}
	}
	return -ENOSPC;
}

int space_alloc_run(struct space *space, uint64_t nr, uint64_t *ret_host_off)
{
	uint64_t first = space->nr_clusters;
	int err = space->fixed ? find_run(space, nr, &first) : extend(space, nr);
	if (err)
		return err;
	for (uint64_t i = 0; i < nr; i++)
		set_used(space, first + i, true);
	*ret_host_off = first << space->cluster_bits;
	return 0;
}

int space_alloc(struct space *space, uint64_t *ret_host_off, bool *ret_fresh)
{
	uint64_t i = space->hint;
	if (space->fixed && space->nr_free <= space->nr_reserved)
		return -ENOSPC;
	while (i < space->nr_clusters && is_used(space, i))
		i += space->used[i / 8] == 0xff ? 8 - i % 8 : 1;
	if (i > space->nr_clusters)
		i = space->nr_clusters;
	*ret_fresh = i == space->nr_clusters;
	int err = *ret_fresh ? extend(space, 1) : 0;
	if (err)
		return err;
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

/* A table for twice the blocks: it counts itself, and the blocks that it brings with it. Where it lies, or 0: the old one does. */
static int lengthen_reftable(struct space *space, uint64_t *ret_host_off, uint64_t *ret_clusters)
{
	*ret_host_off = *ret_clusters = 0;
	if (blocks_needed(space) <= space->nr_refblocks)
		return 0;
	uint64_t clusters = longer_reftable_clusters(space), nr_refblocks = clusters * ((1ull << space->cluster_bits) / 8);
	int err = space_alloc_run(space, clusters, ret_host_off);
	size_t cap = (size_t)space->nr_refblocks;
	if (err || mem_grow(&space->reftable, &cap, (size_t)nr_refblocks, sizeof *space->reftable) < 0 ||
	    mem_grow(&space->stale_blocks, &space->stale_cap, (size_t)nr_refblocks, sizeof *space->stale_blocks) < 0)
		return err ? err : -ENOMEM;
	space->nr_refblocks = nr_refblocks;
	*ret_clusters = clusters;
	return 0;
}

/* Every block that has something to say gets a place; giving it one may make a further block necessary. */
static int place_blocks(struct space *space)
{
	for (bool again = true; again;) {
		again = false;
		for (uint64_t i = 0; i < blocks_needed(space); i++) {
			if (i >= space->nr_refblocks)
				return -EFBIG;
			if (!space->stale_blocks[i] || be64_get(space->reftable[i]))
				continue;
			uint64_t host_off = 0;
			bool fresh;
			int err = space_alloc(space, &host_off, &fresh);
			if (err)
				return err;
			space->reftable[i] = be64_make(host_off);
			if (!fresh)
				space->stale_blocks[i] = BLOCK_GARBAGE;
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
	if (nr > space->nr_clusters - first && !space->fixed && space->stale_blocks[index] != BLOCK_GARBAGE)
		nr = (space->nr_clusters - first + 2047) / 2048 * 2048;
	if (nr > refs_per_block(space))
		nr = refs_per_block(space);
	for (uint64_t i = 0; i < nr; i++)
		block[i] = be16_make(first + i < space->nr_clusters && is_used(space, first + i));
	return file_write(fd, block, (size_t)nr * sizeof *block, be64_get(space->reftable[index]) & QCOW2_REFTABLE_MASK);
}

static int write_blocks(const struct space *space, int fd)
{
	auto_free be16 *block = malloc((size_t)refs_per_block(space) * sizeof *block);
	if (!block)
		return -ENOMEM;
	int err = 0;
	for (uint64_t i = 0; i < space->nr_refblocks && !err; i++)
		if (space->stale_blocks[i] && be64_get(space->reftable[i]))
			err = write_block(space, fd, i, block);
	return err;
}

static int switch_reftable(struct head *head, uint64_t host_off, uint64_t clusters)
{
	int err = tables_barrier(head); /* the table is stable before the header names it */
	if (err)
		return err;
	be64 offset = be64_make(host_off);
	be32 nr = be32_make((uint32_t)clusters);
	char both[sizeof offset + sizeof nr];
	static_assert(offsetof(struct qcow2_header_disk, refcount_table_clusters) ==
			      offsetof(struct qcow2_header_disk, refcount_table_offset) + sizeof offset,
		      "one write");
	memcpy(both, &offset, sizeof offset);
	memcpy(both + sizeof offset, &nr, sizeof nr);
	err = file_write(head->fd, both, sizeof both, offsetof(struct qcow2_header_disk, refcount_table_offset));
	if (!err) {
		head->header.reftable_offset = host_off;
		head->header.reftable_clusters = (uint32_t)clusters;
	}
	return err;
}

int space_write(struct head *head)
{
	struct space *space = &head->space;
	const struct qcow2_header *header = &head->header;
	uint64_t new_table = 0, new_clusters = 0;
	space->nr_reserved = 0;
	int err = lengthen_reftable(space, &new_table, &new_clusters);
	if (!err)
		err = place_blocks(space);
	reserve(space);
	if (err)
		return err;
	/* After the last allocation: till the header names the new table, the old one's place must stay what it is. */
	for (uint64_t i = 0; new_table && i < header->reftable_clusters; i++)
		space_release(space, header->reftable_offset + (i << space->cluster_bits));
	err = write_blocks(space, head->fd);
	/* The blocks are stable before the table names them: it is the one place that tells a block from data. */
	if (!err && (space->reftable_stale || new_table))
		err = tables_barrier(head);
	if (!err && (space->reftable_stale || new_table))
		err = file_write(head->fd, space->reftable, (size_t)space->nr_refblocks * 8, new_table ? new_table : header->reftable_offset);
	if (!err && new_table)
		err = switch_reftable(head, new_table, new_clusters);
	if (err)
		return err;
	memset(space->stale_blocks, 0, space->stale_cap * sizeof *space->stale_blocks);
	space->reftable_stale = false;
	return 0;
}
