/* limit: 300 nightly: 1800
 * A file from anywhere opened for writing: it is refused, or read, written, cut and stretched as any disk is. Then its bytes are those of a simple model,
 * each of its clusters has one owner and its refcount says so, and what was refused is as it was. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/head.h"
#include "block/image.h"
#include "block/merge.h"
#include "block/trust.h"
#include "block/view.h"
#include "common/images.h"
#include "common/ref.h"

/* The view's share as in image.c; an L1 table of 32 MiB, read and checked, and what says which clusters are in use. */
#define MEMORY_MAX   (192u << 20)
#define INDEX_BYTES  (1u << 20)
#define READS_MAX    50000u
#define READ_BYTES_MAX (600ull << 20)

#define FILE_MAX   (1ull << 38) /* longer files: memory for their clusters' bits, a bit each */
#define LAYERS_MAX 8u
#define PULL_MAX   (4u << 20)
#define PIECE_MAX  65536u

static const struct trust *trust;
static struct images images;
static int original_fd = -1; /* the head's file as it was */

/* What was done to the disk, oldest first. */
struct change {
	enum { WRITTEN, ZEROED, CUT } kind;
	uint64_t off, len;
	uint8_t stamp;
};

struct model {
	struct ref refs[LAYERS_MAX + 1]; /* 0: the head as it was */
	size_t nr_refs;
	struct change changes[NR_STEPS];
	size_t nr_changes;
	bool is_image; /* it can be read by a view */
	bool unsure; /* something failed for which damage is to blame */
};

static uint8_t stamp_at(uint8_t stamp, uint64_t off)
{
	return (uint8_t)(stamp + off / 512 * 7 + off % 251);
}

static void apply(const struct change *c, uint8_t *buf, size_t len, uint64_t off)
{
	uint64_t from = c->off > off ? c->off : off, to = c->off + c->len < off + len ? c->off + c->len : off + len;
	for (uint64_t i = from; i < to; i++)
		buf[i - off] = c->kind == WRITTEN ? stamp_at(c->stamp, i) : 0;
}

/* What a sector of the disk must be; false: damaged. */
static bool model_sector(struct model *m, uint64_t off, uint8_t buf[REF_SECTOR])
{
	enum ref_kind kind = ref_chain_sector(m->refs, m->nr_refs, off, buf);
	if (kind != REF_DATA)
		memset(buf, 0, REF_SECTOR);
	for (size_t i = 0; i < m->nr_changes; i++)
		apply(&m->changes[i], buf, REF_SECTOR, off);
	return kind != REF_DAMAGED;
}

static void check_bytes(struct model *m, uint64_t guest_off, const uint8_t *buf, size_t len)
{
	uint8_t sector[REF_SECTOR];
	for (uint64_t off = guest_off; off < guest_off + len;) {
		size_t in = (size_t)(off % REF_SECTOR), n = REF_SECTOR - in < guest_off + len - off ? REF_SECTOR - in : (size_t)(guest_off + len - off);
		if (model_sector(m, off - in, sector) && memcmp(sector + in, buf + (off - guest_off), n) != 0)
			fuzz_fail("other bytes than the model's at %llu", (unsigned long long)off);
		off += n;
	}
}

static bool any_damage(struct model *m, uint64_t off, uint64_t len)
{
	uint8_t sector[REF_SECTOR];
	/* Of the subclusters that are touched; a pull looks beneath the head's own as well. */
	uint64_t first = off / 65536 * 65536, end = (off + len + 65535) / 65536 * 65536;
	for (uint64_t at = first; at < end; at += REF_SECTOR)
		if (ref_chain_sector(m->refs, m->nr_refs, at, sector) == REF_DAMAGED ||
		    ref_chain_sector(m->refs + 1, m->nr_refs - 1, at, sector) == REF_DAMAGED)
			return true;
	return false;
}

/* An error is one of these, and has a cause. */
static bool went_wrong(struct model *m, int err, uint64_t off, uint64_t len)
{
	if (!err)
		return false;
	if (err != -EFBIG && err != -EOPNOTSUPP && !(err == -EUCLEAN && any_damage(m, off, len < PULL_MAX ? len : PULL_MAX)))
		fuzz_fail("%llu bytes at %llu: %d", (unsigned long long)len, (unsigned long long)off, err);
	m->unsure = true;
	return true;
}

static void changed(struct model *m, int kind, uint64_t off, uint64_t len, uint8_t stamp)
{
	if (len)
		m->changes[m->nr_changes++] = (struct change){.kind = (unsigned)kind, .off = off, .len = len, .stamp = stamp};
}

static void read_at(struct head *head, struct model *m, uint64_t off, size_t len)
{
	uint8_t *buf = malloc(len + 1);
	fuzz_count_anew();
	int err = head_read(head, buf, len, off);
	if (!err)
		check_bytes(m, off, buf, len);
	else if (err != -EUCLEAN || !any_damage(m, off, len))
		fuzz_fail("a read of %zu bytes at %llu: %d", len, (unsigned long long)off, err);
	free(buf);
}

