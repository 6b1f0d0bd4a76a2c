#include "meta/domain_edit.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "meta/xml_edit.h"

int domain_edit_init(struct domain_edit *edit, const char *text, size_t len, struct reason *why)
{
	*edit = (struct domain_edit){0};
	int err = xml_parse(text, len, &edit->doc, why);
	if (err)
		return err;
	edit->root = xmlDocGetRootElement(edit->doc);
	return domain_parse(edit->root, &edit->before, why);
}

void domain_edit_done(struct domain_edit *edit)
{
	domain_done(&edit->before);
	xmlFreeDoc(edit->doc);
	*edit = (struct domain_edit){0};
}

static bool is_libvirt_notice(xmlNodePtr node)
{
	return node->type == XML_COMMENT_NODE && node->content &&
	       strstr((const char *)node->content, "THIS IS AN AUTO-GENERATED FILE");
}

int domain_edit_print(const struct domain_edit *edit, char **ret_text)
{
	struct strbuf out = {0};
	for (xmlNodePtr node = edit->doc->children; node; node = node->next) {
		if (is_libvirt_notice(node))
			continue;
		auto_free char *text = NULL;
		int err = xml_print(edit->doc, node, &text);
		if (err) {
			strbuf_done(&out);
			return err;
		}
		strbuf_add(&out, text, strlen(text));
		strbuf_add(&out, "\n", 1);
	}
	return strbuf_take(&out, ret_text, NULL);
}

int domain_edit_name(struct domain_edit *edit, const char *name)
{
	if (strcmp(name, edit->before.name) == 0)
		return 0;
	return xml_set_text(xml_child(edit->root, "name"), name);
}

bool domain_uuid_equal(const char *a, const char *b)
{
	for (;; a++, b++) {
		while (*a == '-')
			a++;
		while (*b == '-')
			b++;
		if (tolower((unsigned char)*a) != tolower((unsigned char)*b))
			return false;
		if (!*a)
			return true;
	}
}

static int set_uuid_text(xmlNodePtr node, const char *uuid)
{
	auto_free char *old = xml_text(node);
	return old && domain_uuid_equal(old, uuid) ? 0 : xml_set_text(node, uuid);
}

static int set_system_uuid(xmlNodePtr system, const char *uuid)
{
	int err = 0;
	for (xmlNodePtr entry = xml_child(system, "entry"); entry && !err; entry = xml_next(entry, "entry")) {
		auto_free char *name = xml_attr(entry, "name");
		if (name && strcmp(name, "uuid") == 0)
			err = set_uuid_text(entry, uuid);
	}
	return err;
}

int domain_edit_uuid(struct domain_edit *edit, const char *uuid)
{
	xmlNodePtr node = xml_child(edit->root, "uuid");
	if (!node)
		node = xml_add(edit->root, xml_child(edit->root, "name"), "uuid");
	if (!node)
		return -ENOMEM;
	int err = set_uuid_text(node, uuid);
	for (xmlNodePtr info = xml_child(edit->root, "sysinfo"); info && !err; info = xml_next(info, "sysinfo"))
		err = set_system_uuid(xml_child(info, "system"), uuid);
	return err;
}

/* libvirt's own queries see every <devices>, so one that the schema forbids mustn't hide disks from us. */
static xmlNodePtr device_in(xmlNodePtr devices, const char *name)
{
	xmlNodePtr device = NULL;
	while (devices && !(device = xml_child(devices, name)))
		devices = xml_next(devices, "devices");
	return device;
}

xmlNodePtr domain_device(xmlNodePtr domain, const char *name)
{
	return device_in(xml_child(domain, "devices"), name);
}

xmlNodePtr domain_next_device(xmlNodePtr device, const char *name)
{
	xmlNodePtr next = xml_next(device, name);
	return next ? next : device_in(xml_next(device->parent, "devices"), name);
}

bool domain_device_is_disk(xmlNodePtr disk)
{
	auto_free char *device = xml_attr(disk, "device");
	return !device || strcmp(device, "disk") == 0;
}

char *domain_device_target(xmlNodePtr disk)
{
	return xml_attr(xml_child(disk, "target"), "dev");
}

xmlNodePtr domain_device_at(xmlNodePtr domain, const char *target)
{
	for (xmlNodePtr disk = domain_device(domain, "disk"); disk; disk = domain_next_device(disk, "disk")) {
		auto_free char *there = domain_device_target(disk);
		if (there && strcmp(there, target) == 0)
			return disk;
	}
	return NULL;
}

bool domain_has_prefix(const char *target, const char *prefix)
{
	size_t len = strlen(prefix);
	if (strncmp(target, prefix, len) != 0 || !islower((unsigned char)target[len]))
		return false;
	for (target += len; islower((unsigned char)*target);)
		target++;
	return target[strspn(target, "0123456789")] == '\0';
}

bool domain_is_disk_name(const char *target)
{
	static const char *const prefixes[] = {"vd", "sd", "hd", "xvd", "ubd"};
	for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
		if (domain_has_prefix(target, prefixes[i]))
			return true;
	return false;
}
