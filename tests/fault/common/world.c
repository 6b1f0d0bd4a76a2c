#include "world.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "meta/xml.h"
#include "store/layers.h"
#include "store/store_internal.h"

#define STORE	  "%s/src/.vmsnapfs"
#define SECTOR	  512u
#define FILES_MAX 8
#define NO_SIZE	  (1u << 30)
#define WEB_BASE  1u /* what the blocks of "base" and "inner" hold */
#define WEB_INNER 2u

struct told {
	size_t nr;
	struct world worlds[WORLDS_MAX];
};

struct open_file {
	char vm[24], file[24];
	struct disk_file *disk; /* NULL: none */
	bool failed; /* a write or a flush did: until a flush succeeds nobody knows what is stable */
};

static char top[400];
static struct promise *promise; /* of the run; in prepare() our own */
static struct told *told;
static struct store *store;
static struct open_file files[FILES_MAX];
static struct reason why;
static unsigned char image[DISK_SIZE];
static bool no_space; /* all that failed said that there is no space */
static bool any_failed;
static bool is_lifted; /* nothing fails any more */
static bool is_halted; /* no jobs */

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *fmt, ...);

/* --- time: what is tried again in half a minute is tried at once ----------------------------------------------------------------- */

static atomic_llong ahead; /* seconds */
static atomic_bool hurrying;

int clock_gettime(clockid_t id, struct timespec *ret)
{
	static int (*real)(clockid_t, struct timespec *);
	if (!real)
		real = (int (*)(clockid_t, struct timespec *))(uintptr_t)dlsym(RTLD_NEXT, "clock_gettime");
	int err = real(id, ret);
	if (id == CLOCK_MONOTONIC)
		ret->tv_sec += atomic_fetch_add(&ahead, atomic_load(&hurrying) ? 5 : 0);
	return err;
}

void world_hurry(void)
{
	atomic_store(&hurrying, true);
}

/* It may always end early. */
int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until)
{
	(void)until;
	(void)cond;
	pthread_mutex_unlock(mutex);
	usleep(1000);
	pthread_mutex_lock(mutex);
	return ETIMEDOUT;
}

/* --- files' numbers: after a power cut a file is the one that it was --------------------------------------------------------------- */

#define NUMBERS_MAX 1000
#define OTHER	    (1ull << 40) /* one that wasn't there before may have any number */

static struct {
	uint64_t is, was;
} numbers[NUMBERS_MAX];
static size_t nr_numbers;
static bool renumbering;

static uint64_t number_of(uint64_t ino)
{
	for (size_t i = 0; renumbering && i < nr_numbers; i++)
		if (numbers[i].is == ino)
			return numbers[i].was;
	return renumbering ? ino + OTHER : ino;
}

static void *next_function(const char *name)
{
	void *function = dlsym(RTLD_NEXT, name);
	if (!function)
		abort();
	return function;
}

/* When a file was born isn't kept. */
int statx(int dirfd, const char *restrict path, int flags, unsigned mask, struct statx *restrict ret)
{
	static int (*real)(int, const char *, int, unsigned, struct statx *);
	if (!real)
		real = (int (*)(int, const char *, int, unsigned, struct statx *))(uintptr_t)next_function("statx");
	int err = real(dirfd, path, flags, mask, ret);
	ret->stx_mask &= ~STATX_BTIME;
	ret->stx_ino = number_of(ret->stx_ino);
	return err;
}

int fstat(int fd, struct stat *ret)
{
	static int (*real)(int, struct stat *);
	if (!real)
		real = (int (*)(int, struct stat *))(uintptr_t)next_function("fstat64");
	int err = real(fd, ret);
	ret->st_ino = number_of(ret->st_ino);
	return err;
}

int fstatat(int dirfd, const char *restrict path, struct stat *restrict ret, int flags)
{
	static int (*real)(int, const char *, struct stat *, int);
	if (!real)
		real = (int (*)(int, const char *, struct stat *, int))(uintptr_t)next_function("fstatat64");
	int err = real(dirfd, path, ret, flags);
	ret->st_ino = number_of(ret->st_ino);
	return err;
}

int stat(const char *restrict path, struct stat *restrict ret)
{
	return fstatat(AT_FDCWD, path, ret, 0);
}

int lstat(const char *restrict path, struct stat *restrict ret)
{
	return fstatat(AT_FDCWD, path, ret, AT_SYMLINK_NOFOLLOW);
}

static void learn_numbers(const char *dir)
{
	char path[500];
	unsigned long long is, was;
	snprintf(path, sizeof path, "%s.cut.numbers", dir);
	FILE *f = fopen(path, "r");
	while (f && nr_numbers < NUMBERS_MAX && fscanf(f, "%llu %llu", &is, &was) == 2) {
		numbers[nr_numbers].is = is;
		numbers[nr_numbers++].was = was;
	}
	if (!f || fclose(f) != 0)
		abort();
	renumbering = true;
}

/* --- events ---------------------------------------------------------------------------------------------------------------------- */

static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER;
static char events[65536];

static void keep_event(void *ctx, const char *vm, const char *text)
{
	(void)ctx;
	pthread_mutex_lock(&events_lock);
	size_t used = strlen(events);
	snprintf(events + used, sizeof events - used, "  %s: %s\n", vm ? vm : "-", text);
	pthread_mutex_unlock(&events_lock);
}

static void fail(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n%s", events);
	fflush(stdout);
	_exit(1);
}

