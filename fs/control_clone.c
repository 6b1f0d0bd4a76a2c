#include "fs/control_clone.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "fs/ops.h"
#include "meta/action.h"

/* What is cloned. */
struct source {
	struct vm *vm;
	const struct vm_snapshot *snapshot; /* NULL: the VM as it is now */
	const struct vm_disk *disks;
	size_t nr_disks;
};

/* --- which snapshot, which disk, which pool ------------------------------------------------------------------------------ */

/* "a, b": what could have been named; the caller frees. */
static char *list_snapshots(const struct vm *vm)
{
	struct strbuf b = {0};
	char *text = NULL;
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		strbuf_addf(&b, "%s%s", i ? ", " : "", vm->snapshots[i]->name);
	if (strbuf_take(&b, &text, NULL))
		strbuf_done(&b);
	return text;
}

static char *list_disks(const struct source *source)
{
	struct strbuf b = {0};
	char *text = NULL;
	for (size_t i = 0; i < source->nr_disks; i++)
		if (source->disks[i].target)
			strbuf_addf(&b, "%s%s", b.len ? ", " : "", source->disks[i].target);
	if (strbuf_take(&b, &text, NULL))
		strbuf_done(&b);
	return text;
}

/* Without a name: a volume is made of the current snapshot, and a VM of another as it is now. */
static int find_snapshot(const struct action *action, struct source *source, struct reason *why)
{
	struct vm *vm = source->vm;
	int found = action->snapshot ? vm_snapshot_lookup(vm, action->snapshot) : vm->current;
	if (action->snapshot && found < 0)
		return reason_set(why, -ENOENT, "%s has no snapshot %s", vm->name, action->snapshot);
	if (!action->snapshot && action->is_volume && found < 0) {
		auto_free char *names = list_snapshots(vm);
		return reason_set(why, -EINVAL, "which snapshot? %s has %s", vm->name, names && *names ? names : "none");
	}
	if (action->snapshot || action->is_volume)
		source->snapshot = vm->snapshots[found];
	source->disks = source->snapshot ? source->snapshot->disks : vm->disks;
	source->nr_disks = source->snapshot ? source->snapshot->nr_disks : vm->nr_disks;
	return 0;
}

/* Whether ROW speaks of DISK, which it may tell by an image that it has in another snapshot. */
static bool is_row_of(const struct source *source, const struct action_clone_disk *row, const struct vm_disk *disk)
{
	if (!disk->target)
		return false;
	if (row->image && vm_disk_has_image(disk, row->image))
		return true;
	if (!row->disk)
		return false;
	const char *target = vm_disk_target(source->vm, row->disk);
	return vm_disk_index(disk, 1, row->disk) == 0 || (target && !strcmp(target, disk->target));
}

static int check_rows(const struct source *source, const struct action *action, struct reason *why)
{
	for (size_t i = 0; i < action->nr_rows; i++) {
		const struct action_clone_disk *row = &action->rows[i];
		size_t k = 0;
		while (k < source->nr_disks && !is_row_of(source, row, &source->disks[k]))
			k++;
		if (k < source->nr_disks)
			continue;
		auto_free char *names = list_disks(source);
		return reason_set(why, -ENOENT, "%s%s%s has no disk %s: it has %s", source->vm->name, source->snapshot ? "@" : "",
				  source->snapshot ? source->snapshot->name : "", row->disk ? row->disk : row->image, names ? names : "");
	}
	return 0;
}

/* --- what a disk is to be ------------------------------------------------------------------------------------------------ */

#define FILL(member) (spec->member = spec->member ? spec->member : more->member)
static void fill(struct action_clone_disk *spec, const struct action_clone_disk *more)
{
	FILL(left_out);
	FILL(mode);
	FILL(format);
	FILL(allocation);
	FILL(shrink);
	FILL(serial);
	FILL(pool);
	FILL(volume);
	FILL(capacity);
	FILL(target);
	FILL(bus);
	FILL(mode_bits);
}
#undef FILL

