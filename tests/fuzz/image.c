/* limit: 300 nightly: 1800
 * Whole images, and chains of up to four of them, through a view: header, extensions, tables, snapshot table, compressed clusters, names of further files.
 * The reader in common/ref.c must read the same bytes and find the same damage; no file outside is opened; memory and work are bounded; it ends. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/image.h"
#include "block/trust.h"
#include "block/view.h"
#include "common/images.h"
#include "common/ref.h"

/* The caches are bounded (image.c) at 12 MiB of tables and 16 MiB of clusters, of which each reader may have 4 MiB more in its hands; what this
 * target itself keeps comes on top. */
#define MEMORY_MAX (64u << 20)
#define INDEX_BYTES (1u << 20)

/* For one call that reads READ_MAX bytes or maps a run, through any chain of four. */
#define READS_MAX      6000u
#define READ_BYTES_MAX (300u << 20)

#define READ_MAX    65536u
#define EXTENTS_MAX 48u
#define SNAPSHOTS_MAX 3u
#define CHAIN_MAX   8u

static const struct trust *trust;
static struct image_cache *cache;
static struct images images;

/* A view, and how the reference has it. */
struct seen {
	struct view *view;
	struct ref refs[CHAIN_MAX];
	size_t nr_refs;
	bool counted; /* view_allocated() takes its time for large disks: once, and not always */
};

static int fd_named(const char *path)
{
	const char *slash = strrchr(path, '/');
	if (!slash || slash[1] < '0' || slash[1] > '3' || slash[2])
		fuzz_fail("%s is part of the chain", path);
	return images.fds[slash[1] - '0'];
}

/* What was opened keeps to the format's limits, and its tables lie in the file. */
static void check_layer(const struct ref *ref)
{
	uint64_t span = (1ull << ref->cluster_bits) * ((1ull << ref->cluster_bits) / (ref->extended ? 16 : 8));
	FUZZ_CHECK(ref->cluster_bits >= 9 && ref->cluster_bits <= 21 && (uint64_t)ref->l1_size * 8 <= 32u << 20);
	FUZZ_CHECK(!ref->l1_size || (ref->l1_offset % (1ull << ref->cluster_bits) == 0 && ref->l1_offset < 1ull << 56 &&
				     ref->l1_offset + (uint64_t)ref->l1_size * 8 <= ref->file_size));
	FUZZ_CHECK(ref->l1_size >= ref->virtual_size / span);
}

static void refs_of(struct seen *seen)
{
	size_t depth = view_depth(seen->view);
	seen->nr_refs = depth <= CHAIN_MAX ? depth : 0;
	for (size_t i = 0; i < seen->nr_refs; i++) {
		const struct image *image = view_layer(seen->view, i);
		int data_fd = image_data_path(image) ? fd_named(image_data_path(image)) : -1;
		ref_init(&seen->refs[i], fd_named(image_path(image)), data_fd, image_format(image) == IMAGE_RAW);
		if (!seen->refs[i].raw)
			check_layer(&seen->refs[i]);
	}
	const struct image_snapshot *s = view_snapshot(seen->view);
	if (s && seen->nr_refs) {
		seen->refs[0].l1_offset = s->l1_offset;
		seen->refs[0].l1_size = s->l1_size;
		seen->refs[0].virtual_size = s->virtual_size / 512 * 512;
	}
}

/* The bytes at GUEST_OFF must be BUF's, or ERR come from something damaged there. */
static void check_bytes(struct seen *seen, uint64_t guest_off, const uint8_t *buf, size_t len, int err)
{
	uint8_t sector[REF_SECTOR];
	bool damaged = false;
	if (err && err != -EUCLEAN)
		fuzz_fail("a read at %llu says %d", (unsigned long long)guest_off, err);
	for (uint64_t off = guest_off; seen->nr_refs && off < guest_off + len && !damaged;) {
		size_t in = (size_t)(off % REF_SECTOR), n = REF_SECTOR - in < guest_off + len - off ? REF_SECTOR - in : (size_t)(guest_off + len - off);
		enum ref_kind kind = ref_chain_sector(seen->refs, seen->nr_refs, off - in, sector);
		damaged = kind == REF_DAMAGED;
		if (kind != REF_DATA)
			memset(sector, 0, sizeof sector);
		if (!err && !damaged && memcmp(sector + in, buf + (off - guest_off), n) != 0)
			fuzz_fail("other bytes than the reference's at %llu", (unsigned long long)off);
		off += n;
	}
	if (seen->nr_refs && damaged != (err == -EUCLEAN))
		fuzz_fail("a read of %zu bytes at %llu says %d, the reference %s", len, (unsigned long long)guest_off, err, damaged ? "damaged" : "fine");
}

static void read_at(struct seen *seen, uint64_t guest_off, size_t len)
{
	uint8_t *buf = malloc(len ? len : 1);
	if (!buf)
		abort();
	memset(buf, 0xa5, len);
	fuzz_count_anew();
	int err = view_read(seen->view, buf, len, guest_off);
	check_bytes(seen, guest_off, buf, len, err);
	free(buf);
}

