/* A head under random operations, against a plain array; then qemu-img says what the file holds.
 * block_head [SEED [STEPS]] */
#include <endian.h>
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

#define DISK_MAX (6u << 20)

static unsigned char model[DISK_MAX], base[DISK_MAX], seen[DISK_MAX];
static uint64_t size;
static char dir[200];

#define CHECK(what) \
	do { \
		int e_ = (what); \
		if (e_) { \
			printf("%s:%d: %s = %d\n", __FILE__, __LINE__, #what, e_); \
			exit(1); \
		} \
	} while (0)

static uint64_t pick(uint64_t below)
{
	return below ? (uint64_t)random() % below : 0;
}

static void run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
#include <stdarg.h>
static void run(const char *fmt, ...)
{
	char cmd[1000];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(cmd, sizeof cmd, fmt, ap);
	va_end(ap);
	if (system(cmd) != 0) {
		printf("failed: %s\n", cmd);
		exit(1);
	}
}

static void write_file(const char *name, const void *data, size_t len)
{
	char path[300];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	FILE *f = fopen(path, "w");
	if (!f || fwrite(data, 1, len, f) != len || fclose(f) != 0)
		exit(2);
}

static void compare(struct head *head, const char *when)
{
	if (head_virtual_size(head) != size) {
		printf("%s: size %llu, not %llu\n", when, (unsigned long long)head_virtual_size(head), (unsigned long long)size);
		exit(1);
	}
	CHECK(head_read(head, seen, size, 0));
	for (uint64_t i = 0; i < size; i++) {
		if (seen[i] != model[i]) {
			printf("%s: byte %llu is %02x, not %02x\n", when, (unsigned long long)i, seen[i], model[i]);
			exit(1);
		}
	}
}

static void do_write(struct head *head)
{
	uint64_t off = pick(DISK_MAX - 300000), len = 1 + pick(random() % 4 ? 9000 : 300000);
	if (random() % 2)
		off &= ~4095ull;
	unsigned char *buf = malloc(len);
	unsigned char fill = (unsigned char)random();
	if (random() % 5 == 0)
		memcpy(buf, base + off, len);
	else
		memset(buf, random() % 6 ? fill : 0, len);
	CHECK(head_write(head, buf, len, off));
	if (off > size)
		memset(model + size, 0, off - size);
	memcpy(model + off, buf, len);
	if (off + len > size)
		size = off + len;
	free(buf);
}

static void do_discard(struct head *head)
{
	uint64_t off = pick(size), len = pick(random() % 3 ? 20000 : 600000);
	CHECK(head_discard(head, off, len));
	if (off < size)
		memset(model + off, 0, off + len > size ? size - off : len);
}

static void do_resize(struct head *head)
{
	uint64_t want = random() % 3 ? pick(DISK_MAX) : pick(DISK_MAX / 512) * 512;
	if (!want)
		want = 512;
	CHECK(head_resize(head, want));
	if (want > size)
		memset(model + size, 0, want - size);
	size = want;
}

static void do_share(struct head *head, const struct view *view, uint64_t base_size)
{
	uint64_t off = pick(base_size), len = 1 + pick(base_size - off);
	CHECK(head_share(head, view, off, len));
	if (off > size)
		memset(model + size, 0, off - size);
	memcpy(model + off, base + off, len);
	if (off + len > size)
		size = off + len;
}

static void check_bytes(struct head *head, uint64_t off, unsigned char want)
{
	static unsigned char buf[70000];
	CHECK(head_read(head, buf, sizeof buf, off));
	for (size_t i = 0; i < sizeof buf; i++)
		CHECK(buf[i] != want);
}

/* Disks that outgrow their L1 table: more than an overlay is made for, and as far as the format goes. */
static void test_large_disks(int dirfd)
{
	static const uint64_t sizes[] = {1ull << 30, 15ull << 40, 40ull << 40, 100ull << 40, 4096ull << 40};
	char path[300];
	static unsigned char buf[70000];
	snprintf(path, sizeof path, "%s/large.qcow2", dir);
	struct overlay_spec spec = {.virtual_size = 0};
	struct reason why = {""};
	struct head *head = NULL;
	CHECK(overlay_create(dirfd, "large.qcow2", &spec, 0600));
	for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		CHECK(head_open(dirfd, "large.qcow2", path, NULL, &head, &why));
		if (i % 2)
			CHECK(head_resize(head, sizes[i]));
		memset(buf, (int)i + 1, sizeof buf);
		CHECK(head_write(head, buf, sizeof buf, sizes[i] - sizeof buf));
		CHECK(head_virtual_size(head) != sizes[i]);
		for (unsigned k = 0; k <= i; k++)
			check_bytes(head, sizes[k] - sizeof buf, (unsigned char)(k + 1));
		CHECK(head_close(head));
		if (i < 4) /* qemu-img takes memory for all of a disk */
			run("qemu-img check -q %s", path);
	}
	CHECK(head_open(dirfd, "large.qcow2", path, NULL, &head, &why));
	CHECK(head_write(head, buf, 1, 4096ull << 40) != -EFBIG);
	CHECK(head_resize(head, (4096ull << 40) + 1) != -EFBIG);
	CHECK(head_resize(head, 1 << 20));
	CHECK(head_close(head));
	run("qemu-img check -q %s; rm %s", path, path);
}

/* A file that a crash left longer than its refcount table can tell. With clusters of 16 KiB the first table is enough for 256 GiB:
 * nearly all a hole here. */
