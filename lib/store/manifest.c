#include "store/manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uuid/uuid.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "base/strbuf.h"
#include "meta/domain.h"
#include "meta/xml.h"
#include "store/spare.h"
#include "store/store_internal.h"

static const char *const place_words[NR_PLACES] = {[PLACE_VMS] = "vms", [PLACE_CLONES] = "clones", [PLACE_POOLS] = "pools"};

int manifest_check_file_name(const char *name)
{
	if (strlen(name) > 255)
		return -ENAMETOOLONG;
	return name_check(name + strspn(name, "."));
}

char *manifest_target_of(const char *file_name)
{
	size_t len = strspn(file_name, "abcdefghijklmnopqrstuvwxyz");
	return len >= 3 && strcmp(file_name + len, ".img") == 0 ? strndup(file_name, len) : NULL;
}

/* --- saving --------------------------------------------------------------------------------------------------------- */

static void add_attr(struct strbuf *b, const char *name, const char *value)
{
	if (!value)
		return;
	strbuf_addf(b, " %s='", name);
	strbuf_add_xml_exact(b, value);
	strbuf_addf(b, "'");
}

static void add_element(struct strbuf *b, const char *indent, const char *name, const char *text)
{
	if (!text)
		return;
	strbuf_addf(b, "%s<%s>", indent, name);
	strbuf_add_xml_exact(b, text);
	strbuf_addf(b, "</%s>\n", name);
}

static void add_pending(struct strbuf *b, const struct vm_disk *disk, const char *indent)
{
	strbuf_addf(b, "%s  <pending", indent);
	add_attr(b, "path", disk->pending_path);
	add_attr(b, "format", image_format_name(disk->pending_format));
	add_attr(b, "snapshot", disk->pending_snapshot);
	add_attr(b, "base", disk->pending_base);
	add_attr(b, "row", disk->pending_row);
	strbuf_addf(b, "/>\n");
}

static void add_goal(struct strbuf *b, const struct vm_disk *disk, const char *indent)
{
	strbuf_addf(b, "%s  <full", indent);
	add_attr(b, "base", disk->full_base);
	add_attr(b, "preallocate", disk->preallocate ? "yes" : NULL);
	strbuf_addf(b, "/>\n");
}

static void add_disk(struct strbuf *b, const struct vm_disk *disk, const char *indent)
{
	strbuf_addf(b, "%s<disk", indent);
	add_attr(b, "target", disk->target);
	add_attr(b, "file", disk->file_name);
	add_attr(b, "layer", disk->layer);
	add_attr(b, "format", image_format_name(disk->format));
	if (!disk->pending_path && !disk->full) {
		strbuf_addf(b, "/>\n");
		return;
	}
	strbuf_addf(b, ">\n");
	if (disk->pending_path)
		add_pending(b, disk, indent);
	if (disk->full)
		add_goal(b, disk, indent);
	strbuf_addf(b, "%s</disk>\n", indent);
}

static const char *uuid_of_snapshot(const struct vm *vm, const char *name)
{
	if (name && vm->nr_snapshots > 1 && strcmp(vm->snapshots[vm->nr_snapshots - 2]->name, name) == 0)
		return vm->snapshots[vm->nr_snapshots - 2]->uuid; /* of the newest it mostly is */
	const struct vm_snapshot *snapshot = name ? vm_find_snapshot(vm, name) : NULL;
	return snapshot ? snapshot->uuid : NULL;
}

/* The UUID of the snapshot whose RAM that is: its file is named by it. */
static void add_memory_attr(struct strbuf *b, const char *name, const char *path)
{
	const char *slash = path ? strrchr(path, '/') : NULL;
	if (slash)
		strbuf_addf(b, " %s='%.36s'", name, slash + 1);
}

