#include "fs/underway.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"

#define NR_AGAIN 16 /* looks for a request that another thread has read just now */

struct underway {
	atomic_bool used;
	int fd;
	uint64_t begun;		     /* the thread's own: its request, if it may be answered early; else 0 */
	atomic_uint_fast64_t unique; /* the same, until somebody has answered it */
	atomic_int thread;	     /* that waits for the answer */
	uint64_t seen;		     /* by the last underway_look_again() */
};

/* One for the process, as the kernel's connection is. */
static struct underway all[UNDERWAY_MAX];

struct underway *underway_new(int fd)
{
	for (struct underway *u = all; u < all + UNDERWAY_MAX; u++) {
		bool used = false;
		if (atomic_compare_exchange_strong(&u->used, &used, true)) {
			u->fd = fd;
			return u;
		}
	}
	return NULL;
}

void underway_free(struct underway *underway)
{
	if (underway)
		atomic_store(&underway->used, false);
}

/* An open that truncates changes something. */
static bool opens_to_look(const void *buf, size_t len)
{
	struct fuse_open_in in;
	if (len < sizeof(struct fuse_in_header) + sizeof in)
		return false;
	memcpy(&in, (const char *)buf + sizeof(struct fuse_in_header), sizeof in);
	return !(in.flags & O_TRUNC);
}

static bool changes_nothing(const void *buf, size_t len)
{
	switch (((const struct fuse_in_header *)buf)->opcode) {
	case FUSE_LOOKUP:
	case FUSE_GETATTR:
	case FUSE_READLINK:
	case FUSE_READ:
	case FUSE_STATFS:
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_OPENDIR:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_ACCESS:
	case FUSE_LSEEK:
		return true;
	case FUSE_OPEN:
		return opens_to_look(buf, len);
	}
	return false;
}

void underway_begin(struct underway *underway, const void *buf, size_t len)
{
	const struct fuse_in_header *in = buf;
	if (!underway)
		return;
	underway->begun = len >= sizeof *in && changes_nothing(buf, len) ? in->unique : 0;
	atomic_store_explicit(&underway->thread, (int)in->pid, memory_order_relaxed);
	atomic_store_explicit(&underway->unique, underway->begun, memory_order_release);
}

bool underway_claim(struct underway *underway, uint64_t unique)
{
	if (!underway || !unique || underway->begun != unique)
		return true;
	return atomic_compare_exchange_strong(&underway->unique, &unique, 0);
}

/* A signal that ends a process comes to each of its threads as SIGKILL. */
static bool is_ending(int thread)
{
	char path[40], text[4096];
	snprintf(path, sizeof path, "/proc/%d/status", thread);
	auto_close int fd = thread > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	ssize_t len = fd < 0 ? -1 : file_read(fd, text, sizeof text - 1, 0);
	if (len <= 0)
		return false;
	text[len] = '\0';
	const char *line = strstr(text, "\nSigPnd:");
	return line && strtoull(line + strlen("\nSigPnd:"), NULL, 16) & 1ull << (SIGKILL - 1);
}

static void answer_if_ending(struct underway *u, uint64_t unique)
{
	if (!is_ending(atomic_load(&u->thread)) || !atomic_compare_exchange_strong(&u->unique, &unique, 0))
		return;
	const struct fuse_out_header out = {.len = sizeof out, .error = -EINTR, .unique = unique};
	if (write(u->fd, &out, sizeof out) < 0)
		return; /* it has gone already */
}

void underway_interrupt(uint64_t unique)
{
	for (int i = 0; i < NR_AGAIN; i++) {
		for (struct underway *u = all; u < all + UNDERWAY_MAX && atomic_load(&u->used); u++) {
			if (atomic_load(&u->unique) == unique) {
				answer_if_ending(u, unique);
				return;
			}
		}
		sched_yield();
	}
}

void underway_look_again(void)
{
	for (struct underway *u = all; u < all + UNDERWAY_MAX && atomic_load(&u->used); u++) {
		uint64_t unique = atomic_load(&u->unique);
		if (unique && unique == u->seen)
			answer_if_ending(u, unique);
		u->seen = unique;
	}
}
