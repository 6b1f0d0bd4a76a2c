/* Merging: trees of snapshots, deleted in any order under writers, each state against a plain array; jobs that are cancelled, and a daemon
 * that dies in the middle of them. At the end qemu-img says what the layers hold, and no layer is left that could be merged.
 * store_merge [SEED [STEPS]]
 * limit: 300 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "base/mem.h"
#include "store/layers.h"
#include "store/store_internal.h"
#include "store_test.h"

#define DISK_SIZE (6u << 20)
#define DISKS	  2
#define SNAPSHOTS_MAX 24
#define VMS_MAX	  3

struct state {
	char name[32]; /* "": none */
	bool learnt;
	unsigned char *bytes[DISKS];
};

struct vm_model {
	char name[32]; /* "": none */
	struct state now;
	struct state before; /* the preview; "": there is none */
	struct state snapshots[SNAPSHOTS_MAX];
	struct disk_file *files[DISKS]; /* open for writing, or NULL */
};

static struct store *store;
static struct vm_model vms[VMS_MAX];
static unsigned nr_made;
static bool writing; /* a thread of its own writes to the first VM's first disk, and alone knows what it holds */
static const char *const disk_names[DISKS] = {"vda.img", "vdb.img"};

static uint64_t pick(uint64_t below)
{
	return below ? (uint64_t)random() % below : 0;
}

static struct vm *vm_of(const struct vm_model *model)
{
	struct vm *vm = store_find(store, PLACE_CLONES, model->name);
	CHECK(vm);
	return vm;
}

/* --- states ----------------------------------------------------------------------------------------------------------- */

static void state_copy(struct state *to, const struct state *from, const char *name)
{
	snprintf(to->name, sizeof to->name, "%s", name);
	for (int d = 0; d < DISKS; d++) {
		to->bytes[d] = malloc(DISK_SIZE);
		if (!writing || d)
			memcpy(to->bytes[d], from->bytes[d], DISK_SIZE);
	}
}

static void state_drop(struct state *state)
{
	for (int d = 0; d < DISKS; d++)
		free(state->bytes[d]);
	*state = (struct state){0};
}

static void compare(const char *what, const char *disk, const unsigned char *seen, const unsigned char *wanted)
{
	for (uint64_t i = 0; i < DISK_SIZE; i++) {
		if (seen[i] != wanted[i]) {
			printf("%s/%s: byte %llu is %02x, not %02x\n%s", what, disk, (unsigned long long)i, seen[i], wanted[i], events);
			exit(1);
		}
	}
}

static void check_state(const struct vm *vm, const char *snapshot_name, const struct state *state)
{
	static unsigned char seen[DISK_SIZE];
	const struct vm_snapshot *snapshot = snapshot_name ? vm_find_snapshot(vm, snapshot_name) : NULL;
	CHECK(snapshot || !snapshot_name);
	for (int d = 0; d < DISKS; d++) {
		struct disk_file *file = NULL;
		const struct vm_disk *disk = disk_of(vm, snapshot, disk_names[d]);
		CHECK(disk);
		CHECK_ERR(disk_open(store, vm, snapshot, disk, false, &file, &why), 0);
		CHECK(disk_virtual_size(file) == DISK_SIZE);
		/* In pieces of any length. */
		for (uint64_t off = 0, n; off < DISK_SIZE; off += n) {
			n = 1 + pick(2u << 20);
			n = off + n > DISK_SIZE ? DISK_SIZE - off : n;
			CHECK_ERR(disk_read(file, seen + off, n, off), 0);
		}
		CHECK_ERR(disk_close(file, &why), 0);
		compare(snapshot_name ? snapshot_name : vm->name, disk_names[d], seen, state->bytes[d]);
	}
}

static void check_disk(const struct vm_model *m, struct state *s)
{
	struct vm *vm = vm_of(m);
	check_state(vm, s->name, s);
	vm_put(vm);
}

