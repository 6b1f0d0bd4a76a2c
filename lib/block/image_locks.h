/* QEMU's image locks (block/file-posix.c): OFD locks on single bytes of the image file, one for each permission that is
 * used (byte 100 + i) and one for each that isn't shared (byte 200 + i). */
#ifndef BLOCK_IMAGE_LOCKS_H
#define BLOCK_IMAGE_LOCKS_H

#include <stdbool.h>

#include "base/reason.h"

enum image_lock_kind {
	IMAGE_LOCK_QUIET, /* reads, and minds nobody: qemu-img -U. Bytes 100 */
	IMAGE_LOCK_READ,  /* nobody may write or resize. Bytes 100, 201, 203 */
	IMAGE_LOCK_READ_OURS, /* the same, of a file that only we write into: nobody is tested */
	IMAGE_LOCK_WRITE, /* a head. Bytes 100, 101, 103, 201, 203 */
};

/* Takes the locks of KIND on FD and tests those of others. -EBUSY: somebody holds what excludes it; nothing is held then. A filesystem without
 * locks is taken as unlocked. */
int image_locks_take(int fd, enum image_lock_kind kind, const char *path, struct reason *why);
void image_locks_drop(int fd);

/* Turns the reader's locks on FD into bytes 101 and 103 for as long as it is open, so that who comes with QEMU's locks neither reads nor
 * writes. FROM_ALL: also who reads and minds nobody, as QEMU reads raw files (byte 200). OWN_FD: the descriptor whose reader's locks are ours; FD when there is
 * none. -EBUSY: another program reads it. */
int image_locks_claim(int fd, int own_fd, bool from_all, const char *path, struct reason *why);

#endif
