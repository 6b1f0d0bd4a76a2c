#include "block/qcow2_header.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/qcow2_format.h"

uint64_t qcow2_l1_needed(const struct qcow2_geometry *geo, uint64_t virtual_size)
{
	unsigned bits = qcow2_l2_span_bits(geo);
	return (virtual_size >> bits) + ((virtual_size & ((1ull << bits) - 1)) != 0);
}

uint64_t qcow2_l1_roomy(const struct qcow2_geometry *geo, uint64_t nr_needed)
{
	uint64_t max = QCOW2_MAX_L1_BYTES / 8, per_cluster = qcow2_cluster_size(geo) / 8;
	if (nr_needed > max)
		return 0;
	uint64_t roomy = (nr_needed / per_cluster + 1) * per_cluster;
	return roomy < max ? roomy : max;
}

bool qcow2_table_fits(const struct qcow2_geometry *geo, uint64_t offset, uint64_t len)
{
	return !(offset & (qcow2_cluster_size(geo) - 1)) && offset < QCOW2_MAX_OFFSET && len < QCOW2_MAX_OFFSET - offset;
}

void qcow2_header_done(struct qcow2_header *header)
{
	free(header->backing_name);
	free(header->backing_format);
	free(header->data_file);
	*header = (struct qcow2_header){0};
}

static void parse_fields(const struct qcow2_header_disk *disk, struct qcow2_header *h)
{
	h->version = be32_get(disk->version);
	h->virtual_size = be64_get(disk->virtual_size) & ~(uint64_t)(QCOW2_SECTOR - 1); /* whole sectors, as QEMU has it */
	h->l1_offset = be64_get(disk->l1_table_offset);
	h->l1_size = be32_get(disk->l1_size);
	h->reftable_offset = be64_get(disk->refcount_table_offset);
	h->reftable_clusters = be32_get(disk->refcount_table_clusters);
	h->snapshots_offset = be64_get(disk->snapshots_offset);
	h->nr_snapshots = be32_get(disk->nb_snapshots);
	h->refcount_order = 4;
	if (h->version < 3)
		return;
	h->incompatible = be64_get(disk->incompatible_features);
	h->compatible = be64_get(disk->compatible_features);
	h->autoclear = be64_get(disk->autoclear_features);
	h->refcount_order = be32_get(disk->refcount_order);
	if (h->incompatible & QCOW2_INCOMPAT_COMPRESSION)
		h->compression = disk->compression_type;
}

static int check_features(const struct qcow2_header *h, uint32_t crypt_method, struct reason *why)
{
	if (crypt_method)
		return reason_set(why, -EOPNOTSUPP, "encrypted (%s): decrypt it with qemu-img convert first",
				  crypt_method == 1 ? "AES" : "LUKS");
	uint64_t unknown = h->incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN;
	if (unknown)
		return reason_set(why, -EOPNOTSUPP, "unknown incompatible qcow2 features 0x%llx", (unsigned long long)unknown);
	if (h->compression > QCOW2_COMPRESSION_ZSTD)
		return reason_set(why, -EOPNOTSUPP, "unknown qcow2 compression type %u", h->compression);
	return 0;
}

static int check_geometry(struct qcow2_header *h, uint32_t cluster_bits, struct reason *why)
{
	if (cluster_bits < QCOW2_MIN_CLUSTER_BITS || cluster_bits > QCOW2_MAX_CLUSTER_BITS)
		return reason_set(why, -EUCLEAN, "qcow2 header: cluster size 2^%u", cluster_bits);
	bool extended = h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
	if (extended && cluster_bits < QCOW2_MIN_EXT_CLUSTER_BITS)
		return reason_set(why, -EUCLEAN, "qcow2 header: extended L2 entries with clusters of 2^%u", cluster_bits);
	if (h->refcount_order > QCOW2_MAX_REFCOUNT_ORDER)
		return reason_set(why, -EUCLEAN, "qcow2 header: refcount order %u", h->refcount_order);
	h->geo = (struct qcow2_geometry){
		.cluster_bits = cluster_bits,
		.l2_bits = cluster_bits - (extended ? 4 : 3),
		.subcluster_bits = extended ? cluster_bits - 5 : cluster_bits,
		.extended_l2 = extended,
		.has_data_file = h->incompatible & QCOW2_INCOMPAT_DATA_FILE,
	};
	return 0;
}

