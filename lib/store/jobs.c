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
#include "store/managed.h"
#include "store/pending.h"
#include "store/store_internal.h"

#define RETRY_S 30

struct job {
	struct job *next;
	char *id; /* file name in jobs/ */
	uint32_t vm_id;
	struct vm_disk disk; /* a copy of the description's */
	struct fill_progress progress;
	int reported_err; /* the worker's: said in an event already */

	/* protected by jobs->lock */
	bool running;
	bool forgotten;
	int err; /* of the last attempt; 0: none failed */
	struct reason why;
	time_t not_before; /* monotonic seconds */
	struct timespec begun;
};

struct jobs {
	pthread_mutex_t lock;
	pthread_cond_t changed; /* any of the following */
	struct job *list;	/* in the order in which they came */
	bool stop;
	bool started;
	pthread_t thread;
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
	free(jobs);
}

static struct job *find_locked(const struct jobs *jobs, const char *id)
{
	struct job *job = jobs->list;
	while (job && strcmp(job->id, id) != 0)
		job = job->next;
	return job;
}

/* "web-test-vda", and a number where that is taken; the caller frees. */
static char *new_id_locked(const struct jobs *jobs, const char *vm_name, const char *file_name)
{
	auto_free char *text = NULL;
	int title = (int)strcspn(file_name, ".");
	if (asprintf(&text, "%.120s-%.*s", vm_name, title > 100 ? 100 : title, file_name) < 0)
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

int jobs_add(struct store *store, const struct vm *vm, const struct vm_disk *disk)
{
	struct jobs *jobs = store->jobs;
	struct job *job = calloc(1, sizeof *job);
	int err = job ? vm_disk_copy(&job->disk, disk) : -ENOMEM;
	if (!err) {
		job->vm_id = vm->id;
		pthread_mutex_lock(&jobs->lock);
		job->id = new_id_locked(jobs, vm->name, disk->file_name);
		struct job **at = &jobs->list;
		while (*at)
			at = &(*at)->next;
		if (job->id)
			*at = job;
		else
			err = -ENOMEM;
		pthread_cond_broadcast(&jobs->changed);
		pthread_mutex_unlock(&jobs->lock);
	}
	if (err)
		job_free(job);
	return err;
}

int jobs_add_all(struct store *store)
{
	int err = 0;
	for (int place = 0; !err && place < 2; place++) {
		struct vm **vms = NULL;
		size_t nr = 0;
		err = table_list(store, (enum vm_place)place, &vms, &nr);
		for (size_t i = 0; i < nr; i++) {
			for (size_t d = 0; !err && vms[i]->kind == VM_MANAGED && d < vms[i]->nr_disks; d++)
				if (vms[i]->disks[d].pending_path)
					err = jobs_add(store, vms[i], &vms[i]->disks[d]);
			vm_put(vms[i]);
		}
		free(vms);
	}
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

static struct job *find_layer_locked(const struct jobs *jobs, const char *layer)
{
	struct job *job = jobs->list;
	while (job && (job->forgotten || strcmp(job->disk.layer, layer) != 0))
		job = job->next;
	return job;
}

void jobs_forget_layer(struct store *store, const char *layer)
{
	struct jobs *jobs = store->jobs;
	pthread_mutex_lock(&jobs->lock);
	struct job *job = find_layer_locked(jobs, layer);
	if (job)
		forget_locked(jobs, job);
	pthread_mutex_unlock(&jobs->lock);
}

int jobs_wait(struct store *store, const char *layer, struct reason *why)
{
	struct jobs *jobs = store->jobs;
	int err = 0;
	pthread_mutex_lock(&jobs->lock);
	for (struct job *job; !err && (job = find_layer_locked(jobs, layer));) {
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

/* --- the work ---------------------------------------------------------------------------------------------------------------- */

/* The pending disk of VM with this layer; -1: none. */
static int find_pending(const struct vm *vm, const char *layer)
{
	for (size_t i = 0; i < vm->nr_disks; i++)
		if (vm->disks[i].pending_path && strcmp(vm->disks[i].layer, layer) == 0)
			return (int)i;
	return -1;
}

/* Whoever has the disk open reads the base from now on. The snapshot's image isn't needed any more. */
static void switch_to_base(struct open_head *oh, struct view *base)
{
	pthread_rwlock_wrlock(&oh->swap);
	struct view *beneath = oh->head ? head_below(oh->head) : NULL;
	if (beneath && head_relock(oh, base, NULL) == 0)
		head_replace_below(oh->head, base);
	view_put(beneath);
	pthread_rwlock_unlock(&oh->swap);
}

static int open_base(struct store *store, const struct vm_disk *disk, struct view **ret, struct reason *why)
{
	auto_free char *path = layer_path(store, disk->pending_base);
	struct disk_source source = {path, IMAGE_RAW, NULL};
	return path ? view_open(store->images, &source, ret, why) : -ENOMEM;
}

/* The base is stable under its name before vm.xml says that nothing else is needed. */
static int commit_base_locked(struct store *store, struct entry *entry, struct job *job, struct reason *why)
{
	struct vm *now = table_current(store, entry);
	int i = now ? find_pending(now, job->disk.layer) : -1;
	if (i < 0) {
		vm_put(now);
		return -ECANCELED;
	}
	struct view *base = NULL;
	struct vm *next = vm_copy(now);
	int err = next ? open_base(store, &job->disk, &base, why) : -ENOMEM;
	if (!err) {
		vm_disk_clear_pending(&next->disks[i]);
		err = managed_commit(store, entry, vm_ref(next), why);
	}
	struct open_head *oh = err ? NULL : head_lookup(store, &next->disks[i]);
	if (oh)
		switch_to_base(oh, base);
	view_put(base);
	vm_put(next);
	vm_put(now);
	return err;
}

static int commit_base(struct store *store, struct job *job, struct reason *why)
{
	struct entry *entry = table_entry(store, job->vm_id);
	int err = layers_add(store, job->disk.pending_base, NULL);
	if (err)
		return err;
	pthread_mutex_lock(&entry->change);
	err = commit_base_locked(store, entry, job, why);
	pthread_mutex_unlock(&entry->change);
	layers_unpin(store, job->disk.pending_base);
	if (err == -ECANCELED)
		layer_abandon(store, job->disk.pending_base);
	else if (err)
		layers_forget(store, job->disk.pending_base); /* made again by the next attempt */
	return err;
}

/* The snapshot has gone: what the clone would read from now on is anybody's guess, so it reads nothing. */
static void mark_lost(struct store *store, struct job *job, const struct reason *why)
{
	struct entry *entry = table_entry(store, job->vm_id);
	pthread_mutex_lock(&entry->change);
	struct vm *now = table_current(store, entry);
	int i = now ? find_pending(now, job->disk.layer) : -1;
	struct vm *next = i < 0 ? NULL : vm_copy(now);
	if (next) {
		vm_disk_set_error(&next->disks[i], -EIO, why->text);
		struct open_head *oh = head_lookup(store, &next->disks[i]);
		store_event(store, next->name,
			    "disk %s can't be read any more: %s. What the clone itself wrote is in %s/%s; make the clone again from "
			    "a snapshot that is still there",
			    next->disks[i].file_name, why->text, store->layers_dir, next->disks[i].layer);
		if (oh) {
			pthread_rwlock_wrlock(&oh->swap);
			head_detach(oh);
			pthread_rwlock_unlock(&oh->swap);
		}
		if (table_publish(store, entry, next))
			vm_put(next);
	}
	pthread_mutex_unlock(&entry->change);
	vm_put(now);
}

static void report_failure(struct store *store, struct job *job, int err, const struct reason *why)
{
	struct entry *entry = table_entry(store, job->vm_id);
	struct vm *vm = table_current(store, entry);
	if (vm)
		store_event(store, vm->name, "disk %s: copying its data from the snapshot failed: %s; it stays usable, and the copy is tried again",
			    job->disk.file_name, *why->text ? why->text : strerror(-err));
	vm_put(vm);
}

/* One attempt, without the lock; afterwards the job is off the list, or waits. */
static void run(struct store *store, struct job *job)
{
	struct jobs *jobs = store->jobs;
	struct reason why = {0};
	int err = fill_base(store, &job->disk, &job->progress, &why);
	if (!err)
		err = commit_base(store, job, &why);
	if (err == -ESTALE)
		mark_lost(store, job, &why);
	else if (err && err != -ECANCELED && err != job->reported_err)
		report_failure(store, job, job->reported_err = err, &why);
	pthread_mutex_lock(&jobs->lock);
	job->running = false;
	if (!err || err == -ESTALE || err == -ECANCELED || job->forgotten) {
		remove_locked(jobs, job);
	} else {
		job->err = err;
		job->why = why;
		job->not_before = monotonic_now().tv_sec + RETRY_S;
		pthread_cond_broadcast(&jobs->changed);
	}
	pthread_mutex_unlock(&jobs->lock);
}

/* The first job that may run; NULL: wait until *RET_UNTIL (0: for a change). */
static struct job *next_locked(struct jobs *jobs, time_t *ret_until)
{
	time_t now = monotonic_now().tv_sec, until = 0;
	for (struct job *job = jobs->list; job; job = job->next) {
		if (job->not_before <= now)
			return job;
		if (!until || job->not_before < until)
			until = job->not_before;
	}
	*ret_until = until;
	return NULL;
}

static void *worker(void *arg)
{
	struct store *store = arg;
	struct jobs *jobs = store->jobs;
	pthread_mutex_lock(&jobs->lock);
	while (!jobs->stop) {
		time_t until = 0;
		struct job *job = next_locked(jobs, &until);
		if (job) {
			job->running = true;
			job->err = 0;
			job->begun = monotonic_now();
			pthread_mutex_unlock(&jobs->lock);
			run(store, job);
			pthread_mutex_lock(&jobs->lock);
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
	int err = pthread_create(&store->jobs->thread, NULL, worker, store);
	if (!err)
		store->jobs->started = true;
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
	strbuf_addf(&b, "kind: copy of an internal snapshot into the clone\n");
	strbuf_addf(&b, "vm: %s\n", vm ? vm->name : "(removed)");
	strbuf_addf(&b, "disk: %s\n", job->disk.file_name);
	strbuf_addf(&b, "from: %s, snapshot %s\n", job->disk.pending_path, job->disk.pending_snapshot);
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
	const struct job *job = find_locked(jobs, id);
	int err = -ENOENT;
	if (job)
		err = reason_set(why, -EPERM,
				 "the clone's disk %s needs this copy: without it, it is lost with the snapshot. Remove the disk or the clone to end it",
				 job->disk.file_name);
	pthread_mutex_unlock(&jobs->lock);
	return err;
}

int jobs_status(struct store *store, uint32_t vm_id, char **ret)
{
	struct jobs *jobs = store->jobs;
	struct strbuf b = {0};
	pthread_mutex_lock(&jobs->lock);
	for (const struct job *job = jobs->list; job; job = job->next)
		if (job->vm_id == vm_id)
			strbuf_addf(&b, "job: copy of %s, %u %% (jobs/%s)\n", job->disk.file_name,
				    percent(atomic_load(&job->progress.done), atomic_load(&job->progress.total)), job->id);
	pthread_mutex_unlock(&jobs->lock);
	return strbuf_take(&b, ret, NULL);
}