#define CHECK(what)                                                                                                    \
	do {                                                                                                           \
		if (!(what))                                                                                           \
			fail("%s:%d: not so: %s: %s", __FILE__, __LINE__, #what, why.text);                            \
	} while (0)

__attribute__((format(printf, 1, 2))) static void shell(const char *fmt, ...)
{
	char cmd[3000];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(cmd, sizeof cmd, fmt, ap);
	va_end(ap);
	if (system(cmd) != 0)
		fail("failed: %s", cmd);
}

/* --- what a disk holds -------------------------------------------------------------------------------------------------------------- */

static uint64_t stamp(unsigned value, uint64_t sector)
{
	return value ? (uint64_t)value << 56 | 0x00beef0000000000u | sector : 0;
}

static void fill_blocks(unsigned char *buf, unsigned block, unsigned nr_blocks, unsigned value)
{
	for (uint64_t at = 0; at < (uint64_t)nr_blocks * BLOCK; at += 8) {
		uint64_t word = stamp(value, ((uint64_t)block * BLOCK + at) / SECTOR);
		memcpy(buf + at, &word, 8);
	}
}

/* The values of BYTES, a whole disk, by block; 1u << 31 stands for what was never written. */
static void look(const unsigned char *bytes, uint32_t ret[NR_BLOCKS])
{
	memset(ret, 0, NR_BLOCKS * sizeof *ret);
	for (uint64_t sector = 0; sector < DISK_SIZE / SECTOR; sector++) {
		const unsigned char *at = bytes + sector * SECTOR;
		uint64_t word;
		memcpy(&word, at, 8);
		unsigned value = word >> 56;
		bool whole = value < 31 && word == stamp(value, sector) && memcmp(at, at + 8, SECTOR - 8) == 0;
		ret[sector * SECTOR / BLOCK] |= 1u << (whole ? value : 31);
	}
}

static bool within(const uint32_t seen[NR_BLOCKS], const uint32_t may[NR_BLOCKS])
{
	for (unsigned i = 0; i < NR_BLOCKS; i++)
		if (seen[i] & ~may[i])
			return false;
	return true;
}

static void describe(const uint32_t values[NR_BLOCKS], char text[NR_BLOCKS * 9 + 1])
{
	char *at = text;
	for (unsigned i = 0; i < NR_BLOCKS; i++)
		at += sprintf(at, "%x ", values[i]);
}

/* --- the model ----------------------------------------------------------------------------------------------------------------------- */

static struct vm_model *vm_in(struct world *w, const char *name)
{
	for (struct vm_model *vm = w->vms; vm < w->vms + VMS_MAX; vm++)
		if (strcmp(vm->name, name) == 0)
			return vm;
	return NULL;
}

static struct state_model *snapshot_in(struct vm_model *vm, const char *name)
{
	for (struct state_model *s = vm->snaps; s < vm->snaps + SNAPS_MAX; s++)
		if (strcmp(s->name, name) == 0)
			return s;
	return NULL;
}

static struct disk_model *disk_in(struct state_model *state, const char *file)
{
	for (struct disk_model *d = state->disks; d < state->disks + DISKS_MAX; d++)
		if (strcmp(d->file, file) == 0)
			return d;
	return NULL;
}

/* All of it: worlds are compared byte by byte. */
static void set_name(char to[24], const char *name)
{
	char whole[24] = "";
	snprintf(whole, sizeof whole, "%s", name);
	memcpy(to, whole, sizeof whole);
}

static void set_zero(struct disk_model *disk)
{
	for (unsigned i = 0; i < NR_BLOCKS; i++)
		disk->now[i] = disk->stable[i] = 1;
}

static void settle_disks(struct state_model *state)
{
	for (struct disk_model *d = state->disks; d < state->disks + DISKS_MAX; d++)
		memcpy(d->stable, d->now, sizeof d->stable);
}

static void set_web(struct state_model *state, bool inner)
{
	struct disk_model *disk = &state->disks[0];
	set_name(disk->file, "vda.img");
	set_zero(disk);
	for (unsigned i = 0; i < 8; i++)
		disk->now[i] = disk->stable[i] = 1u << (inner || i < 4 ? WEB_INNER : WEB_BASE);
	for (unsigned i = 8; i < 12 && !inner; i++)
		disk->now[i] = disk->stable[i] = 1u << WEB_BASE;
}

struct change {
	const char *vm, *snapshot, *other, *file;
	enum vm_place place;
	enum snapshot_delete how;
	bool flag;
};
/* What an operation does to W; false: nothing, it would fail there. */
typedef bool (*change_fn)(struct world *w, const struct change *c);

static void tell(void)
{
	if (promise)
		matrix_promised(promise);
}

/* Before the call both may be; after it one of them, unless it failed. False: so much has failed that nobody would go on. */
static bool begin(change_fn fn, const struct change *c)
{
	size_t nr = told->nr;
	if (nr * 2 > WORLDS_MAX)
		return false;
	for (size_t i = 0; i < nr; i++) {
		told->worlds[nr + i] = told->worlds[i];
		if (!fn(&told->worlds[nr + i], c))
			told->worlds[nr + i] = told->worlds[i];
	}
	told->nr = nr * 2;
	tell();
	return true;
}

static void drop_equal(void)
{
	size_t nr = 0;
	for (size_t i = 0; i < told->nr; i++) {
		bool known = false;
		for (size_t k = 0; k < nr && !known; k++)
			known = memcmp(&told->worlds[i], &told->worlds[k], sizeof *told->worlds) == 0;
		if (!known)
			told->worlds[nr++] = told->worlds[i];
	}
	told->nr = nr;
}

static void note(int err)
{
	if (!err)
		return;
	const char *name = NULL;
	bool sync = disk_struck(&name) && strstr(name, ": sync"); /* what has failed for good, whatever it says */
	no_space = (no_space || !any_failed) && err == -ENOSPC && !sync;
	any_failed = true;
}

static int end(int err)
{
	size_t nr = told->nr / 2;
	if (!err)
		memmove(told->worlds, told->worlds + nr, nr * sizeof *told->worlds);
	told->nr = err ? nr * 2 : nr;
	drop_equal();
	tell();
	note(err);
	if (err && !disk_struck(NULL))
		fail("an operation failed though nothing else did: %s (%s)", why.text, strerror(-err));
	return err;
}

/* --- opening -------------------------------------------------------------------------------------------------------------------------- */

static int open_store(const char *dir)
{
	char source[500], pool[500];
	if (dir != top)
		snprintf(top, sizeof top, "%s", dir);
	snprintf(source, sizeof source, "%s/src", dir);
	snprintf(pool, sizeof pool, "%s/pool", dir);
	const struct pool_config pools[] = {{"fast", pool}};
	struct store_config config = {
		.source_dir = source, .pools = pools, .nr_pools = access(pool, F_OK) == 0, .log = {keep_event, NULL}};
	memset(&why, 0, sizeof why);
	int err = store_open(&config, &store, &why);
	if (!err && !is_halted && (err = store_start(store)))
		store_close(take_ptr(store));
	return err;
}

static void load_told(const char *dir, struct told *ret)
{
	char path[500];
	snprintf(path, sizeof path, "%s/world", dir);
	FILE *f = fopen(path, "r");
	if (!f || fread(ret, sizeof *ret, 1, f) != 1)
		fail("%s can't be read", path);
	fclose(f);
}

static struct vm *vm_of(const char *name)
{
	struct vm *vm = NULL;
	if (strcmp(name, "fast") == 0)
		return store_find(store, PLACE_POOLS, name);
	for (int place = 0; !vm && place < PLACE_POOLS; place++)
		vm = store_find(store, (enum vm_place)place, name);
	return vm;
}

static const struct vm_disk *disk_of(const struct vm *vm, const struct vm_snapshot *snapshot, const char *file)
{
	return snapshot ? vm_find_disk(snapshot->disks, snapshot->nr_disks, file) : vm_find_disk(vm->disks, vm->nr_disks, file);
}

/* --- what is there ------------------------------------------------------------------------------------------------------------------- */

static bool is_called(const char *name, const char *wanted)
{
	size_t len = strlen(wanted);
	return len && wanted[len - 1] == '*' ? strncmp(name, wanted, len - 1) == 0 : strcmp(name, wanted) == 0;
}

/* A disk as it was seen. */
struct seen {
	char vm[24], snapshot[40], file[24];
	uint32_t values[NR_BLOCKS];
};
static struct seen seen[VMS_MAX * DISKS_MAX * (SNAPS_MAX + 2)];
static size_t nr_seen;
static char differs[1000];

static int read_disk(const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk, uint32_t ret[NR_BLOCKS])
{
	struct disk_file *file = NULL;
	int err = disk_open(store, vm, snapshot, disk, false, &file, &why);
	if (err)
		return err;
	uint64_t size = disk_virtual_size(file);
	if (size != DISK_SIZE && size)
		fail("%s %s %s has %llu bytes", vm->name, snapshot ? snapshot->name : "", disk->file_name, (unsigned long long)size);
	memset(image, 0, sizeof image);
	err = disk_read(file, image, size, 0);
	if (!err)
		look(image, ret);
	if (!size) /* one that has just been made: see do_disk() */
		for (unsigned i = 0; i < NR_BLOCKS; i++)
			ret[i] = NO_SIZE;
	int close_err = disk_close(file, &why);
	return err ? err : close_err;
}

/* Of a VM that may be looked at; all its disks are read. */
static void see(const struct vm *vm, const struct vm_snapshot *snapshot)
{
	size_t nr = snapshot ? snapshot->nr_disks : vm->nr_disks, len = 0;
	const struct vm_disk *disks = snapshot ? snapshot->disks : vm->disks;
	char *text = NULL;
	if (snapshot && access(snapshot->metadata_path, R_OK) < 0)
		fail("%s: the description of %s isn't there", vm->name, snapshot->name);
	if (store_domain_xml(store, vm, snapshot, NULL, &text, &len, NULL, &why))
		fail("%s %s has no configuration: %s", vm->name, snapshot ? snapshot->name : "", why.text);
	free(text);
	for (size_t i = 0; i < nr; i++) {
		struct seen *s = &seen[nr_seen];
		if (disks[i].found)
			continue;
		nr_seen++;
		CHECK(nr_seen <= sizeof seen / sizeof *seen);
		snprintf(s->vm, sizeof s->vm, "%s", vm->name);
		snprintf(s->snapshot, sizeof s->snapshot, "%s", snapshot ? snapshot->name : "");
		snprintf(s->file, sizeof s->file, "%s", disks[i].file_name);
		int err = read_disk(vm, snapshot, &disks[i], s->values);
		if (err)
			fail("%s %s %s can't be read: %s", vm->name, s->snapshot, s->file, why.text);
	}
}

static size_t list_managed(struct vm *ret[VMS_MAX + 1])
{
	size_t nr = 0;
	for (int place = 0; place < NR_PLACES; place++) {
		struct vm **vms = NULL;
		size_t nr_vms = 0;
		CHECK(store_list(store, (enum vm_place)place, &vms, &nr_vms) == 0);
		for (size_t i = 0; i < nr_vms; i++) {
			if (vms[i]->kind == VM_MANAGED && nr < VMS_MAX + 1)
				ret[nr++] = store_whole(store, vms[i]);
			else
				vm_put(vms[i]);
		}
		free(vms);
	}
	return nr;
}

static void see_all(void)
{
	struct vm *vms[VMS_MAX + 1];
	size_t nr = list_managed(vms);
	nr_seen = 0;
	for (size_t i = 0; i < nr; i++) {
		see(vms[i], NULL);
		for (size_t s = 0; s < vms[i]->nr_snapshots; s++)
			see(vms[i], vms[i]->snapshots[s]);
		vm_put(vms[i]);
	}
}

__attribute__((format(printf, 1, 2))) static bool differ(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(differs, sizeof differs, fmt, ap);
	va_end(ap);
	return false;
}

static bool disks_match(const struct vm *vm, const struct vm_snapshot *snapshot, const struct state_model *state, bool live)
{
	size_t nr = 0, nr_there = 0;
	const struct vm_disk *disks = snapshot ? snapshot->disks : vm->disks;
	const char *name = snapshot ? snapshot->name : "";
	for (size_t i = 0; i < (snapshot ? snapshot->nr_disks : vm->nr_disks); i++)
		nr_there += !disks[i].found;
	for (const struct disk_model *d = state->disks; d < state->disks + DISKS_MAX; d++) {
		const struct seen *s = seen;
		if (!*d->file)
			continue;
		nr++;
		while (s < seen + nr_seen && (strcmp(s->vm, vm->name) != 0 || strcmp(s->snapshot, name) != 0 || strcmp(s->file, d->file) != 0))
			s++;
		if (s == seen + nr_seen)
			return differ("%s %s has no disk %s", vm->name, name, d->file);
		if (!within(s->values, live ? d->now : d->stable)) {
			char is[NR_BLOCKS * 9 + 1], may[NR_BLOCKS * 9 + 1];
			describe(s->values, is);
			describe(live ? d->now : d->stable, may);
			return differ("%s %s %s holds\n  %s, not\n  %s", vm->name, name, d->file, is, may);
		}
	}
	return nr == nr_there || differ("%s %s has %zu disks, not %zu", vm->name, name, nr_there, nr);
}

static const struct vm_snapshot *find_snapshot(const struct vm *vm, const char *wanted)
{
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		if (is_called(vm->snapshots[i]->name, wanted))
			return vm->snapshots[i];
	return NULL;
}

static bool vm_matches(const struct vm *vm, const struct vm_model *model, bool live)
{
	size_t nr = 0;
	if ((int)vm->place != model->place)
		return differ("%s is in place %d", vm->name, vm->place);
	if (!vm->saved != !*model->saved.name)
		return differ("%s: the preview is %s", vm->name, vm->saved ? "open" : "not open");
	if (!disks_match(vm, NULL, &model->now, live))
		return false;
	if (!is_called(vm->current >= 0 ? vm->snapshots[vm->current]->name : "", model->current))
		return differ("%s: the current snapshot isn't %s", vm->name, model->current);
	for (const struct state_model *s = model->snaps; s < model->snaps + SNAPS_MAX; s++) {
		if (!*s->name)
			continue;
		const struct vm_snapshot *snapshot = find_snapshot(vm, s->name);
		nr++;
		if (!snapshot)
			return differ("%s has no snapshot %s", vm->name, s->name);
		if (!is_called(snapshot->parent ? snapshot->parent : "", s->parent))
			return differ("%s: %s comes after %s, not %s", vm->name, s->name, snapshot->parent, s->parent);
		if (!disks_match(vm, snapshot, s, live))
			return false;
	}
	return nr == vm->nr_snapshots || differ("%s has %zu snapshots, not %zu", vm->name, vm->nr_snapshots, nr);
}

static bool world_matches(struct vm *vms[], size_t nr, const struct world *w, bool live)
{
	size_t nr_wanted = 0;
	bool match = true;
	for (const struct vm_model *model = w->vms; match && model < w->vms + VMS_MAX; model++) {
		const struct vm *vm = NULL;
		if (!*model->name)
			continue;
		nr_wanted++;
		for (size_t i = 0; i < nr; i++)
			if (strcmp(vms[i]->name, model->name) == 0)
				vm = vms[i];
		match = vm ? vm_matches(vm, model, live) : differ("there is no %s", model->name);
	}
	return match && (nr == nr_wanted || differ("there are %zu VMs, not %zu", nr, nr_wanted));
}

/* The worlds that what was seen isn't go from T. */
static void match(const char *when, struct told *t, bool live)
{
	struct vm *vms[VMS_MAX + 1];
	char reasons[WORLDS_MAX * 1000] = "";
	size_t nr = list_managed(vms), nr_left = 0;
	for (size_t i = 0; i < t->nr; i++) {
		if (world_matches(vms, nr, &t->worlds[i], live))
			t->worlds[nr_left++] = t->worlds[i];
		else
			sprintf(reasons + strlen(reasons), "%s\n", differs);
	}
	for (size_t i = 0; i < nr; i++)
		vm_put(vms[i]);
	if (!nr_left)
		fail("%s the store isn't what it should be, nor what it was: %s", when, reasons);
	t->nr = nr_left;
}

/* --- prepare ------------------------------------------------------------------------------------------------------------------------- */

static void put_raw(const char *name, unsigned block, unsigned nr_blocks, unsigned value, unsigned size_blocks)
{
	char path[500];
	unsigned char *bytes = calloc(size_blocks, BLOCK);
	CHECK(bytes);
	fill_blocks(bytes + (size_blocks == NR_BLOCKS ? (size_t)block * BLOCK : 0), block, nr_blocks, value);
	snprintf(path, sizeof path, "%s/%s", top, name);
	FILE *f = fopen(path, "w");
	CHECK(f && fwrite(bytes, BLOCK, size_blocks, f) == size_blocks && fclose(f) == 0);
	free(bytes);
}

void world_prepare(const char *dir)
{
	static struct told own;
	snprintf(top, sizeof top, "%s", dir);
	told = &own;
	promise = NULL;
	*told = (struct told){.nr = 1};
	xml_init();
	shell("mkdir -p %s/src", dir);
	put_raw("a.raw", 0, 8, WEB_INNER, NR_BLOCKS);
	put_raw("b.raw", 4, 8, WEB_BASE, 8);
	shell("cd %s/src && qemu-img convert -f raw -O qcow2 ../a.raw base.qcow2 && qemu-img snapshot -c inner base.qcow2 && "
	      "qemu-io -f qcow2 -c 'write -s ../b.raw %u %u' base.qcow2 >/dev/null && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 web.qcow2 && "
	      "rm ../a.raw ../b.raw", dir, 4 * BLOCK, 8 * BLOCK);
	int err = open_store(dir);
	if (err)
		fail("prepare: %s", why.text);
	if (store_nr_pools(store)) {
		set_name(told->worlds[0].vms[0].name, "fast");
		told->worlds[0].vms[0].place = PLACE_POOLS;
	}
}

static void save_text(const char *name, const void *data, size_t len)
{
	char path[500];
	snprintf(path, sizeof path, "%s/%s", top, name);
	FILE *f = fopen(path, "w");
	CHECK(f && fwrite(data, 1, len, f) == len && fclose(f) == 0);
}

static uint64_t sum_of_source(void)
{
	static unsigned char buf[1 << 16];
	const char *const names[] = {"base.qcow2", "web.qcow2"};
	uint64_t sum = 14695981039346656037u;
	for (int i = 0; i < 2; i++) {
		char path[500];
		snprintf(path, sizeof path, "%s/src/%s", top, names[i]);
		FILE *f = fopen(path, "r");
		CHECK(f);
		for (size_t n; (n = fread(buf, 1, sizeof buf, f)) > 0;)
			for (size_t b = 0; b + 8 <= n; b += 8) {
				uint64_t word;
				memcpy(&word, buf + b, 8);
				sum = (sum ^ word) * 1099511628211u;
			}
		fclose(f);
	}
	return sum;
}

void world_halt(const char *dir)
{
	for (struct open_file *f = files; f < files + FILES_MAX; f++)
		if (f->disk)
			CHECK(disk_close(take_ptr(f->disk), &why) == 0);
	store_close(take_ptr(store));
	is_halted = true;
	CHECK(open_store(dir) == 0);
}

void world_prepared(bool killed)
{
	uint64_t sum = sum_of_source();
	/* Who looks next sees what was stable, or more. */
	for (struct vm_model *vm = told->worlds[0].vms; killed && vm < told->worlds[0].vms + VMS_MAX; vm++)
		for (struct disk_model *d = vm->now.disks; d < vm->now.disks + DISKS_MAX; d++)
			memcpy(d->now, d->stable, sizeof d->now);
	save_text("world", told, sizeof *told);
	save_text("source", &sum, sizeof sum);
	if (killed) {
		store = NULL; /* its threads go with the process */
		return;
	}
	for (struct open_file *f = files; f < files + FILES_MAX; f++)
		if (f->disk)
			CHECK(disk_close(take_ptr(f->disk), &why) == 0);
	store_close(take_ptr(store));
}

/* --- run ------------------------------------------------------------------------------------------------------------------------------ */

bool world_begin(const char *dir, struct promise *p)
{
	promise = p;
	told = (struct told *)(void *)p->told;
	_Static_assert(sizeof *told <= sizeof p->told, "the model must fit");
	xml_init();
	load_told(dir, told);
	tell();
	int err = open_store(dir);
	if (err && !disk_struck(NULL))
		fail("the store can't be opened: %s", why.text);
	return !err;
}

/* Whoever has a disk open can go on with it: at once after want of space, else he may have to close it first. */
static void go_on_writing(void)
{
	for (struct open_file *f = files; f < files + FILES_MAX; f++) {
		if (!f->disk)
			continue;
		int err = disk_flush(f->disk); /* may tell of a failure before; once */
		if (err && no_space && (err = disk_flush(f->disk)))
			fail("%s %s can't be flushed though there is space again: %s", f->vm, f->file, strerror(-err));
		do_close(f->vm, f->file);
	}
}

static void use_anew(void);

static bool is_web_shown(void)
{
	struct vm *web = vm_of("web");
	bool shown = web && vm_find_snapshot(web, "base");
	vm_put(web);
	return shown;
}

/* What couldn't be read at the start isn't shown until the next one. */
static void look_in_process(void)
{
	static struct told t;
	if (store->layers.unknown || !is_web_shown()) {
		store_close(take_ptr(store));
		CHECK(open_store(top) == 0);
	}
	t = *told; /* the next start may find another one of these, if the fault was the disk's for good */
	see_all();
	match("in the same process", &t, true);
	use_anew();
}

void world_end(void)
{
	if (disk_struck(NULL)) {
		disk_disarm();
		is_lifted = true;
		go_on_writing();
		int err = do_jobs();
		if (err)
			fail("the jobs don't end though nothing fails any more: %s", strerror(-err));
		look_in_process();
	}
	for (struct open_file *f = files; f < files + FILES_MAX; f++)
		if (f->disk)
			do_close(f->vm, f->file);
	store_close(take_ptr(store));
}

/* --- jobs ----------------------------------------------------------------------------------------------------------------------------- */

static bool has_failed(const char *names)
{
	char id[300];
	char *text = NULL;
	size_t len = 0;
	snprintf(id, sizeof id, "%.*s", (int)strcspn(names, "\n"), names);
	bool failed = store_job_text(store, id, &text, &len) == 0 && strstr(text, "state: failed");
	free(text);
	return failed;
}

int do_jobs(void)
{
	unsigned nr_failed = 0, patience = is_lifted ? 100 : 3;
	for (int i = 0; i < 20000; i++) {
		char *names = NULL;
		CHECK(store_jobs(store, &names) == 0);
		bool none = !*names, failed = !none && has_failed(names);
		free(names);
		if (none)
			return 0;
		if (failed && ++nr_failed > patience) {
			note(-EIO);
			return -EIO;
		}
		if (failed || i % 50 == 49)
			atomic_fetch_add(&ahead, failed ? 40 : 2);
		usleep(failed ? 3000 : 300);
	}
	fail("the jobs don't end");
}

/* --- VMs ------------------------------------------------------------------------------------------------------------------------------- */

static bool change_clone(struct world *w, const struct change *c)
{
	struct vm_model *from = vm_in(w, c->vm), *to = vm_in(w, "");
	struct state_model *state = from && c->snapshot ? snapshot_in(from, c->snapshot) : from ? &from->now : NULL;
	if (!to || (!state && strcmp(c->vm, "web") != 0))
		return false;
	*to = (struct vm_model){.place = PLACE_CLONES};
	set_name(to->name, c->other);
	if (!from) {
		set_web(&to->now, strcmp(c->snapshot, "inner") == 0);
		return true;
	}
	if (!c->snapshot)
		settle_disks(state);
	memcpy(to->now.disks, state->disks, sizeof to->now.disks);
	return true;
}

int do_clone_with(const char *from, const char *snapshot, const char *name, const struct disk_spec *all)
{
	const struct clone_spec spec = {.name = name, .uid = getuid(), .gid = getgid(), .all = *all};
	struct vm *vm = vm_of(from), *made = NULL;
	if (!vm)
		return -ENOENT;
	const struct vm_snapshot *s = snapshot ? vm_find_snapshot(vm, snapshot) : NULL;
	if (snapshot && !s) {
		vm_put(vm);
		return -ENOENT;
	}
	if (!begin(change_clone, &(struct change){.vm = from, .snapshot = snapshot, .other = name})) {
		vm_put(vm);
		return -EIO;
	}
	int err = store_clone_with(store, vm, s, &spec, &made, &why);
	/* What can't be read of the source isn't cloned: an error of its disk isn't that. */
	if (!err && made->nr_disks == 0)
		fail("%s was cloned without its disk", from);
	vm_put(made);
	vm_put(vm);
	return end(err);
}

int do_clone(const char *from, const char *snapshot, const char *name)
{
	return do_clone_with(from, snapshot, name, &(struct disk_spec){0});
}

static bool change_create(struct world *w, const struct change *c)
{
	struct vm_model *to = vm_in(w, "");
	*to = (struct vm_model){.place = PLACE_CLONES};
	set_name(to->name, c->vm);
	return true;
}

int do_create(const char *name)
{
	struct vm *vm = NULL;
	if (!begin(change_create, &(struct change){.vm = name}))
		return -EIO;
	int err = store_create(store, name, getuid(), getgid(), &vm, &why);
	if (!err)
		vm_put(vm);
	return end(err);
}

/* Calls that change one VM. */
typedef int (*vm_fn)(struct vm *vm, const struct change *c);

static int with_vm(change_fn change, vm_fn call, const struct change *c)
{
	struct vm *vm = vm_of(c->vm);
	if (!vm)
		return -ENOENT;
	int err = begin(change, c) ? end(call(vm, c)) : -EIO;
	vm_put(vm);
	return err;
}

static bool change_remove(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	if (vm)
		*vm = (struct vm_model){0};
	return vm;
}

static int call_remove(struct vm *vm, const struct change *c)
{
	(void)c;
	return store_remove(store, vm, &why);
}

int do_remove(const char *name)
{
	return with_vm(change_remove, call_remove, &(struct change){.vm = name});
}

static bool change_rename(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	if (!vm)
		return false;
	set_name(vm->name, c->other);
	vm->place = (int)c->place;
	return true;
}

static int call_rename(struct vm *vm, const struct change *c)
{
	return store_rename(store, vm, c->place, c->other, &why);
}

int do_rename(const char *name, enum vm_place place, const char *new_name)
{
	return with_vm(change_rename, call_rename, &(struct change){.vm = name, .place = place, .other = new_name});
}

static bool change_nothing(struct world *w, const struct change *c)
{
	(void)w;
	(void)c;
	return true;
}

static int call_flatten(struct vm *vm, const struct change *c)
{
	(void)c;
	return store_flatten(store, vm, NULL, 0, &why);
}

int do_flatten(const char *name)
{
	return with_vm(change_nothing, call_flatten, &(struct change){.vm = name});
}

static int call_domain(struct vm *vm, const struct change *c)
{
	char text[500];
	(void)c;
	snprintf(text, sizeof text, "<domain type='kvm'><name>%s</name><uuid>%s</uuid><memory>65536</memory><os><type>hvm</type></os></domain>", vm->name, vm->uuid);
	return store_set_domain(store, vm, text, strlen(text), &why);
}

int do_domain(const char *name)
{
	return with_vm(change_nothing, call_domain, &(struct change){.vm = name});
}

/* --- disks ------------------------------------------------------------------------------------------------------------------------------- */

static struct open_file *file_of(const char *vm, const char *file)
{
	for (struct open_file *f = files; f < files + FILES_MAX; f++)
		if (f->disk && strcmp(f->vm, vm) == 0 && strcmp(f->file, file) == 0)
			return f;
	return NULL;
}

static void add_file(const char *vm, const char *file, struct disk_file *disk)
{
	struct open_file *f = files;
	while (f->disk)
		f++;
	*f = (struct open_file){.disk = disk};
	set_name(f->vm, vm);
	set_name(f->file, file);
}

/* 0 with the open file. */
int do_open(const char *name, const char *file)
{
	if (file_of(name, file))
		return 0;
	struct vm *vm = vm_of(name);
	const struct vm_disk *disk = vm ? disk_of(vm, NULL, file) : NULL;
	struct disk_file *opened = NULL;
	int err = disk ? disk_open(store, vm, NULL, disk, true, &opened, &why) : -ENOENT;
	vm_put(vm);
	if (!err)
		add_file(name, file, opened);
	else if (!disk_struck(NULL))
		fail("%s %s can't be opened: %s", name, file, why.text);
	note(err);
	return err;
}

static bool change_disk(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	struct disk_model *disk = vm ? disk_in(&vm->now, "") : NULL;
	if (!disk)
		return false;
	*disk = (struct disk_model){0};
	set_name(disk->file, c->file);
	for (unsigned i = 0; i < NR_BLOCKS; i++)
		disk->now[i] = disk->stable[i] = NO_SIZE;
	return true;
}

/* In all worlds. */
static void each_disk(const char *name, const char *file, void (*fn)(struct disk_model *disk, unsigned block, uint32_t value), unsigned block,
		      unsigned nr_blocks, uint32_t value)
{
	for (size_t i = 0; i < told->nr; i++) {
		struct vm_model *vm = vm_in(&told->worlds[i], name);
		struct disk_model *disk = vm ? disk_in(&vm->now, file) : NULL;
		for (unsigned b = block; disk && b < block + nr_blocks; b++)
			fn(disk, b, value);
	}
	drop_equal();
	tell();
}

static void may_hold(struct disk_model *disk, unsigned block, uint32_t value)
{
	disk->stable[block] |= value;
}

static void may_show(struct disk_model *disk, unsigned block, uint32_t value)
{
	disk->now[block] |= value;
}

static void holds(struct disk_model *disk, unsigned block, uint32_t value)
{
	disk->now[block] = value;
}

static void is_stable(struct disk_model *disk, unsigned block, uint32_t value)
{
	(void)value;
	disk->stable[block] = disk->now[block];
}

static void is_unsure(struct disk_model *disk, unsigned block, uint32_t value)
{
	(void)value;
	disk->now[block] = disk->stable[block] |= disk->now[block];
}

static void grows(struct disk_model *disk, unsigned block, uint32_t value)
{
	disk->now[block] = value;
	disk->stable[block] |= value;
}

/* Until it has its size for good it may be found with none. */
int do_disk(const char *name, const char *file)
{
	struct vm *vm = vm_of(name);
	struct disk_file *made = NULL;
	if (!vm)
		return -ENOENT;
	if (!begin(change_disk, &(struct change){.vm = name, .file = file})) {
		vm_put(vm);
		return -EIO;
	}
	int err = disk_create(store, vm, file, 0600, getuid(), getgid(), &made, &why);
	vm_put(vm);
	if (!err)
		add_file(name, file, made);
	if (end(err))
		return err;
	each_disk(name, file, may_hold, 0, NR_BLOCKS, 1);
	err = disk_resize(made, DISK_SIZE);
	each_disk(name, file, err ? may_show : grows, 0, NR_BLOCKS, 1);
	note(err);
	if (err)
		file_of(name, file)->failed = true;
	return err ? err : do_flush(name, file);
}

static int change_blocks(const char *name, const char *file, unsigned block, unsigned nr_blocks, unsigned value, bool discard)
{
	static unsigned char buf[DISK_SIZE];
	int err = do_open(name, file);
	if (err)
		return err;
	struct open_file *f = file_of(name, file);
	each_disk(name, file, may_hold, block, nr_blocks, 1u << value);
	fill_blocks(buf, block, nr_blocks, value);
	err = discard ? disk_discard(f->disk, (uint64_t)block * BLOCK, (uint64_t)nr_blocks * BLOCK)
		      : disk_write(f->disk, buf, (size_t)nr_blocks * BLOCK, (uint64_t)block * BLOCK);
	each_disk(name, file, err ? may_show : holds, block, nr_blocks, 1u << value);
	if (err && !disk_struck(NULL))
		fail("%s %s: a write failed: %s", name, file, strerror(-err));
	note(err);
	f->failed |= err != 0;
	return err;
}

int do_write(const char *name, const char *file, unsigned block, unsigned nr_blocks, unsigned value)
{
	return change_blocks(name, file, block, nr_blocks, value, false);
}

int do_discard(const char *name, const char *file, unsigned block, unsigned nr_blocks)
{
	return change_blocks(name, file, block, nr_blocks, 0, true);
}

int do_flush(const char *name, const char *file)
{
	struct open_file *f = file_of(name, file);
	if (!f)
		return -EBADF;
	int err = disk_flush(f->disk);
	/* What failed once isn't promised by a later success: it may have been told of then. */
	if (!err && !f->failed)
		each_disk(name, file, is_stable, 0, NR_BLOCKS, 0);
	f->failed |= err != 0;
	if (err && !disk_struck(NULL))
		fail("%s %s: a flush failed: %s", name, file, strerror(-err));
	note(err);
	return err;
}

int do_close(const char *name, const char *file)
{
	struct open_file *f = file_of(name, file);
	if (!f)
		return -EBADF;
	int err = disk_close(take_ptr(f->disk), &why);
	if (err || f->failed)
		each_disk(name, file, is_unsure, 0, NR_BLOCKS, 0);
	if (err && !disk_struck(NULL))
		fail("%s %s: closing it failed: %s", name, file, why.text);
	note(err);
	return err;
}

static bool change_disk_remove(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	struct disk_model *disk = vm ? disk_in(&vm->now, c->file) : NULL;
	if (disk)
		*disk = (struct disk_model){0};
	return disk;
}

static int call_disk_remove(struct vm *vm, const struct change *c)
{
	return disk_remove(store, vm, c->file, &why);
}

int do_disk_remove(const char *name, const char *file)
{
	return with_vm(change_disk_remove, call_disk_remove, &(struct change){.vm = name, .file = file});
}

/* Over another one, too. */
static bool change_disk_rename(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	struct disk_model *disk = vm ? disk_in(&vm->now, c->file) : NULL, *over = vm ? disk_in(&vm->now, c->other) : NULL;
	if (!disk)
		return false;
	if (over)
		*over = (struct disk_model){0};
	set_name(disk->file, c->other);
	return true;
}

static int call_disk_rename(struct vm *vm, const struct change *c)
{
	return disk_rename(store, vm, c->file, c->other, &why);
}

int do_disk_rename(const char *name, const char *file, const char *new_file)
{
	int err = with_vm(change_disk_rename, call_disk_rename, &(struct change){.vm = name, .file = file, .other = new_file});
	struct open_file *f = err ? NULL : file_of(name, file);
	if (f)
		set_name(f->file, new_file);
	return err;
}

static bool change_copy(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm), *from = vm_in(w, c->other);
	struct disk_model *disk = vm ? disk_in(&vm->now, c->file) : NULL;
	static struct state_model web;
	if (!disk)
		return false;
	struct state_model *state = &web;
	if (from)
		state = c->snapshot ? snapshot_in(from, c->snapshot) : &from->now;
	else
		set_web(&web, strcmp(c->snapshot, "inner") == 0);
	struct disk_model *source = state ? &state->disks[0] : NULL;
	for (unsigned i = 0; source && i < NR_BLOCKS; i++) {
		disk->stable[i] |= disk->now[i] | source->now[i];
		disk->now[i] = source->now[i];
	}
	return source;
}

