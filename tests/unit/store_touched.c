/* Somebody touches what a disk lies over while snapshots are merged: the job says which file it was, and stays. */
#include "store_test.h"

static struct store *store;

static bool any_job_says(const char *text)
{
	char *names = NULL;
	bool any = false;
	CHECK_ERR(store_jobs(store, &names), 0);
	for (char *rest = names, *name; !any && (name = strsep(&rest, "\n")) && *name;) {
		char *job = NULL;
		size_t len = 0;
		if (store_job_text(store, name, &job, &len) == 0)
			any = strstr(job, text);
		free(job);
	}
	free(names);
	return any;
}

static void write_at(struct disk_file *file, uint64_t off, size_t len)
{
	char *data = malloc(len);
	CHECK(data);
	memset(data, 7, len);
	CHECK_ERR(disk_write(file, data, len, off), 0);
	CHECK_ERR(disk_flush(file), 0);
	free(data);
}

int main(void)
{
	dir_init();
	run("cd %s/src && qemu-img create -q -f qcow2 base.qcow2 8M && qemu-io -c 'write -P 1 0 1M' base.qcow2 >/dev/null && "
	    "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 web.qcow2", dir);
	store = store_at("src", true);
	struct vm *web = store_find(store, PLACE_VMS, "web"), *vm = NULL;
	struct disk_file *file = NULL;
	CHECK(web);
	CHECK_ERR(store_clone(store, web, vm_find_snapshot(web, "base"), "touched", getuid(), getgid(), &vm, &why), 0);
	CHECK_ERR(disk_open(store, vm, NULL, disk_of(vm, NULL, "vda.img"), true, &file, &why), 0);
	write_at(file, 0, 64 << 10);
	CHECK_ERR(store_snapshot_create(store, vm, &(struct snapshot_spec){.name = "s"}, &why), 0);
	write_at(file, 1 << 20, 4 << 20); /* the most: the job pulls into it */
	vm_put(vm);
	vm = store_find(store, PLACE_CLONES, "touched");
	run("touch %s/src/base.qcow2", dir);
	CHECK_ERR(store_snapshot_delete(store, vm, "s", SNAPSHOT_DROP, &why), 0);
	for (int i = 0; !any_job_says("base.qcow2 was changed by another program"); i++) {
		CHECK(i < 3000);
		usleep(10000);
	}
	CHECK(nr_events("base.qcow2 was changed by another program") == 1);
	disk_close(file, &why);
	vm_put(vm);
	vm_put(web);
	store_close(store);
	dir_done();
	return 0;
}
