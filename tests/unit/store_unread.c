/* An image, or a domain's XML, in SOURCE that couldn't be read, for a while: its VM gets its snapshots, or is shown, once it can be, though the file is the
 * same. */
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

static void make_unreadable(const char *name)
{
	char path[400];
	struct stat st;
	snprintf(path, sizeof path, "%s/src/%s", dir, name);
	CHECK(stat(path, &st) == 0);
	unreadable = st.st_ino;
}

/* Until it was tried again, in vain or not. */
static void wait_while(bool (*unchanged)(void))
{
	for (int i = 0; i < 200 && unchanged(); i++)
		usleep(100000);
}

static bool lacks_snapshot(void)
{
	struct vm *vm = store_find(store, PLACE_VMS, "top");
	CHECK(vm);
	size_t nr = vm->nr_snapshots; /* with the image itself, which is one */
	vm_put(vm);
	return nr < 2;
}

static bool lacks_domain(void)
{
	struct vm *vm = store_find(store, PLACE_VMS, "web");
	vm_put(vm);
	return !vm;
}

static unsigned before;
static bool (*lacks)(void);

static bool lacks_untried(void)
{
	return lacks() && nr_failed == before;
}

/* While FILE can't be read something is lacking. */
static void check(const char *file, bool (*is_lacking)(void))
{
	make_unreadable(file);
	lacks = is_lacking;
	store = store_at("src", false);
	CHECK(lacks() && nr_events(file) == 1);
	before = nr_failed;
	wait_while(lacks_untried);
	CHECK(lacks() && nr_failed > before);
	unreadable = 0;
	wait_while(lacks);
	CHECK(!lacks() && nr_events(file) == 1); /* trying again in vain isn't worth a word */
	store_close(store);
}

int main(void)
{
	dir_init();
	run("cd %s/src && qemu-img create -q -f qcow2 base.qcow2 1M && qemu-img snapshot -c s1 base.qcow2 && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2", dir);
	check("base.qcow2", lacks_snapshot);
	put_file("src/web.xml", "<domain type='kvm'><name>web</name><memory>1024</memory><os><type>hvm</type></os></domain>\n");
	check("web.xml", lacks_domain);
	dir_done();
	return 0;
}
