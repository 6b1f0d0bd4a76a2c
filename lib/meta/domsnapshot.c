#include "meta/domsnapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "meta/domsnapshot_tree.h"

int domsnapshot_root(xmlDocPtr doc, xmlNodePtr *ret, struct reason *why)
{
	xmlNodePtr root = xmlDocGetRootElement(doc);
	if (strcmp((const char *)root->name, "domainsnapshot") != 0 || root->ns)
		return reason_set(why, -EINVAL, "not a libvirt snapshot: the element is <%s>", root->name);
	*ret = root;
	return 0;
}

xmlNodePtr domsnapshot_domain_node(xmlNodePtr root)
{
	xmlNodePtr domain = xml_child(root, "domain");
	return xml_child(domain, "name") ? domain : NULL;
}

static bool is_one_of(const char *word, const char *a, const char *b)
{
	return word && (strcmp(word, a) == 0 || strcmp(word, b) == 0);
}

/* --- reading -------------------------------------------------------------------------------------------------- */

static enum domsnapshot_location parse_location(const char *word, enum domsnapshot_location missing)
{
	if (!word)
		return missing;
	if (strcmp(word, "internal") == 0)
		return DOMSNAPSHOT_INTERNAL;
	return strcmp(word, "external") == 0 ? DOMSNAPSHOT_EXTERNAL : DOMSNAPSHOT_NONE;
}

static void memory_parse(xmlNodePtr memory, struct domsnapshot *snapshot)
{
	auto_free char *word = xml_attr(memory, "snapshot");
	auto_free char *file = xml_attr(memory, "file");
	enum domsnapshot_location missing = DOMSNAPSHOT_INTERNAL;
	if (!snapshot->state || is_one_of(snapshot->state, "shutoff", "disk-snapshot"))
		missing = DOMSNAPSHOT_NONE;
	snapshot->memory = parse_location(word, file ? DOMSNAPSHOT_EXTERNAL : missing);
	if (snapshot->memory == DOMSNAPSHOT_EXTERNAL)
		snapshot->memory_file = take_ptr(file);
}

static const struct domain_disk *find_disk(const struct domsnapshot *snapshot, const char *target)
{
	for (size_t i = 0; i < snapshot->domain.nr_disks; i++) {
		if (strcmp(snapshot->domain.disks[i].target, target) == 0)
			return &snapshot->domain.disks[i];
	}
	return NULL;
}

/* The target of the disk whose source is PATH; NULL: none. */
static const char *target_of(const struct domsnapshot *snapshot, const char *path)
{
	for (size_t i = 0; i < snapshot->domain.nr_disks; i++) {
		const struct domain_disk *disk = &snapshot->domain.disks[i];
		if (disk->path && strcmp(disk->path, path) == 0)
			return disk->target;
	}
	return NULL;
}

/* What libvirt assumed when the snapshot was made without a word about the disk (virDomainMomentAlignDisks). */
static enum domsnapshot_location default_location(const struct domsnapshot *snapshot, const struct domain_disk *disk)
{
	bool external = (snapshot->state && strcmp(snapshot->state, "disk-snapshot") == 0) ||
	                snapshot->memory == DOMSNAPSHOT_EXTERNAL;
	enum domsnapshot_location location = external ? DOMSNAPSHOT_EXTERNAL : DOMSNAPSHOT_INTERNAL;
	if (!disk)
		return location;
	if (disk->kind != DOMAIN_DISK_OTHER && !disk->path)
		return DOMSNAPSHOT_NONE;
	return parse_location(disk->snapshot, disk->readonly ? DOMSNAPSHOT_NONE : location);
}

static char *overlay_path(xmlNodePtr source)
{
	char *path = xml_attr(source, "file");
	return path ? path : xml_attr(source, "dev");
}

static int name_parse(xmlNodePtr node, const struct domsnapshot *snapshot, char **ret, struct reason *why)
{
	auto_free char *name = xml_attr(node, "name");
	if (!name)
		return reason_set(why, -EINVAL, "line %ld: a disk without a name", xmlGetLineNo(node));
	const char *target = *name == '/' ? target_of(snapshot, name) : NULL;
	*ret = target ? strdup(target) : take_ptr(name);
	return *ret ? 0 : reason_set(why, -ENOMEM, "out of memory");
}

static int disk_parse(xmlNodePtr node, const struct domsnapshot *snapshot, struct domsnapshot_disk *disk,
                      struct reason *why)
{
	int err = name_parse(node, snapshot, &disk->name, why);
	if (err)
		return err;
	auto_free char *word = xml_attr(node, "snapshot");
	disk->overlay = overlay_path(xml_child(node, "source"));
	disk->location = parse_location(
	    word, disk->overlay ? DOMSNAPSHOT_EXTERNAL : default_location(snapshot, find_disk(snapshot, disk->name)));
	return 0;
}

