#include "block/image_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/qcow2_format.h"

#define NR_BUCKETS          1024u
#define NR_AGAIN	   16u
#define MAX_UNUSED	   4096u /* images that stay open without a user; and a quarter of the descriptors at most */
#define TABLE_CACHE_BYTES   (12u << 20)
#define CLUSTER_CACHE_BYTES (16u << 20)

/* A file that we write into. */
struct expected {
	dev_t dev;
	ino_t ino;
	struct expected *next;
};

struct image_cache {
	const struct trust *trust; /* borrowed */
	struct table_cache *tables;
	struct cluster_cache *clusters;
	struct chain_ids *chain_ids;
	struct index *index;
	pthread_mutex_t lock;
	/* protected by lock */
	struct image *buckets[NR_BUCKETS];
	struct image *oldest, *newest; /* the unused ones */
	size_t nr_unused, max_unused;
	uint64_t last_serial;
	struct expected *expected;
	uint64_t nr_forgotten; /* calls */
	struct list locked_views;
};

/* --- formats ---------------------------------------------------------------------------------------------------- */

const char *image_format_name(enum image_format format)
{
	switch (format) {
	case IMAGE_PROBE: return "probe";
	case IMAGE_RAW: return "raw";
	case IMAGE_QCOW2: return "qcow2";
	}
	return "?";
}

int image_format_parse(const char *name, enum image_format *ret)
{
	if (!name)
		*ret = IMAGE_PROBE;
	else if (strcmp(name, "raw") == 0)
		*ret = IMAGE_RAW;
	else if (strcmp(name, "qcow2") == 0)
		*ret = IMAGE_QCOW2;
	else
		return -EOPNOTSUPP;
	return 0;
}

/* What the first bytes say. Formats that QEMU would find out as well and that we don't read aren't taken for raw. */
static int probe(int fd, enum image_format *ret, struct reason *why)
{
	static const struct {
		const char *magic;
		const char *name;
	} others[] = {{"QED", "QED"}, {"KDMV", "VMDK"}, {"COWD", "VMDK"}, {"vhdxfile", "VHDX"}, {"conectix", "VPC"}, {"LUKS\xba\xbe", "LUKS"},
		      {"<<< ", "VDI"}};
	char head[16];
	int err = file_read_padded(fd, head, sizeof head, 0);
	if (err)
		return err;
	for (size_t i = 0; i < sizeof others / sizeof *others; i++)
		if (memcmp(head, others[i].magic, strlen(others[i].magic)) == 0)
			return reason_set(why, -EOPNOTSUPP, "it looks like a %s image; convert it with qemu-img, or say that it is raw", others[i].name);
	*ret = memcmp(head, "QFI\xfb", 4) == 0 ? IMAGE_QCOW2 : IMAGE_RAW;
	return 0;
}

/* --- opening and closing one file ---------------------------------------------------------------------------------- */

static void image_free(struct image *image)
{
	if (!image)
		return;
	qcow2_snapshots_free(image->snapshots, image->header.nr_snapshots);
	qcow2_header_done(&image->header);
	if (image->fd >= 0)
		close(image->fd);
	if (image->data_fd >= 0)
		close(image->data_fd);
	free(image->data_path);
	free(image->path);
	pthread_mutex_destroy(&image->users_lock);
	free(image);
}

static int load_raw(struct image *image)
{
	off_t end = lseek(image->fd, 0, SEEK_END);
	if (end < 0)
		return -errno;
	image->virtual_size = ((uint64_t)end + 511) & ~511ull;
	return 0;
}

/* Looking at an image shouldn't write to its filesystem; and it's a little faster. Only an owner may. */
static void spare_atime(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	if (flags >= 0)
		fcntl(fd, F_SETFL, flags | O_NOATIME);
}

static int open_data_file(struct image *image, struct reason *why)
{
	auto_free char *dir = strdup(image->path);
	if (!dir)
		return -ENOMEM;
	int fd = trust_open(image->cache->trust, dirname(dir), image->header.data_file, O_RDONLY, &image->data_path, why);
	if (fd < 0)
		return reason_prefix(why, fd, "%s: data file: ", image->path);
	image->data_fd = fd;
	spare_atime(fd);
	return fstat(fd, &image->data_st) < 0 ? -errno : 0;
}

