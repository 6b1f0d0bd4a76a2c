#include "store/full_raw.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/fill.h"
#include "block/merge.h"
#include "store/store_internal.h"

#define JOBS_DIR	"jobs"
#define CHECKPOINT_MAX	1024u
#define CHECKPOINT_NAME 250u /* bytes */

/* --- how far it is ------------------------------------------------------------------------------------------------------------- */

/* STORE/jobs/POOL!FILE.xml or UUID.raw.xml: <fill layer='UUID.qcow2' file='DEVICE:INODE' done='BYTES'/>: all before is stable in that file, of what lies
 * beneath that layer. It is there, and stable, before the file has a byte. */
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

struct checkpoint {
	char layer[LAYER_NAME_MAX], file[64];
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
	auto_close int file = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (file < 0 || file_load(file, CHECKPOINT_MAX, &text, NULL) < 0)
		return false;
	return sscanf(text, "<fill layer='%255[^']' file='%63[^']' done='%" SCNu64 "'/>", ret->layer, ret->file, &ret->done) == 3;
}

/* What lies beneath another layer may read otherwise. */
static bool is_for(struct store *store, const char *base, const char *layer)
{
	struct checkpoint checkpoint;
	return load_checkpoint(store, base, &checkpoint) && strcmp(checkpoint.layer, layer) == 0;
}

/* 0 where nothing is known. */
static uint64_t done_before(struct store *store, const char *base, const char *layer, int fd)
{
	struct checkpoint checkpoint;
	char facts[64];
	file_facts(fd, facts);
	return load_checkpoint(store, base, &checkpoint) && strcmp(checkpoint.layer, layer) == 0 && strcmp(checkpoint.file, facts) == 0 ? checkpoint.done : 0;
}

static void forget_checkpoint(struct store *store, const char *base)
{
	char name[LAYER_NAME_MAX + 8];
	auto_close int dirfd = open_jobs_dir(store, false);
	if (dirfd >= 0 && checkpoint_name(name, base))
		unlinkat(dirfd, name, 0);
}

struct checkpoints {
	struct store *store;
	const char *base, *layer;
	int fd;
};

/* A failure costs nothing but time: what another layer was said to be beneath isn't taken for this one's. */
static int save_checkpoint(void *ctx, uint64_t off)
{
	const struct checkpoints *c = ctx;
	char name[LAYER_NAME_MAX + 8], facts[64], text[CHECKPOINT_MAX];
	auto_close int dirfd = open_jobs_dir(c->store, true);
	if (dirfd < 0 || !checkpoint_name(name, c->base))
		return 0;
	file_facts(c->fd, facts);
	int len = snprintf(text, sizeof text, "<fill layer='%s' file='%s' done='%" PRIu64 "'/>\n", c->layer, facts, off);
	file_replace(dirfd, name, text, (size_t)len, 0600);
	return 0;
}

void full_raw_clear_leftovers(struct store *store)
{
	DIR *dir = dir_open_at(store->store_fd, JOBS_DIR);
	if (!dir)
		return;
	for (struct dirent *de; (de = readdir(dir));) {
		char base[LAYER_NAME_MAX];
		size_t len = strlen(de->d_name);
		if (len < 5 || len - 4 >= sizeof base || strcmp(de->d_name + len - 4, ".xml") != 0)
			continue;
		snprintf(base, sizeof base, "%.*s", (int)(len - 4), de->d_name);
		char *mark = strchr(base, '!');
		if (mark)
			*mark = '/';
		if (layer_name_is_valid(base) && !layers_is_wanted(store, base))
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
	if (err)
		layer_file_cancel(store, base);
	else
		forget_checkpoint(store, base); /* of one that had the name before */
	return err;
}

void full_raw_drop(struct store *store, const char *base)
{
	if (layers_pin(store, base) == 0) { /* it is beneath something */
		layers_unpin(store, base);
		return;
	}
	if (layer_file_is_finished(store, base))
		layer_file_unlink(store, base);
	else
		layer_file_cancel(store, base);
	forget_checkpoint(store, base);
}

/* --- filling it --------------------------------------------------------------------------------------------------------------------- */

/* What nothing lies beneath is zeros. */
static int fill_zeros(int fd, uint64_t size, bool preallocate)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISBLK(st.st_mode))
		return fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, (off_t)size) < 0 ? -errno : 0;
	if (ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)size) < 0 || (preallocate && size && fallocate(fd, 0, 0, (off_t)size) < 0) || fsync(fd) < 0)
		return -errno;
	return 0;
}

static int fill_from(struct checkpoints *checkpoints, struct job *job, struct view *view, uint64_t size, bool preallocate, struct reason *why)
{
	struct fill_spec spec = {
		.virtual_size = size,
		.from = done_before(checkpoints->store, checkpoints->base, checkpoints->layer, checkpoints->fd),
		.preallocate = preallocate,
		.done = &job->progress.done,
		.total = &job->progress.total,
		.stop = &job->progress.stop,
		.checkpoint = save_checkpoint,
		.ctx = checkpoints,
	};
	if (spec.from > size)
		spec.from = 0;
	/* Nobody writes to what is being copied. */
	int err = view_lock(view, why);
	if (err)
		return err;
	save_checkpoint(checkpoints, spec.from);
	err = view_fill_raw(view, checkpoints->fd, &spec, why);
	view_unlock(view);
	return err;
}

static int fill(struct store *store, struct job *job, const char *layer, const char *base, bool preallocate, struct reason *why)
{
	struct image *image = NULL;
	struct view *view = NULL;
	int err = layer_open_image(store, layer, &image, why);
	if (err)
		return err;
	uint64_t size = image_virtual_size(image);
	const struct stat *st = image_stat(image);
	const struct layer_owner owner = {st->st_mode & 0777, st->st_uid, st->st_gid};
	auto_close int fd = -1;
	atomic_store(&job->progress.done, 0);
	err = layers_open_beneath(store, layer, &view, why);
	if (!err)
		err = layer_file_begin(store, base, &owner, true, &fd, why);
	struct checkpoints checkpoints = {store, base, layer, fd};
	if (!err && view)
		err = fill_from(&checkpoints, job, view, size, preallocate, why);
	else if (!err && !(err = fill_zeros(fd, size, preallocate)))
		save_checkpoint(&checkpoints, size);
	if (!err)
		err = layer_file_finish(store, base, fd, why);
	view_put(view);
	image_put(image);
	return err;
}

int full_raw_make(struct store *store, struct job *job, const char *layer, const char *base, bool preallocate, struct reason *why)
{
	bool finished = layer_file_is_finished(store, base);
	int err = 0;
	if (finished && !is_for(store, base, layer)) {
		layer_abandon(store, base);
		finished = false;
	}
	if (!finished)
		err = fill(store, job, layer, base, preallocate, why);
	return err ? err : layers_add(store, base, NULL);
}

void full_raw_made(struct store *store, const char *base)
{
	forget_checkpoint(store, base);
}
