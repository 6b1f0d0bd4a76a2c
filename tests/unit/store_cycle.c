/* A store whose layers lie over each other in a circle, as a damaged or crafted one may: it opens, lists and answers, keeps every file, and
 * is right again once the circle is mended. */
#include <sys/stat.h>

#include "base/mem.h"
#include "store/layers.h"
#include "store/store_internal.h"
#include "store_test.h"

#define DISK_SIZE (1u << 20)
#define SNAPSHOTS 4

static struct store *store;

static struct vm *vm_of(void)
{
	struct vm *vm = store_find(store, PLACE_CLONES, "vm");
	CHECK(vm);
	return vm;
}

static void make_vm(void)
{
	static char buf[65536];
	struct vm *vm = NULL;
	struct disk_file *file = NULL;
	CHECK_ERR(store_create(store, "vm", getuid(), getgid(), &vm, &why), 0);
	CHECK_ERR(disk_create(store, vm, "vda.img", 0600, getuid(), getgid(), &file, &why), 0);
	CHECK_ERR(disk_resize(file, DISK_SIZE), 0);
	vm_put(vm);
	for (int i = 0; i < SNAPSHOTS; i++) {
		char name[8];
		memset(buf, i + 1, sizeof buf);
		CHECK_ERR(disk_write(file, buf, sizeof buf, (uint64_t)i * sizeof buf), 0);
		snprintf(name, sizeof name, "s%d", i);
		vm = vm_of();
		CHECK_ERR(store_snapshot_create(store, vm, &(struct snapshot_spec){.name = name}, &why), 0);
		vm_put(vm);
	}
	CHECK_ERR(disk_close(file, &why), 0);
}

static unsigned nr_files(void)
{
	char cmd[600];
	unsigned nr = 0;
	snprintf(cmd, sizeof cmd, "ls %s/src/.vmsnapfs/layers | wc -l", dir);
	FILE *f = popen(cmd, "r");
	CHECK(f && fscanf(f, "%u", &nr) == 1 && pclose(f) == 0);
	return nr;
}

/* -1: the disk now. */
static char *layer_of(int i)
{
	struct vm *vm = vm_of();
	char name[8];
	snprintf(name, sizeof name, "s%d", i);
	char *path = strdup(disk_of(vm, i < 0 ? NULL : vm_find_snapshot(vm, name), "vda.img")->path);
	vm_put(vm);
	return path;
}

static void check_answers(void)
{
	struct vm *vm = vm_of();
	struct disk_file *file = NULL;
	char *names = NULL;
	CHECK(vm->nr_snapshots == SNAPSHOTS);
	for (size_t i = 0; i < vm->nr_snapshots; i++) {
		uint64_t used = 0, unique = 0;
		CHECK_ERR(store_snapshot_space(store, vm, vm->snapshots[i], &used, &unique), 0);
	}
	CHECK(disk_open(store, vm, NULL, disk_of(vm, NULL, "vda.img"), true, &file, &why) < 0);
	CHECK(store_jobs(store, &names) == 0 && !*names);
	free(names);
	vm_put(vm);
}

static void check_whole(void)
{
	static unsigned char buf[65536];
	struct vm *vm = vm_of();
	struct disk_file *file = NULL;
	CHECK_ERR(disk_open(store, vm, NULL, disk_of(vm, NULL, "vda.img"), false, &file, &why), 0);
	for (int i = 0; i < SNAPSHOTS; i++) {
		CHECK_ERR(disk_read(file, buf, sizeof buf, (uint64_t)i * sizeof buf), 0);
		for (size_t b = 0; b < sizeof buf; b++)
			CHECK(buf[b] == i + 1);
	}
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
}

/* What BOTTOM lay over is what it lies over again in the end: nothing. */
static void test_cycle(int bottom, int top)
{
	unsigned before = nr_files();
	auto_free char *low = layer_of(bottom), *high = layer_of(top);
	store_close(store);
	run("qemu-img rebase -q -u -f qcow2 -F qcow2 -b %s %s", high, low);
	store = store_at("src", true);
	check_answers();
	layers_sweep(store);
	CHECK(nr_files() == before);
	store_close(store);
	run("qemu-img rebase -q -u -f qcow2 -b '' %s", low);
	store = store_at("src", true);
	check_whole();
	CHECK(nr_files() == before);
}

int main(void)
{
	dir_init();
	store = store_at("src", true);
	make_vm();
	test_cycle(0, -1);
	test_cycle(0, 2);
	test_cycle(0, 0);
	struct vm *vm = vm_of();
	CHECK_ERR(store_snapshot_delete(store, vm, "s2", SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
	wait_for_jobs(store);
	check_whole();
	store_close(store);
	dir_done();
	return 0;
}
