#include "store/text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "meta/domsnapshot.h"
#include "store/heads.h"
#include "store/jobs.h"
#include "store/snapshot.h"
#include "store/space.h"
#include "store/store_internal.h"
#include "store/whole.h"

/* --- configurations ------------------------------------------------------------------------------------------------------ */

static void restrict_by_file(struct access *access, const char *path, const struct stat *st)
{
	struct access_path last = ACCESS_PATH_INIT;
	access_restrict(access, st);
	access_restrict_by_path(access, &last, path, st);
	access_path_done(&last);
}

/* Takes away from ACCESS (may be NULL) what the file that was read doesn't grant. */
static int load_file(struct store *store, const char *path, char **ret, size_t *ret_len, struct access *access, struct reason *why)
{
	struct stat st;
	auto_free char *real = NULL;
	auto_close int fd = trust_open(store->trust, NULL, path, O_RDONLY, &real, why);
	int err = fd < 0 ? fd : fstat(fd, &st) < 0 ? -errno : file_load(fd, XML_TEXT_MAX, ret, ret_len);
	if (!err && access)
		restrict_by_file(access, real, &st);
	return err && fd >= 0 ? reason_set(why, err, "%s: %s", path, strerror(-err)) : err;
}

static const struct vm_disk *disk_by_target(const struct vm_disk *disks, size_t nr, const char *target)
{
	for (size_t i = 0; i < nr; i++)
		if (disks[i].target && !strcmp(disks[i].target, target))
			return &disks[i];
	return NULL;
}

static int finish_text(int err, char **ret, size_t *ret_len)
{
	if (!err)
		*ret_len = strlen(*ret);
	return err;
}

/* The <domain> in a snapshot's metadata; -ENOENT: it has none. */
static int snapshot_config(struct store *store, const struct vm_snapshot *snapshot, char **ret, size_t *ret_len, struct access *access,
			   struct reason *why)
{
	auto_free char *text = NULL;
	size_t len = 0;
	int err = load_file(store, snapshot->metadata_path, &text, &len, access, why);
	if (err == -ENOENT)
		return reason_set(why, -EIO, "%s has gone", snapshot->metadata_path);
	if (!err)
		err = domsnapshot_domain_text(text, len, ret, why);
	return finish_text(err, ret, ret_len);
}

static int load_config(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, char **ret, size_t *ret_len,
		       struct access *access, struct reason *why)
{
	if (snapshot && snapshot->metadata_path) {
		int err = snapshot_config(store, snapshot, ret, ret_len, access, why);
		if (err != -ENOENT)
			return err;
	}
	switch (vm->kind) {
	case VM_FOUND_LIBVIRT: return load_file(store, vm->xml_path, ret, ret_len, access, why);
	case VM_FOUND_BARE: return finish_text(domain_minimal(vm->name, vm->uuid, ret), ret, ret_len);
	case VM_MANAGED: *ret = strdup(vm->config); return finish_text(*ret ? 0 : -ENOMEM, ret, ret_len);
	}
	return -EINVAL;
}

int text_config(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, char **ret, size_t *ret_len,
		struct reason *why)
{
	return load_config(store, vm, snapshot, ret, ret_len, NULL, why);
}

static void restrict_by_path(struct access *access, const char *path)
{
	struct stat st;
	if (lstat(path, &st) < 0)
		access->mode = 0;
	else
		restrict_by_file(access, path, &st);
}

/* A snapshot's configuration is in its metadata or, where these have none, the VM's. */
void store_config_access(const struct vm *vm, const struct vm_snapshot *snapshot, struct access *ret)
{
	struct stat st;
	*ret = (struct access){.uid = vm->uid, .gid = vm->gid, .mode = vm->mode};
	if (vm->kind != VM_FOUND_LIBVIRT)
		return;
	if (lstat(vm->xml_path, &st) == 0)
		access_init(ret, &st);
	restrict_by_path(ret, vm->xml_path);
	if (snapshot && snapshot->metadata_path)
		restrict_by_path(ret, snapshot->metadata_path);
}

