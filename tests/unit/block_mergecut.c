/* Merging on a disk that loses power: at whatever moment, the chain reads what it read. Layers are pulled into a head one after the other till
 * it stands alone, while its guest writes nothing; and what lies above a layer is written into it.
 * Linked with --wrap (Makefile). block_mergecut [SEED [CUTS]]       limit: 240 */
#include <time.h>

#include "block/merge.h"
#include "block/trust.h"
#include "powercut.h"

#define DISK_SIZE (3u << 20)
#define NR_LAYERS 5 /* the base, which is raw, and overlays */

static unsigned char models[NR_LAYERS][DISK_SIZE];
static char names[NR_LAYERS][20];
static struct trust *trust;
static struct image_cache *cache; /* of those who merge */
static int layers_fd;

static char *path_of(const char *name)
{
	static char made[260];
	snprintf(made, sizeof made, "%s/%s", dir, name);
	return made;
}

static void check(int err, const char *what)
{
	if (err)
		fail(what, (uint64_t)-err);
}

static struct view *open_view(struct image_cache *with, int i)
{
	struct reason why = {""};
	struct view *view = NULL;
	if (i >= 0 && view_open(with, &(struct disk_source){path_of(names[i]), i ? IMAGE_QCOW2 : IMAGE_RAW, NULL}, &view, &why))
		fail(why.text, 0);
	return view;
}

static void change(int i, struct view *below)
{
	struct head *head = NULL;
	static unsigned char buf[400 * SECTOR];
	check(head_open(layers_fd, names[i], path_of(names[i]), below, &head, NULL), "opening a head");
	for (int n = 0; n < 12; n++) {
		uint64_t off = (uint64_t)random() % (DISK_SIZE / SECTOR) * SECTOR, len = (1 + (uint64_t)random() % (random() % 3 ? 20 : 400)) * SECTOR;
		bool zero = random() % 4 == 0;
		if (len > DISK_SIZE - off)
			len = DISK_SIZE - off;
		memset(buf, zero ? 0 : (int)random(), len);
		check(zero ? head_discard(head, off, len) : head_write(head, buf, len, off), "changing a layer");
		memcpy(models[i] + off, buf, len);
	}
	check(head_close(head), "closing a head");
}

static void make_chain(void)
{
	for (int i = 0; i < NR_LAYERS; i++) {
		snprintf(names[i], sizeof names[i], "%d.%s", i, i ? "qcow2" : "raw");
		unlinkat(layers_fd, names[i], 0);
		if (!i) {
			FILE *f = fopen(path_of(names[0]), "w");
			for (unsigned k = 0; k < DISK_SIZE; k += 65536)
				memset(models[0] + k, random() % 3 ? (int)random() : 0, 65536);
			if (!f || fwrite(models[0], 1, DISK_SIZE, f) != DISK_SIZE || fclose(f))
				exit(2);
			continue;
		}
		struct overlay_spec spec = {DISK_SIZE, names[i - 1], i == 1 ? IMAGE_RAW : IMAGE_QCOW2};
		/* Small clusters and, made by QEMU, a header whose extensions need more than a sector. */
		snprintf(cmd, sizeof cmd, "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=16k -b %s -F %s %s", names[i - 1],
			 i == 1 ? "raw" : "qcow2", path_of(names[i]));
		if (random() % 2 ? system(cmd) != 0 : overlay_create(layers_fd, names[i], &spec, 0600))
			exit(2);
		memcpy(models[i], models[i - 1], DISK_SIZE);
		struct view *below = open_view(cache, i - 1);
		change(i, below);
		view_put(below);
	}
}

/* Layer I, by its name, through images that nobody has read before. */
static void check_layer(int i, bool by_qemu, size_t cut)
{
	static unsigned char seen[DISK_SIZE];
	struct image_cache *fresh = NULL;
	check(image_cache_new(trust, 0, &fresh), "a cache");
	struct view *view = open_view(fresh, i);
	if (view_read(view, seen, DISK_SIZE, 0) || memcmp(seen, models[i], DISK_SIZE) != 0)
		fail("something else is read after a cut at", cut);
	view_put(view);
	image_cache_free(fresh);
	if (!by_qemu)
		return;
	FILE *f = fopen(path_of("model"), "w");
	if (!f || fwrite(models[i], 1, DISK_SIZE, f) != DISK_SIZE || fclose(f))
		exit(2);
	char layer[260];
	snprintf(layer, sizeof layer, "%s", path_of(names[i]));
	snprintf(cmd, sizeof cmd, "qemu-img convert -O raw %s %s/out && cmp %s/out %s", layer, dir, dir, path_of("model"));
	if (system(cmd) != 0)
		fail("QEMU reads something else after a cut at", cut);
}

