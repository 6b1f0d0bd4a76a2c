#include "store/flats.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/list.h"
#include "base/mem.h"
#include "block/flat.h"
#include "store/store_internal.h"

#define FLATS_MAX      32u
#define COPY_BYTES_MAX (256ull << 20)
#define FREE_PARTS_MIN 10u /* a tenth of the filesystem stays free */

enum flat_state { FLAT_WANTED, FLAT_MAKING, FLAT_READY, FLAT_FAILED };

struct flat {
	struct list link;
	struct view *view; /* a reference: what it is of */
	enum flat_state state;
	int fd; /* -1, but when it is ready */
};

struct flats {
	struct store *store;
	atomic_bool stop;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* protected by lock */
	struct list list; /* least recently used first */
	size_t nr_flats;
	bool is_started;
	pthread_t thread;
};

#define for_each_flat(flats, flat)                                                                                                \
	for (struct flat *flat = list_entry((flats)->list.next, struct flat, link), *next_; &flat->link != &(flats)->list; flat = next_) \
		if ((next_ = list_entry(flat->link.next, struct flat, link)))

int flats_new(struct store *store, struct flats **ret)
{
	struct flats *flats = calloc(1, sizeof *flats);
	if (!flats)
		return -ENOMEM;
	flats->store = store;
	list_init(&flats->list);
	pthread_mutex_init(&flats->lock, NULL);
	pthread_cond_init(&flats->changed, NULL);
	*ret = flats;
	return 0;
}

static void remove_locked(struct flats *flats, struct flat *flat)
{
	list_remove(&flat->link);
	flats->nr_flats--;
	if (flat->fd >= 0)
		close(flat->fd);
	view_put(flat->view);
	free(flat);
}

void flats_free(struct flats *flats)
{
	if (!flats)
		return;
	pthread_mutex_lock(&flats->lock);
	atomic_store(&flats->stop, true);
	pthread_cond_broadcast(&flats->changed);
	pthread_mutex_unlock(&flats->lock);
	if (flats->is_started)
		pthread_join(flats->thread, NULL);
	for_each_flat(flats, flat)
		remove_locked(flats, flat);
	pthread_mutex_destroy(&flats->lock);
	pthread_cond_destroy(&flats->changed);
	free(flats);
}

static struct flat *find_locked(struct flats *flats, const struct view *view)
{
	struct flat *found = NULL;
	for_each_flat(flats, flat)
		if (view_equal(flat->view, view))
			found = flat;
	if (found) {
		list_remove(&found->link);
		list_push(&flats->list, &found->link);
	}
	return found;
}

int flats_open(struct flats *flats, struct view *view)
{
	int fd = flat_find(view);
	if (fd < 0) {
		pthread_mutex_lock(&flats->lock);
		struct flat *flat = find_locked(flats, view);
		fd = flat && flat->state == FLAT_READY ? fcntl(flat->fd, F_DUPFD_CLOEXEC, 0) : -1;
		pthread_mutex_unlock(&flats->lock);
	} else {
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	}
	return fd < 0 ? -ENOENT : fd;
}

/* --- letting go ----------------------------------------------------------------------------------------------------------- */

static bool is_current(const struct view *view)
{
	for (size_t i = 0; i < view_depth(view); i++)
		if (!image_is_current(view_layer(view, i)))
			return false;
	return true;
}

static bool seems_current(const struct view *view)
{
	for (size_t i = 0; i < view_depth(view); i++)
		if (!image_seems_current(view_layer(view, i)))
			return false;
	return true;
}

void flats_trim(struct flats *flats)
{
	if (!flats)
		return;
	pthread_mutex_lock(&flats->lock);
	for_each_flat(flats, flat)
		if (flat->state != FLAT_MAKING && !seems_current(flat->view))
			remove_locked(flats, flat);
	pthread_mutex_unlock(&flats->lock);
}

/* Down to NR, least recently used first. */
static void shrink_locked(struct flats *flats, size_t nr)
{
	for_each_flat(flats, flat)
		if (flats->nr_flats > nr && flat->state != FLAT_MAKING)
			remove_locked(flats, flat);
}

static bool has_room(const struct flats *flats)
{
	struct statvfs vfs;
	return fstatvfs(flats->store->layers_fd, &vfs) == 0 && vfs.f_bavail >= vfs.f_blocks / FREE_PARTS_MIN;
}

/* --- making ----------------------------------------------------------------------------------------------------------------- */

static struct flat *next_wanted_locked(struct flats *flats)
{
	for_each_flat(flats, flat)
		if (flat->state == FLAT_WANTED)
			return flat;
	return NULL;
}

static int make(struct flats *flats, struct view *view, int *ret_fd)
{
	if (!has_room(flats))
		return -ENOSPC;
	int err = view_lock(view, NULL);
	if (err)
		return err;
	err = is_current(view) ? flat_make(view, flats->store->layers_fd, COPY_BYTES_MAX, &flats->stop, ret_fd) : -ESTALE;
	view_unlock(view);
	return err;
}

static void *work(void *arg)
{
	struct flats *flats = arg;
	pthread_mutex_lock(&flats->lock);
	while (!atomic_load(&flats->stop)) {
		struct flat *flat = next_wanted_locked(flats);
		if (!flat) {
			pthread_cond_wait(&flats->changed, &flats->lock);
			continue;
		}
		flat->state = FLAT_MAKING; /* nobody else removes it now */
		pthread_mutex_unlock(&flats->lock);
		int err = make(flats, flat->view, &flat->fd);
		pthread_mutex_lock(&flats->lock);
		flat->state = err ? FLAT_FAILED : FLAT_READY;
		if (err == -ENOSPC)
			shrink_locked(flats, 0);
	}
	pthread_mutex_unlock(&flats->lock);
	return NULL;
}

void flats_want(struct flats *flats, struct view *view)
{
	if (!flats->store->writable || flat_find(view) >= 0)
		return;
	flats_trim(flats);
	pthread_mutex_lock(&flats->lock);
	struct flat *flat = find_locked(flats, view) ? NULL : calloc(1, sizeof *flat);
	if (flat) {
		*flat = (struct flat){.view = view_ref(view), .state = FLAT_WANTED, .fd = -1};
		shrink_locked(flats, FLATS_MAX - 1);
		list_push(&flats->list, &flat->link);
		flats->nr_flats++;
		if (!flats->is_started)
			flats->is_started = pthread_create(&flats->thread, NULL, work, flats) == 0;
		pthread_cond_signal(&flats->changed);
	}
	pthread_mutex_unlock(&flats->lock);
}
