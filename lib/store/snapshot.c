#include "store/snapshot.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <uuid/uuid.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "meta/domsnapshot.h"
#include "store/manifest.h"
#include "store/store_internal.h"
#include "store/text.h"

#define UUID_LEN      36

/* --- finding ---------------------------------------------------------------------------------------------------------- */

int snapshot_find(const struct vm *vm, const char *name, size_t *ret, struct reason *why)
{
	int i = vm_snapshot_lookup(vm, name);
	if (i < 0)
		return reason_set(why, -ENOENT, "%s has no snapshot %s", vm->name, name);
	*ret = (size_t)i;
	return 0;
}

int snapshot_check_no_preview(const struct vm *now, const char *what, struct reason *why)
{
	if (!now->saved)
		return 0;
	return reason_set(why, -EBUSY, "%s is being previewed: write to actions/commit or actions/undo before %s", now->preview, what);
}

/* --- making ------------------------------------------------------------------------------------------------------------ */

char *snapshot_name_by_time(const struct vm *vm, const char *prefix)
{
	char stamp[32] = "";
	time_t now = time(NULL);
	struct tm tm;
	if (localtime_r(&now, &tm))
		strftime(stamp, sizeof stamp, "%Y-%m-%d-%H%M%S", &tm);
	char *name = NULL;
	if (asprintf(&name, "%s%s", prefix, stamp) < 0)
		return NULL;
	for (unsigned n = 2; name && vm_snapshot_index(vm, name) >= 0; n++) {
		free(take_ptr(name));
		if (asprintf(&name, "%s%s~%u", prefix, stamp, n) < 0)
			return NULL;
	}
	return name;
}

static int fill_new(struct store *store, const struct vm *vm, const char *name, struct vm_snapshot *snapshot)
{
	char text[UUID_LEN + 1];
	uuid_t uuid;
	uuid_generate(uuid);
	uuid_unparse_lower(uuid, text);
	snapshot->created = time(NULL);
	snapshot->metadata_path = manifest_snapshot_path(store, vm, text, ".xml");
	if (!snapshot->metadata_path || text_set(&snapshot->uuid, text) || text_set(&snapshot->name, name) ||
	    text_set(&snapshot->parent, vm->current >= 0 ? vm->snapshots[vm->current]->name : NULL) ||
	    text_set(&snapshot->state, heads_have_writer(store, table_entry(store, vm->id)) ? "running" : "shutoff"))
		return -ENOMEM;
	return 0;
}

struct vm_snapshot *snapshot_new(struct store *store, const struct vm *vm, const char *name)
{
	struct vm_snapshot *snapshot = vm_snapshot_new();
	if (snapshot && fill_new(store, vm, name, snapshot) < 0)
		vm_snapshot_put(take_ptr(snapshot));
	return snapshot;
}

int snapshot_add_disk(struct store *store, struct vm_snapshot *snapshot, const struct vm_disk *from, const char *layer)
{
	struct vm_disk *disk = vm_disk_add(&snapshot->disks, &snapshot->nr_disks);
	if (!disk)
		return -ENOMEM;
	disk->format = layer_format(layer);
	disk->path = layer_path(store, layer);
	if (!disk->path || text_set(&disk->file_name, from->file_name) || text_set(&disk->target, from->target) || text_set(&disk->layer, layer))
		return -ENOMEM;
	return vm_disk_copy_goal(disk, from);
}

bool snapshot_left_out(const struct vm_snapshot *snapshot, const char *target)
{
	size_t len = strlen(target);
	for (const char *p = snapshot->left_out; p && *p; p += strspn(p, " ")) {
		size_t n = strcspn(p, " ");
		if (n == len && strncmp(p, target, n) == 0)
			return true;
		p += n;
	}
	return false;
}

int snapshot_leave_out(struct vm_snapshot *snapshot, const char *target)
{
	char *list = NULL;
	bool first = !snapshot->left_out;
	if (asprintf(&list, "%s%s%s", first ? "" : snapshot->left_out, first ? "" : " ", target) < 0)
		return -ENOMEM;
	free(snapshot->left_out);
	snapshot->left_out = list;
	return 0;
}

/* --- its files ----------------------------------------------------------------------------------------------------------- */

