/* limit: 120
 * Overlays in a block device whose old bytes are anything: they read as the model, QEMU finds them whole, a full device is an error and no more than that, and
 * after it the overlay closes, opens and checks. Takes root and a loop device; without them nothing is done. block_device [SEED] */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "block/merge.h"
#include "block/trust.h"
#include "block_test.h"

#define DISK_SIZE   (6u << 20)
#define DEVICE_SIZE ((12u << 20) + 4096) /* no whole number of clusters */
#define SECTOR	    512u

static char device[100], device_path[300];
static int dirfd;
static unsigned char model[DISK_SIZE], seen[DISK_SIZE];

static void check_all(struct head *head)
{
	CHECK(head_read(head, seen, DISK_SIZE, 0));
	for (uint64_t i = 0; i < DISK_SIZE; i++)
		if (seen[i] != model[i]) {
			printf("byte %llu is %02x, not %02x (left in %s)\n", (unsigned long long)i, seen[i], model[i], dir);
			exit(1);
		}
}

static void change(struct head *head)
{
	static unsigned char buf[200000];
	uint64_t off = pick(DISK_SIZE / SECTOR) * SECTOR, len = (1 + pick(random() % 2 ? 8 : 390)) * SECTOR;
	if (len > DISK_SIZE - off)
		len = DISK_SIZE - off;
	bool zero = random() % 4 == 0;
	memset(buf, zero ? 0 : (int)random(), len);
	CHECK(zero ? head_discard(head, off, len) : head_write(head, buf, len, off));
	memcpy(model + off, buf, len);
	CHECK(random() % 8 ? 0 : head_flush(head));
}

static void check_with_qemu(void)
{
	CHECK(run("qemu-img check -q -f qcow2 %s", device));
	char path[300];
	snprintf(path, sizeof path, "%s/model", dir);
	FILE *f = fopen(path, "w");
	CHECK(!f || fwrite(model, 1, DISK_SIZE, f) != DISK_SIZE || fclose(f));
	CHECK(run("qemu-img convert -f qcow2 -O raw %s %s/out && cmp -n %u %s/out %s/model", device, dir, DISK_SIZE, dir, dir));
}

static void fill_with_garbage(void)
{
	CHECK(run("head -c %u /dev/urandom | dd of=%s bs=1M status=none conv=fsync", DEVICE_SIZE, device));
}

static int open_device(void)
{
	int fd = open(device, O_RDWR | O_EXCL | O_CLOEXEC);
	CHECK(fd < 0);
	return fd;
}

static void make_overlay(const struct overlay_spec *spec)
{
	struct reason why = {""};
	int fd = open_device();
	CHECK(overlay_create_in_device(fd, "", device_path, spec, &why));
	close(fd);
}

static struct head *open_it(struct view *below)
{
	struct head *head = NULL;
	struct reason why = {""};
	int fd = open_device(), err = head_open(fd, "", device_path, below, &head, &why);
	close(fd);
	if (err)
		printf("%s\n", why.text);
	CHECK(err);
	return head;
}

static void test_model(struct view *base, const char *base_path)
{
	fill_with_garbage();
	struct overlay_spec spec = {DISK_SIZE, base_path, IMAGE_RAW};
	make_overlay(&spec);
	struct head *head = open_it(base);
	CHECK(head_is_untouched(head) ? 0 : 1);
	check_all(head);
	for (int i = 0; i < 60; i++) {
		change(head);
		if (random() % 10 == 0) {
			CHECK(head_close(head));
			head = open_it(base);
		}
	}
	check_all(head);
	CHECK(head_close(head));
	check_with_qemu();
	/* Without what lies beneath, and with space for all. */
	head = open_it(base);
	CHECK(head_pull(head, 1, 0, DISK_SIZE, NULL));
	CHECK(head_rebase(head, NULL, NULL, IMAGE_RAW));
	CHECK(head_preallocate(head, 0, DISK_SIZE));
	check_all(head);
	CHECK(head_adopt(head, base, &spec) == 0);
	CHECK(head_close(head));
	check_with_qemu();
	CHECK(run("! qemu-img info %s | grep backing", device));
}

/* One that QEMU made, whose L1 table moves, and which becomes full. */
static void test_full(bool ours)
{
	static unsigned char buf[1u << 20];
	fill_with_garbage();
	memset(model, 0, sizeof model);
	if (ours)
		make_overlay(&(struct overlay_spec){DISK_SIZE, NULL, IMAGE_RAW});
	else
		CHECK(run("qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=16k %s %u", device, DISK_SIZE));
	struct head *head = open_it(NULL);
	for (int i = 0; i < 20; i++)
		change(head);
	CHECK(head_resize(head, 200ull << 30));
	check_all(head);
	int err = 0;
	for (uint64_t off = DISK_SIZE; !err; off += sizeof buf) {
		CHECK(off > 4 * DEVICE_SIZE);
		memset(buf, 0x55, sizeof buf);
		err = head_write(head, buf, sizeof buf, off);
	}
	CHECK(err != -ENOSPC);
	check_all(head);
	CHECK(head_close(head));
	check_with_qemu();
	head = open_it(NULL);
	check_all(head);
	CHECK(head_resize(head, 0));
	CHECK(head_resize(head, DISK_SIZE));
	memset(model, 0, sizeof model);
	check_all(head);
	CHECK(head_close(head));
	check_with_qemu();
}

static bool make_device(void)
{
	char cmd[600];
	snprintf(cmd, sizeof cmd, "truncate -s %u '%s/device.img' && losetup -f --show '%s/device.img' 2>/dev/null", DEVICE_SIZE, dir, dir);
	FILE *p = geteuid() == 0 ? popen(cmd, "r") : NULL;
	bool made = p && fgets(device, sizeof device, p);
	if (p)
		pclose(p);
	device[strcspn(device, "\n")] = '\0';
	snprintf(device_path, sizeof device_path, "%s/volume", dir);
	return made && symlinkat(device, dirfd, "volume") == 0;
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	printf("seed %u\n", seed);
	fflush(stdout);
	srandom(seed);
	snprintf(dir, sizeof dir, "%s/block_device.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(dir))
		return 2;
	dirfd = open(dir, O_RDONLY | O_DIRECTORY);
	struct trust *trust = NULL;
	struct image_cache *cache = NULL;
	struct view *base = NULL;
	char base_path[300];
	CHECK(trust_new(&trust));
	CHECK(trust_add(trust, dir, NULL));
	CHECK(image_cache_new(trust, 0, &cache));
	snprintf(base_path, sizeof base_path, "%s/base.raw", dir);
	FILE *f = fopen(base_path, "w");
	memset(model, 0xee, DISK_SIZE);
	CHECK(!f || fwrite(model, 1, DISK_SIZE, f) != DISK_SIZE || fclose(f));
	CHECK(view_open(cache, &(struct disk_source){base_path, IMAGE_RAW, NULL}, &base, NULL));
	CHECK(overlay_create_in_device(dirfd, "base.raw", base_path, &(struct overlay_spec){DISK_SIZE, NULL, IMAGE_RAW}, NULL) != -ENOTBLK);
	if (make_device()) {
		test_model(base, base_path);
		test_full(true);
		test_full(false);
		CHECK(run("losetup -d %s", device));
	}
	view_put(base);
	image_cache_free(cache);
	trust_free(trust);
	close(dirfd);
	CHECK(run("rm -r %s", dir));
	puts("ok");
	return 0;
}
