/* The ledger of a pool: whatever a file's making is interrupted at, the next start leaves nothing behind that it doesn't know, and touches nothing that was
 * there before. */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/file.h"
#include "base/mem.h"
#include "store/store_internal.h"
#include "store_test.h"

static struct store *store;
static const struct layer_owner owner = {.mode = 0600};

static void open_store(const char *pool_name)
{
	char source[500], pool[500], store_dir[500];
	snprintf(source, sizeof source, "%s/src", dir);
	snprintf(pool, sizeof pool, "%s/fast", dir);
	snprintf(store_dir, sizeof store_dir, "%s/s/store", dir);
	const struct pool_config pools[] = {{pool_name, pool}};
	struct store_config config = {.source_dir = source, .store_dir = store_dir, .pools = pools, .nr_pools = pool_name ? 1 : 0, .log = {keep_event, NULL}};
	CHECK_ERR(store_open(&config, &store, &why), 0);
}

static void reopen(void)
{
	store_close(store);
	open_store("fast");
}

/* The system's, but for one file. */
static ino_t failing_sync;

int fdatasync(int fd)
{
	struct stat st;
	if (failing_sync && fstat(fd, &st) == 0 && st.st_ino == failing_sync) {
		errno = EIO;
		return -1;
	}
	return (int)syscall(SYS_fdatasync, fd);
}

/* Files in the pool and entries in its ledger. */
static void check_counts(int nr_files, int nr_entries)
{
	run("test $(ls -A %s/fast | wc -l) = %d || { ls -lA %s/fast; exit 1; }", dir, nr_files, dir);
	run("test $(ls -A %s/s/store/pools/fast | wc -l) = %d || { ls -lA %s/s/store/pools/fast; exit 1; }", dir, nr_entries, dir);
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
	CHECK_ERR(pool_part_begin(fast(), "late.raw", POOL_NEW, -1, part), 0);
	make_file(part);
	make_file("late.raw");
	for (int i = 0; i < 4; i++)
		CHECK_ERR(pool_part_publish(fast(), "late.raw", POOL_NEW, -1), -EEXIST);
	run("mv %s/fast/late.raw %s/late", dir, dir);
	CHECK_ERR(pool_part_publish(fast(), "late.raw", POOL_NEW, -1), 0);
	CHECK(pool_has(fast(), "late.raw"));
	pool_unlink(fast(), "late.raw");
	CHECK_ERR(pool_part_begin(fast(), "late.raw", POOL_NEW, -1, part), 0);
	make_file(part);
	run("mv %s/late %s/fast/late.raw", dir, dir);
	CHECK_ERR(pool_part_publish(fast(), "late.raw", POOL_NEW, -1), -EEXIST);
	pool_part_abandon(fast(), "late.raw");
	check_counts(3, 0);
	run("rm %s/fast/*", dir);
}

/* --- interrupted --------------------------------------------------------------------------------------------------------- */