static struct disk_spec disk_spec(const struct action_clone_disk *row, const char *disk)
{
	return (struct disk_spec){
		.disk = disk,
		.left_out = row->left_out,
		.mode = row->mode == ACTION_THIN ? CLONE_THIN : row->mode == ACTION_FULL ? CLONE_FULL : CLONE_AS_MOUNTED,
		.format = row->format == ACTION_RAW ? IMAGE_RAW : row->format == ACTION_QCOW2 ? IMAGE_QCOW2 : IMAGE_PROBE,
		.allocation = row->allocation == ACTION_ALLOCATED ? ALLOCATION_FULL : ALLOCATION_SPARSE,
		.pool = row->pool && *row->pool ? row->pool : NULL,
		.volume = row->volume,
		.capacity = row->capacity,
		.shrink = row->shrink == ACTION_SHRINK,
		.target = row->target,
		.bus = row->bus,
		.mode_bits = row->mode_bits,
		.renew_serial = row->serial == ACTION_RENEW_SERIAL,
	};
}

/* Every disk gets a row of its own, so that what one says can be taken back for another ("allocation=full vdb.allocation=sparse"). */
static size_t fill_specs(const struct source *source, const struct action *action, struct disk_spec *specs)
{
	size_t nr = 0;
	for (size_t i = 0; i < source->nr_disks; i++) {
		const struct vm_disk *disk = &source->disks[i];
		struct action_clone_disk row = {0};
		for (size_t k = 0; k < action->nr_rows; k++)
			if (is_row_of(source, &action->rows[k], disk))
				fill(&row, &action->rows[k]);
		fill(&row, &action->all);
		if (disk->target)
			specs[nr++] = disk_spec(&row, disk->target);
	}
	return nr;
}

/* What only one disk can have. */
static int check_all(const struct action *action, size_t nr_disks, struct reason *why)
{
	const char *key = action->all.volume ? "volume" : action->all.target ? "target" : NULL;
	if (!key || nr_disks <= 1)
		return 0;
	return reason_set(why, -EINVAL, "%s= is for one disk: say of which, as in vda.%s=", key, key);
}

/* In a pool a user may make what he could make there without us. */
static int check_may_make(fuse_req_t req, const char *pool, struct reason *why)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	struct vm *vm = pool ? store_find_brief(ops_fs(req)->store, PLACE_POOLS, pool) : NULL;
	bool may = !vm || ctx->uid == vm->uid || callers_overrides_permissions(ctx->uid, ctx->pid);
	vm_put(vm);
	return may ? 0 : reason_set(why, -EACCES, "user %u may not write in the pool %s", (unsigned)ctx->uid, pool);
}

/* All that is read, and where it is written to. */
static int check_specs(fuse_req_t req, const struct source *source, const struct disk_spec *specs, size_t nr, struct reason *why)
{
	int err = 0;
	for (size_t i = 0; !err && i < nr; i++) {
		int disk = vm_disk_index(source->disks, source->nr_disks, specs[i].disk);
		if (specs[i].left_out || disk < 0)
			continue;
		err = ops_check_may_clone(req, source->vm, source->snapshot, &source->disks[disk], why);
		if (!err)
			err = check_may_make(req, specs[i].pool, why);
	}
	return err;
}

/* --- a VM ------------------------------------------------------------------------------------------------------------------ */

static int clone_vm(fuse_req_t req, const struct source *source, const struct action *action, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	struct vm *made = NULL;
	auto_free struct disk_spec *specs = mem_new_array(source->nr_disks + 1, sizeof *specs);
	int err = specs ? ops_check_may_read_config(req, source->vm, source->snapshot, why) : -ENOMEM;
	if (!err)
		err = check_rows(source, action, why);
	size_t nr = err ? 0 : fill_specs(source, action, specs);
	if (!err)
		err = check_all(action, nr, why);
	if (!err)
		err = check_specs(req, source, specs, nr, why);
	if (err)
		return err;
	const struct clone_spec spec = {
		.name = action->name,
		.uid = ctx->uid,
		.gid = ctx->gid,
		.disks = specs,
		.nr_disks = nr,
		.domain = action->domain,
		.domain_len = action->domain ? strlen(action->domain) : 0,
	};
	err = store_clone_with(fs->store, source->vm, source->snapshot, &spec, &made, why);
	if (err)
		return err;
	if (!action->name)
		events_add(fs->events, source->vm->name, "cloned: clones/%s", made->name);
	vm_put(made);
	ops_vms_changed(fs);
	return 0;
}

/* --- a volume -------------------------------------------------------------------------------------------------------------- */

