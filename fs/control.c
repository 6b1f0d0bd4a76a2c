#include "fs/control.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "fs/callers.h"
#include "fs/control_clone.h"
#include "fs/ops.h"
#include "meta/action.h"

#define MADE_NAMES_MAX 1000

struct control {
	pid_t opener; /* process; 0: not known */
	pthread_mutex_t lock;
	/* protected by lock */
	struct strbuf text;
	size_t taken; /* bytes at its beginning that have been carried out */
};

int control_new(pid_t thread, struct control **ret)
{
	struct control *control = calloc(1, sizeof *control);
	if (!control)
		return -ENOMEM;
	control->opener = callers_process(thread);
	pthread_mutex_init(&control->lock, NULL);
	*ret = control;
	return 0;
}

bool control_takes_commands(const struct place *place)
{
	return place->node.kind == NODE_ACTION && (place_is_managed(place) || place->node.disk == ACTION_CLONE);
}

void control_free(struct control *control)
{
	if (!control)
		return;
	pthread_mutex_destroy(&control->lock);
	strbuf_done(&control->text);
	free(control);
}

bool control_has_rest(struct control *control)
{
	pthread_mutex_lock(&control->lock);
	const struct strbuf *text = &control->text;
	bool has = text->len > control->taken && text->text[control->taken + strspn(text->text + control->taken, " \t\r\n")];
	pthread_mutex_unlock(&control->lock);
	return has;
}

/* --- which disk, which snapshot --------------------------------------------------------------------------------------- */

/* The store's name for a disk, which may be told by an image that it has now or had in a snapshot: another snapshot has another. */
static const char *disk_name(const struct vm *vm, const char *name)
{
	const char *target = vm_disk_target(vm, name);
	return target ? target : name;
}

/* The snapshot in which DISK was the layer IMAGE; NULL: none. */
static const struct vm_snapshot *snapshot_of_image(const struct vm *vm, const char *disk, const char *image)
{
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		for (size_t k = 0; k < vm->snapshots[i]->nr_disks; k++) {
			const struct vm_disk *then = &vm->snapshots[i]->disks[k];
			if (vm_disk_has_image(then, image) && vm_disk_index(then, 1, disk_name(vm, disk)) == 0)
				return vm->snapshots[i];
		}
	return NULL;
}

/* --- snapshot ------------------------------------------------------------------------------------------------------------ */

static bool is_left_out(const struct action *action, const struct vm_disk *disk)
{
	for (size_t i = 0; i < action->nr_left_out; i++)
		if (vm_disk_index(disk, 1, action->left_out[i]) == 0)
			return true;
	return false;
}

static int check_left_out(const struct vm *vm, const struct action *action, struct reason *why)
{
	for (size_t i = 0; i < action->nr_left_out; i++) {
		if (vm_disk_index(vm->disks, vm->nr_disks, action->left_out[i]) < 0)
			return reason_set(why, -ENOENT, "%s has no disk %s", vm->name, action->left_out[i]);
	}
	return 0;
}

/* A name made from a description that is taken gets a number. */
static int create_snapshot(struct fs *fs, struct vm *vm, const struct action *action, struct snapshot_spec *spec, struct reason *why)
{
	int err = store_snapshot_create(fs->store, vm, spec, why);
	for (int i = 2; err == -EEXIST && action->name_is_made && i < MADE_NAMES_MAX; i++) {
		char name[300];
		snprintf(name, sizeof name, "%.240s~%d", action->name, i);
		spec->name = name;
		err = store_snapshot_create(fs->store, vm, spec, why);
	}
	return err;
}