/* As cp does: the whole disk. */
int do_copy(const char *from, const char *snapshot, const char *from_file, const char *name, const char *file)
{
	struct vm *vm = vm_of(from);
	const struct vm_snapshot *s = vm && snapshot ? vm_find_snapshot(vm, snapshot) : NULL;
	const struct vm_disk *disk = vm ? disk_of(vm, s, from_file) : NULL;
	struct open_file *to = file_of(name, file);
	struct disk_file *source = NULL;
	int err = disk && to && (s || !snapshot) ? disk_open(store, vm, s, disk, false, &source, &why) : -ENOENT;
	if (err) {
		vm_put(vm);
		note(err);
		return err;
	}
	if (!begin(change_copy, &(struct change){.vm = name, .file = file, .other = from, .snapshot = snapshot})) {
		disk_close(source, NULL);
		vm_put(vm);
		return -EIO;
	}
	ssize_t n = disk_copy(source, 0, to->disk, 0, DISK_SIZE, &why);
	if (n < 0)
		to->failed = true;
	disk_close(source, NULL);
	vm_put(vm);
	return end(n < 0 ? (int)n : 0);
}

/* --- volumes ------------------------------------------------------------------------------------------------------------------------------ */

static bool change_volume(struct world *w, const struct change *c)
{
	struct vm_model *pool = vm_in(w, "fast"), *from = vm_in(w, c->vm);
	struct disk_model *disk = pool ? disk_in(&pool->now, "") : NULL;
	struct state_model web = {0}, *state = &web;
	if (!disk)
		return false;
	if (from)
		state = c->snapshot ? snapshot_in(from, c->snapshot) : &from->now;
	else
		set_web(&web, strcmp(c->snapshot, "inner") == 0);
	*disk = state->disks[0];
	set_name(disk->file, c->file);
	return true;
}