static int check_tables(const struct qcow2_header *h, uint64_t file_size, struct reason *why)
{
	uint64_t l1_bytes = (uint64_t)h->l1_size * 8;
	if (h->virtual_size > (1ull << 62))
		return reason_set(why, -EUCLEAN, "qcow2 header: a disk of %llu bytes", (unsigned long long)h->virtual_size);
	if (l1_bytes > QCOW2_MAX_L1_BYTES || h->l1_size < qcow2_l1_needed(&h->geo, h->virtual_size))
		return reason_set(why, -EUCLEAN, "qcow2 header: an L1 table of %u entries", h->l1_size);
	if (l1_bytes && (!qcow2_table_fits(&h->geo, h->l1_offset, l1_bytes) || h->l1_offset + l1_bytes > file_size))
		return reason_set(why, -EUCLEAN, "qcow2 header: the L1 table at %llu lies outside the file",
				  (unsigned long long)h->l1_offset);
	uint64_t reftable_bytes = (uint64_t)h->reftable_clusters << h->geo.cluster_bits;
	if (reftable_bytes > QCOW2_MAX_REFTABLE_BYTES || !qcow2_table_fits(&h->geo, h->reftable_offset, reftable_bytes))
		return reason_set(why, -EUCLEAN, "qcow2 header: the refcount table is out of bounds");
	if (h->nr_snapshots > QCOW2_MAX_SNAPSHOTS)
		return reason_set(why, -EUCLEAN, "qcow2 header: %u snapshots", h->nr_snapshots);
	if (h->nr_snapshots && !qcow2_table_fits(&h->geo, h->snapshots_offset, 0))
		return reason_set(why, -EUCLEAN, "qcow2 header: the snapshot table is out of bounds");
	return 0;
}

/* Text of LEN bytes at OFF of the header cluster. */
static int header_text(const char *cluster, size_t cluster_len, uint64_t off, uint32_t len, char **ret)
{
	if (off > cluster_len || len > cluster_len - off || memchr(cluster + off, '\0', len))
		return -EUCLEAN;
	free(*ret);
	*ret = strndup(cluster + off, len);
	return *ret ? 0 : -ENOMEM;
}

static int parse_extension(const char *cluster, size_t cluster_len, uint64_t off, uint32_t type, uint32_t len,
			   struct qcow2_header *h, struct reason *why)
{
	int err = 0;
	switch (type) {
	case QCOW2_EXT_BACKING_FORMAT:
		err = len > QCOW2_MAX_BACKING_FORMAT ? -EUCLEAN : header_text(cluster, cluster_len, off, len, &h->backing_format);
		break;
	case QCOW2_EXT_DATA_FILE:
		err = header_text(cluster, cluster_len, off, len, &h->data_file);
		break;
	case QCOW2_EXT_CRYPTO: return reason_set(why, -EOPNOTSUPP, "encrypted (LUKS): decrypt it with qemu-img convert first");
	default: break; /* the specification: unknown extensions are ignored */
	}
	return err ? reason_set(why, err, "qcow2 header: extension 0x%x is damaged", type) : 0;
}

static int parse_extensions(const char *cluster, size_t cluster_len, uint64_t off, struct qcow2_header *h,
			    struct reason *why)
{
	struct qcow2_extension_disk ext;
	while (off + sizeof ext <= cluster_len) {
		memcpy(&ext, cluster + off, sizeof ext);
		uint32_t type = be32_get(ext.type), len = be32_get(ext.len);
		off += sizeof ext;
		if (type == QCOW2_EXT_END)
			break;
		if (len > cluster_len - off)
			return reason_set(why, -EUCLEAN, "qcow2 header: extension 0x%x is too long", type);
		int err = parse_extension(cluster, cluster_len, off, type, len, h, why);
		if (err)
			return err;
		off += ((uint64_t)len + 7) & ~7ull;
	}
	return 0;
}

