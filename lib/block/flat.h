/* A view as one flat host file, for those who can read files only: the kernel, for one.
 *
 * A view of one raw image is one already. Of any other, a filesystem that shares extents (XFS, btrfs) makes one at the cost of some metadata:
 * an unnamed sparse file, filled by FICLONERANGE along the view's map (ioctl_ficlonerange(2)). What can't be shared is copied: compressed clusters,
 * pieces that don't lie on the filesystem's blocks, images on another filesystem. */
#ifndef BLOCK_FLAT_H
#define BLOCK_FLAT_H

#include <stdatomic.h>
#include <stdbool.h>

#include "block/view.h"

/* A descriptor of the one raw file that has all of the view's bytes, at their places and no more; borrowed from the view. -1: there is none. */
int flat_find(const struct view *view);

/* Makes a flat file beside DIRFD's files. At most MAX_COPY_BYTES are copied, and nothing at all where the filesystem doesn't share
 * extents. The caller closes *RET_FD and holds the view's image locks meanwhile. -EOPNOTSUPP: it isn't to be had. -EINTR: STOP was
 * set. -EUCLEAN, -EIO, -ENOSPC. */
int flat_make(struct view *view, int dirfd, uint64_t max_copy_bytes, const atomic_bool *stop, int *ret_fd);

#endif
