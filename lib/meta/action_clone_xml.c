/* XML that says what a clone is to be: libvirt's <volume> and <domain>, oVirt's <vm>. What words before it have said stays; the rest of a document,
 * which may be all that a client has read, isn't looked at. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "meta/action_text.h"
#include "meta/domain.h"

static bool is_word(const char *text, const char *word)
{
	return text && !strcasecmp(text, word);
}

/* Where it isn't said yet. */
static void say(int *field, int value)
{
	if (!*field)
		*field = value;
}

/* The text takes the place of none, and is freed otherwise. */
static void say_text(char **field, char *text)
{
	if (*field)
		free(text);
	else
		*field = text;
}

/* --- libvirt's <volume> ---------------------------------------------------------------------------------------------------- */

/* 0 where there is no such element. */
static int parse_size(xmlNodePtr volume, const char *name, uint64_t *ret, struct reason *why)
{
	xmlNodePtr node = xml_child(volume, name);
	auto_free char *text = xml_text(node);
	auto_free char *unit = xml_attr(node, "unit");
	int err = node ? action_parse_size(text ? text : "", unit, ret) : 0;
	if (err)
		reason_set(why, -EINVAL, "line %ld: <%s%s%s>%s: expected a number of bytes%s", xmlGetLineNo(node), name, unit ? " unit=" : "",
			   unit ? unit : "", text ? text : "", err == -ERANGE ? " below 8 EiB" : ", or a unit like KiB, M or GB");
	return err ? -EINVAL : 0;
}

/* libvirt: without <allocation> a raw file is allocated in full; what isn't raw isn't, whatever is said, where it goes on from another file. */
static int parse_sizes(xmlNodePtr volume, struct action *action, struct reason *why)
{
	uint64_t capacity = 0, allocation = 0;
	bool is_there = xml_child(volume, "allocation");
	int err = parse_size(volume, "capacity", &capacity, why);
	if (!err)
		err = parse_size(volume, "allocation", &allocation, why);
	if (!action->all.capacity)
		action->all.capacity = capacity;
	bool is_full = is_there ? capacity && allocation >= capacity : action->all.format == ACTION_RAW;
	if (is_there || is_full)
		say(&action->all.allocation, is_full && !action->backing ? ACTION_ALLOCATED : ACTION_SPARSE);
	return err;
}

static int parse_volume_format(xmlNodePtr target, struct action *action, struct reason *why)
{
	xmlNodePtr node = xml_child(target, "format");
	auto_free char *type = xml_attr(node, "type");
	if (!type)
		return 0;
	int format = is_word(type, "raw") ? ACTION_RAW : is_word(type, "qcow2") ? ACTION_QCOW2 : 0;
	if (!format)
		return reason_set(why, -EOPNOTSUPP, "line %ld: <format type='%s'>: volumes can be raw or qcow2", xmlGetLineNo(node), type);
	say(&action->all.format, format);
	return 0;
}

static int parse_number(xmlNodePtr parent, const char *name, int base, long *ret, struct reason *why)
{
	xmlNodePtr node = xml_child(parent, name);
	auto_free char *text = xml_text(node);
	if (!node)
		return 0;
	char *end = NULL;
	errno = 0;
	long number = text ? strtol(text, &end, base) : -2;
	if (!text || *end || errno || number < -1 || number > (base == 8 ? 07777 : (long)UINT32_MAX - 1))
		return reason_set(why, -EINVAL, "line %ld: <%s>%s: expected %s", xmlGetLineNo(node), name, text ? text : "",
				  base == 8 ? "an octal number like 0640" : "a number");
	*ret = number;
	return 0;
}

/* The label is that of another host's security module; libvirt, where it gives the file to a VM, makes its own. */
static int parse_permissions(xmlNodePtr target, struct action *action, struct reason *why)
{
	xmlNodePtr permissions = xml_child(target, "permissions");
	long mode = -1;
	int err = parse_number(permissions, "mode", 8, &mode, why);
	if (!err)
		err = parse_number(permissions, "owner", 10, &action->owner, why);
	if (!err)
		err = parse_number(permissions, "group", 10, &action->group, why);
	if (mode > 0 && !action->all.mode_bits)
		action->all.mode_bits = (unsigned)mode & 0777;
	return err;
}

/* Words that are no use for a volume. */
static int check_volume_words(const struct action *action, struct reason *why)
{
	if (action->nr_rows)
		return reason_set(why, -EINVAL, "%s: a <volume> is one disk: expected [SNAPSHOT] [DISK] [KEY=VALUE...] <volume>", action->rows[0].disk);
	if (action->all.target || action->all.bus || action->all.serial)
		return reason_set(why, -EINVAL, "target, bus and serial are a VM's: a <volume> has none");
	return 0;
}