/* The format that the domain XML must declare, where the image's name didn't. */
static enum image_format format_of(struct store *store, const struct vm_disk *disk)
{
	struct image *image = NULL;
	if (disk->format != IMAGE_PROBE || image_open(store->images, NULL, disk->path, IMAGE_PROBE, &image, NULL))
		return disk->format == IMAGE_PROBE ? IMAGE_RAW : disk->format;
	enum image_format format = image_format(image);
	image_put(image);
	return format;
}

static bool is_device(const struct vm_disk *disk)
{
	struct stat st;
	return disk->layer && disk->format == IMAGE_RAW && stat(disk->path, &st) == 0 && S_ISBLK(st.st_mode);
}

/* How the domain XML names a disk: a pending one by its file in the mount, which is the only place where it is whole. */
static int disk_file(struct store *store, const struct vm *vm, const struct vm_disk *disk, const char *mount_dir, struct domain_disk_file *file,
		     char **ret_path)
{
	bool in_mount = disk->pending_path && mount_dir;
	int n = in_mount ? asprintf(ret_path, "%s/%s/%s/disks/%s", mount_dir, vm->place == PLACE_VMS ? "vms" : "clones", vm->name,
				    disk->file_name)
			 : asprintf(ret_path, "%s", disk->path);
	if (n < 0)
		return -ENOMEM;
	*file = (struct domain_disk_file){
		.target = disk->target,
		.path = *ret_path,
		.format = image_format_name(in_mount ? IMAGE_RAW : format_of(store, disk)),
		.is_block = !in_mount && is_device(disk),
	};
	return 0;
}

/* TEXT with the disks that the store knows of. */
static int with_disks(struct store *store, const struct vm *vm, const struct vm_disk *disks, size_t nr_disks, const char *mount_dir, const char *text,
		      size_t len, char **ret, size_t *ret_len, struct reason *why)
{
	struct domain_disk_file *files = mem_new_array(nr_disks, sizeof *files);
	char **paths = mem_new_array(nr_disks, sizeof *paths);
	size_t nr = 0;
	int err = files && paths ? 0 : -ENOMEM;
	for (size_t i = 0; !err && i < nr_disks; i++) {
		if (!disks[i].target || !disks[i].path)
			continue;
		err = disk_file(store, vm, &disks[i], mount_dir, &files[nr], &paths[nr]);
		nr++;
	}
	if (!err)
		err = domain_render(text, len, vm->name, vm->uuid, files, nr, ret, why);
	for (size_t i = 0; paths && i < nr; i++)
		free(paths[i]);
	free(paths);
	free(files);
	return finish_text(err, ret, ret_len);
}

int text_domain(struct store *store, const struct vm *vm, const char *config, const struct vm_disk *disks, size_t nr_disks, char **ret,
		struct reason *why)
{
	size_t len = 0;
	return with_disks(store, vm, disks, nr_disks, NULL, config, strlen(config), ret, &len, why);
}

int store_domain_xml(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const char *mount_dir,
		     char **ret, size_t *ret_len, struct access *access, struct reason *why)
{
	auto_free char *text = NULL;
	size_t len = 0;
	int err = load_config(store, vm, snapshot, &text, &len, access, why);
	if (err)
		return err;
	if (vm->kind == VM_FOUND_LIBVIRT) {
		*ret = take_ptr(text);
		*ret_len = len;
		return 0;
	}
	const struct vm_disk *disks = snapshot ? snapshot->disks : vm->disks;
	size_t nr_disks = snapshot ? snapshot->nr_disks : vm->nr_disks;
	return with_disks(store, vm, disks, nr_disks, mount_dir, text, len, ret, ret_len, why);
}

static bool is_among(const char *const *names, size_t nr, const char *name)
{
	for (size_t i = 0; name && i < nr; i++)
		if (!strcmp(names[i], name))
			return true;
	return false;
}