static void write_at(struct head *head, struct model *m, uint64_t off, size_t len, uint8_t stamp)
{
	uint8_t *buf = malloc(len + 1);
	for (size_t i = 0; i < len; i++)
		buf[i] = stamp_at(stamp, off + i);
	if (!went_wrong(m, head_write(head, buf, len, off), off, len))
		changed(m, WRITTEN, off, len, stamp);
	free(buf);
}

static void discard(struct head *head, struct model *m, uint64_t off, uint64_t len)
{
	uint64_t size = head_virtual_size(head);
	if (!went_wrong(m, head_discard(head, off, len), off, len) && off < size)
		changed(m, ZEROED, off, len < size - off ? len : size - off, 0);
}

static void resize(struct head *head, struct model *m, uint64_t size)
{
	uint64_t old = head_virtual_size(head);
	if (went_wrong(m, head_resize(head, size), size, 0))
		return;
	FUZZ_CHECK(head_virtual_size(head) == size);
	if (size < old)
		changed(m, CUT, size, UINT64_MAX - size, 0);
}

static void map_at(struct head *head, uint64_t off, uint64_t len)
{
	struct extent e;
	int err = head_map(head, off, len, &e);
	if (!err)
		FUZZ_CHECK(e.guest_off == off && e.len > 0 && e.len <= len);
	else
		FUZZ_CHECK(err == -EUCLEAN);
}

/* What lies beneath becomes the head's own: nothing that is read changes. */
static void pull_all(struct head *head, struct model *m)
{
	struct view *below = head_below(head);
	uint64_t size = head_virtual_size(head);
	if (below && size < PULL_MAX) {
		int err = head_pull(head, view_depth(below), 0, size, NULL);
		bool pulled = !went_wrong(m, err, 0, size), is_odd = ref_be32(original_fd, 100) > 400;
		err = pulled ? head_rebase(head, NULL, NULL, IMAGE_RAW) : 0;
		if (is_odd && err == -EUCLEAN) /* a header with no room for another name in its first sector */
			m->unsure = true;
		else
			went_wrong(m, err, 0, size);
	}
	view_put(below);
}

static void do_step(struct head *head, struct model *m, const struct images_step *s, bool has_backing)
{
	uint64_t size = head_virtual_size(head), off = s->off % (size + 70000 ? size + 70000 : 1);
	if (size < UINT64_MAX / 4 && s->kind & 64 && size > 5000)
		off = size - 5000 + s->off % 6000;
	fuzz_count_anew();
	switch (s->kind % 8) {
	case 0:
	case 1: write_at(head, m, off, s->len, (uint8_t)s->kind); break;
	case 2: write_at(head, m, off, s->len % 1024, (uint8_t)s->kind); break;
	case 3: discard(head, m, off, s->kind & 128 ? s->len : (uint64_t)s->len << 14); break;
	case 4: resize(head, m, s->kind & 128 ? off : size + s->len * 8u); break;
	case 5: went_wrong(m, head_flush(head), 0, 0); break;
	case 6: read_at(head, m, off, s->len); break;
	case 7:
		map_at(head, off, s->len + 1u);
		if (has_backing && s->kind & 128)
			pull_all(head, m);
		else if (s->kind & 128)
			went_wrong(m, head_preallocate(head, off, s->len), off, s->len);
		break;
	}
}

/* As it was: then its refcounts needn't be right, and are written anew. */
static bool is_dirty(void)
{
	return ref_be64(original_fd, 72) & 1;
}

/* The bytes around all that was changed, by way of BUF. */
static void check_changes(struct view *view, struct model *m)
{
	static uint8_t buf[8192];
	for (size_t i = 0; i <= m->nr_changes; i++) {
		uint64_t off = i < m->nr_changes ? m->changes[i].off : 0, end = i < m->nr_changes ? off + m->changes[i].len : 0;
		uint64_t places[2] = {off > 2000 ? off - 2000 : 0, end > 2000 ? end - 2000 : 0};
		for (unsigned k = 0; k < 2; k++) {
			if (places[k] >= view_virtual_size(view))
				continue;
			size_t len = sizeof buf < view_virtual_size(view) - places[k] ? sizeof buf : (size_t)(view_virtual_size(view) - places[k]);
			fuzz_count_anew();
			if (view_read(view, buf, len, places[k]) == 0)
				check_bytes(m, places[k], buf, len);
			else
				FUZZ_CHECK(any_damage(m, places[k], len));
		}
	}
}

