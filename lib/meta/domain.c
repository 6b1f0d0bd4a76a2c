#include "meta/domain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/name.h"
#include "base/strbuf.h"
#include "meta/domain_edit.h"
#include "meta/xml_edit.h"

static enum domain_disk_kind disk_kind(const char *source_type)
{
	if (strcmp(source_type, "file") == 0)
		return DOMAIN_DISK_FILE;
	return strcmp(source_type, "block") == 0 ? DOMAIN_DISK_BLOCK : DOMAIN_DISK_OTHER;
}

static char *disk_path(enum domain_disk_kind kind, xmlNodePtr source)
{
	switch (kind) {
	case DOMAIN_DISK_FILE: return xml_attr(source, "file");
	case DOMAIN_DISK_BLOCK: return xml_attr(source, "dev");
	case DOMAIN_DISK_OTHER: return NULL;
	}
	return NULL;
}

/* TEXT, or a copy of FALLBACK where it is NULL. */
static char *or_default(char *text, const char *fallback)
{
	return text ? text : strdup(fallback);
}

static char *disk_format(xmlNodePtr node)
{
	char *format = or_default(xml_attr(xml_child(node, "driver"), "type"), "raw");
	if (format && strcmp(format, "aio") == 0)
		strcpy(format, "raw"); /* how Xen's XML of old says it */
	return format;
}

static int disk_parse(xmlNodePtr node, struct domain_disk *disk, struct reason *why)
{
	xmlNodePtr source = xml_child(node, "source");
	disk->target = domain_device_target(node);
	if (!disk->target)
		return reason_set(why, -EINVAL, "line %ld: a disk without <target dev=…>", xmlGetLineNo(node));
	if (name_check(disk->target) < 0)
		return reason_set(why, -EINVAL, "line %ld: '%s' can't be a disk's target", xmlGetLineNo(node),
		                  disk->target);
	disk->source_type = or_default(xml_attr(node, "type"), "file");
	disk->format = disk_format(node);
	if (!disk->source_type || !disk->format)
		return reason_set(why, -ENOMEM, "out of memory");
	disk->kind = disk_kind(disk->source_type);
	disk->path = disk_path(disk->kind, source);
	disk->snapshot = xml_attr(node, "snapshot");
	disk->shareable = xml_child(node, "shareable");
	disk->readonly = xml_child(node, "readonly");
	disk->encrypted = xml_child(node, "encryption") || xml_child(source, "encryption");
	return 0;
}

static int check_target_is_new(const struct domain *domain, const struct domain_disk *disk, struct reason *why)
{
	for (const struct domain_disk *d = domain->disks; d < disk; d++) {
		if (strcmp(d->target, disk->target) == 0)
			return reason_set(why, -EINVAL, "two disks have the target %s", disk->target);
	}
	return 0;
}

static int disks_parse(xmlNodePtr root, struct domain *domain, struct reason *why)
{
	size_t cap = 0;
	for (xmlNodePtr node = domain_device(root, "disk"); node; node = domain_next_device(node, "disk")) {
		if (!domain_device_is_disk(node))
			continue;
		if (domain->nr_disks == DOMAIN_DISKS_MAX)
			return reason_set(why, -EINVAL, "more than %d disks", DOMAIN_DISKS_MAX);
		if (mem_grow(&domain->disks, &cap, domain->nr_disks + 1, sizeof *domain->disks) < 0)
			return reason_set(why, -ENOMEM, "out of memory");
		struct domain_disk *disk = &domain->disks[domain->nr_disks++];
		int err = disk_parse(node, disk, why);
		if (!err)
			err = check_target_is_new(domain, disk, why);
		if (err)
			return err;
	}
	return 0;
}

/* <nvram>PATH</nvram>, or since libvirt 8.5 <nvram type='file'><source file='PATH'/></nvram>. */
static char *nvram_path(xmlNodePtr nvram)
{
	xmlNodePtr source = xml_child(nvram, "source");
	return source ? xml_attr(source, "file") : xml_text(nvram);
}

int domain_parse(xmlNodePtr node, struct domain *ret, struct reason *why)
{
	if (strcmp((const char *)node->name, "domain") != 0 || node->ns)
		return reason_set(why, -EINVAL, "not a libvirt domain: the element is <%s>", node->name);
	struct domain domain = {.name = xml_text(xml_child(node, "name"))};
	if (!domain.name)
		return reason_set(why, -EINVAL, "the domain has no <name>");
	domain.uuid = xml_text(xml_child(node, "uuid"));
	domain.title = xml_text(xml_child(node, "title"));
	domain.nvram = nvram_path(xml_child(xml_child(node, "os"), "nvram"));
	int err = disks_parse(node, &domain, why);
	if (err) {
		domain_done(&domain);
		return err;
	}
	*ret = domain;
	return 0;
}

int domain_parse_text(const char *text, size_t len, struct domain *ret, struct reason *why)
{
	auto_doc xmlDocPtr doc = NULL;
	int err = xml_parse_to_read(text, len, &doc, why);
	return err ? err : domain_parse(xmlDocGetRootElement(doc), ret, why);
}

static void disk_done(struct domain_disk *disk)
{
	free(disk->target);
	free(disk->path);
	free(disk->format);
	free(disk->snapshot);
	free(disk->source_type);
}

void domain_done(struct domain *domain)
{
	free(domain->name);
	free(domain->uuid);
	free(domain->title);
	free(domain->nvram);
	for (size_t i = 0; i < domain->nr_disks; i++)
		disk_done(&domain->disks[i]);
	free(domain->disks);
	*domain = (struct domain){0};
}

static const char minimal_rest[] = "  <memory unit=\"MiB\">2048</memory>\n"
                                   "  <vcpu>2</vcpu>\n"
                                   "  <os>\n"
                                   "    <type arch=\"x86_64\">hvm</type>\n"
                                   "  </os>\n"
                                   "  <features>\n"
                                   "    <acpi/>\n"
                                   "    <apic/>\n"
                                   "  </features>\n"
                                   "  <devices>\n"
                                   "    <serial type=\"pty\"/>\n"
                                   "    <console type=\"pty\"/>\n"
                                   "    <graphics type=\"vnc\" port=\"-1\" autoport=\"yes\"/>\n"
                                   "  </devices>\n"
                                   "</domain>\n";

int domain_minimal(const char *name, const char *uuid, char **ret_text)
{
	int err = xml_check_text("name", name, NULL);
	if (err)
		return err;
	struct strbuf out = {0};
	strbuf_addf(&out, "<domain type=\"kvm\">\n  <name>");
	strbuf_add_xml(&out, name);
	strbuf_addf(&out, "</name>\n");
	if (uuid) {
		strbuf_addf(&out, "  <uuid>");
		strbuf_add_xml(&out, uuid);
		strbuf_addf(&out, "</uuid>\n");
	}
	strbuf_add(&out, minimal_rest, sizeof minimal_rest - 1);
	return strbuf_take(&out, ret_text, NULL);
}