int do_volume(const char *from, const char *snapshot, const char *volume, struct disk_spec spec)
{
	struct vm *vm = vm_of(from);
	const struct vm_snapshot *s = vm && snapshot ? vm_find_snapshot(vm, snapshot) : NULL;
	if (!vm || (snapshot && !s)) {
		vm_put(vm);
		return -ENOENT;
	}
	spec.disk = "vda";
	spec.pool = "fast";
	spec.volume = volume;
	if (!begin(change_volume, &(struct change){.vm = from, .snapshot = snapshot, .file = volume})) {
		vm_put(vm);
		return -EIO;
	}
	int err = store_clone_volume(store, vm, s, &spec, getuid(), getgid(), &why);
	vm_put(vm);
	return end(err);
}

/* --- snapshots ----------------------------------------------------------------------------------------------------------------------------- */

/* C->file: the one disk. */
static bool change_snapshot(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	struct state_model *s = vm ? snapshot_in(vm, "") : NULL;
	if (!s)
		return false;
	memset(s, 0, sizeof *s);
	set_name(s->name, c->other);
	set_name(s->parent, vm->current);
	for (int d = 0; d < DISKS_MAX; d++) {
		struct disk_model *disk = &vm->now.disks[d];
		if (!*disk->file || (c->file && strcmp(disk->file, c->file) != 0))
			continue;
		memcpy(disk->stable, disk->now, sizeof disk->stable);
		s->disks[d] = *disk;
	}
	set_name(vm->current, c->other);
	return true;
}

