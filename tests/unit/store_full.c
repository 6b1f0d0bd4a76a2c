/* Clones in full and flattened VMs: while a job takes up what lies beneath, they are read, written, frozen, cancelled, killed. At the end each
 * holds what it should, by qemu-img, and depends on nothing.
 * store_full [SEED]
 * limit: 240 */
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "store_test.h"

#define DISK_SIZE (24u << 20)
#define BLOCK	  4096u
#define NR_BLOCKS (DISK_SIZE / BLOCK)
#define KILLS	  50

static struct store *store;

static struct vm *find(const char *name)
{
	struct vm *vm = store_find(store, PLACE_CLONES, name);
	CHECK(vm);
	return vm;
}

static void reopen(bool start)
{
	store_close(store);
	store = store_at("src", start);
}

/* A clone of web's snapshot, in full or thin. */
static void make_as(const char *snapshot, const char *name, struct disk_spec disk)
{
	struct vm *web = store_find(store, PLACE_VMS, "web"), *vm = NULL;
	const struct clone_spec spec = {.name = name, .uid = getuid(), .gid = getgid(), .all = disk};
	CHECK(web && vm_find_snapshot(web, snapshot));
	CHECK_ERR(store_clone_with(store, web, vm_find_snapshot(web, snapshot), &spec, &vm, &why), 0);
	CHECK(vm->disks[0].full == (disk.mode == CLONE_FULL));
	vm_put(vm);
	vm_put(web);
}

static void make(const char *snapshot, const char *name, enum clone_mode mode)
{
	make_as(snapshot, name, (struct disk_spec){.mode = mode});
}

static void make_raw(const char *snapshot, const char *name)
{
	make_as(snapshot, name, (struct disk_spec){.mode = CLONE_FULL, .format = IMAGE_RAW});
}