static int parse_volume_name(xmlNodePtr volume, struct action *action, struct reason *why)
{
	say_text(&action->all.volume, xml_text(xml_child(volume, "name")));
	if (!action->all.volume)
		return reason_set(why, -EINVAL, "line %ld: the <volume> has no <name>", xmlGetLineNo(volume));
	return 0;
}

static int check_volume_type(xmlNodePtr volume, struct reason *why)
{
	auto_free char *type = xml_attr(volume, "type");
	if (type && strcmp(type, "file") != 0 && strcmp(type, "block") != 0)
		return reason_set(why, -EOPNOTSUPP, "line %ld: <volume type='%s'>: volumes are files and block devices", xmlGetLineNo(volume), type);
	xmlNodePtr encryption = xml_child(xml_child(volume, "target"), "encryption");
	encryption = encryption ? encryption : xml_child(volume, "encryption");
	if (encryption)
		return reason_set(why, -EOPNOTSUPP, "line %ld: encrypted volumes can't be made", xmlGetLineNo(encryption));
	return 0;
}

/* libvirt's default is raw; here the ending decides. */
static int format_by_name(const char *name)
{
	const char *dot = strrchr(name, '.');
	return dot && !strcmp(dot, ".qcow2") ? ACTION_QCOW2 : ACTION_RAW;
}

/* With a <backingStore> that names a file it is thin, else a copy. */
static int parse_backing(xmlNodePtr volume, struct action *action, struct reason *why)
{
	xmlNodePtr store = xml_child(volume, "backingStore");
	action->backing = xml_text(xml_child(store, "path"));
	say(&action->all.mode, action->backing ? ACTION_THIN : ACTION_FULL);
	if (!action->backing) {
		say(&action->all.format, format_by_name(action->all.volume));
		return 0;
	}
	if (action->all.mode == ACTION_FULL)
		return reason_set(why, -EINVAL, "line %ld: mode=full, and a <backingStore>: one or the other", xmlGetLineNo(store));
	say(&action->all.format, ACTION_QCOW2);
	if (action->all.format == ACTION_RAW)
		return reason_set(why, -EINVAL, "line %ld: a raw volume has no <backingStore>: expected <format type='qcow2'/>", xmlGetLineNo(store));
	return 0;
}

/* libvirt's virStorageVolCreateXMLFrom: what the volume is says the document alone; the source gives the data. */
static int parse_volume(xmlNodePtr volume, struct action *action, struct reason *why)
{
	xmlNodePtr target = xml_child(volume, "target");
	action->is_volume = true;
	action->volume_disk = take_ptr(action->name);
	int err = check_volume_words(action, why);
	if (!err)
		err = check_volume_type(volume, why);
	if (!err)
		err = parse_volume_name(volume, action, why);
	if (!err)
		err = parse_volume_format(target, action, why);
	if (!err)
		err = parse_backing(volume, action, why);
	if (!err)
		err = parse_sizes(volume, action, why);
	return err ? err : parse_permissions(target, action, why);
}

/* --- libvirt's <domain> ----------------------------------------------------------------------------------------------------- */

static int parse_domain(xmlNodePtr root, const char *text, size_t len, struct action *action, struct reason *why)
{
	struct domain domain;
	int err = domain_parse(root, &domain, why);
	if (err)
		return err;
	say_text(&action->name, take_ptr(domain.name));
	domain_done(&domain);
	action->domain = strndup(text, len);
	return action->domain ? 0 : -ENOMEM;
}

/* --- oVirt's <vm> ------------------------------------------------------------------------------------------------------------ */

/* <sparse>, <clone>: 1 for "true", -1 for "false", 0 where it isn't there. */
static int parse_bool(xmlNodePtr parent, const char *name, int *ret, struct reason *why)
{
	xmlNodePtr node = xml_child(parent, name);
	auto_free char *text = xml_text(node);
	*ret = is_word(text, "true") ? 1 : is_word(text, "false") ? -1 : 0;
	if (node && !*ret)
		return reason_set(why, -EINVAL, "line %ld: <%s>%s: expected true or false", xmlGetLineNo(node), name, text ? text : "");
	return 0;
}

/* The pool that <storage_domain id='…'/>, or <name> in it, means; NULL: it says nothing. */
static char *storage_domain(xmlNodePtr node)
{
	char *id = xml_attr(node, "id");
	return id ? id : xml_text(xml_child(node, "name"));
}

