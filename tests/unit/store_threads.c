/* Clones and snapshots of a VM that is being written to hold one moment of all its disks; meanwhile others look, clone, go back and remove.
 * store_threads [ROUNDS] */
#include <stdatomic.h>

#include "store_test.h"

#define BLOCK 4096u
#define SLOTS 64u

static struct store *store;
static atomic_bool stop;
static int rounds = 40;

/* Writes 1, 2, 3 … into vda and then the same into vdb, each at a place of its own. */
static void *write_numbers(void *arg)
{
	struct vm *vm = arg;
	struct disk_file *files[2] = {NULL};
	const char *const names[2] = {"vda.img", "vdb.img"};
	for (int i = 0; i < 2; i++)
		CHECK(disk_open(store, vm, NULL, disk_of(vm, NULL, names[i]), true, &files[i], NULL) == 0);
	for (uint64_t n = 1; !atomic_load(&stop); n++) {
		uint64_t block[BLOCK / 8];
		for (size_t i = 0; i < BLOCK / 8; i++)
			block[i] = n;
		for (int i = 0; i < 2; i++)
			CHECK(disk_write(files[i], block, BLOCK, n % SLOTS * BLOCK) == 0);
		if (n % 50 == 0)
			CHECK(disk_flush(files[0]) == 0);
	}
	for (int i = 0; i < 2; i++)
		CHECK(disk_close(files[i], NULL) == 0);
	return NULL;
}

/* The newest number in the disk (SNAPSHOT NULL: now); every block must be whole, and none older than a turn. */
static uint64_t newest_in(const struct vm *vm, const struct vm_snapshot *snapshot, const char *file_name)
{
	static _Thread_local uint64_t blocks[SLOTS][BLOCK / 8];
	struct disk_file *file = NULL;
	uint64_t max = 0;
	CHECK_ERR(disk_open(store, vm, snapshot, disk_of(vm, snapshot, file_name), false, &file, &why), 0);
	CHECK(disk_read(file, blocks, sizeof blocks, 0) == 0);
	CHECK(disk_close(file, NULL) == 0);
	for (size_t s = 0; s < SLOTS; s++) {
		for (size_t i = 1; i < BLOCK / 8; i++)
			CHECK(blocks[s][i] == blocks[s][0]);
		if (blocks[s][0] > max)
			max = blocks[s][0];
	}
	for (size_t s = 0; s < SLOTS; s++)
		CHECK(max < SLOTS || blocks[s][0] + SLOTS > max);
	return max;
}

static uint64_t newest(const struct vm *vm, const char *file_name)
{
	return newest_in(vm, NULL, file_name);
}

/* Takes snapshots, looks at them, and deletes all but a few. */
static void *take_snapshots(void *arg)
{
	struct vm *busy = arg;
	for (int i = 0; i < rounds; i++) {
		char name[32];
		snprintf(name, sizeof name, "moment-%d", i);
		const struct snapshot_spec spec = {.name = name};
		CHECK_ERR(store_snapshot_create(store, busy, &spec, &why), 0);
		struct vm *now = store_get(store, busy->id);
		const struct vm_snapshot *snapshot = vm_find_snapshot(now, name);
		uint64_t a = newest_in(now, snapshot, "vda.img"), b = newest_in(now, snapshot, "vdb.img");
		if (b != a && b + 1 != a) {
			printf("%s: vda is at %llu, vdb at %llu\n", name, (unsigned long long)a, (unsigned long long)b);
			exit(1);
		}
		CHECK(newest_in(now, snapshot, "vda.img") == a);
		vm_put(now);
		if (i % 8)
			CHECK_ERR(store_snapshot_delete(store, busy, name, SNAPSHOT_DROP, &why), 0);
	}
	return NULL;
}

static void write_byte(const struct vm *vm, char byte)
{
	struct disk_file *file = NULL;
	struct vm *now = store_get(store, vm->id);
	CHECK_ERR(disk_open(store, now, NULL, &now->disks[0], true, &file, &why), 0);
	CHECK(disk_write(file, &byte, 1, 0) == 0);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(now);
}

static char read_byte(const struct vm *vm)
{
	struct disk_file *file = NULL;
	char byte = 0;
	struct vm *now = store_get(store, vm->id);
	CHECK_ERR(disk_open(store, now, NULL, &now->disks[0], false, &file, &why), 0);
	CHECK(disk_read(file, &byte, 1, 0) == 0);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(now);
	return byte;
}

/* Back and forth between two snapshots of a VM that others look at. */
static void *go_back(void *arg)
{
	struct vm *vm = NULL;
	(void)arg;
	struct vm *from = store_find(store, PLACE_VMS, "web");
	CHECK_ERR(store_clone(store, from, from->snapshots[0], "back", getuid(), getgid(), &vm, &why), 0);
	vm_put(from);
	for (int i = 0; i < 2; i++) {
		const char name[2] = {(char)('a' + i), '\0'};
		const struct snapshot_spec spec = {.name = name};
		write_byte(vm, name[0]);
		CHECK_ERR(store_snapshot_create(store, vm, &spec, &why), 0);
	}
	for (int i = 0; i < rounds; i++) {
		const struct preview_spec spec = {.snapshot = "a"};
		write_byte(vm, 'x');
		CHECK_ERR(store_preview(store, vm, &spec, &why), 0);
		CHECK(read_byte(vm) == 'a');
		write_byte(vm, 'y');
		CHECK_ERR(i % 2 ? store_preview_undo(store, vm, &why) : store_preview_commit(store, vm, true, &why), 0);
		CHECK(read_byte(vm) == (i % 2 ? 'x' : 'y'));
		CHECK_ERR(store_restore(store, vm, "b", true, &why), 0);
		CHECK(read_byte(vm) == 'b');
	}
	vm_put(vm);
	return NULL;
}

