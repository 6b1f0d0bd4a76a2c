/* Block devices in a pool: what comes to the name of a device or of a file later on is never written to, nor is a device that somebody else uses. Takes root and
 * loop devices; without them nothing is done. */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/mem.h"
#include "block/image_locks.h"
#include "store/store_internal.h"
#include "store_test.h"

#define DEVICE_SIZE (4u << 20)

static struct store *store;
static char loops[2][100];
static const struct layer_owner owner = {.mode = 0600};

static void open_store(void)
{
	char source[500], pools_dir[2][500];
	const char *trusted[] = {"/dev"};
	snprintf(source, sizeof source, "%s/src", dir);
	snprintf(pools_dir[0], sizeof pools_dir[0], "%s/fast", dir);
	snprintf(pools_dir[1], sizeof pools_dir[1], "%s/slow", dir);
	const struct pool_config pools[] = {{"fast", pools_dir[0]}, {"slow", pools_dir[1]}};
	struct store_config config = {
		.source_dir = source,
		.pools = pools,
		.nr_pools = 2,
		.trust_dirs = trusted,
		.nr_trust_dirs = 1,
		.allow_devices = true,
		.log = {keep_event, NULL},
	};
	CHECK_ERR(store_open(&config, &store, &why), 0);
}

static bool make_devices(void)
{
	for (int i = 0; i < 2 && geteuid() == 0; i++) {
		char cmd[600];
		run("tr '\\0' %d </dev/zero | head -c %u >%s/device%d", i + 1, DEVICE_SIZE, dir, i);
		snprintf(cmd, sizeof cmd, "losetup -f --show %s/device%d 2>/dev/null", dir, i);
		FILE *p = popen(cmd, "r");
		if (!p || !fgets(loops[i], sizeof loops[i], p))
			*loops[i] = '\0';
		if (p)
			pclose(p);
		loops[i][strcspn(loops[i], "\n")] = '\0';
	}
	return *loops[0] && *loops[1];
}

static void drop_devices(void)
{
	for (int i = 0; i < 2; i++)
		if (*loops[i])
			run("losetup -d %s", loops[i]);
	*loops[0] = *loops[1] = '\0';
}

/* Nothing has been written to device I. */
static void check_untouched(int i)
{
	run("tr '\\0' %d </dev/zero | head -c %u | cmp - %s", i + 1, DEVICE_SIZE, loops[i]);
}

static int begin(const char *layer, bool again)
{
	int fd = -1;
	int err = layer_file_begin(store, layer, &owner, again, &fd, &why);
	if (!err)
		close(fd);
	return err;
}

/* Whether a head could be opened; LAYER is a raw one. */
static int open_head(const char *layer)
{
	struct layer_place at;
	struct head *head = NULL;
	auto_close int device = -1;
	int err = layer_place_to_open(store, layer, O_RDWR | O_EXCL, &at, &device, &why);
	if (!err)
		err = head_open_raw(at.dirfd, at.name, layer, &head, &why);
	return err ? err : head_close(head);
}

/* --- being filled ----------------------------------------------------------------------------------------------------------- */

static void exchanged_while_filled(void)
{
	run("ln -s %s %s/fast/a.raw", loops[0], dir);
	CHECK_ERR(begin("fast/a.raw", false), 0);
	CHECK_ERR(begin("fast/a.raw", true), 0);
	CHECK(!layer_file_is_finished(store, "fast/a.raw"));
	/* A file, a link to one, another device, nothing. */
	run("rm %s/fast/a.raw && echo theirs >%s/fast/a.raw", dir, dir);
	CHECK_ERR(begin("fast/a.raw", true), -ESTALE);
	run("mv %s/fast/a.raw %s/theirs && ln -s %s/theirs %s/fast/a.raw", dir, dir, dir, dir);
	CHECK_ERR(begin("fast/a.raw", true), -ESTALE);
	run("echo theirs | cmp - %s/theirs", dir);
	run("ln -sfn %s %s/fast/a.raw", loops[1], dir);
	CHECK_ERR(begin("fast/a.raw", true), -ESTALE);
	run("rm %s/fast/a.raw", dir);
	CHECK_ERR(begin("fast/a.raw", true), -ESTALE);
	/* The one that was meant, by another name. */
	struct stat st;
	char node[500];
	CHECK(stat(loops[0], &st) == 0);
	snprintf(node, sizeof node, "%s/fast/a.raw", dir);
	CHECK(mknod(node, S_IFBLK | 0600, st.st_rdev) == 0);
	CHECK_ERR(begin("fast/a.raw", true), 0);
	layer_file_cancel(store, "fast/a.raw");
	CHECK(!pool_owns(pool_find(store, "fast", 4), "a.raw"));
	/* A device where a file was being made. */
	CHECK_ERR(begin("fast/b.raw", false), 0);
	run("ln -s %s %s/fast/b.raw", loops[1], dir);
	CHECK_ERR(begin("fast/b.raw", true), -EBUSY);
	layer_file_cancel(store, "fast/b.raw");
	run("rm %s/fast/*", dir);
	check_untouched(0);
	check_untouched(1);
}

