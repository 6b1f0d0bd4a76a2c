#include "block/windows.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/list.h"
#include "base/mem.h"

#define WINDOW_BITS  26u
#define WINDOW_BYTES (1ull << WINDOW_BITS)
#define CHUNK_BITS   16u /* what a page fault maps, more or less */
#define NR_CHUNKS    (1u << (WINDOW_BITS - CHUNK_BITS))
#define NR_BUCKETS   512u
#define MAX_WINDOWS  1024u

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* on every architecture */
#endif

struct window {
	uint64_t serial, number; /* NUMBER: of the window in the file */
	char *bytes;
	struct window *next; /* in its bucket */
	struct list lru;
	unsigned nr_users;
	unsigned nr_touched; /* chunks that were given out */
	uint64_t touched[NR_CHUNKS / 64];
};

struct windows {
	unsigned max_touched; /* chunks */
	atomic_bool unusable; /* the kernel doesn't say what is in the page cache */
	pthread_mutex_t lock;
	/* protected by lock */
	struct window *buckets[NR_BUCKETS];
	struct list lru; /* least recently used first */
	unsigned nr_windows, nr_touched;
};

int windows_new(size_t max_bytes, struct windows **ret)
{
	struct windows *windows = calloc(1, sizeof *windows);
	if (!windows)
		return -ENOMEM;
	windows->max_touched = (unsigned)(max_bytes >> CHUNK_BITS);
	pthread_mutex_init(&windows->lock, NULL);
	list_init(&windows->lru);
	*ret = windows;
	return 0;
}

static struct window **bucket_of(struct windows *windows, uint64_t serial, uint64_t number)
{
	return &windows->buckets[(serial * 0x9e3779b97f4a7c15ull + number) % NR_BUCKETS];
}

/* Out of the table. The caller frees it without the lock: unmapping takes a while. */
static void take_out_locked(struct windows *windows, struct window *window)
{
	struct window **link = bucket_of(windows, window->serial, window->number);
	while (*link != window)
		link = &(*link)->next;
	*link = window->next;
	list_remove(&window->lru);
	windows->nr_windows--;
	windows->nr_touched -= window->nr_touched;
}

/* A list of windows linked by next. */
static void free_all(struct window *window)
{
	for (struct window *next; window; window = next) {
		next = window->next;
		munmap(window->bytes, WINDOW_BYTES);
		free(window);
	}
}

void windows_free(struct windows *windows)
{
	if (!windows)
		return;
	while (!list_is_empty(&windows->lru)) {
		struct window *window = list_entry(windows->lru.next, struct window, lru);
		take_out_locked(windows, window);
		window->next = NULL;
		free_all(window);
	}
	pthread_mutex_destroy(&windows->lock);
	free(windows);
}

/* --- the page cache ----------------------------------------------------------------------------------------------------------- */

static bool is_cached(struct windows *windows, int fd, uint64_t off, size_t len)
{
	struct {
		uint64_t off, len;
	} range = {off, len};
	struct {
		uint64_t nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted;
	} stat;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	if (syscall(SYS_cachestat, fd, &range, &stat, 0) < 0) {
		if (errno == ENOSYS)
			atomic_store(&windows->unusable, true);
		return false;
	}
	return stat.nr_cache >= (off + len - 1) / page - off / page + 1;
}

/* --- giving out ----------------------------------------------------------------------------------------------------------------- */

static struct window *find_locked(struct windows *windows, uint64_t serial, uint64_t number)
{
	struct window *window = *bucket_of(windows, serial, number);
	while (window && (window->serial != serial || window->number != number))
		window = window->next;
	return window;
}

static struct window *add_locked(struct windows *windows, uint64_t serial, uint64_t number, int fd)
{
	struct window *window = calloc(1, sizeof *window);
	char *bytes = window ? mmap(NULL, WINDOW_BYTES, PROT_READ, MAP_SHARED, fd, (off_t)(number << WINDOW_BITS)) : MAP_FAILED;
	if (bytes == MAP_FAILED) {
		free(window);
		return NULL;
	}
	struct window **bucket = bucket_of(windows, serial, number);
	*window = (struct window){.serial = serial, .number = number, .bytes = bytes, .next = *bucket};
	*bucket = window;
	list_push(&windows->lru, &window->lru);
	windows->nr_windows++;
	return window;
}

static void touch_locked(struct windows *windows, struct window *window, uint64_t off, size_t len)
{
	for (uint64_t i = off >> CHUNK_BITS; i <= (off + len - 1) >> CHUNK_BITS; i++) {
		uint64_t bit = 1ull << (i % 64);
		unsigned fresh = !(window->touched[i / 64] & bit);
		window->touched[i / 64] |= bit;
		window->nr_touched += fresh;
		windows->nr_touched += fresh;
	}
	list_remove(&window->lru);
	list_push(&windows->lru, &window->lru);
}

/* Takes out what is too much, but what is in use. */
static struct window *shrink_locked(struct windows *windows)
{
	struct window *gone = NULL;
	for (struct list *link = windows->lru.next, *next;
	     link != &windows->lru && (windows->nr_touched > windows->max_touched || windows->nr_windows > MAX_WINDOWS); link = next) {
		struct window *window = list_entry(link, struct window, lru);
		next = link->next;
		if (window->nr_users)
			continue;
		take_out_locked(windows, window);
		window->next = gone;
		gone = window;
	}
	return gone;
}

const void *windows_get(struct windows *windows, uint64_t serial, int fd, uint64_t off, size_t len, struct window **ret)
{
	uint64_t number = off >> WINDOW_BITS, in = off & (WINDOW_BYTES - 1);
	if (atomic_load(&windows->unusable) || len > WINDOW_BYTES - in || !is_cached(windows, fd, off, len))
		return NULL;
	pthread_mutex_lock(&windows->lock);
	struct window *window = find_locked(windows, serial, number);
	if (!window)
		window = add_locked(windows, serial, number, fd);
	struct window *gone = NULL;
	if (window) {
		window->nr_users++;
		touch_locked(windows, window, in, len);
		gone = shrink_locked(windows);
	}
	pthread_mutex_unlock(&windows->lock);
	free_all(gone);
	*ret = window;
	return window ? window->bytes + in : NULL;
}

void windows_put(struct windows *windows, struct window *window)
{
	pthread_mutex_lock(&windows->lock);
	window->nr_users--;
	pthread_mutex_unlock(&windows->lock);
}

void windows_forget(struct windows *windows, uint64_t serial)
{
	struct window *gone = NULL;
	pthread_mutex_lock(&windows->lock);
	for (struct list *link = windows->lru.next, *next; link != &windows->lru; link = next) {
		struct window *window = list_entry(link, struct window, lru);
		next = link->next;
		if (window->serial != serial)
			continue;
		take_out_locked(windows, window);
		window->next = gone;
		gone = window;
	}
	pthread_mutex_unlock(&windows->lock);
	free_all(gone);
}
