#include "store/full_raw.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/fill.h"
#include "block/merge.h"
#include "store/merge_steps.h"
#include "store/store_internal.h"

#define JOBS_DIR	"jobs"
#define CHECKPOINT_MAX	1024u
#define CHECKPOINT_NAME 250u /* bytes */
#define ZEROS_MAX	(256ull << 20) /* of a device, between two looks at `stop` */

/* --- how far it is ------------------------------------------------------------------------------------------------------------- */

/* STORE/jobs/POOL!FILE.xml or UUID.raw.xml: <fill layer='UUID.qcow2' source='…' file='DEVICE:INODE' done='BYTES'/>: all before is stable in that file, of that
 * source, which lies beneath that layer. It is there, and stable, before the file has a byte. */
static bool checkpoint_name(char name[LAYER_NAME_MAX + 8], const char *base)
{
	snprintf(name, LAYER_NAME_MAX + 8, "%s.xml", base);
	char *slash = strchr(name, '/');
	if (slash)
		*slash = '!';
	return strlen(name) <= CHECKPOINT_NAME;
}

static int open_jobs_dir(struct store *store, bool make)
{
	if (make && mkdirat(store->store_fd, JOBS_DIR, 0700) < 0 && errno != EEXIST)
		return -errno;
	int fd = openat(store->store_fd, JOBS_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Of a device, the device itself: what its directory has it by may be another inode after a restart. */
static void file_facts(int fd, char text[64])
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		snprintf(text, 64, "?");
	else if (S_ISBLK(st.st_mode))
		snprintf(text, 64, "device:%" PRIu64, (uint64_t)st.st_rdev);
	else
		snprintf(text, 64, "%" PRIu64 ":%" PRIu64, (uint64_t)st.st_dev, (uint64_t)st.st_ino);
}

void full_raw_describe(const struct view *beneath, char source[FULL_SOURCE_MAX])
{
	if (!beneath) {
		snprintf(source, FULL_SOURCE_MAX, "nothing");
		return;
	}
	const struct stat *st = image_stat(view_layer(beneath, 0));
	snprintf(source, FULL_SOURCE_MAX, "%" PRIu64 ":%" PRIu64 ":%" PRId64 ":%" PRId64 ".%09ld", (uint64_t)st->st_dev, (uint64_t)st->st_ino,
		 (int64_t)st->st_size, (int64_t)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
}

struct checkpoint {
	char layer[LAYER_NAME_MAX], source[FULL_SOURCE_MAX], file[64];
	uint64_t done;
};

static bool load_checkpoint(struct store *store, const char *base, struct checkpoint *ret)
{
	char name[LAYER_NAME_MAX + 8];
	auto_free char *text = NULL;
	auto_close int dirfd = open_jobs_dir(store, false);
	*ret = (struct checkpoint){0};
	if (dirfd < 0 || !checkpoint_name(name, base))
		return false;
	auto_close int file = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (file < 0 || file_load(file, CHECKPOINT_MAX, &text, NULL) < 0)
		return false;
	return sscanf(text, "<fill layer='%255[^']' source='%127[^']' file='%63[^']' done='%" SCNu64 "'/>", ret->layer, ret->source, ret->file,
		      &ret->done) == 4;
}

/* What lies beneath another layer, or later beneath the same, may read otherwise. */
static bool load_own(struct store *store, const char *base, const char *layer, const char *source, struct checkpoint *ret)
{
	return load_checkpoint(store, base, ret) && strcmp(ret->layer, layer) == 0 && strcmp(ret->source, source) == 0;
}

static bool is_for(struct store *store, const char *base, const char *layer, const char *source)
{
	struct checkpoint checkpoint;
	return load_own(store, base, layer, source, &checkpoint);
}

static void forget_checkpoint(struct store *store, const char *base)
{
	char name[LAYER_NAME_MAX + 8];
	auto_close int dirfd = open_jobs_dir(store, false);
	if (dirfd >= 0 && checkpoint_name(name, base) && unlinkat(dirfd, name, 0) == 0)
		dir_sync(dirfd);
}

struct checkpoints {
	struct store *store;
	const char *base, *layer, *source;
	int fd;
};

/* 0 where nothing is known. */
static uint64_t done_before(const struct checkpoints *c)
{
	struct checkpoint checkpoint;
	char facts[64];
	file_facts(c->fd, facts);
	return load_own(c->store, c->base, c->layer, c->source, &checkpoint) && strcmp(checkpoint.file, facts) == 0 ? checkpoint.done : 0;
}

/* Without one, for a name that is too long, all is done again after a crash. */
static int save_checkpoint(const struct checkpoints *c, uint64_t off)
{
	char name[LAYER_NAME_MAX + 8], facts[64], text[CHECKPOINT_MAX];
	if (!checkpoint_name(name, c->base))
		return 0;
	auto_close int dirfd = open_jobs_dir(c->store, true);
	if (dirfd < 0)
		return dirfd;
	file_facts(c->fd, facts);
	int len = snprintf(text, sizeof text, "<fill layer='%s' source='%s' file='%s' done='%" PRIu64 "'/>\n", c->layer, c->source, facts, off);
	return file_replace(dirfd, name, text, (size_t)len, 0600, NULL);
}

/* That it is further than the last one says costs nothing but time. */
static int note_progress(void *ctx, uint64_t off)
{
	save_checkpoint(ctx, off);
	return 0;
}

static void note_goal(void *ctx, const struct vm_disk *disk)
{
	const char **base = ctx;
	if (*base && disk->full_base && strcmp(disk->full_base, *base) == 0)
		*base = NULL;
}

/* Before any other thread. That of a file which is made, and needed, may have come back with a power cut. */
static bool is_any_goal(const struct store *store, const char *base)
{
	for (size_t e = 0; base && e < store->nr_entries; e++)
		if (store->entries[e]->vm)
			vm_each_layer(store->entries[e]->vm, note_goal, &base);
	return !base;
}

void full_raw_clear_leftovers(struct store *store)
{
	DIR *dir = dir_open_at(store->store_fd, JOBS_DIR);
	if (!dir)
		return;
	for (struct dirent *de; (de = readdir(dir));) {
		char base[LAYER_NAME_MAX];
		size_t len = strlen(de->d_name);
		if (file_is_temporary(de->d_name))
			unlinkat(dirfd(dir), de->d_name, 0);
		if (len < 5 || len - 4 >= sizeof base || strcmp(de->d_name + len - 4, ".xml") != 0)
			continue;
		snprintf(base, sizeof base, "%.*s", (int)(len - 4), de->d_name);
		char *mark = strchr(base, '!');
		if (mark)
			*mark = '/';
		if (layer_name_is_valid(base) && !is_any_goal(store, base))
			unlinkat(dirfd(dir), de->d_name, 0);
	}
	closedir(dir);
}

/* --- its name ------------------------------------------------------------------------------------------------------------------- */

int full_raw_reserve(struct store *store, const char *base, const struct layer_owner *owner, uint64_t *size, struct reason *why)
{
	auto_close int fd = -1;
	struct stat st;
	int err = layer_file_begin(store, base, owner, false, &fd, why);
	if (err)
		return err;
	if (fstat(fd, &st) < 0) {
		err = -errno;
	} else if (S_ISBLK(st.st_mode)) {
		off_t end = lseek(fd, 0, SEEK_END);
		if (!store->allow_devices)
			err = reason_set(why, -EACCES, "%s is a block device: mount with -o block_devices", base);
		else if (end < 0 || (uint64_t)end < *size)
			err = reason_set(why, -ENOSPC, "%s has %" PRIu64 " bytes, the disk %" PRIu64, base, end < 0 ? 0 : (uint64_t)end, *size);
		else
			*size = (uint64_t)end & ~511ull;
	}
	if (!err && layers_is_wanted(store, base)) /* though its file has gone */
		err = reason_set(why, -EEXIST, "%s is what another disk is made into", base);
	if (err)
		layer_file_cancel(store, base);
	else
		forget_checkpoint(store, base); /* of one that had the name before */
	return err;
}

bool full_raw_is_goal(struct store *store, struct entry *entry, const char *base)
{
	struct vm *vm = table_current(store, entry);
	if (vm)
		vm_each_layer(vm, note_goal, &base);
	vm_put(vm);
	return !base;
}

void full_raw_drop(struct store *store, const char *base)
{
	if (layers_is_wanted(store, base))
		return;
	if (layer_file_is_finished(store, base))
		layer_file_unlink(store, base);
	else
		layer_file_cancel(store, base);
	forget_checkpoint(store, base);
}

/* --- filling it --------------------------------------------------------------------------------------------------------------------- */

/* In whole sectors of the device, which has as many as the disk at least. */
static int zero_device(struct job *job, int fd, uint64_t size)
{
	int sector = 512;
	off_t end = lseek(fd, 0, SEEK_END);
	if (end < 0 || ioctl(fd, BLKSSZGET, &sector) < 0)
		return -errno;
	size = (size + (uint64_t)sector - 1) / (uint64_t)sector * (uint64_t)sector;
	atomic_store(&job->progress.total, size);
	for (uint64_t off = 0, len; off < size; off += len) {
		len = size - off < ZEROS_MAX ? size - off : ZEROS_MAX;
		if (atomic_load(&job->progress.stop))
			return -ECANCELED;
		if (fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) < 0)
			return -errno;
		atomic_store(&job->progress.done, off + len);
	}
	return fsync(fd) < 0 ? -errno : 0;
}

static int zero_file(int fd, uint64_t size, bool preallocate)
{
	if (ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)size) < 0)
		return -errno;
	/* Where the filesystem can't, it stays sparse. */
	if (preallocate && size && fallocate(fd, 0, 0, (off_t)size) < 0 && errno != EOPNOTSUPP && errno != ENOSYS)
		return -errno;
	return fsync(fd) < 0 ? -errno : 0;
}

