/* The files in a VM's actions/: collects what is written into one, and carries each command out once.
 *
 * A line is carried out by the write() that brings its end, an XML document by the one that completes it, so that the error is that write's; what
 * is left without an end when a descriptor is closed, by the flush then. After a command that failed, what was written behind it is
 * forgotten. Safe from any thread. */
#ifndef FS_CONTROL_H
#define FS_CONTROL_H

#include <fuse_lowlevel.h>

#include "base/reason.h"
#include "fs/place.h"

struct fs;
struct handle;
struct control;

/* Whether PLACE is an action that is carried out: those of a found VM aren't, but for that which only reads it. */
bool control_takes_commands(const struct place *place);

/* What one open file has collected. */
int control_new(struct control **ret);
void control_free(struct control *control);

/* Takes LEN bytes more and carries out what is complete. -EINVAL: no such command; else as the store has it. Wherever in the file they are
 * written to, they follow what came before. */
int control_write(fuse_req_t req, struct handle *handle, const void *buf, size_t len, struct reason *why);

/* Carries out what is left. */
int control_finish(fuse_req_t req, struct handle *handle, struct reason *why);

#endif
