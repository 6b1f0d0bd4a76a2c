/* The XML forms of actions. Elements and attributes that aren't looked at here are accepted: libvirt's and oVirt's own clients send along what
 * they have read. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/name.h"
#include "meta/action_text.h"
#include "meta/xml.h"

static bool is_word(const char *text, const char *word)
{
	return text && !strcmp(text, word);
}

static int add_taken(struct action *action, const char *disk)
{
	return action_add_text(&action->disks, &action->nr_disks, disk);
}

static int add_left_out(struct action *action, const char *disk)
{
	return action_add_text(&action->left_out, &action->nr_left_out, disk);
}

/* --- libvirt's <domainsnapshot> ---------------------------------------------------------------------------------------- */

static int parse_memory(xmlNodePtr node, struct action *action, struct reason *why)
{
	auto_free char *how = xml_attr(node, "snapshot");
	auto_free char *file = xml_attr(node, "file");
	if (!node || is_word(how, "no") || (!how && !file))
		return 0;
	if (how && strcmp(how, "external") != 0)
		return reason_set(why, -EOPNOTSUPP, "<memory snapshot='%s'>: only 'no', or 'external' with the file that holds the RAM", how);
	if (!file || *file != '/')
		return reason_set(why, -EINVAL, "<memory snapshot='external'> needs the absolute path of a file");
	action->memory_path = take_ptr(file);
	return 0;
}

/* A disk that isn't listed takes part, if the domain's own <disk> doesn't say otherwise: so does libvirt. */
static int parse_snapshot_disk(xmlNodePtr node, struct action *action, struct reason *why)
{
	auto_free char *name = xml_attr(node, "name");
	auto_free char *how = xml_attr(node, "snapshot");
	if (!name)
		return reason_set(why, -EINVAL, "line %ld: a disk without a name", xmlGetLineNo(node));
	if (is_word(how, "no") || is_word(how, "manual"))
		return add_left_out(action, name);
	if (how && strcmp(how, "external") != 0 && strcmp(how, "internal") != 0)
		return reason_set(why, -EINVAL, "disk %s: snapshot='%s': expected 'no', 'external' or 'internal'", name, how);
	return add_taken(action, name);
}

static int parse_domainsnapshot(xmlNodePtr root, struct action *action, struct reason *why)
{
	action->name = xml_text(xml_child(root, "name"));
	action->description = xml_text(xml_child(root, "description"));
	int err = parse_memory(xml_child(root, "memory"), action, why);
	xmlNodePtr disks = xml_child(root, "disks");
	for (xmlNodePtr disk = xml_child(disks, "disk"); disk && !err; disk = xml_next(disk, "disk"))
		err = parse_snapshot_disk(disk, action, why);
	return err;
}

/* --- oVirt's <snapshot> ------------------------------------------------------------------------------------------------- */

static int parse_ovirt_disk(xmlNodePtr node, struct action *action, struct reason *why)
{
	auto_free char *id = xml_attr(node, "id");
	if (!id)
		return reason_set(why, -EINVAL, "line %ld: a <disk> without an id", xmlGetLineNo(node));
	return add_taken(action, id);
}

/* oVirt: only the disks listed, none of them if the list is empty; all if there is no list. */
static int parse_ovirt_disks(xmlNodePtr root, struct action *action, struct reason *why)
{
	int err = 0;
	xmlNodePtr attachments = xml_child(root, "disk_attachments"), disks = xml_child(root, "disks");
	action->subset = attachments || disks;
	for (xmlNodePtr node = xml_child(attachments, "disk_attachment"); node && !err; node = xml_next(node, "disk_attachment")) {
		xmlNodePtr disk = xml_child(node, "disk");
		err = parse_ovirt_disk(disk ? disk : node, action, why);
	}
	for (xmlNodePtr node = xml_child(disks, "disk"); node && !err; node = xml_next(node, "disk"))
		err = parse_ovirt_disk(node, action, why);
	return err;
}

