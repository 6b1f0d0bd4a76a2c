#include "store/source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/mounts.h"
#include "store/store_internal.h"

#define MAX_DEPTH     16
#define MAX_FILES     1000000u /* some 150 MiB */
#define FRESH_SECONDS 2	       /* the coarsest clock of a filesystem */

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

bool stamp_is_fresh(const struct stat *st)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	/* What claims to be of the future isn't: it would never cease to be fresh. */
	return llabs((long long)st->st_mtim.tv_sec - now.tv_sec) <= FRESH_SECONDS ||
	       llabs((long long)st->st_ctim.tv_sec - now.tv_sec) <= FRESH_SECONDS;
}

bool source_is_skipped(const struct store *store, const char *path)
{
	char layer[LAYER_NAME_MAX];
	/* What was made in a pool is shown there, or belongs to a clone. */
	return (store->nr_pools && layer_of_path(store, path, layer)) || strrchr(path, '/')[1] == '.' || (store->mountpoint && strcmp(path, store->mountpoint) == 0) ||
	       (store->store_dir && strcmp(path, store->store_dir) == 0);
}

int source_open(const char *path, struct stat *ret_st)
{
	struct open_how how = {
		.flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
		.resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	auto_close int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
	if (fd < 0)
		return errno == ELOOP ? -EACCES : -errno;
	if (fstat(fd, ret_st) < 0)
		return -errno;
	return S_ISREG(ret_st->st_mode) ? take_fd(&fd) : -EACCES;
}

/* --- lists in order of path --------------------------------------------------------------------------------------------- */

static int by_path(const void *a, const void *b)
{
	return strcmp(((const struct source_file *)a)->path, ((const struct source_file *)b)->path);
}

static int dir_by_path(const void *a, const void *b)
{
	return strcmp(((const struct source_dir *)a)->path, ((const struct source_dir *)b)->path);
}

const struct source_file *source_find(const struct source *source, const char *path)
{
	struct source_file key = {.path = (char *)(uintptr_t)path};
	return source->nr_files ? bsearch(&key, source->files, source->nr_files, sizeof key, by_path) : NULL;
}

static const struct source_dir *find_dir(const struct source *source, const char *path)
{
	struct source_dir key = {.path = (char *)(uintptr_t)path};
	return source->nr_dirs ? bsearch(&key, source->dirs, source->nr_dirs, sizeof key, dir_by_path) : NULL;
}

/* --- walking ------------------------------------------------------------------------------------------------------------ */

struct walk {
	struct store *store;
	const struct source *old;
	bool again;
	struct source *source;
};

struct dir_name {
	char *name;
	unsigned char type; /* of readdir(3) */
};

/* A directory being walked. */
struct listing {
	const char *path;
	DIR *dir;
	dev_t dev;
	int depth;
	bool of_domain; /* a domain's snapshot metadata are in it */
	bool has_others; /* and other things */
	struct dir_name *names; /* in order; of_domain: without the XML files */
	size_t nr_names, cap_names;
	size_t first_file, end_files; /* its files in the list of SOURCE's */
};

static bool is_xml(const char *name)
{
	size_t len = strlen(name);
	return len > 4 && strcmp(name + len - 4, ".xml") == 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct dir_name *)a)->name, ((const struct dir_name *)b)->name);
}

static int read_names(struct listing *in)
{
	for (struct dirent *de; (de = readdir(in->dir));) {
		if (*de->d_name == '.' || (in->of_domain && de->d_type == DT_REG && is_xml(de->d_name)))
			continue;
		in->has_others = true;
		if (mem_grow(&in->names, &in->cap_names, in->nr_names + 1, sizeof *in->names) < 0)
			return -ENOMEM;
		struct dir_name *name = &in->names[in->nr_names];
		*name = (struct dir_name){.name = strdup(de->d_name), .type = de->d_type};
		if (!name->name)
			return -ENOMEM;
		in->nr_names++;
	}
	if (in->nr_names)
		qsort(in->names, in->nr_names, sizeof *in->names, by_name);
	return 0;
}

static int add_file(struct walk *walk, const char *path, const struct stat *st)
{
	struct source *source = walk->source;
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
	const struct source_file *known = source_find(walk->old, path);
	bool same = known && known->stamp == file->stamp, unread = same && known->kind == SOURCE_UNREAD;
	file->kind = same && !(unread && walk->again) ? known->kind : source_classify(walk->store, path, unread);
	return 0;
}

static int add_dir(struct source *source, const char *path, uint64_t stamp)
{
	if (mem_grow(&source->dirs, &source->cap_dirs, source->nr_dirs + 1, sizeof *source->dirs) < 0)
		return -ENOMEM;
	struct source_dir *dir = &source->dirs[source->nr_dirs];
	*dir = (struct source_dir){.path = strdup(path), .stamp = stamp};
	if (!dir->path)
		return -ENOMEM;
	source->nr_dirs++;
	return 0;
}

static int walk_dir(struct walk *walk, int parent_fd, const char *name, struct listing *in);

