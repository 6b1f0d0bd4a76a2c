#include "fs/watch.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fs/fs.h"
#include "fs/place.h"

#define PAUSE_MS       1000
#define MAX_PAUSE_MS   10000
#define PAUSE_SHARE    100 /* looking at everything takes a hundredth of a processor, while the pause isn't at its longest */
#define MAX_HANGING_S  5

struct watch {
	struct fs *fs;
	struct fuse_session *session;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool stop; /* protected by lock */
};

static void report(struct fs *fs, const struct handle *handle)
{
	char path[600];
	place_path(fs, handle->place, NULL, path, sizeof path);
	events_add(fs->events, handle->place->vm->name,
		   "%s: an image was changed by another program while it was open here. Open the file again (%s)", path, strerror(ESTALE));
}

static void look_at(struct watch *watch, struct handle *handle)
{
	bool is_stale = disk_check(handle->disk) == -ESTALE;
	/* The kernel waits for reads that are on their way: nobody would serve them at the end. */
	if (is_stale && !handle->is_stale && !fuse_session_exited(watch->session)) {
		report(watch->fs, handle);
		fuse_lowlevel_notify_inval_inode(watch->session, handle->ino, 0, 0);
	}
	handle->is_stale = is_stale;
}

static void look_at_all(struct watch *watch)
{
	struct handle *handle = NULL;
	while ((handle = handles_next_disk(watch->fs, handle)))
		look_at(watch, handle);
}

/* False: it is over. */
static bool pause_ms(struct watch *watch, int64_t ms)
{
	struct timespec end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += ms / 1000;
	end.tv_nsec += ms % 1000 * 1000000;
	end.tv_sec += end.tv_nsec / 1000000000;
	end.tv_nsec %= 1000000000;
	pthread_mutex_lock(&watch->lock);
	while (!watch->stop && pthread_cond_timedwait(&watch->changed, &watch->lock, &end) == 0)
		continue;
	bool stop = watch->stop;
	pthread_mutex_unlock(&watch->lock);
	return !stop;
}

/* What this thread has worked, not what it has waited for a disk. */
static int64_t worked_us(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static int64_t pause_after(int64_t took_us)
{
	int64_t ms = took_us * PAUSE_SHARE / 1000;
	return ms < PAUSE_MS ? PAUSE_MS : ms > MAX_PAUSE_MS ? MAX_PAUSE_MS : ms;
}

static void *work(void *arg)
{
	struct watch *watch = arg;
	int64_t took_us = 0;
	while (pause_ms(watch, pause_after(took_us))) {
		int64_t start = worked_us();
		look_at_all(watch);
		took_us = worked_us() - start;
	}
	return NULL;
}

static void watch_free(struct watch *watch)
{
	pthread_cond_destroy(&watch->changed);
	pthread_mutex_destroy(&watch->lock);
	free(watch);
}

int watch_start(struct fs *fs, struct fuse_session *session, struct watch **ret)
{
	struct watch *watch = calloc(1, sizeof *watch);
	if (!watch)
		return -ENOMEM;
	watch->fs = fs;
	watch->session = session;
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&watch->lock, NULL);
	pthread_cond_init(&watch->changed, &attr);
	pthread_condattr_destroy(&attr);
	int err = -pthread_create(&watch->thread, NULL, work, watch);
	if (err)
		watch_free(watch);
	else
		*ret = watch;
	return err;
}

bool watch_stop(struct watch *watch)
{
	struct timespec end;
	if (!watch)
		return true;
	pthread_mutex_lock(&watch->lock);
	watch->stop = true;
	pthread_cond_signal(&watch->changed);
	pthread_mutex_unlock(&watch->lock);
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += MAX_HANGING_S;
	if (pthread_timedjoin_np(watch->thread, NULL, &end) != 0)
		return false;
	watch_free(watch);
	return true;
}
