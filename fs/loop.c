#include "fs/loop.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "fs/channel.h"
#include "fs/ops.h"
#include "fs/underway.h"

#define HEADER_ROOM 4096u /* what the protocol may put before the data of a WRITE */
#define HELPERS_MAX 32u	  /* further threads, when all wait for a disk that doesn't answer */
#define LOOK_S	    1

struct worker {
	struct loop *loop;
	pthread_t thread;
	int fd;
	bool own_fd;
	atomic_uint_fast64_t turns; /* begun and ended ones: odd while it serves a request */
	uint64_t seen_turns;	    /* by the last look */
	char *request, *reply;
};

struct loop {
	struct fuse_session *session;
	struct worker *workers;
	unsigned nr_workers, max_workers;
	unsigned nr_running; /* of them */
	int stop_fd; /* readable: all is over */
	atomic_bool stop;
	atomic_int err;
};

static _Thread_local struct worker *self;

void *loop_reply_buffer(size_t len)
{
	return self && len <= OPS_MAX_WRITE ? self->reply : NULL;
}

/* --- serving ---------------------------------------------------------------------------------------------------------------- */

static void stop_all(struct loop *loop, int err)
{
	const uint64_t one = 1;
	if (err)
		atomic_store(&loop->err, err);
	atomic_store(&loop->stop, true);
	if (write(loop->stop_fd, &one, sizeof one) < 0)
		abort(); /* a counter of 64 bits is never full */
}

/* Only here may the thread be cancelled: it has no request. */
static ssize_t receive(struct worker *worker)
{
	int before;
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &before);
	ssize_t n = channel_receive(worker->fd, worker->request, OPS_MAX_WRITE + HEADER_ROOM);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
	return n;
}

static void *work(void *arg)
{
	struct worker *worker = arg;
	struct loop *loop = worker->loop;
	int before;
	self = worker;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
	channel_use(worker->fd);
	while (!atomic_load(&loop->stop) && !fuse_session_exited(loop->session)) {
		ssize_t n = receive(worker);
		struct fuse_buf buf = {.mem = worker->request, .size = n > 0 ? (size_t)n : 0};
		atomic_fetch_add(&worker->turns, n > 0);
		if (n > 0)
			fuse_session_process_buf(loop->session, &buf);
		atomic_fetch_add(&worker->turns, n > 0);
		if (n < 0)
			stop_all(loop, n == -ENODEV ? 0 : (int)n);
	}
	channel_leave();
	if (!atomic_load(&loop->stop))
		stop_all(loop, 0);
	return NULL;
}

/* --- starting and ending ---------------------------------------------------------------------------------------------------- */

static int worker_init(struct loop *loop, struct worker *worker)
{
	worker->loop = loop;
	worker->fd = channel_clone(loop->session);
	worker->own_fd = worker->fd >= 0;
	if (!worker->own_fd)
		worker->fd = fuse_session_fd(loop->session);
	worker->request = aligned_alloc(HEADER_ROOM, OPS_MAX_WRITE + HEADER_ROOM);
	worker->reply = aligned_alloc(HEADER_ROOM, OPS_MAX_WRITE);
	return worker->request && worker->reply ? 0 : -ENOMEM;
}

static void worker_done(struct worker *worker)
{
	if (worker->own_fd)
		close(worker->fd);
	free(worker->request);
	free(worker->reply);
}

static int loop_init(struct loop *loop, struct fuse_session *session, unsigned nr_workers)
{
	*loop = (struct loop){.session = session, .stop_fd = eventfd(0, EFD_CLOEXEC)};
	loop->max_workers = nr_workers + HELPERS_MAX;
	loop->workers = calloc(loop->max_workers, sizeof *loop->workers);
	if (loop->stop_fd < 0 || !loop->workers)
		return -ENOMEM;
	int err = 0;
	while (loop->nr_workers < nr_workers && !err) {
		err = worker_init(loop, &loop->workers[loop->nr_workers]);
		loop->nr_workers++;
	}
	return err;
}

static void loop_done(struct loop *loop)
{
	for (unsigned i = 0; i < loop->nr_workers; i++)
		worker_done(&loop->workers[i]);
	free(loop->workers);
	if (loop->stop_fd >= 0)
		close(loop->stop_fd);
}

static int start_worker(struct loop *loop)
{
	struct worker *worker = &loop->workers[loop->nr_running];
	int err = -pthread_create(&worker->thread, NULL, work, worker);
	loop->nr_running += !err;
	return err;
}

/* Whether each has served one and the same request since the last look. */
static bool all_are_stuck(struct loop *loop)
{
	bool stuck = true;
	for (unsigned i = 0; i < loop->nr_running; i++) {
		struct worker *worker = &loop->workers[i];
		uint64_t turns = atomic_load(&worker->turns);
		stuck = stuck && turns % 2 && turns == worker->seen_turns;
		worker->seen_turns = turns;
	}
	return stuck;
}

/* One more, so that what doesn't wait for that disk is served, and those who wait for it can be told that they needn't. */
static void help(struct loop *loop)
{
	if (loop->nr_running == loop->nr_workers) {
		struct worker *worker = &loop->workers[loop->nr_workers];
		if (loop->nr_workers == loop->max_workers)
			return;
		if (worker_init(loop, worker) < 0) {
			worker_done(worker);
			return;
		}
		loop->nr_workers++;
	}
	start_worker(loop);
}

/* Until a worker has ended it all or a signal's handler has. SIGNALS are what is blocked meanwhile. */
static void wait_for_end(struct loop *loop, const sigset_t *signals)
{
	const struct timespec look = {.tv_sec = LOOK_S};
	struct pollfd fd = {.fd = loop->stop_fd, .events = POLLIN};
	while (!fuse_session_exited(loop->session) && !atomic_load(&loop->stop)) {
		if (ppoll(&fd, 1, &look, signals) != 0)
			continue;
		underway_look_again();
		if (all_are_stuck(loop))
			help(loop);
	}
	if (!atomic_load(&loop->stop))
		stop_all(loop, 0);
}

static int run_threads(struct loop *loop, const sigset_t *signals)
{
	int err = 0;
	while (loop->nr_running < loop->nr_workers && !err)
		err = start_worker(loop);
	if (!loop->nr_running)
		return err;
	wait_for_end(loop, signals); /* fewer threads than wanted are enough */
	for (unsigned i = 0; i < loop->nr_running; i++) {
		pthread_cancel(loop->workers[i].thread);
		pthread_join(loop->workers[i].thread, NULL);
	}
	return atomic_load(&loop->err);
}

void loop_block_signals(sigset_t *before)
{
	sigset_t ending;
	sigemptyset(&ending);
	sigaddset(&ending, SIGHUP);
	sigaddset(&ending, SIGINT);
	sigaddset(&ending, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &ending, before);
}

int loop_run(struct fuse_session *session, unsigned nr_threads, const sigset_t *signals)
{
	struct loop loop;
	int err = loop_init(&loop, session, nr_threads ? nr_threads : 1);
	if (!err)
		err = run_threads(&loop, signals);
	loop_done(&loop);
	return err;
}