static void *clone_now(void *arg)
{
	struct vm *from = arg;
	for (int i = 0; i < rounds; i++) {
		struct vm *vm = NULL;
		char name[32];
		snprintf(name, sizeof name, "now-%d", i);
		CHECK(store_clone(store, from, NULL, name, getuid(), getgid(), &vm, NULL) == 0);
		uint64_t a = newest(vm, "vda.img"), b = newest(vm, "vdb.img");
		if (b != a && b + 1 != a) {
			printf("%s: vda is at %llu, vdb at %llu\n", name, (unsigned long long)a, (unsigned long long)b);
			exit(1);
		}
		CHECK(newest(vm, "vda.img") == a);
		if (i % 2)
			CHECK_ERR(store_remove(store, vm, &why), 0);
		vm_put(vm);
	}
	return NULL;
}

static void *clone_snapshots(void *arg)
{
	(void)arg;
	for (int i = 0; i < rounds; i++) {
		struct vm *from = store_find(store, PLACE_VMS, "web"), *vm = NULL;
		char name[32];
		snprintf(name, sizeof name, "snap-%d", i % 3);
		CHECK(store_clone(store, from, from->snapshots[i % 2], name, getuid(), getgid(), &vm, NULL) == 0);
		struct disk_file *file = NULL;
		char buf[512];
		CHECK(disk_open(store, vm, NULL, &vm->disks[0], true, &file, NULL) == 0);
		CHECK(disk_read(file, buf, sizeof buf, 0) == 0 && buf[0] == 1);
		CHECK(disk_write(file, "x", 1, 1000) == 0);
		CHECK(disk_close(file, NULL) == 0);
		CHECK_ERR(store_remove(store, vm, &why), 0);
		vm_put(vm);
		vm_put(from);
	}
	return NULL;
}

static void *look(void *arg)
{
	(void)arg;
	while (!atomic_load(&stop)) {
		for (int place = PLACE_VMS; place <= PLACE_CLONES; place++) {
			struct vm **vms = NULL;
			size_t nr = 0;
			CHECK(store_list(store, (enum vm_place)place, &vms, &nr) == 0);
			for (size_t i = 0; i < nr; i++) {
				struct disk_stat st;
				char *text = NULL;
				size_t len = 0;
				for (size_t d = 0; d < vms[i]->nr_disks; d++)
					disk_stat(store, vms[i], NULL, &vms[i]->disks[d], &st, NULL);
				if (store_status_text(store, vms[i], &text, &len) == 0)
					free(text);
				if (store_domain_xml(store, vms[i], NULL, "/mnt", &text, &len, NULL, NULL) == 0)
					free(text);
				vm_put(vms[i]);
			}
			free(vms);
		}
		char *jobs = NULL;
		CHECK(store_jobs(store, &jobs) == 0);
		free(jobs);
	}
	return NULL;
}

static struct vm *make_vm(void)
{
	struct vm *vm = NULL;
	CHECK_ERR(store_create(store, "busy", getuid(), getgid(), &vm, &why), 0);
	const char *const names[2] = {"vda.img", "vdb.img"};
	for (int i = 0; i < 2; i++) {
		struct disk_file *file = NULL;
		CHECK_ERR(disk_create(store, vm, names[i], 0600, getuid(), getgid(), &file, &why), 0);
		CHECK_ERR(disk_resize(file, SLOTS * BLOCK), 0);
		CHECK_ERR(disk_close(file, &why), 0);
	}
	vm_put(vm);
	return store_find(store, PLACE_CLONES, "busy");
}

int main(int argc, char **argv)
{
	if (argc > 1)
		rounds = atoi(argv[1]);
	dir_init();
	run("cd %s/src && qemu-img create -q -f qcow2 base.qcow2 3M && qemu-io -c 'write -P 1 0 1M' base.qcow2 >/dev/null && "
	    "qemu-img snapshot -c first base.qcow2 && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 web.qcow2", dir);
	store = store_at("src", true);
	struct vm *vm = make_vm();
	void *(*const work[])(void *) = {clone_now, clone_snapshots, take_snapshots, go_back, write_numbers, look};
	enum { NR_WORK = sizeof work / sizeof *work };
	pthread_t threads[NR_WORK];
	for (int i = 0; i < NR_WORK; i++)
		CHECK(pthread_create(&threads[i], NULL, work[i], vm) == 0);
	for (int i = 0; i < NR_WORK; i++) {
		if (i == NR_WORK - 2)
			atomic_store(&stop, true);
		pthread_join(threads[i], NULL);
	}
	wait_for_jobs(store);
	vm_put(vm);
	store_close(store);
	run("cd %s/src/.vmsnapfs/layers && for f in *.qcow2; do qemu-img check -q $f || exit 1; done", dir);
	CHECK(nr_events("lost") == 0 && nr_events("can't") == 0);
	dir_done();
	return 0;
}
