/* How fast the library alone reads a chain, without a mount: makes one whose clusters lie each in a random layer, and
 * times reads.
 *
 *   viewbench DIR MIB DEPTH [THREADS [SECONDS]]
 *   viewbench DIR FILE                               an image that is there, from end to end
 *
 * The chain (64 KiB clusters, no refcounts: nothing for qemu-img check) is made in DIR unless it is there. A line for
 * each: opening, the first pass from end to end on a fresh library, a second one, and random 4 KiB reads. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "block/qcow2_header.h"
#include "block/view.h"

#define CLUSTER_BITS 16u
#define CLUSTER      (1u << CLUSTER_BITS)
#define L2_ENTRIES   (CLUSTER / 8)
#define REQUEST      (128u << 10) /* what the kernel's readahead sends */

static uint64_t nr_clusters, depth;
static double seconds_to_run = 2;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 31) * 0x9e3779b97f4a7c15ull;
	return x ^ x >> 29;
}

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static void make_layer(const char *dir, uint64_t layer)
{
	static char head[CLUSTER], data[CLUSTER];
	static be64 l1[L2_ENTRIES], l2[L2_ENTRIES];
	char path[500], below[100], format[] = "qcow2";
	snprintf(path, sizeof path, "%s/%u-%u-%u.qcow2", dir, (unsigned)nr_clusters, (unsigned)depth, (unsigned)layer);
	if (access(path, F_OK) == 0)
		return;
	snprintf(below, sizeof below, "%u-%u-%u.qcow2", (unsigned)nr_clusters, (unsigned)depth, (unsigned)layer + 1);
	uint64_t nr_l2 = (nr_clusters + L2_ENTRIES - 1) / L2_ENTRIES, next = 2 + nr_l2;
	struct qcow2_header header = {
	    .version = 3,
	    .virtual_size = nr_clusters << CLUSTER_BITS,
	    .l1_offset = CLUSTER,
	    .l1_size = (uint32_t)nr_l2,
	    .refcount_order = 4,
	    .geo = {.cluster_bits = CLUSTER_BITS, .l2_bits = CLUSTER_BITS - 3, .subcluster_bits = CLUSTER_BITS}};
	header.reftable_offset = CLUSTER;
	header.reftable_clusters = 1;
	if (layer + 1 < depth) {
		header.backing_name = below;
		header.backing_format = format;
	}
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	memset(head, 0, sizeof head);
	memset(l1, 0, sizeof l1);
	if (fd < 0 || qcow2_header_render(&header, head, sizeof head))
		die(path);
	file_write(fd, head, sizeof head, 0);
	for (uint64_t t = 0; t < nr_l2; t++) {
		bool any = false;
		memset(l2, 0, sizeof l2);
		for (uint64_t i = 0; i < L2_ENTRIES && t * L2_ENTRIES + i < nr_clusters; i++) {
			uint64_t c = t * L2_ENTRIES + i;
			if (mix(c) % depth != layer)
				continue;
			memset(data, (int)(mix(c) >> 8), sizeof data);
			memcpy(data, &c, sizeof c);
			l2[i] = be64_make(next << CLUSTER_BITS | 1ull << 63);
			if (file_write(fd, data, sizeof data, next++ << CLUSTER_BITS))
				die(path);
			any = true;
		}
		l1[t] = be64_make(any ? (2 + t) << CLUSTER_BITS | 1ull << 63 : 0);
		if (any)
			file_write(fd, l2, sizeof l2, (2 + t) << CLUSTER_BITS);
	}
	file_write(fd, l1, sizeof l1, CLUSTER);
	close(fd);
}

static double pass(struct view *view)
{
	static char buf[REQUEST];
	double start = now();
	for (uint64_t off = 0; off < view_virtual_size(view); off += sizeof buf) {
		uint64_t c = off >> CLUSTER_BITS;
		if (view_read(view, buf, sizeof buf, off) || (depth && memcmp(buf, &c, sizeof c)))
			die("read");
	}
	return (double)view_virtual_size(view) / (1 << 30) / (now() - start);
}

struct worker {
	pthread_t thread;
	struct view *view;
	unsigned seed;
	uint64_t nr;
};
static atomic_bool stop;

static void *read_randomly(void *arg)
{
	struct worker *w = arg;
	char buf[4096];
	uint64_t pages = view_virtual_size(w->view) / sizeof buf;
	while (!atomic_load(&stop)) {
		uint64_t page = ((uint64_t)rand_r(&w->seed) << 16 ^ (uint64_t)rand_r(&w->seed)) % pages;
		if (view_read(w->view, buf, sizeof buf, page * sizeof buf))
			die("read");
		w->nr++;
	}
	return NULL;
}

static double read_with(struct view *view, unsigned nr_threads)
{
	struct worker workers[64];
	uint64_t nr = 0;
	double start = now();
	stop = false;
	for (unsigned i = 0; i < nr_threads; i++) {
		workers[i] = (struct worker){.view = view, .seed = i + 1};
		pthread_create(&workers[i].thread, NULL, read_randomly, &workers[i]);
	}
	usleep((useconds_t)(seconds_to_run * 1e6));
	stop = true;
	for (unsigned i = 0; i < nr_threads; i++) {
		pthread_join(workers[i].thread, NULL);
		nr += workers[i].nr;
	}
	return (double)nr / (now() - start);
}

int main(int argc, char **argv)
{
	char path[500];
	struct trust *trust;
	struct image_cache *cache;
	struct view *view;
	struct reason why = {""};
	if (argc < 3)
		return 2;
	if (argc > 3)
		nr_clusters = strtoull(argv[2], NULL, 10) * 16;
	depth = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
	unsigned nr_threads = argc > 4 ? (unsigned)atoi(argv[4]) : 1;
	if (argc > 5)
		seconds_to_run = atof(argv[5]);
	for (uint64_t i = 0; i < depth; i++)
		make_layer(argv[1], i);
	snprintf(path, sizeof path, "%s/%u-%u-0.qcow2", argv[1], (unsigned)nr_clusters, (unsigned)depth);
	if (!depth)
		snprintf(path, sizeof path, "%s/%s", argv[1], argv[2]);
	double start = now();
	if (trust_new(&trust) || trust_add(trust, argv[1], &why) || image_cache_new(trust, 0, &cache) ||
	    view_open(cache, &(struct disk_source){path, IMAGE_QCOW2, NULL}, &view, &why)) {
		printf("%s\n", why.text);
		return 1;
	}
	printf("depth %-5u open %7.2f ms", (unsigned)depth, (now() - start) * 1e3);
	double first = pass(view), second = pass(view), third = pass(view);
	printf("  first pass %6.3f GiB/s  again %6.3f %6.3f", first, second, third);
	printf("  4k random %8.0f/s with %u threads\n", read_with(view, nr_threads), nr_threads);
	view_put(view);
	image_cache_free(cache);
	trust_free(trust);
	return 0;
}