/* What nothing lies beneath is zeros. */
static int fill_zeros(struct job *job, int fd, uint64_t size, bool preallocate)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	return S_ISBLK(st.st_mode) ? zero_device(job, fd, size) : zero_file(fd, size, preallocate);
}

static int fill_from(struct checkpoints *checkpoints, struct job *job, struct view *view, uint64_t size, bool preallocate, struct reason *why)
{
	struct fill_spec spec = {
		.virtual_size = size,
		.from = done_before(checkpoints),
		.preallocate = preallocate,
		.done = &job->progress.done,
		.total = &job->progress.total,
		.stop = &job->progress.stop,
		.checkpoint = note_progress,
		.ctx = checkpoints,
	};
	if (spec.from > size)
		spec.from = 0;
	/* Nobody writes to what is being copied. */
	int err = merge_lock_view(view, why);
	if (err)
		return err;
	err = save_checkpoint(checkpoints, spec.from);
	if (!err)
		err = view_fill_raw(view, checkpoints->fd, &spec, why);
	view_unlock(view);
	if (err != -ESTALE)
		return err;
	save_checkpoint(checkpoints, 0); /* what is there is of no use */
	return merge_view_error(view, err, why);
}

/* Who ends the goal drops the base afterwards: the one as the other with the change lock, so that it isn't begun for nobody. */
static int begin(struct store *store, const struct job *job, const char *base, const struct layer_owner *owner, int *ret_fd, struct reason *why)
{
	struct entry *entry = table_entry(store, job->vm_id);
	pthread_mutex_lock(&entry->change);
	int err = full_raw_is_goal(store, entry, base) ? layer_file_begin(store, base, owner, true, ret_fd, why) : -EAGAIN;
	pthread_mutex_unlock(&entry->change);
	return err == -ESTALE ? reason_set(why, -ENODEV, "%s isn't the device that it was: it may not be active yet", base) : err;
}

