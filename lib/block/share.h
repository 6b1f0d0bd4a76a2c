/* Shared extents: blocks of one file that become another's as well, without being copied (ioctl_ficlonerange(2)), where the filesystem has
 * them. */
#ifndef BLOCK_SHARE_H
#define BLOCK_SHARE_H

#include <stdint.h>

#include "block/view.h"

#define SHARE_COPY 1 /* not an errno: these bytes must be copied */

/* The part of E, which is EXTENT_DATA, that is whole blocks of BLOCK_SIZE both in its file and at OFF: its start in E and its length. RET_LEN is 0 where there
 * is none. */
void share_part(const struct extent *e, uint64_t off, uint64_t block_size, uint64_t *ret_skip, uint64_t *ret_len);

/* Makes [OFF, +LEN) of FD the bytes of E from SKIP on. SHARE_COPY: this can't be done with these bytes. -EXDEV: not between these two files. -EOPNOTSUPP: not
 * on this filesystem. Else an error of the file: -EIO, -ENOSPC, ... */
int share_blocks(int fd, const struct extent *e, uint64_t skip, uint64_t len, uint64_t off);

#endif