static int call_snapshot(struct vm *vm, const struct change *c)
{
	const struct snapshot_spec spec = {.name = c->other, .subset = c->file, .disks = &c->file, .nr_disks = c->file ? 1 : 0};
	return store_snapshot_create(store, vm, &spec, &why);
}

int do_snapshot(const char *name, const char *snapshot)
{
	return with_vm(change_snapshot, call_snapshot, &(struct change){.vm = name, .other = snapshot});
}

int do_snapshot_of(const char *name, const char *snapshot, const char *file)
{
	return with_vm(change_snapshot, call_snapshot, &(struct change){.vm = name, .other = snapshot, .file = file});
}

static void reparent(struct vm_model *vm, const char *old, const char *parent)
{
	char name[24], next[24];
	set_name(name, old);
	set_name(next, parent);
	for (struct state_model *s = vm->snaps; s < vm->snaps + SNAPS_MAX; s++)
		if (*s->name && strcmp(s->parent, name) == 0)
			memcpy(s->parent, next, sizeof s->parent);
	if (strcmp(vm->current, name) == 0)
		memcpy(vm->current, next, sizeof vm->current);
	if (*vm->saved.name && strcmp(vm->saved.parent, name) == 0)
		memcpy(vm->saved.parent, next, sizeof next);
}

