#include "fs/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/list.h"
#include "base/mem.h"
#include "fs/callers.h"
#include "fs/channel.h"
#include "fs/clock.h"
#include "fs/ops.h"

#define HEADER_ROOM	 4096u /* what the protocol may put before the data of a WRITE */
#define BUFFERS_BYTES	 (2 * (size_t)OPS_MAX_WRITE + HEADER_ROOM) /* request and reply */
#define TICK_MS		 50    /* who is in the same request for so long is held up */
#define CALM_TICKS	 40    /* without anybody held up: then the threads that were added may go */
#define MAX_WORKERS	 1000u
#define MAX_HANGING_MS	 5000  /* at the end, for requests that only read */

struct worker {
	struct list link; /* the supervisor's */
	struct loop *loop;
	pthread_t thread;
	int fd;
	bool own_fd;
	char *request, *reply;
	uint64_t seen; /* the request in which the supervisor saw it last; 0: none */
	int64_t seen_us; /* when it saw it there first */
	atomic_bool ended;

	/* The request in hand, written by the worker alone: its number (0: none) last, for numbers are never used again. */
	atomic_uint caller;
	atomic_bool only_looks;
	atomic_ullong unique;
};

struct loop {
	struct fuse_session *session;
	struct list workers; /* touched by the supervisor alone */
	unsigned nr_workers, nr_wanted;
	int wake_fd; /* readable: the supervisor shall look */
	atomic_bool watching; /* it looks anyway */
	atomic_uint nr_wakes; /* how often it was to look */
	atomic_uint nr_waiting; /* workers, for a request */
	atomic_int nr_too_many; /* so many may go after their request */
	atomic_bool stop;
	atomic_int err;
};

#define for_each_worker(loop, worker)                                                                                              \
	for (struct worker *worker = list_entry((loop)->workers.next, struct worker, link), *next_;                                 \
	     &worker->link != &(loop)->workers && (next_ = list_entry(worker->link.next, struct worker, link), true); worker = next_)

static _Thread_local struct worker *self;

void *loop_reply_buffer(size_t len)
{
	return self && len <= OPS_MAX_WRITE ? self->reply : NULL;
}

/* --- serving ---------------------------------------------------------------------------------------------------------------- */

static void wake_supervisor(struct loop *loop)
{
	const uint64_t one = 1;
	atomic_fetch_add(&loop->nr_wakes, 1);
	if (!atomic_exchange(&loop->watching, true) && write(loop->wake_fd, &one, sizeof one) < 0)
		abort(); /* a counter of 64 bits is never full */
}

static void stop_all(struct loop *loop, int err)
{
	if (err)
		atomic_store(&loop->err, err);
	atomic_store(&loop->stop, true);
	atomic_store(&loop->watching, false);
	wake_supervisor(loop);
}

/* Only here may the thread be cancelled: it has no request. */
static ssize_t receive(struct worker *worker)
{
	int before;
	atomic_fetch_add(&worker->loop->nr_waiting, 1);
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &before);
	ssize_t n = channel_receive(worker->fd, worker->request, OPS_MAX_WRITE + HEADER_ROOM);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
	if (atomic_fetch_sub(&worker->loop->nr_waiting, 1) == 1)
		wake_supervisor(worker->loop); /* nobody waits for the next one */
	return n;
}

static void serve_request(struct worker *worker, size_t len)
{
	struct fuse_buf buf = {.mem = worker->request, .size = len};
	struct channel_request request = channel_look(worker->request, len);
	/* The supervisor asks whether its caller has been killed. libfuse could only do something about it if we asked it to. */
	if (request.is_interrupt) {
		wake_supervisor(worker->loop);
		return;
	}
	atomic_store(&worker->caller, (unsigned)request.caller);
	atomic_store(&worker->only_looks, request.only_looks);
	atomic_store(&worker->unique, request.unique);
	fuse_session_process_buf(worker->loop->session, &buf);
	atomic_store(&worker->unique, 0);
}

static bool may_go(struct loop *loop)
{
	if (atomic_load(&loop->nr_too_many) <= 0)
		return false;
	return atomic_fetch_sub(&loop->nr_too_many, 1) > 0;
}