/* Names and extensions: what stands in the first cluster behind the fixed part. */
static int parse_variable(int fd, const struct qcow2_header_disk *disk, struct qcow2_header *h, struct reason *why)
{
	size_t cluster_len = (size_t)qcow2_cluster_size(&h->geo);
	auto_free char *cluster = malloc(cluster_len);
	if (!cluster)
		return -ENOMEM;
	int err = file_read_padded(fd, cluster, cluster_len, 0);
	if (err)
		return err;
	uint32_t header_len = h->version == 2 ? QCOW2_V2_HEADER_LEN : be32_get(disk->header_length);
	if (header_len > cluster_len || (h->version > 2 && (header_len < QCOW2_V3_HEADER_MIN || header_len % 8)))
		return reason_set(why, -EUCLEAN, "qcow2 header: its length is %u", header_len);
	uint64_t name_off = be64_get(disk->backing_file_offset);
	uint32_t name_len = be32_get(disk->backing_file_size);
	/* Extensions end where the backing file's name begins, if nothing says so earlier. */
	size_t ext_end = name_off >= header_len && name_off < cluster_len ? (size_t)name_off : cluster_len;
	err = parse_extensions(cluster, ext_end, header_len, h, why);
	if (err)
		return err;
	if (name_off && name_len) {
		err = name_len > QCOW2_MAX_BACKING_NAME ? -EUCLEAN : header_text(cluster, cluster_len, name_off, name_len, &h->backing_name);
		if (err)
			return reason_set(why, err, "qcow2 header: the backing file's name is damaged");
	}
	if (h->geo.has_data_file && !h->data_file)
		return reason_set(why, -EUCLEAN, "qcow2 header: an external data file without a name");
	return 0;
}

static int load(int fd, uint64_t file_size, struct qcow2_header *h, struct reason *why)
{
	struct qcow2_header_disk disk = {0};
	ssize_t n = file_read(fd, &disk, sizeof disk, 0);
	if (n < 0)
		return reason_set(why, (int)n, "reading the qcow2 header: %s", strerror((int)-n));
	if ((size_t)n < QCOW2_V2_HEADER_LEN || be32_get(disk.magic) != QCOW2_MAGIC)
		return reason_set(why, -EUCLEAN, "not a qcow2 image: the header is missing");
	parse_fields(&disk, h);
	if (h->version < 2 || h->version > 3)
		return reason_set(why, -EOPNOTSUPP, "qcow version %u", h->version);
	int err = check_features(h, be32_get(disk.crypt_method), why);
	if (!err)
		err = check_geometry(h, be32_get(disk.cluster_bits), why);
	if (!err)
		err = check_tables(h, file_size, why);
	if (!err)
		err = parse_variable(fd, &disk, h, why);
	return err;
}

int qcow2_header_load(int fd, uint64_t file_size, struct qcow2_header *ret, struct reason *why)
{
	struct qcow2_header header = {0};
	int err = load(fd, file_size, &header, why);
	if (err) {
		qcow2_header_done(&header);
		return err;
	}
	*ret = header;
	return 0;
}

/* --- the snapshot table --------------------------------------------------------------------------------------- */

void qcow2_snapshots_free(struct image_snapshot *snapshots, uint32_t nr)
{
	for (uint32_t i = 0; snapshots && i < nr; i++) {
		free(snapshots[i].id);
		free(snapshots[i].name);
	}
	free(snapshots);
}

/* A cursor over the file, which is read a piece at a time: the table has no length of its own, and tens of thousands of rows. */
struct cursor {
	int fd;
	uint64_t off, end;
	uint64_t piece_off; /* of what PIECE holds */
	size_t piece_len;
	char piece[4096];
};

static int cursor_load(struct cursor *c)
{
	ssize_t n = file_read(c->fd, c->piece, sizeof c->piece, c->off);
	c->piece_off = c->off;
	c->piece_len = n > 0 ? (size_t)n : 0;
	return n > 0 ? 0 : n < 0 ? (int)n : -EUCLEAN;
}

