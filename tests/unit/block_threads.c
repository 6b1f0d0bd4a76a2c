/* Many threads on one head: each has sectors of its own, so that neighbours share subclusters, clusters and tables, and knows what they hold.
 * Behind them each has a stretch of several clusters to itself, for long writes; it shares its first and last with its neighbours.
 * Meant for ThreadSanitizer as well. block_threads [SEED [STEPS]] */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "block/head.h"

#define NR_THREADS 6
#define NR_SECTORS 8192u /* 4 MiB: many hits on the same clusters */
#define SECTOR	   512u
#define STRETCH	   700u /* sectors */

static struct head *head;
static int nr_steps = 1500;
static unsigned seed;

struct worker {
	pthread_t thread;
	unsigned index, random;
	unsigned char expect[NR_SECTORS]; /* the byte that fills each sector; only its own are used */
	unsigned char stretch[STRETCH];
	int failed;
};

static unsigned draw(struct worker *w, unsigned below)
{
	return (unsigned)rand_r(&w->random) % below;
}

/* Its sectors are those whose number is its index modulo NR_THREADS. */
static unsigned own_sector(struct worker *w)
{
	return draw(w, NR_SECTORS / NR_THREADS) * NR_THREADS + w->index;
}

/* A run of its stretch: zeros, read, or written, with a byte of its own for each sector. */
static int long_step(struct worker *w)
{
	static _Thread_local unsigned char buf[STRETCH * SECTOR];
	unsigned first = draw(w, STRETCH), nr = 1 + draw(w, STRETCH - first), what = draw(w, 4);
	uint64_t off = (uint64_t)(NR_SECTORS + w->index * STRETCH + first) * SECTOR;
	if (what == 0) {
		memset(w->stretch + first, 0, nr);
		return head_discard(head, off, (uint64_t)nr * SECTOR);
	}
	if (what > 1)
		for (unsigned i = 0; i < nr; i++)
			memset(buf + i * SECTOR, w->stretch[first + i] = (unsigned char)draw(w, 256), SECTOR);
	int err = what > 1 ? head_write(head, buf, nr * SECTOR, off) : head_read(head, buf, nr * SECTOR, off);
	for (unsigned i = 0; i < nr * SECTOR && !err; i++)
		if (buf[i] != w->stretch[first + i / SECTOR])
			err = 1;
	return err;
}

static int step(struct worker *w)
{
	unsigned char buf[SECTOR];
	unsigned s = own_sector(w);
	if (draw(w, 12) == 0)
		return long_step(w);
	switch (draw(w, 8)) {
	case 0: return head_flush(head);
	case 1:
		w->expect[s] = 0;
		return head_discard(head, (uint64_t)s * SECTOR, SECTOR);
	case 2:
	case 3: {
		int err = head_read(head, buf, SECTOR, (uint64_t)s * SECTOR);
		for (unsigned i = 0; i < SECTOR && !err; i++)
			if (buf[i] != w->expect[s])
				err = 1;
		return err;
	}
	default:
		w->expect[s] = (unsigned char)draw(w, 256);
		memset(buf, w->expect[s], SECTOR);
		return head_write(head, buf, SECTOR, (uint64_t)s * SECTOR);
	}
}

static void *work(void *arg)
{
	struct worker *w = arg;
	for (int i = 0; i < nr_steps && !w->failed; i++)
		w->failed = step(w);
	return NULL;
}

/* A file that grows under two writers while a third thread flushes: each block goes into a cluster of its own, behind all others. */
#define NR_GROWN 3000u

static atomic_bool grown;

static void *grow(void *arg)
{
	unsigned char buf[4096];
	for (uint64_t i = *(unsigned *)arg; i < NR_GROWN; i += 2) {
		memset(buf, (int)(i % 255) + 1, sizeof buf);
		if (head_write(head, buf, sizeof buf, i << 17))
			exit(1);
	}
	return NULL;
}

static void *flush_on(void *arg)
{
	while (!atomic_load(&grown))
		if (head_flush(head))
			exit(1);
	return arg;
}

static int test_growth(int at, const char *path)
{
	struct overlay_spec spec = {.virtual_size = (uint64_t)NR_GROWN << 17};
	unsigned firsts[2] = {0, 1};
	pthread_t threads[3];
	unsigned char buf[4096];
	int lost = 0;
	if (overlay_create(at, "grown.qcow2", &spec, 0600) || head_open(at, "grown.qcow2", path, NULL, &head, NULL))
		return 1;
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, grow, &firsts[i]);
	pthread_create(&threads[2], NULL, flush_on, NULL);
	for (int i = 0; i < 3; i++) {
		atomic_store(&grown, i == 2);
		pthread_join(threads[i], NULL);
	}
	for (uint64_t i = 0; i < NR_GROWN; i++)
		lost += head_read(head, buf, sizeof buf, i << 17) || buf[0] != i % 255 + 1 || buf[4095] != i % 255 + 1;
	if (lost)
		printf("%d blocks lost while the file grew\n", lost);
	return lost | head_close(head) | unlinkat(at, "grown.qcow2", 0);
}

int main(int argc, char **argv)
{
	seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	if (argc > 2)
		nr_steps = atoi(argv[2]);
	printf("seed %u\n", seed);
	char dir[200], path[300], cmd[600];
	snprintf(dir, sizeof dir, "%s/block_threads.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(dir))
		return 2;
	snprintf(path, sizeof path, "%s/head.qcow2", dir);
	int dirfd = open(dir, O_RDONLY | O_DIRECTORY);
	struct overlay_spec spec = {.virtual_size = (NR_SECTORS + NR_THREADS * STRETCH) * SECTOR};
	struct reason why = {""};
	if (overlay_create(dirfd, "head.qcow2", &spec, 0600) || head_open(dirfd, "head.qcow2", path, NULL, &head, &why)) {
		printf("%s\n", why.text);
		return 1;
	}
	static struct worker workers[NR_THREADS];
	for (unsigned i = 0; i < NR_THREADS; i++) {
		workers[i].index = i;
		workers[i].random = seed * 31 + i;
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	}
	int failed = 0;
	for (unsigned i = 0; i < NR_THREADS; i++) {
		pthread_join(workers[i].thread, NULL);
		if (workers[i].failed)
			printf("thread %u: %d\n", i, workers[i].failed);
		failed |= workers[i].failed;
	}
	failed |= head_close(head);
	failed |= test_growth(dirfd, "grown.qcow2");
	snprintf(cmd, sizeof cmd, "qemu-img check -q %s && rm -r %s", path, dir);
	if (!failed && system(cmd) != 0)
		failed = 1;
	close(dirfd);
	puts(failed ? "failed" : "ok");
	return failed != 0;
}
