/* The qcow2 header and snapshot table, from bytes to checked structs and back. */
#ifndef BLOCK_QCOW2_HEADER_H
#define BLOCK_QCOW2_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/reason.h"
#include "block/image.h"

/* How guest offsets become places in tables. */
struct qcow2_geometry {
	unsigned cluster_bits;
	unsigned l2_bits;	  /* log2 of the entries in an L2 table */
	unsigned subcluster_bits; /* equals cluster_bits without extended L2 */
	bool extended_l2;
	bool has_data_file;
};

struct qcow2_header {
	unsigned version;
	uint64_t virtual_size;
	uint64_t l1_offset;
	uint32_t l1_size; /* entries */
	uint64_t reftable_offset;
	uint32_t reftable_clusters;
	unsigned refcount_order;
	uint64_t snapshots_offset;
	uint32_t nr_snapshots;
	uint64_t incompatible, compatible, autoclear;
	unsigned compression; /* QCOW2_COMPRESSION_* */
	struct qcow2_geometry geo;
	char *backing_name;	  /* NULL: none */
	char *backing_format; /* as written; NULL: not declared */
	char *data_file;	  /* NULL: none */
};

static inline uint64_t qcow2_cluster_size(const struct qcow2_geometry *geo)
{
	return 1ull << geo->cluster_bits;
}
/* Guest bytes that one L2 table maps: at most 2^39. */
static inline unsigned qcow2_l2_span_bits(const struct qcow2_geometry *geo)
{
	return geo->cluster_bits + geo->l2_bits;
}
/* L1 entries that a disk of this size needs. */
uint64_t qcow2_l1_needed(const struct qcow2_geometry *geo, uint64_t virtual_size);
/* Entries of an L1 table that has NR_NEEDED and room for more: it fills its clusters. 0: NR_NEEDED are more than the format allows. */
uint64_t qcow2_l1_roomy(const struct qcow2_geometry *geo, uint64_t nr_needed);

/* Reads and checks the header of FD (FILE_SIZE bytes). -EUCLEAN, -EOPNOTSUPP, -EIO. Done with qcow2_header_done. */
int qcow2_header_load(int fd, uint64_t file_size, struct qcow2_header *ret, struct reason *why);
void qcow2_header_done(struct qcow2_header *header);

/* Whether [OFFSET, +LEN) is a place for a table: aligned to clusters, within the format's offsets. */
bool qcow2_table_fits(const struct qcow2_geometry *geo, uint64_t offset, uint64_t len);

/* Reads and checks the snapshot table; the caller frees with qcow2_snapshots_free. */
int qcow2_snapshots_load(int fd, uint64_t file_size, const struct qcow2_header *header, struct image_snapshot **ret,
			 struct reason *why);
void qcow2_snapshots_free(struct image_snapshot *snapshots, uint32_t nr);

/* Writes the header of a new version 3 image with its extensions into BUF (zeroed, BUF_LEN bytes: the first cluster or
 * a part of it); -ENAMETOOLONG when the names don't fit. Uses what HEADER says; compression is zlib. */
int qcow2_header_render(const struct qcow2_header *header, void *buf, size_t buf_len);

/* Makes the header whose first sector is SECTOR (version 3) name a backing file of FORMAT, whose name is NAME_LEN bytes at NAME_OFF of the file;
 * FORMAT NULL: none. Other extensions go: what of them matters has a feature bit, or was cleared with those. -EUCLEAN. */
int qcow2_header_rename(void *sector, uint64_t name_off, uint32_t name_len, const char *format);

#endif