static void *work(void *arg)
{
	struct worker *worker = arg;
	struct loop *loop = worker->loop;
	int before;
	self = worker;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
	channel_use(worker->fd);
	bool go = false;
	while (!go && !atomic_load(&loop->stop) && !fuse_session_exited(loop->session)) {
		ssize_t n = receive(worker);
		if (n > 0)
			serve_request(worker, (size_t)n);
		else if (n < 0)
			stop_all(loop, n == -ENODEV ? 0 : (int)n);
		go = may_go(loop);
	}
	if (!go && !atomic_load(&loop->stop))
		stop_all(loop, 0);
	atomic_store(&worker->ended, true);
	wake_supervisor(loop);
	return NULL;
}

/* --- workers ---------------------------------------------------------------------------------------------------------------- */

static void worker_free(struct worker *worker)
{
	if (!worker)
		return;
	if (worker->own_fd)
		close(worker->fd);
	if (worker->request)
		munmap(worker->request, BUFFERS_BYTES);
	free(worker);
}

static struct worker *worker_new(struct loop *loop)
{
	struct worker *worker = calloc(1, sizeof *worker);
	if (!worker)
		return NULL;
	worker->loop = loop;
	worker->fd = channel_clone(loop->session);
	worker->own_fd = worker->fd >= 0;
	if (!worker->own_fd)
		worker->fd = fuse_session_fd(loop->session);
	/* Not by malloc(), which keeps what it got back: many threads may come and go. */
	char *buffers = mmap(NULL, BUFFERS_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffers == MAP_FAILED) {
		worker_free(worker);
		return NULL;
	}
	worker->request = buffers;
	worker->reply = buffers + OPS_MAX_WRITE + HEADER_ROOM;
	return worker;
}

static int add_worker(struct loop *loop)
{
	struct worker *worker = worker_new(loop);
	int err = worker ? -pthread_create(&worker->thread, NULL, work, worker) : -ENOMEM;
	if (err) {
		worker_free(worker);
		return err;
	}
	list_push(&loop->workers, &worker->link);
	loop->nr_workers++;
	return 0;
}

static void remove_worker(struct loop *loop, struct worker *worker)
{
	pthread_join(worker->thread, NULL);
	list_remove(&worker->link);
	loop->nr_workers--;
	worker_free(worker);
}

static void reap(struct loop *loop)
{
	for_each_worker(loop, worker)
		if (atomic_load(&worker->ended))
			remove_worker(loop, worker);
}

/* --- the supervisor --------------------------------------------------------------------------------------------------------- */

/* The disk that holds the request up may never answer, and the kernel lets nobody die who waits for us. What comes of the request is for
 * nobody, then. */
static void let_die(struct worker *worker, uint64_t unique)
{
	if (atomic_load(&worker->only_looks) && callers_is_killed((pid_t)atomic_load(&worker->caller)) && atomic_load(&worker->unique) == unique)
		channel_answer_interrupted(worker->fd, unique);
}

