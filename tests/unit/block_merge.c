/* limit: 300
 * Chains of overlays that are merged every way there is, under guests that write and readers that look on; after each step each layer that is
 * left reads what it read, by us and by qemu-img. block_merge [SEED [CHAINS]] */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "block/merge.h"
#include "block/trust.h"
#include "block_test.h"

#define DISK_MAX   (3u << 20)
#define MAX_LAYERS 9
#define NR_WRITERS 3
#define NR_READERS 2
#define SECTOR	   512u

/* A layer and what is read at it. */
struct layer {
	char name[40];
	enum image_format format;
	bool writable; /* extended L2 entries: a head takes it */
	uint64_t size;
	unsigned char *model; /* DISK_MAX bytes, zeros behind the end */
};

static char top_dir[100], mounted[150];
static int dirfd;
static struct image_cache *cache;
static struct layer layers[MAX_LAYERS]; /* the base first */
static int nr_layers;
static unsigned nr_made;

static struct view *open_view(int i)
{
	struct view *view = NULL;
	struct reason why = {""};
	int err = i < 0 ? 0 : view_open(cache, &(struct disk_source){path_of(layers[i].name), layers[i].format, NULL}, &view, &why);
	if (err)
		printf("%s\n", why.text);
	CHECK(err);
	return view;
}

/* --- making a chain -------------------------------------------------------------------------------------------------- */

static void make_base(struct layer *l)
{
	snprintf(l->name, sizeof l->name, "%u.raw", nr_made++);
	l->format = IMAGE_RAW;
	FILE *f = fopen(path_of(l->name), "w");
	for (uint64_t i = 0; i < l->size; i += 4096)
		if (random() % 2)
			memset(l->model + i, (int)random(), l->size - i < 4096 ? l->size - i : 4096);
	CHECK(!f || fwrite(l->model, 1, l->size, f) != l->size || fclose(f) != 0);
}

/* Some writes and zeros through a head. */
static void change_by_head(struct layer *l, struct view *below)
{
	struct head *head = NULL;
	static unsigned char buf[300000];
	CHECK(head_open(dirfd, l->name, path_of(l->name), below, &head, NULL));
	for (uint64_t n = 1 + pick(12); n; n--) {
		uint64_t off = pick(l->size / 512) * 512, len = 512 + pick(random() % 3 ? 40 : 500) * 512;
		if (random() % 2)
			off &= ~4095ull;
		if (len > l->size - off)
			len = l->size - off;
		bool zero = random() % 4 == 0;
		memset(buf, zero ? 0 : (int)random(), len);
		CHECK(zero && random() % 2 ? head_discard(head, off, len) : head_write(head, buf, len, off));
		memcpy(l->model + off, buf, len);
	}
	CHECK(head_close(head));
}

static void change_by_qemu(struct layer *l)
{
	char script[300];
	snprintf(script, sizeof script, "%s/script", dir);
	FILE *f = fopen(script, "w");
	/* A compressed cluster must be the first that is written there. */
	for (uint64_t off = 0; !l->writable && off + 65536 <= l->size; off += 65536 * (1 + pick(20))) {
		int fill = (int)pick(256);
		fprintf(f, "write -c -P %d %llu 65536\n", fill, (unsigned long long)off);
		memset(l->model + off, fill, 65536);
	}
	for (uint64_t n = 1 + pick(8); n; n--) {
		uint64_t off = pick(l->size / 512) * 512, len = 512 + pick(random() % 3 ? 40 : 500) * 512;
		if (len > l->size - off)
			len = l->size - off;
		int fill = (int)pick(256);
		if (random() % 4 == 0) {
			fill = 0;
			fprintf(f, "write -z %s %llu %llu\n", random() % 2 ? "-u" : "", (unsigned long long)off, (unsigned long long)len);
		} else {
			fprintf(f, "write -P %d %llu %llu\n", fill, (unsigned long long)off, (unsigned long long)len);
		}
		memset(l->model + off, fill, len);
	}
	CHECK(fclose(f));
	CHECK(run("qemu-io -f qcow2 %s <%s >%s.out; ! grep -iq 'fail\\|error\\|unknown' %s.out", path_of(l->name), script, script, script));
}

