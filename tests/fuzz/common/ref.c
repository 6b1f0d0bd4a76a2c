#include "ref.h"

#include <libdeflate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>
#include <zstd.h>

#define OFFSET_MASK 0x00fffffffffffe00ull
#define COPIED	    (1ull << 63)
#define COMPRESSED  (1ull << 62)

/* What lies behind the file's end is zeros. */
static void read_padded(int fd, void *buf, size_t len, uint64_t off)
{
	ssize_t n = fuzz_pread(fd, buf, len, off);
	if (n < 0)
		fuzz_fail("reading at %llu", (unsigned long long)off);
	memset((char *)buf + n, 0, len - (size_t)n);
}

uint64_t ref_be64(int fd, uint64_t off)
{
	uint8_t b[8];
	read_padded(fd, b, sizeof b, off);
	struct fuzz_bytes bytes = {b, b + sizeof b};
	return fuzz_take(&bytes, 8);
}

uint32_t ref_be32(int fd, uint64_t off)
{
	return (uint32_t)(ref_be64(fd, off) >> 32);
}

void ref_init(struct ref *ref, int fd, int data_fd, bool raw)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		fuzz_fail("fstat");
	*ref = (struct ref){.fd = fd, .data_fd = data_fd >= 0 ? data_fd : fd, .external = data_fd >= 0, .raw = raw, .file_size = (uint64_t)st.st_size};
	if (raw) {
		ref->virtual_size = (ref->file_size + 511) / 512 * 512;
		return;
	}
	uint64_t incompatible = ref_be32(fd, 4) >= 3 ? ref_be64(fd, 72) : 0;
	uint8_t type;
	read_padded(fd, &type, 1, 104);
	ref->cluster_bits = ref_be32(fd, 20);
	ref->extended = incompatible & 16;
	ref->zstd = (incompatible & 8) && type == 1;
	ref->l1_offset = ref_be64(fd, 40);
	ref->l1_size = ref_be32(fd, 36);
	ref->virtual_size = ref_be64(fd, 24) / 512 * 512;
}

void ref_done(struct ref *ref)
{
	free(ref->cluster);
	ref->cluster = NULL;
}

/* --- compressed clusters -------------------------------------------------------------------------------------------------- */

/* It lets codes pass that zlib refuses: symbols that no stream has, and codes that aren't complete. */
static bool deflate_at_once(const void *in, size_t in_len, void *out, size_t out_len)
{
	struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
	size_t in_used = 0, out_used = 0;
	enum libdeflate_result result = libdeflate_deflate_decompress_ex(d, in, in_len, out, out_len, &in_used, &out_used);
	libdeflate_free_decompressor(d);
	return result == LIBDEFLATE_SUCCESS && out_used == out_len;
}

bool ref_inflate(const void *in, size_t in_len, void *out, size_t out_len)
{
	z_stream z = {.next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)in_len, .next_out = out, .avail_out = (uInt)out_len};
	if (inflateInit2(&z, -12) != Z_OK)
		fuzz_fail("zlib");
	int ret = inflate(&z, Z_FINISH);
	bool good = (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && z.avail_out == 0;
	inflateEnd(&z);
	return good || deflate_at_once(in, in_len, out, out_len);
}

/* Read as a stream, a frame must not want a larger window than it may have, nor have a block that is longer than its window; all at once it needs none. */
static bool zstd_at_once(const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
	while (out_len) {
		size_t frame_len = ZSTD_findFrameCompressedSize(in, in_len);
		size_t n = ZSTD_isError(frame_len) ? frame_len : ZSTD_decompress(out, out_len, in, frame_len);
		if (ZSTD_isError(n))
			return false;
		in += frame_len;
		in_len -= frame_len;
		out += n;
		out_len -= n;
	}
	return true;
}

bool ref_zstd(const void *in, size_t in_len, void *out, size_t out_len)
{
	ZSTD_DCtx *z = ZSTD_createDCtx();
	ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, 22); /* of its own 27, which are 128 MiB */
	ZSTD_inBuffer src = {in, in_len, 0};
	ZSTD_outBuffer dst = {out, out_len, 0};
	size_t ret = 0;
	while (dst.pos < dst.size) {
		size_t in_before = src.pos, out_before = dst.pos;
		ret = ZSTD_decompressStream(z, &dst, &src);
		if (ZSTD_isError(ret) || (src.pos == in_before && dst.pos == out_before))
			break;
	}
	ZSTD_freeDCtx(z);
	if (ZSTD_isError(ret))
		return zstd_at_once(in, in_len, out, out_len);
	return ret == 0 && dst.pos == dst.size;
}

