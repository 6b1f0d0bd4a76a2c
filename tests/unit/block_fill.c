/* limit: 200
 * Flat copies of chains against `qemu-img convert`: the same bytes, no more space, of any length, broken off and gone on with, allocated to the last block, in a
 * block device that was full of something else; and by shared extents on XFS. What takes root is left out without it. block_fill [SEED [CHAINS]] */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "block/fill.h"
#include "block/trust.h"
#include "block_test.h"

#define SECTOR	  512u
#define CHAIN_MAX 5

static char top_dir[150];
static char device[100];
static struct trust *trust;
static struct image_cache *cache;
static uint64_t disk_size;

/* --- chains ------------------------------------------------------------------------------------------------------------ */

static void write_script(bool compressed)
{
	char path[400];
	snprintf(path, sizeof path, "%s/script", dir);
	FILE *f = fopen(path, "w");
	CHECK(!f);
	for (uint64_t n = 4 + pick(30); n; n--) {
		uint64_t off = pick(disk_size / SECTOR) * SECTOR, len = (1 + pick(random() % 3 ? 100 : 3000)) * SECTOR;
		if (random() % 2)
			off = off / 65536 * 65536;
		if (len > disk_size - off)
			len = disk_size - off;
		if (random() % 5 == 0)
			fprintf(f, "write -z %s %llu %llu\n", random() % 2 ? "-u" : "", (unsigned long long)off, (unsigned long long)len);
		else if (compressed && off % 65536 == 0 && len >= 65536)
			fprintf(f, "write -c -P %d %llu 65536\n", (int)pick(256), (unsigned long long)off);
		else
			fprintf(f, "write -P %d %llu %llu\n", (int)(random() % 4 ? pick(256) : 0), (unsigned long long)off, (unsigned long long)len);
	}
	CHECK(fclose(f));
}

/* The name of the top one; a compressed cluster can't be written twice, which QEMU may say. */
static const char *try_chain(enum image_format *ret_format)
{
	static const char *const options[] = {"cluster_size=64k", "cluster_size=512", "cluster_size=64k,compression_type=zstd", "extended_l2=on,cluster_size=16k",
					      "cluster_size=1M"};
	static char name[40];
	int nr = 1 + (int)pick(CHAIN_MAX);
	disk_size = (1 + pick(30000)) * SECTOR;
	uint64_t base_size = random() % 2 ? disk_size : 1 + pick(disk_size);
	CHECK(run("cd %s && head -c %llu /dev/urandom >0.raw && truncate -s %llu 0.raw && fallocate -p -o %llu -l 300000 0.raw && "
		  "dd if=/dev/zero of=0.raw bs=4096 seek=%d count=%d conv=notrunc status=none && truncate -s %llu 0.raw",
		  dir, (unsigned long long)pick(base_size), (unsigned long long)base_size, (unsigned long long)pick(base_size), (int)pick(300), (int)pick(300),
		  (unsigned long long)base_size));
	*ret_format = nr > 1 ? IMAGE_QCOW2 : IMAGE_RAW;
	if (nr == 1)
		disk_size = (base_size + SECTOR - 1) / SECTOR * SECTOR;
	snprintf(name, sizeof name, "0.raw");
	for (int i = 1; i < nr; i++) {
		int option = (int)pick(5);
		CHECK(run("qemu-img create -q -f qcow2 -o %s -b %s -F %s %s/%d.qcow2 %llu", options[option], name, i > 1 ? "qcow2" : "raw", dir, i,
			  (unsigned long long)disk_size));
		snprintf(name, sizeof name, "%d.qcow2", i);
		write_script(option == 0 || option == 2);
		CHECK(run("qemu-io -f qcow2 %s/%s <%s/script >%s/log 2>&1; true", dir, name, dir, dir));
	}
	return run("qemu-img convert -f %s -O raw %s/%s %s/want", nr > 1 ? "qcow2" : "raw", dir, name, dir) ? NULL : name;
}

/* Now and then QEMU makes one that it can't read itself. */
static const char *make_chain(enum image_format *ret_format)
{
	const char *name = NULL;
	for (int i = 0; !name && i < 10; i++)
		name = try_chain(ret_format);
	CHECK(!name);
	return name;
}

