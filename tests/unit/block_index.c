/* The collapsed index over random chains, against asking the layers one by one: all kinds of entries, damaged ones
 * among them, layers of different geometry and size, a limit so small that spans come and go, threads. Meant for
 * ThreadSanitizer as well. block_index [SEED [CHAINS]] */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "block/image_priv.h"
#include "block/qcow2_format.h"
#include "check.h"

#define NR_LAYERS_MAX 12u
#define NR_THREADS    4u
#define TINY          (64u << 10)

static char dir[200];
static struct trust *trust;

static uint64_t pick(uint64_t below)
{
	return below ? ((uint64_t)random() << 31 ^ (uint64_t)random()) % below : 0;
}

static bool chance(unsigned percent)
{
	return pick(100) < percent;
}

/* --- layers: tables alone, nothing where they point ---------------------------------------------------------------- */

static uint64_t random_entry(const struct qcow2_geometry *geo)
{
	uint64_t host = pick(1 << 20) << geo->cluster_bits;
	switch (pick(20)) {
	case 0:
	case 1: return QCOW2_ZERO;
	case 2: return QCOW2_ZERO | host;
	case 3: return geo->cluster_bits > 9 ? host | 512 : 0; /* damaged */
	case 4:
	case 5:
		return QCOW2_COMPRESSED | pick(1ull << 40) |
		       pick(1ull << (geo->cluster_bits - 8)) << (62 - (geo->cluster_bits - 8));
	case 6:
	case 7:
	case 8: return QCOW2_COPIED | host;
	default: return 0;
	}
}

static uint64_t random_bitmap(void)
{
	uint64_t allocated = chance(50) ? QCOW2_ALL_SUBCLUSTERS : pick(1ull << 32);
	uint64_t zero = chance(90) ? pick(1ull << 32) & ~allocated : pick(1ull << 32);
	return zero << 32 | (allocated & QCOW2_ALL_SUBCLUSTERS);
}

static void fill_table(const struct qcow2_geometry *geo, be64 *words)
{
	unsigned nr_words = geo->extended_l2 ? 2 : 1;
	uint64_t cluster = 1ull << geo->cluster_bits, nr = 1ull << geo->l2_bits;
	for (uint64_t i = 0; i < nr;) {
		uint64_t entry = random_entry(geo);
		uint64_t run = chance(50) ? 1 : 1 + pick(60);
		for (; run && i < nr; run--, i++) {
			words[i * nr_words] = be64_make(entry);
			if (geo->extended_l2 && !(entry & QCOW2_COMPRESSED) && entry > 1)
				words[i * nr_words + 1] = be64_make(chance(80) ? random_bitmap() : 0);
			else if (geo->extended_l2)
				words[i * nr_words + 1] = be64_make(chance(10) ? random_bitmap() : 0);
			if (entry > QCOW2_ZERO && !(entry & QCOW2_COMPRESSED))
				entry += cluster;
		}
	}
}

static void make_qcow2(const char *path, const struct qcow2_header *header)
{
	const struct qcow2_geometry *geo = &header->geo;
	size_t cluster = (size_t)1 << geo->cluster_bits;
	size_t l1_clusters = (header->l1_size * 8 + cluster - 1) / cluster;
	uint64_t next = header->l1_offset / cluster + l1_clusters;
	char *head = calloc(1, cluster);
	be64 *l1 = calloc(l1_clusters, cluster), *table = calloc(1, cluster);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && head && l1 && table && qcow2_header_render(header, head, cluster) == 0);
	CHECK(file_write(fd, head, cluster, 0) == 0);
	for (uint32_t i = 0; i < header->l1_size; i++) {
		if (chance(40))
			continue;
		l1[i] = be64_make(QCOW2_COPIED | next * cluster);
		if (chance(3) && geo->cluster_bits > 9)
			l1[i] = be64_make(next * cluster + 512); /* damaged */
		memset(table, 0, cluster);
		fill_table(geo, table);
		CHECK(file_write(fd, table, cluster, next++ * cluster) == 0);
	}
	CHECK(file_write(fd, l1, l1_clusters * cluster, header->l1_offset) == 0);
	close(fd);
	free(head);
	free(l1);
	free(table);
}