/* The layer that went on where SNAPSHOT stopped, of the disk TARGET: that of the first one after it that has the disk, with only such between them
 * as haven't, or the VM's own. NULL: none goes on from it. Parents come before their children. ROOM for the names of all snapshots. */
static char *overlay_of(const struct vm *vm, const struct vm_snapshot *snapshot, const char *target, const char **room)
{
	size_t nr = 0;
	room[nr++] = snapshot->name;
	for (size_t i = 0; i < vm->nr_snapshots; i++) {
		const struct vm_snapshot *next = vm->snapshots[i];
		if (!is_among(room, nr, next->parent))
			continue;
		const struct vm_disk *disk = disk_by_target(next->disks, next->nr_disks, target);
		if (disk)
			return disk->path;
		room[nr++] = next->name;
	}
	const struct vm_disk *head = disk_by_target(vm->disks, vm->nr_disks, target);
	return head && vm->current >= 0 && is_among(room, nr, vm->snapshots[vm->current]->name) ? head->path : NULL;
}

/* The disks of the snapshot, and behind them those of the VM that went on without being part of it: libvirt lists both, and wants both in
 * the <domain>. What they point to is borrowed. */
static int collect_disks(const struct vm *vm, const struct vm_snapshot *snapshot, struct vm_disk **ret_disks,
			 struct domsnapshot_disk **ret_rows, size_t *ret_nr)
{
	size_t nr = snapshot->nr_disks;
	struct vm_disk *disks = mem_new_array(nr + vm->nr_disks, sizeof *disks);
	struct domsnapshot_disk *rows = mem_new_array(nr + vm->nr_disks, sizeof *rows);
	auto_free const char **names = mem_new_array(vm->nr_snapshots + 1, sizeof *names);
	*ret_disks = disks;
	*ret_rows = rows;
	if (!disks || !rows || !names)
		return -ENOMEM;
	for (size_t i = 0; i < nr; i++) {
		disks[i] = snapshot->disks[i];
		rows[i].location = disks[i].snapshot ? DOMSNAPSHOT_INTERNAL : DOMSNAPSHOT_EXTERNAL;
		rows[i].overlay = vm->kind == VM_MANAGED ? overlay_of(vm, snapshot, disks[i].target, names) : NULL;
	}
	for (size_t i = 0; i < vm->nr_disks; i++) {
		const struct vm_disk *disk = &vm->disks[i];
		if (disk->target && disk->path && snapshot_left_out(snapshot, disk->target) &&
		    !disk_by_target(snapshot->disks, snapshot->nr_disks, disk->target))
			disks[nr++] = *disk;
	}
	for (size_t i = 0; i < nr; i++)
		rows[i].name = disks[i].target;
	*ret_nr = nr;
	return 0;
}

static int render_snapshot(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, char **ret,
			   struct reason *why)
{
	auto_free char *config = NULL, *domain = NULL;
	auto_free struct vm_disk *disks = NULL;
	auto_free struct domsnapshot_disk *rows = NULL;
	size_t nr = 0, len = 0;
	int err = text_config(store, vm, snapshot, &config, &len, why);
	if (!err)
		err = collect_disks(vm, snapshot, &disks, &rows, &nr);
	if (!err)
		err = text_domain(store, vm, config, disks, nr, &domain, why);
	if (err)
		return err;
	const struct domsnapshot_spec spec = {
		.name = snapshot->name,
		.description = snapshot->description,
		.state = snapshot->state ? snapshot->state : "shutoff",
		.parent = snapshot->parent,
		.created = snapshot->created,
		.has_memory = snapshot->memory_disk >= 0,
		.memory_file = snapshot->memory_path,
		.disks = rows,
		.nr_disks = nr,
		.domain_text = domain,
	};
	return domsnapshot_render(&spec, ret);
}

