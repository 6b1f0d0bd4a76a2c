/* A head on a disk that loses power. Every write to the file is logged; then the file is made again as a power cut at a random moment
 * could have left it: all that was stable, and of the rest any sectors in any order. It must open, pass qemu-img check,
 * and hold in each guest sector what was flushed last or something written to it later.
 * First over a base; with small clusters and a disk that grows, so that its L1 table moves several times; and in a file so long
 * that the refcount table moves. A fourth time over nothing, with space allocated in between.
 * Linked with --wrap (Makefile). block_powercut [SEED [CUTS]]       limit: 240 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "block/head.h"
#include "block/trust.h"
#include "powercut.h"

#define NR_SECTORS 6144u /* 3 MiB: some 24 clusters */
#define NR_OPS	   160

/* The sectors of a disk that grows: half of them at its beginning, the others far behind, in windows that come into use one by one. */
#define NEAR	    (NR_SECTORS / 2)
#define WINDOW	    256u
#define NR_WINDOWS  ((NR_SECTORS - NEAR) / WINDOW)
#define WINDOW_STEP (4ull << 30)
static bool growing, is_long, standalone;
static unsigned nr_steps = NR_OPS;

/* What the guest did: a sector's value is the number of the step that wrote it (0: as beneath; zeros after a discard). */
struct guest_step {
	unsigned first, nr; /* sectors */
	bool zero, flush; /* FLUSH: or an allocation, where not FLUSHED */
	bool flushed;
	size_t log_start, log_end;
};
static struct guest_step steps[NR_OPS];

static bool is_far(unsigned sector)
{
	return growing && sector >= NEAR;
}

static uint64_t offset_of(unsigned sector)
{
	if (!is_far(sector))
		return (uint64_t)sector * SECTOR;
	return (1 + (sector - NEAR) / WINDOW) * WINDOW_STEP + (sector - NEAR) % WINDOW * SECTOR;
}

/* Sectors from SECTOR on that lie side by side. */
static unsigned nr_together(unsigned sector)
{
	return is_far(sector) ? WINDOW - (sector - NEAR) % WINDOW : growing ? NEAR - sector : NR_SECTORS - sector;
}

static void stamp(unsigned char *sector, unsigned value)
{
	memset(sector, 0, SECTOR);
	for (unsigned i = 0; value && i < SECTOR; i += 4)
		memcpy(sector + i, &value, 4);
}

static void do_step(struct head *head, unsigned i)
{
	struct guest_step *s = &steps[i];
	s->log_start = nr_ops;
	s->first = (unsigned)random() % (growing ? NEAR + (i * NR_WINDOWS / nr_steps + 1) * WINDOW : NR_SECTORS);
	s->nr = 1 + (unsigned)random() % (random() % 4 ? 16 : 400);
	if (s->nr > nr_together(s->first))
		s->nr = nr_together(s->first);
	s->flush = random() % 6 == 0;
	s->flushed = !standalone || random() % 2;
	s->zero = !s->flush && random() % 5 == 0;
	if (growing && i == nr_steps - 1) { /* whatever the others were, the L1 table grows */
		s->first = NEAR + (NR_WINDOWS - 1) * WINDOW;
		s->nr = 1;
		s->flush = s->zero = false;
	}
	static unsigned char buf[400 * SECTOR];
	for (unsigned k = 0; k < s->nr; k++)
		stamp(buf + k * SECTOR, i + 1);
	int err = s->flush  ? s->flushed ? head_flush(head) : head_preallocate(head, offset_of(s->first), random() % 3 ? (uint64_t)s->nr * SECTOR : UINT64_MAX)
		  : s->zero ? head_discard(head, offset_of(s->first), (uint64_t)s->nr * SECTOR)
			    : head_write(head, buf, s->nr * SECTOR, offset_of(s->first));
	if (err)
		fail("a step failed with", (uint64_t)-err);
	s->log_end = nr_ops;
}

/* Whether SECTOR may read as BYTES after a cut at CUT. */
static bool allowed(unsigned sector, const unsigned char *bytes, size_t cut)
{
	unsigned char want[SECTOR];
	unsigned settled = 0; /* steps before this one were flushed */
	for (unsigned i = 0; i < nr_steps; i++)
		if (steps[i].flush && steps[i].flushed && steps[i].log_end <= cut)
			settled = i;
	bool found_settled = false;
	for (unsigned n = nr_steps; n-- > 0;) {
		const struct guest_step *s = &steps[n];
		if (s->flush || s->log_start >= cut || sector < s->first || sector >= s->first + s->nr)
			continue;
		stamp(want, s->zero ? 0 : n + 1);
		if (memcmp(want, bytes, SECTOR) == 0)
			return true;
		if (n < settled) {
			found_settled = true;
			break;
		}
	}
	memset(want, is_far(sector) || standalone ? 0 : 0xee, SECTOR);
	return !found_settled && memcmp(want, bytes, SECTOR) == 0;
}

