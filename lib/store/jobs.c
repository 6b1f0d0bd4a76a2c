#include "store/jobs.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/name.h"
#include "base/strbuf.h"
#include "store/store_internal.h"
#include "store/vm_make.h"

#define RETRY_S 30
#define LOOK_S	1 /* between looks at whether there is space again */
#define MORE_SPACE (1u << 20) /* that is worth an attempt: each takes what there is until it fails */
#define BUSY_S	1

/* Where jobs write to. */
struct place {
	bool wanted;
	uint64_t nr_free; /* bytes */
};

struct jobs {
	pthread_mutex_t lock;
	pthread_cond_t changed; /* any of the following */
	struct job *list;	/* in the order in which they came */
	bool stop;
	bool started;
	pthread_t thread;
	struct place *places; /* the worker's: the store's filesystem, then the pools' */
};

static struct timespec monotonic_now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts;
}

/* --- the list ------------------------------------------------------------------------------------------------------------ */

int jobs_new(struct jobs **ret)
{
	struct jobs *jobs = calloc(1, sizeof *jobs);
	if (!jobs)
		return -ENOMEM;
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&jobs->changed, &attr);
	pthread_condattr_destroy(&attr);
	pthread_mutex_init(&jobs->lock, NULL);
	*ret = jobs;
	return 0;
}

static void job_free(struct job *job)
{
	if (!job)
		return;
	vm_disk_done(&job->disk);
	free(job->id);
	free(job);
}

static void remove_locked(struct jobs *jobs, struct job *job)
{
	for (struct job **at = &jobs->list; *at; at = &(*at)->next) {
		if (*at == job) {
			*at = job->next;
			break;
		}
	}
	job_free(job);
	pthread_cond_broadcast(&jobs->changed);
}

void jobs_free(struct jobs *jobs)
{
	if (!jobs)
		return;
	pthread_mutex_lock(&jobs->lock);
	jobs->stop = true;
	for (struct job *job = jobs->list; job; job = job->next)
		atomic_store(&job->progress.stop, true);
	pthread_cond_broadcast(&jobs->changed);
	pthread_mutex_unlock(&jobs->lock);
	if (jobs->started)
		pthread_join(jobs->thread, NULL);
	while (jobs->list)
		remove_locked(jobs, jobs->list);
	pthread_cond_destroy(&jobs->changed);
	pthread_mutex_destroy(&jobs->lock);
	free(jobs->places);
	free(jobs);
}

static struct job *find_locked(const struct jobs *jobs, const char *id)
{
	struct job *job = jobs->list;
	while (job && strcmp(job->id, id) != 0)
		job = job->next;
	return job;
}

/* "web-test-vda" and ENDING, and a number where that is taken; the caller frees. */
static char *new_id_locked(const struct jobs *jobs, const char *vm_name, const char *file_name, const char *ending)
{
	auto_free char *text = NULL;
	int title = (int)strcspn(file_name, ".");
	if (asprintf(&text, "%.120s-%.*s%s", vm_name, title > 100 ? 100 : title, file_name, ending) < 0)
		return NULL;
	auto_free char *base = name_make_valid(text);
	char *id = base ? strdup(base) : NULL;
	for (unsigned n = 2; id && find_locked(jobs, id); n++) {
		free(take_ptr(id));
		if (asprintf(&id, "%s~%u", base, n) < 0)
			return NULL;
	}
	return id;
}

static struct job *find_kind_locked(const struct jobs *jobs, const struct job_kind *kind, const char *layer)
{
	struct job *job = jobs->list;
	while (job && (job->forgotten || job->kind != kind || strcmp(job->layer, layer) != 0))
		job = job->next;
	return job;
}

static int insert_locked(struct jobs *jobs, const struct vm *vm, struct job *job)
{
	struct job *known = find_kind_locked(jobs, job->kind, job->layer);
	if (known) {
		known->again = true;
		return -EEXIST;
	}
	job->id = new_id_locked(jobs, vm->name, job->disk.file_name, job->kind->id_ending);
	if (!job->id)
		return -ENOMEM;
	struct job **at = &jobs->list;
	while (*at)
		at = &(*at)->next;
	*at = job;
	pthread_cond_broadcast(&jobs->changed);
	return 0;
}