static void check_all(void)
{
	for (struct vm_model *m = vms; m < vms + VMS_MAX; m++) {
		if (!*m->name)
			continue;
		struct vm *vm = vm_of(m);
		check_state(vm, NULL, &m->now);
		for (int s = 0; s < SNAPSHOTS_MAX; s++)
			if (*m->snapshots[s].name)
				check_state(vm, m->snapshots[s].name, &m->snapshots[s]);
		vm_put(vm);
	}
}

/* --- what is done -------------------------------------------------------------------------------------------------------- */

static struct vm_model *pick_vm(void)
{
	struct vm_model *m = &vms[pick(VMS_MAX)];
	return *m->name ? m : NULL;
}

static struct state *pick_snapshot(struct vm_model *m)
{
	for (int i = 0; m && i < 10; i++) {
		struct state *s = &m->snapshots[pick(SNAPSHOTS_MAX)];
		if (*s->name)
			return s;
	}
	return NULL;
}

static struct disk_file *file_of(struct vm_model *m, int d)
{
	if (!m->files[d]) {
		struct vm *vm = vm_of(m);
		CHECK_ERR(disk_open(store, vm, NULL, disk_of(vm, NULL, disk_names[d]), true, &m->files[d], &why), 0);
		vm_put(vm);
	}
	return m->files[d];
}

static void close_files(struct vm_model *m)
{
	for (int d = 0; d < DISKS; d++) {
		if (m->files[d])
			CHECK_ERR(disk_close(m->files[d], &why), 0);
		m->files[d] = NULL;
	}
}

static void do_create_vm(struct vm_model *m)
{
	struct vm *vm = NULL;
	if (*m->name)
		return;
	snprintf(m->name, sizeof m->name, "vm-%u", ++nr_made);
	CHECK_ERR(store_create(store, m->name, getuid(), getgid(), &vm, &why), 0);
	for (int d = 0; d < DISKS; d++) {
		CHECK_ERR(disk_create(store, vm, disk_names[d], 0600, getuid(), getgid(), &m->files[d], &why), 0);
		CHECK_ERR(disk_resize(m->files[d], DISK_SIZE), 0);
		m->now.bytes[d] = calloc(1, DISK_SIZE);
	}
	vm_put(vm);
}

static void do_write(struct vm_model *m)
{
	int d = (int)pick(DISKS);
	for (uint64_t n = 1 + pick(12); n; n--) {
		uint64_t len = 1 + pick(random() % 4 ? 9000 : random() % 4 ? 200000 : 3000000), off = pick(DISK_SIZE - len);
		if (random() % 5) {
			unsigned char *buf = malloc(len);
			memset(buf, random() % 5 ? (int)random() : 0, len);
			CHECK_ERR(disk_write(file_of(m, d), buf, len, off), 0);
			memcpy(m->now.bytes[d] + off, buf, len);
			free(buf);
		} else {
			CHECK_ERR(disk_discard(file_of(m, d), off, len), 0);
			memset(m->now.bytes[d] + off, 0, len);
		}
	}
}

static void do_preview(struct vm_model *m)
{
	struct state *s = pick_snapshot(m);
	if (!s || *m->before.name)
		return;
	close_files(m);
	struct vm *vm = vm_of(m);
	struct preview_spec spec = {.snapshot = s->name};
	CHECK_ERR(store_preview(store, vm, &spec, &why), 0);
	state_copy(&m->before, &m->now, "before");
	for (int d = 0; d < DISKS; d++)
		memcpy(m->now.bytes[d], s->bytes[d], DISK_SIZE);
	vm_put(vm);
}

/* What can't be done meanwhile begins with this. */
static void end_preview(struct vm_model *m)
{
	if (!*m->before.name)
		return;
	bool undo = random() % 2;
	close_files(m);
	struct vm *vm = vm_of(m);
	CHECK_ERR(undo ? store_preview_undo(store, vm, &why) : store_preview_commit(store, vm, true, &why), 0);
	vm_put(vm);
	if (undo) {
		state_drop(&m->now);
		m->now = m->before;
		*m->now.name = '\0';
		m->before = (struct state){0};
	} else {
		state_drop(&m->before);
	}
}

