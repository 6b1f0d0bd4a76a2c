/* An image in SOURCE that couldn't be read, for a while: its VM gets its snapshots once it can be, though the file is the same. */
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "store_test.h"

static struct store *store;
static ino_t unreadable;
static atomic_uint nr_failed;

ssize_t pread64(int fd, void *buf, size_t len, off_t off)
{
	struct stat st;
	if (unreadable && fstat(fd, &st) == 0 && st.st_ino == unreadable) {
		nr_failed++;
		errno = EIO;
		return -1;
	}
	return syscall(SYS_pread64, fd, buf, len, off);
}

static size_t nr_snapshots(void)
{
	struct vm *vm = store_find(store, PLACE_VMS, "top");
	CHECK(vm);
	size_t nr = vm->nr_snapshots;
	vm_put(vm);
	return nr;
}

int main(void)
{
	char path[400];
	struct stat st;
	dir_init();
	run("cd %s/src && qemu-img create -q -f qcow2 base.qcow2 1M && qemu-img snapshot -c s1 base.qcow2 && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2", dir);
	snprintf(path, sizeof path, "%s/src/base.qcow2", dir);
	CHECK(stat(path, &st) == 0);
	unreadable = st.st_ino;
	store = store_at("src", false);
	CHECK(nr_snapshots() == 1 && nr_events("base.qcow2") == 1);
	/* Tried again in vain, which isn't worth a word. */
	for (unsigned i = 0, before = nr_failed; i < 200 && nr_failed == before; i++) {
		CHECK(nr_snapshots() == 1);
		usleep(100000);
	}
	unreadable = 0;
	for (int i = 0; i < 200 && nr_snapshots() == 1; i++)
		usleep(100000);
	CHECK(nr_snapshots() == 2 && nr_events("base.qcow2") == 1);
	store_close(store);
	dir_done();
	return 0;
}
