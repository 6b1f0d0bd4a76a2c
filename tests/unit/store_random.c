/* Random clones, copies, writes, removals and restarts, each disk against a plain array; at the end qemu-img says what the layers hold.
 * store_random [SEED [STEPS]] */
#include <sys/stat.h>
#include <time.h>

#include "store_test.h"

#define DISK_MAX (4u << 20)
#define VMS_MAX	 12
#define DISKS_MAX 3

struct disk_model {
	char file_name[32]; /* "": none */
	uint64_t size;
	unsigned char *bytes; /* DISK_MAX */
	struct disk_file *file; /* NULL: not open */
};

struct vm_model {
	char name[32]; /* "": none */
	struct disk_model disks[DISKS_MAX];
};

static struct store *store;
static struct vm_model vms[VMS_MAX];
static unsigned char *found[3]; /* the disk of each snapshot in SOURCE */
static const char *const snapshot_names[3] = {"first", "base", "second"};
static uint64_t found_size = 3u << 20;
static unsigned nr_made;

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

static struct vm_model *pick_vm(void)
{
	struct vm_model *model = &vms[pick(VMS_MAX)];
	return *model->name ? model : NULL;
}

static struct vm_model *pick_free(void)
{
	struct vm_model *model = &vms[pick(VMS_MAX)];
	return *model->name ? NULL : model;
}

static struct disk_model *pick_disk(struct vm_model **ret_vm)
{
	struct vm_model *vm = pick_vm();
	struct disk_model *disk = vm ? &vm->disks[pick(DISKS_MAX)] : NULL;
	*ret_vm = vm;
	return disk && *disk->file_name ? disk : NULL;
}

static struct disk_file *open_file(const struct vm_model *vm_model, struct disk_model *model)
{
	if (!model->file) {
		struct vm *vm = vm_of(vm_model);
		const struct vm_disk *disk = disk_of(vm, NULL, model->file_name);
		CHECK(disk);
		CHECK_ERR(disk_open(store, vm, NULL, disk, true, &model->file, &why), 0);
		vm_put(vm);
	}
	return model->file;
}

static void close_file(struct disk_model *model)
{
	if (model->file)
		CHECK_ERR(disk_close(model->file, &why), 0);
	model->file = NULL;
}

/* Closing makes whole sectors of it. */
static void close_disk(struct disk_model *model)
{
	close_file(model);
	memset(model->bytes + model->size, 0, (512 - model->size % 512) % 512);
	model->size = (model->size + 511) & ~511ull;
}

static void compare(const struct vm_model *vm_model, struct disk_model *model)
{
	static unsigned char seen[DISK_MAX];
	struct disk_stat st;
	struct disk_file *file = open_file(vm_model, model);
	if (disk_virtual_size(file) != model->size) {
		printf("%s/%s: size %llu, not %llu\n", vm_model->name, model->file_name, (unsigned long long)disk_virtual_size(file),
		       (unsigned long long)model->size);
		exit(1);
	}
	CHECK_ERR(disk_fstat(file, &st), 0);
	CHECK(st.virtual_size == model->size && st.allocated <= st.virtual_size);
	CHECK_ERR(disk_read(file, seen, model->size, 0), 0);
	for (uint64_t i = 0; i < model->size; i++) {
		if (seen[i] != model->bytes[i]) {
			printf("%s/%s: byte %llu is %02x, not %02x\n", vm_model->name, model->file_name, (unsigned long long)i, seen[i],
			       model->bytes[i]);
			exit(1);
		}
	}
	for (uint64_t off = 0, hole, data; off < model->size; off = data) {
		if (disk_seek(file, off, false, &hole) || hole >= model->size)
			break;
		if (disk_seek(file, hole, true, &data))
			data = model->size;
		for (uint64_t i = hole; i < data; i++)
			CHECK(!model->bytes[i]);
	}
}

/* --- what is done to a disk ------------------------------------------------------------------------------------------- */

static void grow_model(struct disk_model *model, uint64_t size)
{
	if (size > model->size) {
		memset(model->bytes + model->size, 0, size - model->size);
		model->size = size;
	}
}

static void do_write(struct vm_model *vm, struct disk_model *model)
{
	uint64_t off = pick(DISK_MAX - 200000), len = 1 + pick(random() % 4 ? 9000 : 200000);
	unsigned char *buf = malloc(len);
	memset(buf, random() % 5 ? (int)random() : 0, len);
	CHECK_ERR(disk_write(open_file(vm, model), buf, len, off), 0);
	if (off > model->size)
		grow_model(model, off);
	memcpy(model->bytes + off, buf, len);
	if (off + len > model->size)
		model->size = off + len;
	free(buf);
}