static struct view *open_view(const char *name, enum image_format format)
{
	char path[400];
	struct view *view = NULL;
	snprintf(path, sizeof path, "%s/%s", dir, name);
	CHECK(view_open(cache, &(struct disk_source){path, format, NULL}, &view, NULL));
	return view;
}

static int open_out(bool fresh)
{
	char path[400];
	snprintf(path, sizeof path, "%s/out", dir);
	int fd = open(path, O_RDWR | O_CREAT | (fresh ? O_TRUNC : 0), 0600);
	CHECK(fd < 0);
	return fd;
}

static uint64_t space_of(const char *name)
{
	char path[400];
	struct stat st;
	snprintf(path, sizeof path, "%s/%s", dir, name);
	CHECK(stat(path, &st));
	return (uint64_t)st.st_blocks * 512;
}

/* --- copies ------------------------------------------------------------------------------------------------------------- */

static void copy_plainly(struct view *view, bool may_share)
{
	atomic_uint_fast64_t done, total;
	int fd = open_out(true);
	CHECK(random() % 2 ? write(fd, "something", 9) != 9 : 0);
	CHECK(view_fill_raw(view, fd, &(struct fill_spec){.done = &done, .total = &total}, NULL));
	close(fd);
	CHECK(run("cmp %s/want %s/out", dir, dir));
	CHECK(atomic_load(&done) != atomic_load(&total));
	if (!may_share && space_of("out") > space_of("want") + 65536) {
		printf("%llu bytes, not %llu\n", (unsigned long long)space_of("out"), (unsigned long long)space_of("want"));
		exit(1);
	}
}

static void copy_resized(struct view *view)
{
	uint64_t size = 1 + pick(2 * disk_size);
	int fd = open_out(true);
	CHECK(view_fill_raw(view, fd, &(struct fill_spec){.virtual_size = size, .preallocate = random() % 2}, NULL));
	close(fd);
	CHECK(run("truncate -s %llu %s/want && cmp %s/want %s/out && truncate -s 0 %s/want && qemu-img convert -O raw %s/out %s/want", (unsigned long long)size, dir,
		  dir, dir, dir, dir, dir));
}

static void copy_allocated(struct view *view)
{
	int fd = open_out(true);
	CHECK(view_fill_raw(view, fd, &(struct fill_spec){.preallocate = true}, NULL));
	close(fd);
	CHECK(run("cmp %s/want %s/out", dir, dir));
	CHECK(space_of("out") < disk_size);
}

/* Stops, now and then. */
static int break_off(void *ctx, uint64_t off)
{
	*(uint64_t *)ctx = off;
	return random() % 3 ? -EINTR : 0;
}

static void copy_in_parts(struct view *view)
{
	uint64_t from = pick(disk_size + 5000);
	int fd = open_out(true);
	/* As an attempt left it that got that far: the data of the beginning, and some of what follows. */
	CHECK(run("cat %s/want >%s/out && dd if=/dev/urandom bs=1 count=3 seek=%llu of=%s/out conv=notrunc status=none", dir, dir,
		  (unsigned long long)(from + 4096), dir));
	atomic_bool stop = true;
	atomic_uint_fast64_t done = 0, total = 0;
	struct fill_spec spec = {.from = from, .stop = &stop, .checkpoint = break_off, .ctx = &from, .done = &done, .total = &total};
	uint64_t begin = (from < disk_size ? from : disk_size) / 4096 * 4096;
	CHECK(view_fill_raw(view, fd, &spec, NULL) != (begin < disk_size ? -ECANCELED : 0));
	atomic_store(&stop, false);
	for (int err = -EINTR; err;) {
		spec.from = from;
		err = view_fill_raw(view, fd, &spec, NULL);
		CHECK(err != -EINTR && err != 0);
		if (err) /* what isn't behind a checkpoint is lost */
			CHECK(run("truncate -s %llu %s/out", (unsigned long long)from, dir));
	}
	close(fd);
	CHECK(run("cmp %s/want %s/out", dir, dir));
}