static bool change_snapshot_rename(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	struct state_model *s = vm ? snapshot_in(vm, c->snapshot) : NULL;
	if (!s)
		return false;
	reparent(vm, c->snapshot, c->other);
	set_name(s->name, c->other);
	return true;
}

static int call_snapshot_rename(struct vm *vm, const struct change *c)
{
	return store_snapshot_rename(store, vm, c->snapshot, c->other, &why);
}

int do_snapshot_rename(const char *name, const char *snapshot, const char *new_name)
{
	return with_vm(change_snapshot_rename, call_snapshot_rename, &(struct change){.vm = name, .snapshot = snapshot, .other = new_name});
}

/* A merge-force of one that nothing goes on from: it takes its parent's place. */
static bool change_delete(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	struct state_model *s = vm ? snapshot_in(vm, c->snapshot) : NULL;
	if (!s)
		return false;
	bool goes_on = strcmp(vm->current, s->name) == 0;
	for (struct state_model *o = vm->snaps; o < vm->snaps + SNAPS_MAX; o++)
		goes_on |= *o->name && strcmp(o->parent, s->name) == 0;
	if (c->how != SNAPSHOT_MERGE_FORCE || goes_on) {
		reparent(vm, s->name, s->parent);
		memset(s, 0, sizeof *s);
		return true;
	}
	struct state_model *parent = snapshot_in(vm, s->parent);
	if (!*s->parent || !parent)
		return false;
	memcpy(s->name, parent->name, sizeof s->name);
	memcpy(s->parent, parent->parent, sizeof s->parent);
	memset(parent, 0, sizeof *parent);
	return true;
}

