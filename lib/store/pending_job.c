/* The job that copies what a disk still has in an internal snapshot of a found image: see pending.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store/full.h"
#include "store/jobs.h"
#include "store/managed.h"
#include "store/pending.h"
#include "store/store_internal.h"

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
	struct disk_source source = {path, layer_format(disk->pending_base), NULL};
	return path ? view_open(store->images, &source, ret, why) : -ENOMEM;
}

/* The base is stable under its name before vm.xml says that nothing else is needed. */
static int commit_base_locked(struct store *store, struct entry *entry, struct job *job, struct reason *why)
{
	struct vm *now = table_current(store, entry);
	int i = now ? find_pending(now, job->layer) : -1;
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
	int i = now ? find_pending(now, job->layer) : -1;
	struct vm *next = i < 0 ? NULL : vm_copy(now);
	if (next) {
		vm_disk_set_error(&next->disks[i], -EIO, why->text);
		struct open_head *oh = head_lookup(store, &next->disks[i]);
		store_event(store, next->name,
			    "disk %s can't be read any more: %s. What the clone itself wrote is in %s/%s; make the clone again from "
			    "a snapshot that is still there",
			    next->disks[i].file_name, why->text, layer_place(store, next->disks[i].layer).dir, layer_place(store, next->disks[i].layer).name);
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

static void report(struct store *store, const struct job *job, int err, const struct reason *why)
{
	struct entry *entry = table_entry(store, job->vm_id);
	struct vm *vm = table_current(store, entry);
	if (vm)
		store_event(store, vm->name, "disk %s: copying its data from the snapshot failed: %s; it stays usable, and the copy is tried again",
			    job->disk.file_name, *why->text ? why->text : strerror(-err));
	vm_put(vm);
}

static int run(struct store *store, struct job *job, struct reason *why)
{
	int err = fill_base(store, &job->disk, &job->progress, why);
	if (!err)
		err = commit_base(store, job, why);
	if (!err)
		full_plan(store);
	if (err == -ESTALE)
		mark_lost(store, job, why);
	return err;
}

static void describe(const struct job *job, struct strbuf *b)
{
	strbuf_addf(b, "from: %s, snapshot %s\n", job->disk.pending_path, job->disk.pending_snapshot);
}

static int cancel(struct store *store, const struct job *job, struct reason *why)
{
	(void)store;
	return reason_set(why, -EPERM,
			  "the clone's disk %s needs this copy: without it, it is lost with the snapshot. Remove the disk or the clone to end it",
			  job->disk.file_name);
}

static const struct job_kind kind = {
	.verb = "copy",
	.title = "copy of an internal snapshot into the clone",
	.id_ending = "",
	.holds_layer = true,
	.describe = describe,
	.run = run,
	.report = report,
	.cancel = cancel,
};

int pending_add_job(struct store *store, const struct vm *vm, const struct vm_disk *disk)
{
	return jobs_add(store, &kind, vm, disk, disk->layer);
}

int pending_add_jobs(struct store *store)
{
	int err = 0;
	for (int place = 0; !err && place < NR_PLACES; place++) {
		struct vm **vms = NULL;
		size_t nr = 0;
		err = table_list(store, (enum vm_place)place, &vms, &nr);
		for (size_t i = 0; i < nr; i++) {
			for (size_t d = 0; !err && vms[i]->kind == VM_MANAGED && d < vms[i]->nr_disks; d++)
				if (vms[i]->disks[d].pending_path)
					err = pending_add_job(store, vms[i], &vms[i]->disks[d]);
			vm_put(vms[i]);
		}
		free(vms);
	}
	return err;
}
