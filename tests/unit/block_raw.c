/* limit: 120
 * Raw heads against a model: in a file that grows and shrinks, in a block device, and as what an overlay above is written into; QEMU reads the same and
 * is kept out. The device is a loop device, which takes root; without it a file stands in. block_raw [SEED] */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "block/merge.h"
#include "block/trust.h"
#include "block_test.h"

#define DISK_MAX   (4u << 20)
#define NR_WRITERS 4
#define SECTOR	   512u

static char device[100];
static int dirfd;
static struct image_cache *cache;
static unsigned char model[DISK_MAX], seen[DISK_MAX];
static uint64_t disk_size;

static void compare(const void *bytes, uint64_t off, uint64_t len, const char *what)
{
	const unsigned char *p = bytes;
	for (uint64_t i = 0; i < len; i++)
		if (p[i] != model[off + i]) {
			printf("%s: byte %llu is %02x, not %02x (left in %s)\n", what, (unsigned long long)(off + i), p[i], model[off + i], dir);
			exit(1);
		}
}

/* What the map calls zeros is zeros; it goes on to the end. */
static void check_map(struct head *head)
{
	struct extent e;
	for (uint64_t off = 0; off < disk_size; off += e.len) {
		CHECK(head_map(head, off, disk_size - off, &e));
		CHECK(!e.len || (e.kind != EXTENT_DATA && e.kind != EXTENT_ZERO) || (e.kind == EXTENT_DATA && e.host_off != off));
		for (uint64_t i = off; e.kind == EXTENT_ZERO && i < off + e.len; i++)
			CHECK(model[i] != 0);
	}
	CHECK(head_map(head, disk_size, 1000, &e));
	CHECK(e.kind != EXTENT_ZERO);
}

static void check_all(struct head *head)
{
	CHECK(head_virtual_size(head) != disk_size);
	memset(seen, 0xee, sizeof seen);
	CHECK(head_read(head, seen, sizeof seen, 0));
	compare(seen, 0, sizeof seen, "the head");
	check_map(head);
}

static void write_something(struct head *head, bool may_grow)
{
	static unsigned char buf[300000];
	uint64_t off = pick(may_grow && random() % 4 == 0 ? DISK_MAX : disk_size), len = 1 + pick(random() % 3 ? 20000 : sizeof buf);
	uint64_t end = may_grow ? DISK_MAX : disk_size;
	if (random() % 2)
		off &= ~4095ull;
	if (len > end - off)
		len = end - off;
	memset(buf, random() % 8 ? (int)random() : 0, len);
	CHECK(head_write(head, buf, len, off));
	memcpy(model + off, buf, len);
	if (off + len > disk_size)
		disk_size = off + len;
}

static void discard_something(struct head *head)
{
	uint64_t off = pick(disk_size), len = 1 + pick(random() % 3 ? 20000 : DISK_MAX);
	CHECK(head_discard(head, off, len));
	memset(model + off, 0, len > DISK_MAX - off ? DISK_MAX - off : len);
}

static void resize_it(struct head *head)
{
	uint64_t size = random() % 8 ? pick(DISK_MAX) : 0;
	CHECK(head_resize(head, size));
	if (size < disk_size)
		memset(model + size, 0, disk_size - size);
	disk_size = size;
}

/* A file, or a device by the link to it. */
static int open_named(const char *name, struct head **ret)
{
	if (strcmp(name, "volume") != 0)
		return head_open_raw(dirfd, name, path_of(name), ret, NULL);
	int fd = openat(dirfd, name, O_RDWR | O_EXCL | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	int err = head_open_raw(fd, "", path_of(name), ret, NULL);
	close(fd);
	return err;
}

static void reopen(struct head **head, const char *name)
{
	CHECK(head_close(*head));
	CHECK(open_named(name, head));
	disk_size = (disk_size + SECTOR - 1) / SECTOR * SECTOR;
}

static void compare_with_qemu(const char *name)
{
	FILE *f = fopen(path_of("model"), "w");
	CHECK(!f || fwrite(model, 1, disk_size, f) != disk_size || fclose(f));
	CHECK(run("qemu-img convert -f raw -O raw '%s/%s' '%s/out' && cmp '%s/out' '%s/model'", dir, name, dir, dir, dir));
}

static void change_it(struct head **head, const char *name, bool may_grow)
{
	for (int i = 0; i < 300; i++) {
		switch (random() % 10) {
		case 0: discard_something(*head); break;
		case 1:
			if (may_grow)
				resize_it(*head);
			break;
		case 2: CHECK(random() % 4 ? head_flush(*head) : 0); break;
		case 3: check_all(*head); break;
		case 4:
			if (random() % 4 == 0)
				reopen(head, name);
			break;
		default: write_something(*head, may_grow);
		}
	}
	reopen(head, name);
	check_all(*head);
}

/* --- many at a time ---------------------------------------------------------------------------------------------------- */

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
	for (int i = 0; i < 2000; i++) {
		uint64_t off = ((uint64_t)rand_r(&w->random) % (disk_size / SECTOR / NR_WRITERS) * NR_WRITERS + w->index) * SECTOR;
		int fill = rand_r(&w->random) % 3 ? rand_r(&w->random) : 0;
		memset(model + off, fill, SECTOR);
		CHECK(fill ? head_write(w->head, model + off, SECTOR, off) : head_discard(w->head, off, SECTOR));
		CHECK(head_read(w->head, buf, SECTOR, off));
		compare(buf, off, SECTOR, "a writer");
		CHECK(i % 200 == 0 ? head_flush(w->head) : 0);
	}
	return NULL;
}

