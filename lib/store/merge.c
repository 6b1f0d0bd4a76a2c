#include "store/merge.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "store/merge_steps.h"
#include "store/store_internal.h"

#define ATTEMPTS_MAX 64u /* of which each saw the run change */

/* --- one run ---------------------------------------------------------------------------------------------------------- */

static int size_of(struct store *store, const char *name, uint64_t *ret, struct reason *why)
{
	struct image *image = NULL;
	int err = layer_open_image(store, name, &image, why);
	if (!err)
		*ret = image_virtual_size(image);
	image_put(image);
	return err;
}

/* Of the top: by one rename in one directory, and what the name says of the format stays true. */
static bool can_take_place(const struct merge *m, size_t i)
{
	const char *top = m->run.names[0], *name = m->run.names[i];
	return layers_share_dir(top, name) && layer_format(top) == layer_format(name);
}

/* The layer with most data stays where it is; the others' bytes move. */
static int choose(struct merge *m, struct reason *why)
{
	uint64_t most = 0, total = 0, top_size = 0;
	int err = size_of(m->store, m->run.names[0], &top_size, why);
	m->into = 0;
	for (size_t i = 0; !err && i < m->run.nr; i++) {
		uint64_t bytes = 0, size = top_size;
		err = layer_allocated(m->store, m->run.names[i], &bytes);
		total += bytes;
		if (!err && i)
			err = size_of(m->store, m->run.names[i], &size, why);
		if (bytes > most && (i == 0 || (size == top_size && !m->pull_only && can_take_place(m, i)))) {
			most = bytes;
			m->into = i;
		}
	}
	atomic_store(&m->job->progress.done, 0);
	atomic_store(&m->job->progress.total, total - most);
	return err;
}

static int merge_frozen(struct merge *m, struct reason *why)
{
	struct stat owner;
	int err = m->into ? merge_check_readers(m, NULL, why) : 0;
	if (!err)
		err = merge_open_dest(m, why);
	if (!err && m->into + 1 < m->run.nr)
		err = merge_pull(m, why);
	if (!err && m->into)
		err = merge_push(m, 0, m->into, why);
	int close_err = merge_close_dest(m);
	if (err || close_err || !m->into)
		return err ? err : close_err;
	const struct layer_place top = layer_place(m->store, m->run.names[0]);
	if (fstatat(top.dirfd, top.name, &owner, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	return merge_take_place(m, &owner, why);
}

/* Who has the old files open keeps their space. */
static void let_go_of_old(struct merge *m)
{
	if (heads_reopen_beneath(m->store, m->run.names, m->run.nr))
		store_event(m->store, NULL, "a disk over layer %s can't be opened anew: the files that were merged take space until the disk is closed",
			    m->run.names[0]);
}

static int merge_run(struct merge *m, struct reason *why)
{
	int err = choose(m, why);
	if (!err)
		err = m->run.is_head ? merge_head(m, why) : merge_frozen(m, why);
	if (err)
		return err;
	/* The old names first: a file that loses its second name while it is open looks changed to who opened it. */
	layers_unlink_unneeded(m->store);
	let_go_of_old(m);
	return 0;
}

/* --- planning ---------------------------------------------------------------------------------------------------------- */

static const struct job_kind kind;

static void add_job(struct store *store, const struct layer_run *run)
{
	struct entry *entry = table_entry(store, run->vm_id);
	struct vm *vm = entry ? table_current(store, entry) : NULL;
	const struct vm_disk *disk = vm ? vm_disk_over_layer(vm, run->names[0]) : NULL;
	int err = disk ? jobs_add(store, &kind, vm, disk, run->names[0]) : 0;
	if (err && err != -EEXIST)
		store_event(store, vm->name, "disk %s: space that deleted snapshots took comes back later: %s", disk->file_name, strerror(-err));
	vm_put(vm);
}

void merges_plan(struct store *store)
{
	struct layer_run *runs = NULL;
	size_t nr = 0;
	int err = layers_find_runs(store, &runs, &nr);
	for (size_t i = 0; i < nr; i++) {
		if (!err)
			add_job(store, &runs[i]);
		layer_run_done(&runs[i]);
	}
	free(runs);
}

/* --- the job ------------------------------------------------------------------------------------------------------------ */

/* What no further attempt changes. */
static bool is_hopeless(int err)
{
	return err == -EOPNOTSUPP || err == -EUCLEAN || err == -ENAMETOOLONG || err == -ENOENT;
}

static void report(struct store *store, const struct job *job, int err, const struct reason *why)
{
	struct vm *vm = table_current(store, table_entry(store, job->vm_id));
	store_event(store, vm ? vm->name : NULL, "disk %s: merging what deleted snapshots left failed: %s; nothing is lost, but their space isn't back%s",
		    job->disk.file_name, *why->text ? why->text : strerror(-err), is_hopeless(err) ? "" : ", and it is tried again");
	vm_put(vm);
}

static int run(struct store *store, struct job *job, struct reason *why)
{
	struct merge m = {.store = store, .job = job};
	int err = MERGE_AGAIN;
	bool ended = false;
	/* A run that is done may be part of a longer one by now. */
	for (unsigned nr_again = 0; (!err || err == MERGE_AGAIN) && nr_again < ATTEMPTS_MAX; nr_again += err == MERGE_AGAIN) {
		jobs_let_others_first(store, job);
		err = layers_begin_run(store, job->layer, &m.run);
		ended = err == -ENOENT;
		if (err)
			break;
		m.entry = table_entry(store, m.run.vm_id);
		err = merge_run(&m, why);
		layers_end_run(store, &m.run);
		layers_unlink_unneeded(store);
	}
	if (ended)
		err = 0;
	if (err == MERGE_AGAIN)
		err = -EBUSY;
	if (is_hopeless(err)) {
		layers_cancel_run(store, job->layer);
		report(store, job, err, why);
		err = -ECANCELED;
	}
	/* The top may be only another's now; and the VM that the job was for may have gone, which is no reason to leave the others' layers. */
	if (!err || err == -ECANCELED)
		merges_plan(store);
	return err;
}

static int cancel(struct store *store, const struct job *job, struct reason *why)
{
	(void)why;
	layers_cancel_run(store, job->layer);
	return 0;
}

static const struct job_kind kind = {
	.verb = "merge",
	.title = "merge of what deleted snapshots left with the layers that need it",
	.id_ending = "-merge",
	.run = run,
	.report = report,
	.cancel = cancel,
};
