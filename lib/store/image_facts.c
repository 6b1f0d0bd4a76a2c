#include "store/image_facts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "store/found.h"
#include "store/source.h"
#include "store/store_internal.h"

int image_facts_new(struct image_facts **ret)
{
	*ret = calloc(1, sizeof **ret);
	return *ret ? 0 : -ENOMEM;
}

static void fact_done(struct image_fact *fact)
{
	if (fact->named != fact->path)
		free(fact->named);
	if (fact->backing_named != fact->backing)
		free(fact->backing_named);
	free(fact->path);
	free(fact->error_text);
	free(fact->backing);
	free(fact->data);
	*fact = (struct image_fact){0};
}

static void fact_table_done(struct fact_table *table)
{
	for (size_t i = 0; i < table->nr_facts; i++)
		fact_done(&table->facts[i]);
	free(table->facts);
	intern_done(&table->keys);
	*table = (struct fact_table){0};
}

void image_facts_free(struct image_facts *facts)
{
	if (!facts)
		return;
	fact_table_done(&facts->known);
	free(facts);
}

/* NAME as it is written in DIR, and what it resolves to. */
static int resolve(struct store *store, const char *dir, const char *name, char **ret_named, char **ret_real, struct reason *why)
{
	int err = trust_resolve(store->trust, dir, name, ret_real, why);
	if (err)
		return err;
	int n = *name == '/' ? asprintf(ret_named, "%s", name) : asprintf(ret_named, "%s/%s", dir, name);
	return n < 0 ? -ENOMEM : 0;
}

/* There may be a million facts, and mostly a name is the real path. */
static void share_text(char **name, char *path)
{
	if (*name && path && *name != path && strcmp(*name, path) == 0) {
		free(*name);
		*name = path;
	}
}

static int fact_fail(struct image_fact *fact, int err, const struct reason *why)
{
	fact->err = err;
	return text_set(&fact->error_text, *why->text ? why->text : strerror(-err));
}

/* Reads the header. Only want of memory is a failure: anything else is a fact. */
static int fact_read(struct store *store, struct image_fact *fact)
{
	struct reason why = {0};
	struct image *image = NULL;
	int err = image_open(store->images, NULL, fact->named, fact->format, &image, &why);
	if (err)
		return err == -ENOMEM ? err : fact_fail(fact, err, &why);
	const char *slash = strrchr(fact->named, '/');
	auto_free char *dir = strndup(fact->named, slash == fact->named ? 1 : (size_t)(slash - fact->named));
	const char *backing = image_backing_name(image);
	err = dir ? text_set(&fact->data, image_data_path(image)) : -ENOMEM;
	if (!err && backing) {
		fact->backing_format = image_backing_format(image);
		err = resolve(store, dir, backing, &fact->backing_named, &fact->backing, &why);
		if (err && err != -ENOMEM) {
			reason_prefix(&why, err, "%s: its backing file: ", fact->path);
			err = fact_fail(fact, err, &why);
		}
	}
	image_put(image);
	share_text(&fact->named, fact->path);
	share_text(&fact->backing_named, fact->backing);
	return err;
}

void fact_note_unread(struct fact_scan *scan, struct image_fact *fact, int err)
{
	if (!source_error_may_pass(err))
		return;
	fact->stamp = 0;
	scan->any_unread = true;
}

/* Moves what the last look found into FACT, if that is still true. */
static bool take_known(struct fact_scan *scan, const char *key, struct image_fact *fact)
{
	uint32_t id = intern_lookup(&scan->known->keys, key);
	struct image_fact *old = id ? &scan->known->facts[id - 1] : NULL;
	if (!old || !old->path || old->stamp != fact->stamp || source_error_may_pass(old->err) || strcmp(old->named, fact->named) != 0)
		return false;
	fact_done(fact);
	*fact = *old;
	fact->visited = false;
	*old = (struct image_fact){0};
	return true;
}

ssize_t fact_get(struct fact_scan *scan, const char *path, const char *named, enum image_format format)
{
	auto_free char *key = NULL;
	struct stat st;
	if (asprintf(&key, "%d%s", (int)format, path) < 0)
		return -ENOMEM;
	uint32_t id = intern_lookup(&scan->now.keys, key);
	if (id)
		return (ssize_t)id - 1;
	if (found_is_ending(scan->store))
		return -ECANCELED; /* there may be hundreds of thousands to come */
	if (mem_grow(&scan->now.facts, &scan->now.cap_facts, scan->now.nr_facts + 1, sizeof *scan->now.facts) < 0)
		return -ENOMEM;
	struct image_fact *fact = &scan->now.facts[scan->now.nr_facts];
	*fact = (struct image_fact){.format = format, .stamp = lstat(path, &st) < 0 ? 0 : stamp_make(&st)};
	int err = text_set(&fact->path, path);
	if (!err)
		err = text_set(&fact->named, named);
	if (!err && !take_known(scan, key, fact))
		err = fact_read(scan->store, fact);
	fact_note_unread(scan, fact, fact->err);
	if (!err && !intern_add(&scan->now.keys, key))
		err = -ENOMEM;
	if (err) {
		fact_done(fact);
		return err;
	}
	return (ssize_t)scan->now.nr_facts++;
}

ssize_t fact_below(struct fact_scan *scan, size_t i)
{
	const struct image_fact *fact = &scan->now.facts[i];
	if (!fact->backing)
		return -ENOENT;
	/* Copies: the table may move. */
	auto_free char *path = strdup(fact->backing);
	auto_free char *named = strdup(fact->backing_named);
	return path && named ? fact_get(scan, path, named, fact->backing_format) : -ENOMEM;
}

bool fact_is_visited(struct fact_scan *scan, const char *path)
{
	for (int format = IMAGE_PROBE; format <= IMAGE_QCOW2; format++) {
		auto_free char *key = NULL;
		uint32_t id = asprintf(&key, "%d%s", format, path) < 0 ? 0 : intern_lookup(&scan->now.keys, key);
		if (id && scan->now.facts[id - 1].visited)
			return true;
	}
	return false;
}

void fact_unvisit_all(struct fact_scan *scan)
{
	for (size_t i = 0; i < scan->now.nr_facts; i++)
		scan->now.facts[i].visited = false;
}

void fact_scan_done(struct fact_scan *scan, struct image_facts *facts)
{
	fact_table_done(&facts->known);
	facts->known = scan->now;
	facts->any_unread = scan->any_unread;
}
