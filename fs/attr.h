/* The attributes of a place, as stat(2) shows them, and how long the kernel may believe them. */
#ifndef FS_ATTR_H
#define FS_ATTR_H

#include <sys/stat.h>

#include "fs/place.h"

#define ATTR_SECONDS 1.0

/* As THREAD sees it: see callers.h. HANDLE: the open file that was asked, or NULL. A disk that can't be served has attributes too
 * (its size, unless somebody has it open, is one sector). RET_TIMEOUT: seconds. */
int attr_load(struct fs *fs, const struct place *place, const struct handle *handle, pid_t thread, struct stat *ret,
	      double *ret_timeout);

/* The file type alone: S_IFDIR, S_IFLNK or S_IFREG. */
mode_t attr_type(enum node_kind kind);

/* How long a name in PARENT may be believed to stand for what it does, seconds. */
double attr_entry_timeout(const struct place *parent);

/* Whether UID with its GROUPS (GID first) may read what ST shows, by owner, group and others. */
bool attr_may_read(uid_t uid, bool overrides, const gid_t *groups, size_t nr_groups, uid_t owner, gid_t group, mode_t mode);

#endif