static int cursor_read(struct cursor *c, void *buf, size_t len)
{
	if (len > c->end - c->off)
		return -EUCLEAN;
	for (char *to = buf; len;) {
		if (c->off < c->piece_off || c->off >= c->piece_off + c->piece_len) {
			int err = cursor_load(c);
			if (err)
				return err;
		}
		size_t at = (size_t)(c->off - c->piece_off), n = c->piece_len - at < len ? c->piece_len - at : len;
		memcpy(to, c->piece + at, n);
		to += n;
		len -= n;
		c->off += n;
	}
	return 0;
}

static int cursor_text(struct cursor *c, size_t len, char **ret)
{
	char *text = malloc(len + 1);
	if (!text)
		return -ENOMEM;
	*ret = text;
	text[len] = '\0';
	return cursor_read(c, text, len);
}

static int snapshot_parse_extra(struct cursor *c, uint32_t len, struct image_snapshot *s)
{
	unsigned char bytes[QCOW2_MAX_SNAPSHOT_EXTRA];
	if (len > sizeof bytes)
		return -EUCLEAN;
	int err = cursor_read(c, bytes, len);
	struct qcow2_snapshot_extra_disk extra;
	if (!err && len >= 8) {
		memcpy(&extra.vm_state_size, bytes, 8);
		s->vm_state_size = be64_get(extra.vm_state_size);
	}
	if (!err && len >= 16) {
		memcpy(&extra.virtual_size, bytes + 8, 8);
		s->virtual_size = be64_get(extra.virtual_size);
	}
	return err;
}

static int snapshot_check(const struct qcow2_header *h, uint64_t file_size, const struct image_snapshot *s)
{
	uint64_t l1_bytes = (uint64_t)s->l1_size * 8;
	if (l1_bytes > QCOW2_MAX_L1_BYTES || s->virtual_size > (1ull << 62))
		return -EUCLEAN;
	if (l1_bytes && (!qcow2_table_fits(&h->geo, s->l1_offset, l1_bytes) || s->l1_offset + l1_bytes > file_size))
		return -EUCLEAN;
	return 0;
}

static int snapshot_load(struct cursor *c, const struct qcow2_header *h, uint64_t file_size, struct image_snapshot *s)
{
	struct qcow2_snapshot_disk disk;
	uint64_t start = c->off;
	int err = cursor_read(c, &disk, sizeof disk);
	if (err)
		return err;
	s->l1_offset = be64_get(disk.l1_table_offset);
	s->l1_size = be32_get(disk.l1_size);
	s->date_sec = be32_get(disk.date_sec);
	s->date_nsec = be32_get(disk.date_nsec);
	s->vm_clock_nsec = be64_get(disk.vm_clock_nsec);
	s->vm_state_size = be32_get(disk.vm_state_size);
	s->virtual_size = h->virtual_size;
	err = snapshot_parse_extra(c, be32_get(disk.extra_data_size), s);
	if (!err)
		err = cursor_text(c, be16_get(disk.id_len), &s->id);
	if (!err)
		err = cursor_text(c, be16_get(disk.name_len), &s->name);
	if (!err)
		err = snapshot_check(h, file_size, s);
	if (!err && c->end - c->off >= 8)
		c->off = start + ((c->off - start + 7) & ~7ull);
	return err;
}

int qcow2_snapshots_load(int fd, uint64_t file_size, const struct qcow2_header *header, struct image_snapshot **ret,
			 struct reason *why)
{
	struct cursor c = {.fd = fd, .off = header->snapshots_offset, .end = header->snapshots_offset + QCOW2_MAX_SNAPSHOT_BYTES};
	if (c.end > file_size)
		c.end = file_size;
	/* Before memory is taken for them: that many rows must have room in the file. */
	uint64_t room = c.off < c.end ? c.end - c.off : 0;
	if ((uint64_t)header->nr_snapshots * sizeof(struct qcow2_snapshot_disk) > room)
		return reason_set(why, -EUCLEAN, "the snapshot table lies outside the file");
	struct image_snapshot *snapshots = mem_new_array(header->nr_snapshots, sizeof *snapshots);
	if (!snapshots)
		return -ENOMEM;
	for (uint32_t i = 0; i < header->nr_snapshots; i++) {
		int err = snapshot_load(&c, header, file_size, &snapshots[i]);
		if (err) {
			qcow2_snapshots_free(snapshots, header->nr_snapshots);
			return reason_set(why, err, err == -EUCLEAN ? "the snapshot table is damaged at entry %u" : "the snapshot table can't be read at entry %u", i);
		}
	}
	*ret = snapshots;
	return 0;
}