static int call_delete(struct vm *vm, const struct change *c)
{
	return store_snapshot_delete(store, vm, c->snapshot, c->how, &why);
}

int do_delete(const char *name, const char *snapshot, enum snapshot_delete how)
{
	return with_vm(change_delete, call_delete, &(struct change){.vm = name, .snapshot = snapshot, .how = how});
}

/* --- going back ------------------------------------------------------------------------------------------------------------------------------ */

static void keep_before(struct vm_model *vm, const struct state_model *state)
{
	struct state_model *kept = snapshot_in(vm, "");
	if (!kept)
		fail("too many snapshots");
	*kept = *state;
	set_name(kept->name, "before-restore-*");
}

static bool change_preview(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	struct state_model *s = vm ? snapshot_in(vm, c->snapshot) : NULL;
	if (!s || *vm->saved.name)
		return false;
	settle_disks(&vm->now);
	vm->saved = vm->now;
	set_name(vm->saved.name, "saved");
	memcpy(vm->saved.parent, vm->current, sizeof vm->current);
	memcpy(vm->now.disks, s->disks, sizeof s->disks);
	memcpy(vm->current, s->name, sizeof s->name);
	return true;
}

static int call_preview(struct vm *vm, const struct change *c)
{
	return store_preview(store, vm, &(struct preview_spec){.snapshot = c->snapshot}, &why);
}

int do_preview(const char *name, const char *snapshot)
{
	return with_vm(change_preview, call_preview, &(struct change){.vm = name, .snapshot = snapshot});
}

/* The scenarios write something before, so that the state before equals no snapshot. */
static bool change_commit(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	if (!vm || !*vm->saved.name)
		return false;
	if (!c->flag)
		keep_before(vm, &vm->saved);
	memset(&vm->saved, 0, sizeof vm->saved);
	return true;
}

static int call_commit(struct vm *vm, const struct change *c)
{
	return store_preview_commit(store, vm, c->flag, &why);
}

int do_commit(const char *name, bool discard)
{
	return with_vm(change_commit, call_commit, &(struct change){.vm = name, .flag = discard});
}

static bool change_undo(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	if (!vm || !*vm->saved.name)
		return false;
	memcpy(vm->now.disks, vm->saved.disks, sizeof vm->saved.disks);
	memcpy(vm->current, vm->saved.parent, sizeof vm->current);
	memset(&vm->saved, 0, sizeof vm->saved);
	return true;
}

static int call_undo(struct vm *vm, const struct change *c)
{
	(void)c;
	return store_preview_undo(store, vm, &why);
}

int do_undo(const char *name)
{
	return with_vm(change_undo, call_undo, &(struct change){.vm = name});
}

static bool change_restore(struct world *w, const struct change *c)
{
	struct vm_model *vm = vm_in(w, c->vm);
	struct state_model *s = vm ? snapshot_in(vm, c->snapshot) : NULL;
	if (!s)
		return false;
	struct state_model before = vm->now;
	settle_disks(&before);
	memcpy(before.parent, vm->current, sizeof vm->current);
	memcpy(vm->now.disks, s->disks, sizeof s->disks);
	memcpy(vm->current, s->name, sizeof s->name);
	if (!c->flag)
		keep_before(vm, &before);
	return true;
}

static int call_restore(struct vm *vm, const struct change *c)
{
	return store_restore(store, vm, c->snapshot, c->flag, &why);
}

int do_restore(const char *name, const char *snapshot, bool discard)
{
	return with_vm(change_restore, call_restore, &(struct change){.vm = name, .snapshot = snapshot, .flag = discard});
}

/* --- check ----------------------------------------------------------------------------------------------------------------------------------- */

/* A store that accepts new work: a clone, made and removed. */
static void use_anew(void)
{
	struct vm *web = vm_of("web"), *vm = NULL;
	CHECK(web);
	CHECK(store_clone(store, web, vm_find_snapshot(web, "base"), "anew", getuid(), getgid(), &vm, &why) == 0);
	CHECK(store_remove(store, vm, &why) == 0);
	vm_put(vm);
	vm_put(web);
}

/* A power cut may have come in the middle of that. */
static void drop_anew(void)
{
	struct vm *vm = vm_of("anew");
	if (vm)
		CHECK(store_remove(store, vm, &why) == 0);
	vm_put(vm);
}

static bool is_saved_open(const struct told *t)
{
	bool any = false;
	for (const struct vm_model *vm = t->worlds[0].vms; vm < t->worlds[0].vms + VMS_MAX; vm++)
		any |= *vm->name && *vm->saved.name;
	return any;
}

/* The state before a preview can be seen only when that is undone. */
static void undo_all(struct told *t)
{
	while (is_saved_open(t)) {
		char name[24] = "";
		for (const struct vm_model *vm = t->worlds[0].vms; vm < t->worlds[0].vms + VMS_MAX; vm++)
			if (*vm->name && *vm->saved.name)
				memcpy(name, vm->name, sizeof name);
		for (size_t i = 0; i < t->nr; i++)
			change_undo(&t->worlds[i], &(struct change){.vm = name});
		struct vm *vm = vm_of(name);
		CHECK(vm && store_preview_undo(store, vm, &why) == 0);
		vm_put(vm);
	}
}

/* --- files --- */

struct names {
	size_t nr;
	char text[128][300];
};
static struct names reached;

static void reach(const char *path)
{
	for (size_t i = 0; i < reached.nr; i++)
		if (strcmp(reached.text[i], path) == 0)
			return;
	CHECK(reached.nr < 128 && strlen(path) < sizeof reached.text[0]);
	memcpy(reached.text[reached.nr++], path, strlen(path) + 1);
}

static bool is_reached(const char *path)
{
	for (size_t i = 0; i < reached.nr; i++)
		if (strcmp(reached.text[i], path) == 0)
			return true;
	return false;
}

