#include "fs/solo.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <unistd.h>

#define STREAK_MIN   32u
#define STREAK_MAX   4096u
#define LONG_ENOUGH  1000u /* requests served alone: it did pay */
#define SMALL_BYTES  (32u << 10)
#define LOOK_EVERY   8u /* requests, then it looks whether it had to wait for one */

void solo_init(struct solo *solo)
{
	*solo = (struct solo){.needed = STREAK_MIN};
	solo->usable = sysconf(_SC_NPROCESSORS_ONLN) > 1;
	pthread_mutex_init(&solo->lock, NULL);
	pthread_cond_init(&solo->ended, NULL);
}

void solo_done(struct solo *solo)
{
	pthread_mutex_destroy(&solo->lock);
	pthread_cond_destroy(&solo->ended);
}

void solo_wait(struct solo *solo, const struct solo_thread *thread, const atomic_bool *stop)
{
	unsigned number = atomic_load(&solo->number);
	if (!number || number == thread->number)
		return;
	pthread_mutex_lock(&solo->lock);
	while (!atomic_load(stop) && (number = atomic_load(&solo->number)) && number != thread->number)
		pthread_cond_wait(&solo->ended, &solo->lock);
	pthread_mutex_unlock(&solo->lock);
}

/* --- beginning and ending ----------------------------------------------------------------------------------------------- */

static void set_blocking(int fd, bool blocking)
{
	int flags = fcntl(fd, F_GETFL);
	if (flags >= 0)
		fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

void solo_end(struct solo *solo, struct solo_thread *thread)
{
	unsigned number = thread ? thread->number : atomic_load(&solo->number);
	pthread_mutex_lock(&solo->lock);
	bool ended = atomic_compare_exchange_strong(&solo->number, &number, 0);
	if (ended && thread) {
		set_blocking(thread->fd, true);
		unsigned needed = atomic_load(&solo->needed) * 2;
		atomic_store(&solo->needed, thread->nr_served >= LONG_ENOUGH ? STREAK_MIN : needed < STREAK_MAX ? needed : STREAK_MAX);
	}
	atomic_store(&solo->streak, 0);
	pthread_cond_broadcast(&solo->ended);
	pthread_mutex_unlock(&solo->lock);
}

static void begin(struct solo *solo, struct solo_thread *thread)
{
	unsigned nobody = 0;
	pthread_mutex_lock(&solo->lock);
	if (atomic_compare_exchange_strong(&solo->number, &nobody, thread->number)) {
		thread->nr_served = thread->nr_waited = 0;
		set_blocking(thread->fd, false);
	}
	pthread_mutex_unlock(&solo->lock);
}

/* Requests that a program waits for, and that are answered sooner than another processor could be woken. */
static bool is_small(const struct fuse_in_header *in)
{
	const struct fuse_read_in *read_in = (const struct fuse_read_in *)(const void *)(in + 1);
	switch (in->opcode) {
	case FUSE_READ:
		return read_in->size <= SMALL_BYTES;
	case FUSE_WRITE:
		return in->len <= SMALL_BYTES;
	case FUSE_LOOKUP:
	case FUSE_GETATTR:
	case FUSE_ACCESS:
	case FUSE_READLINK:
	case FUSE_STATFS:
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_OPEN:
	case FUSE_FLUSH:
	case FUSE_OPENDIR:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_LSEEK:
		return true;
	}
	return false;
}

/* Nobody waits for the answer. */
static bool is_aside(const struct fuse_in_header *in)
{
	return in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET || in->opcode == FUSE_RELEASE ||
	       in->opcode == FUSE_RELEASEDIR || in->opcode == FUSE_INTERRUPT;
}

void solo_enter(struct solo *solo, struct solo_thread *thread, const struct fuse_in_header *in)
{
	if (is_aside(in))
		return;
	bool fits = in->pid && is_small(in);
	if (!fits || in->pid != atomic_load(&solo->last_tid)) {
		atomic_store(&solo->last_tid, in->pid);
		atomic_store(&solo->streak, 0);
		if (!fits && atomic_load(&solo->number) == thread->number)
			solo_end(solo, thread);
		return;
	}
	atomic_fetch_add(&solo->streak, 1);
}

void solo_leave(struct solo *solo, struct solo_thread *thread)
{
	unsigned number = atomic_load(&solo->number);
	if (number == thread->number) {
		/* Requests are there before it looks: more than one at a time. */
		if (++thread->nr_served % LOOK_EVERY == 0) {
			if (thread->nr_waited < LOOK_EVERY / 2)
				solo_end(solo, thread);
			thread->nr_waited = 0;
		}
	} else if (!number && solo->usable && thread->own_fd && atomic_load(&solo->streak) >= atomic_load(&solo->needed)) {
		begin(solo, thread);
	}
}