/* Whether a domain's XML lies beside the directory PATH, under its name. */
static bool is_of_domain(const struct walk *walk, const struct listing *beside, const char *path)
{
	auto_free char *xml = NULL;
	const struct source files = {.files = walk->source->files + beside->first_file,
				     .nr_files = beside->end_files - beside->first_file};
	const struct source_file *file = asprintf(&xml, "%s.xml", path) < 0 ? NULL : source_find(&files, xml);
	return file && file->kind == SOURCE_DOMAIN;
}

static int walk_subdir(struct walk *walk, const struct listing *parent, const char *name, const char *path, const struct stat *st)
{
	struct listing in = {.path = path, .depth = parent->depth + 1, .of_domain = is_of_domain(walk, parent, path)};
	if (in.depth > MAX_DEPTH || (walk->store->snapshots_dir && strcmp(path, walk->store->snapshots_dir) == 0))
		return 0;
	const struct source_dir *known = in.of_domain ? find_dir(walk->old, path) : NULL;
	if (known && known->stamp == stamp_make(st))
		return add_dir(walk->source, path, known->stamp);
	size_t nr_files = walk->source->nr_files;
	int err = walk_dir(walk, dirfd(parent->dir), name, &in);
	if (!err && in.of_domain && !in.has_others && walk->source->nr_files == nr_files && !stamp_is_fresh(st))
		err = add_dir(walk->source, path, stamp_make(st));
	return err;
}

static int walk_name(struct walk *walk, const struct listing *in, const struct dir_name *name, bool files)
{
	bool may_be_file = name->type != DT_DIR, may_be_dir = name->type == DT_DIR || name->type == DT_UNKNOWN;
	if (!(files ? may_be_file : may_be_dir))
		return 0;
	auto_free char *path = NULL;
	if (asprintf(&path, "%s/%s", strcmp(in->path, "/") == 0 ? "" : in->path, name->name) < 0)
		return -ENOMEM;
	struct stat st;
	if (source_is_skipped(walk->store, path) || mounts_lies_on(dirfd(in->dir), name->name, in->dev) ||
	    fstatat(dirfd(in->dir), name->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return 0;
	if (files)
		return S_ISREG(st.st_mode) && !(in->of_domain && is_xml(name->name)) ? add_file(walk, path, &st) : 0;
	return S_ISDIR(st.st_mode) ? walk_subdir(walk, in, name->name, path, &st) : 0;
}

/* The files first: what they are says what the directories are. */
static int walk_names(struct walk *walk, struct listing *in)
{
	int err = read_names(in);
	in->first_file = walk->source->nr_files;
	for (size_t i = 0; !err && i < in->nr_names; i++)
		err = walk_name(walk, in, &in->names[i], true);
	in->end_files = walk->source->nr_files;
	for (size_t i = 0; !err && i < in->nr_names && !walk->source->truncated; i++)
		err = walk_name(walk, in, &in->names[i], false);
	return err;
}

/* One that has gone, or is a link by now, isn't worth a word. */
static void note_unread(struct source *source, const char *path, int err)
{
	if (err == -ENOENT || err == -ENOTDIR || err == -ELOOP || source->nr_unread++)
		return;
	source->unread = strdup(path);
	source->unread_err = err;
}

static int walk_dir(struct walk *walk, int parent_fd, const char *name, struct listing *in)
{
	in->dir = dir_open_at(parent_fd, name);
	if (!in->dir) {
		note_unread(walk->source, in->path, -errno);
		in->has_others = true; /* nobody knows */
		return 0;
	}
	struct stat st;
	in->dev = fstat(dirfd(in->dir), &st) < 0 ? 0 : st.st_dev;
	int err = walk_names(walk, in);
	for (size_t i = 0; i < in->nr_names; i++)
		free(in->names[i].name);
	free(in->names);
	closedir(in->dir);
	return err;
}

int source_walk(struct store *store, const struct source *old, bool again, struct source *ret)
{
	struct source source = {0};
	struct walk walk = {.store = store, .old = old, .again = again, .source = &source};
	struct listing top = {.path = store->source_dir};
	int err = walk_dir(&walk, AT_FDCWD, store->source_dir, &top);
	if (err) {
		source_done(&source);
		return err;
	}
	if (source.nr_files)
		qsort(source.files, source.nr_files, sizeof *source.files, by_path);
	if (source.nr_dirs)
		qsort(source.dirs, source.nr_dirs, sizeof *source.dirs, dir_by_path);
	*ret = source;
	return 0;
}

void source_done(struct source *source)
{
	for (size_t i = 0; i < source->nr_files; i++)
		free(source->files[i].path);
	for (size_t i = 0; i < source->nr_dirs; i++)
		free(source->dirs[i].path);
	free(source->files);
	free(source->dirs);
	free(source->unread);
	*source = (struct source){0};
}

/* Metadata that came or went don't count: they are looked at with their VM. */
bool source_equal(const struct source *a, const struct source *b)
{
	if (a->nr_files != b->nr_files)
		return false;
	for (size_t i = 0; i < a->nr_files; i++)
		if (a->files[i].stamp != b->files[i].stamp || strcmp(a->files[i].path, b->files[i].path) != 0)
			return false;
	return true;
}
