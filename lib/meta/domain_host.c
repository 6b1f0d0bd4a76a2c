/* identity_set_host: files, sockets and ports of the host that belong to one VM alone. */
#include "meta/domain.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "meta/domain_identity.h"
#include "meta/xml_edit.h"

/* --- names in paths ------------------------------------------------------------------------------------------------------ */

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

/* PATH with the new name for the old one; NULL in RET: it doesn't hold the old one. The caller frees. */
static int renamed(const char *path, const struct identity *id, char **ret)
{
	const char *found = path ? find_name(path, id->old_name) : NULL;
	*ret = NULL;
	if (!found)
		return 0;
	struct strbuf b = {0};
	strbuf_add(&b, path, (size_t)(found - path));
	strbuf_addf(&b, "%s%s", id->name, found + strlen(id->old_name));
	return strbuf_take(&b, ret, NULL);
}

/* Renames the path in attribute ATTR of NODE, a file that QEMU makes. WHAT it is, for the note where its path doesn't hold the old name. */
static int rename_path(xmlNodePtr node, const char *attr, const char *what, const struct identity *id)
{
	auto_free char *path = xml_attr(node, attr);
	auto_free char *text = NULL;
	int err = renamed(path, id, &text);
	if (err || !path)
		return err;
	if (!text)
		identity_note(id, "its %s is still %s, which the original has too: change it in domain.xml if both are to run", what, path);
	return text ? xml_set_attr(node, attr, text) : 0;
}

static void note_shared(const struct identity *id, const char *what, const char *which)
{
	identity_note(id, "its %s %s is still the original's, and can't be used by both at a time: change it in domain.xml", what, which);
}

/* --- graphics, character devices ------------------------------------------------------------------------------------------- */

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

/* <graphics type='dbus' address='unix:path=…'/>; other attributes of that name are places to listen at. */
static int set_bus_address(xmlNodePtr graphics, const struct identity *id)
{
	auto_free char *type = xml_attr(graphics, "type");
	return type && !strcmp(type, "dbus") ? rename_path(graphics, "address", "D-Bus address", id) : 0;
}