static void test_threads(struct head *head)
{
	struct writer writers[NR_WRITERS];
	for (unsigned i = 0; i < NR_WRITERS; i++) {
		writers[i] = (struct writer){.head = head, .index = i, .random = (unsigned)random()};
		pthread_create(&writers[i].thread, NULL, write_on, &writers[i]);
	}
	for (unsigned i = 0; i < NR_WRITERS; i++)
		pthread_join(writers[i].thread, NULL);
	check_all(head);
}

/* --- what it refuses ------------------------------------------------------------------------------------------------------- */

static void check_refusals(struct head *head)
{
	struct overlay_spec spec = {disk_size, "x", IMAGE_RAW};
	CHECK(head_adopt(head, NULL, &spec) != -EOPNOTSUPP || head_share(head, NULL, 0, SECTOR) != -EOPNOTSUPP);
	CHECK(head_pull(head, 1, 0, SECTOR, NULL) != -EOPNOTSUPP || head_rebase(head, NULL, NULL, IMAGE_RAW) != -EOPNOTSUPP);
	CHECK(head_is_blank(head) || head_is_untouched(head) || head_below(head));
}

static void check_locks(const char *name)
{
	struct head *other = NULL;
	CHECK(open_named(name, &other) != -EBUSY);
	CHECK(run("! qemu-io -f raw -c 'write 0 512' '%s/%s' >'%s/log' 2>&1 && grep -q lock '%s/log'", dir, name, dir, dir));
}

static void test_file(void)
{
	struct head *head = NULL;
	struct overlay_facts facts;
	memset(model, 0, sizeof model);
	disk_size = 100 + pick(DISK_MAX - 100);
	FILE *f = fopen(path_of("file.raw"), "w");
	for (uint64_t i = 0; i < disk_size; i++)
		model[i] = (unsigned char)(i / 4096 % 3);
	CHECK(!f || fwrite(model, 1, disk_size, f) != disk_size || fclose(f));
	CHECK(head_open_raw(dirfd, "file.raw", path_of("file.raw"), &head, NULL));
	disk_size = (disk_size + SECTOR - 1) / SECTOR * SECTOR; /* as QEMU has it */
	check_all(head);
	check_locks("file.raw");
	change_it(&head, "file.raw", true);
	CHECK(head_resize(head, DISK_MAX));
	disk_size = DISK_MAX;
	test_threads(head);
	check_refusals(head);
	struct stat st;
	CHECK(head_discard(head, 0, DISK_MAX));
	CHECK(head_stat(head, &st)->st_size != DISK_MAX || st.st_blocks != 0);
	memset(model, 0, sizeof model);
	write_something(head, false);
	CHECK(head_close(head));
	compare_with_qemu("file.raw");
	CHECK(raw_settle(dirfd, "file.raw", path_of("file.raw"), &facts, NULL));
	CHECK(facts.virtual_size != disk_size || facts.empty || facts.has_backing || !S_ISREG(facts.st.st_mode));
	CHECK(symlinkat("file.raw", dirfd, "link"));
	CHECK(head_open_raw(dirfd, "link", path_of("link"), &head, NULL) != -ELOOP);
}

/* --- a device ------------------------------------------------------------------------------------------------------------------ */

/* In its own directory stands a link, as LVM makes it. */
static bool make_device(void)
{
	CHECK(run("truncate -s %u '%s/device.img'", DISK_MAX, dir));
	snprintf(device, sizeof device, "%s", geteuid() == 0 ? "" : "-");
	if (*device)
		return false;
	char cmd[600];
	snprintf(cmd, sizeof cmd, "losetup -f --show '%s/device.img' 2>/dev/null", dir);
	FILE *p = popen(cmd, "r");
	bool made = p && fgets(device, sizeof device, p);
	if (p)
		pclose(p);
	device[strcspn(device, "\n")] = '\0';
	return made && symlinkat(device, dirfd, "volume") == 0;
}