static void make_overlay(struct layer *l, const struct layer *below)
{
	static const char *const plain[] = {"cluster_size=64k", "cluster_size=4k", "cluster_size=64k,compression_type=zstd"};
	static const char *const extended[] = {"cluster_size=16k", "cluster_size=32k", "cluster_size=128k", "cluster_size=64k"};
	snprintf(l->name, sizeof l->name, "%u.qcow2", nr_made++);
	l->format = IMAGE_QCOW2;
	l->writable = random() % 4 != 0;
	if (l->writable && random() % 2) {
		struct overlay_spec spec = {l->size, below ? below->name : NULL, below ? below->format : IMAGE_RAW};
		CHECK(overlay_create(dirfd, l->name, &spec, 0600));
		return;
	}
	char backing[1200] = "";
	if (below)
		snprintf(backing, sizeof backing, "-b %s -F %s", below->name, image_format_name(below->format));
	CHECK(run("qemu-img create -q -f qcow2 -o %s%s %s %s %llu", l->writable ? "extended_l2=on," : "",
	    l->writable ? extended[pick(4)] : plain[pick(3)], backing, path_of(l->name), (unsigned long long)l->size));
}

static void make_layer(bool may_resize, bool writable)
{
	struct layer *l = &layers[nr_layers];
	const struct layer *below = nr_layers ? l - 1 : NULL;
	*l = (struct layer){.model = calloc(1, DISK_MAX)};
	l->size = below && (!may_resize || random() % 2) ? below->size : (32 + pick(DISK_MAX / 512 - 32)) * 512;
	if (!below && random() % 3) {
		make_base(l);
	} else {
		if (below)
			memcpy(l->model, below->model, l->size);
		do {
			make_overlay(l, below);
		} while (writable && !l->writable && unlinkat(dirfd, l->name, 0) == 0);
		struct view *view = open_view(nr_layers - 1);
		if (l->writable && random() % 3)
			change_by_head(l, view);
		else if (random() % 8)
			change_by_qemu(l);
		view_put(view);
	}
	nr_layers++;
}

/* --- comparing --------------------------------------------------------------------------------------------------------- */

static void compare_bytes(const unsigned char *seen, const unsigned char *model, uint64_t len, const char *what)
{
	for (uint64_t i = 0; i < len; i++)
		if (seen[i] != model[i]) {
			printf("%s: byte %llu is %02x, not %02x (left in %s)\n", what, (unsigned long long)i, seen[i], model[i], dir);
			exit(1);
		}
}

static void compare_view(struct view *view, const struct layer *l, const char *what)
{
	static _Thread_local unsigned char seen[DISK_MAX];
	CHECK(view_virtual_size(view) != l->size);
	CHECK(view_read(view, seen, l->size, 0));
	compare_bytes(seen, l->model, l->size, what);
}

static void compare_all(const char *when)
{
	for (int i = 0; i < nr_layers; i++) {
		struct view *view = open_view(i);
		char what[200];
		snprintf(what, sizeof what, "%s, layer %d of %d (%.80s)", when, i, nr_layers, layers[i].name);
		CHECK((int)view_depth(view) != i + 1);
		compare_view(view, &layers[i], what);
		view_put(view);
		if (layers[i].format == IMAGE_QCOW2)
			CHECK(run("qemu-img check -q %s", path_of(layers[i].name)));
		if (i == nr_layers - 1 || random() % 3 == 0) {
			char model[300];
			snprintf(model, sizeof model, "%s/model", dir);
			FILE *f = fopen(model, "w");
			CHECK(!f || fwrite(layers[i].model, 1, layers[i].size, f) != layers[i].size || fclose(f));
			CHECK(run("qemu-img convert -O raw -f %s %s %s.raw && cmp %s %s.raw", image_format_name(layers[i].format),
			    path_of(layers[i].name), model, model, model));
		}
	}
	CHECK(run("test $(qemu-img info -f %s --backing-chain %s | grep -c ^image:) = %d", image_format_name(layers[nr_layers - 1].format),
	    path_of(layers[nr_layers - 1].name), nr_layers));
}

