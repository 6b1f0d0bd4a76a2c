/* qcow2 as it lies on disk: the QEMU project's docs/interop/qcow2.txt, versions 2 and 3. Nothing but the format here: structs with
 * the specification's offsets, feature bits, masks, and the limits that we enforce (QEMU's own, from FACTS of
 * its behaviour: files beyond them aren't opened by QEMU either). */
#ifndef BLOCK_QCOW2_FORMAT_H
#define BLOCK_QCOW2_FORMAT_H

#include <assert.h>
#include <stddef.h>

#include "base/bytes.h"

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

struct qcow2_header_disk {
	be32 magic;
	be32 version;
	be64 backing_file_offset;
	be32 backing_file_size;
	be32 cluster_bits;
	be64 virtual_size;
	be32 crypt_method;
	be32 l1_size;
	be64 l1_table_offset;
	be64 refcount_table_offset;
	be32 refcount_table_clusters;
	be32 nb_snapshots;
	be64 snapshots_offset;
	/* version 3 */
	be64 incompatible_features;
	be64 compatible_features;
	be64 autoclear_features;
	be32 refcount_order;
	be32 header_length;
	uint8_t compression_type;
	uint8_t padding[7];
};
static_assert(offsetof(struct qcow2_header_disk, incompatible_features) == 72, "header, version 2");
static_assert(offsetof(struct qcow2_header_disk, compression_type) == 104, "header, version 3");
static_assert(sizeof(struct qcow2_header_disk) == 112, "header");

#define QCOW2_SECTOR 512u /* is written as a whole or not at all */
#define QCOW2_V2_HEADER_LEN 72u
#define QCOW2_V3_HEADER_MIN 104u

enum {
	QCOW2_INCOMPAT_DIRTY = 1u << 0,
	QCOW2_INCOMPAT_CORRUPT = 1u << 1,
	QCOW2_INCOMPAT_DATA_FILE = 1u << 2,
	QCOW2_INCOMPAT_COMPRESSION = 1u << 3,
	QCOW2_INCOMPAT_EXTENDED_L2 = 1u << 4,
	QCOW2_INCOMPAT_KNOWN = (1u << 5) - 1,
};
enum {
	QCOW2_COMPAT_LAZY_REFCOUNTS = 1u << 0,
};
enum {
	QCOW2_COMPRESSION_ZLIB = 0,
	QCOW2_COMPRESSION_ZSTD = 1,
};

struct qcow2_extension_disk {
	be32 type;
	be32 len; /* of the data that follows, which is padded to 8 bytes */
};
enum {
	QCOW2_EXT_END = 0,
	QCOW2_EXT_BACKING_FORMAT = 0xe2792aca,
	QCOW2_EXT_DATA_FILE = 0x44415441,
	QCOW2_EXT_FEATURE_NAMES = 0x6803f857,
	QCOW2_EXT_CRYPTO = 0x0537be77,
	QCOW2_EXT_BITMAPS = 0x23852875,
};

struct qcow2_snapshot_disk {
	be64 l1_table_offset;
	be32 l1_size;
	be16 id_len;
	be16 name_len;
	be32 date_sec;
	be32 date_nsec;
	be64 vm_clock_nsec;
	be32 vm_state_size;
	be32 extra_data_size;
	/* extra data, id, name; the whole padded to 8 bytes */
};
static_assert(sizeof(struct qcow2_snapshot_disk) == 40, "snapshot table entry");

struct qcow2_snapshot_extra_disk {
	be64 vm_state_size;
	be64 virtual_size;
	be64 icount;
};

/* L1 and L2 entries, and refcount table entries. */
#define QCOW2_COPIED	     (1ull << 63)
#define QCOW2_COMPRESSED     (1ull << 62)
#define QCOW2_ZERO	     1ull
#define QCOW2_OFFSET_MASK    0x00fffffffffffe00ull
#define QCOW2_REFTABLE_MASK  0xfffffffffffffe00ull
#define QCOW2_SUBCLUSTERS    32u
#define QCOW2_ALL_SUBCLUSTERS 0xffffffffull /* of one half of the bitmap: low allocated, high zero */

#define QCOW2_MIN_CLUSTER_BITS	   9u
#define QCOW2_MAX_CLUSTER_BITS	   21u
#define QCOW2_MIN_EXT_CLUSTER_BITS 14u
#define QCOW2_MAX_L1_BYTES	   (32u << 20)
#define QCOW2_MAX_REFTABLE_BYTES   (8u << 20)
#define QCOW2_MAX_REFCOUNT_ORDER   6u
#define QCOW2_MAX_SNAPSHOTS	   65536u
#define QCOW2_MAX_SNAPSHOT_BYTES   (64u << 20)
#define QCOW2_MAX_SNAPSHOT_EXTRA   1024u
#define QCOW2_MAX_BACKING_NAME	   1023u
#define QCOW2_MAX_BACKING_FORMAT   15u
#define QCOW2_MAX_OFFSET	   (1ull << 56)

#endif