static void test_device(void)
{
	struct head *head = NULL;
	struct overlay_facts facts;
	uint64_t bytes = 0;
	CHECK(run("head -c %u /dev/urandom >'%s/old'; dd if='%s/old' of=%s bs=1M status=none conv=fsync", DISK_MAX, dir, dir, device));
	FILE *f = fopen(path_of("old"), "r");
	CHECK(!f || fread(model, 1, DISK_MAX, f) != DISK_MAX || fclose(f));
	disk_size = DISK_MAX;
	CHECK(head_open_raw(dirfd, "volume", path_of("volume"), &head, NULL) != -ELOOP);
	CHECK(open_named("volume", &head));
	check_all(head);
	check_locks("volume");
	change_it(&head, "volume", false);
	test_threads(head);
	check_refusals(head);
	CHECK(head_write(head, model, SECTOR, DISK_MAX) != -ENOSPC || head_write(head, model, 2 * SECTOR, DISK_MAX - SECTOR) != -ENOSPC);
	CHECK(head_resize(head, DISK_MAX + SECTOR) != -ENOSPC || head_resize(head, 0) != -EOPNOTSUPP || head_resize(head, DISK_MAX) != 0);
	check_all(head);
	CHECK(head_close(head));
	compare_with_qemu("volume");
	int fd = open(device, O_RDWR | O_EXCL | O_CLOEXEC);
	CHECK(overlay_allocated(fd, "", &bytes));
	CHECK(bytes != DISK_MAX);
	CHECK(raw_settle(fd, "", path_of("volume"), &facts, NULL));
	CHECK(facts.virtual_size != DISK_MAX || !S_ISBLK(facts.st.st_mode));
	close(fd);
	CHECK(head_open_raw(dirfd, "", path_of("volume"), &head, NULL) != -ENOTBLK);
	CHECK(run("losetup -d %s", device));
}

/* --- as a destination ------------------------------------------------------------------------------------------------------------ */

/* An overlay over it, whose bytes it then gets while somebody reads the chain. */
static void test_absorb(void)
{
	struct head *head = NULL;
	struct stat st;
	disk_size = (100 + pick(DISK_MAX / SECTOR - 100)) * SECTOR;
	memset(model, 0, sizeof model);
	for (uint64_t i = 0; i < disk_size; i++)
		model[i] = (unsigned char)(i / 65536);
	uint64_t file_size = disk_size - pick(2) * 100; /* it may end inside its last sector */
	memset(model + file_size, 0, disk_size - file_size);
	FILE *f = fopen(path_of("base.raw"), "w");
	CHECK(!f || fwrite(model, 1, file_size, f) != file_size || fclose(f));
	struct overlay_spec spec = {disk_size, "base.raw", IMAGE_RAW};
	CHECK(overlay_create(dirfd, "top.qcow2", &spec, 0600));
	struct view *base = NULL, *top = NULL, *late = NULL;
	struct disk_source source = {path_of("base.raw"), IMAGE_RAW, NULL};
	CHECK(view_open(cache, &source, &base, NULL));
	CHECK(head_open(dirfd, "top.qcow2", path_of("top.qcow2"), base, &head, NULL));
	for (int i = 0; i < 40; i++)
		random() % 4 ? write_something(head, false) : discard_something(head);
	CHECK(head_close(head));
	char top_path[400];
	snprintf(top_path, sizeof top_path, "%s", path_of("top.qcow2"));
	source = (struct disk_source){top_path, IMAGE_QCOW2, NULL};
	CHECK(view_open(cache, &source, &top, NULL));
	CHECK(view_lock(top, NULL));
	CHECK(fstatat(dirfd, "base.raw", &st, 0) || image_cache_expect_changes(cache, st.st_dev, st.st_ino, true));
	CHECK(head_open_raw_frozen(dirfd, "base.raw", path_of("base.raw"), &head, NULL));
	CHECK(head_claim(head, cache, NULL));
	CHECK(run("! qemu-io -r -f raw -c 'read 0 512' '%s/base.raw' >'%s/log' 2>&1 && grep -q lock '%s/log'", dir, dir, dir));
	CHECK(view_open(cache, &source, &late, NULL));
	CHECK(view_lock(late, NULL));
	CHECK(head_virtual_size(head) != disk_size);
	uint64_t step = 1 + pick(DISK_MAX), stored = 0;
	for (uint64_t off = 0; off < disk_size; off += step) {
		CHECK(head_absorb(head, top, 1, off, step, &stored));
		CHECK(view_read(top, seen, disk_size, 0));
		compare(seen, 0, disk_size, "the chain");
	}
	check_all(head);
	CHECK(head_close(head));
	CHECK(image_cache_expect_changes(cache, st.st_dev, st.st_ino, false));
	view_unlock(late);
	view_unlock(top);
	view_put(late);
	view_put(top);
	view_put(base);
	compare_with_qemu("base.raw");
	CHECK(unlinkat(dirfd, "base.raw", 0) || unlinkat(dirfd, "top.qcow2", 0));
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	printf("seed %u\n", seed);
	srandom(seed);
	snprintf(dir, sizeof dir, "%s/block_raw.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(dir))
		return 2;
	dirfd = open(dir, O_RDONLY | O_DIRECTORY);
	struct trust *trust = NULL;
	CHECK(trust_new(&trust));
	CHECK(trust_add(trust, dir, NULL));
	CHECK(image_cache_new(trust, 0, &cache));
	test_file();
	for (int i = 0; i < 8; i++)
		test_absorb();
	if (make_device())
		test_device();
	image_cache_free(cache);
	trust_free(trust);
	close(dirfd);
	CHECK(run("rm -r '%s'", dir));
	puts("ok");
	return 0;
}
