/* Looks now and then whether an image has changed under an open snapshot: the kernel answers from its page cache what was read before, and
 * never asks again. What it has is dropped then, so that every reader is told (-ESTALE, see view_check()), and an event says it. */
#ifndef FS_WATCH_H
#define FS_WATCH_H

#include <fuse_lowlevel.h>
#include <stdbool.h>

struct fs;
struct watch;

/* In a thread of its own. SESSION is borrowed. */
int watch_start(struct fs *fs, struct fuse_session *session, struct watch **ret);

/* False: it hangs, for some seconds now, at a disk that doesn't answer, and goes on to use what it was given. NULL: nothing. */
bool watch_stop(struct watch *watch);

#endif