static void do_snapshot(struct vm_model *m)
{
	end_preview(m);
	struct state *s = m->snapshots;
	char name[32];
	while (s < m->snapshots + SNAPSHOTS_MAX && *s->name)
		s++;
	if (s == m->snapshots + SNAPSHOTS_MAX)
		return;
	struct vm *vm = vm_of(m);
	snprintf(name, sizeof name, "s%u", ++nr_made);
	struct snapshot_spec spec = {.name = name};
	CHECK_ERR(store_snapshot_create(store, vm, &spec, &why), 0);
	state_copy(s, &m->now, name);
	vm_put(vm);
}

static void do_delete(struct vm_model *m)
{
	end_preview(m);
	struct state *s = pick_snapshot(m);
	if (!s)
		return;
	struct vm *vm = vm_of(m);
	CHECK_ERR(store_snapshot_delete(store, vm, s->name, SNAPSHOT_DROP, &why), 0);
	state_drop(s);
	vm_put(vm);
}

static void do_restore(struct vm_model *m)
{
	end_preview(m);
	struct state *s = pick_snapshot(m);
	if (!s)
		return;
	close_files(m);
	struct vm *vm = vm_of(m);
	CHECK_ERR(store_restore(store, vm, s->name, true, &why), 0);
	for (int d = 0; d < DISKS; d++)
		memcpy(m->now.bytes[d], s->bytes[d], DISK_SIZE);
	vm_put(vm);
}

static void do_clone_as(struct vm_model *m, const struct state *s, struct vm_model *to, struct disk_spec all)
{
	struct vm *made = NULL;
	struct vm *vm = vm_of(m);
	snprintf(to->name, sizeof to->name, "vm-%u", ++nr_made);
	const struct clone_spec spec = {.name = to->name, .uid = getuid(), .gid = getgid(), .all = all};
	CHECK_ERR(store_clone_with(store, vm, vm_find_snapshot(vm, s->name), &spec, &made, &why), 0);
	state_copy(&to->now, s, "");
	vm_put(made);
	vm_put(vm);
}

static void do_clone_of(struct vm_model *m, const struct state *s, struct vm_model *to)
{
	do_clone_as(m, s, to, (struct disk_spec){0});
}

static void do_flatten(const struct vm_model *m)
{
	struct vm *vm = vm_of(m);
	CHECK_ERR(store_flatten(store, vm, NULL, 0, &why), 0);
	vm_put(vm);
}

static void do_clone(struct vm_model *m)
{
	const struct state *s = pick_snapshot(m);
	struct vm_model *to = &vms[pick(VMS_MAX)];
	const struct disk_spec kinds[] = {{0},
					  {.mode = CLONE_FULL},
					  {.mode = CLONE_FULL, .allocation = ALLOCATION_FULL},
					  {.mode = CLONE_FULL, .format = IMAGE_RAW},
					  {.mode = CLONE_FULL, .format = IMAGE_RAW}};
	if (s && !*to->name)
		do_clone_as(m, s, to, kinds[pick(sizeof kinds / sizeof *kinds)]);
}

static void do_remove_vm(struct vm_model *m)
{
	end_preview(m);
	close_files(m);
	struct vm *vm = vm_of(m);
	for (int s = 0; s < SNAPSHOTS_MAX; s++) {
		if (!*m->snapshots[s].name)
			continue;
		CHECK_ERR(store_snapshot_delete(store, vm, m->snapshots[s].name, SNAPSHOT_DROP, &why), 0);
		state_drop(&m->snapshots[s]);
	}
	CHECK_ERR(store_remove(store, vm, &why), 0);
	vm_put(vm);
	state_drop(&m->now);
	*m->name = '\0';
}

static void cancel_jobs(void)
{
	char *names = NULL;
	CHECK(store_jobs(store, &names) == 0);
	for (char *p = names, *end; *p && (end = strchr(p, '\n')); p = end + 1) {
		char *text = NULL;
		size_t len = 0;
		*end = '\0';
		if (store_job_text(store, p, &text, &len) == 0)
			CHECK(strstr(text, "kind: merge") || strstr(text, "kind: flatten"));
		free(text);
		int err = store_job_cancel(store, p, &why);
		CHECK(!err || err == -ENOENT);
	}
	free(names);
}

/* --- what must be so at the end -------------------------------------------------------------------------------------------- */

