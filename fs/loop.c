#include "fs/loop.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "fs/channel.h"
#include "fs/kernel.h"
#include "fs/ops.h"
#include "fs/solo.h"

#define HEADER_ROOM 4096u /* what the protocol may put before the data of a WRITE */
#define SPIN_NS	    50000
#define WATCH_NS    1000000
#define WATCH_TICKS 50 /* with nobody serving alone: the watchdog sleeps */

struct worker {
	struct loop *loop;
	pthread_t thread;
	struct solo_thread solo;
	char *request, *reply;
	/* the watchdog looks at these */
	atomic_uint nr_begun; /* requests */
	atomic_bool is_handling;
};

struct loop {
	struct fuse_session *session;
	struct worker *workers;
	unsigned nr_workers;
	struct solo solo;
	int stop_fd; /* readable: all is over */
	atomic_bool stop;
	atomic_int err;
	atomic_bool is_watched;
	pthread_mutex_t lock;
	pthread_cond_t watch; /* is_watched or stop has become true */
};

static _Thread_local struct worker *self;

void *loop_reply_buffer(size_t len)
{
	return self && len <= OPS_MAX_WRITE ? self->reply : NULL;
}

/* --- serving -------------------------------------------------------------------------------------------------------------- */

static void stop_all(struct loop *loop, int err)
{
	const uint64_t one = 1;
	if (err)
		atomic_store(&loop->err, err);
	atomic_store(&loop->stop, true);
	if (write(loop->stop_fd, &one, sizeof one) < 0)
		abort(); /* a counter of 64 bits is never full */
	solo_end(&loop->solo, NULL);
	pthread_mutex_lock(&loop->lock);
	pthread_cond_broadcast(&loop->watch);
	pthread_mutex_unlock(&loop->lock);
}

static void start_watch(struct loop *loop)
{
	if (atomic_load(&loop->is_watched) || !atomic_load(&loop->solo.number))
		return;
	pthread_mutex_lock(&loop->lock);
	atomic_store(&loop->is_watched, true);
	pthread_cond_signal(&loop->watch);
	pthread_mutex_unlock(&loop->lock);
}

static int64_t now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static ssize_t receive_once(struct worker *worker)
{
	return channel_receive(worker->solo.fd, worker->request, OPS_MAX_WRITE + HEADER_ROOM);
}

/* Asks again and again; 0: none came. */
static ssize_t receive_spinning(struct worker *worker)
{
	ssize_t n = receive_once(worker);
	if (n)
		return n;
	worker->solo.nr_waited++;
	for (int64_t until = now_ns() + SPIN_NS; !n && now_ns() < until;)
		n = receive_once(worker);
	if (!n)
		solo_end(&worker->loop->solo, &worker->solo);
	return n;
}

/* Only here may the thread be cancelled: it has no request. */
static ssize_t receive_waiting(struct worker *worker)
{
	int before;
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &before);
	ssize_t n = receive_once(worker);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
	return n;
}

static ssize_t receive(struct worker *worker)
{
	return atomic_load(&worker->loop->solo.number) == worker->solo.number ? receive_spinning(worker) : receive_waiting(worker);
}

static void handle(struct worker *worker, size_t len)
{
	struct loop *loop = worker->loop;
	struct fuse_buf buf = {.mem = worker->request, .size = len};
	solo_enter(&loop->solo, &worker->solo, (const struct fuse_in_header *)(const void *)worker->request);
	atomic_fetch_add(&worker->nr_begun, 1);
	atomic_store(&worker->is_handling, true);
	fuse_session_process_buf(loop->session, &buf);
	atomic_store(&worker->is_handling, false);
	solo_leave(&loop->solo, &worker->solo);
	start_watch(loop);
}

static void *work(void *arg)
{
	struct worker *worker = arg;
	struct loop *loop = worker->loop;
	self = worker;
	int before;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
	channel_use(worker->solo.fd);
	while (!atomic_load(&loop->stop) && !fuse_session_exited(loop->session)) {
		solo_wait(&loop->solo, &worker->solo, &loop->stop);
		ssize_t n = receive(worker);
		if (n > 0)
			handle(worker, (size_t)n);
		else if (n < 0)
			stop_all(loop, n == -ENODEV ? 0 : (int)n);
	}
	if (!atomic_load(&loop->stop))
		stop_all(loop, 0);
	return NULL;
}