static void test_long_file(int dirfd)
{
	char path[300];
	static unsigned char buf[70000];
	snprintf(path, sizeof path, "%s/long.qcow2", dir);
	run("qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=16k %s 1G", path);
	struct reason why = {""};
	struct head *head = NULL;
	for (unsigned i = 0; i < 3; i++) {
		if (i != 1) /* the dirty bit */
			run("printf '\\021' | dd of=%s bs=1 seek=79 conv=notrunc status=none", path);
		CHECK(truncate(path, (256ll << 30) * (i + 1) + 16384));
		CHECK(head_open(dirfd, "long.qcow2", path, NULL, &head, &why));
		memset(buf, (int)i + 1, sizeof buf);
		CHECK(head_write(head, buf, sizeof buf, (uint64_t)i << 20));
		CHECK(head_close(head));
		run("qemu-img check -q %s", path);
		CHECK(head_open(dirfd, "long.qcow2", path, NULL, &head, &why));
		for (unsigned k = 0; k <= i; k++)
			check_bytes(head, (uint64_t)k << 20, (unsigned char)(k + 1));
		CHECK(head_close(head));
	}
	run("rm %s", path);
}

static uint64_t get_be64(int fd, off_t off)
{
	uint64_t word = 0;
	CHECK(pread(fd, &word, sizeof word, off) != sizeof word);
	return be64toh(word) & 0x00fffffffffffe00ull;
}

/* An L2 entry that says A and names no cluster: guest data would go to the file's beginning, the header. */
static void test_damaged_entry(int dirfd)
{
	char path[300];
	const uint64_t none = 0;
	snprintf(path, sizeof path, "%s/damaged.qcow2", dir);
	run("qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k %s 1G", path);
	run("qemu-io -f qcow2 -c 'write -P 1 0 64k' %s >/dev/null", path);
	int fd = open(path, O_RDWR);
	uint64_t l1_offset = get_be64(fd, 40), l2_offset = get_be64(fd, (off_t)l1_offset);
	CHECK(!l2_offset || pwrite(fd, &none, sizeof none, (off_t)l2_offset) != sizeof none);
	close(fd);
	struct reason why = {""};
	struct head *head = NULL;
	CHECK(head_open(dirfd, "damaged.qcow2", path, NULL, &head, &why) != -EUCLEAN);
	run("rm %s", path);
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	int steps = argc > 2 ? atoi(argv[2]) : 1500;
	printf("seed %u\n", seed);
	srandom(seed);
	snprintf(dir, sizeof dir, "%s/block_head.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(dir))
		return 2;
	uint64_t base_size = (1 + pick(DISK_MAX / 512)) * 512;
	for (uint64_t i = 0; i < base_size; i += 4096)
		if (random() % 2)
			memset(base + i, (int)random(), base_size - i < 4096 ? base_size - i : 4096);
	write_file("base.raw", base, base_size);

	struct trust *trust = NULL;
	struct image_cache *cache = NULL;
	struct view *view = NULL;
	struct reason why = {""};
	char path[300], head_path[300];
	snprintf(path, sizeof path, "%s/base.raw", dir);
	snprintf(head_path, sizeof head_path, "%s/head.qcow2", dir);
	CHECK(trust_new(&trust));
	CHECK(trust_add(trust, dir, &why));
	CHECK(image_cache_new(trust, 0, &cache));
	CHECK(view_open(cache, &(struct disk_source){path, IMAGE_RAW, NULL}, &view, &why));
	int dirfd = open(dir, O_RDONLY | O_DIRECTORY);
	struct overlay_spec spec = {.virtual_size = 0};
	CHECK(overlay_create(dirfd, "head.qcow2", &spec, 0600));
	struct head *head = NULL;
	CHECK(head_open(dirfd, "head.qcow2", head_path, NULL, &head, &why));
	test_large_disks(dirfd);
	test_long_file(dirfd);
	test_damaged_entry(dirfd);
	spec = (struct overlay_spec){base_size, "base.raw", IMAGE_RAW};
	CHECK(head_adopt(head, view, &spec));
	memcpy(model, base, base_size);
	size = base_size;
	compare(head, "adopted");
	for (int i = 0; i < steps; i++) {
		char when[60];
		switch (random() % 20) {
		case 0: do_resize(head); break;
		case 1: do_share(head, view, base_size); break;
		case 2:
		case 3:
		case 4: do_discard(head); break;
		case 5: CHECK(head_flush(head)); break;
		case 6:
			if (random() % 8 == 0) {
				CHECK(head_close(head));
				if (size % 512) /* on disk a disk is whole sectors */
					memset(model + size, 0, 512 - size % 512);
				size = (size + 511) / 512 * 512;
				run("qemu-img check -q %s", head_path);
				CHECK(head_open(dirfd, "head.qcow2", head_path, view, &head, &why));
			}
			break;
		default: do_write(head);
		}
		snprintf(when, sizeof when, "step %d", i);
		if (i % 16 == 0)
			compare(head, when);
	}
	compare(head, "end");
	CHECK(head_close(head));
	if (size % 512)
		memset(model + size, 0, 512 - size % 512);
	write_file("model.raw", model, (size + 511) / 512 * 512);
	run("qemu-img check -q %s", head_path);
	run("qemu-img compare -q -f raw -F qcow2 %s/model.raw %s", dir, head_path);
	view_put(view);
	image_cache_free(cache);
	trust_free(trust);
	close(dirfd);
	run("rm -r %s", dir);
	printf("ok\n");
	return 0;
}
