/* Found VMs from libvirt's files: a domain XML, and the snapshot metadata beside it or in the directory of -o snapshots. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "meta/domsnapshot.h"
#include "store/found.h"
#include "store/lineage.h"
#include "store/store_internal.h"

#define MAX_DISKS     1000u   /* of one VM; its disks' numbers have 12 bits */
#define MAX_SNAPSHOTS 100000u /* of one VM */

/* --- which files ---------------------------------------------------------------------------------------------------- */

/* The directories that may hold snapshot metadata of a domain: beside its XML, and the one of -o snapshots. */
static int snapshot_dir(struct store *store, const struct source_file *file, const char *name, int which, char **ret)
{
	*ret = NULL;
	if (strchr(name, '/') || *name == '.')
		return 0;
	if (which == 1 && !store->snapshots_dir)
		return 0;
	int dir_len = (int)(strrchr(file->path, '/') - file->path);
	int n = which == 1 ? asprintf(ret, "%s/%s/", store->snapshots_dir, name)
			   : asprintf(ret, "%.*s/%s/", dir_len, file->path, name);
	return n < 0 ? -ENOMEM : 0;
}

static bool ends_with(const char *text, const char *ending)
{
	size_t len = strlen(text), ending_len = strlen(ending);
	return len > ending_len && strcmp(text + len - ending_len, ending) == 0;
}

/* Calls FN for each snapshot file of the domain, until it fails. */
typedef int (*snapshot_file_fn)(void *ctx, const struct source_file *file);

static int each_snapshot_file(struct store *store, const struct source *source, const struct source_file *xml,
			      const char *name, snapshot_file_fn fn, void *ctx)
{
	int err = 0;
	for (int which = 0; !err && which < 2; which++) {
		auto_free char *dir = NULL;
		err = snapshot_dir(store, xml, name, which, &dir);
		if (!dir)
			continue;
		size_t len = strlen(dir);
		for (size_t i = source_lower_bound(source, dir); !err && i < source->nr_files; i++) {
			const char *path = source->files[i].path;
			if (strncmp(path, dir, len) != 0)
				break;
			if (!strchr(path + len, '/') && ends_with(path, ".xml"))
				err = fn(ctx, &source->files[i]);
		}
	}
	return err;
}

static int hash_file(void *ctx, const struct source_file *file)
{
	uint64_t *hash = ctx;
	*hash = hash_bytes(hash_text(*hash, file->path), &file->stamp, sizeof file->stamp);
	return 0;
}

uint64_t libvirt_hash(struct store *store, const struct source *source, const struct source_file *file, const char *name)
{
	uint64_t hash = HASH_START;
	hash_file(&hash, file);
	return each_snapshot_file(store, source, file, name, hash_file, &hash) ? 0 : hash;
}

static int load_text(struct store *store, const char *path, char **ret_text, size_t *ret_len, struct stat *ret_st,
		     struct reason *why)
{
	auto_close int fd = trust_open(store->trust, NULL, path, O_RDONLY, NULL, why);
	if (fd < 0)
		return fd;
	if (fstat(fd, ret_st) < 0)
		return -errno;
	int err = file_load(fd, XML_TEXT_MAX, ret_text, ret_len);
	return err ? reason_set(why, err, "%s: %s", path, strerror(-err)) : 0;
}

/* --- disks ------------------------------------------------------------------------------------------------------------- */

/* What keeps a disk of the configuration from being read at all. */
static int disk_problem(struct store *store, const struct domain_disk *disk, char **ret_text)
{
	int err = 0, n = 0;
	enum image_format format;
	if (disk->kind == DOMAIN_DISK_OTHER) {
		err = -EOPNOTSUPP;
		n = asprintf(ret_text, "a disk of type %s isn't a file", disk->source_type ? disk->source_type : "unknown");
	} else if (disk->encrypted) {
		err = -EOPNOTSUPP;
		n = asprintf(ret_text, "the disk is encrypted");
	} else if (!disk->path) {
		err = -ENOENT;
		n = asprintf(ret_text, "the configuration names no file");
	} else if (*disk->path != '/') {
		err = -ENOENT;
		n = asprintf(ret_text, "%s: not an absolute path", disk->path);
	} else if (disk->kind == DOMAIN_DISK_BLOCK && !store->allow_devices) {
		err = -EOPNOTSUPP;
		n = asprintf(ret_text, "%s is a block device: -o block_devices allows them", disk->path);
	} else if (image_format_parse(disk->format, &format) < 0) {
		err = -EOPNOTSUPP;
		n = asprintf(ret_text, "%s: images of format %s aren't read", disk->path, disk->format);
	}
	return n < 0 ? -ENOMEM : err;
}

