/* The loop that takes requests from the kernel and hands them to libfuse: N threads, each with a descriptor of its own.
 *
 * A disk that is slow, or doesn't answer at all, holds up the threads that read from it. The thread that started the others looks after them while all are
 * busy: for each that is held up there is one more, so that N can always work for the rest; they go when they aren't needed any more. And
 * a caller who is killed while such a disk is asked on his behalf is let go (INTERRUPT), if his request only looks at something.
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
 * before. -ENOMEM, or a negative errno of the connection. *RET_NR_HANGING threads are left that wait for a disk which doesn't answer: the
 * connection has ended, but whatever they may use must stay as it is. */
int loop_run(struct fuse_session *session, unsigned nr_threads, const sigset_t *signals, unsigned *ret_nr_hanging);

/* LEN bytes (up to OPS_MAX_WRITE) of this thread for its reply; NULL: not a thread of the loop. */
void *loop_reply_buffer(size_t len);

#endif