static void check_cut(struct view *view, int dirfd, size_t cut)
{
	struct reason why = {""};
	struct head *head = NULL;
	rebuild(cut);
	/* What QEMU would see before any repair: a dirty image, or a clean one with leaks at the most. */
	if (head_open(dirfd, "head.qcow2", path, view, &head, &why) != 0) {
		printf("%s\n", why.text);
		fail("doesn't open after a cut at", cut);
	}
	static unsigned char all[NR_SECTORS * SECTOR];
	int err = 0;
	for (unsigned s = 0; s < NR_SECTORS && !err; s += nr_together(s))
		err = head_read(head, all + (size_t)s * SECTOR, (size_t)nr_together(s) * SECTOR, offset_of(s));
	if (err || head_close(head))
		fail("doesn't read after a cut at", cut);
	for (unsigned s = 0; s < NR_SECTORS; s++)
		if (!allowed(s, all + (size_t)s * SECTOR, cut)) {
			printf("sector %u holds %02x%02x%02x%02x; ", s, all[s * SECTOR], all[s * SECTOR + 1], all[s * SECTOR + 2], all[s * SECTOR + 3]);
			fail("lost or mixed after a cut at", cut);
		}
	snprintf(cmd, sizeof cmd, "qemu-img check -q %s >/dev/null; r=$?; test $r = 0 -o $r = 3", path);
	if (system(cmd) != 0)
		fail("qemu-img check after a cut at", cut);
}

static void make_overlay(int dirfd)
{
	struct overlay_spec spec = {NR_SECTORS * SECTOR, standalone ? NULL : "base.raw", IMAGE_RAW};
	unlinkat(dirfd, "head.qcow2", 0);
	snprintf(cmd, sizeof cmd, "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=16k -b base.raw -F raw %s", path);
	if (growing ? system(cmd) != 0 : overlay_create(dirfd, "head.qcow2", &spec, 0600))
		exit(2);
	/* Left dirty, as if more had been allocated than it is made for. */
	if (is_long && truncate(path, (256ll << 30) + 16384) < 0)
		exit(2);
	snprintf(cmd, sizeof cmd, "printf '\\021' | dd of=%s bs=1 seek=79 conv=notrunc status=none", path);
	if (is_long && system(cmd) != 0)
		exit(2);
	save_start();
}

static uint32_t l1_size(void)
{
	unsigned char field[4] = {0};
	int fd = open(path, O_RDONLY);
	if (pread(fd, field, sizeof field, 36) != sizeof field)
		exit(2);
	close(fd);
	return (uint32_t)field[0] << 24 | (uint32_t)field[1] << 16 | (uint32_t)field[2] << 8 | field[3];
}

static void run(struct view *view, int dirfd, int nr_cuts)
{
	struct reason why = {""};
	struct head *head = NULL;
	make_overlay(dirfd);
	uint32_t l1_before = l1_size();
	logging = true;
	if (head_open(dirfd, "head.qcow2", path, view, &head, &why))
		fail(why.text, 0);
	for (unsigned i = 0; i < nr_steps; i++)
		do_step(head, i);
	if (head_close(head))
		fail("close", 0);
	logging = false;
	if (growing && l1_size() <= l1_before)
		fail("the L1 table still has entries:", l1_size());
	for (int i = 0; i < nr_cuts; i++)
		check_cut(view, dirfd, (size_t)random() % (nr_ops + 1));
	/* The opening and the close are a few entries each, all of which matter. */
	for (size_t i = 0; i < (is_long ? 32 : 80); i++)
		check_cut(view, dirfd, is_long && i % 2 ? i / 2 % 8 : nr_ops - i % 8);
	/* So do the moments when the header says something new of tables or features. */
	for (size_t i = 0; i < nr_ops; i++)
		for (int again = 0; again < 3 && ops[i].kind == OP_WRITE && ops[i].off >= 36 && ops[i].off < SECTOR; again++)
			check_cut(view, dirfd, i + 1);
	forget_ops();
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	int nr_cuts = argc > 2 ? atoi(argv[2]) : 100;
	printf("seed %u\n", seed);
	srandom(seed);
	snprintf(dir, sizeof dir, "%s/block_powercut.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(dir))
		return 2;
	snprintf(path, sizeof path, "%s/head.qcow2", dir);
	char base[300];
	snprintf(base, sizeof base, "%s/base.raw", dir);
	snprintf(cmd, sizeof cmd, "head -c %u /dev/zero | tr '\\0' '\\356' >%s", NR_SECTORS * SECTOR, base);
	struct trust *trust = NULL;
	struct image_cache *cache = NULL;
	struct view *view = NULL;
	struct reason why = {""};
	if (system(cmd) != 0 || trust_new(&trust) || trust_add(trust, dir, &why) || image_cache_new(trust, 0, &cache) ||
	    view_open(cache, &(struct disk_source){base, IMAGE_RAW, NULL}, &view, &why))
		fail(why.text, 0);
	int dirfd = open(dir, O_RDONLY | O_DIRECTORY);
	run(view, dirfd, nr_cuts);
	growing = true;
	run(view, dirfd, nr_cuts);
	is_long = true;
	nr_steps = 12;
	run(view, dirfd, nr_cuts / 10);
	growing = is_long = false;
	standalone = true;
	nr_steps = NR_OPS;
	run(NULL, dirfd, nr_cuts);
	view_put(view);
	image_cache_free(cache);
	trust_free(trust);
	close(dirfd);
	snprintf(cmd, sizeof cmd, "rm -r %s", dir);
	return system(cmd) != 0;
}
