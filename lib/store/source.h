/* The files below SOURCE, as one sorted list: what is there, and whether it changed since the last look.
 *
 * Only names and stat(2), and the beginnings of XML files: no symlink is followed, hidden names, the store and the mount point aren't entered.
 * Snapshots' metadata aren't in the list, for there may be a million: the XML files in a directory X beside a domain's X.xml, and all
 * below -o snapshots. They are listed when somebody looks at their VM. */
#ifndef STORE_SOURCE_H
#define STORE_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/reason.h"

struct store;

enum source_kind {
	SOURCE_OTHER,
	SOURCE_DOMAIN, /* XML with the root <domain> */
	SOURCE_IMAGE,
	SOURCE_UNREAD, /* what it is couldn't be read, of which another attempt may know more */
};

struct source_file {
	char *path;
	uint64_t stamp; /* see stamp_make() */
	enum source_kind kind;
};

/* A directory that held nothing but snapshots' metadata: while it doesn't change it isn't read again. */
struct source_dir {
	char *path;
	uint64_t stamp;
};

struct source {
	struct source_file *files; /* in order of path */
	size_t nr_files, cap_files;
	struct source_dir *dirs; /* in order of path */
	size_t nr_dirs, cap_dirs;
	bool truncated; /* there were too many */
	size_t nr_unread; /* directories that couldn't be read: what lies in them isn't here */
	char *unread;	  /* the first of them */
	int unread_err;
};

/* A hash of all that changes when a file does: device, inode, size, times. */
uint64_t stamp_make(const struct stat *st);

/* Whether what was read from a file or directory just now would look the same after another change at once: its clock may not have moved on. */
bool stamp_is_fresh(const struct stat *st);

/* Lists the store's SOURCE. A directory that can't be read is left out and counted. What is the same in OLD keeps its kind (AGAIN: but what is unread), the rest is
 * looked into. */
int source_walk(struct store *store, const struct source *old, bool again, struct source *ret);
void source_done(struct source *source);

bool source_equal(const struct source *a, const struct source *b);

/* Looks at the name and, where that doesn't tell, into the file. What can't be read is an event, unless that was TOLD before. */
enum source_kind source_classify(struct store *store, const char *path, bool told);

/* Whether what failed with ERR may be read later though it doesn't change: the disk's fault, or want of descriptors. */
bool source_error_may_pass(int err);

/* NULL: not there. */
const struct source_file *source_find(const struct source *source, const char *path);

/* Whether directory PATH is never looked into: hidden, our mount point (a stat(2) of it would be asked of ourselves), the store. */
bool source_is_skipped(const struct store *store, const char *path);

/* Opens a regular file that was listed, following no symlink, for reading. */
int source_open(const char *path, struct stat *ret_st);

#endif