static void drop(const char *name)
{
	struct vm *vm = find(name);
	CHECK_ERR(store_remove(store, vm, &why), 0);
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

static void put_block(struct disk_file *file, uint64_t i, int byte)
{
	char buf[BLOCK];
	memset(buf, byte, sizeof buf);
	CHECK_ERR(disk_write(file, buf, sizeof buf, i * BLOCK), 0);
}

static void write_block(const char *name, uint64_t i, int byte)
{
	struct disk_file *file = open_disk(name, NULL, true);
	put_block(file, i, byte);
	CHECK_ERR(disk_close(file, &why), 0);
}

/* What every state holds but for what was written to it: the file IMAGE. */
static unsigned char *expected(const char *image)
{
	char path[300];
	unsigned char *bytes = malloc(DISK_SIZE);
	snprintf(path, sizeof path, "%s/%s", dir, image);
	FILE *f = fopen(path, "r");
	CHECK(f && fread(bytes, 1, DISK_SIZE, f) == DISK_SIZE);
	fclose(f);
	return bytes;
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

/* The whole chain as others see it: in STORE/layers alone, sound, the bottom without a backing file. */
static void check_alone(const char *name)
{
	struct vm *vm = find(name);
	CHECK(!vm->disks[0].full);
	run("qemu-img check -q %s >/dev/null && ! qemu-img info --backing-chain %s | grep -q \"^image: $(dirname %s/src/x)/[^/.]*\\.qcow2\"",
	    vm->disks[0].path, vm->disks[0].path, dir);
	run("! grep -q '<full' %s/src/.vmsnapfs/vms/%s/vm.xml", dir, vm->uuid);
	vm_put(vm);
}

static void check_flat(const char *name)
{
	struct vm *vm = find(name);
	check_alone(name);
	run("! qemu-img info %s | grep -q 'backing file'", vm->disks[0].path);
	vm_put(vm);
}

/* --- one by one --------------------------------------------------------------------------------------------------------------- */

static void check_ordinary(void)
{
	unsigned char *base = expected("base.raw"), *inner = expected("inner.raw");
	make("base", "chain", CLONE_FULL);
	make("inner", "internal", CLONE_FULL);
	write_block("chain", 5, 'w');
	memset(base + 5 * BLOCK, 'w', BLOCK);
	wait_for_jobs(store);
	check("chain", NULL, base);
	check("internal", NULL, inner);
	check_flat("chain");
	check_flat("internal");
	reopen(true);
	check("chain", NULL, base);
	check("internal", NULL, inner);
	CHECK(nr_events("depends on nothing any more") == 2);
	drop("chain");
	drop("internal");
	run("[ -z \"$(ls %s/src/.vmsnapfs/layers)\" ]", dir);
	free(base);
	free(inner);
}

static void check_restart(void)
{
	unsigned char *base = expected("base.raw");
	reopen(false);
	make("base", "later", CLONE_FULL);
	reopen(false);
	struct vm *vm = find("later");
	char *jobs = NULL, *text = NULL;
	size_t len = 0;
	CHECK(vm->disks[0].full);
	vm_put(vm);
	store_close(store);
	store = store_at("src", true);
	wait_for_jobs(store);
	check("later", NULL, base);
	check_flat("later");
	drop("later");
	CHECK(store_jobs(store, &jobs) == 0 && !*jobs);
	CHECK_ERR(store_job_text(store, "later-vda-flatten", &text, &len), -ENOENT);
	free(jobs);
	free(base);
}

/* The layer that was to be independent is frozen by a snapshot: it becomes so all the same. */
static void check_snapshot_meanwhile(void)
{
	unsigned char *base = expected("base.raw");
	reopen(false);
	make("base", "frozen", CLONE_FULL);
	struct vm *vm = find("frozen");
	const struct snapshot_spec spec = {.name = "s"};
	CHECK_ERR(store_snapshot_create(store, vm, &spec, &why), 0);
	vm_put(vm);
	write_block("frozen", 7, 'x');
	reopen(true);
	wait_for_jobs(store);
	check("frozen", "s", base);
	memset(base + 7 * BLOCK, 'x', BLOCK);
	check("frozen", NULL, base);
	check_alone("frozen");
	vm = find("frozen");
	run("[ $(qemu-img info --backing-chain %s | grep -c ^image:) = 2 ]", vm->disks[0].path);
	CHECK_ERR(store_snapshot_delete(store, vm, "s", SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
	wait_for_jobs(store);
	check("frozen", NULL, base);
	check_flat("frozen");
	drop("frozen");
	free(base);
}

static void check_cancel(void)
{
	unsigned char *base = expected("base.raw");
	char *jobs = NULL, *text = NULL;
	size_t len = 0;
	reopen(false);
	make("base", "stays", CLONE_FULL);
	CHECK(store_jobs(store, &jobs) == 0);
	CHECK_STR(jobs, "stays-vda-flatten\n");
	CHECK_ERR(store_job_text(store, "stays-vda-flatten", &text, &len), 0);
	CHECK(strstr(text, "source: ") && strstr(text, "base.qcow2") && strstr(text, "target: "));
	CHECK_ERR(store_job_cancel(store, "stays-vda-flatten", &why), 0);
	struct vm *vm = find("stays");
	CHECK(!vm->disks[0].full);
	vm_put(vm);
	CHECK(nr_events("was cancelled") == 1);
	reopen(true);
	wait_for_jobs(store);
	check("stays", NULL, base);
	vm = find("stays");
	run("qemu-img info %s | grep -q 'backing file'", vm->disks[0].path);
	vm_put(vm);
	drop("stays");
	free(jobs);
	free(text);
	free(base);
}

static void check_source_gone(void)
{
	reopen(false);
	make("base", "lost", CLONE_FULL);
	store_close(store);
	run("mv %s/src/base.qcow2 %s/gone", dir, dir);
	store = store_at("src", true);
	wait_for_jobs(store);
	struct vm *vm = find("lost");
	CHECK(vm->disks[0].error == -EIO && nr_events("the source was deleted") == 1);
	vm_put(vm);
	run("mv %s/gone %s/src/base.qcow2", dir, dir);
	reopen(true);
	wait_for_jobs(store);
	unsigned char *base = expected("base.raw");
	check("lost", NULL, base);
	check_flat("lost");
	drop("lost");
	free(base);
}

static void check_flatten(void)
{
	unsigned char *bytes[3] = {expected("base.raw"), expected("base.raw"), expected("base.raw")};
	make("base", "tree", CLONE_THIN);
	struct vm *vm = find("tree"), *vm_2 = NULL;
	const struct snapshot_spec one = {.name = "one"}, two = {.name = "two"};
	write_block("tree", 1, 'a');
	CHECK_ERR(store_snapshot_create(store, vm, &one, &why), 0);
	write_block("tree", 2, 'b');
	CHECK_ERR(store_snapshot_create(store, vm, &two, &why), 0);
	CHECK_ERR(store_restore(store, vm, "one", false, &why), 0);
	write_block("tree", 3, 'c');
	for (int i = 0; i < 3; i++)
		memset(bytes[i] + 1 * BLOCK, 'a', BLOCK);
	memset(bytes[1] + 2 * BLOCK, 'b', BLOCK);
	memset(bytes[2] + 3 * BLOCK, 'c', BLOCK);
	vm_put(vm);
	vm = find("tree");
	/* A clone of a snapshot: what that lies over isn't its own. */
	const struct clone_spec spec = {.name = "sprout", .uid = getuid(), .gid = getgid()};
	CHECK_ERR(store_clone_with(store, vm, vm_find_snapshot(vm, "two"), &spec, &vm_2, &why), 0);
	vm_put(vm_2);
	static const char *const bad[] = {"vdz"}, *const good[] = {"vda"};
	CHECK_ERR(store_flatten(store, vm, bad, 1, &why), -ENOENT);
	CHECK_ERR(store_flatten(store, vm, good, 1, &why), 0);
	wait_for_jobs(store);
	check_alone("tree");
	check("tree", "one", bytes[0]);
	check("tree", "two", bytes[1]);
	check("tree", NULL, bytes[2]);
	check("sprout", NULL, bytes[1]);
	vm_put(vm);
	vm = find("sprout");
	CHECK_ERR(store_flatten(store, vm, NULL, 0, &why), 0);
	wait_for_jobs(store);
	check_flat("sprout");
	check("sprout", NULL, bytes[1]);
	vm_put(vm);
	vm = find("tree");
	CHECK_ERR(store_flatten(store, vm, NULL, 0, &why), 0); /* nothing to do */
	char *jobs = NULL;
	CHECK(store_jobs(store, &jobs) == 0 && !*jobs);
	free(jobs);
	CHECK_ERR(store_snapshot_delete(store, vm, "two", SNAPSHOT_DROP, &why), 0);
	CHECK_ERR(store_snapshot_delete(store, vm, "one", SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
	wait_for_jobs(store);
	check("tree", NULL, bytes[2]);
	drop("tree");
	check("sprout", NULL, bytes[1]);
	drop("sprout");
	for (int i = 0; i < 3; i++)
		free(bytes[i]);
}

/* Where the mount says so: a clone, and what a copying program makes. */
static void check_as_mounted(void)
{
	unsigned char *base = expected("base.raw");
	char source[300];
	snprintf(source, sizeof source, "%s/src", dir);
	const struct store_config config = {.source_dir = source, .clone_full = true, .log = {keep_event, NULL}};
	store_close(store);
	CHECK_ERR(store_open(&config, &store, &why), 0);
	struct vm *web = store_find(store, PLACE_VMS, "web"), *vm = NULL;
	const struct vm_snapshot *snapshot = vm_find_snapshot(web, "base");
	CHECK_ERR(store_clone(store, web, snapshot, "made", getuid(), getgid(), &vm, &why), 0);
	CHECK(vm->disks[0].full);
	vm_put(vm);
	CHECK_ERR(store_create(store, "copied", getuid(), getgid(), &vm, &why), 0);
	struct disk_file *from = NULL, *to = NULL;
	CHECK_ERR(disk_open(store, web, snapshot, &snapshot->disks[0], false, &from, &why), 0);
	CHECK_ERR(disk_create(store, vm, "vda.img", 0600, getuid(), getgid(), &to, &why), 0);
	CHECK(disk_copy(from, 0, to, 0, DISK_SIZE, &why) == DISK_SIZE);
	vm_put(vm);
	vm = find("copied");
	CHECK(vm->disks[0].full);
	CHECK_ERR(store_start(store), 0);
	wait_for_jobs(store);
	CHECK_ERR(disk_close(from, &why), 0);
	CHECK_ERR(disk_close(to, &why), 0);
	vm_put(vm);
	vm_put(web);
	check_flat("made");
	check_flat("copied");
	check("made", NULL, base);
	check("copied", NULL, base);
	drop("made");
	drop("copied");
	reopen(true);
	free(base);
}

/* --- raw ------------------------------------------------------------------------------------------------------------------------- */

static void check_is_raw(const char *name)
{
	struct vm *vm = find(name);
	const struct vm_disk *disk = &vm->disks[0];
	CHECK(!disk->full && !disk->full_base && disk->format == IMAGE_RAW);
	run("qemu-img info %s | grep -q 'file format: raw' && ! grep -q '<full' %s/src/.vmsnapfs/vms/%s/vm.xml", disk->path, dir, vm->uuid);
	vm_put(vm);
}

static void check_raw(void)
{
	unsigned char *base = expected("base.raw"), *inner = expected("inner.raw");
	make_raw("base", "raw");
	struct disk_file *file = open_disk("raw", NULL, true);
	put_block(file, 9, 'r');
	memset(base + 9 * BLOCK, 'r', BLOCK);
	make_raw("inner", "raw-inner");
	wait_for_jobs(store);
	check_is_raw("raw");
	check_is_raw("raw-inner");
	put_block(file, 10, 's'); /* the same file, open all the while */
	memset(base + 10 * BLOCK, 's', BLOCK);
	CHECK_ERR(disk_close(file, &why), 0);
	check("raw", NULL, base);
	check("raw-inner", NULL, inner);
	run("[ $(ls %s/src/.vmsnapfs/layers | wc -l) = 2 ]", dir);
	reopen(true);
	check("raw", NULL, base);
	struct vm *vm = find("raw");
	const struct snapshot_spec spec = {.name = "s"};
	CHECK_ERR(store_snapshot_create(store, vm, &spec, &why), 0);
	vm_put(vm);
	write_block("raw", 11, 't');
	check("raw", "s", base);
	memset(base + 11 * BLOCK, 't', BLOCK);
	check("raw", NULL, base);
	vm = find("raw");
	CHECK_ERR(store_flatten(store, vm, NULL, 0, &why), 0); /* it is already */
	CHECK(!vm->disks[0].full);
	CHECK_ERR(store_snapshot_delete(store, vm, "s", SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
	wait_for_jobs(store);
	check("raw", NULL, base);
	drop("raw");
	drop("raw-inner");
	run("[ -z \"$(ls %s/src/.vmsnapfs/layers %s/src/.vmsnapfs/jobs | grep -v :)\" ]", dir, dir);
	free(base);
	free(inner);
}

static void check_raw_meanwhile(void)
{
	unsigned char *base = expected("base.raw");
	reopen(false);
	make_raw("base", "raw");
	write_block("raw", 1, 'a');
	struct vm *vm = find("raw");
	const struct snapshot_spec spec = {.name = "s"};
	CHECK_ERR(store_snapshot_create(store, vm, &spec, &why), 0);
	vm_put(vm);
	write_block("raw", 2, 'b');
	reopen(false);
	reopen(true);
	wait_for_jobs(store);
	memset(base + 1 * BLOCK, 'a', BLOCK);
	check("raw", "s", base);
	memset(base + 2 * BLOCK, 'b', BLOCK);
	check("raw", NULL, base);
	check_alone("raw");
	vm = find("raw");
	run("qemu-img info --backing-chain %s | grep -q 'file format: raw'", vm->disks[0].path);
	vm_put(vm);
	reopen(true);
	check("raw", NULL, base);
	vm = find("raw");
	CHECK_ERR(store_snapshot_delete(store, vm, "s", SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
	drop("raw");
	/* Cloned meanwhile: the layer that it was about is another's as well now. */
	free(base);
	base = expected("base.raw");
	reopen(false);
	make_raw("base", "raw");
	write_block("raw", 3, 'c');
	memset(base + 3 * BLOCK, 'c', BLOCK);
	vm = find("raw");
	struct vm *thin = NULL;
	CHECK_ERR(store_clone(store, vm, NULL, "thin", getuid(), getgid(), &thin, &why), 0);
	vm_put(thin);
	vm_put(vm);
	reopen(true);
	wait_for_jobs(store);
	check_is_raw("raw");
	check("raw", NULL, base);
	check("thin", NULL, base);
	drop("raw");
	check("thin", NULL, base);
	drop("thin");
	/* Cancelled, and removed before it was made. */
	reopen(false);
	make_raw("base", "raw");
	make_raw("base", "raw-removed");
	CHECK_ERR(store_job_cancel(store, "raw-vda-flatten", &why), 0);
	drop("raw-removed");
	run("[ $(ls %s/src/.vmsnapfs/layers | wc -l) = 1 ]", dir);
	drop("raw");
	free(base);
}

/* Who has a description from before the disk became the raw file sees the disk all the same. */
static void check_raw_seen_late(void)
{
	struct disk_stat st = {0};
	char *chain = NULL;
	reopen(false);
	make_raw("base", "raw");
	struct vm *before = find("raw");
	CHECK_ERR(store_start(store), 0);
	wait_for_jobs(store);
	check_is_raw("raw");
	CHECK_ERR(disk_stat(store, before, NULL, before->disks, &st, &why), 0);
	CHECK(st.virtual_size != 0);
	CHECK_ERR(disk_chain(store, before, NULL, before->disks, &chain, &why), 0);
	free(chain);
	vm_put(before);
	drop("raw");
}

/* --- killed ----------------------------------------------------------------------------------------------------------------------- */

/* Of each block: what was flushed last, and what was written since, which may be there or not. */
struct ledger {
	unsigned char stable[NR_BLOCKS], fresh[NR_BLOCKS]; /* 0: what the source has */
};

static void write_until_killed(struct ledger *ledger, unsigned seed)
{
	srandom(seed);
	store = store_at("src", true);
	struct disk_file *file = open_disk("killed", NULL, true);
	for (;;) {
		uint64_t touched[8];
		for (int i = 0; i < 8; i++) {
			touched[i] = (uint64_t)random() % NR_BLOCKS;
			int byte = 1 + (int)(random() % 250);
			ledger->fresh[touched[i]] = (unsigned char)byte;
			put_block(file, touched[i], byte);
		}
		CHECK_ERR(disk_flush(file), 0);
		for (int i = 0; i < 8; i++)
			ledger->stable[touched[i]] = ledger->fresh[touched[i]];
	}
}

static void check_ledger(const struct ledger *ledger, unsigned char *bytes)
{
	struct disk_file *file = open_disk("killed", NULL, false);
	for (uint64_t i = 0; i < NR_BLOCKS; i++) {
		unsigned char seen[BLOCK];
		CHECK_ERR(disk_read(file, seen, BLOCK, i * BLOCK), 0);
		bool is_source = memcmp(seen, bytes + i * BLOCK, BLOCK) == 0;
		bool is_even = true;
		for (unsigned b = 1; b < BLOCK; b++)
			is_even = is_even && seen[b] == seen[0];
		bool fits = ledger->stable[i] ? is_even && (seen[0] == ledger->stable[i] || seen[0] == ledger->fresh[i])
					      : is_source || (ledger->fresh[i] && is_even && seen[0] == ledger->fresh[i]);
		if (!fits) {
			printf("block %llu: %02x…, flushed %02x, written %02x\n", (unsigned long long)i, seen[0], ledger->stable[i], ledger->fresh[i]);
			exit(1);
		}
	}
	CHECK_ERR(disk_close(file, &why), 0);
}

/* What was written after the last flush came or it didn't: what is there now must stay. */
static void settle_ledger(struct ledger *ledger)
{
	struct disk_file *file = open_disk("killed", NULL, true);
	for (uint64_t i = 0; i < NR_BLOCKS; i++)
		if (ledger->fresh[i] != ledger->stable[i]) {
			put_block(file, i, ledger->fresh[i]);
			ledger->stable[i] = ledger->fresh[i];
		}
	CHECK_ERR(disk_close(file, &why), 0);
}

static void check_killed(bool raw)
{
	const struct disk_spec spec = {.mode = CLONE_FULL, .format = raw ? IMAGE_RAW : IMAGE_QCOW2};
	struct ledger *ledger = mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned char *base = expected("base.raw");
	CHECK(ledger != MAP_FAILED);
	reopen(false);
	make_as("base", "killed", spec);
	store_close(store);
	store = NULL;
	int nr_resumed = 0;
	for (int i = 0; i < KILLS; i++) {
		unsigned seed = (unsigned)random();
		pid_t pid = fork();
		if (!pid)
			write_until_killed(ledger, seed);
		struct timespec ts = {0, (long)(random() % (raw ? 150 : 30) + 1) * 1000000};
		nanosleep(&ts, NULL);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		store = store_at("src", false);
		check_ledger(ledger, base);
		settle_ledger(ledger);
		struct vm *vm = find("killed");
		bool again = !vm->disks[0].full;
		nr_resumed += !again;
		vm_put(vm);
		if (again) {
			raw ? check_is_raw("killed") : check_flat("killed");
			drop("killed");
			memset(ledger, 0, sizeof *ledger);
			make_as("base", "killed", spec);
		}
		store_close(store);
		store = NULL;
	}
	store = store_at("src", true);
	wait_for_jobs(store);
	check_ledger(ledger, base);
	raw ? check_is_raw("killed") : check_flat("killed");
	drop("killed");
	printf("%s: %d of %d kills before it was done\n", raw ? "raw" : "qcow2", nr_resumed, KILLS);
	munmap(ledger, sizeof *ledger);
	free(base);
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	printf("seed %u\n", seed);
	srandom(seed);
	dir_init();
	run("cd %s/src && qemu-img create -q -f qcow2 root.qcow2 24M && qemu-io -c 'write -P 17 0 20M' root.qcow2 >/dev/null && "
	    "qemu-img create -q -f qcow2 -b root.qcow2 -F qcow2 base.qcow2 && "
	    "qemu-io -c 'write -P 34 4M 8M' -c 'write -z 9M 1M' -c 'write -P 35 23M 64k' base.qcow2 >/dev/null && "
	    "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 web.qcow2 && qemu-io -c 'write -P 51 1M 2M' web.qcow2 >/dev/null && "
	    "qemu-img snapshot -c inner web.qcow2 && qemu-io -c 'write -P 52 1M 2M' web.qcow2 >/dev/null && "
	    "qemu-img convert -O raw base.qcow2 ../base.raw && qemu-img convert -l snapshot.name=inner -O raw web.qcow2 ../inner.raw", dir);
	store = store_at("src", true);
	check_ordinary();
	check_restart();
	check_snapshot_meanwhile();
	check_cancel();
	check_source_gone();
	check_flatten();
	check_as_mounted();
	check_raw();
	check_raw_meanwhile();
	check_raw_seen_late();
	reopen(true);
	check_killed(false);
	check_killed(true);
	store_close(store);
	run("[ -z \"$(ls %s/src/.vmsnapfs/layers)\" ]", dir);
	dir_done();
	return 0;
}
