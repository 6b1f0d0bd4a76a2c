/* The snapshots of a found libvirt VM: the metadata beside its domain XML, or in the directory of -o snapshots. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "meta/domsnapshot.h"
#include "store/libvirt.h"
#include "store/lineage.h"
#include "store/store_internal.h"

#define MAX_SNAPSHOTS 100000u /* of one VM */

/* --- which files ---------------------------------------------------------------------------------------------------- */

/* The directories that may hold snapshot metadata of a domain: beside its XML (0), and the one of -o snapshots (1). NULL: there
 * is none. */
static int metadata_dir(const struct store *store, const struct vm *vm, int which, char **ret)
{
	*ret = NULL;
	if (strchr(vm->domain_name, '/') || *vm->domain_name == '.')
		return 0;
	int dir_len = (int)(strrchr(vm->xml_path, '/') - vm->xml_path);
	bool is_beside = store->snapshots_dir && strlen(store->snapshots_dir) == (size_t)dir_len &&
			 strncmp(store->snapshots_dir, vm->xml_path, (size_t)dir_len) == 0;
	if (which == 1 && (!store->snapshots_dir || is_beside))
		return 0;
	int n = which == 1 ? asprintf(ret, "%s/%s", store->snapshots_dir, vm->domain_name)
			   : asprintf(ret, "%.*s/%s", dir_len, vm->xml_path, vm->domain_name);
	if (n < 0) {
		*ret = NULL;
		return -ENOMEM;
	}
	if (source_is_skipped(store, *ret))
		free(take_ptr(*ret));
	return 0;
}

static bool is_metadata_name(const char *name)
{
	size_t len = strlen(name);
	return *name != '.' && len > 4 && strcmp(name + len - 4, ".xml") == 0;
}

static int add_file(struct metadata_files *files, const char *dir_path, const char *name, const struct stat *st)
{
	if (mem_grow(&files->files, &files->cap_files, files->nr_files + 1, sizeof *files->files) < 0)
		return -ENOMEM;
	struct source_file *file = &files->files[files->nr_files];
	*file = (struct source_file){.stamp = stamp_make(st)};
	if (asprintf(&file->path, "%s/%s", dir_path, name) < 0)
		return -ENOMEM;
	files->nr_files++;
	return 0;
}

