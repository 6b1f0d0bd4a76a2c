/* Which files may be opened at all.
 *
 * A qcow2 header is written by a guest's owner, an XML file by anybody: the names in them are followed only below the
 * directories that the user named (SOURCE, the store, trust=). Names are resolved here, component by component, with
 * symlinks expanded by hand: nothing outside the trusted directories is even looked at, so that a name can't make us
 * touch a dead network mount, a device, or our own mount point (which would wait for ourselves). The final open is
 * one openat2(2) that accepts no symlink at all, so that a link swapped in meanwhile doesn't help.
 *
 * Set up by one thread (trust_add, trust_forbid), then read by any number. */
#ifndef BLOCK_TRUST_H
#define BLOCK_TRUST_H

#include <stdbool.h>

#include "base/reason.h"

struct trust;

int trust_new(struct trust **ret);
void trust_free(struct trust *trust);

/* Trusts DIR and all below it. -ENOENT, -ENOTDIR and the like when it can't be opened. */
int trust_add(struct trust *trust, const char *dir, struct reason *why);

/* The same for a directory that is open as FD, at the real path REAL: whatever lies there by now. */
int trust_add_open(struct trust *trust, int fd, const char *real);

/* Never goes to DIR or below, whatever is trusted: the mount point. DIR is an absolute real path. */
int trust_forbid(struct trust *trust, const char *dir);

/* Accept block devices as images too (-o block_devices). */
void trust_allow_devices(struct trust *trust, bool allow);

/* Resolves NAME, relative to the directory BASE_DIR (absolute; may be NULL when NAME is absolute), to the real path
 * of what it names. -EACCES: outside the trusted directories, or a protocol name (`json:…`, `nbd://…`).
 * -ELOOP: too many symlinks. -ENOENT. The caller frees. */
int trust_resolve(const struct trust *trust, const char *base_dir, const char *name, char **ret_path,
		  struct reason *why);

/* Opens the file that NAME resolves to; returns a descriptor. OPEN_FLAGS: O_RDONLY or O_RDWR. Only regular files (and
 * block devices where allowed): anything else is -EACCES, and is never waited for. RET_PATH (may be NULL) gets the real path,
 * which the caller frees. */
int trust_open(const struct trust *trust, const char *base_dir, const char *name, int open_flags, char **ret_path,
	       struct reason *why);

#endif
