/* Snapshots' disks that the kernel reads from a flat host file by itself (FUSE passthrough: Linux 6.9, root).
 *
 * The kernel wants all open files of a node to be of one kind, and with passthrough on one host file. So the first open of a node decides,
 * and those that come while it is open follow. */
#ifndef FS_PASSTHROUGH_H
#define FS_PASSTHROUGH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/strbuf.h"

struct passthrough;
struct place;
struct disk_file;

int passthrough_new(struct passthrough **ret);
void passthrough_free(struct passthrough *passthrough);

/* Whether the kernel can, and lets us. */
bool passthrough_is_usable(struct passthrough *passthrough);

/* One more open file of PLACE, a disk of a snapshot, whose content is known by its hash. Returns the number of the host file for the OPEN reply;
 * 0: the requests come to us. -ESTALE: it is open with another content. -ENOMEM. Undone by passthrough_close. */
int passthrough_open(struct passthrough *passthrough, const struct place *place, uint64_t content, struct disk_file *file);
void passthrough_close(struct passthrough *passthrough, uint64_t ino);

/* Lines for the VM's status: which of its snapshots' disks are open, and who reads them. */
void passthrough_describe(struct passthrough *passthrough, uint32_t vm, struct strbuf *text);

#endif