static void do_resize(struct vm_model *vm, struct disk_model *model)
{
	uint64_t size = random() % 4 ? pick(DISK_MAX) : 0;
	CHECK_ERR(disk_resize(open_file(vm, model), size), 0);
	grow_model(model, size);
	model->size = size;
}

static void do_discard(struct vm_model *vm, struct disk_model *model)
{
	if (!model->size)
		return;
	uint64_t off = pick(model->size), len = pick(model->size - off) + 1;
	CHECK_ERR(disk_discard(open_file(vm, model), off, len), 0);
	memset(model->bytes + off, 0, len);
}

/* As copying programs do: the whole of it in pieces, or any range, sometimes to another place. */
static void copy_range(struct disk_file *from, const unsigned char *from_bytes, uint64_t from_size, struct vm_model *vm,
		       struct disk_model *to)
{
	uint64_t off = random() % 2 ? 0 : pick(from_size), to_off = random() % 4 ? off : pick(DISK_MAX);
	uint64_t end = random() % 2 ? from_size : off + pick(from_size - off);
	uint64_t piece = random() % 2 ? DISK_MAX : 1 + pick(700000);
	while (off < end) {
		uint64_t len = end - off < piece ? end - off : piece;
		if (to_off + len > DISK_MAX)
			return;
		CHECK_ERR(disk_copy(from, off, open_file(vm, to), to_off, len, &why), (int)len);
		if (to_off > to->size)
			grow_model(to, to_off);
		memmove(to->bytes + to_off, from_bytes + off, len);
		if (to_off + len > to->size)
			to->size = to_off + len;
		off += len;
		to_off += len;
	}
}

static void do_copy_between(struct vm_model *vm, struct disk_model *to)
{
	struct vm_model *from_vm;
	struct disk_model *from = pick_disk(&from_vm);
	if (!from || from == to || !from->size)
		return;
	copy_range(open_file(from_vm, from), from->bytes, from->size, vm, to);
}

/* By copy_file_range, or by plain writes with the hint that the mount gives. */
static void do_copy_snapshot(struct vm_model *vm, struct disk_model *to)
{
	size_t s = pick(3);
	struct disk_file *from = NULL;
	struct vm *source = store_find(store, PLACE_VMS, "web");
	const struct vm_snapshot *snapshot = vm_find_snapshot(source, snapshot_names[s]);
	CHECK(snapshot);
	CHECK_ERR(disk_open(store, source, snapshot, &snapshot->disks[0], false, &from, &why), 0);
	if (random() % 2) {
		copy_range(from, found[s], found_size, vm, to);
	} else {
		struct disk_file *file = open_file(vm, to);
		disk_hint_source(file, from);
		for (uint64_t off = 0; off < found_size; off += 131072)
			CHECK_ERR(disk_write(file, found[s] + off, 131072, off), 0);
		memcpy(to->bytes, found[s], found_size);
		if (to->size < found_size)
			to->size = found_size;
	}
	CHECK_ERR(disk_close(from, &why), 0);
	vm_put(source);
}

/* --- what is done to VMs ---------------------------------------------------------------------------------------------- */

static void add_model_disk(struct vm_model *vm, const char *file_name, const unsigned char *bytes, uint64_t size)
{
	struct disk_model *model = vm->disks;
	while (*model->file_name)
		model++;
	CHECK(model < vm->disks + DISKS_MAX);
	snprintf(model->file_name, sizeof model->file_name, "%s", file_name);
	model->size = size;
	model->bytes = malloc(DISK_MAX);
	if (size)
		memcpy(model->bytes, bytes, size);
}

static void drop_model_disk(struct disk_model *model)
{
	free(model->bytes);
	*model = (struct disk_model){0};
}

static void new_name(struct vm_model *model)
{
	snprintf(model->name, sizeof model->name, "vm-%u", ++nr_made);
}

static void do_create(void)
{
	struct vm_model *model = pick_free();
	struct vm *vm = NULL;
	if (!model)
		return;
	new_name(model);
	CHECK_ERR(store_create(store, model->name, getuid(), getgid(), &vm, &why), 0);
	vm_put(vm);
}

static void do_clone_snapshot(void)
{
	struct vm_model *model = pick_free();
	struct vm *vm = NULL;
	if (!model)
		return;
	size_t s = pick(3);
	struct vm *from = store_find(store, PLACE_VMS, "web");
	new_name(model);
	CHECK_ERR(store_clone(store, from, vm_find_snapshot(from, snapshot_names[s]), model->name, getuid(), getgid(), &vm, &why), 0);
	add_model_disk(model, "vda.img", found[s], found_size);
	vm_put(vm);
	vm_put(from);
}