int jobs_add(struct store *store, const struct job_kind *kind, const struct vm *vm, const struct vm_disk *disk, const char *layer)
{
	struct jobs *jobs = store->jobs;
	struct job *job = calloc(1, sizeof *job);
	int err = job ? vm_disk_copy(&job->disk, disk) : -ENOMEM;
	if (!err) {
		job->kind = kind;
		job->vm_id = vm->id;
		snprintf(job->layer, sizeof job->layer, "%s", layer);
		pthread_mutex_lock(&jobs->lock);
		err = insert_locked(jobs, vm, job);
		pthread_mutex_unlock(&jobs->lock);
	}
	if (err)
		job_free(job);
	return err;
}

/* The worker takes a job that it works on off the list itself. */
static void forget_locked(struct jobs *jobs, struct job *job)
{
	job->forgotten = true;
	atomic_store(&job->progress.stop, true);
	if (!job->running)
		remove_locked(jobs, job);
}

void jobs_forget_vm(struct store *store, uint32_t vm_id)
{
	struct jobs *jobs = store->jobs;
	pthread_mutex_lock(&jobs->lock);
	for (struct job *job = jobs->list, *next; job; job = next) {
		next = job->next;
		if (job->vm_id == vm_id)
			forget_locked(jobs, job);
	}
	pthread_mutex_unlock(&jobs->lock);
}

void jobs_forget_layer(struct store *store, const char *layer)
{
	struct jobs *jobs = store->jobs;
	pthread_mutex_lock(&jobs->lock);
	for (struct job *job = jobs->list, *next; job; job = next) {
		next = job->next;
		if (strcmp(job->layer, layer) == 0)
			forget_locked(jobs, job);
	}
	pthread_mutex_unlock(&jobs->lock);
}

static struct job *find_holder_locked(const struct jobs *jobs, const char *layer)
{
	struct job *job = jobs->list;
	while (job && (job->forgotten || !job->kind->holds_layer || strcmp(job->layer, layer) != 0))
		job = job->next;
	return job;
}

int jobs_wait(struct store *store, const char *layer, struct reason *why)
{
	struct jobs *jobs = store->jobs;
	int err = 0;
	pthread_mutex_lock(&jobs->lock);
	for (struct job *job; !err && (job = find_holder_locked(jobs, layer));) {
		if (jobs->stop)
			err = reason_set(why, -EINTR, "the store is being closed");
		else if (job->err || !jobs->started)
			err = reason_set(why, -EBUSY, "%s is still to be copied from an internal snapshot (jobs/%s); try again when that is done",
					 job->disk.file_name, job->id);
		else
			pthread_cond_wait(&jobs->changed, &jobs->lock);
	}
	pthread_mutex_unlock(&jobs->lock);
	return err;
}

void jobs_let_others_first(struct store *store, const struct job *job)
{
	const struct entry *entry = table_entry(store, job->vm_id);
	while (atomic_load(&entry->nr_waiting) && !atomic_load(&job->progress.stop))
		usleep(1000);
}

/* --- waiting for space ------------------------------------------------------------------------------------------------------- */

static bool means_full(int err)
{
	return err == -ENOSPC || err == -EDQUOT;
}

#define JOB_PLACES 3

static size_t place_of(const struct store *store, const char *layer)
{
	const struct pool *pool = layer ? layer_pool(store, layer) : NULL;
	return pool ? 1 + (size_t)(pool - store->pools) : 0;
}

/* Where JOB writes, one place perhaps more than once: whichever was full, there is more free in all of them then. */
static void places_of(const struct store *store, const struct job *job, struct place *ret[JOB_PLACES])
{
	struct place *places = store->jobs->places;
	ret[0] = &places[0];
	ret[1] = &places[place_of(store, job->layer)];
	ret[2] = &places[place_of(store, job->disk.full_base)];
}

static void ask_for(const struct store *store, const struct job *job)
{
	struct place *places[JOB_PLACES];
	places_of(store, job, places);
	for (size_t i = 0; i < JOB_PLACES; i++)
		places[i]->wanted = true;
}

static uint64_t bytes_free(const struct store *store, const struct job *job)
{
	struct place *places[JOB_PLACES];
	uint64_t sum = 0;
	places_of(store, job, places);
	for (size_t i = 0; i < JOB_PLACES; i++)
		sum += places[i]->nr_free;
	return sum;
}

/* What was asked for, and nothing else: another pool's server may be gone. Without the lock. */
static void look(struct store *store)
{
	struct statvfs vfs;
	for (size_t i = 0; i <= store->nr_pools; i++) {
		struct place *place = &store->jobs->places[i];
		if (!place->wanted)
			continue;
		int err = i ? fstatvfs(store->pools[i - 1].dirfd, &vfs) : store_statvfs(store, &vfs);
		place->nr_free = err ? 0 : (uint64_t)vfs.f_bavail * vfs.f_frsize;
		place->wanted = false;
	}
}