static void add_snapshot(struct strbuf *b, const struct vm *vm, const struct vm_snapshot *snapshot, const char *element)
{
	strbuf_addf(b, "  <%s", element);
	add_attr(b, "uuid", snapshot->uuid);
	add_attr(b, "parent", uuid_of_snapshot(vm, snapshot->parent));
	strbuf_addf(b, " created='%" PRId64 "'", snapshot->created);
	add_attr(b, "state", snapshot->state);
	add_attr(b, "left-out", snapshot->left_out);
	add_memory_attr(b, "memory", snapshot->memory_path);
	strbuf_addf(b, ">\n");
	add_element(b, "    ", "name", snapshot->name);
	add_element(b, "    ", "config", snapshot->config);
	add_element(b, "    ", "description", snapshot->description);
	for (size_t i = 0; i < snapshot->nr_disks; i++)
		add_disk(b, &snapshot->disks[i], "    ");
	strbuf_addf(b, "  </%s>\n", element);
}

/* A snapshot's element stays as it is: what was written once, and read back then, is only copied. */
static void add_snapshots(struct strbuf *b, const struct vm *vm, bool fresh_only)
{
	for (size_t i = 0; i < vm->nr_snapshots; i++) {
		const struct vm_snapshot *snapshot = vm->snapshots[i];
		if (!snapshot->row)
			add_snapshot(b, vm, snapshot, "snapshot");
		else if (!fresh_only)
			strbuf_add(b, snapshot->row, strlen(snapshot->row));
	}
}

static void keep_rows(const struct vm *vm)
{
	for (size_t i = 0; i < vm->nr_snapshots; i++) {
		struct strbuf b = {0};
		if (vm->snapshots[i]->row)
			continue;
		add_snapshot(&b, vm, vm->snapshots[i], "snapshot");
		if (strbuf_take(&b, &vm->snapshots[i]->row, NULL) < 0)
			vm->snapshots[i]->row = NULL; /* then it is made anew each time */
		strbuf_done(&b);
	}
}

/* FRESH_ONLY: without the snapshots that were written before. */
static int render(const struct vm *vm, bool fresh_only, char **ret_text, size_t *ret_len)
{
	struct strbuf b = {0};
	strbuf_addf(&b, "<vm");
	add_attr(&b, "uuid", vm->uuid);
	add_attr(&b, "place", place_words[vm->place]);
	strbuf_addf(&b, " created='%" PRId64 "' mode='%04o'>\n", vm->created, (unsigned)vm->mode);
	add_element(&b, "  ", "name", vm->name);
	add_element(&b, "  ", "origin", vm->origin);
	for (size_t i = 0; i < vm->nr_disks; i++)
		if (!vm->disks[i].found)
			add_disk(&b, &vm->disks[i], "  ");
	add_snapshots(&b, vm, fresh_only);
	if (vm->current >= 0) {
		strbuf_addf(&b, "  <current");
		add_attr(&b, "snapshot", vm->snapshots[vm->current]->uuid);
		strbuf_addf(&b, "/>\n");
	}
	if (vm->saved)
		add_snapshot(&b, vm, vm->saved, "saved");
	add_element(&b, "  ", "preview", vm->preview);
	if (vm->memory_path) {
		strbuf_addf(&b, "  <memory");
		add_memory_attr(&b, "snapshot", vm->memory_path);
		strbuf_addf(&b, "/>\n");
	}
	add_element(&b, "  ", "config", vm->config);
	strbuf_addf(&b, "</vm>\n");
	return strbuf_take(&b, ret_text, ret_len);
}

static int parse(const char *uuid, const char *text, size_t len, struct vm **ret, struct reason *why);

/* What is written must be what a later start reads: better refused now than lost then. */
static int check_readable(const struct vm *vm, struct reason *why)
{
	struct vm *again = NULL;
	auto_free char *text = NULL;
	size_t len = 0, nr_fresh = 0;
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		nr_fresh += !vm->snapshots[i]->row;
	int err = render(vm, true, &text, &len);
	if (!err)
		err = parse(vm->uuid, text, len, &again, why);
	if (err)
		return reason_prefix(why, err == -EUCLEAN ? -EINVAL : err, "the VM's description can't be written as XML: ");
	bool same = strcmp(again->name, vm->name) == 0 && strcmp(again->config, vm->config) == 0 &&
		    again->nr_snapshots == nr_fresh;
	vm_put(again);
	return same ? 0 : reason_set(why, -EINVAL, "the VM's name or configuration can't be written as XML");
}