static void do_clone_now(void)
{
	struct vm_model *from_model = pick_vm(), *model = pick_free();
	struct vm *vm = NULL;
	if (!model || !from_model)
		return;
	struct vm *from = vm_of(from_model);
	new_name(model);
	CHECK_ERR(store_clone(store, from, NULL, model->name, getuid(), getgid(), &vm, &why), 0);
	for (struct disk_model *disk = from_model->disks; disk < from_model->disks + DISKS_MAX; disk++) {
		if (!*disk->file_name)
			continue;
		/* Its own file says whole sectors. */
		memset(disk->bytes + disk->size, 0, (512 - disk->size % 512) % 512);
		add_model_disk(model, disk->file_name, disk->bytes, (disk->size + 511) & ~511ull);
	}
	vm_put(vm);
	vm_put(from);
}

static void do_add_disk(void)
{
	struct vm_model *model = pick_vm();
	size_t i = pick(DISKS_MAX);
	char name[32];
	if (!model || *model->disks[i].file_name)
		return;
	struct vm *vm = vm_of(model);
	snprintf(name, sizeof name, "sd%c.img", (char)('a' + pick(26)));
	struct disk_file *file = NULL;
	bool exists = disk_of(vm, NULL, name);
	CHECK_ERR(disk_create(store, vm, name, 0644, getuid(), getgid(), &file, &why), exists ? -EEXIST : 0);
	if (!exists) {
		struct disk_model *disk = &model->disks[i];
		snprintf(disk->file_name, sizeof disk->file_name, "%s", name);
		disk->bytes = malloc(DISK_MAX);
		disk->file = file;
	}
	vm_put(vm);
}

static void do_remove_disk(void)
{
	struct vm_model *model;
	struct disk_model *disk = pick_disk(&model);
	if (!disk)
		return;
	struct vm *vm = vm_of(model);
	CHECK_ERR(disk_remove(store, vm, disk->file_name, &why), 0);
	/* Who has it open doesn't notice. */
	if (disk->file) {
		compare(model, disk);
		do_write(model, disk);
		compare(model, disk);
	}
	close_file(disk);
	drop_model_disk(disk);
	vm_put(vm);
}

static void do_rename_disk(void)
{
	struct vm_model *model;
	struct disk_model *disk = pick_disk(&model);
	char name[32];
	if (!disk)
		return;
	struct vm *vm = vm_of(model);
	snprintf(name, sizeof name, "vd%c.img", (char)('a' + pick(4)));
	CHECK_ERR(disk_rename(store, vm, disk->file_name, name, &why), 0);
	for (struct disk_model *other = model->disks; other < model->disks + DISKS_MAX; other++) {
		if (other != disk && strcmp(other->file_name, name) == 0) {
			close_file(other);
			drop_model_disk(other);
		}
	}
	snprintf(disk->file_name, sizeof disk->file_name, "%s", name);
	vm_put(vm);
}

static void do_remove(void)
{
	struct vm_model *model = pick_vm();
	bool open = false;
	if (!model)
		return;
	struct vm *vm = vm_of(model);
	for (size_t i = 0; i < DISKS_MAX; i++)
		open |= model->disks[i].file != NULL;
	CHECK_ERR(store_remove(store, vm, &why), open ? -EBUSY : 0);
	for (size_t i = 0; !open && i < DISKS_MAX; i++)
		drop_model_disk(&model->disks[i]);
	if (!open)
		*model->name = '\0';
	vm_put(vm);
}

static void do_rename(void)
{
	struct vm_model *model = pick_vm();
	if (!model)
		return;
	struct vm *vm = vm_of(model);
	new_name(model);
	CHECK_ERR(store_rename(store, vm, PLACE_CLONES, model->name, &why), 0);
	vm_put(vm);
}

static void close_all(void)
{
	for (size_t v = 0; v < VMS_MAX; v++)
		for (size_t i = 0; i < DISKS_MAX; i++)
			if (*vms[v].disks[i].file_name)
				close_disk(&vms[v].disks[i]);
}

static void do_restart(void)
{
	close_all();
	store_close(store);
	store = store_at("src", true);
}

static void compare_all(void)
{
	for (size_t v = 0; v < VMS_MAX; v++)
		for (size_t i = 0; i < DISKS_MAX; i++)
			if (*vms[v].disks[i].file_name)
				compare(&vms[v], &vms[v].disks[i]);
}