static bool decompress(struct ref *ref, uint64_t entry)
{
	unsigned x = 62 - (ref->cluster_bits - 8);
	uint64_t off = entry & ((1ull << x) - 1), nr_sectors = ((entry & (COMPRESSED - 1)) >> x) + 1;
	size_t len = (size_t)(nr_sectors * 512 - off % 512), cluster_size = (size_t)1 << ref->cluster_bits;
	if (ref->external || off >= 1ull << 56)
		return false;
	if (!ref->cluster)
		ref->cluster = malloc(cluster_size);
	uint8_t *in = malloc(len);
	if (!in || !ref->cluster)
		fuzz_fail("no memory");
	ssize_t n = fuzz_pread(ref->fd, in, len, off);
	bool good = n >= 0 && (ref->zstd ? ref_zstd : ref_inflate)(in, (size_t)n, ref->cluster, cluster_size);
	free(in);
	return good;
}

static enum ref_kind compressed_sector(struct ref *ref, uint64_t entry, uint64_t off_in, uint8_t *buf)
{
	if (!ref->made || ref->made_entry != entry) {
		ref->made = true;
		ref->made_entry = entry;
		ref->made_good = decompress(ref, entry);
	}
	if (!ref->made_good)
		return REF_DAMAGED;
	memcpy(buf, ref->cluster + off_in, REF_SECTOR);
	return REF_DATA;
}

/* --- tables ----------------------------------------------------------------------------------------------------------------- */

static enum ref_kind kind_of(const struct ref *ref, uint64_t entry, uint64_t bitmap, uint64_t off_in)
{
	bool hosted = (entry & OFFSET_MASK) || (ref->external && (entry & COPIED));
	if ((entry & OFFSET_MASK) % (1ull << ref->cluster_bits))
		return REF_DAMAGED;
	if (!ref->extended)
		return entry & 1 ? REF_ZERO : hosted ? REF_DATA : REF_UNALLOCATED;
	uint32_t allocated = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32), bit = 1u << (off_in >> (ref->cluster_bits - 5));
	if ((allocated & zero) || (allocated && !hosted))
		return REF_DAMAGED;
	return allocated & bit ? REF_DATA : zero & bit ? REF_ZERO : REF_UNALLOCATED;
}

enum ref_kind ref_sector(struct ref *ref, uint64_t guest_off, uint8_t *buf)
{
	if (ref->raw) {
		read_padded(ref->fd, buf, REF_SECTOR, guest_off);
		return REF_DATA;
	}
	uint64_t cluster_size = 1ull << ref->cluster_bits, off_in = guest_off % cluster_size;
	unsigned entry_size = ref->extended ? 16 : 8;
	uint64_t nr_entries = cluster_size / entry_size, l1_index = guest_off / cluster_size / nr_entries;
	if (l1_index >= ref->l1_size)
		return REF_UNALLOCATED;
	uint64_t l2 = ref_be64(ref->fd, ref->l1_offset + l1_index * 8) & OFFSET_MASK;
	if (!l2)
		return REF_UNALLOCATED;
	if (l2 % cluster_size || l2 + cluster_size >= 1ull << 56)
		return REF_DAMAGED;
	uint64_t at = l2 + guest_off / cluster_size % nr_entries * entry_size, entry = ref_be64(ref->fd, at);
	if (entry & COMPRESSED)
		return compressed_sector(ref, entry, off_in, buf);
	enum ref_kind kind = kind_of(ref, entry, ref->extended ? ref_be64(ref->fd, at + 8) : 0, off_in);
	if (kind == REF_DATA)
		read_padded(ref->data_fd, buf, REF_SECTOR, (entry & OFFSET_MASK) + off_in);
	return kind;
}

enum ref_kind ref_chain_sector(struct ref *refs, size_t nr, uint64_t guest_off, uint8_t *buf)
{
	for (size_t i = 0; i < nr && guest_off < refs[i].virtual_size; i++) {
		enum ref_kind kind = ref_sector(&refs[i], guest_off, buf);
		if (kind != REF_UNALLOCATED)
			return kind;
	}
	return REF_ZERO;
}

/* --- every cluster has one owner --------------------------------------------------------------------------------------------- */