/* --- writing ---------------------------------------------------------------------------------------------------- */

static size_t put_extension(char *buf, size_t off, uint32_t type, const char *data)
{
	uint32_t len = data ? (uint32_t)strlen(data) : 0;
	struct qcow2_extension_disk ext = {be32_make(type), be32_make(len)};
	memcpy(buf + off, &ext, sizeof ext);
	if (len)
		memcpy(buf + off + sizeof ext, data, len);
	return off + sizeof ext + ((len + 7u) & ~7u);
}

int qcow2_header_render(const struct qcow2_header *h, void *buf, size_t buf_len)
{
	size_t name_len = h->backing_name ? strlen(h->backing_name) : 0;
	size_t format_len = h->backing_format ? strlen(h->backing_format) : 0;
	if (name_len > QCOW2_MAX_BACKING_NAME || format_len > QCOW2_MAX_BACKING_FORMAT ||
	    sizeof(struct qcow2_header_disk) + name_len + 64 > buf_len)
		return -ENAMETOOLONG;
	size_t off = sizeof(struct qcow2_header_disk);
	if (h->backing_format)
		off = put_extension(buf, off, QCOW2_EXT_BACKING_FORMAT, h->backing_format);
	off = put_extension(buf, off, QCOW2_EXT_END, NULL);
	if (name_len)
		memcpy((char *)buf + off, h->backing_name, name_len);
	struct qcow2_header_disk disk = {
		.magic = be32_make(QCOW2_MAGIC),
		.version = be32_make(3),
		.backing_file_offset = be64_make(name_len ? off : 0),
		.backing_file_size = be32_make((uint32_t)name_len),
		.cluster_bits = be32_make(h->geo.cluster_bits),
		.virtual_size = be64_make(h->virtual_size),
		.l1_size = be32_make(h->l1_size),
		.l1_table_offset = be64_make(h->l1_offset),
		.refcount_table_offset = be64_make(h->reftable_offset),
		.refcount_table_clusters = be32_make(h->reftable_clusters),
		.incompatible_features = be64_make(h->incompatible),
		.compatible_features = be64_make(h->compatible),
		.autoclear_features = be64_make(h->autoclear),
		.refcount_order = be32_make(h->refcount_order),
		.header_length = be32_make(sizeof disk),
	};
	memcpy(buf, &disk, sizeof disk);
	return 0;
}

int qcow2_header_rename(void *sector, uint64_t name_off, uint32_t name_len, const char *format)
{
	struct qcow2_header_disk disk;
	memcpy(&disk, sector, sizeof disk);
	uint32_t header_len = be32_get(disk.header_length);
	size_t extensions_len = 2 * sizeof(struct qcow2_extension_disk) + QCOW2_MAX_BACKING_FORMAT + 1;
	if (be32_get(disk.version) != 3 || header_len < QCOW2_V3_HEADER_MIN || header_len % 8 || header_len > QCOW2_SECTOR - extensions_len)
		return -EUCLEAN;
	disk.backing_file_offset = be64_make(name_off);
	disk.backing_file_size = be32_make(name_len);
	memcpy(sector, &disk, QCOW2_V3_HEADER_MIN); /* all versions of the header have these */
	memset((char *)sector + header_len, 0, QCOW2_SECTOR - header_len);
	if (format)
		header_len = (uint32_t)put_extension(sector, header_len, QCOW2_EXT_BACKING_FORMAT, format);
	put_extension(sector, header_len, QCOW2_EXT_END, NULL);
	return 0;
}