/* "vda" gives "vda.img", made valid and unique among DISKS. The caller frees. */
static char *disk_file_name(const char *target, const struct vm_disk *disks, size_t nr)
{
	auto_free char *valid = name_make_valid(target);
	char *name = NULL;
	if (!valid)
		return NULL;
	if (strlen(valid) > 240)
		valid[240] = '\0';
	for (unsigned n = 1;; n++) {
		if ((n == 1 ? asprintf(&name, "%s.img", valid) : asprintf(&name, "%s~%u.img", valid, n)) < 0)
			return NULL;
		if (!vm_find_disk(disks, nr, name))
			return name;
		free(name);
	}
}

static int add_disk(struct store *store, const struct domain_disk *from, struct vm_disk **disks, size_t *nr_disks)
{
	const char *target = from->target ? from->target : "disk";
	char *file_name = disk_file_name(target, *disks, *nr_disks);
	struct vm_disk *disk = file_name ? vm_disk_add(disks, nr_disks) : NULL;
	if (!disk) {
		free(file_name);
		return -ENOMEM;
	}
	disk->file_name = file_name;
	disk->shareable = from->shareable;
	image_format_parse(from->format ? from->format : "raw", &disk->format);
	if (text_set(&disk->target, target) || text_set(&disk->path, from->path))
		return -ENOMEM;
	auto_free char *text = NULL;
	int err = disk_problem(store, from, &text);
	if (err == -ENOMEM)
		return err;
	if (err)
		vm_disk_set_error(disk, err, text);
	return 0;
}

static int ref_disk(struct file_refs *refs, const struct vm_disk *disk)
{
	return disk->path && !disk->error ? file_refs_add(refs, disk->path, disk->format) : 0;
}

static int read_disks(struct store *store, const struct domain *domain, struct found_vm *ret, struct strbuf *complaint)
{
	struct vm *vm = ret->vm;
	size_t nr = domain->nr_disks < MAX_DISKS ? domain->nr_disks : MAX_DISKS;
	if (nr < domain->nr_disks)
		complain(complaint, "%zu disks: only the first %u are shown", domain->nr_disks, MAX_DISKS);
	for (size_t i = 0; i < nr; i++) {
		int err = add_disk(store, &domain->disks[i], &vm->disks, &vm->nr_disks);
		if (!err)
			err = ref_disk(&ret->refs, &vm->disks[vm->nr_disks - 1]);
		if (err)
			return err;
	}
	return 0;
}

/* --- snapshots ------------------------------------------------------------------------------------------------------------ */

/* A snapshot while its VM is being read: libvirt's own name is what parents and internal snapshots go by. */
struct raw_snapshot {
	struct vm_snapshot made; /* name and parent are libvirt's still */
	bool active;
};

struct reading {
	struct store *store;
	struct found_vm *found;
	struct strbuf *complaint;
	struct domain *domain; /* the VM's: for metadata that hold none */
	struct raw_snapshot *raws;
	size_t nr_raws, cap_raws;
};

/* Snapshot disks that were kept in the same file, or became a file of their own. */
static int add_snapshot_disk(struct reading *reading, const struct domsnapshot *meta, const struct domain_disk *from,
			     struct vm_snapshot *snapshot)
{
	enum domsnapshot_location location = domsnapshot_disk_location(meta, from->target ? from->target : "");
	if (location == DOMSNAPSHOT_NONE || snapshot->nr_disks >= MAX_DISKS)
		return 0;
	int err = add_disk(reading->store, from, &snapshot->disks, &snapshot->nr_disks);
	if (err)
		return err;
	struct vm_disk *disk = &snapshot->disks[snapshot->nr_disks - 1];
	if (location == DOMSNAPSHOT_INTERNAL)
		err = text_set(&disk->snapshot, meta->name);
	else if (!meta->has_domain && !disk->error)
		/* The VM's file of today is the overlay that came after it. */
		vm_disk_set_error(disk, -ENOENT, "the snapshot's metadata doesn't say which file it is");
	return err ? err : ref_disk(&reading->found->refs, disk);
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
		return file_refs_add(&reading->found->refs, meta->memory_file, IMAGE_RAW);
	case DOMSNAPSHOT_INTERNAL:
		for (size_t i = 0; snapshot->memory_disk < 0 && i < snapshot->nr_disks; i++)
			if (snapshot->disks[i].snapshot)
				snapshot->memory_disk = (int)i;
		return 0;
	}
	return 0;
}