int manifest_save(struct store *store, struct vm *vm, bool *ret_unsure, struct reason *why)
{
	auto_free char *text = NULL;
	size_t len = 0;
	int err = check_readable(vm, why);
	if (err)
		return err;
	keep_rows(vm);
	err = render(vm, false, &text, &len);
	if (!err && len > XML_TEXT_MAX)
		err = reason_set(why, -EFBIG, "the VM has too many snapshots: delete some");
	if (err)
		return err;
	auto_close int dirfd = openat(store->vms_fd, vm->uuid, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dirfd < 0)
		return reason_set(why, -errno, "%s/vms/%s: %s", store->store_dir, vm->uuid, strerror(errno));
	err = file_replace(dirfd, MANIFEST_NAME, text, len, 0600, ret_unsure);
	if (err == -ENOSPC || err == -EDQUOT)
		err = spare_replace(store, dirfd, MANIFEST_NAME, text, len, ret_unsure) ? err : 0;
	else if (!err)
		spare_restore(store);
	if (err)
		return reason_set(why, err, "%s/vms/%s/" MANIFEST_NAME ": %s", store->store_dir, vm->uuid, strerror(-err));
	struct stat st;
	if (fstatat(dirfd, MANIFEST_NAME, &st, AT_SYMLINK_NOFOLLOW) == 0)
		vm->changed = st.st_mtim;
	return 0;
}