/* The extents from GUEST_OFF on lie one behind the other, and what they say is what is read. */
static void map_from(struct seen *seen, uint64_t guest_off, unsigned nr, size_t read_max)
{
	uint64_t end = view_virtual_size(seen->view);
	while (nr-- && guest_off < end) {
		struct extent e;
		fuzz_count_anew();
		int err = view_map(seen->view, guest_off, end - guest_off, &e);
		if (err) {
			read_at(seen, guest_off, 1);
			return;
		}
		FUZZ_CHECK(e.guest_off == guest_off && e.len > 0 && e.len <= end - guest_off && e.kind != EXTENT_UNALLOCATED);
		FUZZ_CHECK((e.image != NULL) == (e.kind != EXTENT_ZERO));
		size_t len = e.len < read_max ? (size_t)e.len : read_max;
		if (e.kind == EXTENT_ZERO)
			check_bytes(seen, guest_off, memset((uint8_t[512]){0}, 0, 512), len < 512 ? len : 512, 0);
		if (len)
			read_at(seen, guest_off, len);
		guest_off += e.len;
	}
}

static void read_vmstate(struct seen *seen, uint64_t off, size_t len)
{
	const struct image_snapshot *s = view_snapshot(seen->view);
	if (!s || !s->vm_state_size)
		return;
	off = off % s->vm_state_size;
	len = len < s->vm_state_size - off ? len : (size_t)(s->vm_state_size - off);
	uint8_t *buf = malloc(len + 1);
	fuzz_count_anew();
	if (view_read_vmstate(seen->view, buf, len, off) == 0)
		FUZZ_CHECK(buf != NULL);
	free(buf);
}

static void do_step(struct seen *seen, const struct images_step *s)
{
	uint64_t size = view_virtual_size(seen->view), off = s->kind & 128 ? s->off << 20 : s->off, bytes = 0;
	struct extent e;
	switch (s->kind % 8) {
	case 0:
	case 1: read_at(seen, size ? off % (size + 1) : off, s->len); break;
	case 2: read_at(seen, off, s->len % 4096); break;
	case 3: map_from(seen, size ? off % size : 0, 8, s->len % 1024); break;
	case 4: read_vmstate(seen, off, s->len); break;
	case 5:
		fuzz_count_anew();
		if (view_map_top(seen->view, 1, off, s->len + 1u, &e) == 0)
			FUZZ_CHECK(e.len > 0 && e.len <= s->len + 1u);
		break;
	case 6:
		fuzz_count_anew();
		if (view_map_beneath(seen->view, 1, off, s->len + 1u, &e) == 0)
			FUZZ_CHECK(e.len > 0 && e.len <= s->len + 1u && e.kind != EXTENT_UNALLOCATED);
		break;
	case 7:
		fuzz_count_anew();
		if (!seen->counted && (size < 1u << 24 || s->len % 16 == 0) && view_allocated(seen->view, &bytes) == 0)
			FUZZ_CHECK(bytes <= size);
		seen->counted = true;
		break;
	}
}

static void look(struct view *view)
{
	struct seen seen = {.view = view};
	uint64_t size = view_virtual_size(view);
	refs_of(&seen);
	FUZZ_CHECK(size % 512 == 0 && size <= 1ull << 62);
	map_from(&seen, 0, EXTENTS_MAX, 2048);
	read_at(&seen, 0, size < 16384 ? (size_t)size + 100 : 16384);
	if (size > 3000)
		read_at(&seen, size - 2777, 4000);
	for (unsigned i = 0; i < images.nr_steps; i++)
		do_step(&seen, &images.steps[i]);
	for (size_t i = 0; i < seen.nr_refs; i++)
		ref_done(&seen.refs[i]);
}

static uint32_t checked_nr_snapshots(const struct image *image)
{
	FUZZ_CHECK(image_nr_snapshots(image) <= 65536);
	return image_nr_snapshots(image);
}

static void look_at_state(const char *path, enum image_format format, const char *snapshot)
{
	struct disk_source source = {.path = path, .format = format, .snapshot = snapshot};
	struct view *view = NULL;
	struct reason why = {""};
	fuzz_count_anew();
	int err = view_open(cache, &source, &view, &why);
	if (!err)
		look(view);
	else
		FUZZ_CHECK(why.text[0] && err < 0);
	view_put(view);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const enum image_format formats[] = {IMAGE_PROBE, IMAGE_QCOW2, IMAGE_QCOW2, IMAGE_QCOW2, IMAGE_RAW};
	char path[300];
	struct image *image = NULL;
	if (!trust) {
		struct trust *made = NULL;
		FUZZ_CHECK(trust_new(&made) == 0 && trust_add(made, fuzz_dir(), NULL) == 0);
		trust = made;
	}
	images_make(&images, data, size);
	enum image_format format = formats[images.format % 5];
	snprintf(path, sizeof path, "%s/0", fuzz_dir());
	fuzz_begin(MEMORY_MAX, READS_MAX, READ_BYTES_MAX);
	FUZZ_CHECK(image_cache_new(trust, INDEX_BYTES, &cache) == 0);
	look_at_state(path, format, NULL);
	fuzz_count_anew();
	if (image_open(cache, NULL, path, format, &image, NULL) == 0)
		for (uint32_t i = 0; i < checked_nr_snapshots(image) && i < SNAPSHOTS_MAX; i++)
			look_at_state(path, format, image_snapshot(image, i)->name);
	image_put(image);
	image_cache_free(cache);
	fuzz_end();
	return 0;
}
