#include "store/source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "store/store_internal.h"

#define MAX_DEPTH 16
#define MAX_FILES 1000000u /* some 150 MiB */

uint64_t stamp_make(const struct stat *st)
{
	uint64_t words[] = {st->st_dev,
			    st->st_ino,
			    (uint64_t)st->st_size,
			    (uint64_t)st->st_mtim.tv_sec,
			    (uint64_t)st->st_mtim.tv_nsec,
			    (uint64_t)st->st_ctim.tv_sec,
			    (uint64_t)st->st_ctim.tv_nsec};
	return hash_bytes(HASH_START, words, sizeof words);
}

struct walk {
	struct store *store;
	struct source *source;
};

static int add_file(struct source *source, const char *path, const struct stat *st)
{
	if (source->nr_files >= MAX_FILES) {
		source->truncated = true;
		return 0;
	}
	if (mem_grow(&source->files, &source->cap_files, source->nr_files + 1, sizeof *source->files) < 0)
		return -ENOMEM;
	struct source_file *file = &source->files[source->nr_files];
	*file = (struct source_file){.path = strdup(path), .stamp = stamp_make(st)};
	if (!file->path)
		return -ENOMEM;
	source->nr_files++;
	return 0;
}

/* Told by name: a stat(2) of the mount point would be asked of ourselves. */
static bool is_skipped(const struct store *store, const char *path, const char *name)
{
	return *name == '.' || (store->mountpoint && strcmp(path, store->mountpoint) == 0) ||
	       (store->store_dir && strcmp(path, store->store_dir) == 0);
}

static int walk_dir(struct walk *walk, int parent_fd, const char *name, const char *path, int depth);

static int walk_entry(struct walk *walk, int fd, const char *dir_path, const char *name, int depth)
{
	auto_free char *path = NULL;
	if (asprintf(&path, "%s/%s", strcmp(dir_path, "/") == 0 ? "" : dir_path, name) < 0)
		return -ENOMEM;
	struct stat st;
	if (is_skipped(walk->store, path, name) || fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return 0;
	if (S_ISREG(st.st_mode))
		return add_file(walk->source, path, &st);
	return S_ISDIR(st.st_mode) && depth < MAX_DEPTH ? walk_dir(walk, fd, name, path, depth + 1) : 0;
}

static int walk_dir(struct walk *walk, int parent_fd, const char *name, const char *path, int depth)
{
	int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir) {
		if (fd >= 0)
			close(fd);
		return 0;
	}
	int err = 0;
	for (struct dirent *de; !err && !walk->source->truncated && (de = readdir(dir));)
		err = walk_entry(walk, fd, path, de->d_name, depth);
	closedir(dir);
	return err;
}

static int by_path(const void *a, const void *b)
{
	return strcmp(((const struct source_file *)a)->path, ((const struct source_file *)b)->path);
}

/* The directory of snapshot metadata may lie below SOURCE: then its files are in the list twice. */
static void drop_duplicates(struct source *source)
{
	size_t kept = 0;
	for (size_t i = 0; i < source->nr_files; i++) {
		if (kept && strcmp(source->files[kept - 1].path, source->files[i].path) == 0)
			free(source->files[i].path);
		else
			source->files[kept++] = source->files[i];
	}
	source->nr_files = kept;
}

int source_walk(struct store *store, struct source *ret)
{
	struct source source = {0};
	struct walk walk = {.store = store, .source = &source};
	int err = walk_dir(&walk, AT_FDCWD, store->source_dir, store->source_dir, 0);
	if (!err && store->snapshots_dir)
		err = walk_dir(&walk, AT_FDCWD, store->snapshots_dir, store->snapshots_dir, MAX_DEPTH - 1);
	if (err) {
		source_done(&source);
		return err;
	}
	if (source.nr_files)
		qsort(source.files, source.nr_files, sizeof *source.files, by_path);
	drop_duplicates(&source);
	*ret = source;
	return 0;
}

void source_done(struct source *source)
{
	for (size_t i = 0; i < source->nr_files; i++)
		free(source->files[i].path);
	free(source->files);
	*source = (struct source){0};
}

bool source_equal(const struct source *a, const struct source *b)
{
	if (a->nr_files != b->nr_files)
		return false;
	for (size_t i = 0; i < a->nr_files; i++)
		if (a->files[i].stamp != b->files[i].stamp || strcmp(a->files[i].path, b->files[i].path) != 0)
			return false;
	return true;
}

size_t source_lower_bound(const struct source *source, const char *prefix)
{
	size_t low = 0, high = source->nr_files;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		if (strcmp(source->files[mid].path, prefix) < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

const struct source_file *source_find(const struct source *source, const char *path)
{
	size_t i = source_lower_bound(source, path);
	return i < source->nr_files && strcmp(source->files[i].path, path) == 0 ? &source->files[i] : NULL;
}