/* Lets the others in when the one that serves alone has been at one and the same request from one look to the next. */
static void *watch(void *arg)
{
	struct loop *loop = arg;
	const struct timespec tick = {.tv_nsec = WATCH_NS};
	unsigned last_number = 0, last_nr = 0, nr_idle = 0;
	while (!atomic_load(&loop->stop)) {
		unsigned number = atomic_load(&loop->solo.number);
		struct worker *worker = number ? &loop->workers[number - 1] : NULL;
		unsigned nr = worker ? atomic_load(&worker->nr_begun) : 0;
		bool same = number == last_number && nr == last_nr;
		if (same && worker && atomic_load(&worker->is_handling))
			solo_end(&loop->solo, &worker->solo);
		nr_idle = same ? nr_idle + 1 : 0;
		last_number = number;
		last_nr = nr;
		if (nr_idle < WATCH_TICKS) {
			nanosleep(&tick, NULL);
			continue;
		}
		pthread_mutex_lock(&loop->lock);
		atomic_store(&loop->is_watched, false);
		while (!atomic_load(&loop->is_watched) && !atomic_load(&loop->stop))
			pthread_cond_wait(&loop->watch, &loop->lock);
		pthread_mutex_unlock(&loop->lock);
		nr_idle = 0;
	}
	return NULL;
}

/* --- starting and ending ---------------------------------------------------------------------------------------------------- */

static int worker_init(struct loop *loop, struct worker *worker, uint32_t number)
{
	worker->loop = loop;
	worker->solo.number = number;
	worker->solo.fd = channel_clone(loop->session);
	worker->solo.own_fd = worker->solo.fd >= 0;
	if (!worker->solo.own_fd)
		worker->solo.fd = fuse_session_fd(loop->session);
	worker->request = aligned_alloc(HEADER_ROOM, OPS_MAX_WRITE + HEADER_ROOM);
	worker->reply = aligned_alloc(HEADER_ROOM, OPS_MAX_WRITE);
	return worker->request && worker->reply ? 0 : -ENOMEM;
}

static void worker_done(struct worker *worker)
{
	if (worker->solo.own_fd)
		close(worker->solo.fd);
	free(worker->request);
	free(worker->reply);
}

static int loop_init(struct loop *loop, struct fuse_session *session, unsigned nr_workers)
{
	*loop = (struct loop){.session = session, .stop_fd = eventfd(0, EFD_CLOEXEC)};
	pthread_mutex_init(&loop->lock, NULL);
	pthread_cond_init(&loop->watch, NULL);
	solo_init(&loop->solo);
	loop->workers = calloc(nr_workers, sizeof *loop->workers);
	if (loop->stop_fd < 0 || !loop->workers)
		return -ENOMEM;
	int err = 0;
	while (loop->nr_workers < nr_workers && !err) {
		err = worker_init(loop, &loop->workers[loop->nr_workers], loop->nr_workers + 1);
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
	solo_done(&loop->solo);
	pthread_mutex_destroy(&loop->lock);
	pthread_cond_destroy(&loop->watch);
}

/* Until a worker has ended it all or a signal's handler has. SIGNALS are what is blocked meanwhile. */
static void wait_for_end(struct loop *loop, const sigset_t *signals)
{
	struct pollfd fd = {.fd = loop->stop_fd, .events = POLLIN};
	while (!fuse_session_exited(loop->session) && !atomic_load(&loop->stop))
		ppoll(&fd, 1, NULL, signals);
	if (!atomic_load(&loop->stop))
		stop_all(loop, 0);
}

static int run_threads(struct loop *loop, const sigset_t *signals)
{
	pthread_t watchdog;
	unsigned nr = 0;
	int err = -pthread_create(&watchdog, NULL, watch, loop);
	if (err)
		return err;
	while (nr < loop->nr_workers && !err) {
		err = -pthread_create(&loop->workers[nr].thread, NULL, work, &loop->workers[nr]);
		nr += !err;
	}
	if (nr)
		wait_for_end(loop, signals); /* fewer threads than wanted are enough */
	else
		stop_all(loop, err);
	for (unsigned i = 0; i < nr; i++) {
		pthread_cancel(loop->workers[i].thread);
		pthread_join(loop->workers[i].thread, NULL);
	}
	pthread_join(watchdog, NULL);
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