int manifest_remove(struct store *store, const struct vm *vm, bool *ret_unsure)
{
	auto_close int dirfd = openat(store->vms_fd, vm->uuid, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int err = dirfd < 0 ? -errno : 0;
	if (err)
		return err;
	err = unlinkat(dirfd, MANIFEST_NAME, 0) < 0 ? -errno : dir_sync(dirfd);
	*ret_unsure = err;
	return err;
}

/* --- loading ------------------------------------------------------------------------------------------------------------ */

/* The content of NODE, not trimmed; NULL: absent. */
static char *exact_text(xmlNodePtr parent, const char *name)
{
	xmlNodePtr node = xml_child(parent, name);
	xmlChar *content = node ? xmlNodeGetContent(node) : NULL;
	char *text = content ? strdup((const char *)content) : NULL;
	xmlFree(content);
	return text;
}

static int bad(struct reason *why, const char *what)
{
	return reason_set(why, -EUCLEAN, "bad or missing %s", what);
}

static int parse_pending(xmlNodePtr node, struct vm_disk *disk, struct reason *why)
{
	auto_free char *format = xml_attr(node, "format");
	disk->pending_path = xml_attr(node, "path");
	disk->pending_snapshot = xml_attr(node, "snapshot");
	disk->pending_base = xml_attr(node, "base");
	disk->pending_row = xml_attr(node, "row");
	if (!disk->pending_path || *disk->pending_path != '/' || !disk->pending_snapshot || !disk->pending_row)
		return bad(why, "<pending>");
	if (!disk->pending_base || !layer_name_is_valid(disk->pending_base) || layer_format(disk->pending_base) != IMAGE_RAW)
		return bad(why, "base of <pending>");
	if (!format || image_format_parse(format, &disk->pending_format) < 0)
		return bad(why, "format of <pending>");
	return 0;
}

static int parse_goal(xmlNodePtr node, struct vm_disk *disk, struct reason *why)
{
	auto_free char *preallocate = xml_attr(node, "preallocate");
	disk->full = true;
	disk->preallocate = preallocate && strcmp(preallocate, "yes") == 0;
	disk->full_base = xml_attr(node, "base");
	if (disk->full_base && (!layer_name_is_valid(disk->full_base) || layer_format(disk->full_base) != IMAGE_RAW))
		return bad(why, "base of <full>");
	return 0;
}

static int parse_disk(xmlNodePtr node, struct vm_disk **disks, size_t *nr_disks, struct reason *why)
{
	auto_free char *file = xml_attr(node, "file");
	if (!file || manifest_check_file_name(file) < 0 || vm_find_disk(*disks, *nr_disks, file))
		return bad(why, "file of <disk>");
	if (*nr_disks >= (1u << DISK_ID_BITS) - 1)
		return bad(why, "number of disks");
	struct vm_disk *disk = vm_disk_add(disks, nr_disks);
	if (!disk)
		return -ENOMEM;
	disk->file_name = take_ptr(file);
	disk->target = xml_attr(node, "target");
	auto_free char *wanted = manifest_target_of(disk->file_name);
	if (disk->target && (!wanted || strcmp(wanted, disk->target) != 0))
		return bad(why, "target of <disk>");
	auto_free char *format = xml_attr(node, "format");
	if (!format || image_format_parse(format, &disk->format) < 0 || (disk->format != IMAGE_QCOW2 && disk->format != IMAGE_RAW))
		return bad(why, "format of <disk>");
	disk->layer = xml_attr(node, "layer");
	if (!disk->layer || !layer_name_is_valid(disk->layer) || layer_format(disk->layer) != disk->format)
		return bad(why, "layer of <disk>");
	xmlNodePtr pending = xml_child(node, "pending"), goal = xml_child(node, "full");
	int err = pending ? parse_pending(pending, disk, why) : 0;
	return !err && goal ? parse_goal(goal, disk, why) : err;
}

/* --- loading: snapshots ----------------------------------------------------------------------------------------------- */

static bool is_uuid(const char *text)
{
	uuid_t uuid;
	return text && strlen(text) == 36 && uuid_parse(text, uuid) == 0;
}

/* PARENT is a UUID until all are read. The files' paths are put in by add_facts(). */
static int parse_snapshot_facts(xmlNodePtr node, struct vm_snapshot *snapshot, bool is_named, struct reason *why)
{
	auto_free char *created = xml_attr(node, "created");
	snapshot->uuid = xml_attr(node, "uuid");
	snapshot->name = exact_text(node, "name");
	snapshot->config = exact_text(node, "config");
	snapshot->parent = xml_attr(node, "parent");
	snapshot->state = xml_attr(node, "state");
	snapshot->left_out = xml_attr(node, "left-out");
	snapshot->memory_path = xml_attr(node, "memory"); /* the UUID in its name, until all is read */
	snapshot->description = exact_text(node, "description");
	snapshot->created = created ? strtoll(created, NULL, 10) : 0;
	if (!is_uuid(snapshot->uuid))
		return bad(why, "uuid of a snapshot");
	if (is_named && (!snapshot->name || name_check(snapshot->name) < 0))
		return bad(why, "name of a snapshot");
	if (snapshot->memory_path && !is_uuid(snapshot->memory_path))
		return bad(why, "memory of a snapshot");
	for (xmlNodePtr disk = xml_child(node, "disk"); disk; disk = xml_next(disk, "disk")) {
		int err = parse_disk(disk, &snapshot->disks, &snapshot->nr_disks, why);
		if (err)
			return err;
	}
	return 0;
}

static int parse_snapshot(xmlNodePtr node, struct vm *vm, struct reason *why)
{
	struct vm_snapshot *snapshot = vm_snapshot_add(vm);
	return snapshot ? parse_snapshot_facts(node, snapshot, true, why) : -ENOMEM;
}

static void parse_current(xmlNodePtr root, struct vm *vm)
{
	xmlNodePtr node = xml_child(root, "current");
	auto_free char *uuid = node ? xml_attr(node, "snapshot") : NULL;
	for (size_t i = 0; uuid && i < vm->nr_snapshots; i++)
		if (strcmp(vm->snapshots[i]->uuid, uuid) == 0)
			vm->current = (int)i;
}

struct uuid_row {
	const char *uuid;
	const char *name;
};

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct uuid_row *)a)->name, ((const struct uuid_row *)b)->name);
}

/* ROWS are left in order of name. */
static int check_names(struct uuid_row *rows, size_t nr, struct reason *why)
{
	qsort(rows, nr, sizeof *rows, by_name);
	for (size_t i = 1; i < nr; i++)
		if (strcmp(rows[i].name, rows[i - 1].name) == 0)
			return bad(why, "name of a snapshot");
	return 0;
}

static int by_uuid(const void *a, const void *b)
{
	return strcmp(((const struct uuid_row *)a)->uuid, ((const struct uuid_row *)b)->uuid);
}

