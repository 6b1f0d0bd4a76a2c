/* Extended attributes user.vmsnapfs.* of VMs, snapshots and disks: what a struct stat has no room for. */
#ifndef FS_XATTR_H
#define FS_XATTR_H

#include <stddef.h>

#include "fs/place.h"

/* The value of the attribute NAME; the caller frees. -ENODATA. */
int xattr_load(struct fs *fs, const struct place *place, const char *name, char **ret, size_t *ret_len);

/* The names of those that have a value, each with its NUL; the caller frees. */
int xattr_list(struct fs *fs, const struct place *place, char **ret, size_t *ret_len);

#endif