static void interrupted_making(void)
{
	char part[POOL_PART_MAX];
	for (int step = 0; step < 4; step++) {
		CHECK_ERR(pool_part_begin(fast(), "new.raw", POOL_NEW, -1, part), 0);
		if (step >= 1)
			make_file(part);
		if (step >= 2)
			CHECK_ERR(pool_part_publish(fast(), "new.raw", POOL_NEW, -1), 0);
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
	CHECK_ERR(layer_file_finish(store, "fast/big.img", fd, &why), 0);
	close(fd);
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

/* What was cancelled and begun by another isn't finished by the first. */
static void late_finish(void)
{
	static const char *const layers[] = {"fast/late.raw", "00000000-0000-4000-8000-000000000001.raw"};
	for (int i = 0; i < 2; i++) {
		int old = -1, fd = -1;
		CHECK_ERR(layer_file_begin(store, layers[i], &owner, false, &old, &why), 0);
		layer_file_cancel(store, layers[i]);
		CHECK_ERR(layer_file_finish(store, layers[i], old, &why), -ESTALE);
		CHECK_ERR(layer_file_begin(store, layers[i], &owner, false, &fd, &why), 0);
		CHECK_ERR(layer_file_finish(store, layers[i], old, &why), -ESTALE);
		CHECK(!layer_file_is_finished(store, layers[i]));
		CHECK_ERR(layer_file_finish(store, layers[i], fd, &why), 0);
		CHECK(layer_file_is_finished(store, layers[i]));
		layer_file_unlink(store, layers[i]);
		close(old);
		close(fd);
	}
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
	CHECK_ERR(layer_file_finish(store, longest, fd, &why), 0);
	close(fd);
	CHECK_ERR(layer_file_begin(store, "fast/.hidden", &owner, false, &fd, &why), -EINVAL);
	CHECK_ERR(layer_file_begin(store, "slow/disk.raw", &owner, false, &fd, &why), -ENODEV);
	reopen();
	check_counts(0, 0);
}

/* --- volumes and disks ----------------------------------------------------------------------------------------------------- */

#define DISK_SIZE (4u << 20)
static char bytes[DISK_SIZE];

/* The pool's VM as it is now. */
static struct vm *pool_vm(const char *name)
{
	struct vm *vm = store_find(store, PLACE_POOLS, name);
	CHECK(vm);
	return vm;
}

static void make_volume(const char *name)
{
	struct vm *vm = pool_vm("fast");
	struct disk_file *file = NULL;
	CHECK_ERR(disk_create(store, vm, name, 0600, getuid(), getgid(), &file, &why), 0);
	CHECK_ERR(disk_write(file, name, strlen(name), 100), 0);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
}

static const struct vm_disk *volume_of(const struct vm *vm, const char *name)
{
	const struct vm_disk *disk = vm_find_disk(vm->disks, vm->nr_disks, name);
	if (!disk)
		printf("there is no volume %s\n", name);
	CHECK(disk);
	return disk;
}

/* That the volume NAME holds what was written when it was made as TEXT. */
static void check_volume(const char *name, const char *text)
{
	char got[100] = "";
	struct disk_file *file = NULL;
	struct vm *vm = pool_vm("fast");
	CHECK_ERR(disk_open(store, vm, NULL, volume_of(vm, name), false, &file, &why), 0);
	CHECK_ERR(disk_read(file, got, strlen(text), 100), 0);
	CHECK_STR(got, text);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
}

/* A rename is three steps for the file: its second name, vm.xml, the first name goes. */
static void interrupted_renaming(void)
{
	make_volume("a.img");
	make_volume("b.qcow2");
	CHECK_ERR(layer_file_link(store, "fast/a.img", "fast/c.img"), 0); /* before vm.xml names it */
	reopen();
	check_counts(2, 2);
	check_volume("a.img", "a.img");
	struct vm *vm = pool_vm("fast");
	CHECK_ERR(disk_rename(store, vm, "a.img", "c.img", &why), 0);
	CHECK_ERR(disk_rename(store, vm, "b.qcow2", "b.img", &why), -EXDEV);
	vm_put(vm);
	check_volume("c.img", "a.img");
	CHECK_ERR(layer_file_link(store, "fast/c.img", "fast/a.img"), 0); /* the first name is still there */
	reopen();
	check_counts(2, 2);
	check_volume("c.img", "a.img");
	/* One over the other, while both are open. */
	struct disk_file *over = NULL, *under = NULL;
	make_volume("d.img");
	vm = pool_vm("fast");
	CHECK_ERR(disk_open(store, vm, NULL, volume_of(vm, "d.img"), true, &over, &why), 0);
	CHECK_ERR(disk_open(store, vm, NULL, volume_of(vm, "c.img"), true, &under, &why), 0);
	CHECK_ERR(disk_rename(store, vm, "d.img", "c.img", &why), 0);
	CHECK_ERR(disk_write(over, "over!", 5, 100), 0);
	CHECK_ERR(disk_write(under, "under", 5, 100), 0);
	CHECK_ERR(disk_close(over, &why), 0);
	CHECK_ERR(disk_close(under, &why), 0);
	vm_put(vm);
	check_volume("c.img", "over!");
	reopen(); /* now the file too has the name that the volume has */
	check_counts(2, 2);
	check_volume("c.img", "over!");
	CHECK(pool_owns(fast(), "c.img"));
	vm = pool_vm("fast");
	CHECK_ERR(disk_remove(store, vm, "c.img", &why), 0);
	CHECK_ERR(disk_remove(store, vm, "b.qcow2", &why), 0);
	vm_put(vm);
	check_counts(0, 0);
}

static uint32_t number_of(const char *name)
{
	struct vm *vm = pool_vm("fast");
	uint32_t id = volume_of(vm, name)->id;
	vm_put(vm);
	return id;
}

/* Whoever has the old one open has it by its number. */
static void same_name_again(void)
{
	struct disk_file *file = NULL;
	struct vm *vm = pool_vm("fast");
	make_volume("g.img");
	uint32_t id = number_of("g.img");
	CHECK_ERR(disk_remove(store, vm, "g.img", &why), 0);
	make_volume("g.img");
	CHECK(number_of("g.img") == id);
	vm_put(vm);
	vm = pool_vm("fast");
	CHECK_ERR(disk_open(store, vm, NULL, volume_of(vm, "g.img"), false, &file, &why), 0);
	CHECK_ERR(disk_remove(store, vm, "g.img", &why), 0);
	make_volume("g.img");
	CHECK(number_of("g.img") != id);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
	/* One that is renamed comes to it as well. */
	id = number_of("g.img");
	make_volume("h.img");
	vm = pool_vm("fast");
	CHECK_ERR(disk_open(store, vm, NULL, volume_of(vm, "g.img"), false, &file, &why), 0);
	CHECK_ERR(disk_rename(store, vm, "h.img", "g.img", &why), 0);
	CHECK(number_of("g.img") != id);
	CHECK_ERR(disk_close(file, &why), 0);
	CHECK_ERR(disk_remove(store, vm, "g.img", &why), 0);
	vm_put(vm);
	check_counts(0, 0);
}

/* What the device doesn't take is what the next fsync says, whatever names the file gets in between. */
static void failed_write(const char *name, const char *new_name)
{
	struct stat st;
	struct disk_file *file = NULL;
	make_volume(name);
	struct vm *vm = pool_vm("fast");
	CHECK_ERR(disk_open(store, vm, NULL, volume_of(vm, name), true, &file, &why), 0);
	CHECK_ERR(disk_write(file, "lost", 4, 100), 0);
	CHECK(fstatat(fast()->dirfd, name, &st, 0) == 0);
	failing_sync = st.st_ino;
	CHECK_ERR(disk_rename(store, vm, name, new_name, &why), 0);
	failing_sync = 0;
	CHECK(disk_flush(file) < 0);
	CHECK(pool_owns(fast(), name) && !pool_owns(fast(), new_name));
	disk_close(file, &why);
	vm_put(vm);
	reopen();
	CHECK(!pool_owns(fast(), name) && pool_owns(fast(), new_name));
	vm = pool_vm("fast");
	CHECK_ERR(disk_remove(store, vm, new_name, &why), 0);
	vm_put(vm);
	check_counts(0, 0);
}

static void write_disk(const struct vm *vm, int value, uint64_t off, size_t len)
{
	struct disk_file *file = NULL;
	memset(bytes + off, value, len);
	CHECK_ERR(disk_open(store, vm, NULL, &vm->disks[0], true, &file, &why), 0);
	CHECK_ERR(disk_write(file, bytes + off, len, off), 0);
	CHECK_ERR(disk_close(file, &why), 0);
}

static void check_disk(const struct vm *vm)
{
	static char got[DISK_SIZE];
	struct disk_file *file = NULL;
	CHECK_ERR(disk_open(store, vm, NULL, &vm->disks[0], false, &file, &why), 0);
	CHECK_ERR(disk_read(file, got, DISK_SIZE, 0), 0);
	CHECK(memcmp(got, bytes, DISK_SIZE) == 0);
	CHECK_ERR(disk_close(file, &why), 0);
}

static struct vm *find_clone(void)
{
	struct vm *vm = store_find(store, PLACE_CLONES, "clone");
	CHECK(vm);
	return vm;
}

static void take_snapshot(const char *name, int value)
{
	struct vm *vm = find_clone();
	CHECK_ERR(store_snapshot_create(store, vm, &(struct snapshot_spec){.name = name}, &why), 0);
	vm_put(vm);
	vm = find_clone();
	write_disk(vm, value, (uint64_t)value << 16, 3 << 16);
	vm_put(vm);
}

/* A clone whose layers all lie in the pool: snapshots come and go, layers are merged, and the ledger follows. */
static void disks_in_pool(void)
{
	run("cd %s/src && qemu-img create -q -f qcow2 web.qcow2 4M && qemu-img create -q -f qcow2 -b %s/src/web.qcow2 -F qcow2 leaf.qcow2", dir, dir);
	reopen();
	CHECK_ERR(store_start(store), 0);
	struct vm *from = store_find(store, PLACE_VMS, "leaf"), *vm = NULL;
	CHECK(from);
	const struct clone_spec spec = {.name = "clone", .uid = getuid(), .gid = getgid(), .all = {.pool = "fast"}};
	CHECK_ERR(store_clone_with(store, from, vm_find_snapshot(from, "web"), &spec, &vm, &why), 0);
	vm_put(from);
	CHECK(strncmp(vm->disks[0].layer, "fast/", 5) == 0);
	write_disk(vm, 1, 0, DISK_SIZE / 2);
	vm_put(vm);
	for (int round = 0; round < 3; round++) {
		take_snapshot("one", 10 + round);
		take_snapshot("two", 20 + round);
		vm = find_clone();
		CHECK_ERR(store_snapshot_delete(store, vm, "one", SNAPSHOT_DROP, &why), 0);
		vm_put(vm);
		wait_for_jobs(store);
		vm = find_clone();
		CHECK_ERR(store_snapshot_delete(store, vm, "two", SNAPSHOT_DROP, &why), 0);
		vm_put(vm);
		wait_for_jobs(store);
		check_counts(1, 1);
		vm = find_clone();
		check_disk(vm);
		vm_put(vm);
	}
	store_close(store);
	open_store(NULL); /* without the pool: it can't be read, and nothing is lost */
	struct disk_file *file = NULL;
	vm = find_clone();
	CHECK_ERR(disk_open(store, vm, NULL, &vm->disks[0], false, &file, &why), -ENODEV);
	CHECK(strstr(why.text, "-o pool=fast:DIR"));
	CHECK(nr_events("the pool fast isn't given") == 1);
	CHECK(nr_events("isn't tidied up: a layer of a VM can't be read: it lies in the pool fast, which isn't given: mount with -o pool=fast:DIR") == 1);
	vm_put(vm);
	check_counts(1, 1);
	reopen();
	vm = find_clone();
	check_disk(vm);
	CHECK_ERR(store_remove(store, vm, &why), 0);
	vm_put(vm);
	check_counts(0, 0);
}

/* A raw volume is one whatever else its name says: it isn't merged into what lies over it. */
static void raw_by_its_ending(void)
{
	CHECK_ERR(store_start(store), 0);
	struct vm *from = store_find(store, PLACE_VMS, "leaf"), *vm = NULL;
	const struct clone_spec spec = {
		.name = "clone",
		.uid = getuid(),
		.gid = getgid(),
		.all = {.mode = CLONE_FULL, .format = IMAGE_RAW, .pool = "fast", .volume = "v.qcow2.raw"},
	};
	CHECK(from);
	CHECK_ERR(store_clone_with(store, from, vm_find_snapshot(from, "web"), &spec, &vm, &why), 0);
	vm_put(from);
	vm_put(vm);
	memset(bytes, 0, sizeof bytes);
	wait_for_jobs(store);
	take_snapshot("one", 3);
	vm = find_clone();
	CHECK_ERR(store_snapshot_delete(store, vm, "one", SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
	wait_for_jobs(store);
	vm = find_clone();
	CHECK(pool_has(fast(), "v.qcow2.raw"));
	check_disk(vm);
	CHECK_ERR(store_remove(store, vm, &why), 0);
	vm_put(vm);
	check_counts(0, 0);
}

/* --- configuration ------------------------------------------------------------------------------------------------------------- */

/* Its description can't be read for once: it isn't taken for a pool that has none. */
static void unread(void)
{
	open_store("fast");
	make_volume("kept.qcow2");
	store_close(store);
	run("cd %s/s/store/vms && for vm in */vm.xml; do mv $vm ${vm%%%%/*}/away && mkdir $vm; done", dir);
	open_store("fast");
	struct disk_file *file = NULL;
	struct vm *stand_in = pool_vm("fast");
	CHECK_ERR(disk_create(store, stand_in, "new.qcow2", 0600, getuid(), getgid(), &file, &why), -EROFS);
	vm_put(stand_in);
	store_close(store);
	run("cd %s/s/store/vms && for vm in */away; do rmdir ${vm%%/*}/vm.xml && mv $vm ${vm%%/*}/vm.xml; done && test $(ls | wc -l) = 1", dir);
	open_store("fast");
	struct vm *vm = store_find(store, PLACE_POOLS, "fast");
	CHECK(vm && disk_of(vm, NULL, "kept.qcow2"));
	vm_put(vm);
	store_close(store);
}

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
	run("mkdir %s/fast %s/s", dir, dir);
	open_store("fast");
	foreign_files_stay();
	interrupted_making();
	interrupted_replacing();
	interrupted_linking();
	raw_files();
	late_finish();
	names();
	interrupted_renaming();
	same_name_again();
	failed_write("e.img", "f.img");
	failed_write("e.qcow2", "f.qcow2");
	disks_in_pool();
	raw_by_its_ending();
	store_close(store);
	unread();
	refused("a", "b", "fast");
	refused("a", "a", "src");
	refused("a", "b", "src/.vmsnapfs/layers");
	refused(".a", "b", "src");
	dir_done();
	return 0;
}