/* The layer that was written to can be opened by who merges again. */
static void check_reopen(int d, size_t cut)
{
	struct overlay_facts facts;
	if (overlay_settle(layers_fd, names[d], path_of(names[d]), &facts, NULL) || facts.virtual_size != DISK_SIZE)
		fail("it isn't repaired after a cut at", cut);
	snprintf(cmd, sizeof cmd, "qemu-img check -q %s >/dev/null; r=$?; test $r = 0 -o $r = 3", path_of(names[d]));
	if (system(cmd) != 0)
		fail("qemu-img check after a cut at", cut);
}

/* After a cut at each entry of the log, or so: D was written to, and TOP is to read as ever. */
static void check_cuts(int d, int top, int nr_cuts)
{
	size_t every = 1 + nr_ops / (unsigned)nr_cuts;
	for (size_t cut = 0; cut <= nr_ops; cut++) {
		bool header = cut && ops[cut - 1].kind == OP_WRITE && ops[cut - 1].off < 16384;
		for (int again = 0; again < (header ? 4 : cut % every == 0); again++) {
			bool by_qemu = random() % 8 == 0;
			rebuild(cut);
			check_layer(top, by_qemu, cut);
			if (header || by_qemu) {
				check_reopen(d, cut);
				check_layer(top, by_qemu, cut);
			}
		}
	}
}

/* A name as long as a header holds, now and then. */
static const char *backing_name(int i)
{
	static char name[1024];
	size_t len = (size_t)snprintf(name, sizeof name, "%s/", dir), end = random() % 2 ? 1000 : len;
	while (len < end)
		len += (size_t)snprintf(name + len, sizeof name - len, "./");
	snprintf(name + len, sizeof name - len, "%s", names[i]);
	return name;
}

static void test_pull(int nr_cuts)
{
	int d = NR_LAYERS - 1;
	struct head *head = NULL;
	struct view *below = open_view(cache, d - 1);
	snprintf(path, sizeof path, "%s", path_of(names[d]));
	save_start();
	logging = true;
	check(head_open(layers_fd, names[d], path, below, &head, NULL), "opening the head");
	for (int left = d - 1, nr; left >= 0; left -= nr) {
		nr = 1 + (int)random() % (left + 1);
		struct view *rest = open_view(cache, left - nr);
		check(head_pull(head, (size_t)nr, 0, DISK_SIZE, NULL), "a pull");
		check(head_rebase(head, rest, rest ? backing_name(left - nr) : NULL, left - nr ? IMAGE_QCOW2 : IMAGE_RAW), "a rebase");
		view_put(rest);
	}
	check(head_close(head), "closing the head");
	logging = false;
	check_cuts(d, d, nr_cuts);
	snprintf(cmd, sizeof cmd, "test $(qemu-img info --backing-chain %s | grep -c ^image:) = 1", path);
	rebuild(nr_ops);
	for (size_t i = 0; i < nr_ops; i++) /* all of it, that is */
		if (ops[i].kind == OP_SYNC && i + 1 == nr_ops && system(cmd) != 0)
			fail("QEMU still finds a backing file", 0);
	forget_ops();
	view_put(below);
}

static void test_absorb(int nr_cuts)
{
	int d = 1 + (int)random() % (NR_LAYERS - 2), top = d + 1 + (int)random() % (NR_LAYERS - d - 1);
	struct head *head = NULL;
	struct view *below = open_view(cache, d - 1), *above = open_view(cache, top);
	struct stat st;
	check(view_lock(above, NULL), "locking");
	snprintf(path, sizeof path, "%s", path_of(names[d]));
	check(stat(path, &st), "stat");
	check(image_cache_expect_changes(cache, st.st_dev, st.st_ino, true), "expecting changes");
	save_start();
	logging = true;
	check(head_open_frozen(layers_fd, names[d], path, below, &head, NULL), "opening the layer");
	check(head_absorb(head, above, (size_t)(top - d), 0, DISK_SIZE, NULL), "an absorption");
	check(head_close(head), "closing the layer");
	logging = false;
	check(image_cache_expect_changes(cache, st.st_dev, st.st_ino, false), "expecting no more changes");
	view_unlock(above);
	check_cuts(d, top, nr_cuts);
	/* Once it is done, it reads as what is above it. */
	memcpy(models[d], models[top], DISK_SIZE);
	rebuild(nr_ops);
	check_layer(d, true, nr_ops);
	forget_ops();
	view_put(below);
	view_put(above);
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	int nr_cuts = argc > 2 ? atoi(argv[2]) : 100;
	printf("seed %u\n", seed);
	srandom(seed);
	snprintf(dir, sizeof dir, "%s/block_mergecut.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(dir))
		return 2;
	layers_fd = open(dir, O_RDONLY | O_DIRECTORY);
	if (trust_new(&trust) || trust_add(trust, dir, NULL))
		return 2;
	for (int i = 0; i < 6; i++) {
		check(image_cache_new(trust, 0, &cache), "a cache");
		make_chain();
		(i % 2 ? test_absorb : test_pull)(nr_cuts);
		image_cache_free(cache);
	}
	trust_free(trust);
	close(layers_fd);
	snprintf(cmd, sizeof cmd, "rm -r %s", dir);
	return system(cmd) != 0;
}
