/* A store on a full filesystem: what doesn't fit fails with ENOSPC and leaves nothing; what was there stays whole and works on. */
#include <sys/mount.h>

#include "store_test.h"

static struct store *store;
static char full[300]; /* the mount point */

/* Also after a failed check. */
static void unmount_full(void)
{
	umount2(full, MNT_DETACH);
}

static void open_store(void)
{
	char source[300], store_dir[320];
	snprintf(source, sizeof source, "%s/src", dir);
	snprintf(store_dir, sizeof store_dir, "%s/full/store", dir);
	struct store_config config = {.source_dir = source, .store_dir = store_dir, .log = {keep_event, NULL}};
	CHECK_ERR(store_open(&config, &store, &why), 0);
	CHECK_ERR(store_start(store), 0);
}

static void fill(void)
{
	run("cat /dev/zero >%s/full/ballast 2>/dev/null || true", dir);
}

static void make_room(void)
{
	run("rm %s/full/ballast", dir);
}

static struct vm *find(const char *name)
{
	return store_find(store, PLACE_CLONES, name);
}

static size_t nr_files(void)
{
	char cmd[500];
	size_t nr = 0;
	snprintf(cmd, sizeof cmd, "find %s/full/store/layers %s/full/store/vms -type f | wc -l", dir, dir);
	FILE *f = popen(cmd, "r");
	CHECK(f && fscanf(f, "%zu", &nr) == 1);
	pclose(f);
	return nr;
}

static void check_block(struct disk_file *file, uint64_t off, int want)
{
	unsigned char buf[4096];
	CHECK_ERR(disk_read(file, buf, sizeof buf, off), 0);
	for (size_t i = 0; i < sizeof buf; i++)
		CHECK(buf[i] == want);
}

static struct disk_file *open_vda(const char *name)
{
	struct vm *vm = find(name);
	struct disk_file *file = NULL;
	CHECK(vm);
	CHECK_ERR(disk_open(store, vm, NULL, disk_of(vm, NULL, "vda.img"), true, &file, &why), 0);
	vm_put(vm);
	return file;
}

int main(void)
{
	dir_init();
	snprintf(full, sizeof full, "%s/full", dir);
	run("mkdir %s", full);
	if (mount("tmpfs", full, "tmpfs", 0, "size=4m") < 0) {
		printf("skip: can't mount a tmpfs: %s\n", strerror(errno));
		dir_done();
		return 77;
	}
	atexit(unmount_full);
	run("cd %s/src && qemu-img create -q -f qcow2 base.qcow2 3M && qemu-io -c 'write -P 1 0 1M' base.qcow2 >/dev/null && "
	    "qemu-img snapshot -c inner base.qcow2 && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 web.qcow2", dir);
	open_store();
	struct vm *web = store_find(store, PLACE_VMS, "web"), *vm = NULL, *other = NULL;
	CHECK_ERR(store_clone(store, web, vm_find_snapshot(web, "base"), "kept", getuid(), getgid(), &vm, &why), 0);
	struct disk_file *file = open_vda("kept");
	unsigned char block[65536];
	memset(block, 7, sizeof block);
	CHECK_ERR(disk_write(file, block, sizeof block, 0), 0);
	CHECK_ERR(disk_flush(file), 0);

	fill();
	size_t before = nr_files();
	CHECK_ERR(store_clone(store, web, vm_find_snapshot(web, "base"), "new", getuid(), getgid(), &other, &why), -ENOSPC);
	CHECK_ERR(store_clone(store, web, vm_find_snapshot(web, "inner"), "new", getuid(), getgid(), &other, &why), -ENOSPC);
	CHECK_ERR(store_clone(store, vm, NULL, "new", getuid(), getgid(), &other, &why), -ENOSPC);
	CHECK_ERR(store_create(store, "new", getuid(), getgid(), &other, &why), -ENOSPC);
	struct disk_file *made = NULL;
	CHECK_ERR(disk_create(store, vm, "vdb.img", 0600, getuid(), getgid(), &made, &why), -ENOSPC);
	CHECK(!find("new"));
	CHECK(nr_files() == before);
	/* What makes no file takes no space: see store/spare.h. Again and again, and so is what gives it back. */
	for (int i = 0; i < 20; i++) {
		struct vm *kept = find(i % 2 ? "renamed" : "kept");
		CHECK_ERR(store_rename(store, kept, PLACE_CLONES, i % 2 ? "kept" : "renamed", &why), 0);
		vm_put(kept);
	}
	vm_put(vm);
	vm = find("kept");
	CHECK(vm && !find("renamed"));
	CHECK(nr_files() == before);
	int err = 0;
	for (uint64_t off = 1 << 20; !err && off < 3 << 20; off += sizeof block)
		err = disk_write(file, block, sizeof block, off);
	if (!err)
		err = disk_flush(file);
	CHECK_ERR(err, -ENOSPC);
	check_block(file, 0, 7);
	check_block(file, 512 << 10, 1);

	make_room();
	CHECK_ERR(disk_write(file, block, 4096, 2 << 20), 0);
	disk_flush(file); /* may tell of the failure before; once */
	CHECK_ERR(store_clone(store, vm, NULL, "after", getuid(), getgid(), &other, &why), 0);
	vm_put(other);
	check_block(file, 0, 7);
	check_block(file, 2 << 20, 7);
	CHECK_ERR(disk_close(file, &why), 0);
	file = open_vda("after");
	check_block(file, 0, 7);
	check_block(file, 2 << 20, 7);
	CHECK_ERR(disk_close(file, &why), 0);

	/* The copy of an internal snapshot doesn't fit: the clone works on meanwhile, and the copy is for later. */
	CHECK_ERR(store_clone(store, web, vm_find_snapshot(web, "inner"), "inner", getuid(), getgid(), &other, &why), 0);
	vm_put(other);
	file = open_vda("inner");
	check_block(file, 0, 1);
	CHECK_ERR(disk_close(file, &why), 0);
	wait_for_jobs(store);
	vm_put(vm);
	vm_put(web);
	store_close(store);
	open_store();
	file = open_vda("kept");
	check_block(file, 0, 7);
	check_block(file, 2 << 20, 7);
	CHECK_ERR(disk_close(file, &why), 0);
	store_close(store);
	run("cd %s/full/store/layers && for f in *.qcow2; do qemu-img check -q $f || exit 1; done", dir);
	CHECK(umount(full) == 0);
	dir_done();
	return 0;
}