/* UUIDs of parents become names; one that isn't there any more is none. */
static int name_parent(const struct uuid_row *rows, size_t nr, struct vm_snapshot *snapshot)
{
	const struct uuid_row key = {.uuid = snapshot->parent};
	const struct uuid_row *row = snapshot->parent && nr ? bsearch(&key, rows, nr, sizeof *rows, by_uuid) : NULL;
	return text_set(&snapshot->parent, row && strcmp(row->uuid, snapshot->uuid) != 0 ? row->name : NULL);
}

static int name_parents(struct vm *vm, struct reason *why)
{
	auto_free struct uuid_row *rows = mem_new_array(vm->nr_snapshots, sizeof *rows);
	if (!rows)
		return -ENOMEM;
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		rows[i] = (struct uuid_row){vm->snapshots[i]->uuid, vm->snapshots[i]->name};
	int err = check_names(rows, vm->nr_snapshots, why);
	qsort(rows, vm->nr_snapshots, sizeof *rows, by_uuid);
	for (size_t i = 0; !err && i < vm->nr_snapshots; i++)
		err = i && strcmp(rows[i].uuid, rows[i - 1].uuid) == 0 ? bad(why, "uuid of a snapshot")
								       : name_parent(rows, vm->nr_snapshots, vm->snapshots[i]);
	return !err && vm->saved ? name_parent(rows, vm->nr_snapshots, vm->saved) : err;
}

static int parse_snapshots(xmlNodePtr root, struct vm *vm, struct reason *why)
{
	int err = 0;
	for (xmlNodePtr node = xml_child(root, "snapshot"); !err && node; node = xml_next(node, "snapshot"))
		err = parse_snapshot(node, vm, why);
	if (!err)
		parse_current(root, vm);
	xmlNodePtr saved = xml_child(root, "saved");
	if (!err && saved) {
		vm->saved = vm_snapshot_new();
		err = vm->saved ? parse_snapshot_facts(saved, vm->saved, false, why) : -ENOMEM;
		vm->preview = exact_text(root, "preview");
		if (!err && !vm->preview)
			err = bad(why, "<preview>");
	}
	xmlNodePtr memory = xml_child(root, "memory");
	if (!err && memory) {
		vm->memory_path = xml_attr(memory, "snapshot");
		if (!is_uuid(vm->memory_path))
			err = bad(why, "snapshot of <memory>");
	}
	return err ? err : name_parents(vm, why);
}

/* --- loading: the whole ----------------------------------------------------------------------------------------------- */

static int parse_identity(xmlNodePtr root, const char *uuid, struct vm *vm, struct reason *why)
{
	auto_free char *place = xml_attr(root, "place");
	auto_free char *created = xml_attr(root, "created");
	auto_free char *mode = xml_attr(root, "mode");
	vm->uuid = xml_attr(root, "uuid");
	if (!vm->uuid || strcmp(vm->uuid, uuid) != 0)
		return bad(why, "uuid");
	int word = 0;
	while (word < NR_PLACES && (!place || strcmp(place, place_words[word]) != 0))
		word++;
	if (word == NR_PLACES)
		return bad(why, "place");
	vm->place = (enum vm_place)word;
	vm->created = created ? strtoll(created, NULL, 10) : 0;
	vm->mode = mode ? (mode_t)strtoul(mode, NULL, 8) & 0444 : 0400;
	vm->name = exact_text(root, "name");
	if (!vm->name || name_check(vm->name) < 0)
		return bad(why, "name");
	vm->origin = exact_text(root, "origin");
	return 0;
}

static int parse_root(xmlNodePtr root, const char *uuid, struct vm *vm, struct reason *why)
{
	if (!root || strcmp((const char *)root->name, "vm") != 0)
		return bad(why, "<vm>");
	int err = parse_identity(root, uuid, vm, why);
	for (xmlNodePtr node = xml_child(root, "disk"); !err && node; node = xml_next(node, "disk"))
		err = parse_disk(node, &vm->disks, &vm->nr_disks, why);
	if (!err)
		err = parse_snapshots(root, vm, why);
	if (err)
		return err;
	vm->config = exact_text(root, "config");
	if (!vm->config)
		return bad(why, "config");
	struct domain domain;
	err = domain_parse_text(vm->config, strlen(vm->config), &domain, why);
	if (!err)
		domain_done(&domain);
	return err;
}

