#include "fs/veil.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "fs/callers.h"
#include "fs/clock.h"
#include "meta/action.h"

#define VEILS	   64
#define COVERED_MS 60000
#define REMOVED_MS 10000

static_assert(NODE_KINDS + ACTION_KINDS <= 64, "a bit for each name");

struct veil_entry {
	uint32_t vm; /* 0: free */
	int64_t seen_ms;
	pid_t maker; /* 0: none */
	int64_t covered_ms;
	uint64_t made; /* by the maker, a bit for each name */
	uint64_t removed;
	int64_t removed_ms;
};

struct veil {
	pthread_mutex_t lock;
	/* protected by lock */
	struct veil_entry entries[VEILS];
};

int veil_new(struct veil **ret)
{
	struct veil *veil = calloc(1, sizeof *veil);
	if (!veil)
		return -ENOMEM;
	pthread_mutex_init(&veil->lock, NULL);
	*ret = veil;
	return 0;
}

void veil_free(struct veil *veil)
{
	if (!veil)
		return;
	pthread_mutex_destroy(&veil->lock);
	free(veil);
}

/* The entry of VM, or NULL. */
static struct veil_entry *find_locked(struct veil *veil, uint32_t vm)
{
	for (struct veil_entry *e = veil->entries; e < veil->entries + VEILS; e++)
		if (e->vm == vm)
			return e;
	return NULL;
}

/* The same, made where there is none, in the place of the one that was used longest ago. */
static struct veil_entry *make_locked(struct veil *veil, uint32_t vm)
{
	struct veil_entry *entry = find_locked(veil, vm);
	if (!entry) {
		entry = &veil->entries[0];
		for (struct veil_entry *e = veil->entries; e < veil->entries + VEILS; e++)
			if (e->seen_ms < entry->seen_ms)
				entry = e;
		*entry = (struct veil_entry){.vm = vm};
	}
	entry->seen_ms = clock_ms();
	return entry;
}

void veil_cover(struct veil *veil, uint32_t vm, pid_t maker)
{
	pid_t process = callers_process(maker);
	if (!process)
		return;
	pthread_mutex_lock(&veil->lock);
	struct veil_entry *entry = make_locked(veil, vm);
	entry->maker = process;
	entry->covered_ms = entry->seen_ms;
	entry->made = 0;
	pthread_mutex_unlock(&veil->lock);
}

void veil_touch(struct veil *veil, uint32_t vm)
{
	pthread_mutex_lock(&veil->lock);
	struct veil_entry *entry = find_locked(veil, vm);
	if (entry && entry->maker)
		entry->covered_ms = clock_ms();
	pthread_mutex_unlock(&veil->lock);
}

void veil_remove(struct veil *veil, uint32_t vm, unsigned name)
{
	pthread_mutex_lock(&veil->lock);
	struct veil_entry *entry = make_locked(veil, vm);
	if (entry->seen_ms - entry->removed_ms >= REMOVED_MS)
		entry->removed = 0;
	entry->removed |= 1ull << name;
	entry->removed_ms = entry->seen_ms;
	pthread_mutex_unlock(&veil->lock);
}

void veil_lift(struct veil *veil, uint32_t vm, unsigned name)
{
	pthread_mutex_lock(&veil->lock);
	struct veil_entry *entry = find_locked(veil, vm);
	if (entry) {
		entry->made |= 1ull << name;
		entry->removed &= ~(1ull << name);
		entry->seen_ms = entry->covered_ms = clock_ms();
	}
	pthread_mutex_unlock(&veil->lock);
}

bool veil_is_maker(struct veil *veil, uint32_t vm, pid_t thread)
{
	pthread_mutex_lock(&veil->lock);
	struct veil_entry *entry = find_locked(veil, vm);
	pid_t maker = entry && clock_ms() - entry->covered_ms < COVERED_MS ? entry->maker : 0;
	pthread_mutex_unlock(&veil->lock);
	return maker && callers_process(thread) == maker;
}

static bool is_removed(const struct veil_entry *entry, unsigned name, int64_t now)
{
	return (entry->removed & 1ull << name) && now - entry->removed_ms < REMOVED_MS;
}

static bool is_covered(const struct veil_entry *entry, unsigned name, int64_t now)
{
	return entry->maker && now - entry->covered_ms < COVERED_MS && !(entry->made & 1ull << name);
}

bool veil_hides(struct veil *veil, uint32_t vm, unsigned name, pid_t thread)
{
	int64_t now = clock_ms();
	pthread_mutex_lock(&veil->lock);
	struct veil_entry *entry = find_locked(veil, vm);
	bool removed = entry && is_removed(entry, name, now);
	pid_t maker = entry && is_covered(entry, name, now) ? entry->maker : 0;
	pthread_mutex_unlock(&veil->lock);
	if (removed || !maker || !thread || callers_process(thread) != maker)
		return removed;
	veil_touch(veil, vm);
	return true;
}
