#include "store/clone_spec.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/name.h"
#include "store/manifest.h"
#include "store/snapshot.h"
#include "store/store_internal.h"

#define VOLUME_MAX  214u /* bytes; with its pool's name it is a layer's */
#define CLONE_MAX   120u /* bytes of a clone's name in that of a volume */
#define SECTOR_MASK 511ull

static const struct disk_spec *row_of(const struct clone_spec *spec, const struct vm_disk *disk)
{
	for (size_t i = 0; i < spec->nr_disks; i++)
		if (spec->disks[i].disk && vm_disk_index(disk, 1, spec->disks[i].disk) == 0)
			return &spec->disks[i];
	return NULL;
}

int clone_spec_check(const struct clone_spec *spec, const struct vm_disk *disks, size_t nr_disks, struct reason *why)
{
	for (size_t i = 0; i < spec->nr_disks; i++) {
		const char *name = spec->disks[i].disk;
		int d = name ? vm_disk_index(disks, nr_disks, name) : -1;
		if (d < 0)
			return reason_set(why, -ENOENT, "there is no disk %s", name ? name : "(unnamed)");
		if (row_of(spec, &disks[d]) != &spec->disks[i])
			return reason_set(why, -EINVAL, "disk %s is named twice", name);
	}
	return 0;
}

/* A member that is zero says nothing. */
static struct disk_spec merged(const struct disk_spec *all, const struct disk_spec *row)
{
	static const struct disk_spec nothing;
	const struct disk_spec *own = row ? row : &nothing;
	return (struct disk_spec){
		.disk = own->disk,
		.left_out = own->left_out || all->left_out,
		.mode = own->mode ? own->mode : all->mode,
		.format = own->format ? own->format : all->format,
		.allocation = own->allocation ? own->allocation : all->allocation,
		.pool = own->pool ? own->pool : all->pool,
		.volume = own->volume ? own->volume : all->volume,
		.capacity = own->capacity ? own->capacity : all->capacity,
		.shrink = own->shrink || all->shrink,
		.target = own->target ? own->target : all->target,
		.bus = own->bus ? own->bus : all->bus,
		.mode_bits = own->mode_bits ? own->mode_bits : all->mode_bits,
		.renew_serial = own->renew_serial || all->renew_serial,
	};
}

static int check_volume(struct store *store, const struct disk_spec *spec, struct reason *why)
{
	struct stat st;
	const struct pool *pool = spec->pool ? pool_find(store, spec->pool, strlen(spec->pool)) : NULL;
	if (spec->pool && !pool)
		return reason_set(why, -ENOENT, "there is no pool %s: mount with -o pool=%s:DIR", spec->pool, spec->pool);
	if (!spec->volume)
		return 0;
	if (!pool)
		return reason_set(why, -EINVAL, "volume %s: say in which pool", spec->volume);
	if (name_check(spec->volume) < 0 || strlen(spec->volume) > VOLUME_MAX)
		return reason_set(why, -EINVAL, "%s: not a name for a volume", spec->volume);
	if (fstatat(pool->dirfd, spec->volume, &st, 0) == 0 && !S_ISBLK(st.st_mode))
		return reason_set(why, -EEXIST, "%s/%s exists", pool->dir, spec->volume);
	return 0;
}

static bool ends_with(const char *text, const char *ending)
{
	size_t len = strlen(text), n = strlen(ending);
	return len > n && strcmp(text + len - n, ending) == 0;
}

/* A volume's ending says its format, and a format that isn't said is that. One whose name says nothing ("sparse.img") gets the ending of its format. */
static int choose_format(struct clone_disk *disk, struct reason *why)
{
	struct disk_spec *spec = &disk->spec;
	if (spec->volume && spec->format == IMAGE_QCOW2 && layer_format(spec->volume) != IMAGE_QCOW2 && !ends_with(spec->volume, ".raw") &&
	    strlen(spec->volume) <= VOLUME_MAX) {
		snprintf(disk->volume, sizeof disk->volume, "%s.qcow2", spec->volume);
		spec->volume = disk->volume;
	}
	enum image_format ending = spec->volume ? layer_format(spec->volume) : IMAGE_PROBE;
	if (spec->format != IMAGE_PROBE && spec->format != IMAGE_RAW && spec->format != IMAGE_QCOW2)
		return reason_set(why, -EINVAL, "a format that isn't made here: raw and qcow2 are");
	if (ending && spec->format && ending != spec->format)
		return reason_set(why, -EINVAL, "volume %s: its name says %s, its format %s; give it the ending %s", spec->volume,
				  image_format_name(ending), image_format_name(spec->format), spec->format == IMAGE_QCOW2 ? ".qcow2" : ".raw");
	if (!spec->format)
		spec->format = ending ? ending : IMAGE_QCOW2;
	return 0;
}