/* All but the disks that are left out, or those listed. */
static int run_snapshot(fuse_req_t req, struct vm *vm, const struct action *action, struct reason *why)
{
	size_t nr = 0;
	bool all_but = !action->subset && action->nr_left_out;
	auto_free const char **disks = mem_new_array(vm->nr_disks + action->nr_disks + 1, sizeof *disks);
	int err = disks ? check_left_out(vm, action, why) : -ENOMEM;
	for (size_t i = 0; !err && all_but && i < vm->nr_disks; i++)
		if (vm->disks[i].target && !is_left_out(action, &vm->disks[i]))
			disks[nr++] = vm->disks[i].target;
	for (size_t i = 0; !err && action->subset && i < action->nr_disks; i++)
		disks[nr++] = disk_name(vm, action->disks[i]);
	struct caller_ids ids = {0};
	if (!err && action->memory_path)
		err = ops_load_caller(req, &ids);
	if (err)
		return err;
	struct snapshot_spec spec = {
		.name = action->name,
		.description = action->description,
		.subset = action->subset || all_but,
		.disks = disks,
		.nr_disks = nr,
		.memory_path = action->memory_path,
		.may_read = ops_caller_may_read,
		.ctx = &ids,
	};
	err = create_snapshot(ops_fs(req), vm, action, &spec, why);
	free(ids.groups);
	return err;
}

/* --- preview, restore, delete -------------------------------------------------------------------------------------------- */

static int choose_disk(const struct vm *vm, const struct action_disk *change, struct preview_disk *ret, struct reason *why)
{
	*ret = (struct preview_disk){.disk = disk_name(vm, change->disk), .snapshot = change->snapshot};
	if (change->snapshot || !change->image)
		return 0;
	const struct vm_snapshot *snapshot = snapshot_of_image(vm, change->disk, change->image);
	if (!snapshot)
		return reason_set(why, -ENOENT, "no snapshot of %s has an image %s of disk %s", vm->name, change->image, change->disk);
	ret->snapshot = snapshot->uuid;
	return 0;
}

static int run_preview(struct fs *fs, struct vm *vm, const struct action *action, struct reason *why)
{
	auto_free struct preview_disk *disks = mem_new_array(action->nr_changes + 1, sizeof *disks);
	int err = disks ? 0 : -ENOMEM;
	for (size_t i = 0; !err && i < action->nr_changes; i++)
		err = choose_disk(vm, &action->changes[i], &disks[i], why);
	if (err)
		return err;
	struct preview_spec spec = {
		.snapshot = action->snapshot,
		.config = action->config,
		.memory = action->memory,
		.disks = disks,
		.nr_disks = action->nr_changes,
	};
	return store_preview(fs->store, vm, &spec, why);
}

/* Where the mix can't be kept, nothing is as if it had been previewed. */
static int run_restore(struct fs *fs, struct vm *vm, const struct action *action, struct reason *why)
{
	if (action->snapshot && !action->config && !action->memory && !action->nr_changes)
		return store_restore(fs->store, vm, action->snapshot, action->discard, why);
	int err = run_preview(fs, vm, action, why);
	if (err)
		return err;
	err = store_preview_commit(fs->store, vm, action->discard, why);
	if (err)
		store_preview_undo(fs->store, vm, NULL);
	return err;
}

static enum snapshot_delete delete_mode(enum action_delete mode)
{
	switch (mode) {
	case ACTION_DROP:
		break;
	case ACTION_MERGE:
		return SNAPSHOT_MERGE;
	case ACTION_MERGE_FORCE:
		return SNAPSHOT_MERGE_FORCE;
	case ACTION_DISCARD:
		return SNAPSHOT_DISCARD;
	case ACTION_DISCARD_FORCE:
		return SNAPSHOT_DISCARD_FORCE;
	}
	return SNAPSHOT_DROP;
}

static int run_flatten(struct fs *fs, struct vm *vm, const struct action *action, struct reason *why)
{
	auto_free const char **disks = mem_new_array(action->nr_disks + 1, sizeof *disks);
	if (!disks)
		return -ENOMEM;
	for (size_t i = 0; i < action->nr_disks; i++)
		disks[i] = disk_name(vm, action->disks[i]);
	return store_flatten(fs->store, vm, disks, action->nr_disks, why);
}