static int parse_vm_format(xmlNodePtr disk, struct action_clone_disk *row, struct reason *why)
{
	xmlNodePtr node = xml_child(disk, "format");
	auto_free char *format = xml_text(node);
	row->format = is_word(format, "raw") ? ACTION_RAW : is_word(format, "cow") ? ACTION_QCOW2 : 0;
	if (node && !row->format)
		return reason_set(why, -EINVAL, "line %ld: <format>%s: expected raw or cow", xmlGetLineNo(node), format ? format : "");
	return 0;
}

/* A disk is told by its id, or as it was in the snapshot by its image's. */
static int parse_vm_disk(xmlNodePtr disk, struct action *action, struct reason *why)
{
	struct action_clone_disk *row = action_add_row(action);
	int sparse = 0;
	if (!row)
		return -ENOMEM;
	row->image = xml_text(xml_child(disk, "image_id"));
	row->disk = xml_attr(disk, "id");
	if (!row->image && !row->disk)
		return reason_set(why, -EINVAL, "line %ld: a <disk> without an id and without an <image_id>", xmlGetLineNo(disk));
	row->pool = storage_domain(xml_child(xml_child(disk, "storage_domains"), "storage_domain"));
	if (!row->pool)
		row->pool = storage_domain(xml_child(disk, "storage_domain"));
	int err = parse_vm_format(disk, row, why);
	if (!err)
		err = parse_bool(disk, "sparse", &sparse, why);
	row->allocation = sparse > 0 ? ACTION_SPARSE : sparse < 0 ? ACTION_ALLOCATED : ACTION_ALLOCATION_UNSAID;
	return err;
}

static int parse_vm_disks(xmlNodePtr vm, struct action *action, struct reason *why)
{
	int err = 0;
	xmlNodePtr attachments = xml_child(vm, "disk_attachments"), disks = xml_child(vm, "disks");
	for (xmlNodePtr node = xml_child(attachments, "disk_attachment"); node && !err; node = xml_next(node, "disk_attachment")) {
		xmlNodePtr disk = xml_child(node, "disk");
		err = parse_vm_disk(disk ? disk : node, action, why);
	}
	for (xmlNodePtr disk = xml_child(disks, "disk"); disk && !err; disk = xml_next(disk, "disk"))
		err = parse_vm_disk(disk, action, why);
	return err;
}

/* oVirt's clone of a snapshot depends on nothing; only where the client says that it isn't to be one, it is thin. */
static int parse_vm_mode(xmlNodePtr vm, struct action *action, struct reason *why)
{
	int clone = 0;
	int err = parse_bool(vm, "clone", &clone, why);
	if (!err && !clone)
		err = parse_bool(xml_child(vm, "disks"), "clone", &clone, why); /* version 3 of the API has it there */
	say(&action->all.mode, clone < 0 ? ACTION_THIN : ACTION_FULL);
	return err;
}

static int parse_vm(xmlNodePtr vm, struct action *action, struct reason *why)
{
	xmlNodePtr node = xml_child(xml_child(vm, "snapshots"), "snapshot");
	auto_free char *snapshot = xml_attr(node, "id");
	if (node && !snapshot)
		return reason_set(why, -EINVAL, "line %ld: a <snapshot> without an id", xmlGetLineNo(node));
	if (xml_next(node, "snapshot"))
		return reason_set(why, -EINVAL, "line %ld: a VM is cloned from one snapshot", xmlGetLineNo(xml_next(node, "snapshot")));
	say_text(&action->snapshot, take_ptr(snapshot));
	say_text(&action->name, xml_text(xml_child(vm, "name")));
	int err = parse_vm_mode(vm, action, why);
	return err ? err : parse_vm_disks(vm, action, why);
}

/* What is sent to vms/ID/clone. */
static int parse_clone_action(xmlNodePtr root, struct action *action, struct reason *why)
{
	xmlNodePtr vm = xml_child(root, "vm");
	if (!vm)
		return reason_set(why, -EINVAL, "line %ld: expected <action><vm><name>NAME</name>…</vm></action>", xmlGetLineNo(root));
	say_text(&action->all.pool, storage_domain(xml_child(root, "storage_domain")));
	return parse_vm(vm, action, why);
}

int action_parse_clone_xml(xmlNodePtr root, const char *text, size_t len, struct action *action, struct reason *why)
{
	const char *name = (const char *)root->name;
	if (!strcmp(name, "volume"))
		return parse_volume(root, action, why);
	if (!strcmp(name, "domain"))
		return parse_domain(root, text, len, action, why);
	if (!strcmp(name, "vm"))
		return parse_vm(root, action, why);
	if (!strcmp(name, "action"))
		return parse_clone_action(root, action, why);
	return reason_set(why, -EINVAL, "<%s>: expected libvirt's <volume> or <domain>, or oVirt's <vm> or <action>", name);
}
