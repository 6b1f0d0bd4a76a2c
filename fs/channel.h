/* The way to the kernel: one /dev/fuse descriptor for each thread, and the INIT reply completed by what libfuse 3.14 has no word for.
 *
 * A request must be answered on the descriptor that it was read from. libfuse writes its replies through channel_attach()'s functions, in the
 * thread that handles the request, on the descriptor which that thread has chosen with channel_use(). */
#ifndef FS_CHANNEL_H
#define FS_CHANNEL_H

#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What the kernel has agreed to. Written once, when it says INIT. */
struct channel_features {
	bool passthrough; /* it can, and we are root; whether that is enough (CAP_SYS_ADMIN), the first try shows */
};

/* Puts itself between SESSION, which is mounted on MOUNT_DIR (borrowed), and its descriptor. */
int channel_attach(struct fuse_session *session, const char *mount_dir);
const struct channel_features *channel_features(void);

/* A further descriptor on the session's connection; the caller closes it. A negative errno: there is only one, then. */
int channel_clone(struct fuse_session *session);

/* This thread reads and answers on FD from now on. */
void channel_use(int fd);

/* Waits for a request. 0: try again; -ENODEV: unmounted. A cancellation point. */
ssize_t channel_receive(int fd, void *buf, size_t cap);

/* What the loop wants to know of a request. */
struct channel_request {
	uint64_t unique; /* its number */
	pid_t caller;	 /* the thread on whose behalf it is; 0: unknown */
	bool is_interrupt; /* a signal has come for somebody who waits for an answer */
	bool only_looks;   /* nothing changes by it: whether it is done is all one to anybody but the caller */
};
struct channel_request channel_look(const void *buf, size_t len);

/* Answers EINTR to the request UNIQUE that was read from FD, in the place of the thread that handles it: its own answer finds nobody. */
void channel_answer_interrupted(int fd, uint64_t unique);

#endif