/* In the table before it has its name: who drops it knows then that the file is the table's. */
static int publish(struct store *store, const char *base, int fd, struct reason *why)
{
	int err = layers_add_new(store, base, NULL);
	if (err)
		return err == -EEXIST ? FULL_RAW_TAKEN : err;
	err = layer_file_finish(store, base, fd, why);
	if (err)
		layers_forget(store, base);
	return err == -ESTALE ? -EAGAIN : err;
}

static int fill(struct store *store, struct job *job, const char *layer, const char *base, bool preallocate, struct view *view, const char *source,
		struct reason *why)
{
	struct image *image = NULL;
	int err = layer_open_image(store, layer, &image, why);
	if (err)
		return err;
	uint64_t size = image_virtual_size(image);
	const struct stat *st = image_stat(image);
	const struct layer_owner owner = {st->st_mode & 0777, st->st_uid, st->st_gid};
	auto_close int fd = -1;
	atomic_store(&job->progress.done, 0);
	err = begin(store, job, base, &owner, &fd, why);
	struct checkpoints checkpoints = {store, base, layer, source, fd};
	if (!err && view)
		err = fill_from(&checkpoints, job, view, size, preallocate, why);
	else if (!err && !(err = save_checkpoint(&checkpoints, 0)))
		err = fill_zeros(job, fd, size, preallocate);
	if (!err)
		err = publish(store, base, fd, why);
	image_put(image);
	return err;
}

/* The header of LAYER may name it though we failed to hear so: then it is no copy of what lies beneath it but that, and stays. */
static bool lies_beneath(struct store *store, const char *base, const struct view *view)
{
	char name[LAYER_NAME_MAX];
	return view && layer_of_path(store, image_path(view_layer(view, 0)), name) && strcmp(name, base) == 0;
}

static int make_from(struct store *store, struct job *job, const char *layer, const char *base, bool preallocate, struct view *view, const char *source,
		     struct reason *why)
{
	bool finished = layer_file_is_finished(store, base);
	if (lies_beneath(store, base, view) || (finished && is_for(store, base, layer, source))) {
		/* It may be that it has its name because the sync after that failed. */
		int err = dir_sync(layer_place(store, base).dirfd);
		if (err)
			return err;
		err = layers_pin(store, base);
		return err ? layers_add_new(store, base, NULL) : 0;
	}
	if (finished && !layers_take_unused(store, base))
		return FULL_RAW_TAKEN;
	if (finished)
		layer_file_unlink(store, base);
	return fill(store, job, layer, base, preallocate, view, source, why);
}

int full_raw_make(struct store *store, struct job *job, const char *layer, const char *base, bool preallocate, char source[FULL_SOURCE_MAX],
		  struct reason *why)
{
	struct view *view = NULL;
	int err = layers_open_beneath(store, layer, &view, why);
	if (err)
		return err;
	full_raw_describe(view, source);
	err = make_from(store, job, layer, base, preallocate, view, source, why);
	view_put(view);
	return err;
}

void full_raw_forget(struct store *store, const char *base)
{
	forget_checkpoint(store, base);
}