static int list_dir(struct metadata_files *files, const char *path)
{
	DIR *dir = dir_open_at(AT_FDCWD, path);
	if (!dir)
		return 0;
	int err = 0;
	for (struct dirent *de; !err && files->nr_files < MAX_SNAPSHOTS && (de = readdir(dir));) {
		struct stat st;
		if (is_metadata_name(de->d_name) && fstatat(dirfd(dir), de->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
			err = add_file(files, path, de->d_name, &st);
	}
	closedir(dir);
	return err;
}

static int by_path(const void *a, const void *b)
{
	return strcmp(((const struct source_file *)a)->path, ((const struct source_file *)b)->path);
}

int metadata_list(struct store *store, const struct vm *vm, struct metadata_files *ret)
{
	struct metadata_files files = {0};
	int err = 0;
	for (int which = 0; !err && which < 2; which++) {
		auto_free char *dir = NULL;
		err = metadata_dir(store, vm, which, &dir);
		if (!err && dir)
			err = list_dir(&files, dir);
	}
	if (err) {
		metadata_files_done(&files);
		return err;
	}
	if (files.nr_files)
		qsort(files.files, files.nr_files, sizeof *files.files, by_path);
	files.hash = HASH_START;
	for (size_t i = 0; i < files.nr_files; i++)
		files.hash = hash_bytes(hash_text(files.hash, files.files[i].path), &files.files[i].stamp, sizeof files.files[i].stamp);
	*ret = files;
	return 0;
}

void metadata_files_done(struct metadata_files *files)
{
	for (size_t i = 0; i < files->nr_files; i++)
		free(files->files[i].path);
	free(files->files);
	*files = (struct metadata_files){0};
}

uint64_t metadata_stamp(struct store *store, const struct vm *vm)
{
	uint64_t stamp = HASH_START;
	for (int which = 0; which < 2; which++) {
		auto_free char *dir = NULL;
		struct stat st;
		if (metadata_dir(store, vm, which, &dir))
			return 0;
		if (!dir || lstat(dir, &st) < 0)
			continue;
		if (stamp_is_fresh(&st))
			return 0;
		uint64_t words[] = {stamp, stamp_make(&st)};
		stamp = hash_bytes(HASH_START, words, sizeof words);
	}
	return stamp;
}

/* --- reading them --------------------------------------------------------------------------------------------------------- */

/* A snapshot while its VM is being read: libvirt's own name is what parents and internal snapshots go by. */
struct raw_snapshot {
	struct vm_snapshot made; /* name and parent are libvirt's still */
	bool active;
};

struct reading {
	struct store *store;
	struct vm *vm; /* without snapshots still */
	struct file_refs *refs;
	struct strbuf complaint;
	struct domain domain; /* the VM's, for metadata that hold none: read when it is needed */
	struct raw_snapshot *raws;
	size_t nr_raws, cap_raws;
};

/* Snapshot disks that were kept in the same file, or became a file of their own. */
static int add_snapshot_disk(struct reading *reading, const struct domsnapshot *meta, const struct domain_disk *from,
			     struct vm_snapshot *snapshot)
{
	enum domsnapshot_location location = domsnapshot_disk_location(meta, from->target ? from->target : "");
	if (location == DOMSNAPSHOT_NONE || snapshot->nr_disks >= LIBVIRT_DISKS_MAX)
		return 0;
	int err = libvirt_add_disk(reading->store, from, &snapshot->disks, &snapshot->nr_disks);
	if (err)
		return err;
	struct vm_disk *disk = &snapshot->disks[snapshot->nr_disks - 1];
	if (location == DOMSNAPSHOT_INTERNAL)
		err = text_set(&disk->snapshot, meta->name);
	else if (!meta->has_domain && !disk->error)
		/* The VM's file of today is the overlay that came after it. */
		vm_disk_set_error(disk, -ENOENT, "the snapshot's metadata doesn't say which file it is");
	return err ? err : libvirt_ref_disk(reading->refs, disk);
}

static int add_snapshot_memory(struct reading *reading, const struct domsnapshot *meta, struct vm_snapshot *snapshot)
{
	switch (meta->memory) {
	case DOMSNAPSHOT_NONE: return 0;
	case DOMSNAPSHOT_EXTERNAL:
		if (!meta->memory_file)
			return 0;
		if (text_set(&snapshot->memory_path, meta->memory_file))
			return -ENOMEM;
		return file_refs_add(reading->refs, meta->memory_file, IMAGE_RAW);
	case DOMSNAPSHOT_INTERNAL:
		for (size_t i = 0; snapshot->memory_disk < 0 && i < snapshot->nr_disks; i++)
			if (snapshot->disks[i].snapshot)
				snapshot->memory_disk = (int)i;
		return 0;
	}
	return 0;
}

static int load_domain(struct reading *reading)
{
	auto_free char *text = NULL;
	size_t len = 0;
	struct stat st;
	if (reading->domain.name)
		return 0;
	int err = libvirt_load_text(reading->vm->xml_path, &text, &len, &st, NULL);
	if (!err)
		err = domain_parse_text(text, len, &reading->domain, NULL);
	return err == -ENOMEM ? err : 0; /* it was good just now: the next look at the VM will see what it is */
}

static int fill_snapshot(struct reading *reading, const struct domsnapshot *meta, const char *path, struct vm_snapshot *snapshot)
{
	snapshot->memory_disk = -1;
	snapshot->created = meta->created;
	if (text_set(&snapshot->name, meta->name) || text_set(&snapshot->parent, meta->parent) ||
	    text_set(&snapshot->state, meta->state) || text_set(&snapshot->description, meta->description) ||
	    text_set(&snapshot->metadata_path, path))
		return -ENOMEM;
	int err = meta->has_domain ? 0 : load_domain(reading);
	const struct domain *domain = meta->has_domain ? &meta->domain : &reading->domain;
	for (size_t i = 0; !err && i < domain->nr_disks; i++)
		err = add_snapshot_disk(reading, meta, &domain->disks[i], snapshot);
	if (!err)
		err = add_snapshot_memory(reading, meta, snapshot);
	for (size_t i = 0; !err && i < meta->nr_disks; i++)
		if (meta->disks[i].overlay)
			err = file_refs_add(reading->refs, meta->disks[i].overlay, IMAGE_QCOW2);
	return err;
}

static int read_snapshot(struct reading *reading, const struct source_file *file)
{
	struct reason why = {0};
	struct domsnapshot meta;
	auto_free char *text = NULL;
	size_t len = 0;
	struct stat st;
	if (reading->nr_raws >= MAX_SNAPSHOTS)
		return 0;
	int err = libvirt_load_text(file->path, &text, &len, &st, &why);
	if (!err)
		err = domsnapshot_parse_text(text, len, &meta, &why);
	if (err) {
		complain(&reading->complaint, "snapshot metadata %s: %s", file->path, *why.text ? why.text : strerror(-err));
		return err == -ENOMEM ? err : 0;
	}
	err = mem_grow(&reading->raws, &reading->cap_raws, reading->nr_raws + 1, sizeof *reading->raws);
	if (!err) {
		struct raw_snapshot *raw = &reading->raws[reading->nr_raws++];
		*raw = (struct raw_snapshot){.active = meta.active};
		err = fill_snapshot(reading, &meta, file->path, &raw->made);
	}
	domsnapshot_done(&meta);
	return err;
}

static int by_time(const void *a, const void *b)
{
	const struct raw_snapshot *x = a, *y = b;
	if (x->made.created != y->made.created)
		return x->made.created < y->made.created ? -1 : 1;
	return strcmp(x->made.metadata_path, y->made.metadata_path);
}

/* Moves the raw snapshots into the description. */
static int take_snapshots(struct reading *reading)
{
	struct vm *vm = reading->vm;
	if (reading->nr_raws)
		qsort(reading->raws, reading->nr_raws, sizeof *reading->raws, by_time);
	for (size_t i = 0; i < reading->nr_raws; i++) {
		struct vm_snapshot *snapshot = vm_snapshot_add(vm);
		if (!snapshot)
			return -ENOMEM;
		*snapshot = reading->raws[i].made;
		reading->raws[i].made = (struct vm_snapshot){0};
		if (reading->raws[i].active)
			vm->current = (int)i;
	}
	return lineage_settle(vm);
}

/* Frees what take_snapshots() didn't move, by way of a description. */
static void raws_done(struct reading *reading)
{
	struct vm *vm = vm_new(VM_FOUND_LIBVIRT, PLACE_VMS);
	for (size_t i = 0; vm && i < reading->nr_raws; i++) {
		struct vm_snapshot *snapshot = vm_snapshot_add(vm);
		if (snapshot)
			*snapshot = reading->raws[i].made;
	}
	vm_put(vm);
	free(reading->raws);
}

int libvirt_read_snapshots(struct store *store, const struct vm *brief, const struct metadata_files *files, struct vm **ret,
			   struct file_refs *refs, char **ret_complaint)
{
	struct reading reading = {.store = store, .vm = vm_copy(brief), .refs = refs};
	int err = reading.vm ? 0 : -ENOMEM;
	for (size_t i = 0; !err && i < files->nr_files; i++)
		err = read_snapshot(&reading, &files->files[i]);
	if (!err)
		err = take_snapshots(&reading);
	if (!err && (reading.complaint.len || reading.complaint.failed))
		err = strbuf_take(&reading.complaint, ret_complaint, NULL);
	if (!err) {
		reading.vm->is_brief = false;
		*ret = take_ptr(reading.vm);
	}
	vm_put(reading.vm);
	strbuf_done(&reading.complaint);
	domain_done(&reading.domain);
	raws_done(&reading);
	return err;
}
