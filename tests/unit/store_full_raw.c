/* Clones in full that become raw files, while what the raw file is a copy of changes: the disk is emptied, put over another source, removed, its job
 * cancelled. Every state reads what it should, before and after the jobs, and after a restart.
 * store_full_raw [SEED]
 * limit: 240 */
#include <sys/stat.h>
#include <time.h>

#include "store/full.h"
#include "store/full_raw.h"
#include "store/layers_priv.h"
#include "store/store_internal.h"
#include "store_test.h"

#define DISK_SIZE (24u << 20)
#define BLOCK	  4096u

static struct store *store;
static unsigned char *base_bytes, *root_bytes;

static void open_store(bool start)
{
	char source[300], fast[300];
	snprintf(source, sizeof source, "%s/src", dir);
	snprintf(fast, sizeof fast, "%s/fast", dir);
	const struct pool_config pool = {.name = "fast", .dir = fast};
	const struct store_config config = {.source_dir = source, .pools = &pool, .nr_pools = 1, .log = {keep_event, NULL}};
	CHECK_ERR(store_open(&config, &store, &why), 0);
	if (start)
		CHECK_ERR(store_start(store), 0);
}

static void reopen(bool start)
{
	store_close(store);
	open_store(start);
}

static struct vm *find(const char *name)
{
	struct vm *vm = store_find(store, PLACE_CLONES, name);
	CHECK(vm);
	return vm;
}

static int try_make(const char *snapshot, const char *name, const char *volume)
{
	struct vm *web = store_find(store, PLACE_VMS, "web"), *vm = NULL;
	const struct clone_spec spec = {
		.name = name, .uid = getuid(), .gid = getgid(),
		.all = {.mode = CLONE_FULL, .format = IMAGE_RAW, .pool = volume ? "fast" : NULL, .volume = volume}};
	int err = store_clone_with(store, web, vm_find_snapshot(web, snapshot), &spec, &vm, &why);
	vm_put(vm);
	vm_put(web);
	return err;
}

static void make(const char *name)
{
	CHECK_ERR(try_make("base", name, NULL), 0);
}

static void drop(const char *name)
{
	struct vm *vm = find(name);
	CHECK_ERR(store_remove(store, vm, &why), 0);
	vm_put(vm);
}

static void snapshot(const char *name)
{
	struct vm *vm = find(name);
	const struct snapshot_spec spec = {.name = "s"};
	CHECK_ERR(store_snapshot_create(store, vm, &spec, &why), 0);
	vm_put(vm);
}

