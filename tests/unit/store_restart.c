/* What a killed daemon leaves. A base that was copied, but that no description names yet: the copy is made again, and nothing that happens later
 * takes it away. A snapshot's layer that a job was writing into: its dirty bit goes. */
#include "store_test.h"

static struct store *store;

static void check_disk(const char *name)
{
	struct vm *vm = store_find(store, PLACE_CLONES, name);
	struct disk_file *file = NULL;
	unsigned char buf[4096];
	CHECK(vm);
	CHECK_ERR(disk_open(store, vm, NULL, &vm->disks[0], false, &file, &why), 0);
	CHECK_ERR(disk_read(file, buf, sizeof buf, 0), 0);
	CHECK(buf[0] == 1 && buf[sizeof buf - 1] == 1);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
}

static void make_clone(const char *name)
{
	struct vm *web = store_find(store, PLACE_VMS, "web"), *vm = NULL;
	CHECK_ERR(store_clone(store, web, vm_find_snapshot(web, "first"), name, getuid(), getgid(), &vm, &why), 0);
	vm_put(vm);
	vm_put(web);
}

static void remove_clone(const char *name)
{
	struct vm *vm = store_find(store, PLACE_CLONES, name);
	CHECK_ERR(store_remove(store, vm, &why), 0);
	vm_put(vm);
}

/* The layer of a snapshot: its refcounts lag, and nothing that there is to do would write to it. */
static void test_dirty_layer(void)
{
	store = store_at("src", true);
	make_clone("dirty");
	wait_for_jobs(store);
	struct vm *vm = store_find(store, PLACE_CLONES, "dirty");
	struct disk_file *file = NULL;
	CHECK_ERR(disk_open(store, vm, NULL, &vm->disks[0], true, &file, &why), 0);
	CHECK_ERR(disk_write(file, "written", 7, 1 << 20), 0);
	CHECK_ERR(disk_close(file, &why), 0);
	char *path = strdup(vm->disks[0].path);
	const struct snapshot_spec spec = {.name = "s"};
	CHECK_ERR(store_snapshot_create(store, vm, &spec, &why), 0);
	vm_put(vm);
	store_close(store);
	/* Incompatible feature bit 0; the refcounts of the second half of the block's first clusters. */
	run("printf '\\021' | dd of=%s bs=1 seek=79 conv=notrunc status=none && dd if=/dev/zero of=%s bs=1 seek=$((0x40008)) count=8 conv=notrunc status=none", path, path);
	run("! qemu-img check -q %s", path);
	store = store_at("src", true);
	wait_for_jobs(store);
	run("qemu-img check -q %s", path);
	check_disk("dirty");
	vm = store_find(store, PLACE_CLONES, "dirty");
	CHECK_ERR(store_snapshot_delete(store, vm, "s", SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
	remove_clone("dirty");
	store_close(store);
	free(path);
}

int main(void)
{
	dir_init();
	run("cd %s/src && qemu-img create -q -f qcow2 base.qcow2 3M && qemu-io -c 'write -P 1 0 1M' base.qcow2 >/dev/null && "
	    "qemu-img snapshot -c first base.qcow2 && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 web.qcow2", dir);
	store = store_at("src", false);
	make_clone("kept");
	store_close(store);
	run("cd %s/src/.vmsnapfs && base=$(grep -ho 'base=.[0-9a-f-]*.raw' vms/*/vm.xml | cut -c7-) && "
	    "echo 'whatever was copied' >layers/$base", dir);

	store = store_at("src", true);
	wait_for_jobs(store);
	check_disk("kept");
	make_clone("other");
	wait_for_jobs(store);
	remove_clone("other"); /* and what only that needs */
	check_disk("kept");
	store_close(store);
	store = store_at("src", true);
	check_disk("kept");
	CHECK(nr_events("can't") == 0);
	remove_clone("kept");
	store_close(store);
	test_dirty_layer();
	run("[ -z \"$(ls %s/src/.vmsnapfs/layers)\" ]", dir);
	dir_done();
	return 0;
}
