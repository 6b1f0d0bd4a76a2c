/* The files below SOURCE, as one sorted list: what is there, and whether it changed since the last look.
 *
 * Only names and stat(2): no symlink is followed, hidden names, the store and the mount point aren't entered. */
#ifndef STORE_SOURCE_H
#define STORE_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/reason.h"

struct store;

enum source_kind {
	SOURCE_UNKNOWN, /* not looked into yet */
	SOURCE_OTHER,
	SOURCE_DOMAIN, /* XML with the root <domain> */
	SOURCE_IMAGE,
};

struct source_file {
	char *path;
	uint64_t stamp; /* see stamp_make() */
	enum source_kind kind;
};

struct source {
	struct source_file *files; /* in order of path */
	size_t nr_files, cap_files;
	bool truncated; /* there were too many */
};

/* A hash of all that changes when a file does: device, inode, size, times. */
uint64_t stamp_make(const struct stat *st);

/* Lists the store's SOURCE and its directory of snapshot metadata. A directory that can't be read is left out. */
int source_walk(struct store *store, struct source *ret);
void source_done(struct source *source);

bool source_equal(const struct source *a, const struct source *b);

/* NULL: not there. */
const struct source_file *source_find(const struct source *source, const char *path);

/* The index of the first file whose path isn't less than PREFIX; those that begin with it follow. */
size_t source_lower_bound(const struct source *source, const char *prefix);

#endif
