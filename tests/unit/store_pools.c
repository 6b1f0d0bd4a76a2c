/* The ledger of a pool: whatever a file's making is interrupted at, the next start leaves nothing behind that it doesn't know, and touches nothing that was
 * there before. */
#include <fcntl.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/mem.h"
#include "store/store_internal.h"
#include "store_test.h"

static struct store *store;
static const struct layer_owner owner = {.mode = 0600};

static void open_store(const char *pool_name)
{
	char source[500], pool[500];
	snprintf(source, sizeof source, "%s/src", dir);
	snprintf(pool, sizeof pool, "%s/fast", dir);
	const struct pool_config pools[] = {{pool_name, pool}};
	struct store_config config = {.source_dir = source, .pools = pools, .nr_pools = pool_name ? 1 : 0, .log = {keep_event, NULL}};
	CHECK_ERR(store_open(&config, &store, &why), 0);
}

static void reopen(void)
{
	store_close(store);
	open_store("fast");
}

/* Files in the pool and entries in its ledger. */
static void check_counts(int nr_files, int nr_entries)
{
	run("test $(ls -A %s/fast | wc -l) = %d || { ls -lA %s/fast; exit 1; }", dir, nr_files, dir);
	run("test $(ls -A %s/src/.vmsnapfs/pools/fast | wc -l) = %d || { ls -lA %s/src/.vmsnapfs/pools/fast; exit 1; }", dir, nr_entries, dir);
}

static struct pool *fast(void)
{
	struct pool *pool = pool_find(store, "fast", 4);
	CHECK(pool);
	return pool;
}