static int find_disk(const struct source *source, const struct action *action, const struct vm_disk **ret, struct reason *why)
{
	const struct vm_disk *found = NULL;
	size_t nr = 0;
	const struct action_clone_disk wanted = {.disk = action->volume_disk};
	for (size_t i = 0; i < source->nr_disks; i++) {
		const struct vm_disk *disk = &source->disks[i];
		if (!disk->target || (wanted.disk && !is_row_of(source, &wanted, disk)))
			continue;
		found = disk;
		nr++;
	}
	auto_free char *names = list_disks(source);
	if (!nr && wanted.disk)
		return reason_set(why, -ENOENT, "snapshot %s has no disk %s: it has %s", source->snapshot->name, wanted.disk, names ? names : "");
	if (nr != 1)
		return reason_set(why, -EINVAL, "which disk? Snapshot %s has %s: expected [SNAPSHOT] [DISK] [pool=POOL] <volume>", source->snapshot->name,
				  names && *names ? names : "none");
	*ret = found;
	return 0;
}

/* The only pool, where none is named; the caller frees. */
static int find_pool(struct store *store, const struct action *action, char **ret, struct reason *why)
{
	struct vm **pools = NULL;
	size_t nr = 0;
	if (action->all.pool && *action->all.pool) {
		*ret = strdup(action->all.pool);
		return *ret ? 0 : -ENOMEM;
	}
	int err = store_list(store, PLACE_POOLS, &pools, &nr);
	struct strbuf names = {0};
	for (size_t i = 0; !err && i < nr; i++)
		strbuf_addf(&names, "%s%s", i ? ", " : "", pools[i]->name);
	if (!err && nr != 1)
		err = reason_set(why, -EINVAL, "which pool? There is %s: expected [SNAPSHOT] [DISK] pool=POOL <volume>%s", nr ? names.text : "none",
				 nr ? "" : ", of a mount with -o pool=NAME:DIR");
	if (!err && !(*ret = strdup(pools[0]->name)))
		err = -ENOMEM;
	for (size_t i = 0; i < nr; i++)
		vm_put(pools[i]);
	free(pools);
	strbuf_done(&names);
	return err;
}

/* Whether LINE is one of the lines of TEXT. */
static bool has_line(const char *text, const char *line)
{
	size_t len = strlen(line);
	for (const char *at = text; at; at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
		if (strcspn(at, "\n") == len && !strncmp(at, line, len))
			return true;
	return false;
}

/* A thin volume goes on from the whole snapshot, whichever of its files the document names; but it must be one of them. */
static int check_backing(struct store *store, const struct source *source, const struct vm_disk *disk, const char *backing, struct reason *why)
{
	auto_free char *chain = NULL;
	int err = backing ? disk_chain(store, source->vm, source->snapshot, disk, &chain, why) : 0;
	if (err || !backing || has_line(chain, backing))
		return err;
	return reason_set(why, -EINVAL, "<backingStore>: %s isn't in the chain of %s@%s, disk %s: %s", backing, source->vm->name, source->snapshot->name,
			  disk->target, chain);
}

/* Only root can give a file away. */
static uid_t owner_of(long said, uid_t caller, uid_t own)
{
	return caller == 0 && said >= 0 ? (uid_t)said : own;
}

static int clone_volume(fuse_req_t req, const struct source *source, const struct action *action, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	const struct vm_disk *disk = NULL;
	auto_free char *pool = NULL;
	int err = find_disk(source, action, &disk, why);
	if (!err)
		err = ops_check_may_clone(req, source->vm, source->snapshot, disk, why);
	if (!err)
		err = find_pool(fs->store, action, &pool, why);
	if (!err)
		err = check_may_make(req, pool, why);
	if (!err)
		err = check_backing(fs->store, source, disk, action->backing, why);
	if (err)
		return err;
	struct disk_spec spec = disk_spec(&action->all, disk->target);
	spec.pool = pool;
	err = store_clone_volume(fs->store, source->vm, source->snapshot, &spec, owner_of(action->owner, ctx->uid, ctx->uid),
				 owner_of(action->group, ctx->uid, ctx->gid), why);
	if (!err)
		ops_vms_changed(fs);
	return err;
}

int control_clone(fuse_req_t req, struct vm *from, const struct action *action, struct reason *why)
{
	struct source source = {.vm = from};
	int err = find_snapshot(action, &source, why);
	if (err)
		return err;
	return action->is_volume ? clone_volume(req, &source, action, why) : clone_vm(req, &source, action, why);
}