/* There is no name: the description serves, or (NULL) the time. */
static int parse_ovirt_snapshot(xmlNodePtr root, struct action *action, struct reason *why)
{
	auto_free char *memory = xml_text(xml_child(root, "persist_memorystate"));
	if (is_word(memory, "true"))
		return reason_set(why, -EOPNOTSUPP, "a guest's RAM can't be saved from here: persist_memorystate false, or libvirt's "
				  "<domainsnapshot> with <memory snapshot='external' file='…'/>");
	action->description = xml_text(xml_child(root, "description"));
	action->name = action->description ? name_make_valid(action->description) : NULL;
	if (action->description && !action->name)
		return -ENOMEM;
	action->name_is_made = action->name;
	return parse_ovirt_disks(root, action, why);
}

/* --- oVirt's <action> ---------------------------------------------------------------------------------------------------- */

/* A disk comes from the snapshot or image that it names, else from that of the whole action. */
static int parse_action_disk(xmlNodePtr node, struct action *action, const char *snapshot, struct reason *why)
{
	struct action_disk *change = action_add_change(action);
	if (!change)
		return -ENOMEM;
	change->disk = xml_attr(node, "id");
	change->snapshot = xml_attr(xml_child(node, "snapshot"), "id");
	change->image = xml_text(xml_child(node, "image_id"));
	if (!change->disk)
		return reason_set(why, -EINVAL, "line %ld: a <disk> without an id", xmlGetLineNo(node));
	if (!change->snapshot && !change->image)
		return action_set(&change->snapshot, snapshot);
	return 0;
}

/* oVirt: with a list of disks, those that aren't in it stay as they are; without one, all are the snapshot's. */
static int parse_ovirt_action(xmlNodePtr root, struct action *action, struct reason *why)
{
	auto_free char *snapshot = xml_attr(xml_child(root, "snapshot"), "id");
	auto_free char *restore_memory = xml_text(xml_child(root, "restore_memory"));
	xmlNodePtr disks = xml_child(root, "disks");
	int err = snapshot ? 0 : reason_set(why, -EINVAL, "expected <action><snapshot id='SNAPSHOT'/>…</action>");
	if (!err && is_word(restore_memory, "true"))
		err = action_set(&action->memory, snapshot);
	for (xmlNodePtr node = xml_child(disks, "disk"); node && !err; node = xml_next(node, "disk"))
		err = parse_action_disk(node, action, snapshot, why);
	if (disks)
		action->config = take_ptr(snapshot);
	else
		action->snapshot = take_ptr(snapshot);
	return err;
}

/* --- which of them ---------------------------------------------------------------------------------------------------------- */

static int parse_root(xmlNodePtr root, const char *text, size_t len, struct action *action, struct reason *why)
{
	const char *name = (const char *)root->name;
	switch (action->kind) {
	case ACTION_SNAPSHOT:
		if (!strcmp(name, "domainsnapshot"))
			return parse_domainsnapshot(root, action, why);
		if (!strcmp(name, "snapshot"))
			return parse_ovirt_snapshot(root, action, why);
		return reason_set(why, -EINVAL, "<%s>: expected libvirt's <domainsnapshot> or oVirt's <snapshot>", name);
	case ACTION_PREVIEW:
	case ACTION_RESTORE:
		if (!strcmp(name, "action"))
			return parse_ovirt_action(root, action, why);
		return reason_set(why, -EINVAL, "<%s>: expected oVirt's <action>", name);
	case ACTION_COMMIT:
	case ACTION_UNDO:
		return !strcmp(name, "action") ? 0 : reason_set(why, -EINVAL, "<%s>: expected oVirt's <action/>", name);
	case ACTION_DELETE:
		return reason_set(why, -EINVAL, "<%s>: expected a line, SNAPSHOT [merge | merge-force | discard | discard-force]", name);
	case ACTION_CLONE:
		return action_parse_clone_xml(root, text, len, action, why);
	case ACTION_FLATTEN:
		return reason_set(why, -EINVAL, "<%s>: expected a line, all or DISK...", name);
	case ACTION_NONE:
	case ACTION_KINDS:
		break;
	}
	return -EINVAL;
}

int action_parse_xml(const char *text, size_t len, struct action *action, struct reason *why)
{
	auto_doc xmlDocPtr doc = NULL;
	int err = xml_parse_to_read(text, len, &doc, why);
	return err ? err : parse_root(xmlDocGetRootElement(doc), text, len, action, why);
}