static int choose_mode(struct store *store, const struct disk_spec *spec, struct clone_disk *ret, struct reason *why)
{
	bool asks_full = spec->format == IMAGE_RAW || spec->allocation == ALLOCATION_FULL;
	if (spec->mode == CLONE_THIN && spec->format == IMAGE_RAW)
		return reason_set(why, -EINVAL, "a thin clone is a qcow2 overlay: write mode='full' for a raw one, or format='qcow2'");
	if (spec->mode == CLONE_THIN && spec->allocation == ALLOCATION_FULL)
		return reason_set(why, -EINVAL, "a thin clone shares its space with its source: write mode='full' for allocation='full', or allocation='sparse'");
	ret->full = asks_full || spec->mode == CLONE_FULL || (spec->mode == CLONE_AS_MOUNTED && store->clone_full);
	ret->raw = spec->format == IMAGE_RAW;
	return 0;
}

static int check_target(const char *target, struct reason *why)
{
	auto_free char *file = NULL;
	if (asprintf(&file, "%s.img", target) < 0)
		return -ENOMEM;
	auto_free char *same = strlen(target) < 200 ? manifest_target_of(file) : NULL;
	return same ? 0 : reason_set(why, -EINVAL, "%s: not a name for a disk", target);
}

int clone_spec_disk(struct store *store, const struct clone_spec *spec, const struct vm_disk *from, struct clone_disk *ret, struct reason *why)
{
	const struct disk_spec *row = row_of(spec, from);
	*ret = (struct clone_disk){.spec = merged(&spec->all, row)};
	if (spec->only_listed && !row)
		ret->spec.left_out = true;
	if (ret->spec.left_out)
		return 0;
	int err = choose_format(ret, why);
	if (!err)
		err = check_volume(store, &ret->spec, why);
	if (!err)
		err = choose_mode(store, &ret->spec, ret, why);
	if (!err && ret->spec.target)
		err = check_target(ret->spec.target, why);
	return err ? reason_prefix(why, err, "disk %s: ", from->file_name) : 0;
}

int clone_disk_size(const struct clone_disk *disk, uint64_t source_size, uint64_t *ret, struct reason *why)
{
	const struct disk_spec *spec = &disk->spec;
	if (spec->capacity > INT64_MAX - SECTOR_MASK)
		return reason_set(why, -EINVAL, "a capacity of %" PRIu64 " bytes", spec->capacity);
	uint64_t size = spec->capacity ? (spec->capacity + SECTOR_MASK) & ~SECTOR_MASK : source_size;
	if (size < source_size && !spec->shrink)
		return reason_set(why, -EINVAL, "its capacity of %" PRIu64 " bytes is less than the source's %" PRIu64 ": write shrink='yes' to cut it off", size,
				  source_size);
	*ret = size;
	return 0;
}

int clone_disk_volume(struct store *store, const struct clone_disk *disk, const char *name, const char *target, char layer[LAYER_NAME_MAX])
{
	const char *ending = disk->raw ? ".raw" : ".qcow2";
	const struct pool *pool = disk->spec.pool ? pool_find(store, disk->spec.pool, strlen(disk->spec.pool)) : NULL;
	if (!pool) {
		layer_name_new(layer, ending);
		return 0;
	}
	int n = 0;
	if (disk->spec.volume) {
		n = snprintf(layer, LAYER_NAME_MAX, "%s/%s", pool->name, disk->spec.volume);
	} else if (strlen(name) > CLONE_MAX) {
		n = snprintf(layer, LAYER_NAME_MAX, "%s/", pool->name);
		layer_name_new(layer + n, ending);
	} else {
		n = snprintf(layer, LAYER_NAME_MAX, "%s/%s-%s%s", pool->name, name, target, ending);
		for (unsigned i = 2; n < LAYER_NAME_MAX && faccessat(pool->dirfd, strchr(layer, '/') + 1, F_OK, AT_SYMLINK_NOFOLLOW) == 0; i++)
			n = snprintf(layer, LAYER_NAME_MAX, "%s/%s-%s_%u%s", pool->name, name, target, i, ending);
	}
	return n < LAYER_NAME_MAX ? 0 : -ENAMETOOLONG;
}
