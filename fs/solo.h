/* Serving alone: which thread of the loop does, and when it pays. See loop.h. */
#ifndef FS_SOLO_H
#define FS_SOLO_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct fuse_in_header;

struct solo {
	bool usable;
	atomic_uint number; /* the thread that serves alone, 1 …; 0: none */
	atomic_uint last_tid;	/* who asked */
	atomic_uint streak;	/* requests in a row that one thread could have served alone */
	atomic_uint needed;	/* so many make one begin */
	pthread_mutex_t lock;
	pthread_cond_t ended;
};

/* What a thread of the loop knows of itself. */
struct solo_thread {
	uint32_t number; /* 1 … */
	int fd;		 /* blocking, but while it serves alone */
	bool own_fd;
	unsigned nr_served; /* alone, since it began */
	unsigned nr_waited; /* of the last few: times that it had to wait */
};

void solo_init(struct solo *solo);
void solo_done(struct solo *solo);

/* Before a thread waits for a request: returns when it isn't in the way of one that serves alone, or STOP is set. */
void solo_wait(struct solo *solo, const struct solo_thread *thread, const atomic_bool *stop);

/* Around the handling of a request. */
void solo_enter(struct solo *solo, struct solo_thread *thread, const struct fuse_in_header *in);
void solo_leave(struct solo *solo, struct solo_thread *thread);

/* Nobody serves alone any more; THREAD (NULL: no matter) is who did. From any thread. */
void solo_end(struct solo *solo, struct solo_thread *thread);

#endif