static unsigned check_layer_files(void)
{
	struct layer_use *uses = NULL;
	size_t nr_uses = 0;
	unsigned nr = 0;
	CHECK(layers_list_uses(store, &uses, &nr_uses) == 0);
	char path[600];
	snprintf(path, sizeof path, "%s/src/.vmsnapfs/layers", dir);
	DIR *d = opendir(path);
	CHECK(d);
	for (struct dirent *de; (de = readdir(d));) {
		if (*de->d_name == '.' && strlen(de->d_name) <= 2)
			continue;
		size_t i = 0;
		while (i < nr_uses && strcmp(uses[i].name, de->d_name) != 0)
			i++;
		if (i == nr_uses) {
			printf("%s is unreachable\n%s", de->d_name, events);
			exit(1);
		}
		nr++;
	}
	free(uses);
	closedir(d);
	return nr;
}

static unsigned check_settled(void)
{
	struct layer_run *runs = NULL;
	size_t nr = 0;
	wait_for_jobs(store);
	CHECK(layers_find_runs(store, &runs, &nr) == 0);
	for (size_t i = 0; i < nr; i++) {
		printf("%s could be merged with %zu layers\n%s", runs[i].names[0], runs[i].nr - 1, events);
		exit(1);
	}
	free(runs);
	return check_layer_files();
}

static void check_with_qemu(const struct vm_disk *disk, const unsigned char *wanted)
{
	static unsigned char seen[DISK_SIZE];
	char path[600];
	const char *format = disk->format == IMAGE_RAW ? "raw" : "qcow2";
	if (disk->format != IMAGE_RAW)
		run("qemu-img check -q %s", disk->path);
	run("qemu-img convert -f %s -O raw %s %s/flat", format, disk->path, dir);
	snprintf(path, sizeof path, "%s/flat", dir);
	FILE *f = fopen(path, "r");
	CHECK(f && fread(seen, 1, DISK_SIZE, f) == DISK_SIZE);
	fclose(f);
	compare("qemu-img", disk->path, seen, wanted);
}

static void check_all_with_qemu(void)
{
	for (struct vm_model *m = vms; m < vms + VMS_MAX; m++) {
		if (!*m->name)
			continue;
		close_files(m);
		struct vm *vm = vm_of(m);
		for (int d = 0; d < DISKS; d++) {
			check_with_qemu(disk_of(vm, NULL, disk_names[d]), m->now.bytes[d]);
			for (int s = 0; s < SNAPSHOTS_MAX; s++)
				if (*m->snapshots[s].name)
					check_with_qemu(disk_of(vm, vm_find_snapshot(vm, m->snapshots[s].name), disk_names[d]),
							m->snapshots[s].bytes[d]);
		}
		vm_put(vm);
	}
}

static void reopen(void)
{
	for (struct vm_model *m = vms; m < vms + VMS_MAX; m++)
		close_files(m);
	store_close(store);
	store = store_at("src", true);
}

static void do_step(void)
{
	struct vm_model *m = pick_vm();
	switch (m ? pick(24) : 0) {
	case 0: do_create_vm(&vms[pick(VMS_MAX)]); break;
	case 1:
	case 2:
	case 3:
	case 4:
	case 5: do_snapshot(m); break;
	case 6:
	case 7:
	case 8: do_delete(m); break;
	case 9: do_restore(m); break;
	case 10: do_clone(m); break;
	case 11:
		if (random() % 8 == 0)
			do_remove_vm(m);
		break;
	case 12:
		if (random() % 2)
			check_settled();
		break;
	case 13: check_all(); break;
	case 14:
		if (random() % 3 == 0)
			reopen();
		break;
	case 15:
		if (random() % 3 == 0)
			cancel_jobs();
		break;
	case 16: close_files(m); break;
	case 17: do_preview(m); break;
	case 18: do_flatten(m); break;
	case 19: do_clone(m); break;
	default: do_write(m); break;
	}
}

static void remove_all(void)
{
	for (struct vm_model *m = vms; m < vms + VMS_MAX; m++)
		if (*m->name)
			do_remove_vm(m);
	CHECK(check_settled() == 0);
}