int store_snapshot_xml(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, char **ret,
		       size_t *ret_len, struct access *access, struct reason *why)
{
	auto_free char *text = NULL;
	size_t len = 0;
	if (!snapshot->metadata_path || vm->kind == VM_MANAGED)
		return finish_text(render_snapshot(store, vm, snapshot, ret, why), ret, ret_len);
	int err = load_file(store, snapshot->metadata_path, &text, &len, access, why);
	if (!err)
		err = domsnapshot_public_text(text, len, ret, why);
	return finish_text(err, ret, ret_len);
}

/* --- status ------------------------------------------------------------------------------------------------------------------ */

static const char *kind_text(const struct vm *vm)
{
	switch (vm->kind) {
	case VM_FOUND_LIBVIRT: return "found (libvirt)";
	case VM_FOUND_BARE: return "found (disk image)";
	case VM_MANAGED: return "managed";
	}
	return "?";
}

static void add_disk_status(struct store *store, struct strbuf *b, const struct vm *vm, const struct vm_disk *disk, uint64_t *used)
{
	struct disk_stat st;
	struct reason why = {0};
	int err = disk_stat(store, vm, NULL, disk, &st, &why);
	strbuf_addf(b, "disk %s: ", disk->file_name);
	if (err) {
		strbuf_addf(b, "can't be read: %s\n", *why.text ? why.text : strerror(-err));
		return;
	}
	*used += st.allocated;
	strbuf_addf(b, "%" PRIu64 " bytes, %" PRIu64 " allocated, chain of %zu, %s\n", st.virtual_size, st.allocated, st.depth,
		    disk->path);
	if (disk->pending_path)
		strbuf_addf(b, "disk %s: its data is still in %s, snapshot %s: use it through the mount until the job has copied it\n",
			    disk->file_name, disk->pending_path, disk->pending_snapshot);
}

static void add_snapshot_status(struct store *store, struct strbuf *b, const struct vm *vm)
{
	struct space *space = NULL;
	if (vm->kind != VM_MANAGED || !vm->nr_snapshots || !store->writable || space_new(store, &space) < 0)
		return;
	for (size_t i = 0; i < vm->nr_snapshots; i++) {
		uint64_t used = 0, unique = 0;
		space_of(space, vm->snapshots[i], &used, &unique);
		strbuf_addf(b, "snapshot %s: %" PRIu64 " bytes used, %" PRIu64 " unique\n", vm->snapshots[i]->name, used, unique);
	}
	space_free(space);
}

int store_status_text(struct store *store, const struct vm *vm, char **ret, size_t *ret_len)
{
	struct strbuf b = {0};
	uint64_t used = 0;
	strbuf_addf(&b, "kind: %s\n", kind_text(vm));
	strbuf_addf(&b, "uuid: %s\n", vm->uuid);
	if (vm->kind == VM_MANAGED)
		strbuf_addf(&b, "state: %s\n", heads_in_use(store, table_entry(store, vm->id)) ? "in use" : "not in use");
	if (vm->origin)
		strbuf_addf(&b, "origin: %s\n", vm->origin);
	struct vm *whole = whole_get(store, vm_ref((struct vm *)(uintptr_t)vm));
	if (whole) {
		strbuf_addf(&b, "snapshots: %zu\n", whole->nr_snapshots);
		strbuf_addf(&b, "current: %s\n", whole->current >= 0 ? whole->snapshots[whole->current]->name : "none");
	}
	vm_put(whole);
	if (vm->preview)
		strbuf_addf(&b, "preview: %s (actions/commit keeps it, actions/undo goes back)\n", vm->preview);
	for (size_t i = 0; i < vm->nr_disks; i++)
		add_disk_status(store, &b, vm, &vm->disks[i], &used);
	strbuf_addf(&b, "space: %" PRIu64 " bytes allocated\n", used);
	add_snapshot_status(store, &b, vm);
	auto_free char *jobs = NULL;
	if (jobs_status(store, vm->id, &jobs) == 0)
		strbuf_addf(&b, "%s", *jobs ? jobs : "job: none\n");
	return strbuf_take(&b, ret, ret_len);
}
