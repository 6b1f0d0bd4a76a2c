/* domain_clone_identity: what must not be the same in two domains of one host. */
#include "meta/domain.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <uuid/uuid.h>

#include "base/mem.h"
#include "base/name.h"
#include "base/strbuf.h"
#include "meta/domain_edit.h"
#include "meta/xml_edit.h"

struct identity {
	const char *old_name;
	const char *name;
	const char *nvram_path;
};

static bool is_word(char c)
{
	return isalnum((unsigned char)c) || (unsigned char)c >= 0x80;
}

/* The last place where NAME stands for itself in PATH ("web" in domain-3-web, not in webcam); NULL: nowhere. The last
 * one, as /logs/web/web.log can become /logs/new/… only if somebody makes that directory. */
static const char *find_name(const char *path, const char *name)
{
	const char *found = NULL;
	size_t len = strlen(name);
	for (const char *p = path; (p = strstr(p, name)); p++) {
		if ((p == path || !is_word(p[-1])) && !is_word(p[len]))
			found = p;
	}
	return found;
}

/* Renames the path in attribute ATTR of NODE, if it is there and holds the old name. */
static int rename_path(xmlNodePtr node, const char *attr, const struct identity *id)
{
	auto_free char *path = xml_attr(node, attr);
	const char *found = path ? find_name(path, id->old_name) : NULL;
	if (!found)
		return 0;
	struct strbuf renamed = {0};
	strbuf_add(&renamed, path, (size_t)(found - path));
	strbuf_addf(&renamed, "%s%s", id->name, found + strlen(id->old_name));
	auto_free char *text = NULL;
	int err = strbuf_take(&renamed, &text, NULL);
	return err ? err : xml_set_attr(node, attr, text);
}

/* Calls CHANGE for each <NAME> in <devices>. */
static int each_device(xmlNodePtr domain, const char *name, int (*change)(xmlNodePtr, const struct identity *),
                       const struct identity *id)
{
	int err = 0;
	for (xmlNodePtr device = domain_device(domain, name); device && !err; device = domain_next_device(device, name))
		err = change(device, id);
	return err;
}

static int drop_instance(xmlNodePtr domain, const struct identity *id)
{
	(void)id;
	xml_drop_attr(domain, "id");
	xml_drop_children(domain, "title");
	return 0;
}

static int set_genid(xmlNodePtr domain, const struct identity *id)
{
	(void)id;
	xmlNodePtr genid = xml_child(domain, "genid");
	if (!genid)
		return 0;
	uuid_t raw;
	char text[UUID_STR_LEN];
	uuid_generate_random(raw);
	uuid_unparse_lower(raw, text);
	return xml_set_text(genid, text);
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

static int set_mac(xmlNodePtr mac)
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
	return xml_set_attr(mac, "address", text);
}

static int set_interface(xmlNodePtr interface, const struct identity *id)
{
	(void)id;
	xml_drop_children(interface, "target");
	xmlNodePtr mac = xml_child(interface, "mac");
	return mac ? set_mac(mac) : 0;
}

static int set_interfaces(xmlNodePtr domain, const struct identity *id)
{
	return each_device(domain, "interface", set_interface, id);
}

/* VALUE for an attribute that is there. */
static int replace_attr(xmlNodePtr node, const char *name, const char *value)
{
	return xmlHasProp(node, BAD_CAST name) ? xml_set_attr(node, name, value) : 0;
}

static int set_ports(xmlNodePtr graphics)
{
	if (!xmlHasProp(graphics, BAD_CAST "port") && !xmlHasProp(graphics, BAD_CAST "tlsPort"))
		return 0;
	int err = xml_set_attr(graphics, "port", "-1");
	if (!err)
		err = replace_attr(graphics, "tlsPort", "-1");
	return err ? err : xml_set_attr(graphics, "autoport", "yes");
}

static int set_graphics_device(xmlNodePtr graphics, const struct identity *id)
{
	int err = set_ports(graphics);
	if (!err)
		err = replace_attr(graphics, "websocket", "-1");
	if (!err)
		err = rename_path(graphics, "socket", id);
	for (xmlNodePtr at = xml_child(graphics, "listen"); at && !err; at = xml_next(at, "listen"))
		err = rename_path(at, "socket", id);
	return err;
}

static int set_graphics(xmlNodePtr domain, const struct identity *id)
{
	return each_device(domain, "graphics", set_graphics_device, id);
}

/* Whether QEMU makes the file that a character device's <source> names. What it only opens - a device node, a socket
 * that somebody else listens at - is the host's, and keeps its name. */
static bool makes_file(const char *type, xmlNodePtr source)
{
	if (!type || (strcmp(type, "file") != 0 && strcmp(type, "unix") != 0))
		return false;
	auto_free char *mode = xml_attr(source, "mode");
	return !mode || strcmp(mode, "connect") != 0;
}

static int set_chardev(xmlNodePtr chardev, const struct identity *id)
{
	int err = 0;
	auto_free char *type = xml_attr(chardev, "type");
	for (xmlNodePtr src = xml_child(chardev, "source"); src && !err; src = xml_next(src, "source")) {
		if (makes_file(type, src))
			err = rename_path(src, "path", id);
	}
	for (xmlNodePtr log = xml_child(chardev, "log"); log && !err; log = xml_next(log, "log"))
		err = rename_path(log, "file", id);
	return err;
}

static int set_chardevs(xmlNodePtr domain, const struct identity *id)
{
	static const char *const kinds[] = {"serial", "parallel", "console", "channel"};
	int err = 0;
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds && !err; i++)
		err = each_device(domain, kinds[i], set_chardev, id);
	return err;
}

static int apply(xmlNodePtr domain, const struct identity *id)
{
	static int (*const steps[])(xmlNodePtr, const struct identity *) = {
	    drop_instance, set_genid, drop_labels, set_nvram, set_interfaces, set_graphics, set_chardevs,
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

int domain_clone_identity(const char *text, size_t len, const char *name, const char *uuid, const char *nvram_path,
                          char **ret_text, struct reason *why)
{
	struct domain_edit edit;
	int err = domain_edit_init(&edit, text, len, why);
	struct identity id = {.old_name = edit.before.name, .name = name, .nvram_path = nvram_path};
	if (!err)
		err = check_identity(&id, why);
	if (!err)
		err = domain_edit_name(&edit, name);
	if (!err)
		err = domain_edit_uuid(&edit, uuid);
	if (!err)
		err = apply(edit.root, &id);
	if (!err)
		err = domain_edit_print(&edit, ret_text);
	domain_edit_done(&edit);
	return err == -ENOMEM ? reason_set(why, err, "out of memory") : err;
}
