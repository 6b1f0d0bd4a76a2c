#include "store/repair.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store/jobs.h"
#include "store/merge_steps.h"
#include "store/store_internal.h"

static int run(struct store *store, struct job *job, struct reason *why)
{
	char name[1][LAYER_NAME_MAX];
	memcpy(name[0], job->layer, LAYER_NAME_MAX);
	struct merge m = {.store = store, .job = job, .run = {.names = name, .nr = 1, .vm_id = job->vm_id}};
	int err = merge_open_dest(&m, why); /* finds out what is in use */
	int close_err = merge_close_dest(&m); /* writes that */
	if (err == -ENOENT)
		return -ESTALE; /* nobody needs it any more */
	return err ? err : close_err;
}

static void report(struct store *store, const struct job *job, int err, const struct reason *why)
{
	struct vm *vm = table_current(store, table_entry(store, job->vm_id));
	store_event(store, vm ? vm->name : NULL, "disk %s: layer %s is marked dirty and can't be repaired: %s; it reads as it should, and it is tried again",
		    job->disk.file_name, job->layer, *why->text ? why->text : strerror(-err));
	vm_put(vm);
}

static const struct job_kind kind = {
	.verb = "repair",
	.title = "repair of a layer that a killed daemon left marked dirty",
	.id_ending = "-repair",
	.run = run,
	.report = report,
};

void repair_plan(struct store *store)
{
	struct dirty_layer *dirty = NULL;
	size_t nr = 0;
	if (layers_list_dirty(store, &dirty, &nr))
		return;
	for (size_t i = 0; i < nr; i++) {
		struct entry *entry = table_entry(store, dirty[i].vm_id);
		struct vm *vm = entry ? table_current(store, entry) : NULL;
		const struct vm_disk *disk = vm ? vm_disk_over_layer(vm, dirty[i].name) : NULL;
		int err = disk ? jobs_add(store, &kind, vm, disk, dirty[i].name) : 0;
		if (err && err != -EEXIST)
			store_event(store, vm->name, "layer %s is repaired at the next start: %s", dirty[i].name, strerror(-err));
		vm_put(vm);
	}
	free(dirty);
}
