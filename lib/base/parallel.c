#include "base/parallel.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#define MAX_THREADS 8
#define MIN_PIECES  32 /* for which a thread pays */

struct parallel {
	size_t nr;
	void (*fn)(void *ctx, size_t i);
	void *ctx;
	atomic_size_t next;
};

static void *work(void *arg)
{
	struct parallel *p = arg;
	for (size_t i; (i = atomic_fetch_add(&p->next, 1)) < p->nr;)
		p->fn(p->ctx, i);
	return NULL;
}

static size_t threads_for(size_t nr)
{
	long nr_processors = sysconf(_SC_NPROCESSORS_ONLN);
	size_t threads = nr_processors < 1 ? 1 : nr_processors > MAX_THREADS ? MAX_THREADS : (size_t)nr_processors;
	return nr < threads ? nr : threads;
}

static void run(size_t nr, size_t wanted, void (*fn)(void *ctx, size_t i), void *ctx)
{
	struct parallel p = {.nr = nr, .fn = fn, .ctx = ctx};
	pthread_t threads[MAX_THREADS];
	size_t started = 0;
	/* Signals are for the thread that serves. */
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	while (started + 1 < wanted && pthread_create(&threads[started], NULL, work, &p) == 0)
		started++;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	work(&p);
	while (started)
		pthread_join(threads[--started], NULL);
}

void parallel_for(size_t nr, void (*fn)(void *ctx, size_t i), void *ctx)
{
	run(nr, threads_for(nr / MIN_PIECES), fn, ctx);
}

void parallel_for_large(size_t nr, void (*fn)(void *ctx, size_t i), void *ctx)
{
	run(nr, threads_for(nr), fn, ctx);
}