static void test_random(unsigned nr_steps)
{
	store = store_at("src", true);
	for (unsigned i = 0; i < nr_steps; i++)
		do_step();
	check_all();
	reopen(); /* what was cancelled is taken up again */
	check_settled();
	check_all();
	check_all_with_qemu();
	remove_all();
	store_close(store);
}

static struct vm_model *make_vm(void)
{
	struct vm_model *m = vms;
	do_create_vm(m);
	file_of(m, 0);
	return m;
}

/* --- what snapshots take ------------------------------------------------------------------------------------------------ */

static uint64_t bytes_of_layers(void)
{
	char path[600];
	uint64_t bytes = 0;
	struct stat st;
	snprintf(path, sizeof path, "%s/src/.vmsnapfs/layers", dir);
	DIR *d = opendir(path);
	CHECK(d);
	for (struct dirent *de; (de = readdir(d));)
		if (*de->d_name != '.' && fstatat(dirfd(d), de->d_name, &st, 0) == 0)
			bytes += (uint64_t)st.st_blocks * 512;
	closedir(d);
	return bytes;
}

static void fill_at(struct vm_model *m, uint64_t off, uint64_t len, int byte)
{
	memset(m->now.bytes[0] + off, byte, len);
	CHECK_ERR(disk_write(file_of(m, 0), m->now.bytes[0] + off, len, off), 0);
}

static void space_of_snapshot(struct vm_model *m, int i, uint64_t *ret_used, uint64_t *ret_unique)
{
	struct vm *vm = vm_of(m);
	CHECK_ERR(store_snapshot_space(store, vm, vm->snapshots[i], ret_used, ret_unique), 0);
	vm_put(vm);
}

/* Files take a little more than their data. */
static bool about(uint64_t got, uint64_t wanted)
{
	if (got + (300u << 10) < wanted || got > wanted + (600u << 10))
		printf("%llu bytes, not about %llu\n", (unsigned long long)got, (unsigned long long)wanted);
	return got + (300u << 10) >= wanted && got <= wanted + (600u << 10);
}