/* --- who looks on ---------------------------------------------------------------------------------------------------------- */

struct reader {
	pthread_t thread;
	struct view *view;
	const struct layer *layer;
	unsigned random;
};
static struct reader readers[NR_READERS];
static atomic_bool stop, renamed;

/* Reads through a view that it has, or one that it opens now and then. */
static void *look_on(void *arg)
{
	struct reader *r = arg;
	unsigned char buf[20000];
	while (!atomic_load(&stop)) {
		uint64_t off = (uint64_t)rand_r(&r->random) % r->layer->size, len = 1 + (uint64_t)rand_r(&r->random) % sizeof buf;
		if (len > r->layer->size - off)
			len = r->layer->size - off;
		CHECK(view_read(r->view, buf, len, off));
		compare_bytes(buf, r->layer->model + off, len, "a reader");
		if (rand_r(&r->random) % 4 == 0 && !atomic_load(&renamed))
			for (unsigned i = 0; i < view_depth(r->view); i++)
				CHECK(!image_is_current(view_layer(r->view, i)) && !atomic_load(&renamed));
	}
	return NULL;
}

/* Among the layers [FROM, END). */
static void start_readers(int from, int end)
{
	atomic_store(&stop, false);
	atomic_store(&renamed, false);
	for (int i = 0; i < NR_READERS; i++) {
		int layer = from + (int)pick((uint64_t)(end - from));
		readers[i] = (struct reader){.layer = &layers[layer], .view = open_view(layer), .random = (unsigned)random()};
		CHECK(view_lock(readers[i].view, NULL));
		pthread_create(&readers[i].thread, NULL, look_on, &readers[i]);
	}
}

static void stop_readers(void)
{
	atomic_store(&stop, true);
	for (int i = 0; i < NR_READERS; i++) {
		pthread_join(readers[i].thread, NULL);
		compare_view(readers[i].view, readers[i].layer, "a view from before");
		view_unlock(readers[i].view);
		view_put(readers[i].view);
	}
}

/* --- who writes --------------------------------------------------------------------------------------------------------------- */

struct writer {
	pthread_t thread;
	struct head *head;
	struct layer *layer;
	const struct layer *below;
	const struct view *beneath;
	unsigned index, random;
};
static struct writer writers[NR_WRITERS];

/* The sectors whose number is the writer's index modulo NR_WRITERS are its own. */
static void *write_on(void *arg)
{
	struct writer *w = arg;
	unsigned char buf[SECTOR];
	uint64_t nr_sectors = w->layer->size / SECTOR / NR_WRITERS;
	int err = 0;
	while (!atomic_load(&stop)) {
		uint64_t off = ((uint64_t)rand_r(&w->random) % nr_sectors * NR_WRITERS + w->index) * SECTOR;
		unsigned char *model = w->layer->model + off;
		switch (rand_r(&w->random) % 12) {
		case 0: CHECK(head_flush(w->head)); break;
		case 1:
			CHECK(head_discard(w->head, off, SECTOR));
			memset(model, 0, SECTOR);
			break;
		case 2:
		case 3:
		case 4:
			CHECK(head_read(w->head, buf, SECTOR, off));
			compare_bytes(buf, model, SECTOR, "a writer");
			break;
		case 5: /* shares what lies beneath */
			err = head_share(w->head, w->beneath, off, SECTOR);
			CHECK(err && err != -ESTALE);
			if (!err)
				memcpy(model, w->below->model + off, SECTOR);
			break;
		default:
			memset(model, rand_r(&w->random), SECTOR);
			CHECK(head_write(w->head, model, SECTOR, off));
		}
	}
	return NULL;
}