static void step(void)
{
	static void (*const of_vms[])(void) = {do_create, do_clone_snapshot, do_clone_now, do_add_disk, do_add_disk, do_remove_disk,
					       do_rename_disk, do_remove, do_rename};
	static void (*const of_disks[])(struct vm_model *, struct disk_model *) = {do_write, do_write, do_resize, do_discard,
										    do_copy_between, do_copy_between, do_copy_snapshot};
	if (random() % 3 == 0) {
		of_vms[pick(sizeof of_vms / sizeof *of_vms)]();
		return;
	}
	struct vm_model *vm;
	struct disk_model *disk = pick_disk(&vm);
	if (!disk)
		return;
	of_disks[pick(sizeof of_disks / sizeof *of_disks)](vm, disk);
	if (random() % 4 == 0)
		compare(vm, disk);
	else if (random() % 4 == 0)
		close_disk(disk);
}

/* --- SOURCE ------------------------------------------------------------------------------------------------------------- */

static void load(const char *name, size_t s)
{
	char path[400];
	found[s] = malloc(found_size);
	snprintf(path, sizeof path, "%s/%s", dir, name);
	FILE *f = fopen(path, "r");
	CHECK(f && fread(found[s], 1, found_size, f) == found_size);
	fclose(f);
}

/* base.qcow2 with an internal snapshot, and two overlays on it. */
static void make_source(void)
{
	run("cd %s/src && qemu-img create -q -f qcow2 base.qcow2 3M && qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 2M 100k' base.qcow2 >/dev/null && "
	    "qemu-img snapshot -c first base.qcow2 && qemu-io -c 'write -P 3 512k 600k' base.qcow2 >/dev/null", dir);
	run("cd %s/src && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 second.qcow2 && "
	    "qemu-io -c 'write -P 4 1M 64k' -c 'write -z 0 64k' second.qcow2 >/dev/null && "
	    "qemu-img create -q -f qcow2 -b second.qcow2 -F qcow2 web.qcow2", dir);
	run("cd %s && qemu-img convert -O raw -l first src/base.qcow2 0.raw && qemu-img convert -O raw src/base.qcow2 1.raw && "
	    "qemu-img convert -O raw src/second.qcow2 2.raw && sha256sum src/*.qcow2 >before", dir);
	load("0.raw", 0);
	load("1.raw", 1);
	load("2.raw", 2);
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	int steps = argc > 2 ? atoi(argv[2]) : 1500;
	printf("seed %u\n", seed);
	srandom(seed);
	dir_init();
	make_source();
	store = store_at("src", true);
	for (int i = 0; i < steps; i++) {
		step();
		if (random() % 150 == 0)
			do_restart();
		if (random() % 100 == 0)
			compare_all();
	}
	wait_for_jobs(store);
	compare_all();
	do_restart();
	compare_all();
	close_all();
	/* Every layer is clean, standalone and complete: what QEMU would say, without us. */
	run("cd %s/src/.vmsnapfs/layers && for f in *.qcow2; do [ -e \"$f\" ] || continue; qemu-img check -q $f || exit 1; done", dir);
	for (size_t v = 0; v < VMS_MAX; v++) {
		struct vm *vm = *vms[v].name ? vm_of(&vms[v]) : NULL;
		for (size_t i = 0; vm && i < DISKS_MAX; i++) {
			struct disk_model *disk = &vms[v].disks[i];
			char path[300];
			if (!*disk->file_name || !disk->size)
				continue;
			snprintf(path, sizeof path, "%s/want.raw", dir);
			FILE *f = fopen(path, "w");
			CHECK(f && fwrite(disk->bytes, 1, disk->size, f) == disk->size && fclose(f) == 0);
			run("qemu-img compare -q -f raw -F qcow2 %s %s", path, disk_of(vm, NULL, disk->file_name)->path);
		}
		vm_put(vm);
	}
	run("cd %s && sha256sum --quiet -c before", dir);
	/* And when all are gone, so are their files. */
	for (size_t v = 0; v < VMS_MAX; v++) {
		struct vm *vm = *vms[v].name ? vm_of(&vms[v]) : NULL;
		if (vm)
			CHECK_ERR(store_remove(store, vm, &why), 0);
		vm_put(vm);
	}
	wait_for_jobs(store);
	run("cd %s/src/.vmsnapfs && [ -z \"$(ls -A layers vms | grep -v :)\" ]", dir);
	store_close(store);
	dir_done();
	return 0;
}