/* Space that comes back late, from what an attempt itself has tidied up, must not make one attempt follow the other. */
static int64_t look_after(unsigned nr_full)
{
	int64_t wait = nr_full < 6 ? LOOK_S << (nr_full - 1) : RETRY_S;
	return wait < RETRY_S ? wait : RETRY_S;
}

/* --- the work ---------------------------------------------------------------------------------------------------------------- */

/* One attempt, without the lock; afterwards the job is off the list, or waits. */
static void run(struct store *store, struct job *job)
{
	struct jobs *jobs = store->jobs;
	struct reason why = {0};
	int err = job->kind->run(store, job, &why);
	bool is_full = means_full(err);
	if (is_full) {
		ask_for(store, job);
		look(store);
	}
	bool ended = !err || err == -ESTALE || err == -ECANCELED;
	/* A clone that is being made holds an image for a moment, too: that is worth no event, and not the whole wait. */
	bool soon = err == -EBUSY && !job->was_busy;
	job->was_busy = err == -EBUSY;
	if (!ended && !soon && err != job->reported_err)
		job->kind->report(store, job, job->reported_err = err, &why);
	pthread_mutex_lock(&jobs->lock);
	job->running = false;
	if ((ended && !job->again) || job->forgotten) {
		remove_locked(jobs, job);
	} else if (soon) {
		job->not_before = monotonic_now().tv_sec + BUSY_S;
	} else if (!ended) {
		job->err = err;
		job->why = why;
		job->nr_full = is_full ? job->nr_full + 1 : 0;
		job->found_free = is_full ? bytes_free(store, job) + 1 : 0;
		job->look_at = monotonic_now().tv_sec + (is_full ? look_after(job->nr_full) : RETRY_S);
		job->not_before = monotonic_now().tv_sec + RETRY_S;
		pthread_cond_broadcast(&jobs->changed);
	}
	pthread_mutex_unlock(&jobs->lock);
}

static bool is_worth_a_look(const struct job *job, int64_t now)
{
	return job->found_free && job->look_at <= now;
}

/* The first job that may run; NULL: wait until *RET_UNTIL (0: for a change). */
static struct job *next_locked(const struct store *store, int64_t *ret_until)
{
	int64_t now = monotonic_now().tv_sec, until = 0;
	for (struct job *job = store->jobs->list; job; job = job->next) {
		if (job->not_before <= now || (is_worth_a_look(job, now) && bytes_free(store, job) >= job->found_free + MORE_SPACE))
			return job;
		int64_t at = !job->found_free ? job->not_before : job->look_at > now ? job->look_at : now + LOOK_S;
		if (at > job->not_before)
			at = job->not_before;
		if (!until || at < until)
			until = at;
	}
	*ret_until = until;
	return NULL;
}

/* How much is free where jobs wait for space. Drops the lock. */
static void look_locked(struct store *store)
{
	struct jobs *jobs = store->jobs;
	int64_t now = monotonic_now().tv_sec;
	bool any = false;
	for (const struct job *job = jobs->list; job; job = job->next) {
		if (is_worth_a_look(job, now)) {
			ask_for(store, job);
			any = true;
		}
	}
	if (!any)
		return;
	pthread_mutex_unlock(&jobs->lock);
	look(store);
	pthread_mutex_lock(&jobs->lock);
}

static void *worker(void *arg)
{
	struct store *store = arg;
	struct jobs *jobs = store->jobs;
	pthread_mutex_lock(&jobs->lock);
	while (!jobs->stop) {
		int64_t until = 0;
		look_locked(store);
		struct job *job = jobs->stop ? NULL : next_locked(store, &until);
		if (job) {
			job->running = true;
			job->again = false;
			job->err = 0;
			job->found_free = 0;
			job->begun = monotonic_now();
			pthread_mutex_unlock(&jobs->lock);
			run(store, job);
			pthread_mutex_lock(&jobs->lock);
		} else if (jobs->stop) {
			break;
		} else if (until) {
			struct timespec ts = {.tv_sec = until};
			pthread_cond_timedwait(&jobs->changed, &jobs->lock, &ts);
		} else {
			pthread_cond_wait(&jobs->changed, &jobs->lock);
		}
	}
	pthread_mutex_unlock(&jobs->lock);
	return NULL;
}