struct owners {
	const struct ref *ref;
	uint64_t nr_clusters;
	uint8_t *nr_owners; /* of each */
	bool whole;
	char *why; /* 200 bytes */
};

static void own(struct owners *o, const char *what, uint64_t off, uint64_t nr)
{
	uint64_t first = off >> o->ref->cluster_bits;
	for (uint64_t i = first; i < first + nr; i++) {
		if (off % (1ull << o->ref->cluster_bits) || i >= o->nr_clusters || o->nr_owners[i]) {
			snprintf(o->why, 200, "%s at %llu: another's, or outside of the file", what, (unsigned long long)i << o->ref->cluster_bits);
			o->whole = false;
			return;
		}
		o->nr_owners[i]++;
	}
}

/* The table of NR 8-byte words at OFF. */
static uint64_t *load_table(const struct ref *ref, uint64_t off, uint64_t nr)
{
	uint64_t *words = calloc(nr + 1, sizeof *words);
	if (!words)
		fuzz_fail("no memory");
	read_padded(ref->fd, words, nr * 8, off);
	for (uint64_t i = 0; i < nr; i++)
		words[i] = __builtin_bswap64(words[i]);
	return words;
}

static void own_l2(struct owners *o, uint64_t l2)
{
	uint64_t nr = (1ull << o->ref->cluster_bits) / 8, step = o->ref->extended ? 2 : 1;
	own(o, "an L2 table", l2, 1);
	uint64_t *words = load_table(o->ref, l2, nr);
	for (uint64_t i = 0; o->whole && i < nr; i += step)
		if (words[i] & OFFSET_MASK)
			own(o, "data", words[i] & OFFSET_MASK, 1);
	free(words);
}

/* Those of 16 bits, in one block. */
static void check_block(struct owners *o, uint64_t block, uint64_t first)
{
	uint64_t per_block = (1ull << o->ref->cluster_bits) / 2;
	uint64_t *words = block ? load_table(o->ref, block, per_block / 4) : NULL;
	for (uint64_t i = 0; o->whole && i < per_block && first + i < o->nr_clusters; i++) {
		unsigned count = words ? (unsigned)(words[i / 4] >> (48 - i % 4 * 16)) & 0xffff : 0;
		if (count != o->nr_owners[first + i]) {
			snprintf(o->why, 200, "cluster %llu: %u owners, refcount %u", (unsigned long long)(first + i), o->nr_owners[first + i], count);
			o->whole = false;
		}
	}
	free(words);
}

static void check_refcounts(struct owners *o, const uint64_t *table, uint64_t nr_entries)
{
	uint64_t per_block = (1ull << o->ref->cluster_bits) / 2;
	for (uint64_t i = 0; o->whole && i * per_block < o->nr_clusters; i++)
		check_block(o, i < nr_entries ? table[i] & ~511ull : 0, i * per_block);
}

bool ref_is_whole(const struct ref *ref, bool with_refcounts, char why[200])
{
	uint64_t cluster_size = 1ull << ref->cluster_bits, table = ref_be64(ref->fd, 48), table_clusters = ref_be32(ref->fd, 56);
	struct owners o = {.ref = ref, .nr_clusters = (ref->file_size + cluster_size - 1) / cluster_size, .whole = true, .why = why};
	if (o.nr_clusters > 1u << 20)
		return true; /* too much to look at */
	o.nr_owners = calloc(o.nr_clusters + 1, 1);
	if (!o.nr_owners)
		fuzz_fail("no memory");
	uint64_t nr_blocks = table_clusters * cluster_size / 8;
	uint64_t *blocks = load_table(ref, table, nr_blocks), *l1 = load_table(ref, ref->l1_offset, ref->l1_size);
	own(&o, "the header", 0, 1);
	own(&o, "the L1 table", ref->l1_offset, ((uint64_t)ref->l1_size * 8 + cluster_size - 1) / cluster_size);
	own(&o, "the refcount table", table, table_clusters);
	for (uint64_t i = 0; o.whole && i < nr_blocks; i++)
		if (blocks[i] & ~511ull)
			own(&o, "a refcount block", blocks[i] & ~511ull, 1);
	for (uint64_t i = 0; o.whole && i < ref->l1_size; i++)
		if (l1[i] & OFFSET_MASK)
			own_l2(&o, l1[i] & OFFSET_MASK);
	if (with_refcounts)
		check_refcounts(&o, blocks, nr_blocks);
	free(blocks);
	free(l1);
	free(o.nr_owners);
	return o.whole;
}
