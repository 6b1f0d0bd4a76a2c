/* QEMU's image locks (block/file-posix.c): OFD locks on single bytes of the image file, one for each permission that is
 * used (byte 100 + i) and one for each that isn't shared (byte 200 + i). */
#ifndef BLOCK_IMAGE_LOCKS_H
#define BLOCK_IMAGE_LOCKS_H

#include "base/reason.h"

enum image_lock_kind {
	IMAGE_LOCK_QUIET, /* reads, and minds nobody: qemu-img -U. Bytes 100 */
	IMAGE_LOCK_READ,  /* nobody may write or resize. Bytes 100, 201, 203 */
	IMAGE_LOCK_WRITE, /* a qcow2 head. Bytes 100, 101, 103, 201, 203 */
};

/* Takes the locks of KIND on FD and tests those of others. -EBUSY: somebody holds what excludes it; nothing is held then. A filesystem without
 * locks is taken as unlocked. */
int image_locks_take(int fd, enum image_lock_kind kind, const char *path, struct reason *why);
void image_locks_drop(int fd);

#endif
