/* Taking a snapshot: all disks frozen at one moment, and a new row in vm.xml in the same commit. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/name.h"
#include "meta/domain.h"
#include "store/freeze.h"
#include "store/snapshot.h"
#include "store/store_internal.h"

struct creating {
	struct store *store;
	const struct snapshot_spec *spec;
	const struct vm *before;
	struct vm_snapshot *snapshot;
	bool *chosen;
	int memory_fd; /* a copy of the RAM; -1: none */
	bool commit_tried; /* vm.xml may name it, whatever comes of it */
};

/* What the configuration says of the disk: NULL, or why it stays out of snapshots that take all. */
static const char *why_out(const struct domain *domain, const struct vm_disk *disk)
{
	if (disk->error)
		return "it can't be read";
	for (size_t i = 0; i < domain->nr_disks; i++) {
		const struct domain_disk *d = &domain->disks[i];
		if (strcmp(d->target, disk->target) != 0)
			continue;
		if (d->shareable)
			return "it is shared with other VMs, which write to it";
		if (d->readonly)
			return "it is read-only";
		if (d->snapshot && strcmp(d->snapshot, "no") == 0)
			return "its configuration says snapshot='no'";
	}
	return NULL;
}

static bool is_listed(const struct snapshot_spec *spec, const struct vm_disk *disk)
{
	for (size_t i = 0; i < spec->nr_disks; i++)
		if (vm_disk_index(disk, 1, spec->disks[i]) == 0)
			return true;
	return !spec->subset;
}

static int check_list(const struct snapshot_spec *spec, const struct vm *now, struct reason *why)
{
	for (size_t i = 0; i < spec->nr_disks; i++)
		if (vm_disk_index(now->disks, now->nr_disks, spec->disks[i]) < 0)
			return reason_set(why, -ENOENT, "%s has no disk %s", now->name, spec->disks[i]);
	return 0;
}

static int choose(struct creating *c, struct reason *why)
{
	const struct vm *now = c->before;
	struct domain domain;
	int err = check_list(c->spec, now, why);
	if (!err)
		err = domain_parse_text(now->config, strlen(now->config), &domain, why);
	if (err)
		return err;
	for (size_t i = 0; !err && i < now->nr_disks; i++) {
		const struct vm_disk *disk = &now->disks[i];
		const char *out = disk->target ? why_out(&domain, disk) : NULL;
		if (!disk->target)
			continue; /* a scratch file */
		if (is_listed(c->spec, disk) && out)
			store_event(c->store, now->name, "disk %s isn't part of the snapshot %s: %s", disk->file_name, c->snapshot->name, out);
		c->chosen[i] = is_listed(c->spec, disk) && !out;
		if (!c->chosen[i])
			err = snapshot_leave_out(c->snapshot, disk->target);
	}
	domain_done(&domain);
	return err;
}

/* The layers that are the heads' now are what the snapshot is going to hold. */
static int add_disks(struct creating *c)
{
	int err = 0;
	for (size_t i = 0; !err && i < c->before->nr_disks; i++)
		if (c->chosen[i])
			err = snapshot_add_disk(c->store, c->snapshot, &c->before->disks[i], c->before->disks[i].layer);
	return err;
}

static int amend(void *ctx, struct vm *next, const struct frozen_disk *frozen, struct reason *why)
{
	struct creating *c = ctx;
	(void)frozen;
	(void)why;
	if (vm_snapshot_append(next, c->snapshot) < 0)
		return -ENOMEM;
	vm_snapshot_ref(c->snapshot);
	c->commit_tried = true;
	next->current = (int)next->nr_snapshots - 1;
	return 0;
}

static int create(struct creating *c, struct entry *entry, struct vm **now, struct reason *why)
{
	auto_free struct frozen_disk *frozen = mem_new_array((*now)->nr_disks, sizeof *frozen);
	const struct freeze_spec spec = {.chosen = c->chosen, .blanks_too = true, .amend = amend, .ctx = c};
	int err = frozen ? choose(c, why) : -ENOMEM;
	if (!err)
		err = add_disks(c);
	if (!err)
		err = text_set(&c->snapshot->description, c->spec->description);
	if (!err && c->memory_fd >= 0)
		err = snapshot_place_memory(c->store, c->before, c->snapshot, c->memory_fd, why);
	if (!err && c->memory_fd >= 0)
		err = text_set(&c->snapshot->state, "running"); /* else there would be none */
	if (!err)
		err = snapshot_write_file(c->store, c->before, c->snapshot, c->before->config, why);
	if (!err)
		err = freeze_disks(c->store, entry, now, &spec, frozen, why);
	if (err && !c->commit_tried)
		snapshot_unlink_files(c->before, c->snapshot);
	return err;
}

static int create_locked(struct store *store, struct entry *entry, struct vm **now, const struct snapshot_spec *spec, int memory_fd,
			 struct reason *why)
{
	int err = snapshot_check_no_preview(*now, "taking a snapshot", why);
	if (err)
		return err;
	auto_free char *name = spec->name ? strdup(spec->name) : snapshot_name_by_time(*now, "");
	if (!name)
		return -ENOMEM;
	if ((err = name_check(name)))
		return reason_set(why, err, "%s: not a name for a snapshot", name);
	if (vm_snapshot_index(*now, name) >= 0)
		return reason_set(why, -EEXIST, "%s has a snapshot %s already", (*now)->name, name);
	struct vm *before = vm_ref(*now);
	struct creating c = {.store = store, .spec = spec, .before = before, .memory_fd = memory_fd};
	c.chosen = mem_new_array(before->nr_disks, sizeof *c.chosen);
	c.snapshot = snapshot_new(store, before, name);
	err = c.chosen && c.snapshot ? create(&c, entry, now, why) : -ENOMEM;
	vm_snapshot_put(c.snapshot);
	free(c.chosen);
	vm_put(before);
	return err;
}

int store_snapshot_create(struct store *store, struct vm *vm, const struct snapshot_spec *spec, struct reason *why)
{
	struct entry *entry = NULL;
	struct vm *now = NULL;
	auto_close int memory_fd = -1;
	int err = managed_check(store, vm, why);
	if (!err && spec->memory_path)
		err = snapshot_copy_memory(store, spec, &memory_fd, why);
	if (!err)
		err = managed_begin_settled(store, vm, &entry, &now, why);
	if (err)
		return err;
	err = create_locked(store, entry, &now, spec, memory_fd, why);
	managed_end(entry, now);
	return err;
}