static void test_space(void)
{
	const uint64_t mib = 1u << 20;
	uint64_t used = 0, unique = 0;
	store = store_at("src", true);
	struct vm_model *m = make_vm();
	fill_at(m, 0, 3 * mib, 1);
	do_snapshot(m);
	fill_at(m, 2 * mib, 2 * mib, 2);
	do_snapshot(m);
	space_of_snapshot(m, 0, &used, &unique);
	CHECK(about(used, 3 * mib) && about(unique, mib)); /* the rest, the second needs */
	space_of_snapshot(m, 1, &used, &unique);
	CHECK(about(used, 5 * mib) && about(unique, 0)); /* the disk needs all of it */
	fill_at(m, 3 * mib, mib, 3);
	close_files(m);
	space_of_snapshot(m, 1, &used, &unique);
	CHECK(about(unique, mib));
	uint64_t before = bytes_of_layers();
	do_clone_of(m, &m->snapshots[1], &vms[1]);
	space_of_snapshot(m, 1, &used, &unique);
	CHECK(unique == 0);
	do_remove_vm(&vms[1]);
	struct vm *vm = vm_of(m);
	CHECK_ERR(store_snapshot_delete(store, vm, m->snapshots[0].name, SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
	state_drop(&m->snapshots[0]);
	check_settled();
	CHECK(about(before - bytes_of_layers(), mib));
	check_all();
	remove_all();
	store_close(store);
}

/* --- under a writer ---------------------------------------------------------------------------------------------------- */

struct writer {
	struct vm_model *m;
	unsigned seed;
	unsigned span; /* it writes below this */
	atomic_bool stop;
	atomic_uint nr_writes;
};

/* It alone knows what the disk holds, and looks. */
static void *write_on(void *arg)
{
	struct writer *w = arg;
	unsigned char *model = w->m->now.bytes[0], *seen = malloc(1u << 20);
	while (!atomic_load(&w->stop)) {
		uint64_t len = 1 + (uint64_t)rand_r(&w->seed) % (rand_r(&w->seed) % 8 ? 9000 : 300000);
		uint64_t off = (uint64_t)rand_r(&w->seed) % (w->span - len);
		if (rand_r(&w->seed) % 4) {
			memset(model + off, rand_r(&w->seed) % 6 ? rand_r(&w->seed) : 0, len);
			CHECK_ERR(disk_write(w->m->files[0], model + off, len, off), 0);
		} else if (rand_r(&w->seed) % 3) {
			CHECK_ERR(disk_read(w->m->files[0], seen, len, off), 0);
			if (memcmp(seen, model + off, len)) {
				printf("the writer reads something else at %llu\n%s", (unsigned long long)off, events);
				exit(1);
			}
		} else {
			memset(model + off, 0, len);
			CHECK_ERR(disk_discard(w->m->files[0], off, len), 0);
		}
		if (rand_r(&w->seed) % 64 == 0)
			CHECK_ERR(disk_flush(w->m->files[0]), 0);
		atomic_fetch_add(&w->nr_writes, 1);
		if (rand_r(&w->seed) % 16 == 0)
			usleep((useconds_t)(rand_r(&w->seed) % 3000));
	}
	free(seen);
	return NULL;
}

/* What a snapshot of a disk that is being written to holds, nobody knows but itself; from then on it doesn't change. */
static void learn_once(const struct vm_model *m, struct state *s)
{
	if (s->learnt)
		return;
	s->learnt = true;
	struct vm *vm = vm_of(m);
	const struct vm_snapshot *snapshot = vm_find_snapshot(vm, s->name);
	struct disk_file *file = NULL;
	CHECK_ERR(disk_open(store, vm, snapshot, disk_of(vm, snapshot, disk_names[0]), false, &file, &why), 0);
	CHECK_ERR(disk_read(file, s->bytes[0], DISK_SIZE, 0), 0);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
}

static void fill(struct vm_model *m, uint64_t len, int byte)
{
	memset(m->now.bytes[0], byte, len);
	CHECK_ERR(disk_write(file_of(m, 0), m->now.bytes[0], len, 0), 0);
}

/* A head that lies over a full layer is pushed into it; one that is full itself takes up what is below. */
static void test_direction(bool push)
{
	store = store_at("src", true);
	struct vm_model *m = make_vm();
	struct writer w = {.m = m, .seed = (unsigned)random(), .span = push ? DISK_SIZE / 4 : DISK_SIZE};
	pthread_t thread;
	fill(m, push ? DISK_SIZE : DISK_SIZE / 8, 1);
	do_snapshot(m);
	fill(m, DISK_SIZE / 8, 2);
	do_snapshot(m);
	if (!push)
		fill(m, DISK_SIZE, 3);
	struct stat before, after;
	struct vm *vm = vm_of(m);
	auto_free char *path = strdup(disk_of(vm, NULL, disk_names[0])->path);
	CHECK(stat(disk_of(vm, push ? vm->snapshots[0] : NULL, disk_names[0])->path, &before) == 0);
	vm_put(vm);
	CHECK(pthread_create(&thread, NULL, write_on, &w) == 0);
	while (atomic_load(&w.nr_writes) < 20)
		usleep(1000);
	for (int i = 0; i < 1000; i++)
		do_delete(m); /* one of them, or none */
	wait_for_jobs(store);
	atomic_store(&w.stop, true);
	pthread_join(thread, NULL);
	writing = false;
	check_all();
	vm = vm_of(m);
	CHECK_STR(disk_of(vm, NULL, disk_names[0])->path, path); /* a domain that libvirt knows finds its disk */
	CHECK(stat(path, &after) == 0);
	vm_put(vm);
	CHECK(before.st_ino == after.st_ino); /* that file took up the others */
	CHECK(check_settled() == DISKS); /* a layer for each disk */
	CHECK((uint64_t)after.st_blocks * 512 < DISK_SIZE + (1u << 20));
	check_all_with_qemu();
	remove_all();
	store_close(store);
}

/* --- what was cancelled ------------------------------------------------------------------------------------------------- */

static bool any_jobs(void)
{
	char *names = NULL;
	CHECK(store_jobs(store, &names) == 0);
	bool any = *names;
	free(names);
	return any;
}

static void delete_snapshot(struct vm_model *m, int i)
{
	struct vm *vm = vm_of(m);
	CHECK_ERR(store_snapshot_delete(store, vm, m->snapshots[i].name, SNAPSHOT_DROP, &why), 0);
	vm_put(vm);
	state_drop(&m->snapshots[i]);
}

/* It stays so whatever else is let go of, until a snapshot is deleted, or the next start. Nothing works on the jobs meanwhile. */
static void test_cancel(void)
{
	store = store_at("src", false);
	struct vm_model *m = make_vm();
	for (int i = 0; i < 4; i++) {
		fill(m, DISK_SIZE / 8, i + 1);
		do_snapshot(m);
	}
	close_files(m);
	for (int i = 0; i < 2; i++) {
		delete_snapshot(m, i);
		CHECK(any_jobs());
		cancel_jobs();
		layers_sweep(store);
		CHECK(!any_jobs());
	}
	do_clone_of(m, &m->snapshots[3], &vms[1]);
	do_remove_vm(&vms[1]);
	CHECK(!any_jobs());
	unsigned before = check_layer_files();
	reopen();
	CHECK(check_settled() < before);
	check_all();
	remove_all();
	store_close(store);
}

/* --- another program that reads ----------------------------------------------------------------------------------------- */

struct qemu_io {
	pid_t pid;
	FILE *to, *from;
};

static void qemu_io_open(struct qemu_io *q, const char *path)
{
	int to[2], from[2];
	char line[200] = "";
	CHECK(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
	q->pid = fork();
	CHECK(q->pid >= 0);
	if (q->pid == 0) {
		dup2(to[0], 0);
		dup2(from[1], 1);
		execlp("qemu-io", "qemu-io", "-r", "-f", "qcow2", path, (char *)NULL);
		_exit(127);
	}
	close(to[0]);
	close(from[1]);
	q->to = fdopen(to[1], "w");
	q->from = fdopen(from[0], "r");
	fputs("length\n", q->to);
	fflush(q->to);
	CHECK(fgets(line, sizeof line, q->from) && strstr(line, "6 MiB")); /* it has it open now */
}

static void qemu_io_expect(struct qemu_io *q, int byte)
{
	char line[200];
	int status = 0;
	unsigned nr_read = 0;
	fprintf(q->to, "read -P %d 0 %u\nquit\n", byte, DISK_SIZE);
	fclose(q->to);
	while (fgets(line, sizeof line, q->from)) {
		CHECK(!strstr(line, "failed"));
		nr_read += strstr(line, "read 6291456/6291456") != NULL;
	}
	fclose(q->from);
	CHECK(waitpid(q->pid, &status, 0) == q->pid && status == 0 && nr_read == 1);
}

/* What it has open doesn't change, though the head would have been pushed into it. */
static void test_foreign_reader(void)
{
	store = store_at("src", true);
	struct vm_model *m = make_vm();
	fill(m, DISK_SIZE, 1);
	do_snapshot(m);
	fill(m, DISK_SIZE / 8, 2);
	struct vm *vm = vm_of(m);
	struct qemu_io q;
	qemu_io_open(&q, disk_of(vm, vm->snapshots[0], disk_names[0])->path);
	vm_put(vm);
	delete_snapshot(m, 0);
	CHECK(check_settled() == DISKS);
	qemu_io_expect(&q, 1);
	check_all();
	check_all_with_qemu();
	remove_all();
	store_close(store);
}

static void test_writer(unsigned nr_steps)
{
	store = store_at("src", true);
	struct vm_model *m = make_vm();
	struct writer w = {.m = m, .seed = (unsigned)random(), .span = DISK_SIZE};
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, write_on, &w) == 0);
	writing = true;
	for (unsigned i = 0; i < nr_steps; i++) {
		struct state *s = pick_snapshot(m);
		switch (pick(6)) {
		case 0:
		case 1:
		case 2:
			do_snapshot(m);
			for (s = m->snapshots; s < m->snapshots + SNAPSHOTS_MAX; s++)
				if (*s->name)
					learn_once(m, s);
			break;
		case 3:
		case 4: do_delete(m); break;
		default:
			if (s)
				check_disk(m, s);
			break;
		}
		usleep((useconds_t)pick(20000));
	}
	atomic_store(&w.stop, true);
	pthread_join(thread, NULL);
	writing = false;
	check_all();
	check_settled();
	check_all();
	check_all_with_qemu();
	remove_all();
	store_close(store);
}

/* --- a daemon that dies ------------------------------------------------------------------------------------------------- */

struct victim {
	char names[SNAPSHOTS_MAX][32]; /* to be deleted */
	unsigned nr;
	atomic_uint nr_done;
};

static void die_deleting(struct vm_model *m, struct victim *v)
{
	store = store_at("src", true);
	file_of(m, 0);
	struct vm *vm = vm_of(m);
	for (unsigned i = 0; i < v->nr; i++) {
		CHECK_ERR(store_snapshot_delete(store, vm, v->names[i], SNAPSHOT_DROP, &why), 0);
		atomic_fetch_add(&v->nr_done, 1);
		usleep((useconds_t)pick(3000));
	}
	for (;;)
		pause();
}

static void choose_victims(struct vm_model *m, struct victim *v)
{
	*v = (struct victim){0};
	for (int s = 0; s < SNAPSHOTS_MAX; s++)
		if (*m->snapshots[s].name && random() % 3)
			snprintf(v->names[v->nr++], sizeof v->names[0], "%s", m->snapshots[s].name);
}

/* The one that it was at may be there or not. */
static void settle_victims(struct vm_model *m, const struct victim *v)
{
	struct vm *vm = vm_of(m);
	for (unsigned i = 0; i < v->nr; i++)
		for (int s = 0; s < SNAPSHOTS_MAX; s++)
			if (strcmp(m->snapshots[s].name, v->names[i]) == 0 && !vm_find_snapshot(vm, v->names[i])) {
				CHECK(i <= atomic_load(&v->nr_done));
				state_drop(&m->snapshots[s]);
			}
	for (unsigned i = 0; i < atomic_load(&v->nr_done); i++)
		CHECK(!vm_find_snapshot(vm, v->names[i]));
	vm_put(vm);
}

static void test_kill(unsigned nr_rounds)
{
	struct victim *v = mmap(NULL, sizeof *v, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(v != MAP_FAILED);
	store = store_at("src", true);
	struct vm_model *m = make_vm();
	for (unsigned i = 0; i < nr_rounds; i++) {
		while (!m->snapshots[SNAPSHOTS_MAX / 2].name[0]) {
			do_write(m);
			do_snapshot(m);
			if (random() % 6 == 0)
				do_restore(m);
		}
		for (struct vm_model *any = vms; any < vms + VMS_MAX; any++)
			close_files(any);
		store_close(store);
		choose_victims(m, v);
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0)
			die_deleting(m, v);
		while (v->nr && !atomic_load(&v->nr_done) && waitpid(pid, NULL, WNOHANG) == 0)
			usleep(100);
		usleep((useconds_t)pick(40000));
		CHECK(kill(pid, SIGKILL) == 0);
		int status = 0;
		CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
		store = store_at("src", random() % 4);
		settle_victims(m, v);
		check_all();
		if (random() % 2) {
			reopen();
			check_settled();
			check_all();
		}
	}
	reopen();
	check_settled();
	check_all();
	check_all_with_qemu();
	remove_all();
	store_close(store);
	munmap(v, sizeof *v);
}

int main(int argc, char **argv)
{
	const char *env = getenv("SEED");
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : env ? (unsigned)atoi(env) : (unsigned)time(NULL);
	unsigned nr_steps = argc > 2 ? (unsigned)atoi(argv[2]) : 300;
	printf("seed %u, %u steps\n", seed, nr_steps);
	srandom(seed);
	dir_init();
	test_space();
	test_direction(true);
	test_direction(false);
	test_cancel();
	test_foreign_reader();
	test_random(nr_steps);
	test_writer(nr_steps / 4);
	test_kill(nr_steps / 40);
	dir_done();
	return 0;
}