int jobs_start(struct store *store)
{
	struct jobs *jobs = store->jobs;
	jobs->places = calloc(store->nr_pools + 1, sizeof *jobs->places);
	int err = jobs->places ? pthread_create(&jobs->thread, NULL, worker, store) : ENOMEM;
	if (!err)
		jobs->started = true;
	return -err;
}

/* --- what it looks like ------------------------------------------------------------------------------------------------------ */

static unsigned percent(uint64_t done, uint64_t total)
{
	return total && done < total ? (unsigned)(done * 100 / total) : total ? 100 : 0;
}

static void add_progress(struct strbuf *b, const struct job *job)
{
	uint64_t done = atomic_load(&job->progress.done), total = atomic_load(&job->progress.total);
	struct timespec now = monotonic_now();
	double seconds = (double)(now.tv_sec - job->begun.tv_sec) + (double)(now.tv_nsec - job->begun.tv_nsec) / 1e9;
	double rate = seconds > 0 ? (double)done / seconds : 0;
	strbuf_addf(b, "progress: %" PRIu64 "/%" PRIu64 " bytes (%u %%)\n", done, total, percent(done, total));
	strbuf_addf(b, "rate: %.1f MiB/s\n", rate / 1048576);
	if (rate > 0 && done <= total)
		strbuf_addf(b, "time left: %.0f s\n", (double)(total - done) / rate);
}

int store_job_text(struct store *store, const char *id, char **ret, size_t *ret_len)
{
	struct jobs *jobs = store->jobs;
	struct strbuf b = {0};
	pthread_mutex_lock(&jobs->lock);
	const struct job *job = find_locked(jobs, id);
	if (!job) {
		pthread_mutex_unlock(&jobs->lock);
		return -ENOENT;
	}
	struct vm *vm = table_current(store, table_entry(store, job->vm_id));
	strbuf_addf(&b, "kind: %s\n", job->kind->title);
	strbuf_addf(&b, "vm: %s\n", vm ? vm->name : "(removed)");
	strbuf_addf(&b, "disk: %s\n", job->disk.file_name);
	if (job->kind->describe)
		job->kind->describe(job, &b);
	if (job->running)
		add_progress(&b, job);
	else if (job->err)
		strbuf_addf(&b, "state: failed (%s), next attempt in %ld s\n", *job->why.text ? job->why.text : strerror(-job->err),
			    (long)(job->not_before - monotonic_now().tv_sec));
	else
		strbuf_addf(&b, "state: waiting\n");
	pthread_mutex_unlock(&jobs->lock);
	vm_put(vm);
	return strbuf_take(&b, ret, ret_len);
}

int store_jobs(struct store *store, char **ret)
{
	struct jobs *jobs = store->jobs;
	struct strbuf b = {0};
	pthread_mutex_lock(&jobs->lock);
	for (const struct job *job = jobs->list; job; job = job->next)
		strbuf_addf(&b, "%s\n", job->id);
	pthread_mutex_unlock(&jobs->lock);
	return strbuf_take(&b, ret, NULL);
}

int store_job_cancel(struct store *store, const char *id, struct reason *why)
{
	struct jobs *jobs = store->jobs;
	pthread_mutex_lock(&jobs->lock);
	struct job *job = find_locked(jobs, id);
	int err = job && !job->forgotten ? 0 : -ENOENT;
	if (!err && job->kind->cancel)
		err = job->kind->cancel(store, job, why);
	if (err) {
		pthread_mutex_unlock(&jobs->lock);
		return err;
	}
	const struct job_kind *kind = job->kind;
	uint32_t vm_id = job->vm_id;
	char layer[LAYER_NAME_MAX];
	memcpy(layer, job->layer, sizeof layer);
	forget_locked(jobs, job);
	pthread_mutex_unlock(&jobs->lock);
	return kind->cancelled ? kind->cancelled(store, vm_id, layer, why) : 0;
}

int jobs_status(struct store *store, uint32_t vm_id, char **ret)
{
	struct jobs *jobs = store->jobs;
	struct strbuf b = {0};
	pthread_mutex_lock(&jobs->lock);
	for (const struct job *job = jobs->list; job; job = job->next)
		if (job->vm_id == vm_id)
			strbuf_addf(&b, "job: %s of %s, %u %% (jobs/%s)\n", job->kind->verb, job->disk.file_name,
				    percent(atomic_load(&job->progress.done), atomic_load(&job->progress.total)), job->id);
	pthread_mutex_unlock(&jobs->lock);
	return strbuf_take(&b, ret, NULL);
}
