/* limit: 120
 * Space for all of a disk, qcow2 and raw, while guests write: the bytes stay, QEMU finds it whole and no smaller than the disk, and what is written later needs
 * no more space. As root also on XFS, where bytes were shared. block_prealloc [SEED] */
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

#define DISK_MAX   (6u << 20)
#define NR_WRITERS 3
#define SECTOR	   512u

static char top_dir[100], mounted[150];
static int dirfd;
static struct image_cache *cache;
static unsigned char model[DISK_MAX], seen[DISK_MAX];
static uint64_t disk_size;
static atomic_bool stop;

static void change(struct head *head)
{
	static unsigned char buf[200000];
	uint64_t off = pick(disk_size / SECTOR) * SECTOR, len = (1 + pick(random() % 2 ? 8 : 390)) * SECTOR;
	if (len > disk_size - off)
		len = disk_size - off;
	bool zero = random() % 4 == 0;
	memset(buf, zero ? 0 : (int)random(), len);
	CHECK(zero ? head_discard(head, off, len) : head_write(head, buf, len, off));
	memcpy(model + off, buf, len);
}

static void check_all(struct head *head)
{
	CHECK(head_read(head, seen, DISK_MAX, 0));
	for (uint64_t i = 0; i < DISK_MAX; i++)
		if (seen[i] != model[i]) {
			printf("byte %llu is %02x, not %02x (left in %s)\n", (unsigned long long)i, seen[i], model[i], top_dir);
			exit(1);
		}
}

struct writer {
	pthread_t thread;
	struct head *head;
	unsigned index, random;
};

/* The sectors whose number is the writer's index modulo NR_WRITERS are its own. */
static void *write_on(void *arg)
{
	struct writer *w = arg;
	unsigned char buf[SECTOR];
	while (!atomic_load(&stop)) {
		uint64_t off = ((uint64_t)rand_r(&w->random) % (disk_size / SECTOR / NR_WRITERS) * NR_WRITERS + w->index) * SECTOR;
		memset(model + off, rand_r(&w->random), SECTOR);
		CHECK(head_write(w->head, model + off, SECTOR, off));
		CHECK(head_read(w->head, buf, SECTOR, off));
		CHECK(memcmp(buf, model + off, SECTOR));
		CHECK(rand_r(&w->random) % 100 ? 0 : head_flush(w->head));
	}
	return NULL;
}

static void preallocate(struct head *head)
{
	struct writer writers[NR_WRITERS];
	atomic_store(&stop, false);
	for (unsigned i = 0; i < NR_WRITERS; i++) {
		writers[i] = (struct writer){.head = head, .index = i, .random = (unsigned)random()};
		pthread_create(&writers[i].thread, NULL, write_on, &writers[i]);
	}
	uint64_t step = 1 + pick(random() % 2 ? DISK_MAX : 500000);
	for (uint64_t off = 0; off < disk_size; off += step)
		CHECK(head_preallocate(head, off, step));
	CHECK(head_preallocate(head, pick(DISK_MAX), UINT64_MAX));
	atomic_store(&stop, true);
	for (unsigned i = 0; i < NR_WRITERS; i++)
		pthread_join(writers[i].thread, NULL);
}

static uint64_t space_of(const char *name)
{
	struct stat st;
	CHECK(stat(path_of(name), &st));
	return (uint64_t)st.st_blocks * 512;
}

static void check_file(const char *name, const char *format)
{
	FILE *f = fopen(path_of("model"), "w");
	CHECK(!f || fwrite(model, 1, disk_size, f) != disk_size || fclose(f));
	CHECK(strcmp(format, "raw") != 0 ? run("qemu-img check -q '%s/%s'", dir, name) : 0);
	CHECK(run("qemu-img convert -f %s -O raw '%s/%s' '%s/out' && cmp '%s/out' '%s/model'", format, dir, name, dir, dir, dir));
	CHECK(run("test $(qemu-img info -f %s --output=json '%s/%s' | sed -n 's/.*\"actual-size\": \\([0-9]*\\).*/\\1/p' | tail -n 1) -ge %llu", format, dir, name,
		  (unsigned long long)disk_size));
}

static struct head *open_it(const char *name, bool raw, struct view *below)
{
	struct head *head = NULL;
	CHECK(raw ? head_open_raw(dirfd, name, path_of(name), &head, NULL) : head_open(dirfd, name, path_of(name), below, &head, NULL));
	return head;
}