static void make_layer(unsigned chain, unsigned layer, bool last, uint64_t base_size)
{
	char path[300], below[300];
	snprintf(path, sizeof path, "%s/%u-%u", dir, chain, layer);
	snprintf(below, sizeof below, "%s/%u-%u", dir, chain, layer + 1);
	uint64_t size = chance(70) ? base_size : 512 + pick(base_size / 256) * 512;
	if (last && chance(30)) {
		int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0 && pwrite(fd, "data", 4, (off_t)(size / 2)) == 4);
		close(fd);
		return;
	}
	struct qcow2_header header = {.version = 3, .virtual_size = size, .refcount_order = 4, .reftable_clusters = 1};
	struct qcow2_geometry *geo = &header.geo;
	geo->cluster_bits = 9 + (unsigned)pick(9);
	geo->extended_l2 = geo->cluster_bits >= 14 && chance(40);
	geo->subcluster_bits = geo->cluster_bits - (geo->extended_l2 ? 5 : 0);
	geo->l2_bits = geo->cluster_bits - (geo->extended_l2 ? 4 : 3);
	header.incompatible = geo->extended_l2 ? QCOW2_INCOMPAT_EXTENDED_L2 : 0;
	header.l1_size = (uint32_t)qcow2_l1_needed(geo, size);
	header.reftable_offset = 1ull << geo->cluster_bits;
	header.l1_offset = 2ull << geo->cluster_bits;
	if (!last) {
		char magic[4] = "";
		int fd = open(below, O_RDONLY | O_CLOEXEC);
		CHECK(fd >= 0 && read(fd, magic, 4) == 4);
		close(fd);
		header.backing_name = below;
		header.backing_format = memcmp(magic, "QFI\xfb", 4) ? "raw" : "qcow2";
	}
	make_qcow2(path, &header);
}

/* The layers from FROM on. */
static struct view *open_chain(struct image_cache *cache, unsigned chain, unsigned from)
{
	char path[300], magic[4] = "";
	struct view *view = NULL;
	struct reason why = {""};
	snprintf(path, sizeof path, "%s/%u-%u", dir, chain, from);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && read(fd, magic, 4) == 4);
	close(fd);
	int err =
	    view_open(cache, &(struct disk_source){path, memcmp(magic, "QFI\xfb", 4) ? IMAGE_RAW : IMAGE_QCOW2, NULL},
	              &view, &why);
	if (err)
		printf("%s\n", why.text);
	CHECK(!err);
	return view;
}

/* --- the oracle */

static int ask_layers(const struct view *view, uint64_t off, uint64_t len, struct extent *ret)
{
	for (size_t i = 0; i < view_depth(view); i++) {
		struct image *image = view_layer(view, i);
		struct layer layer = {.image = image,
		                      .l1_offset = image->header.l1_offset,
		                      .l1_size = image->header.l1_size,
		                      .virtual_size = image->virtual_size};
		if (off >= layer.virtual_size)
			break;
		int err =
		    layer_map(&layer, off, len < layer.virtual_size - off ? len : layer.virtual_size - off, true, ret);
		if (err || ret->kind != EXTENT_UNALLOCATED)
			return err;
		len = ret->len;
	}
	*ret = (struct extent){.guest_off = off, .len = len, .kind = EXTENT_ZERO};
	return 0;
}

static void check_place(const struct extent *e, const struct extent *want)
{
	CHECK(e->kind == want->kind && e->image == want->image && want->guest_off >= e->guest_off);
	uint64_t in = want->guest_off - e->guest_off;
	if (e->kind == EXTENT_DATA)
		CHECK(e->host_off + in == want->host_off);
	if (e->kind == EXTENT_COMPRESSED)
		CHECK(e->host_off == want->host_off && e->host_len == want->host_len &&
		      e->cluster_off + in == want->cluster_off);
}

/* One step at OFF; how far it came. */
static uint64_t check_at(struct view *view, uint64_t off, uint64_t len)
{
	struct extent e, want;
	int err = view_map(view, off, len, &e), want_err = ask_layers(view, off, len, &want);
	CHECK(err == want_err);
	if (err)
		return 512;
	CHECK(e.guest_off == off && e.len && e.len <= len);
	for (uint64_t done = 0; done < e.len; done += want.len) {
		CHECK(ask_layers(view, off + done, e.len - done, &want) == 0);
		check_place(&e, &want);
	}
	return e.len;
}

static void check_all(struct view *view)
{
	uint64_t end = view_virtual_size(view) + 3 * 512;
	for (uint64_t off = 0; off < end;)
		off += check_at(view, off, end - off);
	for (unsigned i = 0; i < 300; i++) {
		uint64_t off = pick(end);
		check_at(view, off, 1 + pick(chance(50) ? end - off : 70000));
	}
}

/* --- threads */

struct worker {
	pthread_t thread;
	struct view **views;
	unsigned nr_views, seed;
};

static void *check_randomly(void *arg)
{
	struct worker *w = arg;
	for (unsigned i = 0; i < 400; i++) {
		struct view *view = w->views[(unsigned)rand_r(&w->seed) % w->nr_views];
		uint64_t off = (uint64_t)rand_r(&w->seed) % view_virtual_size(view);
		check_at(view, off, 1 + (uint64_t)rand_r(&w->seed) % 300000);
	}
	return NULL;
}