static void copy_to_device(struct view *view)
{
	int fd = open(device, O_RDWR);
	off_t end = lseek(fd, 0, SEEK_END);
	CHECK(fd < 0 || end < 0);
	CHECK(run("head -c %lld /dev/urandom | dd of=%s bs=1M status=none conv=fsync", (long long)end, device));
	CHECK(view_fill_raw(view, fd, &(struct fill_spec){0}, NULL));
	close(fd);
	CHECK(run("cmp -n %llu %s/want %s", (unsigned long long)disk_size, dir, device));
	fd = open(device, O_RDWR);
	CHECK(view_fill_raw(view, fd, &(struct fill_spec){.virtual_size = (uint64_t)end + 1}, NULL) != -ENOSPC);
	close(fd);
}

static void do_chain(bool may_share)
{
	enum image_format format = IMAGE_RAW;
	const char *name = make_chain(&format);
	struct view *view = open_view(name, format);
	copy_plainly(view, may_share);
	copy_allocated(view);
	copy_in_parts(view);
	if (*device)
		copy_to_device(view);
	copy_resized(view);
	view_put(view);
}

/* --- what root has ------------------------------------------------------------------------------------------------------------ */

static void make_device(void)
{
	char cmd[600];
	snprintf(cmd, sizeof cmd, "truncate -s 16M '%s/device.img' && losetup -f --show '%s/device.img' 2>/dev/null", top_dir, top_dir);
	FILE *p = geteuid() == 0 ? popen(cmd, "r") : NULL;
	if (p && !fgets(device, sizeof device, p))
		*device = '\0';
	if (p)
		pclose(p);
	device[strcspn(device, "\n")] = '\0';
}

/* A gigabyte that nobody copies. */
static void share_much(void)
{
	CHECK(run("cd %s && head -c 64M /dev/urandom >big.raw && qemu-img create -q -f qcow2 -b big.raw -F raw big.qcow2 1G && "
		  "qemu-io -f qcow2 -c 'write -P 7 70M 40M' -c 'write -P 8 10M 3M' -c 'write -P 9 900M 9M' big.qcow2 >log && sync -f big.raw && "
		  "qemu-img convert -O raw big.qcow2 want",
		  dir));
	struct view *view = open_view("big.qcow2", IMAGE_QCOW2);
	int fd = open_out(true);
	char before[100] = "", cmd[1000];
	snprintf(cmd, sizeof cmd, "df --output=used %s | tail -n 1", dir);
	FILE *p = popen(cmd, "r");
	CHECK(!fgets(before, sizeof before, p) || pclose(p));
	CHECK(view_fill_raw(view, fd, &(struct fill_spec){0}, NULL));
	close(fd);
	view_put(view);
	CHECK(run("cmp %s/want %s/out && test $(($(%s) - %d)) -lt 2000", dir, dir, cmd, atoi(before)));
}

static void do_xfs(int nr_chains)
{
	if (geteuid() != 0 || run("truncate -s 1G %s/xfs.img && mkfs.xfs -q -m reflink=1 %s/xfs.img && mkdir %s/xfs && mount -o loop %s/xfs.img %s/xfs", top_dir,
				  top_dir, top_dir, top_dir, top_dir) != 0)
		return;
	snprintf(dir, sizeof dir, "%s/xfs", top_dir);
	for (int i = 0; i < nr_chains; i++)
		do_chain(true);
	share_much();
	image_cache_free(cache); /* lets go of the filesystem */
	cache = NULL;
	CHECK(run("umount %s/xfs", top_dir));
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	int nr_chains = argc > 2 ? atoi(argv[2]) : 12;
	printf("seed %u\n", seed);
	fflush(stdout);
	srandom(seed);
	snprintf(top_dir, sizeof top_dir, "%s/block_fill.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(top_dir))
		return 2;
	snprintf(dir, sizeof dir, "%s", top_dir);
	CHECK(trust_new(&trust));
	CHECK(trust_add(trust, top_dir, NULL));
	CHECK(image_cache_new(trust, 0, &cache));
	make_device();
	for (int i = 0; i < nr_chains; i++)
		do_chain(false);
	do_xfs(nr_chains / 2);
	image_cache_free(cache);
	trust_free(trust);
	if (*device)
		CHECK(run("losetup -d %s", device));
	CHECK(run("rm -r %s", top_dir));
	puts("ok");
	return 0;
}