static void start_writers(struct head *head, struct layer *layer, const struct view *beneath)
{
	for (unsigned i = 0; i < NR_WRITERS; i++) {
		writers[i] = (struct writer){.head = head, .layer = layer, .below = layer - 1, .beneath = beneath, .index = i, .random = (unsigned)random()};
		pthread_create(&writers[i].thread, NULL, write_on, &writers[i]);
	}
}

static void stop_writers(void)
{
	atomic_store(&stop, true);
	for (int i = 0; i < NR_WRITERS; i++)
		pthread_join(writers[i].thread, NULL);
}

/* Instead of writers: the disk's end moves, and what it passes is zeros, whatever lies beneath. */
static void resize(struct head *head, struct layer *l)
{
	uint64_t size = random() % 8 == 0 ? 0 : (1 + pick(DISK_MAX / 512)) * 512;
	CHECK(head_resize(head, size));
	if (size < l->size)
		memset(l->model + size, 0, l->size - size);
	l->size = size;
}

/* --- the merges ------------------------------------------------------------------------------------------------------------------ */

/* Layers [FIRST, END) are gone; who looked at one of them keeps it. */
static void drop_layers(int first, int end)
{
	for (int i = first; i < end; i++)
		CHECK(unlinkat(dirfd, layers[i].name, 0));
	struct layer gone[MAX_LAYERS];
	memcpy(gone, &layers[first], (size_t)(end - first) * sizeof *layers);
	memmove(&layers[first], &layers[end], (size_t)(nr_layers - end) * sizeof *layers);
	nr_layers -= end - first;
	for (int i = 0; i < end - first; i++)
		free(gone[i].model);
}

/* Everything is pulled, in pieces, some of them more than once. -ESTALE: a truncation to nothing came in between. */
static int pull_all(struct head *head, int nr_pulled, bool resizing, struct layer *l)
{
	uint64_t stored = 0, step = 1 + pick(random() % 2 ? 200000 : DISK_MAX);
	CHECK(head_pull(head, (size_t)nr_pulled, 0, 0, NULL));
	for (uint64_t off = 0; off < DISK_MAX; off += step) {
		int err = head_pull(head, (size_t)nr_pulled, off, step, &stored);
		if (!err && random() % 4 == 0)
			err = head_pull(head, (size_t)nr_pulled, pick(DISK_MAX), pick(DISK_MAX), NULL);
		if (err == -ESTALE)
			return err;
		CHECK(err);
		if (resizing && random() % 2)
			resize(head, l);
	}
	return 0;
}

/* A name that QEMU reads too, as long as it goes. */
static const char *backing_name(int i)
{
	static char name[1200];
	if (i < 0)
		return NULL;
	if (random() % 2)
		return layers[i].name;
	char resolved[300];
	CHECK(!realpath(dir, resolved));
	size_t len = (size_t)snprintf(name, sizeof name, "%s/", resolved), end = 1 + (size_t)pick(1000 - strlen(layers[i].name));
	while (len < end)
		len += (size_t)snprintf(name + len, sizeof name - len, "./");
	snprintf(name + len, sizeof name - len, "%s", layers[i].name);
	return name;
}

/* Layer D gets what the NR below it have. It is live if it's the last. */
static void pull(int d, int nr)
{
	bool live = d == nr_layers - 1 && random() % 4, resizing = live && random() % 3 == 0;
	struct layer *l = &layers[d];
	struct stat st;
	struct head *head = NULL;
	CHECK(fstatat(dirfd, l->name, &st, 0));
	struct view *below = open_view(d - 1), *rest = open_view(d - 1 - nr);
	start_readers(0, live ? d : nr_layers);
	if (!live)
		CHECK(image_cache_expect_changes(cache, st.st_dev, st.st_ino, true));
	CHECK((live ? head_open : head_open_frozen)(dirfd, l->name, path_of(l->name), below, &head, NULL));
	if (live && !resizing)
		start_writers(head, l, below);
	int err = pull_all(head, nr, resizing, l);
	if (err) { /* nothing lies beneath any longer: no rebase, and the layers are let go all the same */
		CHECK(head_rebase(head, rest, backing_name(d - 1 - nr), rest ? layers[d - 1 - nr].format : IMAGE_RAW) != -ESTALE);
	} else {
		err = head_rebase(head, rest, backing_name(d - 1 - nr), rest ? layers[d - 1 - nr].format : IMAGE_RAW);
		CHECK(err != 0 && err != -ESTALE);
	}
	if (live && !resizing)
		stop_writers();
	for (int i = 0; resizing && i < 4; i++)
		resize(head, l);
	struct view *held = head_below(head);
	bool has_below = held != NULL;
	view_put(held);
	CHECK(head_close(head));
	stop_readers();
	if (!live)
		CHECK(image_cache_expect_changes(cache, st.st_dev, st.st_ino, false));
	view_put(below);
	view_put(rest);
	drop_layers(resizing && !has_below ? 0 : d - nr, d);
}