static void check_threads(struct view **views, unsigned nr_views)
{
	struct worker workers[NR_THREADS];
	for (unsigned i = 0; i < NR_THREADS; i++) {
		workers[i] = (struct worker){.views = views, .nr_views = nr_views, .seed = (unsigned)random()};
		CHECK(pthread_create(&workers[i].thread, NULL, check_randomly, &workers[i]) == 0);
	}
	for (unsigned i = 0; i < NR_THREADS; i++)
		pthread_join(workers[i].thread, NULL);
}

/* --- what it must do */

static struct index_stats stats_of(struct image_cache *cache)
{
	struct index_stats stats;
	index_get_stats(image_cache_index(cache), &stats);
	return stats;
}

static void check_chain(unsigned chain, unsigned nr_layers, size_t index_bytes)
{
	struct image_cache *cache;
	struct view *views[NR_LAYERS_MAX];
	CHECK(image_cache_new(trust, index_bytes, &cache) == 0);
	for (unsigned i = 0; i < nr_layers; i++)
		views[i] = open_chain(cache, chain, i);
	if (chance(50))
		check_threads(views, nr_layers);
	for (unsigned i = 0; i < nr_layers; i++)
		check_all(views[i]);
	check_threads(views, nr_layers);
	for (unsigned i = 0; i < nr_layers; i++)
		view_put(views[i]);
	if (index_bytes)
		CHECK(stats_of(cache).bytes <= index_bytes);
	image_cache_free(cache);
}

/* Equal chains build nothing twice, also when the first was closed; and over a chain that is known a further layer is
 * all that is asked. */
static void check_sharing(unsigned chain)
{
	struct image_cache *cache;
	CHECK(image_cache_new(trust, 0, &cache) == 0);
	struct view *below = open_chain(cache, chain, 1);
	check_all(below);
	struct index_stats first = stats_of(cache);
	CHECK(first.nr_built > 0);
	struct view *again = open_chain(cache, chain, 1);
	check_all(again);
	view_put(again);
	view_put(below);
	again = open_chain(cache, chain, 1);
	check_all(again);
	struct index_stats second = stats_of(cache);
	CHECK(second.nr_built == first.nr_built && second.nr_hits > first.nr_hits && second.nr_spans == first.nr_built);
	view_put(again);
	struct view *top = open_chain(cache, chain, 0);
	struct extent e;
	for (uint64_t off = 0; off < 1 << 20; off += 4096)
		view_map(top, off, 4096, &e);
	struct index_stats third = stats_of(cache);
	CHECK(third.nr_built > second.nr_built);
	CHECK(third.nr_asked - second.nr_asked <= third.nr_built - second.nr_built);
	view_put(top);
	image_cache_free(cache);
}

/* Three layers over the whole of 1 MiB, in any geometry: nothing is damaged, and the disks are equally long. */
static void make_plain_chain(unsigned chain)
{
	for (unsigned layer = 3; layer-- > 0;) {
		char path[300], below[300];
		snprintf(path, sizeof path, "%s/%u-%u", dir, chain, layer);
		snprintf(below, sizeof below, "%s/%u-%u", dir, chain, layer + 1);
		struct qcow2_header header = {
			.version = 3, .virtual_size = 1 << 20, .refcount_order = 4, .reftable_clusters = 1};
		header.geo = (struct qcow2_geometry){.cluster_bits = 9, .l2_bits = 6, .subcluster_bits = 9};
		header.l1_size = (uint32_t)qcow2_l1_needed(&header.geo, header.virtual_size);
		header.reftable_offset = 512;
		header.l1_offset = 1024;
		if (layer < 2) {
			header.backing_name = below;
			header.backing_format = "qcow2";
		}
		make_qcow2(path, &header);
	}
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1         ? (unsigned)atoi(argv[1])
	                : getenv("SEED") ? (unsigned)atoi(getenv("SEED"))
	                                 : (unsigned)time(NULL);
	unsigned nr_chains = argc > 2 ? (unsigned)atoi(argv[2]) : 12;
	printf("seed %u\n", seed);
	srandom(seed);
	snprintf(dir, sizeof dir, "%s/block_index.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	CHECK(mkdtemp(dir));
	CHECK(trust_new(&trust) == 0 && trust_add(trust, dir, NULL) == 0);
	for (unsigned chain = 0; chain < nr_chains; chain++) {
		unsigned nr_layers = 1 + (unsigned)pick(NR_LAYERS_MAX);
		uint64_t base_size = (1 + pick(40)) * (256 << 10);
		for (unsigned i = nr_layers; i-- > 0;)
			make_layer(chain, i, i == nr_layers - 1, base_size);
		check_chain(chain, nr_layers, 0);
		check_chain(chain, nr_layers, TINY);
	}
	make_plain_chain(nr_chains);
	check_sharing(nr_chains);
	trust_free(trust);
	char cmd[300];
	snprintf(cmd, sizeof cmd, "rm -r %s", dir);
	CHECK(system(cmd) == 0);
	puts("ok");
	return 0;
}