static int carry_out(fuse_req_t req, struct vm *vm, const struct action *action, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	switch (action->kind) {
	case ACTION_SNAPSHOT:
		return run_snapshot(req, vm, action, why);
	case ACTION_PREVIEW:
		handles_wait_closed(fs->handles, vm->id);
		return run_preview(fs, vm, action, why);
	case ACTION_COMMIT:
		return store_preview_commit(fs->store, vm, action->discard, why);
	case ACTION_UNDO:
		handles_wait_closed(fs->handles, vm->id);
		return store_preview_undo(fs->store, vm, why);
	case ACTION_RESTORE:
		handles_wait_closed(fs->handles, vm->id);
		return run_restore(fs, vm, action, why);
	case ACTION_DELETE:
		return store_snapshot_delete(fs->store, vm, action->snapshot, delete_mode(action->delete), why);
	case ACTION_CLONE:
		return control_clone(req, vm, action, why);
	case ACTION_FLATTEN:
		return run_flatten(fs, vm, action, why);
	case ACTION_NONE:
	case ACTION_KINDS:
		break;
	}
	return 0;
}

/* --- commands in what is written ------------------------------------------------------------------------------------------ */

static int run_command(fuse_req_t req, const struct handle *handle, const char *text, size_t len, struct reason *why)
{
	struct action action;
	int err = action_parse(handle->place->node.disk, text, len, &action, why);
	if (err || action.kind == ACTION_NONE)
		return err;
	struct vm *vm = store_get(ops_fs(req)->store, handle->vm);
	err = vm ? carry_out(req, vm, &action, why) : -ENOENT;
	vm_put(vm);
	action_done(&action);
	return err;
}

static int add_text(struct control *control, const void *buf, size_t len, struct reason *why)
{
	int err = 0;
	pthread_mutex_lock(&control->lock);
	if (control->text.len - control->taken + len > ACTION_TEXT_MAX)
		err = reason_set(why, -EFBIG, "a command may have %u KiB at most", ACTION_TEXT_MAX >> 10);
	else
		strbuf_add(&control->text, buf, len);
	if (control->text.failed)
		err = -ENOMEM;
	pthread_mutex_unlock(&control->lock);
	return err;
}

/* The next command (no NUL behind it), which the caller frees; NULL: there is none. It won't be given out again. */
static char *take_command(struct control *control, enum action_kind kind, bool last, size_t *ret_len)
{
	char *command = NULL;
	pthread_mutex_lock(&control->lock);
	const char *text = control->text.text ? control->text.text + control->taken : "";
	size_t off = 0;
	if (action_next(kind, text, control->text.len - control->taken, last, &off, ret_len)) {
		command = malloc(*ret_len + 1);
		if (command)
			memcpy(command, text + off, *ret_len);
		control->taken += off + *ret_len;
	}
	pthread_mutex_unlock(&control->lock);
	return command;
}

/* Drops what has been taken; ALL: the rest as well. */
static void drop_text(struct control *control, bool all)
{
	pthread_mutex_lock(&control->lock);
	struct strbuf *text = &control->text;
	if (all || control->taken == text->len) {
		strbuf_done(text);
	} else {
		text->len -= control->taken;
		memmove(text->text, text->text + control->taken, text->len + 1);
	}
	control->taken = 0;
	pthread_mutex_unlock(&control->lock);
}

static int run_all(fuse_req_t req, struct handle *handle, bool last, struct reason *why)
{
	int err = 0;
	while (!err) {
		size_t len = 0;
		auto_free char *command = take_command(handle->control, handle->place->node.disk, last, &len);
		if (!command)
			break;
		err = run_command(req, handle, command, len, why);
	}
	drop_text(handle->control, err || last);
	return err;
}

int control_write(fuse_req_t req, struct handle *handle, const void *buf, size_t len, struct reason *why)
{
	int err = add_text(handle->control, buf, len, why);
	if (err) {
		drop_text(handle->control, true);
		return err;
	}
	return run_all(req, handle, false, why);
}

int control_finish(fuse_req_t req, struct handle *handle, struct reason *why)
{
	pid_t process = callers_process(fuse_req_ctx(req)->pid), opener = handle->control->opener;
	if (process && opener && process != opener)
		return 0;
	return run_all(req, handle, true, why);
}