static int disks_parse(xmlNodePtr disks, struct domsnapshot *snapshot, struct reason *why)
{
	size_t cap = 0;
	for (xmlNodePtr node = xml_child(disks, "disk"); node; node = xml_next(node, "disk")) {
		if (snapshot->nr_disks == DOMAIN_DISKS_MAX)
			return reason_set(why, -EINVAL, "more than %d disks", DOMAIN_DISKS_MAX);
		if (mem_grow(&snapshot->disks, &cap, snapshot->nr_disks + 1, sizeof *snapshot->disks) < 0)
			return reason_set(why, -ENOMEM, "out of memory");
		int err = disk_parse(node, snapshot, &snapshot->disks[snapshot->nr_disks++], why);
		if (err)
			return err;
	}
	return 0;
}

/* Before <disks> there was, a snapshot held all that the domain had. */
static int disks_assume(struct domsnapshot *snapshot, struct reason *why)
{
	size_t nr = snapshot->domain.nr_disks;
	snapshot->disks = mem_new_array(nr, sizeof *snapshot->disks);
	for (size_t i = 0; i < nr && snapshot->disks; i++) {
		const struct domain_disk *disk = &snapshot->domain.disks[i];
		struct domsnapshot_disk *row = &snapshot->disks[i];
		row->location = default_location(snapshot, disk);
		row->name = strdup(disk->target);
		if (!row->name)
			break;
		snapshot->nr_disks++;
	}
	return snapshot->nr_disks == nr ? 0 : reason_set(why, -ENOMEM, "out of memory");
}

static int domain_of(xmlNodePtr root, struct domsnapshot *snapshot, struct reason *why)
{
	xmlNodePtr domain = domsnapshot_domain_node(root);
	if (!domain)
		return 0;
	int err = domain_parse(domain, &snapshot->domain, why);
	snapshot->has_domain = !err;
	return err;
}

static void words_parse(xmlNodePtr root, struct domsnapshot *snapshot)
{
	snapshot->description = xml_text(xml_child(root, "description"));
	snapshot->state = xml_text(xml_child(root, "state"));
	snapshot->parent = xml_text(xml_child(xml_child(root, "parent"), "name"));
	auto_free char *created = xml_text(xml_child(root, "creationTime"));
	snapshot->created = created ? strtoll(created, NULL, 10) : 0;
	auto_free char *active = xml_text(xml_child(root, "active"));
	snapshot->active = active && strcmp(active, "1") == 0;
	memory_parse(xml_child(root, "memory"), snapshot);
}

static int snapshot_parse(xmlNodePtr root, struct domsnapshot *snapshot, struct reason *why)
{
	snapshot->name = xml_text(xml_child(root, "name"));
	if (!snapshot->name)
		return reason_set(why, -EINVAL, "the snapshot has no <name>");
	words_parse(root, snapshot);
	int err = domain_of(root, snapshot, why);
	if (err)
		return reason_prefix(why, err, "snapshot %s: ", snapshot->name);
	xmlNodePtr disks = xml_child(root, "disks");
	return disks ? disks_parse(disks, snapshot, why) : disks_assume(snapshot, why);
}

int domsnapshot_parse_text(const char *text, size_t len, struct domsnapshot *ret, struct reason *why)
{
	auto_doc xmlDocPtr doc = NULL;
	xmlNodePtr root = NULL;
	int err = xml_parse_to_read(text, len, &doc, why);
	if (!err)
		err = domsnapshot_root(doc, &root, why);
	if (err)
		return err;
	struct domsnapshot snapshot = {0};
	err = snapshot_parse(root, &snapshot, why);
	if (err)
		domsnapshot_done(&snapshot);
	else
		*ret = snapshot;
	return err;
}

void domsnapshot_done(struct domsnapshot *snapshot)
{
	free(snapshot->name);
	free(snapshot->description);
	free(snapshot->state);
	free(snapshot->parent);
	free(snapshot->memory_file);
	domain_done(&snapshot->domain);
	for (size_t i = 0; i < snapshot->nr_disks; i++) {
		free(snapshot->disks[i].name);
		free(snapshot->disks[i].overlay);
	}
	free(snapshot->disks);
	*snapshot = (struct domsnapshot){0};
}

enum domsnapshot_location domsnapshot_disk_location(const struct domsnapshot *snapshot, const char *target)
{
	for (size_t i = 0; i < snapshot->nr_disks; i++) {
		if (strcmp(snapshot->disks[i].name, target) == 0)
			return snapshot->disks[i].location;
	}
	return default_location(snapshot, find_disk(snapshot, target));
}