static void check_after(const char *path, struct model *m, uint64_t virtual_size)
{
	struct disk_source source = {.path = path, .format = IMAGE_QCOW2};
	struct image_cache *cache = NULL;
	struct view *view = NULL;
	struct reason why = {""};
	struct ref ref;
	char hole[200] = "", before[200];
	images.fds[0] = images_fd(0); /* a disk that was cut to nothing is another file */
	ref_init(&ref, images.fds[0], -1, false);
	bool exact = is_dirty() || ref_is_whole(&m->refs[0], true, before);
	if (!ref_is_whole(&ref, exact, hole))
		fuzz_fail("the image isn't whole any more: %s", hole);
	fuzz_count_anew();
	FUZZ_CHECK(image_cache_new(trust, INDEX_BYTES, &cache) == 0);
	int err = view_open(cache, &source, &view, &why);
	if (err && m->is_image)
		fuzz_fail("it can't be opened any more: %s", why.text);
	FUZZ_CHECK(err || view_virtual_size(view) == (virtual_size + 511) / 512 * 512);
	if (!err && !m->unsure)
		check_changes(view, m);
	view_put(view);
	image_cache_free(cache);
}

static void work(struct head *head, struct model *m, const char *path, bool has_backing)
{
	uint64_t size = head_virtual_size(head);
	read_at(head, m, 0, size < 4096 ? (size_t)size : 4096);
	for (unsigned i = 0; i < images.nr_steps && !m->unsure; i++)
		do_step(head, m, &images.steps[i], has_backing);
	size = head_virtual_size(head);
	if (went_wrong(m, head_close(head), 0, 0))
		return;
	check_after(path, m, size);
}

/* The chain beneath, all of which the reference reads as well; false: there is none that the test can judge. */
static bool open_below(struct image_cache *cache, const char *path, struct view **ret, struct model *m)
{
	struct image *image = NULL;
	if (image_open(cache, NULL, path, IMAGE_QCOW2, &image, NULL) < 0)
		return true; /* a head refuses it as well, or reads it alone */
	m->is_image = true;
	bool named = image_backing_name(image), good = view_open_backing(cache, image, ret, NULL) == 0;
	image_put(image);
	if (!good || !*ret)
		return !named;
	if (view_depth(*ret) > LAYERS_MAX)
		return false;
	for (size_t i = 0; i < view_depth(*ret); i++) {
		const struct image *layer = view_layer(*ret, i);
		char name = image_path(layer)[strlen(image_path(layer)) - 1];
		if (name < '1' || name > '3' || image_data_path(layer))
			return false; /* the head's own file among them: who does that reads what he writes */
		ref_init(&m->refs[m->nr_refs++], images.fds[name - '0'], -1, image_format(layer) == IMAGE_RAW);
	}
	return true;
}

static bool same_as_before(void)
{
	uint8_t a[4096], b[4096];
	struct stat st, old;
	FUZZ_CHECK(fstat(images.fds[0], &st) == 0 && fstat(original_fd, &old) == 0);
	ssize_t n = fuzz_pread(images.fds[0], a, sizeof a, 0);
	return st.st_size == old.st_size && fuzz_pread(original_fd, b, sizeof b, 0) == n && n >= 0 && memcmp(a, b, (size_t)n) == 0;
}

static void open_and_work(const char *path)
{
	struct image_cache *cache = NULL;
	struct view *below = NULL;
	struct head *head = NULL;
	struct reason why = {""};
	struct model m = {.nr_refs = 1};
	ref_init(&m.refs[0], original_fd, -1, false);
	FUZZ_CHECK(image_cache_new(trust, INDEX_BYTES, &cache) == 0);
	if (open_below(cache, path, &below, &m)) {
		fuzz_count_anew();
		int err = head_open(fuzz_dirfd(), "0", path, below, &head, &why);
		if (!err)
			work(head, &m, path, below != NULL);
		else if (!why.text[0] || (!same_as_before() && !is_dirty()))
			fuzz_fail("refused (%d %s), and changed all the same", err, why.text);
	}
	view_put(below);
	image_cache_free(cache);
	for (size_t i = 0; i < m.nr_refs; i++)
		ref_done(&m.refs[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char path[300];
	struct stat st;
	if (!trust) {
		struct trust *made = NULL;
		FUZZ_CHECK(trust_new(&made) == 0 && trust_add(made, fuzz_dir(), NULL) == 0);
		trust = made;
		original_fd = openat(fuzz_dirfd(), "original", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	}
	images_make(&images, data, size);
	images_copy(data, size, 0, original_fd);
	FUZZ_CHECK(fstat(original_fd, &st) == 0);
	if ((uint64_t)st.st_size > FILE_MAX)
		return -1;
	snprintf(path, sizeof path, "%s/0", fuzz_dir());
	fuzz_begin(MEMORY_MAX, READS_MAX, READ_BYTES_MAX);
	open_and_work(path);
	fuzz_end();
	return 0;
}
