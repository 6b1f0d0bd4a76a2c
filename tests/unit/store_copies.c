/* A disk that is being copied from a snapshot, in several pieces, while a snapshot of itself is taken, or after it was written to: it holds
 * what was copied last. */
#include "store_test.h"

#define SIZE (4u << 20)
#define HALF (SIZE / 2)

static struct store *store;
static char want[SIZE], got[SIZE];

static void copy(struct disk_file *from, struct disk_file *to, uint64_t off, uint64_t len)
{
	while (len) {
		ssize_t n = disk_copy(from, off, to, off, len, &why);
		CHECK(n > 0);
		off += (uint64_t)n;
		len -= (uint64_t)n;
	}
}

static void check(struct disk_file *file)
{
	memset(got, 0x5a, SIZE);
	CHECK(disk_read(file, got, SIZE, 0) == 0);
	CHECK(memcmp(got, want, SIZE) == 0);
}

int main(void)
{
	dir_init();
	run("cd %s/src && qemu-img create -q -f qcow2 web.qcow2 4M && qemu-io -c 'write -P 17 0 4M' web.qcow2 >/dev/null && "
	    "qemu-img snapshot -c s web.qcow2 && qemu-img create -q -f qcow2 -b web.qcow2 -F qcow2 leaf.qcow2", dir);
	store = store_at("src", true);
	struct vm *from = store_find(store, PLACE_VMS, "leaf");
	const struct vm_snapshot *snapshot = vm_find_snapshot(from, "web");
	struct disk_file *source = NULL;
	CHECK(snapshot);
	CHECK_ERR(disk_open(store, from, snapshot, &snapshot->disks[0], false, &source, &why), 0);
	for (int written = 0; written < 2; written++) {
		struct vm *vm = NULL;
		struct disk_file *file = NULL;
		const struct snapshot_spec spec = {.name = "mid"};
		CHECK_ERR(store_create(store, written ? "b" : "a", getuid(), getgid(), &vm, &why), 0);
		CHECK_ERR(disk_create(store, vm, "vda.img", 0600, getuid(), getgid(), &file, &why), 0);
		memset(want, 17, SIZE);
		copy(source, file, 0, HALF);
		if (written) {
			memset(want, 3, HALF / 2);
			CHECK(disk_write(file, want, HALF / 2, 0) == 0);
		}
		CHECK_ERR(store_snapshot_create(store, vm, &spec, &why), 0);
		if (written) { /* back to what the snapshot holds: not to what lies beneath now */
			memset(want, 17, HALF / 2);
			copy(source, file, 0, HALF / 2);
		}
		copy(source, file, HALF, HALF);
		check(file);
		CHECK_ERR(disk_close(file, &why), 0);
		vm_put(vm);
	}
	CHECK_ERR(disk_close(source, &why), 0);
	vm_put(from);
	wait_for_jobs(store);
	store_close(store);
	dir_done();
	return 0;
}