/* Layer D takes what the NR above it have, and the name of the last of them. */
static void push(int d, int nr)
{
	int c = d + nr;
	struct layer *into = &layers[d];
	struct stat st;
	struct head *head = NULL;
	CHECK(fstatat(dirfd, into->name, &st, 0));
	struct view *below = open_view(d - 1), *above = open_view(c);
	start_readers(c, nr_layers);
	CHECK(image_cache_expect_changes(cache, st.st_dev, st.st_ino, true));
	CHECK(head_open_frozen(dirfd, into->name, path_of(into->name), below, &head, NULL));
	/* Our own views come before and after; other programs don't come. */
	CHECK(view_lock(above, NULL));
	CHECK(head_claim(head, cache, NULL));
	struct view *late = open_view(c);
	CHECK(view_lock(late, NULL));
	if (random() % 8 == 0)
		CHECK(run("qemu-io -r -f qcow2 -c quit %s 2>&1 | grep -q lock", path_of(into->name)));
	uint64_t step = 1 + pick(random() % 2 ? 200000 : DISK_MAX);
	for (uint64_t off = 0; off < into->size; off += step)
		CHECK(head_absorb(head, above, (size_t)nr, off, step, NULL));
	CHECK(head_close(head));
	atomic_store(&renamed, true);
	CHECK(renameat(dirfd, into->name, dirfd, layers[c].name));
	/* Those who have the old chain open don't mind that a layer of it has no name any longer, but it's no longer current. */
	stop_readers();
	CHECK(image_cache_expect_changes(cache, st.st_dev, st.st_ino, false));
	view_unlock(above);
	view_unlock(late);
	view_put(late);
	view_put(below);
	view_put(above);
	into = &layers[d];
	memcpy(into->model, layers[c].model, DISK_MAX);
	char name[sizeof into->name];
	memcpy(name, layers[c].name, sizeof name);
	memcpy(layers[c].name, "gone", 5);
	CHECK(close(openat(dirfd, "gone", O_CREAT | O_WRONLY, 0600)));
	memcpy(into->name, name, sizeof name);
	drop_layers(d + 1, c + 1);
}

/* A flat copy takes the place of all that lies beneath the last layer, while that is written to. */
static void exchange(int d)
{
	struct layer *l = &layers[d], *beneath = &layers[d - 1];
	struct layer flat = {.format = IMAGE_RAW, .size = beneath->size, .model = malloc(DISK_MAX)};
	struct head *head = NULL;
	struct view *below = open_view(d - 1), *view = NULL;
	snprintf(flat.name, sizeof flat.name, "%u.raw", nr_made++);
	memcpy(flat.model, beneath->model, DISK_MAX);
	FILE *f = fopen(path_of(flat.name), "w");
	CHECK(!f || fwrite(flat.model, 1, flat.size, f) != flat.size || fclose(f) != 0);
	start_readers(0, d);
	CHECK(head_open(dirfd, l->name, path_of(l->name), below, &head, NULL));
	start_writers(head, l, below);
	if (random() % 2) /* of a pull that is given up */
		CHECK(head_pull(head, 1 + pick((uint64_t)d), 0, pick(DISK_MAX), NULL));
	CHECK(view_open(cache, &(struct disk_source){path_of(flat.name), IMAGE_RAW, NULL}, &view, NULL));
	CHECK(head_exchange_base(head, below, view, flat.name, IMAGE_RAW));
	CHECK(head_exchange_base(head, below, view, flat.name, IMAGE_RAW) != -ESTALE);
	CHECK(head_rebase(head, NULL, NULL, IMAGE_RAW) != -ESTALE);
	stop_writers();
	CHECK(head_close(head));
	stop_readers();
	view_put(below);
	view_put(view);
	CHECK(unlinkat(dirfd, beneath->name, 0));
	free(beneath->model);
	*beneath = flat;
	drop_layers(0, d - 1);
}

