/* A commit of which nobody knows what became: vm.xml was renamed, its directory couldn't be synced, and from then on nothing could. Whatever the next start
 * finds, the old state or the new one, all that it names is there. */
#include <sys/stat.h>
#include <sys/syscall.h>

#include "store/store_internal.h"
#include "store_test.h"

static struct store *store;
static ino_t trigger; /* the sync of this directory fails, and every later one */
static bool failing;

int fsync(int fd)
{
	struct stat st;
	if (trigger && fstat(fd, &st) == 0 && st.st_ino == trigger)
		failing = true;
	if (failing) {
		errno = EIO;
		return -1;
	}
	return (int)syscall(SYS_fsync, fd);
}

static struct vm *vm_of(const char *name)
{
	struct vm *vm = store_find(store, PLACE_CLONES, name);
	CHECK(vm);
	return vm;
}

static void fail_from(const char *sub)
{
	char path[600];
	struct stat st;
	snprintf(path, sizeof path, "%s/src/.vmsnapfs/vms/%s", dir, sub);
	CHECK(stat(path, &st) == 0);
	trigger = st.st_ino;
}

static void make_vm(const char *name)
{
	struct vm *vm = NULL;
	struct disk_file *file = NULL;
	CHECK_ERR(store_create(store, name, getuid(), getgid(), &vm, &why), 0);
	CHECK_ERR(disk_create(store, vm, "vda.img", 0600, getuid(), getgid(), &file, &why), 0);
	CHECK_ERR(disk_resize(file, 1 << 20), 0);
	CHECK_ERR(disk_write(file, name, strlen(name), 0), 0);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
	vm = vm_of(name);
	CHECK_ERR(store_snapshot_create(store, vm, &(struct snapshot_spec){.name = "s1"}, &why), 0);
	vm_put(vm);
}

/* All disks of all VMs, now and in snapshots. */
static void check_all(void)
{
	struct vm **vms = NULL;
	size_t nr = 0;
	CHECK(!store->layers.unknown);
	CHECK_ERR(store_list(store, PLACE_CLONES, &vms, &nr), 0);
	for (size_t v = 0; v < nr; v++) {
		for (size_t s = 0; s <= vms[v]->nr_snapshots; s++) {
			const struct vm_snapshot *snapshot = s ? vms[v]->snapshots[s - 1] : NULL;
			const struct vm_disk *disks = snapshot ? snapshot->disks : vms[v]->disks;
			for (size_t d = 0; d < (snapshot ? snapshot->nr_disks : vms[v]->nr_disks); d++) {
				struct disk_file *file = NULL;
				CHECK_ERR(disk_open(store, vms[v], snapshot, &disks[d], false, &file, &why), 0);
				CHECK_ERR(disk_close(file, &why), 0);
			}
		}
		vm_put(vms[v]);
	}
	free(vms);
}

static int add_disk(struct vm *vm)
{
	struct disk_file *file = NULL;
	return disk_create(store, vm, "vdb.img", 0600, getuid(), getgid(), &file, &why);
}

static int take_snapshot(struct vm *vm)
{
	return store_snapshot_create(store, vm, &(struct snapshot_spec){.name = "s2"}, &why);
}

static int preview(struct vm *vm)
{
	return store_preview(store, vm, &(struct preview_spec){.snapshot = "s1"}, &why);
}

static int go_back(struct vm *vm)
{
	return store_restore(store, vm, "s1", false, &why);
}

static int drop_snapshot(struct vm *vm)
{
	return store_snapshot_delete(store, vm, "s1", SNAPSHOT_DROP, &why);
}

/* Of its state now: what is made first, a new overlay on the source, is where it fails. */
static int clone_now(struct vm *vm)
{
	struct vm *made = NULL;
	return store_clone(store, vm, NULL, "made", getuid(), getgid(), &made, &why);
}

static void test(const char *name, int (*fn)(struct vm *vm))
{
	make_vm(name);
	struct vm *vm = vm_of(name);
	fail_from(vm->uuid);
	CHECK_ERR(fn(vm), -EIO);
	vm_put(vm);
	trigger = failing = 0;
	/* Somebody goes on, for whom layers are cleared away. */
	make_vm("other");
	vm = vm_of("other");
	CHECK_ERR(store_snapshot_delete(store, vm, "s1", SNAPSHOT_DROP, &why), 0);
	CHECK_ERR(store_remove(store, vm, &why), 0);
	vm_put(vm);
	for (int starts = 0; starts < 2; starts++) {
		store_close(store);
		store = store_at("src", true);
		check_all();
		wait_for_jobs(store);
	}
}

int main(void)
{
	dir_init();
	store = store_at("src", true);
	test("disk", add_disk);
	test("snapshot", take_snapshot);
	test("preview", preview);
	test("restore", go_back);
	test("drop", drop_snapshot);
	test("clone", clone_now);
	store_close(store);
	dir_done();
	return 0;
}
