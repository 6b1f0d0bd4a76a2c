/* The loop that takes requests from the kernel and hands them to libfuse.
 *
 * N threads wait for requests, each on a descriptor of its own. That is right for many requests at a time. One at a time, from one program that
 * waits for each answer, costs mostly the waking up of idle processors; so when requests come like that, one thread serves alone, on the
 * processor that the program runs on, while the others stay out of its way: three times as fast. It ends with the first request that
 * doesn't fit, and, by a watchdog, when the one is stuck. */
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