static bool same_sizes(int first, int last)
{
	for (int i = first; i < last; i++)
		if (layers[i].size != layers[last].size)
			return false;
	return true;
}

static void merge_something(void)
{
	char when[100];
	for (int tries = 0; tries < 50; tries++) {
		int d = (int)pick((uint64_t)nr_layers), nr = 1 + (int)pick(3);
		if (!layers[d].writable)
			continue;
		if (d && d == nr_layers - 1 && random() % 4 == 0) {
			snprintf(when, sizeof when, "after a flat copy took the place of %d", d);
			exchange(d);
		} else if (random() % 2 && d + nr < nr_layers && same_sizes(d, d + nr)) {
			snprintf(when, sizeof when, "after a push of %d into %d", nr, d);
			push(d, nr);
		} else if (d >= nr) {
			snprintf(when, sizeof when, "after a pull of %d into %d", nr, d);
			pull(d, nr);
		} else {
			continue;
		}
		compare_all(when);
		return;
	}
}

static void do_chain(void)
{
	bool may_resize = random() % 2;
	for (int nr = 3 + (int)pick(MAX_LAYERS - 3); nr_layers < nr;)
		make_layer(may_resize, nr_layers == nr - 1);
	compare_all("made");
	for (int i = 0; i < 4 && nr_layers > 1; i++) {
		merge_something();
		if (layers[nr_layers - 1].size < 32 * 512)
			break;
		if (nr_layers < MAX_LAYERS && random() % 2)
			make_layer(may_resize, random() % 2);
	}
	drop_layers(0, nr_layers);
}

/* As root, where there are loop devices. */
static bool mount_xfs(void)
{
	char point[150], cmd[1500];
	snprintf(point, sizeof point, "%s/xfs", top_dir);
	snprintf(cmd, sizeof cmd, "truncate -s 400M %s.img && mkfs.xfs -q -m reflink=1 %s.img && mkdir %s && mount -o loop %s.img %s", point, point, point, point, point);
	if (geteuid() != 0 || system(cmd) != 0)
		return false;
	snprintf(mounted, sizeof mounted, "%s", point);
	snprintf(dir, sizeof dir, "%s", point);
	return true;
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	int nr_chains = argc > 2 ? atoi(argv[2]) : 12;
	printf("seed %u\n", seed);
	srandom(seed);
	snprintf(top_dir, sizeof top_dir, "%s/block_merge.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(top_dir))
		return 2;
	snprintf(dir, sizeof dir, "%s", top_dir);
	dirfd = open(dir, O_RDONLY | O_DIRECTORY);
	struct trust *trust = NULL;
	CHECK(trust_new(&trust));
	CHECK(trust_add(trust, dir, NULL));
	CHECK(image_cache_new(trust, 0, &cache));
	for (int i = 0; i < nr_chains; i++) {
		/* The second half where extents are shared. */
		if (i == nr_chains / 2 && mount_xfs()) {
			close(dirfd);
			dirfd = open(dir, O_RDONLY | O_DIRECTORY);
		}
		do_chain();
	}
	image_cache_free(cache);
	trust_free(trust);
	close(dirfd);
	if (*mounted)
		CHECK(run("umount %s", mounted));
	CHECK(run("rm -r %s", top_dir));
	puts("ok");
	return 0;
}
