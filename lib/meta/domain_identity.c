/* domain_clone_identity: what must not be the same in two domains of one host. */
#include "meta/domain.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <uuid/uuid.h>

#include "base/mem.h"
#include "base/name.h"
#include "meta/domain_identity.h"
#include "meta/xml_edit.h"

int identity_each_device(xmlNodePtr domain, const char *name, int (*change)(xmlNodePtr, const struct identity *), const struct identity *id)
{
	int err = 0;
	for (xmlNodePtr device = domain_device(domain, name), next; device && !err; device = next) {
		next = domain_next_device(device, name);
		err = change(device, id);
	}
	return err;
}

void identity_note(const struct identity *id, const char *fmt, ...)
{
	auto_free char *text = NULL;
	va_list args;
	va_start(args, fmt);
	if (vasprintf(&text, fmt, args) < 0)
		text = NULL;
	va_end(args);
	id->notes->failed = id->notes->failed || !text;
	/* A line each, whatever an attribute holds. */
	for (char *p = text; p && *p; p++)
		if (iscntrl((unsigned char)*p))
			*p = ' ';
	if (text)
		strbuf_addf(id->notes, "%s%s", id->notes->len ? "\n" : "", text);
}

static int drop_instance(xmlNodePtr domain, const struct identity *id)
{
	(void)id;
	xml_drop_attr(domain, "id");
	xml_drop_children(domain, "title");
	return 0;
}

static void make_uuid(char text[UUID_STR_LEN])
{
	uuid_t raw;
	uuid_generate_random(raw);
	uuid_unparse_lower(raw, text);
}

static int set_genid(xmlNodePtr domain, const struct identity *id)
{
	(void)id;
	xmlNodePtr genid = xml_child(domain, "genid");
	char text[UUID_STR_LEN];
	make_uuid(text);
	return genid ? xml_set_text(genid, text) : 0;
}

/* A serial number or asset tag that is the UUID, as some managers have it, goes with it. Others are the machine's that the guest was installed on, with
 * what hangs on it (licences, an inventory): they stay. */
static int set_serials(xmlNodePtr domain, const struct identity *id)
{
	int err = 0;
	for (xmlNodePtr info = xml_child(domain, "sysinfo"); info && !err; info = xml_next(info, "sysinfo"))
		for (xmlNodePtr table = info->children; table && !err; table = table->next)
			for (xmlNodePtr entry = xml_child(table, "entry"); entry && !err; entry = xml_next(entry, "entry")) {
				auto_free char *text = xml_text(entry);
				if (text && id->old_uuid && domain_uuid_equal(text, id->old_uuid))
					err = xml_set_text(entry, id->uuid);
			}
	return err;
}

/* <baselabel> stays: the user chose it, and the running instance's label was made from it. */
static int drop_labels(xmlNodePtr domain, const struct identity *id)
{
	(void)id;
	for (xmlNodePtr sec = xml_child(domain, "seclabel"); sec; sec = xml_next(sec, "seclabel")) {
		auto_free char *type = xml_attr(sec, "type");
		if (type && strcmp(type, "dynamic") != 0)
			continue;
		xml_drop_children(sec, "label");
		xml_drop_children(sec, "imagelabel");
	}
	return 0;
}

static int set_nvram_source(xmlNodePtr nvram, const char *path)
{
	xmlNodePtr source = xml_add(nvram, NULL, "source");
	if (!source)
		return -ENOMEM;
	xml_drop(xml_next(source, "source"));
	int err = xml_set_attr(source, "file", path);
	return err ? err : xml_set_attr(nvram, "type", "file");
}

static int set_nvram(xmlNodePtr domain, const struct identity *id)
{
	xmlNodePtr nvram = xml_child(xml_child(domain, "os"), "nvram");
	if (!nvram)
		return 0;
	if (!id->nvram_path) {
		xml_drop(nvram);
		return 0;
	}
	if (xml_child(nvram, "source"))
		return set_nvram_source(nvram, id->nvram_path);
	xml_drop_attr(nvram, "type"); /* without a source it would ask for one */
	return xml_set_text(nvram, id->nvram_path);
}