static void reach_chain(const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk)
{
	char *chain = NULL;
	int err = disk_chain(store, vm, snapshot, disk, &chain, &why);
	if (err)
		fail("the chain of %s %s: %s", vm->name, disk->file_name, why.text);
	for (char *at = chain, *line; (line = strsep(&at, "\n"));) {
		char ledger[900];
		char *slash = strrchr(line, '/');
		if (!slash)
			continue;
		reach(line);
		snprintf(ledger, sizeof ledger, STORE "/pools/fast%s", top, slash);
		if (strncmp(line, top, strlen(top)) == 0 && strncmp(line + strlen(top), "/pool/", 6) == 0)
			reach(ledger);
	}
	free(chain);
}

static void reach_vm(const struct vm *vm)
{
	char path[600];
	snprintf(path, sizeof path, STORE "/vms/%s/vm.xml", top, vm->uuid);
	reach(path);
	for (size_t i = 0; i < vm->nr_disks; i++)
		reach_chain(vm, NULL, &vm->disks[i]);
	for (size_t s = 0; s < vm->nr_snapshots; s++) {
		reach(vm->snapshots[s]->metadata_path);
		for (size_t i = 0; i < vm->snapshots[s]->nr_disks; i++)
			reach_chain(vm, vm->snapshots[s], &vm->snapshots[s]->disks[i]);
	}
}

static void reach_all(void)
{
	struct vm *vms[VMS_MAX + 1];
	char path[500];
	size_t nr = list_managed(vms);
	reached.nr = 0;
	snprintf(path, sizeof path, STORE "/lock", top);
	reach(path);
	snprintf(path, sizeof path, STORE "/spare", top);
	reach(path);
	for (size_t i = 0; i < nr; i++) {
		reach_vm(vms[i]);
		vm_put(vms[i]);
	}
}

static void check_nobodys(const char *dir)
{
	DIR *d = opendir(dir);
	for (struct dirent *de; d && (de = readdir(d));) {
		char path[600];
		struct stat st;
		snprintf(path, sizeof path, "%.250s/%s", dir, de->d_name);
		if (strcmp(de->d_name, ".") == 0 || strcmp(de->d_name, "..") == 0 || lstat(path, &st) < 0)
			continue;
		if (S_ISDIR(st.st_mode))
			check_nobodys(path);
		else if (!is_reached(path) && strcmp(de->d_name, "theirs.raw") != 0)
			fail("after two starts %s is nobody's", path);
	}
	if (d)
		closedir(d);
}

static void check_runs(void)
{
	struct layer_run *runs = NULL;
	size_t nr = 0;
	CHECK(layers_find_runs(store, &runs, &nr) == 0);
	if (nr)
		fail("%s could be merged, and no job is about it", runs[0].names[0]);
	free(runs);
}

/* --- QEMU's opinion --- */

static bool is_night(void)
{
	const char *night = getenv("NIGHTLY");
	return night && *night;
}

const char *const *world_must(const char *const *must)
{
	return is_night() ? must : NULL;
}

static bool is_sampled(const struct promise *p, bool cut)
{
	return is_night() || (p->step * 2 + cut) % 5 == 0;
}

static void check_image(const char *path)
{
	char cmd[1000];
	snprintf(cmd, sizeof cmd, "qemu-img check -q '%s' >'%s/said' 2>&1", path, top);
	int status = system(cmd);
	int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
	if (code != 0 && code != 3) {
		shell("cat '%s/said'", top);
		fail("qemu-img check %s says %d", path, code);
	}
}

static void ask_qemu(void)
{
	struct vm *vms[VMS_MAX + 1];
	char layers[500];
	snprintf(layers, sizeof layers, "%s/", top);
	for (size_t i = 0; i < reached.nr; i++) {
		const char *path = reached.text[i];
		size_t len = strlen(path);
		if (len > 6 && strcmp(path + len - 6, ".qcow2") == 0 && strncmp(path, layers, strlen(layers)) == 0 && !strstr(path, "/.vmsnapfs/pools/") &&
		    (strstr(path, "/.vmsnapfs/") || strstr(path, "/pool/")))
			check_image(path);
	}
	size_t nr = list_managed(vms);
	for (size_t v = 0; v < nr; v++) {
		for (size_t i = 0; i < vms[v]->nr_disks; i++) {
			const struct vm_disk *disk = &vms[v]->disks[i];
			uint32_t ours[NR_BLOCKS], theirs[NR_BLOCKS];
			char path[500];
			if (disk->found)
				continue;
			CHECK(read_disk(vms[v], NULL, disk, ours) == 0);
			if (*ours == NO_SIZE)
				continue;
			snprintf(path, sizeof path, "%s/converted", top);
			shell("qemu-img convert -f %s -O raw '%s' '%s'", image_format_name(disk->format), disk->path, path);
			FILE *f = fopen(path, "r");
			CHECK(f && fread(image, 1, DISK_SIZE, f) == DISK_SIZE && fclose(f) == 0);
			look(image, theirs);
			if (memcmp(ours, theirs, sizeof ours) != 0)
				fail("QEMU reads %s otherwise than we do", disk->path);
		}
		vm_put(vms[v]);
	}
}

static void check_found(void)
{
	char path[500];
	uint64_t sum = 0;
	snprintf(path, sizeof path, "%s/source", top);
	FILE *f = fopen(path, "r");
	CHECK(f && fread(&sum, sizeof sum, 1, f) == 1 && fclose(f) == 0);
	if (sum != sum_of_source())
		fail("the source's files have changed");
}

static void reopen(void)
{
	if (store)
		store_close(take_ptr(store));
	int err = open_store(top);
	if (err)
		fail("the store doesn't open: %s", why.text);
	if (store->layers.unknown)
		fail("the store can't read itself");
}

void world_check(const char *dir, const struct promise *p, bool cut)
{
	static struct told t;
	snprintf(top, sizeof top, "%s", dir);
	xml_init();
	if (cut)
		learn_numbers(dir);
	is_lifted = true;
	memcpy(&t, p->told, sizeof t);
	if (!t.nr)
		load_told(dir, &t);
	reopen();
	drop_anew();
	see_all();
	match("before the jobs", &t, false);
	if (do_jobs())
		fail("a job fails though nothing else does");
	reopen();
	check_runs();
	undo_all(&t);
	if (do_jobs())
		fail("a job fails though nothing else does");
	see_all();
	match("after the jobs", &t, false);
	use_anew();
	if (do_jobs())
		fail("a job fails though nothing else does");
	reach_all();
	char path[500];
	snprintf(path, sizeof path, STORE, dir);
	check_nobodys(path);
	snprintf(path, sizeof path, "%s/pool", dir);
	check_nobodys(path);
	if (is_sampled(p, cut))
		ask_qemu();
	store_close(take_ptr(store));
	check_found();
}

/* --- the next start -------------------------------------------------------------------------------------------------------------------------- */

/* The killed one's memory stays as it is, for nobody: its threads may have been within anything. */
static void forget_all(void)
{
	store = NULL;
	promise = NULL;
	told = NULL;
	memset(files, 0, sizeof files);
	pthread_mutex_init(&events_lock, NULL);
	*events = '\0';
	is_lifted = true;
}

void world_restart(const char *dir, const struct promise *p)
{
	(void)p;
	forget_all();
	if (open_store(dir))
		fail("the next start: the store doesn't open: %s", why.text);
	if (store->layers.unknown)
		fail("the next start: the store can't read itself");
	if (do_jobs())
		fail("the next start: a job fails though nothing else does");
	see_all();
	store_close(take_ptr(store));
}
