/* Domain snapshots as text: parts of what libvirt wrote, and our own. */
#include "meta/domsnapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "meta/domsnapshot_tree.h"
#include "meta/xml_edit.h"

int domsnapshot_domain_text(const char *text, size_t len, char **ret_text, struct reason *why)
{
	auto_doc xmlDocPtr doc = NULL;
	xmlNodePtr root = NULL;
	int err = xml_parse(text, len, &doc, why);
	if (!err)
		err = domsnapshot_root(doc, &root, why);
	if (err)
		return err;
	xmlNodePtr domain = domsnapshot_domain_node(root);
	if (!domain)
		return reason_set(why, -ENOENT, "the snapshot holds no configuration");
	err = xml_indent(domain, -xml_indentation(domain));
	auto_free char *printed = NULL;
	if (!err)
		err = xml_print(doc, domain, &printed);
	if (err)
		return err;
	struct strbuf out = {0};
	strbuf_addf(&out, "%s\n", printed);
	return strbuf_take(&out, ret_text, NULL);
}

/* --- the public form ------------------------------------------------------------------------------------------ */

static bool is_public(xmlNodePtr node)
{
	static const char *const names[] = {"name",   "description", "state", "creationTime",
	                                    "parent", "memory",      "disks", "domain"};
	for (size_t i = 0; i < sizeof names / sizeof *names && !node->ns; i++) {
		if (strcmp((const char *)node->name, names[i]) == 0)
			return true;
	}
	return false;
}

static void drop_private(xmlNodePtr root)
{
	for (xmlNodePtr node = xmlFirstElementChild(root), next; node; node = next) {
		next = xmlNextElementSibling(node); /* an element: xml_drop frees the white space around NODE, too */
		if (!is_public(node))
			xml_drop(node);
	}
	xmlNodePtr disks = xml_child(root, "disks");
	for (xmlNodePtr disk = xml_child(disks, "disk"); disk; disk = xml_next(disk, "disk"))
		xml_drop_children(disk, "snapshotDeleteInProgress");
}

int domsnapshot_public_text(const char *text, size_t len, char **ret_text, struct reason *why)
{
	auto_doc xmlDocPtr doc = NULL;
	xmlNodePtr root = NULL;
	int err = xml_parse(text, len, &doc, why);
	if (!err)
		err = domsnapshot_root(doc, &root, why);
	if (err)
		return err;
	drop_private(root);
	auto_free char *printed = NULL;
	err = xml_print(doc, root, &printed);
	if (err)
		return err;
	struct strbuf out = {0};
	strbuf_addf(&out, "%s\n", printed);
	return strbuf_take(&out, ret_text, NULL);
}

/* --- our own -------------------------------------------------------------------------------------------------- */

static const char *location_word(enum domsnapshot_location location)
{
	switch (location) {
	case DOMSNAPSHOT_NONE: return "no";
	case DOMSNAPSHOT_INTERNAL: return "internal";
	case DOMSNAPSHOT_EXTERNAL: return "external";
	}
	return "no";
}

static int add_element(struct strbuf *out, const char *name, const char *text)
{
	int err = xml_check_text(name, text, NULL);
	if (err)
		return err;
	strbuf_addf(out, "  <%s>", name);
	strbuf_add_xml(out, text);
	strbuf_addf(out, "</%s>\n", name);
	return 0;
}

static int add_parent(struct strbuf *out, const char *parent)
{
	strbuf_addf(out, "  <parent>\n  ");
	int err = add_element(out, "name", parent);
	strbuf_addf(out, "  </parent>\n");
	return err;
}

static int add_memory(struct strbuf *out, const struct domsnapshot_spec *spec)
{
	if (!spec->memory_file) {
		strbuf_addf(out, "  <memory snapshot=\"%s\"/>\n", spec->has_memory ? "internal" : "no");
		return 0;
	}
	int err = xml_check_text("path", spec->memory_file, NULL);
	if (err)
		return err;
	strbuf_addf(out, "  <memory snapshot=\"external\" file=\"");
	strbuf_add_xml_exact(out, spec->memory_file);
	strbuf_addf(out, "\"/>\n");
	return 0;
}

static int add_disk(struct strbuf *out, const struct domsnapshot_disk *disk)
{
	int err = xml_check_text("disk", disk->name, NULL);
	if (!err && disk->overlay)
		err = xml_check_text("path", disk->overlay, NULL);
	if (err)
		return err;
	strbuf_addf(out, "    <disk name=\"");
	strbuf_add_xml_exact(out, disk->name);
	strbuf_addf(out, "\" snapshot=\"%s\"", location_word(disk->location));
	if (disk->location != DOMSNAPSHOT_EXTERNAL || !disk->overlay) {
		strbuf_addf(out, "/>\n");
		return 0;
	}
	strbuf_addf(out, " type=\"file\">\n      <source file=\"");
	strbuf_add_xml_exact(out, disk->overlay);
	strbuf_addf(out, "\"/>\n    </disk>\n");
	return 0;
}

static int add_disks(struct strbuf *out, const struct domsnapshot_spec *spec)
{
	int err = 0;
	strbuf_addf(out, "  <disks>\n");
	for (size_t i = 0; i < spec->nr_disks && !err; i++)
		err = add_disk(out, &spec->disks[i]);
	strbuf_addf(out, "  </disks>\n");
	return err;
}

/* The text is parsed first: what isn't a domain mustn't break the snapshot around it. */
static int add_domain(struct strbuf *out, const char *text)
{
	auto_doc xmlDocPtr doc = NULL;
	int err = xml_parse(text, strlen(text), &doc, NULL);
	if (err)
		return err;
	xmlNodePtr root = xmlDocGetRootElement(doc);
	if (strcmp((const char *)root->name, "domain") != 0 || root->ns)
		return -EINVAL;
	auto_free char *printed = NULL;
	err = xml_indent(root, 2 - xml_indentation(root));
	if (!err)
		err = xml_print(doc, root, &printed);
	if (!err)
		strbuf_addf(out, "  %s\n", printed);
	return err;
}

static int add_all(struct strbuf *out, const struct domsnapshot_spec *spec)
{
	strbuf_addf(out, "<domainsnapshot>\n");
	int err = add_element(out, "name", spec->name);
	if (!err && spec->description && *spec->description)
		err = add_element(out, "description", spec->description);
	if (!err)
		err = add_element(out, "state", spec->state);
	if (!err && spec->parent)
		err = add_parent(out, spec->parent);
	if (err)
		return err;
	strbuf_addf(out, "  <creationTime>%" PRId64 "</creationTime>\n", spec->created);
	err = add_memory(out, spec);
	if (!err)
		err = add_disks(out, spec);
	if (!err && spec->domain_text)
		err = add_domain(out, spec->domain_text);
	strbuf_addf(out, "</domainsnapshot>\n");
	return err;
}

int domsnapshot_render(const struct domsnapshot_spec *spec, char **ret_text)
{
	struct strbuf out = {0};
	int err = add_all(&out, spec);
	if (!err)
		return strbuf_take(&out, ret_text, NULL);
	strbuf_done(&out);
	return err;
}