/* STORE/vms/UUID/snapshots, made where it isn't there. */
static int open_dir(struct store *store, const struct vm *vm, struct reason *why)
{
	auto_free char *path = NULL;
	if (asprintf(&path, "%s/" SNAPSHOTS_DIR, vm->uuid) < 0)
		return -ENOMEM;
	int fd = openat(store->vms_fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	auto_close int parent = openat(store->vms_fd, vm->uuid, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int err = parent < 0 ? -errno : 0;
	if (!err && mkdirat(parent, SNAPSHOTS_DIR, 0700) < 0 && errno != EEXIST)
		err = -errno;
	if (!err)
		err = dir_sync(parent);
	if (!err && (fd = openat(parent, SNAPSHOTS_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)) < 0)
		err = -errno;
	return err ? reason_set(why, err, "%s/vms/%s: %s", store->store_dir, path, strerror(-err)) : fd;
}

static int render_file(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const char *config, char **ret,
		       struct reason *why)
{
	auto_free char *domain = NULL;
	int err = text_domain(store, vm, config, snapshot->disks, snapshot->nr_disks, &domain, why);
	auto_free struct domsnapshot_disk *disks = mem_new_array(snapshot->nr_disks, sizeof *disks);
	if (!err && !disks)
		err = -ENOMEM;
	for (size_t i = 0; !err && i < snapshot->nr_disks; i++)
		disks[i] = (struct domsnapshot_disk){.name = snapshot->disks[i].target, .location = DOMSNAPSHOT_EXTERNAL};
	const struct domsnapshot_spec spec = {
		.name = snapshot->name,
		.description = snapshot->description,
		.state = snapshot->state,
		.parent = snapshot->parent,
		.created = snapshot->created,
		.disks = disks,
		.nr_disks = snapshot->nr_disks,
		.domain_text = domain,
	};
	return err ? err : domsnapshot_render(&spec, ret);
}

int snapshot_write_file(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const char *config, struct reason *why)
{
	auto_free char *text = NULL;
	int err = render_file(store, vm, snapshot, config, &text, why);
	if (err)
		return reason_prefix(why, err, "the snapshot's description: ");
	auto_close int dirfd = open_dir(store, vm, why);
	if (dirfd < 0)
		return dirfd;
	char name[UUID_LEN + 8];
	snprintf(name, sizeof name, "%s.xml", snapshot->uuid);
	err = file_replace(dirfd, name, text, strlen(text), 0600, NULL);
	return err ? reason_set(why, err, "%s: %s", snapshot->metadata_path, strerror(-err)) : 0;
}

int snapshot_place_memory(struct store *store, const struct vm *vm, struct vm_snapshot *snapshot, int fd, struct reason *why)
{
	char name[UUID_LEN + 16], self[64];
	snprintf(name, sizeof name, "%s.memory", snapshot->uuid);
	snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
	auto_close int dirfd = open_dir(store, vm, why);
	if (dirfd < 0)
		return dirfd;
	int err = geteuid() == 0 && fchown(fd, vm->uid, vm->gid) < 0 ? -errno : 0;
	if (!err && linkat(AT_FDCWD, self, dirfd, name, AT_SYMLINK_FOLLOW) < 0)
		err = -errno;
	if (!err)
		err = dir_sync(dirfd);
	if (!err && !(snapshot->memory_path = manifest_snapshot_path(store, vm, snapshot->uuid, ".memory")))
		err = -ENOMEM;
	return err ? reason_set(why, err, "%s/vms/%s/" SNAPSHOTS_DIR "/%s: %s", store->store_dir, vm->uuid, name, strerror(-err)) : 0;
}

static bool path_ends_with(const char *path, const char *name)
{
	const char *slash = path ? strrchr(path, '/') : NULL;
	return slash && strcmp(slash + 1, name) == 0;
}

static bool is_named(const struct vm *now, const char *name)
{
	if (path_ends_with(now->memory_path, name) || (now->saved && path_ends_with(now->saved->memory_path, name)))
		return true;
	for (size_t i = 0; i < now->nr_snapshots; i++)
		if (path_ends_with(now->snapshots[i]->metadata_path, name) || path_ends_with(now->snapshots[i]->memory_path, name))
			return true;
	return false;
}

void snapshot_clear_files(struct store *store, const struct vm *now)
{
	auto_free char *path = NULL;
	if (asprintf(&path, "%s/" SNAPSHOTS_DIR, now->uuid) < 0)
		return;
	DIR *dir = dir_open_at(store->vms_fd, path);
	if (!dir)
		return;
	for (struct dirent *de; (de = readdir(dir));)
		if (strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0 && !is_named(now, de->d_name))
			unlinkat(dirfd(dir), de->d_name, 0);
	closedir(dir);
}

static bool is_in_use(const struct vm *now, const char *path)
{
	return (now->memory_path && strcmp(now->memory_path, path) == 0) ||
	       (now->saved && now->saved->memory_path && strcmp(now->saved->memory_path, path) == 0);
}

void snapshot_unlink_files(const struct vm *now, const struct vm_snapshot *snapshot)
{
	if (snapshot->metadata_path)
		unlink(snapshot->metadata_path);
	if (snapshot->memory_path && !is_in_use(now, snapshot->memory_path))
		unlink(snapshot->memory_path);
}

/* What is left is in the order in which it was. */
void snapshot_unlink_dropped(const struct vm *before, const struct vm *now)
{
	size_t kept = 0;
	for (size_t i = 0; i < before->nr_snapshots; i++) {
		if (kept < now->nr_snapshots && strcmp(now->snapshots[kept]->uuid, before->snapshots[i]->uuid) == 0)
			kept++;
		else
			snapshot_unlink_files(now, before->snapshots[i]);
	}
}
