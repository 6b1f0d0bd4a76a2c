/* A daemon that was killed between a copied base's getting its name and the description that says so: the copy is made again, and nothing that
 * happens later takes it away. */
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
	run("[ -z \"$(ls %s/src/.vmsnapfs/layers)\" ]", dir);
	dir_done();
	return 0;
}