static int parse(const char *uuid, const char *text, size_t len, struct vm **ret, struct reason *why)
{
	xmlDocPtr doc = NULL;
	int err = xml_parse(text, len, &doc, why);
	if (err)
		return err;
	struct vm *vm = vm_new(VM_MANAGED, PLACE_CLONES);
	err = vm ? parse_root(xmlDocGetRootElement(doc), uuid, vm, why) : -ENOMEM;
	xmlFreeDoc(doc);
	if (err)
		vm_put(vm);
	else
		*ret = vm;
	return err;
}

char *manifest_snapshot_path(struct store *store, const struct vm *vm, const char *snapshot_uuid, const char *ending)
{
	char *path = NULL;
	return asprintf(&path, "%s/vms/%s/snapshots/%s%s", store->store_dir, vm->uuid, snapshot_uuid, ending) < 0 ? NULL : path;
}

static int set_path(struct store *store, const struct vm *vm, const char *snapshot_uuid, const char *ending, char **field)
{
	char *path = manifest_snapshot_path(store, vm, snapshot_uuid, ending);
	if (!path)
		return -ENOMEM;
	free(*field);
	*field = path;
	return 0;
}

static int add_disk_paths(struct store *store, struct vm_disk *disks, size_t nr_disks)
{
	for (size_t i = 0; i < nr_disks; i++) {
		disks[i].path = layer_path(store, disks[i].layer);
		if (!disks[i].path)
			return -ENOMEM;
	}
	return 0;
}

static int add_snapshot_paths(struct store *store, const struct vm *vm, struct vm_snapshot *snapshot)
{
	int err = add_disk_paths(store, snapshot->disks, snapshot->nr_disks);
	if (!err)
		err = set_path(store, vm, snapshot->uuid, ".xml", &snapshot->metadata_path);
	if (!err && snapshot->memory_path)
		err = set_path(store, vm, snapshot->memory_path, ".memory", &snapshot->memory_path);
	return err;
}

/* What the file system says: who owns it, when it changed, where its layers are. */
static int add_facts(struct store *store, int dirfd, int fd, struct vm *vm)
{
	struct stat st;
	if (fstat(dirfd, &st) < 0)
		return -errno;
	vm->uid = st.st_uid;
	vm->gid = st.st_gid;
	if (fstat(fd, &st) < 0)
		return -errno;
	vm->changed = st.st_mtim;
	int err = add_disk_paths(store, vm->disks, vm->nr_disks);
	for (size_t i = 0; !err && i < vm->nr_snapshots; i++)
		err = add_snapshot_paths(store, vm, vm->snapshots[i]);
	if (!err && vm->saved)
		err = add_snapshot_paths(store, vm, vm->saved);
	if (!err && vm->memory_path)
		err = set_path(store, vm, vm->memory_path, ".memory", &vm->memory_path);
	return err;
}

int manifest_load(struct store *store, const char *uuid, struct vm **ret, struct reason *why)
{
	auto_close int dirfd = openat(store->vms_fd, uuid, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	auto_close int fd = dirfd < 0 ? -1 : openat(dirfd, MANIFEST_NAME, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return reason_set(why, -errno, "%s/vms/%s/" MANIFEST_NAME ": %s", store->store_dir, uuid, strerror(errno));
	auto_free char *text = NULL;
	size_t len = 0;
	struct vm *vm = NULL;
	int err = file_load(fd, XML_TEXT_MAX, &text, &len);
	if (err)
		reason_set(why, err, "%s", strerror(-err));
	else
		err = parse(uuid, text, len, &vm, why);
	if (!err)
		err = add_facts(store, dirfd, fd, vm);
	if (err) {
		vm_put(vm);
		return reason_prefix(why, err, "%s/vms/%s/" MANIFEST_NAME ": ", store->store_dir, uuid);
	}
	*ret = vm;
	return 0;
}
