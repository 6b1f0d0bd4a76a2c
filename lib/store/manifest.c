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
#include "store/store_internal.h"

#define MANIFEST_NAME "vm.xml"

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

/* Text that comes back byte for byte: a parser would turn CR, and in attributes TAB and LF, into something else. */
static void add_exact(struct strbuf *b, const char *text)
{
	for (const char *p = text; *p;) {
		size_t plain = strcspn(p, "&<>\"'\r\n\t");
		strbuf_add(b, p, plain);
		p += plain;
		switch (*p) {
		case '\0': continue;
		case '&': strbuf_addf(b, "&amp;"); break;
		case '<': strbuf_addf(b, "&lt;"); break;
		case '>': strbuf_addf(b, "&gt;"); break;
		default: strbuf_addf(b, "&#%d;", *p);
		}
		p++;
	}
}

static void add_attr(struct strbuf *b, const char *name, const char *value)
{
	if (!value)
		return;
	strbuf_addf(b, " %s='", name);
	add_exact(b, value);
	strbuf_addf(b, "'");
}

static void add_element(struct strbuf *b, const char *name, const char *text)
{
	if (!text)
		return;
	strbuf_addf(b, "  <%s>", name);
	add_exact(b, text);
	strbuf_addf(b, "</%s>\n", name);
}

static void add_disk(struct strbuf *b, const struct vm_disk *disk)
{
	strbuf_addf(b, "  <disk");
	add_attr(b, "target", disk->target);
	add_attr(b, "file", disk->file_name);
	add_attr(b, "layer", disk->layer);
	add_attr(b, "format", image_format_name(disk->format));
	if (!disk->pending_path) {
		strbuf_addf(b, "/>\n");
		return;
	}
	strbuf_addf(b, ">\n    <pending");
	add_attr(b, "path", disk->pending_path);
	add_attr(b, "format", image_format_name(disk->pending_format));
	add_attr(b, "snapshot", disk->pending_snapshot);
	add_attr(b, "base", disk->pending_base);
	add_attr(b, "row", disk->pending_row);
	strbuf_addf(b, "/>\n  </disk>\n");
}

static int render(const struct vm *vm, char **ret_text, size_t *ret_len)
{
	struct strbuf b = {0};
	strbuf_addf(&b, "<vm");
	add_attr(&b, "uuid", vm->uuid);
	add_attr(&b, "place", vm->place == PLACE_VMS ? "vms" : "clones");
	strbuf_addf(&b, " created='%" PRId64 "' mode='%04o'>\n", vm->created, (unsigned)vm->mode);
	add_element(&b, "name", vm->name);
	add_element(&b, "origin", vm->origin);
	for (size_t i = 0; i < vm->nr_disks; i++)
		add_disk(&b, &vm->disks[i]);
	add_element(&b, "config", vm->config);
	strbuf_addf(&b, "</vm>\n");
	return strbuf_take(&b, ret_text, ret_len);
}

static int parse(const char *uuid, const char *text, size_t len, struct vm **ret, struct reason *why);

/* What is written must be what a later start reads: better refused now than lost then. */
static int check_readable(const struct vm *vm, const char *text, size_t len, struct reason *why)
{
	struct vm *again = NULL;
	int err = parse(vm->uuid, text, len, &again, why);
	if (err)
		return reason_prefix(why, err == -EUCLEAN ? -EINVAL : err, "the VM's description can't be written as XML: ");
	bool same = strcmp(again->name, vm->name) == 0 && strcmp(again->config, vm->config) == 0;
	vm_put(again);
	return same ? 0 : reason_set(why, -EINVAL, "the VM's name or configuration can't be written as XML");
}

int manifest_save(struct store *store, struct vm *vm, struct reason *why)
{
	auto_free char *text = NULL;
	size_t len = 0;
	int err = render(vm, &text, &len);
	if (!err)
		err = check_readable(vm, text, len, why);
	if (err)
		return err;
	auto_close int dirfd = openat(store->vms_fd, vm->uuid, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dirfd < 0)
		return reason_set(why, -errno, "%s/vms/%s: %s", store->store_dir, vm->uuid, strerror(errno));
	err = file_replace(dirfd, MANIFEST_NAME, text, len, 0600);
	if (err)
		return reason_set(why, err, "%s/vms/%s/" MANIFEST_NAME ": %s", store->store_dir, vm->uuid, strerror(-err));
	struct stat st;
	if (fstatat(dirfd, MANIFEST_NAME, &st, AT_SYMLINK_NOFOLLOW) == 0)
		vm->changed = st.st_mtim;
	return 0;
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
	if (!disk->pending_base || !layer_name_is_valid(disk->pending_base) || !strstr(disk->pending_base, ".raw"))
		return bad(why, "base of <pending>");
	if (!format || image_format_parse(format, &disk->pending_format) < 0)
		return bad(why, "format of <pending>");
	return 0;
}

static int parse_disk(xmlNodePtr node, struct vm *vm, struct reason *why)
{
	auto_free char *file = xml_attr(node, "file");
	if (!file || manifest_check_file_name(file) < 0 || vm_find_disk(vm->disks, vm->nr_disks, file))
		return bad(why, "file of <disk>");
	if (vm->nr_disks >= (1u << DISK_ID_BITS) - 1)
		return bad(why, "number of disks");
	struct vm_disk *disk = vm_disk_add(&vm->disks, &vm->nr_disks);
	if (!disk)
		return -ENOMEM;
	disk->file_name = take_ptr(file);
	disk->target = xml_attr(node, "target");
	auto_free char *wanted = manifest_target_of(disk->file_name);
	if (disk->target && (!wanted || strcmp(wanted, disk->target) != 0))
		return bad(why, "target of <disk>");
	auto_free char *format = xml_attr(node, "format");
	if (!format || image_format_parse(format, &disk->format) < 0 || disk->format != IMAGE_QCOW2)
		return bad(why, "format of <disk>");
	disk->layer = xml_attr(node, "layer");
	if (!disk->layer || !layer_name_is_valid(disk->layer) || !strstr(disk->layer, ".qcow2"))
		return bad(why, "layer of <disk>");
	xmlNodePtr pending = xml_child(node, "pending");
	return pending ? parse_pending(pending, disk, why) : 0;
}

static int parse_identity(xmlNodePtr root, const char *uuid, struct vm *vm, struct reason *why)
{
	auto_free char *place = xml_attr(root, "place");
	auto_free char *created = xml_attr(root, "created");
	auto_free char *mode = xml_attr(root, "mode");
	vm->uuid = xml_attr(root, "uuid");
	if (!vm->uuid || strcmp(vm->uuid, uuid) != 0)
		return bad(why, "uuid");
	if (!place || (strcmp(place, "vms") != 0 && strcmp(place, "clones") != 0))
		return bad(why, "place");
	vm->place = strcmp(place, "vms") == 0 ? PLACE_VMS : PLACE_CLONES;
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
		err = parse_disk(node, vm, why);
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
	for (size_t i = 0; i < vm->nr_disks; i++) {
		vm->disks[i].path = layer_path(store, vm->disks[i].layer);
		if (!vm->disks[i].path)
			return -ENOMEM;
	}
	return 0;
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