static void make_file(const char *name)
{
	auto_close int fd = openat(fast()->dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
}

/* --- what isn't ours ------------------------------------------------------------------------------------------------- */

static void foreign_files_stay(void)
{
	struct overlay_spec spec = {.virtual_size = 1 << 20};
	char name[LAYER_NAME_MAX] = "fast/theirs.qcow2";
	int fd = -1;
	put_file("fast/theirs.qcow2", "something");
	CHECK_ERR(layer_create(store, &spec, NULL, &owner, name, &why), -EEXIST);
	CHECK_ERR(layer_file_begin(store, name, &owner, false, &fd, &why), -EEXIST);
	CHECK(!pool_owns(fast(), "theirs.qcow2"));
	layer_file_unlink(store, name);
	layer_file_cancel(store, name);
	reopen();
	check_counts(1, 0);
	/* A file of ours whose name somebody else's has by now. */
	snprintf(name, sizeof name, "fast/ours.qcow2");
	CHECK_ERR(layer_create(store, &spec, NULL, &owner, name, &why), 0);
	CHECK(pool_owns(fast(), "ours.qcow2"));
	run("cp %s/fast/ours.qcow2 %s/fast/new && mv %s/fast/new %s/fast/ours.qcow2", dir, dir, dir, dir);
	CHECK(!pool_owns(fast(), "ours.qcow2"));
	layer_abandon(store, name);
	check_counts(2, 0);
	reopen();
	check_counts(2, 0);
	/* While it was being made, too. */
	char part[POOL_PART_MAX];
	CHECK_ERR(pool_part_begin(fast(), "late.raw", POOL_NEW, part), 0);
	make_file(part);
	make_file("late.raw");
	CHECK_ERR(pool_part_publish(fast(), "late.raw", POOL_NEW), -EEXIST);
	pool_part_abandon(fast(), "late.raw");
	check_counts(3, 0);
	run("rm %s/fast/*", dir);
}

/* --- interrupted --------------------------------------------------------------------------------------------------------- */

static void interrupted_making(void)
{
	char part[POOL_PART_MAX];
	for (int step = 0; step < 4; step++) {
		CHECK_ERR(pool_part_begin(fast(), "new.raw", POOL_NEW, part), 0);
		if (step >= 1)
			make_file(part);
		if (step >= 2)
			CHECK_ERR(pool_part_publish(fast(), "new.raw", POOL_NEW), 0);
		if (step == 2) { /* named in the ledger alone */
			char from[600], to[600];
			snprintf(from, sizeof from, "%s/fast/new.raw", dir);
			snprintf(to, sizeof to, "%s/fast/%s", dir, part);
			CHECK(rename(from, to) == 0);
		}
		reopen();
		check_counts(0, 0);
	}
}

static void check_beneath_names(const char *name, int nr_files)
{
	CHECK(pool_owns(fast(), name));
	run("test $(ls -A %s/fast | wc -l) = %d", dir, nr_files);
}

/* One file is put in the place of another: at each step the name is ours, and nothing else stays. */
static void interrupted_replacing(void)
{
	struct overlay_spec spec = {.virtual_size = 1 << 20};
	for (int step = 0; step < 3; step++) {
		char name[LAYER_NAME_MAX] = "fast/disk.qcow2", tmp[LAYER_TEMPORARY_MAX];
		CHECK_ERR(layer_create(store, &spec, NULL, &owner, name, &why), 0);
		CHECK_ERR(layer_file_begin_replace(store, name, tmp), 0);
		if (step >= 1)
			CHECK_ERR(overlay_create(fast()->dirfd, tmp, &spec, 0600), 0);
		if (step >= 2)
			CHECK_ERR(layer_file_replace(store, name, tmp), 0);
		check_beneath_names("disk.qcow2", step == 1 ? 2 : 1);
		reopen(); /* no VM needs it */
		check_counts(0, 0);
	}
}

static void interrupted_linking(void)
{
	struct overlay_spec spec = {.virtual_size = 1 << 20};
	char name[LAYER_NAME_MAX] = "fast/disk.qcow2", other[LAYER_NAME_MAX] = "fast/other.qcow2";
	CHECK_ERR(layer_create(store, &spec, NULL, &owner, name, &why), 0);
	CHECK_ERR(layer_file_link(store, name, other), 0);
	CHECK_ERR(layer_file_link(store, name, other), -EEXIST);
	CHECK(pool_owns(fast(), "disk.qcow2") && pool_owns(fast(), "other.qcow2"));
	layer_file_unlink(store, name);
	check_counts(1, 1);
	reopen();
	check_counts(0, 0);
}

/* --- what goes on ------------------------------------------------------------------------------------------------------------- */

static void raw_files(void)
{
	int fd = -1;
	CHECK_ERR(layer_file_begin(store, "fast/big.img", &owner, false, &fd, &why), 0);
	CHECK(file_write(fd, "abc", 3, 0) == 0);
	close(fd);
	CHECK(!layer_file_is_finished(store, "fast/big.img"));
	CHECK_ERR(layer_file_begin(store, "fast/big.img", &owner, false, &fd, &why), -EEXIST);
	CHECK_ERR(layer_file_begin(store, "fast/big.img", &owner, true, &fd, &why), 0);
	char got[4] = "";
	CHECK(file_read(fd, got, 3, 0) == 3);
	CHECK_STR(got, "abc");
	close(fd);
	CHECK_ERR(layer_file_finish(store, "fast/big.img", &why), 0);
	CHECK(layer_file_is_finished(store, "fast/big.img"));
	CHECK_ERR(layer_file_begin(store, "fast/big.img", &owner, true, &fd, &why), -EEXIST);
	check_counts(1, 1);
	layer_file_unlink(store, "fast/big.img");
	check_counts(0, 0);
	CHECK_ERR(layer_file_begin(store, "fast/big.img", &owner, false, &fd, &why), 0);
	close(fd);
	layer_file_cancel(store, "fast/big.img");
	check_counts(0, 0);
}

static void names(void)
{
	int fd = -1;
	char longest[LAYER_NAME_MAX] = "fast/";
	memset(longest + 5, 'x', POOL_FILE_MAX + 1);
	longest[5 + POOL_FILE_MAX + 1] = '\0';
	CHECK_ERR(layer_file_begin(store, longest, &owner, false, &fd, &why), -ENAMETOOLONG);
	longest[5 + POOL_FILE_MAX] = '\0';
	CHECK_ERR(layer_file_begin(store, longest, &owner, false, &fd, &why), 0);
	close(fd);
	CHECK_ERR(layer_file_finish(store, longest, &why), 0);
	CHECK_ERR(layer_file_begin(store, "fast/.hidden", &owner, false, &fd, &why), -EINVAL);
	CHECK_ERR(layer_file_begin(store, "slow/disk.raw", &owner, false, &fd, &why), -ENODEV);
	reopen();
	check_counts(0, 0);
}

/* --- configuration ------------------------------------------------------------------------------------------------------------- */

static void refused(const char *name, const char *other, const char *sub)
{
	char source[500], pool[500], again[520];
	snprintf(source, sizeof source, "%s/src", dir);
	snprintf(pool, sizeof pool, "%s/fast", dir);
	snprintf(again, sizeof again, "%s/%s", dir, sub);
	const struct pool_config pools[] = {{name, pool}, {other, again}};
	struct store_config config = {.source_dir = source, .pools = pools, .nr_pools = 2, .log = {keep_event, NULL}};
	struct store *none = NULL;
	CHECK_ERR(store_open(&config, &none, &why), -EINVAL);
}

int main(void)
{
	dir_init();
	run("mkdir %s/fast", dir);
	open_store("fast");
	foreign_files_stay();
	interrupted_making();
	interrupted_replacing();
	interrupted_linking();
	raw_files();
	names();
	store_close(store);
	refused("a", "b", "fast");
	refused("a", "a", "src");
	refused("a", "b", "src/.vmsnapfs/layers");
	refused(".a", "b", "src");
	dir_done();
	return 0;
}