static void used_by_others(void)
{
	const struct overlay_spec spec = {.virtual_size = 1 << 20};
	run("ln -s %s %s/fast/a.raw && ln -s %s %s/fast/a.qcow2", loops[0], dir, loops[0], dir);
	int fd = open(loops[0], O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	CHECK_ERR(image_locks_take(fd, IMAGE_LOCK_WRITE, loops[0], &why), 0);
	CHECK_ERR(begin("fast/a.raw", false), -EBUSY);
	CHECK_ERR(layer_file_make_overlay(store, "fast/a.qcow2", &spec, &owner, &why), -EBUSY);
	image_locks_drop(fd);
	CHECK_ERR(begin("fast/a.raw", false), 0);
	CHECK_ERR(image_locks_take(fd, IMAGE_LOCK_WRITE, loops[0], &why), 0);
	CHECK_ERR(begin("fast/a.raw", true), -EBUSY); /* a VM was started with it meanwhile */
	close(fd);
	/* And while it is filled it is locked. */
	CHECK_ERR(layer_file_begin(store, "fast/a.raw", &owner, true, &fd, &why), 0);
	run("! qemu-io -f raw -c 'write 0 512' %s >%s/log 2>&1 && grep -q lock %s/log", loops[0], dir, dir);
	close(fd);
	/* By other names it is nobody's to take. */
	run("ln -s %s %s/fast/b.raw && ln -s %s %s/slow/b.raw", loops[0], dir, loops[0], dir);
	CHECK_ERR(begin("fast/b.raw", false), -EBUSY);
	CHECK_ERR(begin("slow/b.raw", false), -EBUSY);
	CHECK_ERR(layer_file_make_overlay(store, "fast/a.qcow2", &spec, &owner, &why), -EBUSY);
	CHECK(strstr(why.text, "/fast/a.raw"));
	layer_file_cancel(store, "fast/a.raw");
	CHECK_ERR(begin("slow/b.raw", false), 0);
	layer_file_cancel(store, "slow/b.raw");
	run("rm %s/fast/* %s/slow/*", dir, dir);
	check_untouched(0);
}

/* --- in use ------------------------------------------------------------------------------------------------------------------- */

static void exchanged_later(void)
{
	uint64_t bytes = 0;
	run("ln -s %s %s/fast/a.raw && ln -s %s %s/fast/found", loops[0], dir, loops[1], dir);
	int fd = -1;
	CHECK_ERR(layer_file_begin(store, "fast/a.raw", &owner, false, &fd, &why), 0);
	CHECK_ERR(layer_file_finish(store, "fast/a.raw", fd, &why), 0);
	close(fd);
	CHECK_ERR(open_head("fast/a.raw"), 0);
	CHECK_ERR(open_head("fast/found"), 0);
	CHECK_ERR(layer_allocated(store, "fast/a.raw", &bytes), 0);
	CHECK(bytes == DEVICE_SIZE);
	run("ln -sfn %s %s/fast/a.raw", loops[1], dir);
	CHECK_ERR(open_head("fast/a.raw"), -ESTALE);
	CHECK(!pool_owns(pool_find(store, "fast", 4), "a.raw"));
	/* One that leads there by way of what isn't trusted (/dev is). */
	run("mkdir %s/elsewhere && cp -a %s %s/elsewhere/sdb && ln -sfn %s/elsewhere/sdb %s/fast/a.raw", dir, loops[0], dir, dir, dir);
	CHECK_ERR(open_head("fast/a.raw"), strncmp(dir, "/dev/", 5) == 0 ? 0 : -EACCES);
	run("ln -sfn %s %s/fast/a.raw", loops[0], dir);
	CHECK_ERR(open_head("fast/a.raw"), 0);
	/* It was retargeted for a moment. */
	fd = open(loops[1], O_RDWR | O_CLOEXEC);
	CHECK_ERR(pool_check_device(pool_find(store, "fast", 4), "a.raw", fd), -ESTALE);
	close(fd);
	/* With a restart a logical volume gets another number. */
	run("sed -i 's/^device [0-9]*:/device 251:/' %s/src/.vmsnapfs/pools/fast/a.raw", dir);
	CHECK_ERR(open_head("fast/a.raw"), 0);
	const char *entry = "src/.vmsnapfs/pools/fast/a.raw";
	run("rm %s/fast/a.raw && cp -a %s %s/fast/a.raw", dir, loops[0], dir);
	CHECK_ERR(open_head("fast/a.raw"), 0);
	/* Without anything that it is known by. */
	run("grep -q ^serial %s/%s && sed -i /^serial/d %s/%s", dir, entry, dir, entry);
	CHECK_ERR(open_head("fast/a.raw"), -ESTALE);
	run("rm %s/fast/a.raw && ln -s %s %s/fast/a.raw", dir, loops[0], dir);
	CHECK_ERR(open_head("fast/a.raw"), 0);
	run("sed -i /^link/d %s/%s", dir, entry);
	CHECK_ERR(open_head("fast/a.raw"), -ESTALE);
	layer_file_unlink(store, "fast/a.raw");
	run("rm -r %s/fast/* %s/elsewhere", dir, dir);
}

static void device_instead_of_file(void)
{
	struct disk_file *file = NULL;
	struct stat st, now;
	struct vm *vm = store_find(store, PLACE_POOLS, "fast");
	CHECK(vm);
	CHECK_ERR(disk_create(store, vm, "x.img", 0600, 0, 0, &file, &why), 0);
	CHECK_ERR(disk_write(file, "x", 1, 0), 0);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
	run("mv %s/fast/x.img %s/x && ln -s %s %s/fast/x.img", dir, dir, loops[1], dir);
	CHECK_ERR(open_head("fast/x.img"), -ESTALE);
	vm = store_find(store, PLACE_POOLS, "fast");
	const struct vm_disk *disk = disk_of(vm, NULL, "x.img");
	CHECK(disk);
	CHECK_ERR(disk_open(store, vm, NULL, disk, true, &file, &why), -ESTALE);
	CHECK(stat(loops[1], &st) == 0);
	disk_chmod(store, vm, "x.img", 0777);
	CHECK(stat(loops[1], &now) == 0 && now.st_mode == st.st_mode);
	run("mv %s/x %s/fast/x.img", dir, dir);
	CHECK_ERR(disk_chmod(store, vm, "x.img", 0640), 0);
	run("test $(stat -c %%a %s/fast/x.img) = 640", dir);
	CHECK_ERR(disk_remove(store, vm, "x.img", &why), 0);
	vm_put(vm);
	check_untouched(1);
}

/* It is free again with the disk that lay on it. */
static void taken_and_given_back(void)
{
	run("cd %s/src && qemu-img create -q -f qcow2 web.qcow2 1M && qemu-img create -q -f qcow2 -b web.qcow2 -F qcow2 leaf.qcow2", dir);
	run("cp -a %s %s/fast/v", loops[0], dir);
	store_close(store);
	open_store();
	CHECK_ERR(store_start(store), 0);
	struct vm *pool = store_find(store, PLACE_POOLS, "fast"); /* which shows it as found, for a while yet */
	CHECK(pool);
	vm_put(pool);
	for (int round = 0; round < 3; round++) {
		struct vm *from = store_find(store, PLACE_VMS, "leaf"), *vm = NULL;
		const struct clone_spec spec = {.name = "clone", .all = {.mode = CLONE_FULL, .format = IMAGE_RAW, .pool = "fast", .volume = "v"}};
		CHECK(from);
		CHECK_ERR(store_clone_with(store, from, vm_find_snapshot(from, "web"), &spec, &vm, &why), 0);
		vm_put(from);
		vm_put(vm);
		wait_for_jobs(store);
		vm = store_find(store, PLACE_CLONES, "clone");
		CHECK(vm);
		CHECK_STR(vm->disks[0].layer, "fast/v");
		CHECK_ERR(store_remove(store, vm, &why), 0);
		vm_put(vm);
		CHECK(!pool_owns(pool_find(store, "fast", 4), "v"));
	}
}

int main(void)
{
	dir_init();
	run("mkdir %s/fast %s/slow", dir, dir);
	atexit(drop_devices);
	if (make_devices()) {
		open_store();
		exchanged_while_filled();
		used_by_others();
		exchanged_later();
		device_instead_of_file();
		taken_and_given_back();
		store_close(store);
	}
	drop_devices();
	dir_done();
	return 0;
}