/* No coarse clock: what has been waited for is over, then. */
static int64_t now_us(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* How many have been in the same request for a tick. Less than that says nothing: who has only just begun hasn't taken hold of the file yet
 * (handle_ref()), and his caller mustn't be let go. */
static unsigned count_held_up(struct loop *loop)
{
	unsigned nr = 0;
	int64_t now = now_us();
	for_each_worker(loop, worker) {
		uint64_t unique = atomic_load(&worker->unique);
		if (!unique || unique != worker->seen) {
			worker->seen = unique;
			worker->seen_us = now;
		} else if (now - worker->seen_us >= TICK_MS * 1000) {
			let_die(worker, unique);
			nr++;
		}
	}
	return nr;
}

/* Always so many as are wanted aren't held up; where all are busy there may be more of the kind to come. */
static void add_workers(struct loop *loop, unsigned nr_held_up)
{
	bool all_busy = !atomic_load(&loop->nr_waiting);
	unsigned others = all_busy && nr_held_up > loop->nr_wanted ? nr_held_up : loop->nr_wanted;
	unsigned want = nr_held_up + others < MAX_WORKERS ? nr_held_up + others : MAX_WORKERS;
	if (loop->nr_workers < want)
		atomic_store(&loop->nr_too_many, 0);
	while (loop->nr_workers < want && add_worker(loop) == 0)
		continue;
}

/* Until a worker has ended it all or a signal's handler has. SIGNALS are what is blocked meanwhile. Asleep while no request is held up. */
static void supervise(struct loop *loop, const sigset_t *signals)
{
	const struct timespec tick = {.tv_nsec = TICK_MS * 1000000L};
	struct pollfd fd = {.fd = loop->wake_fd, .events = POLLIN};
	unsigned nr_calm = 0, nr_wakes = 0;
	bool asleep = true;
	while (!fuse_session_exited(loop->session) && !atomic_load(&loop->stop)) {
		uint64_t count;
		int ready = ppoll(&fd, 1, asleep ? NULL : &tick, signals);
		if (ready > 0 && read(loop->wake_fd, &count, sizeof count) < 0)
			break;
		atomic_store(&loop->watching, true);
		unsigned nr_wakes_before = nr_wakes;
		nr_wakes = atomic_load(&loop->nr_wakes);
		reap(loop);
		unsigned nr_held_up = count_held_up(loop);
		/* Too few: one that had just gone was counted among those that may go. */
		if (nr_held_up || loop->nr_workers < loop->nr_wanted)
			add_workers(loop, nr_held_up);
		/* What has woken us is looked at twice: a request is held up if it was there a tick ago. And where nobody waits nobody can wake us. */
		nr_calm = nr_held_up || nr_wakes != nr_wakes_before || !atomic_load(&loop->nr_waiting) ? 0 : nr_calm + !ready;
		bool grown = loop->nr_workers > loop->nr_wanted;
		if (grown && nr_calm == CALM_TICKS)
			atomic_store(&loop->nr_too_many, (int)(loop->nr_workers - loop->nr_wanted));
		/* Who wakes us from here on is heard; who did since the look is, too. */
		asleep = nr_calm >= (grown ? CALM_TICKS : 2);
		if (asleep)
			atomic_store(&loop->watching, false);
		if (asleep && nr_wakes != atomic_load(&loop->nr_wakes))
			asleep = false;
	}
	if (!atomic_load(&loop->stop))
		stop_all(loop, 0);
}

/* --- starting and ending ---------------------------------------------------------------------------------------------------- */

static bool only_reads_hang(struct loop *loop)
{
	for_each_worker(loop, worker)
		if (!atomic_load(&worker->unique) || !atomic_load(&worker->only_looks))
			return false;
	return true;
}

/* Waits for all, but not for ever for what only reads: a disk that doesn't answer. Whether all have ended. */
static bool end_workers(struct loop *loop)
{
	const struct timespec tick = {.tv_nsec = TICK_MS * 1000000L};
	int64_t begun = clock_ms();
	for_each_worker(loop, worker)
		pthread_cancel(worker->thread);
	while (!list_is_empty(&loop->workers)) {
		for_each_worker(loop, worker)
			if (pthread_tryjoin_np(worker->thread, NULL) == 0) {
				list_remove(&worker->link);
				loop->nr_workers--;
				worker_free(worker);
			}
		if (!list_is_empty(&loop->workers) && clock_ms() - begun > MAX_HANGING_MS && only_reads_hang(loop))
			return false;
		if (!list_is_empty(&loop->workers))
			nanosleep(&tick, NULL);
	}
	return true;
}

/* The connection ends with its last descriptor. Their numbers stay taken: those that hang may come back and answer. */
static void disconnect(struct loop *loop)
{
	auto_close int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
	for_each_worker(loop, worker)
		if (nowhere >= 0)
			dup2(nowhere, worker->fd);
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

static int run(struct loop *loop, const sigset_t *signals, unsigned *ret_nr_hanging)
{
	int err = 0;
	while (loop->nr_workers < loop->nr_wanted && !err)
		err = add_worker(loop);
	if (!loop->nr_workers)
		return err;
	supervise(loop, signals); /* fewer threads than wanted are enough */
	if (!end_workers(loop))
		disconnect(loop);
	*ret_nr_hanging = loop->nr_workers;
	return atomic_load(&loop->err);
}

int loop_run(struct fuse_session *session, unsigned nr_threads, const sigset_t *signals, unsigned *ret_nr_hanging)
{
	struct loop *loop = calloc(1, sizeof *loop);
	*ret_nr_hanging = 0;
	if (!loop)
		return -ENOMEM;
	*loop = (struct loop){.session = session, .nr_wanted = nr_threads ? nr_threads : 1, .wake_fd = eventfd(0, EFD_CLOEXEC)};
	list_init(&loop->workers);
	int err = loop->wake_fd < 0 ? -errno : run(loop, signals, ret_nr_hanging);
	if (*ret_nr_hanging)
		return err; /* they have it still */
	if (loop->wake_fd >= 0)
		close(loop->wake_fd);
	free(loop);
	return err;
}
