#include "fs/xattr.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/strbuf.h"

#define PREFIX "user.vmsnapfs."

static int add_text(const char *text, struct strbuf *value)
{
	if (!text || !*text)
		return -ENODATA;
	strbuf_add(value, text, strlen(text));
	return 0;
}

static int get_uuid(struct fs *fs, const struct place *place, struct strbuf *value)
{
	(void)fs;
	return add_text(place->snapshot ? place->snapshot->uuid : place->vm->uuid, value);
}

static int get_origin(struct fs *fs, const struct place *place, struct strbuf *value)
{
	(void)fs;
	return add_text(place->vm->origin, value);
}

static int get_parent(struct fs *fs, const struct place *place, struct strbuf *value)
{
	(void)fs;
	return add_text(place->snapshot->parent, value);
}

/* In lines: a name can't have one. */
static int get_children(struct fs *fs, const struct place *place, struct strbuf *value)
{
	size_t nr = 0;
	(void)fs;
	for (size_t i = 0; i < place->vm->nr_snapshots; i++) {
		const struct vm_snapshot *snapshot = place->vm->snapshots[i];
		if (snapshot->parent && !strcmp(snapshot->parent, place->snapshot->name))
			strbuf_addf(value, "%s%s", nr++ ? "\n" : "", snapshot->name);
	}
	return nr ? 0 : -ENODATA;
}

static int get_preview(struct fs *fs, const struct place *place, struct strbuf *value)
{
	(void)fs;
	return add_text(place->vm->preview, value);
}

static int get_state(struct fs *fs, const struct place *place, struct strbuf *value)
{
	(void)fs;
	return add_text(place->snapshot->state, value);
}

static int get_description(struct fs *fs, const struct place *place, struct strbuf *value)
{
	(void)fs;
	return add_text(place->snapshot->description, value);
}

static int get_created(struct fs *fs, const struct place *place, struct strbuf *value)
{
	(void)fs;
	char text[40];
	struct tm tm;
	time_t created = (time_t)(place->snapshot ? place->snapshot->created : place->vm->created);
	if (!created || !gmtime_r(&created, &tm) || !strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm))
		return -ENODATA;
	return add_text(text, value);
}

static int get_space(struct fs *fs, const struct place *place, bool unique, struct strbuf *value)
{
	uint64_t bytes[2];
	if (store_snapshot_space(fs->store, place->vm, place->snapshot, &bytes[0], &bytes[1]) < 0)
		return -ENODATA;
	strbuf_addf(value, "%" PRIu64, bytes[unique]);
	return 0;
}

static int get_used(struct fs *fs, const struct place *place, struct strbuf *value)
{
	return get_space(fs, place, false, value);
}

static int get_unique(struct fs *fs, const struct place *place, struct strbuf *value)
{
	return get_space(fs, place, true, value);
}

static int get_chain(struct fs *fs, const struct place *place, struct strbuf *value)
{
	auto_free char *chain = NULL;
	if (disk_chain(fs->store, place->vm, place->snapshot, place->disk, &chain, NULL) < 0)
		return -ENODATA;
	size_t len = strlen(chain);
	if (len && chain[len - 1] == '\n')
		chain[len - 1] = '\0';
	return add_text(chain, value);
}

/* The file that QEMU reads this disk from. There is none for an internal snapshot. */
static int get_layer(struct fs *fs, const struct place *place, struct strbuf *value)
{
	if (place->disk->snapshot)
		return -ENODATA;
	auto_free char *chain = NULL;
	if (disk_chain(fs->store, place->vm, place->snapshot, place->disk, &chain, NULL) < 0)
		return -ENODATA;
	chain[strcspn(chain, "\n")] = '\0';
	return add_text(chain, value);
}

static int get_depth(struct fs *fs, const struct place *place, struct strbuf *value)
{
	struct disk_stat ds;
	if (disk_stat(fs->store, place->vm, place->snapshot, place->disk, &ds, NULL) < 0)
		return -ENODATA;
	strbuf_addf(value, "%zu", ds.depth);
	return 0;
}

static const struct extended {
	enum node_kind kind;
	const char *name;
	int (*get)(struct fs *fs, const struct place *place, struct strbuf *value); /* -ENODATA */
	bool of_managed; /* every managed VM's has it, and its value costs something: listed without a look */
} attributes[] = {
	{NODE_VM, PREFIX "uuid", get_uuid, false},
	{NODE_VM, PREFIX "created", get_created, false},
	{NODE_VM, PREFIX "origin", get_origin, false},
	{NODE_VM, PREFIX "preview", get_preview, false},
	{NODE_SNAPSHOT, PREFIX "uuid", get_uuid, false},
	{NODE_SNAPSHOT, PREFIX "created", get_created, false},
	{NODE_SNAPSHOT, PREFIX "parent", get_parent, false},
	{NODE_SNAPSHOT, PREFIX "children", get_children, false},
	{NODE_SNAPSHOT, PREFIX "state", get_state, false},
	{NODE_SNAPSHOT, PREFIX "description", get_description, false},
	{NODE_SNAPSHOT, PREFIX "used", get_used, true},
	{NODE_SNAPSHOT, PREFIX "unique", get_unique, true},
	{NODE_DISK, PREFIX "chain", get_chain, false},
	{NODE_DISK, PREFIX "layer", get_layer, false},
	{NODE_DISK, PREFIX "depth", get_depth, false},
};

#define for_each_attribute(a) \
	for (const struct extended *a = attributes; a < attributes + sizeof attributes / sizeof *attributes; a++)

int xattr_load(struct fs *fs, const struct place *place, const char *name, char **ret, size_t *ret_len)
{
	for_each_attribute(attribute) {
		if (attribute->kind != place->node.kind || strcmp(attribute->name, name))
			continue;
		struct strbuf value = {0};
		int err = attribute->get(fs, place, &value);
		if (!err)
			err = strbuf_take(&value, ret, ret_len);
		strbuf_done(&value);
		return err;
	}
	return -ENODATA;
}

int xattr_list(struct fs *fs, const struct place *place, char **ret, size_t *ret_len)
{
	struct strbuf names = {0};
	for_each_attribute(attribute) {
		auto_free char *value = NULL;
		size_t len;
		if (attribute->kind != place->node.kind)
			continue;
		if (attribute->of_managed ? place->vm->kind == VM_MANAGED : xattr_load(fs, place, attribute->name, &value, &len) == 0)
			strbuf_add(&names, attribute->name, strlen(attribute->name) + 1);
	}
	return strbuf_take(&names, ret, ret_len);
}
