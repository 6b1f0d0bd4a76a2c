/* The loop that takes requests from the kernel and hands them to libfuse: N threads, each with a descriptor of its own.
 *
 * Measured and not done, because it didn't pay: one thread that looks for the next request for a while before it sleeps; one that serves
 * alone on its client's processor; as few waiting threads as processors. */
#ifndef FS_LOOP_H
#define FS_LOOP_H

#include <fuse_lowlevel.h>
#include <signal.h>
#include <stddef.h>

/* Keeps the signals that end the daemon from every thread but this one, which takes them in loop_run(): called before any thread is started. */
void loop_block_signals(sigset_t *before);

/* Serves SESSION, which is mounted and attached to the channel, until it is unmounted or a signal ends it: SIGNALS is what was blocked
 * before. -ENOMEM, or a negative errno of the connection. */
int loop_run(struct fuse_session *session, unsigned nr_threads, const sigset_t *signals);

/* LEN bytes (up to OPS_MAX_WRITE) of this thread for its reply; NULL: not a thread of the loop. */
void *loop_reply_buffer(size_t len);

#endif
