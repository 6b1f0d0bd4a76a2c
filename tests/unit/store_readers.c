/* Who reads a snapshot goes on reading what it was while its VM is made independent of what it lay over, and that is merged into what others need. */
#include "store/disk_file.h"
#include "store/layers.h"
#include "store/store_internal.h"
#include "store_test.h"

#define SIZE  (6u << 20)
#define PIECE (64u << 10)

static struct store *store;

struct bytes {
	unsigned char at[SIZE];
};
static struct bytes origin, copy, seen;

static struct vm *vm_named(const char *name)
{
	struct vm *vm = store_find(store, PLACE_CLONES, name);
	CHECK(vm);
	return vm;
}

static struct disk_file *open_disk(const char *name, const char *snapshot_name, bool writable)
{
	struct vm *vm = vm_named(name);
	struct disk_file *file = NULL;
	const struct vm_snapshot *snapshot = snapshot_name ? vm_find_snapshot(vm, snapshot_name) : NULL;
	CHECK(snapshot || !snapshot_name);
	CHECK_ERR(disk_open(store, vm, snapshot, disk_of(vm, snapshot, "vda.img"), writable, &file, &why), 0);
	vm_put(vm);
	return file;
}

/* LEN bytes of C at OFF of the VM's disk, which then holds WHAT. */
static void fill(const char *name, struct bytes *what, uint64_t off, size_t len, int c)
{
	struct disk_file *file = open_disk(name, NULL, true);
	memset(what->at + off, c, len);
	CHECK_ERR(disk_write(file, what->at + off, len, off), 0);
	CHECK_ERR(disk_close(file, &why), 0);
}

static void take(const char *name, const char *snapshot)
{
	struct vm *vm = vm_named(name);
	CHECK_ERR(store_snapshot_create(store, vm, &(struct snapshot_spec){.name = snapshot}, &why), 0);
	vm_put(vm);
}

static void delete(const char *name, const char *snapshot)
{
	struct vm *vm = vm_named(name);
	CHECK_ERR(store_snapshot_delete(store, vm, snapshot, SNAPSHOT_DROP, &why), 0);
	wait_for_jobs(store);
	vm_put(vm);
}

static void clone_of(const char *name, const char *snapshot, const char *to)
{
	struct vm *vm = vm_named(name), *made = NULL;
	CHECK_ERR(store_clone(store, vm, vm_find_snapshot(vm, snapshot), to, getuid(), getgid(), &made, &why), 0);
	vm_put(made);
	vm_put(vm);
}

static void check(const char *what, struct disk_file *file, const struct bytes *wanted)
{
	CHECK_ERR(disk_read(file, seen.at, SIZE, 0), 0);
	for (uint64_t i = 0; i < SIZE; i++) {
		if (seen.at[i] != wanted->at[i]) {
			printf("%s: not so: byte %llu is %02x, not %02x\n%s", what, (unsigned long long)i, seen.at[i], wanted->at[i], events);
			exit(1);
		}
	}
}

static void check_disk(const char *name, const struct bytes *wanted)
{
	struct disk_file *file = open_disk(name, NULL, false);
	check(name, file, wanted);
	CHECK_ERR(disk_close(file, &why), 0);
}

static void remove_vm(const char *name)
{
	struct vm *vm = vm_named(name);
	CHECK_ERR(store_remove(store, vm, &why), 0);
	vm_put(vm);
}

static void make_origin(void)
{
	struct vm *vm = NULL;
	struct disk_file *file = NULL;
	CHECK_ERR(store_create(store, "origin", getuid(), getgid(), &vm, &why), 0);
	CHECK_ERR(disk_create(store, vm, "vda.img", 0600, getuid(), getgid(), &file, &why), 0);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
}

/* LATER: a further snapshot of the origin, so that what was shared is merged into its layer, and not into the disk. */
static void scenario(bool later, bool deleted)
{
	struct vm *vm = NULL;
	fill("origin", &origin, 0, SIZE, 1);
	take("origin", "base");
	clone_of("origin", "base", "copy");
	copy = origin;
	fill("copy", &copy, 3 * PIECE, PIECE, 2);
	take("copy", "read");
	struct bytes *then = malloc(sizeof *then);
	CHECK(then);
	*then = copy;
	struct disk_file *file = open_disk("copy", "read", false);
	check("copy@read", file, then); /* where all of it lies is known from now on */
	fill("copy", &copy, 5 * PIECE, PIECE, 3);
	if (deleted)
		delete("copy", "read");
	vm = vm_named("copy");
	CHECK_ERR(store_flatten(store, vm, NULL, 0, &why), 0);
	vm_put(vm);
	wait_for_jobs(store);
	check("copy@read, independent", file, then);

	fill("origin", &origin, 7 * PIECE, PIECE, 4);
	if (later)
		take("origin", "later");
	delete("origin", "base");
	check("copy@read, and what it was over merged", file, then);
	fill("origin", &origin, 9 * PIECE, 2 * PIECE, 5);
	check("copy@read, and that written to", file, then);
	check_disk("copy", &copy);
	check_disk("origin", &origin);
	CHECK_ERR(disk_close(file, &why), 0);
	wait_for_jobs(store);
	check_disk("copy", &copy);
	if (later)
		delete("origin", "later");
	if (!deleted)
		delete("copy", "read");
	check_disk("origin", &origin);
	remove_vm("copy");
	free(then);
}

/* Who had opened the chain, and not locked it yet, when something was written into it: nobody looked at him. */
static void check_lock_of_old(void)
{
	struct vm *vm = vm_named("origin");
	const struct vm_disk *disk = disk_of(vm, NULL, "vda.img");
	const struct disk_source source = {disk->path, disk->format, NULL};
	struct view *view = NULL, *locked = NULL;
	CHECK_ERR(layers_open_view(store, &source, &view, &why), 0);
	CHECK_ERR(layers_open_locked(store, &source, &locked, &why), 0);
	const struct stat *st = image_stat(view_layer(view, 0));
	image_cache_forget(store->images, st->st_dev, st->st_ino);
	CHECK(view_lock(view, &why) == -ESTALE);
	CHECK_ERR(view_lock(locked, &why), 0); /* he was known */
	view_unlock(locked);
	view_unlock(locked);
	view_put(locked);
	view_put(view);
	CHECK_ERR(layers_open_locked(store, &source, &view, &why), 0);
	view_unlock(view);
	view_put(view);
	vm_put(vm);
}

/* A disk that couldn't be opened again after its layer was exchanged. */
static void check_lost(void)
{
	struct disk_file *file = open_disk("origin", NULL, false);
	pthread_rwlock_wrlock(&file->head->swap);
	CHECK_ERR(head_detach(file->head), 0);
	pthread_rwlock_unlock(&file->head->swap);
	CHECK(disk_virtual_size(file) == SIZE); /* reading on isn't at its end */
	CHECK(disk_read(file, seen.at, PIECE, 0) == -EIO);
	check("found again", file, &origin);
	CHECK_ERR(disk_close(file, &why), 0);
}

int main(void)
{
	dir_init();
	store = store_at("src", true);
	make_origin();
	scenario(false, false);
	scenario(false, true);
	scenario(true, false);
	scenario(true, true);
	check_lock_of_old();
	check_lost();
	store_close(store);
	dir_done();
	return 0;
}
