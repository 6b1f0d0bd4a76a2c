/* Freezing at constant cost: an overlay is settled without a walk, and put over the view of what lies beneath it, however deep.
 * block_freeze [DEPTH] */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "block/head.h"
#include "block/trust.h"

#define CHECK(what) \
	do { \
		int e_ = (what); \
		if (e_) { \
			printf("%s:%d: %s = %d\n", __FILE__, __LINE__, #what, e_); \
			exit(1); \
		} \
	} while (0)

#define DISK_SIZE (64u << 20)

static char dir[200];
static int dirfd;
static struct image_cache *cache;

static void run(const char *cmd)
{
	if (system(cmd) != 0) {
		printf("failed: %s\n", cmd);
		exit(1);
	}
}

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static char *path_of(const char *name)
{
	static char path[400];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	return path;
}

static void name_layer(char name[40], int i)
{
	snprintf(name, 40, "%d.qcow2", i);
}

static void make_layer(int i)
{
	char name[40], below[40];
	name_layer(name, i);
	name_layer(below, i - 1);
	struct overlay_spec spec = {DISK_SIZE, i ? below : NULL, IMAGE_QCOW2};
	CHECK(overlay_create(dirfd, name, &spec, 0600));
}

/* One block that tells which layer wrote it, and nothing else. */
static void write_layer(int i, struct view *below)
{
	char name[40], buf[4096];
	struct head *head = NULL;
	name_layer(name, i);
	CHECK(head_open(dirfd, name, path_of(name), below, &head, NULL));
	CHECK(!head_is_untouched(head));
	memset(buf, i + 1, sizeof buf);
	CHECK(head_write(head, buf, sizeof buf, (uint64_t)i * 8192));
	CHECK(head_is_untouched(head));
	CHECK(head_close(head));
}

static void settle_layer(int i, bool empty)
{
	char name[40];
	name_layer(name, i);
	struct overlay_facts facts;
	CHECK(overlay_settle(dirfd, name, path_of(name), &facts, NULL));
	CHECK(facts.virtual_size != DISK_SIZE || facts.empty != empty || facts.has_backing != (i > 0));
	struct stat st;
	CHECK(fstatat(dirfd, name, &st, 0));
	CHECK(st.st_ino != facts.st.st_ino || st.st_size != facts.st.st_size);
	uint64_t bytes = 0;
	CHECK(overlay_allocated(dirfd, name, &bytes));
	CHECK(bytes != (uint64_t)st.st_blocks * 512);
}

static void test_depth(int depth)
{
	struct view *view = NULL;
	double opening = 0, locking = 0;
	for (int i = 0; i < depth; i++) {
		char name[40];
		name_layer(name, i);
		make_layer(i);
		write_layer(i, view);
		settle_layer(i, false);
		struct view *over = NULL;
		struct disk_source top = {path_of(name), IMAGE_QCOW2, NULL};
		double start = now();
		CHECK(view_open_over(cache, &top, view, &over, NULL));
		double opened = now();
		CHECK(view_lock(over, NULL));
		opening = opened - start;
		locking = now() - opened;
		if (view)
			view_unlock(view);
		view_put(view);
		view = over;
	}
	printf("%d deep: %.0f us to put a layer over it, %.0f us to lock it\n", depth, opening, locking);
	struct view *walked = NULL;
	char name[40], *buf = malloc((size_t)depth * 8192);
	name_layer(name, depth - 1);
	CHECK(view_open(cache, &(struct disk_source){path_of(name), IMAGE_QCOW2, NULL}, &walked, NULL));
	CHECK(!view_equal(view, walked));
	CHECK(view_read(view, buf, (size_t)depth * 8192, 0));
	for (int i = 0; i < depth * 8192; i++)
		CHECK(buf[i] != (i / 4096 % 2 ? 0 : (char)(i / 8192 + 1)));
	free(buf);
	view_put(walked);
	view_unlock(view);
	view_put(view);
}

/* Left dirty, and in somebody's hands. */
static void test_settle(void)
{
	char name[40], cmd[600];
	struct overlay_facts facts;
	struct head *head = NULL;
	make_layer(0);
	settle_layer(0, true);
	write_layer(0, NULL);
	name_layer(name, 0);
	snprintf(cmd, sizeof cmd, "printf '\\021' | dd of=%s bs=1 seek=79 conv=notrunc status=none", path_of(name));
	run(cmd);
	snprintf(cmd, sizeof cmd, "head -c 131072 /dev/zero >>%s", path_of(name)); /* a cluster that nothing names */
	run(cmd);
	settle_layer(0, false);
	snprintf(cmd, sizeof cmd, "qemu-img check -q %s", path_of(name));
	run(cmd);
	CHECK(head_open(dirfd, name, path_of(name), NULL, &head, NULL));
	CHECK(overlay_settle(dirfd, name, path_of(name), &facts, NULL) != -EBUSY);
	CHECK(head_close(head));
	make_layer(1);
	struct view *view = NULL;
	CHECK(view_open(cache, &(struct disk_source){path_of(name), IMAGE_QCOW2, NULL}, &view, NULL));
	name_layer(name, 1);
	CHECK(head_open(dirfd, name, path_of(name), view, &head, NULL));
	CHECK(!head_is_untouched(head));
	CHECK(head_resize(head, 2 * DISK_SIZE));
	CHECK(head_is_untouched(head));
	CHECK(head_close(head));
	view_put(view);
	CHECK(unlinkat(dirfd, "0.qcow2", 0) || unlinkat(dirfd, "1.qcow2", 0));
}

int main(int argc, char **argv)
{
	int depth = argc > 1 ? atoi(argv[1]) : 500;
	snprintf(dir, sizeof dir, "%s/block_freeze.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(dir))
		return 2;
	dirfd = open(dir, O_RDONLY | O_DIRECTORY);
	struct trust *trust = NULL;
	CHECK(trust_new(&trust));
	CHECK(trust_add(trust, dir, NULL));
	CHECK(image_cache_new(trust, 0, &cache));
	test_settle();
	test_depth(depth);
	image_cache_free(cache);
	trust_free(trust);
	close(dirfd);
	char cmd[300];
	snprintf(cmd, sizeof cmd, "rm -r %s", dir);
	run(cmd);
	puts("ok");
	return 0;
}