static int set_graphics_device(xmlNodePtr graphics, const struct identity *id)
{
	int err = set_ports(graphics);
	if (!err)
		err = replace_attr(graphics, "websocket", "-1");
	if (!err)
		err = rename_path(graphics, "socket", "graphics socket", id);
	for (xmlNodePtr at = xml_child(graphics, "listen"); at && !err; at = xml_next(at, "listen"))
		err = rename_path(at, "socket", "graphics socket", id);
	return err ? err : set_bus_address(graphics, id);
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

/* A TCP or UDP port that QEMU listens at. */
static void note_port(const char *type, xmlNodePtr source, const struct identity *id)
{
	auto_free char *mode = xml_attr(source, "mode");
	auto_free char *service = xml_attr(source, "service");
	bool is_bound = mode && !strcmp(mode, "bind") && type && (!strcmp(type, "tcp") || !strcmp(type, "udp"));
	if (is_bound && service)
		note_shared(id, "port", service);
}

static int set_chardev(xmlNodePtr chardev, const struct identity *id)
{
	int err = 0;
	auto_free char *type = xml_attr(chardev, "type");
	for (xmlNodePtr src = xml_child(chardev, "source"); src && !err; src = xml_next(src, "source")) {
		if (makes_file(type, src))
			err = rename_path(src, "path", (const char *)chardev->name, id);
		note_port(type, src, id);
	}
	for (xmlNodePtr log = xml_child(chardev, "log"); log && !err; log = xml_next(log, "log"))
		err = rename_path(log, "file", "log", id);
	return err;
}

/* A path with the channel's name in it is one that libvirt made: it makes another. */
static void drop_made_path(xmlNodePtr channel, const struct identity *id)
{
	xmlNodePtr source = xml_child(channel, "source");
	auto_free char *type = xml_attr(channel, "type");
	auto_free char *path = xml_attr(source, "path");
	auto_free char *name = xml_attr(xml_child(channel, "target"), "name");
	if (source && path && name && makes_file(type, source) && strstr(path, name) && !find_name(path, id->old_name))
		xml_drop_attr(source, "path");
}

static int set_channel(xmlNodePtr channel, const struct identity *id)
{
	drop_made_path(channel, id);
	return set_chardev(channel, id);
}

/* The first console is the first serial port once more: what is true of it has been noted. */
static int set_console(xmlNodePtr console, const struct identity *id)
{
	struct strbuf unread = {0};
	struct identity quiet = *id;
	quiet.notes = &unread;
	bool is_first = true;
	for (xmlNodePtr node = console->prev; node; node = node->prev)
		is_first = is_first && !(node->type == XML_ELEMENT_NODE && !strcmp((const char *)node->name, "console"));
	int err = set_chardev(console, is_first ? &quiet : id);
	strbuf_done(&unread);
	return err;
}

static int set_rng(xmlNodePtr rng, const struct identity *id)
{
	xmlNodePtr backend = xml_child(rng, "backend");
	return backend ? set_chardev(backend, id) : 0;
}

/* --- interfaces, sockets ------------------------------------------------------------------------------------------------------ */

/* The other end of a vhost-user socket serves one VM; QEMU makes it where it is the server. */
static int set_vhost_user(xmlNodePtr interface, const struct identity *id)
{
	xmlNodePtr source = xml_child(interface, "source");
	auto_free char *type = xml_attr(interface, "type");
	auto_free char *mode = xml_attr(source, "mode");
	auto_free char *path = xml_attr(source, "path");
	if (!type || strcmp(type, "vhostuser") != 0 || !path)
		return 0;
	if (mode && !strcmp(mode, "server"))
		return rename_path(source, "path", "vhost-user socket", id);
	note_shared(id, "vhost-user socket", path);
	return 0;
}

static int set_interface(xmlNodePtr interface, const struct identity *id)
{
	xmlNodePtr backend = xml_child(interface, "backend"), range = xml_child(xml_child(interface, "portForward"), "range");
	auto_free char *start = xml_attr(range, "start");
	int err = set_vhost_user(interface, id);
	if (!err && backend)
		err = rename_path(backend, "logFile", "passt log", id);
	if (start)
		note_shared(id, "forwarded port", start);
	return err;
}

static int note_vhost_disk(xmlNodePtr disk, const struct identity *id)
{
	auto_free char *type = xml_attr(disk, "type");
	auto_free char *path = xml_attr(xml_child(disk, "source"), "path");
	if (type && !strcmp(type, "vhostuser") && path)
		note_shared(id, "vhost-user disk", path);
	return 0;
}

static int note_filesystem(xmlNodePtr filesystem, const struct identity *id)
{
	auto_free char *socket = xml_attr(xml_child(filesystem, "source"), "socket");
	if (socket)
		note_shared(id, "virtiofsd socket", socket);
	return 0;
}

/* Two VMs of one host can't have one context id. */
static int set_vsock(xmlNodePtr vsock, const struct identity *id)
{
	(void)id;
	xmlNodePtr cid = xml_child(vsock, "cid");
	if (!cid || !xmlHasProp(cid, BAD_CAST "address"))
		return 0;
	xml_drop_attr(cid, "address");
	return xml_set_attr(cid, "auto", "yes");
}

static int set_audio(xmlNodePtr audio, const struct identity *id)
{
	auto_free char *type = xml_attr(audio, "type");
	return type && !strcmp(type, "file") ? rename_path(audio, "path", "audio file", id) : 0;
}

/* --- state ------------------------------------------------------------------------------------------------------------------------ */

/* libvirt gives an emulator without a <source> a directory of its own, by the VM's UUID. */
static int set_tpm(xmlNodePtr tpm, const struct identity *id)
{
	xmlNodePtr backend = xml_child(tpm, "backend"), source = xml_child(backend, "source");
	auto_free char *type = xml_attr(backend, "type");
	auto_free char *path = xml_attr(source, "path");
	if (type && !strcmp(type, "external") && path)
		note_shared(id, "TPM at", path);
	if (!type || strcmp(type, "emulator") != 0)
		return 0;
	xml_drop(source);
	identity_note(id, "its TPM starts empty, for the state of the original's isn't copied: what is sealed with that needs its recovery key");
	return 0;
}

/* Memory that lasts is a disk by another name; as those that weren't cloned, it goes: a VM that kept it would write to the original's. */
static int set_memory(xmlNodePtr memory, const struct identity *id)
{
	auto_free char *path = xml_text(xml_child(xml_child(memory, "source"), "path"));
	auto_free char *access = xml_attr(memory, "access");
	if (!path || (access && !strcmp(access, "private")) || xml_child(xml_child(memory, "target"), "readonly"))
		return 0;
	identity_note(id, "its memory device %s is left out, for the original writes to that file: copy it, and add the device in domain.xml", path);
	xml_drop(memory);
	return 0;
}

static int set_text_path(xmlNodePtr node, const char *what, const struct identity *id)
{
	auto_free char *path = xml_text(node);
	auto_free char *text = NULL;
	int err = renamed(path, id, &text);
	if (!err && path && !text)
		identity_note(id, "its %s is still %s, which the original has too: change it in domain.xml if both are to run", what, path);
	return text ? xml_set_text(node, text) : err;
}

static int set_pstore(xmlNodePtr pstore, const struct identity *id)
{
	xmlNodePtr path = xml_child(pstore, "path");
	return path ? set_text_path(path, "pstore", id) : 0;
}

/* UEFI variables in libvirt's newer form: where there is none it is made from the template. */
static void drop_varstore(xmlNodePtr domain, const struct identity *id)
{
	xmlNodePtr varstore = xml_child(xml_child(domain, "os"), "varstore");
	auto_free char *path = xml_attr(varstore, "path");
	if (!path)
		return;
	xml_drop_attr(varstore, "path");
	identity_note(id, "its UEFI variables %s aren't copied: it starts with new ones", path);
}

/* --- all of them ------------------------------------------------------------------------------------------------------------------ */

/* Arguments for QEMU are the user's own: they stay as they are. */
static void note_arguments(xmlNodePtr domain, const struct identity *id)
{
	for (xmlNodePtr line = domain->children; line; line = line->next) {
		if (line->type != XML_ELEMENT_NODE || !line->ns || strcmp((const char *)line->name, "commandline") != 0)
			continue;
		for (xmlNodePtr arg = line->children; arg; arg = arg->next) {
			auto_free char *value = arg->type == XML_ELEMENT_NODE ? xml_attr(arg, "value") : NULL;
			if (value && find_name(value, id->old_name))
				identity_note(id, "its QEMU argument %s is the original's: look whether both can have it", value);
		}
	}
}

int identity_set_host(xmlNodePtr domain, const struct identity *id)
{
	static const struct {
		const char *device;
		int (*change)(xmlNodePtr, const struct identity *);
	} rows[] = {
		{"graphics", set_graphics_device}, {"serial", set_chardev}, {"parallel", set_chardev}, {"console", set_console}, {"channel", set_channel},
		{"smartcard", set_chardev}, {"redirdev", set_chardev}, {"rng", set_rng}, {"interface", set_interface}, {"disk", note_vhost_disk},
		{"filesystem", note_filesystem}, {"vsock", set_vsock}, {"audio", set_audio}, {"tpm", set_tpm}, {"memory", set_memory}, {"pstore", set_pstore},
	};
	int err = 0;
	for (size_t i = 0; i < sizeof rows / sizeof *rows && !err; i++)
		err = identity_each_device(domain, rows[i].device, rows[i].change, id);
	if (err)
		return err;
	drop_varstore(domain, id);
	note_arguments(domain, id);
	return 0;
}