/* A filter's parameter MAC, where somebody wrote the interface's own into it. */
static int set_filter_macs(xmlNodePtr interface, const char *old, const char *mac)
{
	int err = 0;
	xmlNodePtr filter = xml_child(interface, "filterref");
	for (xmlNodePtr p = xml_child(filter, "parameter"); p && old && !err; p = xml_next(p, "parameter")) {
		auto_free char *value = xml_attr(p, "value");
		if (value && strcasecmp(value, old) == 0)
			err = xml_set_attr(p, "value", mac);
	}
	return err;
}

static int set_mac(xmlNodePtr interface, xmlNodePtr mac)
{
	auto_free char *old = xml_attr(mac, "address");
	unsigned p[3] = {0x52, 0x54, 0x00}, old_p[3];
	if (old && sscanf(old, "%2x:%2x:%2x:", &old_p[0], &old_p[1], &old_p[2]) == 3)
		memcpy(p, old_p, sizeof p);
	unsigned char r[3];
	if (getrandom(r, sizeof r, 0) != sizeof r)
		return -EIO;
	char text[18];
	snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", p[0] & 0xff, p[1] & 0xff, p[2] & 0xff, r[0], r[1],
	         r[2]);
	int err = set_filter_macs(interface, old, text);
	return err ? err : xml_set_attr(mac, "address", text);
}

/* What a switch knows the interface by. */
static int set_port_ids(xmlNodePtr interface)
{
	static const char *const ids[] = {"interfaceid", "instanceid"};
	int err = 0;
	xmlNodePtr parameters = xml_child(xml_child(interface, "virtualport"), "parameters");
	for (size_t i = 0; parameters && i < sizeof ids / sizeof *ids && !err; i++) {
		char text[UUID_STR_LEN];
		make_uuid(text);
		if (xmlHasProp(parameters, BAD_CAST ids[i]))
			err = xml_set_attr(parameters, ids[i], text);
	}
	return err;
}

static int set_interface(xmlNodePtr interface, const struct identity *id)
{
	(void)id;
	xml_drop_children(interface, "target");
	xmlNodePtr mac = xml_child(interface, "mac");
	int err = mac ? set_mac(interface, mac) : 0;
	return err ? err : set_port_ids(interface);
}

static int set_interfaces(xmlNodePtr domain, const struct identity *id)
{
	return identity_each_device(domain, "interface", set_interface, id);
}

static int apply(xmlNodePtr domain, const struct identity *id)
{
	static int (*const steps[])(xmlNodePtr, const struct identity *) = {
		drop_instance, set_genid, set_serials, drop_labels, set_nvram, set_interfaces, identity_set_host,
	};
	int err = 0;
	for (size_t i = 0; i < sizeof steps / sizeof *steps && !err; i++)
		err = steps[i](domain, id);
	return err;
}

static int check_identity(const struct identity *id, struct reason *why)
{
	int err = name_check(id->name);
	if (err)
		return reason_set(why, err, "'%s' can't be the name of a VM", id->name);
	err = xml_check_text("name", id->name, why);
	if (!err && id->nvram_path)
		err = xml_check_text("path of the NVRAM", id->nvram_path, why);
	return err;
}

static int change_identity(struct domain_edit *edit, const struct identity *id, struct reason *why)
{
	int err = check_identity(id, why);
	if (!err)
		err = domain_edit_name(edit, id->name);
	if (!err)
		err = domain_edit_uuid(edit, id->uuid);
	return err ? err : apply(edit->root, id);
}

int domain_clone_identity(const char *text, size_t len, const char *name, const char *uuid, const char *nvram_path, char **ret_text,
			  char **ret_notes, struct reason *why)
{
	struct domain_edit edit;
	struct strbuf notes = {0};
	auto_free char *changed = NULL;
	int err = domain_edit_init(&edit, text, len, why);
	const struct identity id = {edit.before.name, edit.before.uuid, name, uuid, nvram_path, &notes};
	if (!err)
		err = change_identity(&edit, &id, why);
	if (!err)
		err = domain_edit_print(&edit, &changed);
	if (!err)
		err = strbuf_take(&notes, ret_notes, NULL);
	if (!err)
		*ret_text = take_ptr(changed);
	strbuf_done(&notes);
	domain_edit_done(&edit);
	return err == -ENOMEM ? reason_set(why, err, "out of memory") : err;
}