/* A base, whose bytes become the overlay's: on XFS they are shared at first. */
static struct head *make_pulled(const char *name)
{
	FILE *f = fopen(path_of("base.raw"), "w");
	for (uint64_t i = 0; i < disk_size; i += 4096)
		memset(model + i, random() % 3 ? (int)random() : 0, disk_size - i < 4096 ? disk_size - i : 4096);
	CHECK(!f || fwrite(model, 1, disk_size, f) != disk_size || fclose(f));
	struct view *view = NULL;
	CHECK(overlay_create(dirfd, name, &(struct overlay_spec){disk_size, "base.raw", IMAGE_RAW}, 0600));
	CHECK(view_open(cache, &(struct disk_source){path_of("base.raw"), IMAGE_RAW, NULL}, &view, NULL));
	struct head *head = open_it(name, false, view);
	CHECK(head_preallocate(head, 0, disk_size) != -EINVAL);
	CHECK(head_pull(head, 1, 0, disk_size, NULL));
	CHECK(head_rebase(head, NULL, NULL, IMAGE_RAW));
	view_put(view);
	return head;
}

static struct head *make_fresh(const char *name, bool raw, const char *options)
{
	if (raw)
		CHECK(run("truncate -s %llu '%s/%s'", (unsigned long long)disk_size, dir, name));
	else if (options)
		CHECK(run("qemu-img create -q -f qcow2 -o extended_l2=on,%s '%s/%s' %llu", options, dir, name, (unsigned long long)disk_size));
	else
		CHECK(overlay_create(dirfd, name, &(struct overlay_spec){disk_size, NULL, IMAGE_RAW}, 0600));
	return open_it(name, raw, NULL);
}

static void do_disk(void)
{
	static const char *const options[] = {NULL, NULL, "cluster_size=16k", "cluster_size=2M"};
	bool raw = random() % 3 == 0;
	const char *name = raw ? "disk.raw" : "disk.qcow2";
	unlinkat(dirfd, "base.raw", 0);
	unlinkat(dirfd, name, 0);
	memset(model, 0, sizeof model);
	disk_size = (NR_WRITERS + pick(DISK_MAX / SECTOR - NR_WRITERS)) * SECTOR;
	struct head *head = !raw && random() % 2 ? make_pulled(name) : make_fresh(name, raw, options[pick(4)]);
	for (uint64_t n = pick(10); n; n--)
		change(head);
	preallocate(head);
	check_all(head);
	CHECK(head_close(head));
	check_file(name, raw ? "raw" : "qcow2");
	/* Written all over, it takes no more. */
	uint64_t space = space_of(name);
	head = open_it(name, raw, NULL);
	for (int i = 0; i < 20; i++) {
		uint64_t off = pick(disk_size / SECTOR) * SECTOR, len = disk_size - off;
		memset(model + off, (int)random(), len);
		CHECK(head_write(head, model + off, len, off));
	}
	CHECK(head_flush(head));
	CHECK(space_of(name) > space + 65536);
	for (int i = 0; i < 10; i++)
		change(head);
	check_all(head);
	CHECK(head_preallocate(head, 0, disk_size));
	CHECK(head_close(head));
	check_file(name, raw ? "raw" : "qcow2");
}

/* As root, where there are loop devices. */
static bool mount_xfs(void)
{
	char point[150];
	snprintf(point, sizeof point, "%s/xfs", top_dir);
	if (geteuid() != 0 || run("truncate -s 400M %s.img && mkfs.xfs -q -m reflink=1 %s.img && mkdir %s && mount -o loop %s.img %s", point, point, point, point, point))
		return false;
	snprintf(mounted, sizeof mounted, "%s", point);
	snprintf(dir, sizeof dir, "%s", point);
	return true;
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	printf("seed %u\n", seed);
	fflush(stdout);
	srandom(seed);
	snprintf(top_dir, sizeof top_dir, "%s/block_prealloc.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(top_dir))
		return 2;
	snprintf(dir, sizeof dir, "%s", top_dir);
	struct trust *trust = NULL;
	CHECK(trust_new(&trust));
	CHECK(trust_add(trust, top_dir, NULL));
	CHECK(image_cache_new(trust, 0, &cache));
	for (int i = 0; i < 20; i++) {
		if (i == 0 || (i == 10 && mount_xfs())) {
			if (i)
				close(dirfd);
			dirfd = open(dir, O_RDONLY | O_DIRECTORY);
		}
		do_disk();
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