static int load_qcow2(struct image *image, struct reason *why)
{
	uint64_t file_size = (uint64_t)lseek(image->fd, 0, SEEK_END);
	int err = qcow2_header_load(image->fd, file_size, &image->header, why);
	if (!err)
		err = qcow2_snapshots_load(image->fd, file_size, &image->header, &image->snapshots, why);
	if (err)
		return reason_prefix(why, err, "%s: ", image->path);
	const struct qcow2_header *h = &image->header;
	image->virtual_size = h->virtual_size;
	if (image->declared == IMAGE_PROBE && (h->backing_name || h->data_file))
		return reason_set(why, -EACCES,
				  "%s looks like qcow2 and names a further file, but nothing says that it is qcow2: a guest could have written that. "
				  "Declare the format (in the domain XML, as backing format, or by the name's ending .qcow2)",
				  image->path);
	if (image_format_parse(h->backing_format, &image->backing_format) < 0)
		return reason_set(why, -EOPNOTSUPP, "%s: backing format %s isn't read", image->path, h->backing_format);
	return h->geo.has_data_file ? open_data_file(image, why) : 0;
}

static int image_load(struct image *image, struct reason *why)
{
	int err = 0;
	image->format = image->declared;
	if (image->format == IMAGE_PROBE) {
		err = probe(image->fd, &image->format, why);
		if (err)
			return reason_prefix(why, err, "%s: ", image->path);
	}
	return image->format == IMAGE_RAW ? load_raw(image) : load_qcow2(image, why);
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static bool same_content(const struct stat *a, const struct stat *b)
{
	return same_file(a, b) && a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static bool same_state(const struct stat *a, const struct stat *b)
{
	return same_content(a, b) && a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

bool image_is_current(const struct image *image)
{
	struct stat st;
	if (fstat(image->fd, &st) < 0 || !st.st_nlink)
		return false;
	if (atomic_load(&image->changing))
		return true; /* by us alone: heads have the locks */
	if (!same_state(&st, &image->st))
		return false;
	return image->data_fd < 0 || (fstat(image->data_fd, &st) == 0 && same_state(&st, &image->data_st));
}

bool image_is_unchanged(const struct image *image)
{
	struct stat st;
	if (atomic_load(&image->changing))
		return true;
	if (fstat(image->fd, &st) < 0 || !same_content(&st, &image->st))
		return false;
	return image->data_fd < 0 || (fstat(image->data_fd, &st) == 0 && same_content(&st, &image->data_st));
}

static bool same_snapshot(const struct image_snapshot *a, const struct image_snapshot *b)
{
	return !strcmp(a->id, b->id) && !strcmp(a->name, b->name) && a->date_sec == b->date_sec && a->date_nsec == b->date_nsec &&
	       a->virtual_size == b->virtual_size && a->l1_offset == b->l1_offset && a->l1_size == b->l1_size;
}

/* 1: it is there; 0: it isn't; a negative errno: the table can't be read. */
static int look_for_snapshot(const struct image *image, const struct image_snapshot *snapshot)
{
	struct qcow2_header header = {0};
	struct image_snapshot *now = NULL;
	int found = 0;
	off_t end = lseek(image->fd, 0, SEEK_END);
	int err = end < 0 ? -errno : qcow2_header_load(image->fd, (uint64_t)end, &header, NULL);
	if (!err)
		err = qcow2_snapshots_load(image->fd, (uint64_t)end, &header, &now, NULL);
	for (uint32_t i = 0; !err && i < header.nr_snapshots && !found; i++)
		found = same_snapshot(&now[i], snapshot);
	if (!err)
		qcow2_snapshots_free(now, header.nr_snapshots);
	qcow2_header_done(&header);
	return err ? err : found;
}

bool image_has_still(const struct image *image, const struct image_snapshot *snapshot)
{
	int found = -EAGAIN;
	/* Its VM may be exchanging the table just now. */
	for (unsigned i = 0; i < NR_AGAIN && found < 0; i++)
		found = look_for_snapshot(image, snapshot);
	return found > 0;
}

/* --- the cache ---------------------------------------------------------------------------------------------------------- */

int image_cache_new(const struct trust *trust, size_t index_bytes, struct image_cache **ret)
{
	struct image_cache *cache = calloc(1, sizeof *cache);
	if (!cache)
		return -ENOMEM;
	struct rlimit files;
	bool few = getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur / 4 < MAX_UNUSED;
	cache->max_unused = few ? (size_t)files.rlim_cur / 4 : MAX_UNUSED;
	cache->trust = trust;
	pthread_mutex_init(&cache->lock, NULL);
	list_init(&cache->locked_views);
	int err = table_cache_new(TABLE_CACHE_BYTES, &cache->tables);
	if (!err)
		err = cluster_cache_new(CLUSTER_CACHE_BYTES, &cache->clusters);
	if (!err)
		err = chain_ids_new(&cache->chain_ids);
	if (!err)
		err = index_new(index_bytes ? index_bytes : IMAGE_INDEX_BYTES, &cache->index);
	if (err)
		image_cache_free(cache);
	else
		*ret = cache;
	return err;
}

void image_cache_free(struct image_cache *cache)
{
	if (!cache)
		return;
	if (cache->clusters)
		cluster_cache_stop(cache->clusters);
	for (struct image *image = cache->oldest, *newer; image; image = newer) {
		newer = image->newer;
		image_free(image);
	}
	for (struct expected *e = cache->expected, *next; e; e = next) {
		next = e->next;
		free(e);
	}
	index_free(cache->index);
	chain_ids_free(cache->chain_ids);
	table_cache_free(cache->tables);
	cluster_cache_free(cache->clusters);
	pthread_mutex_destroy(&cache->lock);
	free(cache);
}

struct list *image_cache_lock_views(struct image_cache *cache)
{
	pthread_mutex_lock(&cache->lock);
	return &cache->locked_views;
}

void image_cache_unlock_views(struct image_cache *cache)
{
	pthread_mutex_unlock(&cache->lock);
}

struct table_cache *image_cache_tables(const struct image_cache *cache)
{
	return cache->tables;
}

struct cluster_cache *image_cache_clusters(const struct image_cache *cache)
{
	return cache->clusters;
}

struct index *image_cache_index(const struct image_cache *cache)
{
	return cache->index;
}

struct chain_ids *image_cache_chain_ids(const struct image_cache *cache)
{
	return cache->chain_ids;
}

static struct image **bucket_of(struct image_cache *cache, const struct stat *st)
{
	return &cache->buckets[(st->st_ino ^ st->st_dev * 31) % NR_BUCKETS];
}

static void unused_unlink_locked(struct image_cache *cache, struct image *image)
{
	*(image->older ? &image->older->newer : &cache->oldest) = image->newer;
	*(image->newer ? &image->newer->older : &cache->newest) = image->older;
	image->older = image->newer = NULL;
	cache->nr_unused--;
}

static void unused_push_locked(struct image_cache *cache, struct image *image)
{
	image->older = cache->newest;
	image->newer = NULL;
	*(cache->newest ? &cache->newest->newer : &cache->oldest) = image;
	cache->newest = image;
	cache->nr_unused++;
}

/* Out of the table; who uses it keeps it. Returns it when nobody does: the caller frees it once the lock is dropped. */
static struct image *forget_locked(struct image_cache *cache, struct image *image)
{
	struct image **link = bucket_of(cache, &image->st);
	while (*link != image)
		link = &(*link)->next;
	*link = image->next;
	image->stale = true;
	if (image->nr_users)
		return NULL;
	unused_unlink_locked(cache, image);
	return image;
}

static bool same_state_here(int fd, const struct stat *before)
{
	struct statx now;
	return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &now) == 0 && now.stx_nlink && (off_t)now.stx_size == before->st_size &&
	       now.stx_mtime.tv_sec == before->st_mtim.tv_sec && now.stx_mtime.tv_nsec == before->st_mtim.tv_nsec &&
	       now.stx_ctime.tv_sec == before->st_ctim.tv_sec && now.stx_ctime.tv_nsec == before->st_ctim.tv_nsec;
}

bool image_seems_current(const struct image *image)
{
	if (atomic_load(&image->changing)) {
		struct statx now;
		return statx(image->fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_NLINK, &now) == 0 && now.stx_nlink;
	}
	return same_state_here(image->fd, &image->st) && (image->data_fd < 0 || same_state_here(image->data_fd, &image->data_st));
}

void image_cache_trim(struct image_cache *cache)
{
	struct image *gone = NULL;
	pthread_mutex_lock(&cache->lock);
	for (struct image *image = cache->oldest, *newer; image; image = newer) {
		newer = image->newer;
		if (!image_seems_current(image)) {
			forget_locked(cache, image)->next = gone;
			gone = image;
		}
	}
	pthread_mutex_unlock(&cache->lock);
	for (struct image *next; gone; gone = next) {
		next = gone->next;
		image_free(gone);
	}
}

static struct image *find_locked(struct image_cache *cache, const struct stat *st, enum image_format declared)
{
	struct image *image = *bucket_of(cache, st);
	while (image && !(same_file(&image->st, st) && image->declared == declared))
		image = image->next;
	if (image && image->nr_users++ == 0)
		unused_unlink_locked(cache, image);
	return image;
}

/* Whether it is to be given out: asked without the lock, for the disk may be slow. */
static bool is_still(const struct image *image, const struct stat *st)
{
	return (atomic_load(&image->changing) || same_state(&image->st, st)) && image_is_current(image);
}

struct image *image_lookup(struct image_cache *cache, const struct stat *st, enum image_format declared)
{
	pthread_mutex_lock(&cache->lock);
	struct image *image = find_locked(cache, st, declared);
	pthread_mutex_unlock(&cache->lock);
	if (!image)
		return NULL;
	bool still = is_still(image, st);
	pthread_mutex_lock(&cache->lock);
	if (!still && !image->stale)
		forget_locked(cache, image);
	bool stale = image->stale;
	pthread_mutex_unlock(&cache->lock);
	if (!stale)
		return image;
	image_put(image);
	return NULL;
}

static struct expected **find_expected_locked(struct image_cache *cache, dev_t dev, ino_t ino)
{
	struct expected **link = &cache->expected;
	while (*link && !((*link)->dev == dev && (*link)->ino == ino))
		link = &(*link)->next;
	return link;
}

bool image_is_written_by_us(const struct image *image)
{
	pthread_mutex_lock(&image->cache->lock);
	bool is_written = *find_expected_locked(image->cache, image->st.st_dev, image->st.st_ino);
	pthread_mutex_unlock(&image->cache->lock);
	return is_written;
}

/* NR_FORGOTTEN: before the file was looked at. What was read of it since a call to forget may be what was to be forgotten: then it is nobody else's, and false. */
static bool insert(struct image_cache *cache, struct image *image, uint64_t nr_forgotten)
{
	pthread_mutex_lock(&cache->lock);
	image->nr_users = 1;
	if (*find_expected_locked(cache, image->st.st_dev, image->st.st_ino))
		atomic_store(&image->changing, true);
	bool current = cache->nr_forgotten == nr_forgotten;
	if (current) {
		struct image **bucket = bucket_of(cache, &image->st);
		image->next = *bucket;
		*bucket = image;
	}
	image->stale = !current;
	pthread_mutex_unlock(&cache->lock);
	return current;
}

static uint64_t nr_forgotten_now(struct image_cache *cache)
{
	pthread_mutex_lock(&cache->lock);
	uint64_t nr = cache->nr_forgotten;
	pthread_mutex_unlock(&cache->lock);
	return nr;
}

/* The images of a file, one after the other: that of the first call is NULL. */
static struct image *next_of_file_locked(struct image_cache *cache, const struct stat *file, struct image *image)
{
	image = image ? image->next : *bucket_of(cache, file);
	while (image && !same_file(&image->st, file))
		image = image->next;
	return image;
}

static void forget_file_locked(struct image_cache *cache, const struct stat *file)
{
	cache->nr_forgotten++;
	for (struct image *image = NULL, *gone; (image = next_of_file_locked(cache, file, NULL));) {
		atomic_store(&image->changing, true); /* who has it needn't mind */
		gone = forget_locked(cache, image);
		image_free(gone);
	}
}

void image_cache_forget(struct image_cache *cache, dev_t dev, ino_t ino)
{
	struct stat file = {.st_dev = dev, .st_ino = ino};
	pthread_mutex_lock(&cache->lock);
	forget_file_locked(cache, &file);
	pthread_mutex_unlock(&cache->lock);
}

int image_cache_expect_changes(struct image_cache *cache, dev_t dev, ino_t ino, bool on)
{
	struct stat file = {.st_dev = dev, .st_ino = ino};
	struct expected *made = on ? malloc(sizeof *made) : NULL, *gone = NULL;
	if (on && !made)
		return -ENOMEM;
	pthread_mutex_lock(&cache->lock);
	struct expected **link = find_expected_locked(cache, dev, ino);
	if (on && !*link) {
		*made = (struct expected){dev, ino, NULL};
		*link = take_ptr(made);
	} else if (!on && *link) {
		gone = *link;
		*link = gone->next;
	}
	for (struct image *image = NULL; on && (image = next_of_file_locked(cache, &file, image));)
		atomic_store(&image->changing, true);
	if (!on)
		forget_file_locked(cache, &file);
	pthread_mutex_unlock(&cache->lock);
	free(made);
	free(gone);
	return 0;
}

static int image_new(struct image_cache *cache, int fd, char *path, enum image_format format, struct image **ret)
{
	struct image *image = calloc(1, sizeof *image);
	if (!image)
		return -ENOMEM;
	image->cache = cache;
	image->fd = fd;
	image->data_fd = -1;
	image->path = path;
	image->declared = format;
	pthread_mutex_init(&image->users_lock, NULL);
	pthread_mutex_lock(&cache->lock);
	image->serial = ++cache->last_serial;
	pthread_mutex_unlock(&cache->lock);
	*ret = image;
	return 0;
}

static int open_once(struct image_cache *cache, const char *base_dir, const char *name, enum image_format format,
		     struct image **ret, bool *ret_current, struct reason *why)
{
	auto_free char *path = NULL;
	uint64_t nr_forgotten = nr_forgotten_now(cache);
	auto_close int fd = trust_open(cache->trust, base_dir, name, O_RDONLY, &path, why);
	if (fd < 0)
		return fd;
	struct stat st;
	if (fstat(fd, &st) < 0)
		return reason_set(why, -errno, "%s: %s", path, strerror(errno));
	struct image *image = image_lookup(cache, &st, format);
	*ret_current = true;
	if (!image) {
		int err = image_new(cache, fd, path, format, &image);
		if (err)
			return err;
		spare_atime(fd);
		take_fd(&fd); /* the image's now, as the path */
		image->path = take_ptr(path);
		image->st = st;
		err = image_load(image, why);
		if (err) {
			image_free(image);
			return err;
		}
		*ret_current = insert(cache, image, nr_forgotten);
	}
	*ret = image;
	return 0;
}

int image_open(struct image_cache *cache, const char *base_dir, const char *name, enum image_format format,
	       struct image **ret, struct reason *why)
{
	struct image *image = NULL;
	bool current = true;
	int err = open_once(cache, base_dir, name, format, &image, &current, why);
	/* What we have written to it meanwhile would be taken for another program's by who has it as it was before. */
	for (unsigned i = 0; i < NR_AGAIN && !err && !current; i++) {
		image_put(image);
		err = open_once(cache, base_dir, name, format, &image, &current, why);
	}
	if (!err)
		*ret = image;
	return err;
}

struct image *image_ref(struct image *image)
{
	pthread_mutex_lock(&image->cache->lock);
	image->nr_users++;
	pthread_mutex_unlock(&image->cache->lock);
	return image;
}

void image_put(struct image *image)
{
	if (!image)
		return;
	struct image_cache *cache = image->cache;
	struct image *gone = NULL;
	pthread_mutex_lock(&cache->lock);
	if (--image->nr_users == 0 && image->stale) {
		gone = image;
	} else if (image->nr_users == 0) {
		unused_push_locked(cache, image);
		if (cache->nr_unused > cache->max_unused)
			gone = forget_locked(cache, cache->oldest);
	}
	pthread_mutex_unlock(&cache->lock);
	image_free(gone);
}

/* --- what it says ------------------------------------------------------------------------------------------------------------- */

const char *image_path(const struct image *image)
{
	return image->path;
}

const struct stat *image_stat(const struct image *image)
{
	return &image->st;
}

enum image_format image_format(const struct image *image)
{
	return image->format;
}

uint64_t image_virtual_size(const struct image *image)
{
	return image->virtual_size;
}

bool image_is_dirty(const struct image *image)
{
	return image->format == IMAGE_QCOW2 && image->header.incompatible & QCOW2_INCOMPAT_DIRTY;
}

const char *image_backing_name(const struct image *image)
{
	return image->header.backing_name;
}

enum image_format image_backing_format(const struct image *image)
{
	return image->backing_format;
}

const char *image_data_path(const struct image *image)
{
	return image->data_path;
}

uint32_t image_nr_snapshots(const struct image *image)
{
	return image->header.nr_snapshots;
}

const struct image_snapshot *image_snapshot(const struct image *image, uint32_t i)
{
	return &image->snapshots[i];
}

const struct stat *image_data_stat(const struct image *image)
{
	return image->data_fd >= 0 ? &image->data_st : NULL;
}

int image_find_snapshot(const struct image *image, const char *tag)
{
	for (uint32_t i = 0; i < image->header.nr_snapshots; i++)
		if (strcmp(image->snapshots[i].name, tag) == 0)
			return (int)i;
	for (uint32_t i = 0; i < image->header.nr_snapshots; i++)
		if (strcmp(image->snapshots[i].id, tag) == 0)
			return (int)i;
	return -1;
}

int image_data_fd(const struct image *image)
{
	return image->data_fd >= 0 ? image->data_fd : image->fd;
}
