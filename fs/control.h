/* The files in a VM's actions/: collects what is written into one, and carries each command out once.
 *
 * A line is carried out by the write() that brings its end, an XML document by the one that completes it, so that the error is that write's; what
 * is left without an end, by the flush when the process that opened the file closes it. After a command that failed, what was written behind it is
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
int control_new(pid_t thread, struct control **ret); /* THREAD opens it */
void control_free(struct control *control);
/* Whether something was written that was never carried out. */
bool control_has_rest(struct control *control);

/* Takes LEN bytes more and carries out what is complete. -EINVAL: no such command; else as the store has it. Wherever in the file they are
 * written to, they follow what came before. */
int control_write(fuse_req_t req, struct handle *handle, const void *buf, size_t len, struct reason *why);

/* Carries out what is left, unless it isn't the process that opened the file who flushes it: others may have a copy of its descriptor, and be
 * about to write the rest. */
int control_finish(fuse_req_t req, struct handle *handle, struct reason *why);

#endif