static void delete_snapshot(const char *name)
{
	struct vm *vm = find(name);
	CHECK_ERR(store_snapshot_delete(store, vm, "s", SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
}

static struct disk_file *open_disk(const char *name, const char *snapshot, bool writable)
{
	struct vm *vm = find(name);
	const struct vm_snapshot *s = snapshot ? vm_find_snapshot(vm, snapshot) : NULL;
	struct disk_file *file = NULL;
	CHECK(s || !snapshot);
	CHECK_ERR(disk_open(store, vm, s, disk_of(vm, s, "vda.img"), writable, &file, &why), 0);
	vm_put(vm);
	return file;
}

static void put_block(struct disk_file *file, uint64_t i, int byte, unsigned char *bytes)
{
	memset(bytes + i * BLOCK, byte, BLOCK);
	CHECK_ERR(disk_write(file, bytes + i * BLOCK, BLOCK, i * BLOCK), 0);
}

static void check(const char *name, const char *snapshot, const unsigned char *bytes)
{
	static unsigned char seen[DISK_SIZE];
	struct disk_file *file = open_disk(name, snapshot, false);
	CHECK(disk_virtual_size(file) == DISK_SIZE);
	CHECK_ERR(disk_read(file, seen, DISK_SIZE, 0), 0);
	CHECK_ERR(disk_close(file, &why), 0);
	for (size_t i = 0; i < DISK_SIZE; i++) {
		if (seen[i] != bytes[i]) {
			printf("%s@%s: byte %zu is %02x, not %02x\n%s", name, snapshot ? snapshot : "", i, seen[i], bytes[i], events);
			exit(1);
		}
	}
}

static unsigned char *copy_of(const unsigned char *bytes)
{
	unsigned char *copy = calloc(1, DISK_SIZE);
	if (bytes)
		memcpy(copy, bytes, DISK_SIZE);
	return copy;
}

static unsigned char *load(const char *image)
{
	char path[300];
	unsigned char *bytes = calloc(1, DISK_SIZE);
	snprintf(path, sizeof path, "%s/%s", dir, image);
	FILE *f = fopen(path, "r");
	CHECK(f && fread(bytes, 1, DISK_SIZE, f) == DISK_SIZE);
	fclose(f);
	return bytes;
}

static void base_of(const char *name, char base[LAYER_NAME_MAX])
{
	struct vm *vm = find(name);
	snprintf(base, LAYER_NAME_MAX, "%s", vm->disks[0].full_base ? vm->disks[0].full_base : "");
	vm_put(vm);
}

static void empty(struct disk_file *file)
{
	CHECK_ERR(disk_resize(file, 0), 0);
	CHECK_ERR(disk_resize(file, DISK_SIZE), 0);
}

/* What the job does first: the base is made of what lies beneath the bottom now. */
static void make_base(const char *name)
{
	struct vm *vm = find(name);
	struct job *job = calloc(1, sizeof *job);
	char source[FULL_SOURCE_MAX];
	job->vm_id = vm->id;
	CHECK_ERR(full_raw_make(store, job, vm->disks[0].layer, vm->disks[0].full_base, false, source, &why), 0);
	layers_unpin(store, vm->disks[0].full_base);
	vm_put(vm);
	free(job);
}

static void end(const char *name)
{
	struct vm *vm = find(name);
	bool has_snapshot = vm->nr_snapshots;
	vm_put(vm);
	if (has_snapshot)
		delete_snapshot(name);
	wait_for_jobs(store);
	drop(name);
	run("! find %s/src/.vmsnapfs/layers %s/fast -type f | grep .", dir, dir);
}

/* --- one by one --------------------------------------------------------------------------------------------------------------- */

static bool is_pushed_into(const char *base)
{
	pthread_mutex_lock(&store->lock);
	const struct layer_row *row = layer_row_find_locked(&store->layers, base);
	bool is = row && row->spoiled;
	pthread_mutex_unlock(&store->lock);
	return is;
}

static bool are_jobs_done(void)
{
	char *jobs = NULL;
	CHECK(store_jobs(store, &jobs) == 0);
	bool none = !*jobs;
	free(jobs);
	return none;
}

/* While the disk is being pushed into the raw file: that lies beneath it. */
static void cancel_in_push(void)
{
	unsigned char *bytes = copy_of(base_bytes);
	char base[LAYER_NAME_MAX], path[600];
	struct stat st;
	reopen(false);
	make("push");
	struct disk_file *file = open_disk("push", NULL, true);
	memset(bytes, 'g', 20 << 20);
	CHECK_ERR(disk_write(file, bytes, 20 << 20, 0), 0);
	CHECK_ERR(disk_close(file, &why), 0);
	snapshot("push");
	delete_snapshot("push");
	base_of("push", base);
	CHECK_ERR(store_start(store), 0);
	while (!is_pushed_into(base) && !are_jobs_done())
		;
	int err = store_job_cancel(store, "push-vda-flatten", &why);
	snprintf(path, sizeof path, "%s/src/.vmsnapfs/layers/%s", dir, base);
	CHECK(err == -ENOENT || stat(path, &st) == 0);
	wait_for_jobs(store);
	check("push", NULL, bytes);
	struct vm *vm = find("push");
	CHECK(!vm->disks[0].full || err);
	vm_put(vm);
	reopen(true);
	wait_for_jobs(store);
	check("push", NULL, bytes);
	end("push");
	free(bytes);
}

/* The disk is emptied, its snapshot isn't: both were to become the one file. */
static void two_bottoms(void)
{
	unsigned char *bytes = copy_of(NULL);
	reopen(false);
	make("two");
	snapshot("two");
	struct disk_file *file = open_disk("two", NULL, true);
	empty(file);
	put_block(file, 3, 'n', bytes);
	CHECK_ERR(disk_close(file, &why), 0);
	reopen(true);
	wait_for_jobs(store);
	check("two", NULL, bytes);
	check("two", "s", base_bytes);
	reopen(true);
	check("two", NULL, bytes);
	check("two", "s", base_bytes);
	end("two");
	free(bytes);
}

static void emptied(bool with_snapshot)
{
	unsigned char *bytes = copy_of(NULL);
	reopen(false);
	make("emptied");
	make_base("emptied");
	if (with_snapshot)
		snapshot("emptied");
	struct disk_file *file = open_disk("emptied", NULL, true);
	empty(file);
	put_block(file, 3, 'n', bytes);
	CHECK_ERR(disk_close(file, &why), 0);
	check("emptied", NULL, bytes);
	CHECK_ERR(store_start(store), 0);
	wait_for_jobs(store);
	check("emptied", NULL, bytes);
	if (with_snapshot)
		check("emptied", "s", base_bytes);
	reopen(true);
	check("emptied", NULL, bytes);
	end("emptied");
	free(bytes);
}

static void copy_over(const char *name, const char *of)
{
	struct vm *web = store_find(store, PLACE_VMS, "web");
	const struct vm_snapshot *s = vm_find_snapshot(web, of);
	struct disk_file *from = NULL, *to = open_disk(name, NULL, true);
	CHECK_ERR(disk_resize(to, 0), 0);
	CHECK_ERR(disk_open(store, web, s, s->disks, false, &from, &why), 0);
	CHECK(disk_copy(from, 0, to, 0, DISK_SIZE, &why) == DISK_SIZE);
	CHECK_ERR(disk_close(from, &why), 0);
	CHECK_ERR(disk_close(to, &why), 0);
	vm_put(web);
}

static void put_over_another(bool with_snapshot)
{
	reopen(false);
	make("other");
	make_base("other");
	if (with_snapshot)
		snapshot("other");
	copy_over("other", "root");
	check("other", NULL, root_bytes);
	CHECK_ERR(store_start(store), 0);
	wait_for_jobs(store);
	check("other", NULL, root_bytes);
	if (with_snapshot)
		check("other", "s", base_bytes);
	reopen(true);
	check("other", NULL, root_bytes);
	end("other");
}

/* The disk goes, its snapshot is still to become the file: nobody else gets the name. */
static void one_file_for_two_vms(void)
{
	reopen(false);
	CHECK_ERR(try_make("base", "one", "v.raw"), 0);
	snapshot("one");
	struct vm *vm = find("one");
	CHECK_ERR(disk_remove(store, vm, "vda.img", &why), 0);
	vm_put(vm);
	CHECK_ERR(try_make("root", "another", "v.raw"), -EEXIST);
	CHECK_ERR(store_start(store), 0);
	wait_for_jobs(store);
	check("one", "s", base_bytes);
	delete_snapshot("one");
	drop("one");
	CHECK_ERR(try_make("root", "another", "v.raw"), 0);
	wait_for_jobs(store);
	check("another", NULL, root_bytes);
	end("another");
}

/* What was cancelled isn't begun anew: the name is free. */
static void begun_for_nobody(void)
{
	char base[LAYER_NAME_MAX], source[FULL_SOURCE_MAX], layer[LAYER_NAME_MAX];
	reopen(false);
	CHECK_ERR(try_make("base", "nobody", "n.raw"), 0);
	base_of("nobody", base);
	struct vm *vm = find("nobody");
	struct job *job = calloc(1, sizeof *job);
	job->vm_id = vm->id;
	snprintf(layer, sizeof layer, "%s", vm->disks[0].layer);
	vm_put(vm);
	CHECK_ERR(store_job_cancel(store, "nobody-vda-flatten", &why), 0);
	CHECK_ERR(full_raw_make(store, job, layer, base, false, source, &why), -EAGAIN);
	drop("nobody");
	CHECK_ERR(try_make("base", "nobody", "n.raw"), 0);
	CHECK_ERR(store_start(store), 0);
	end("nobody");
	free(job);
}

/* Who found the disk before the layer went into the raw file opens what it is now. */
static void seen_before(void)
{
	struct disk_file *file = NULL;
	reopen(false);
	CHECK_ERR(try_make("base", "before", "b.raw"), 0);
	struct vm *vm = find("before");
	CHECK_ERR(store_start(store), 0);
	wait_for_jobs(store);
	CHECK(!layer_file_exists(store, vm->disks[0].layer));
	CHECK_ERR(disk_open(store, vm, NULL, &vm->disks[0], false, &file, &why), 0);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
	end("before");
}

/* A device that isn't active yet: what isn't there isn't the source. */
static void device_gone(void)
{
	reopen(false);
	CHECK_ERR(try_make("base", "gone", "g.raw"), 0);
	run("rm -f %s/fast/.vmsnapfs-* && printf 'device 7:200 33554432\\nfilling\\n' >%s/src/.vmsnapfs/pools/fast/g.raw", dir, dir);
	CHECK_ERR(store_start(store), 0);
	for (int i = 0; i < 1000 && !nr_events("it is tried again") && !nr_events("the source was deleted"); i++)
		usleep(10000);
	CHECK(nr_events("it is tried again") && !nr_events("the source was deleted"));
	store_close(store);
	run("rm %s/src/.vmsnapfs/pools/fast/g.raw", dir);
	open_store(true);
	wait_for_jobs(store);
	check("gone", NULL, base_bytes);
	end("gone");
}

/* vm.xml can't name the raw file: nobody knows what a restart finds, so that nothing more is written. */
static void commit_fails(void)
{
	unsigned char *bytes = copy_of(base_bytes);
	char buf[BLOCK];
	memset(buf, 'z', sizeof buf);
	reopen(false);
	make("unsure");
	struct disk_file *file = open_disk("unsure", NULL, true);
	put_block(file, 3, 'u', bytes);
	struct vm *vm = find("unsure");
	run("cd %s/src/.vmsnapfs/vms/%s && mv vm.xml saved && mkdir vm.xml", dir, vm->uuid);
	CHECK_ERR(store_start(store), 0);
	for (int i = 0; i < 1000 && !nr_events("can't be used until the next start"); i++)
		usleep(10000);
	CHECK(nr_events("can't be used until the next start") == 1);
	CHECK_ERR(disk_write(file, buf, sizeof buf, 0), -EIO);
	disk_close(file, &why);
	store_close(store);
	run("cd %s/src/.vmsnapfs/vms/%s && rmdir vm.xml && mv saved vm.xml", dir, vm->uuid);
	vm_put(vm);
	open_store(true);
	check("unsure", NULL, bytes);
	wait_for_jobs(store);
	check("unsure", NULL, bytes);
	end("unsure");
	free(bytes);
}

/* Its snapshot is deleted again: what is frozen over the raw file is larger than that. */
static void grown(void)
{
	const uint64_t size = DISK_SIZE + (4u << 20);
	char buf[BLOCK], seen[BLOCK];
	memset(buf, 'l', sizeof buf);
	events[0] = '\0';
	reopen(false);
	make("grown");
	make_base("grown");
	snapshot("grown");
	struct disk_file *file = open_disk("grown", NULL, true);
	CHECK_ERR(disk_write(file, buf, BLOCK, size - BLOCK), 0);
	CHECK_ERR(disk_close(file, &why), 0);
	struct vm *vm = find("grown");
	const struct snapshot_spec spec = {.name = "t"};
	CHECK_ERR(store_snapshot_create(store, vm, &spec, &why), 0);
	CHECK_ERR(store_snapshot_delete(store, vm, "t", SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
	delete_snapshot("grown");
	full_plan(store);
	CHECK_ERR(store_start(store), 0);
	wait_for_jobs(store);
	CHECK(!nr_events("it is tried again"));
	file = open_disk("grown", NULL, false);
	CHECK(disk_virtual_size(file) == size);
	CHECK_ERR(disk_read(file, seen, BLOCK, size - BLOCK), 0);
	CHECK(memcmp(seen, buf, BLOCK) == 0);
	CHECK_ERR(disk_close(file, &why), 0);
	vm = find("grown");
	CHECK(vm->disks[0].format == IMAGE_RAW);
	vm_put(vm);
	end("grown");
}

/* --- at random ------------------------------------------------------------------------------------------------------------------ */

static void change(unsigned char *bytes, unsigned char *saved, bool *has_snapshot)
{
	struct disk_file *file = NULL;
	switch (random() % 7) {
	case 0:
		file = open_disk("random", NULL, true);
		empty(file);
		memset(bytes, 0, DISK_SIZE);
		break;
	case 1:
	case 2: {
		bool root = random() % 2;
		copy_over("random", root ? "root" : "base");
		memcpy(bytes, root ? root_bytes : base_bytes, DISK_SIZE);
		break;
	}
	case 3:
		if (!*has_snapshot) {
			snapshot("random");
			memcpy(saved, bytes, DISK_SIZE);
		} else {
			delete_snapshot("random");
		}
		*has_snapshot = !*has_snapshot;
		break;
	case 4: {
		int err = random() % 4 ? 0 : store_job_cancel(store, "random-vda-flatten", &why);
		CHECK(!err || err == -ENOENT);
		break;
	}
	default:
		file = open_disk("random", NULL, true);
		for (int i = 0; i < 200; i++)
			put_block(file, (uint64_t)random() % (DISK_SIZE / BLOCK), 1 + (int)(random() % 250), bytes);
		break;
	}
	CHECK_ERR(disk_close(file, &why), 0);
}

static void at_random(void)
{
	unsigned char *bytes = copy_of(base_bytes), *saved = copy_of(NULL);
	bool has_snapshot = false;
	events[0] = '\0';
	CHECK_ERR(try_make("base", "random", random() % 2 ? "r.raw" : NULL), 0);
	for (int i = 0; i < 8; i++) {
		const struct timespec moment = {0, random() % 40000000};
		nanosleep(&moment, NULL);
		change(bytes, saved, &has_snapshot);
		if (random() % 8 == 0)
			reopen(random() % 4);
		check("random", NULL, bytes);
		if (has_snapshot)
			check("random", "s", saved);
	}
	reopen(true);
	wait_for_jobs(store);
	check("random", NULL, bytes);
	if (has_snapshot)
		check("random", "s", saved);
	if (has_snapshot && random() % 2) {
		struct vm *vm = find("random");
		CHECK_ERR(disk_remove(store, vm, "vda.img", &why), 0);
		vm_put(vm);
		check("random", "s", saved);
	}
	end("random");
	free(bytes);
	free(saved);
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	printf("seed %u\n", seed);
	srandom(seed);
	dir_init();
	run("mkdir %s/fast && cd %s/src && qemu-img create -q -f qcow2 root.qcow2 24M && qemu-io -c 'write -P 17 0 20M' root.qcow2 >/dev/null && "
	    "qemu-img create -q -f qcow2 -b root.qcow2 -F qcow2 base.qcow2 && qemu-io -c 'write -P 34 4M 8M' -c 'write -P 35 23M 64k' base.qcow2 >/dev/null && "
	    "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 web.qcow2 && qemu-img convert -O raw base.qcow2 ../base.raw && "
	    "qemu-img convert -O raw root.qcow2 ../root.raw", dir, dir);
	base_bytes = load("base.raw");
	root_bytes = load("root.raw");
	open_store(false);
	cancel_in_push();
	two_bottoms();
	emptied(false);
	emptied(true);
	put_over_another(false);
	put_over_another(true);
	one_file_for_two_vms();
	begun_for_nobody();
	seen_before();
	device_gone();
	commit_fails();
	grown();
	reopen(true);
	for (int i = 0; i < 12; i++)
		at_random();
	store_close(store);
	free(base_bytes);
	free(root_bytes);
	dir_done();
	return 0;
}