static int fill_snapshot(struct reading *reading, const struct domsnapshot *meta, const char *path, struct vm_snapshot *snapshot)
{
	snapshot->memory_disk = -1;
	snapshot->created = meta->created;
	if (text_set(&snapshot->name, meta->name) || text_set(&snapshot->parent, meta->parent) ||
	    text_set(&snapshot->state, meta->state) || text_set(&snapshot->description, meta->description) ||
	    text_set(&snapshot->metadata_path, path))
		return -ENOMEM;
	const struct domain *domain = meta->has_domain ? &meta->domain : reading->domain;
	int err = 0;
	for (size_t i = 0; !err && i < domain->nr_disks; i++)
		err = add_snapshot_disk(reading, meta, &domain->disks[i], snapshot);
	if (!err)
		err = add_snapshot_memory(reading, meta, snapshot);
	for (size_t i = 0; !err && i < meta->nr_disks; i++)
		if (meta->disks[i].overlay)
			err = file_refs_add(&reading->found->refs, meta->disks[i].overlay, IMAGE_QCOW2);
	return err;
}

static int read_snapshot(void *ctx, const struct source_file *file)
{
	struct reading *reading = ctx;
	struct reason why = {0};
	struct domsnapshot meta;
	auto_free char *text = NULL;
	size_t len = 0;
	struct stat st;
	if (reading->nr_raws >= MAX_SNAPSHOTS)
		return 0;
	int err = load_text(reading->store, file->path, &text, &len, &st, &why);
	if (!err)
		err = domsnapshot_parse_text(text, len, &meta, &why);
	if (err) {
		complain(reading->complaint, "snapshot metadata %s: %s", file->path, *why.text ? why.text : strerror(-err));
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
	struct vm *vm = reading->found->vm;
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

static int read_snapshots(struct store *store, const struct source *source, const struct source_file *file,
			  struct domain *domain, struct found_vm *ret, struct strbuf *complaint)
{
	struct reading reading = {.store = store, .found = ret, .complaint = complaint, .domain = domain};
	int err = each_snapshot_file(store, source, file, domain->name, read_snapshot, &reading);
	if (!err)
		err = take_snapshots(&reading);
	raws_done(&reading);
	return err;
}

/* --- the VM ------------------------------------------------------------------------------------------------------------------ */

static int fill_vm(struct vm *vm, const struct domain *domain, const struct source_file *file, const struct stat *st)
{
	vm->changed = st->st_mtim;
	vm->uid = st->st_uid;
	vm->gid = st->st_gid;
	vm->mode = st->st_mode & 0444;
	vm->name = name_make_valid(domain->name);
	if (!vm->name || text_set(&vm->xml_path, file->path))
		return -ENOMEM;
	if (domain->uuid)
		return text_set(&vm->uuid, domain->uuid);
	vm->uuid = uuid_of_path(file->path);
	return vm->uuid ? 0 : -ENOMEM;
}

int libvirt_read(struct store *store, const struct source *source, const struct source_file *file, struct found_vm *ret,
		 struct reason *why)
{
	auto_free char *text = NULL;
	size_t len = 0;
	struct stat st;
	struct domain domain;
	int err = load_text(store, file->path, &text, &len, &st, why);
	if (!err && (err = domain_parse_text(text, len, &domain, why)))
		reason_prefix(why, err, "%s: ", file->path);
	if (err)
		return err;
	struct strbuf complaint = {0};
	ret->vm = vm_new(VM_FOUND_LIBVIRT, PLACE_VMS);
	err = ret->vm ? fill_vm(ret->vm, &domain, file, &st) : -ENOMEM;
	if (!err)
		err = text_set(&ret->domain_name, domain.name);
	if (!err && domain.nvram)
		err = file_refs_add(&ret->refs, domain.nvram, IMAGE_RAW);
	if (!err)
		err = read_disks(store, &domain, ret, &complaint);
	if (!err)
		err = read_snapshots(store, source, file, &domain, ret, &complaint);
	domain_done(&domain);
	if (!err && complaint.len)
		err = strbuf_take(&complaint, &ret->complaint, NULL);
	strbuf_done(&complaint);
	return err;
}
