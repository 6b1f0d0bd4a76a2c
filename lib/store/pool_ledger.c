/* The ledger of a pool, and what is done to the pool's files by it: see pools.h. Each function ends with the ledger and the directory agreeing, or
 * with an entry that says more than is true (a name without a file, a second identity), which the next start puts right. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "store/store_internal.h"

#define ENTRY_MAX 4096
#define LINK_LEN  1000
#define SERIAL_LEN 500
#define PART_PREFIX ".vmsnapfs-"

struct file_id {
	uint64_t ino;
	int64_t born; /* seconds; 0 where the filesystem doesn't know */
	uint32_t born_ns;
};

struct device_id {
	dev_t number;
	uint64_t bytes;
	char serial[SERIAL_LEN + 1]; /* what the system knows it by, whatever its number; "": nothing */
	char link[LINK_LEN + 1]; /* "": it isn't a link, or where that leads is up to whoever may write to the pool */
};

struct pool_entry {
	struct file_id ids[2];
	size_t nr_ids;
	char part[POOL_PART_MAX]; /* "": none */
	bool is_device, is_filling;
	struct device_id device;
};

/* --- files ------------------------------------------------------------------------------------------------------------- */

static int id_of(int dirfd, const char *name, struct file_id *ret)
{
	struct statx stx;
	if (statx(dirfd, name, AT_SYMLINK_NOFOLLOW, STATX_TYPE | STATX_INO | STATX_BTIME, &stx) < 0)
		return -errno;
	if (!S_ISREG(stx.stx_mode))
		return -EINVAL;
	*ret = (struct file_id){.ino = stx.stx_ino};
	if (stx.stx_mask & STATX_BTIME) {
		ret->born = stx.stx_btime.tv_sec;
		ret->born_ns = stx.stx_btime.tv_nsec;
	}
	return 0;
}

static bool entry_lists(const struct pool_entry *entry, const struct file_id *id)
{
	for (size_t i = 0; i < entry->nr_ids; i++)
		if (entry->ids[i].ino == id->ino && entry->ids[i].born == id->born && entry->ids[i].born_ns == id->born_ns)
			return true;
	return false;
}

static bool is_below(const char *path, const char *dir)
{
	size_t len = strlen(dir);
	return strncmp(path, dir, len) == 0 && (!path[len] || path[len] == '/');
}

/* Of links into the pool itself nothing is kept: a second link could be changed there. */
static void read_link(const struct pool *pool, const char *file, char ret[LINK_LEN + 1])
{
	ssize_t len = readlinkat(pool->dirfd, file, ret, LINK_LEN + 1);
	ret[len > 0 && len <= LINK_LEN ? len : 0] = '\0';
	char *slash = strrchr(ret, '/');
	if (*ret != '/' || slash == ret || strchr(ret, '\n')) {
		*ret = '\0';
		return;
	}
	*slash = '\0';
	auto_free char *real = realpath(ret, NULL);
	*slash = '/';
	if (!real || is_below(real, pool->dir))
		*ret = '\0';
}

/* One line; "": there is none. */
static void read_line_of(const char *path, char ret[SERIAL_LEN + 1])
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len = fd < 0 ? 0 : read(fd, ret, SERIAL_LEN + 1);
	ret[len > 0 && len <= SERIAL_LEN ? len : 0] = '\0';
	size_t end = strcspn(ret, "\n");
	ret[ret[end] && ret[end + 1] ? 0 : end] = '\0';
}

static void read_serial(dev_t number, char ret[SERIAL_LEN + 1])
{
	static const char *const names[] = {"dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "loop/backing_file"};
	*ret = '\0';
	for (size_t i = 0; !*ret && i < sizeof names / sizeof *names; i++) {
		char path[100];
		snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s", major(number), minor(number), names[i]);
		read_line_of(path, ret);
	}
}

static int device_id_of(const struct pool *pool, const char *file, int fd, struct device_id *ret)
{
	struct stat st;
	off_t end = lseek(fd, 0, SEEK_END);
	if (end < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISBLK(st.st_mode))
		return -ENOTBLK;
	*ret = (struct device_id){.number = st.st_rdev, .bytes = (uint64_t)end};
	read_serial(st.st_rdev, ret->serial);
	/* The name may lead elsewhere since FD was opened: its link says something of FD only where it leads there. */
	read_link(pool, file, ret->link);
	if (*ret->link && (stat(ret->link, &st) < 0 || !S_ISBLK(st.st_mode) || st.st_rdev != ret->number))
		*ret->link = '\0';
	return 0;
}

/* With a restart a logical volume may get another number: then it is known by its UUID, and others by a link that says the same as before. */
static bool is_same_device(const struct device_id *was, const struct device_id *now)
{
	if (*was->serial && *now->serial)
		return strcmp(was->serial, now->serial) == 0;
	return was->number == now->number || (*was->link && strcmp(was->link, now->link) == 0);
}

static bool has_device(const struct pool *pool, const struct pool_entry *entry, const char *file)
{
	struct stat st;
	if (fstatat(pool->dirfd, file, &st, 0) < 0 || !S_ISBLK(st.st_mode))
		return false;
	struct device_id now = {.number = st.st_rdev};
	read_serial(st.st_rdev, now.serial);
	read_link(pool, file, now.link);
	return is_same_device(&entry->device, &now);
}

static bool entry_owns(const struct pool *pool, const struct pool_entry *entry, const char *file)
{
	struct file_id id;
	if (entry->is_device)
		return has_device(pool, entry, file);
	return id_of(pool->dirfd, file, &id) == 0 && entry_lists(entry, &id);
}

static bool is_there(const struct pool *pool, const char *file)
{
	return faccessat(pool->dirfd, file, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* --- entries ------------------------------------------------------------------------------------------------------------ */

static bool is_part_name(const char *name)
{
	return strncmp(name, PART_PREFIX, strlen(PART_PREFIX)) == 0 && strlen(name) < POOL_PART_MAX && !strchr(name, '/');
}

static bool parse_device(struct pool_entry *entry, const char *line)
{
	unsigned number[2];
	entry->is_device = sscanf(line, "device %u:%u %" SCNu64, &number[0], &number[1], &entry->device.bytes) == 3;
	if (entry->is_device)
		entry->device.number = makedev(number[0], number[1]);
	return entry->is_device;
}

static int parse_line(struct pool_entry *entry, const char *line)
{
	struct file_id id;
	if (sscanf(line, "file %" SCNu64 " %" SCNd64 ".%" SCNu32, &id.ino, &id.born, &id.born_ns) == 3 && entry->nr_ids < 2)
		entry->ids[entry->nr_ids++] = id;
	else if (strncmp(line, "part ", 5) == 0 && is_part_name(line + 5))
		snprintf(entry->part, sizeof entry->part, "%s", line + 5);
	else if (strncmp(line, "link ", 5) == 0 && strlen(line + 5) <= LINK_LEN)
		snprintf(entry->device.link, sizeof entry->device.link, "%s", line + 5);
	else if (strncmp(line, "serial ", 7) == 0 && strlen(line + 7) <= SERIAL_LEN)
		snprintf(entry->device.serial, sizeof entry->device.serial, "%s", line + 7);
	else if (strcmp(line, "filling") == 0)
		entry->is_filling = true;
	else if (!parse_device(entry, line))
		return -EUCLEAN;
	return 0;
}

/* -ENOENT: there is none. */
static int entry_load(const struct pool *pool, const char *file, struct pool_entry *ret)
{
	*ret = (struct pool_entry){0};
	auto_close int fd = openat(pool->ledger_fd, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	auto_free char *text = NULL;
	int err = fd < 0 ? -errno : file_load(fd, ENTRY_MAX, &text, NULL);
	char *rest = text;
	for (char *line = err ? NULL : strsep(&rest, "\n"); line && !err; line = strsep(&rest, "\n"))
		if (*line)
			err = parse_line(ret, line);
	return err;
}

static int entry_save(const struct pool *pool, const char *file, const struct pool_entry *entry)
{
	char text[ENTRY_MAX];
	size_t len = 0;
	for (size_t i = 0; i < entry->nr_ids; i++)
		len += (size_t)snprintf(text + len, sizeof text - len, "file %" PRIu64 " %" PRId64 ".%09" PRIu32 "\n", entry->ids[i].ino,
					entry->ids[i].born, entry->ids[i].born_ns);
	if (*entry->part)
		len += (size_t)snprintf(text + len, sizeof text - len, "part %s\n", entry->part);
	if (entry->is_device)
		len += (size_t)snprintf(text + len, sizeof text - len, "device %u:%u %" PRIu64 "\n%s", major(entry->device.number),
					minor(entry->device.number), entry->device.bytes, entry->is_filling ? "filling\n" : "");
	if (*entry->device.serial)
		len += (size_t)snprintf(text + len, sizeof text - len, "serial %s\n", entry->device.serial);
	if (*entry->device.link)
		len += (size_t)snprintf(text + len, sizeof text - len, "link %s\n", entry->device.link);
	return file_replace(pool->ledger_fd, file, text, len, 0600, NULL);
}

/* That the files' names have gone is stable before the entry goes: without it a file that came back with a power cut would be somebody else's. The entry's own
 * end needn't be: one too many does no harm. */
static void entry_drop(const struct pool *pool, const char *file)
{
	if (dir_sync(pool->dirfd) == 0)
		unlinkat(pool->ledger_fd, file, 0);
}

static int ledger_check(const struct pool *pool, const char *file)
{
	if (pool->ledger_fd < 0)
		return -EROFS;
	return strlen(file) > POOL_FILE_MAX ? -ENAMETOOLONG : name_check(file);
}

static bool ask(struct pool *pool, const char *file, bool whole)
{
	struct pool_entry entry;
	if (ledger_check(pool, file) < 0)
		return false;
	pthread_mutex_lock(&pool->lock);
	bool owns = entry_load(pool, file, &entry) == 0 && entry_owns(pool, &entry, file) && !(whole && entry.is_filling);
	pthread_mutex_unlock(&pool->lock);
	return owns;
}

bool pool_owns(struct pool *pool, const char *file)
{
	return ask(pool, file, false);
}

bool pool_has(struct pool *pool, const char *file)
{
	return ask(pool, file, true);
}

static int check_device(const struct pool *pool, const char *file, const struct pool_entry *entry, int fd)
{
	struct device_id now;
	int err = entry->is_device ? device_id_of(pool, file, fd, &now) : -ESTALE;
	if (err)
		return err;
	bool same = is_same_device(&entry->device, &now) &&
		    (entry->is_filling ? now.bytes == entry->device.bytes : now.bytes >= entry->device.bytes);
	return same ? 0 : -ESTALE;
}

int pool_check_device(struct pool *pool, const char *file, int fd)
{
	struct pool_entry entry;
	int err = ledger_check(pool, file);
	if (err)
		return err == -EROFS ? 0 : err;
	pthread_mutex_lock(&pool->lock);
	err = entry_load(pool, file, &entry);
	err = err == -ENOENT ? 0 : err ? err : check_device(pool, file, &entry, fd);
	pthread_mutex_unlock(&pool->lock);
	return err;
}

bool pool_find_device(struct pool *pool, dev_t device, char file[POOL_FILE_MAX + 1])
{
	struct pool_entry entry;
	struct stat st;
	bool found = false;
	DIR *dir = pool->ledger_fd < 0 ? NULL : dir_open_at(pool->ledger_fd, ".");
	if (!dir)
		return false;
	pthread_mutex_lock(&pool->lock);
	for (struct dirent *de; !found && (de = readdir(dir));) {
		found = ledger_check(pool, de->d_name) == 0 && entry_load(pool, de->d_name, &entry) == 0 && entry.is_device &&
			fstatat(pool->dirfd, de->d_name, &st, 0) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == device;
		if (found)
			snprintf(file, POOL_FILE_MAX + 1, "%s", de->d_name);
	}
	pthread_mutex_unlock(&pool->lock);
	closedir(dir);
	return found;
}

/* --- making files ----------------------------------------------------------------------------------------------------------- */

/* False: it is still there, or may be again after a power cut, and needs its entry. */
static bool unlink_part(const struct pool *pool, struct pool_entry *entry)
{
	if (*entry->part && ((unlinkat(pool->dirfd, entry->part, 0) < 0 && errno != ENOENT) || dir_sync(pool->dirfd) < 0))
		return false;
	*entry->part = '\0';
	return true;
}

static int begin_new(struct pool *pool, const char *file, int device, struct pool_entry *entry)
{
	*entry = (struct pool_entry){.is_device = device >= 0, .is_filling = device >= 0};
	int err = device >= 0 ? device_id_of(pool, file, device, &entry->device) : is_there(pool, file) ? -EEXIST : 0;
	if (err)
		return err;
	if (device >= 0)
		return entry_save(pool, file, entry);
	layer_name_new(stpcpy(entry->part, PART_PREFIX), "");
	return entry_save(pool, file, entry);
}

static int begin_other(struct pool *pool, const char *file, struct pool_entry *entry)
{
	struct file_id id;
	if (entry->is_device || !entry_owns(pool, entry, file))
		return -EBUSY;
	int err = id_of(pool->dirfd, file, &id);
	if (err)
		return err;
	if (!unlink_part(pool, entry))
		return -EIO;
	*entry = (struct pool_entry){.ids = {id}, .nr_ids = 1};
	layer_name_new(stpcpy(entry->part, PART_PREFIX), "");
	return entry_save(pool, file, entry);
}

/* What was begun goes on in the same device, or in a file: never in what has come to its name since. */
static int begin_again(const struct pool *pool, const char *file, int device, const struct pool_entry *entry)
{
	if (device >= 0)
		return entry->is_device ? check_device(pool, file, entry, device) : -EEXIST;
	return entry->is_device ? -ESTALE : 0;
}

static int begin_locked(struct pool *pool, const char *file, enum pool_making how, int device, struct pool_entry *entry)
{
	int err = entry_load(pool, file, entry);
	if (err && err != -ENOENT)
		return err;
	bool is_made = !err && !entry->is_filling && (entry->is_device || entry_owns(pool, entry, file));
	bool is_begun = !err && !is_made && (*entry->part || entry->is_filling);
	switch (how) {
	case POOL_NEW: return is_made || is_begun ? -EEXIST : begin_new(pool, file, device, entry);
	case POOL_CONTINUE: return is_made ? -EEXIST : is_begun ? begin_again(pool, file, device, entry) : begin_new(pool, file, device, entry);
	case POOL_REPLACE: return is_made ? begin_other(pool, file, entry) : -ENOENT;
	}
	return -EINVAL;
}

int pool_part_begin(struct pool *pool, const char *file, enum pool_making how, int device, char part[POOL_PART_MAX])
{
	struct pool_entry entry;
	int err = ledger_check(pool, file);
	if (err)
		return err;
	pthread_mutex_lock(&pool->lock);
	err = begin_locked(pool, file, how, device, &entry);
	pthread_mutex_unlock(&pool->lock);
	if (!err)
		memcpy(part, entry.part, POOL_PART_MAX);
	return err;
}

/* Not over anything: rename where the filesystem can do that, else as two names. */
static int rename_new(int dirfd, const char *from, const char *to)
{
	if (renameat2(dirfd, from, dirfd, to, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -errno;
	if (linkat(dirfd, from, dirfd, to, 0) < 0)
		return -errno;
	unlinkat(dirfd, from, 0);
	return 0;
}

static int publish_part(struct pool *pool, const char *file, enum pool_making how, int fd, struct pool_entry *entry)
{
	struct file_id id;
	struct stat st;
	int err = id_of(pool->dirfd, entry->part, &id);
	if (err)
		return err;
	if (fd >= 0 && (fstat(fd, &st) < 0 || st.st_ino != id.ino))
		return -ESTALE;
	/* What an attempt before this one has left there goes. */
	size_t i = how == POOL_REPLACE ? 1 : 0;
	if (entry->nr_ids < i)
		return -EUCLEAN;
	entry->ids[i] = id;
	entry->nr_ids = i + 1;
	err = entry_save(pool, file, entry);
	if (!err && how == POOL_REPLACE)
		err = file_rename(pool->dirfd, entry->part, file);
	else if (!err)
		err = rename_new(pool->dirfd, entry->part, file);
	return err;
}

/* What is left in the entry, the name that the file had, is put right by the next change to it, or the next start. */
static int publish_locked(struct pool *pool, const char *file, enum pool_making how, int fd)
{
	struct pool_entry entry;
	int err = entry_load(pool, file, &entry);
	if (err)
		return err;
	if (entry.is_device) {
		err = fd >= 0 ? check_device(pool, file, &entry, fd) : 0;
		entry.is_filling = false;
		return err ? err : entry_save(pool, file, &entry);
	}
	return *entry.part ? publish_part(pool, file, how, fd, &entry) : -ENOENT;
}

int pool_part_publish(struct pool *pool, const char *file, enum pool_making how, int fd)
{
	int err = ledger_check(pool, file);
	if (err)
		return err;
	pthread_mutex_lock(&pool->lock);
	err = publish_locked(pool, file, how, fd);
	pthread_mutex_unlock(&pool->lock);
	return err;
}

static struct pool *pool_of_names(const struct head_names *names)
{
	return (struct pool *)((uintptr_t)names - offsetof(struct pool, head_names));
}

static int head_temporary(const struct head_names *names, const char *name, char tmp[HEAD_TEMPORARY_MAX])
{
	return pool_part_begin(pool_of_names(names), name, POOL_REPLACE, -1, tmp);
}

static int head_take_name(const struct head_names *names, const char *name, const char *tmp)
{
	(void)tmp; /* the ledger knows it */
	return pool_part_publish(pool_of_names(names), name, POOL_REPLACE, -1);
}

const struct head_names pool_head_names = {head_temporary, head_take_name};

static void abandon_locked(struct pool *pool, const char *file)
{
	struct pool_entry entry;
	if (entry_load(pool, file, &entry) < 0)
		return;
	bool had_part = *entry.part;
	if (!unlink_part(pool, &entry))
		return;
	if (entry.is_device ? entry.is_filling : !entry_owns(pool, &entry, file))
		entry_drop(pool, file);
	else if (had_part)
		entry_save(pool, file, &entry);
}

void pool_part_abandon(struct pool *pool, const char *file)
{
	if (ledger_check(pool, file) < 0)
		return;
	pthread_mutex_lock(&pool->lock);
	abandon_locked(pool, file);
	pthread_mutex_unlock(&pool->lock);
}

/* --- names ---------------------------------------------------------------------------------------------------------------------- */

static int link_locked(struct pool *pool, const char *file, const char *new_file)
{
	struct pool_entry entry, other;
	struct file_id id = {0};
	int err = entry_load(pool, file, &entry);
	if (!err && (entry.is_device || !entry_owns(pool, &entry, file)))
		err = -ESTALE;
	if (!err)
		err = id_of(pool->dirfd, file, &id);
	if (err)
		return err;
	if (is_there(pool, new_file) || (entry_load(pool, new_file, &other) == 0 && *other.part))
		return -EEXIST;
	entry = (struct pool_entry){.ids = {id}, .nr_ids = 1};
	err = entry_save(pool, new_file, &entry);
	if (!err && linkat(pool->dirfd, file, pool->dirfd, new_file, 0) < 0) {
		err = -errno;
		/* It may have been made all the same. */
		if (!entry_owns(pool, &entry, new_file) || unlinkat(pool->dirfd, new_file, 0) == 0)
			entry_drop(pool, new_file);
	}
	return err;
}

int pool_link(struct pool *pool, const char *file, const char *new_file)
{
	int err = ledger_check(pool, file);
	if (!err)
		err = ledger_check(pool, new_file);
	if (err)
		return err;
	pthread_mutex_lock(&pool->lock);
	err = link_locked(pool, file, new_file);
	pthread_mutex_unlock(&pool->lock);
	return err;
}

/* The entry goes last: a file without one would be somebody else's. */
static void unlink_locked(struct pool *pool, const char *file)
{
	struct pool_entry entry;
	if (entry_load(pool, file, &entry) < 0)
		return;
	if (!unlink_part(pool, &entry))
		return;
	if (!entry.is_device && entry_owns(pool, &entry, file) && unlinkat(pool->dirfd, file, 0) < 0 && errno != ENOENT)
		return;
	entry_drop(pool, file);
}

void pool_unlink(struct pool *pool, const char *file)
{
	if (ledger_check(pool, file) < 0)
		return;
	pthread_mutex_lock(&pool->lock);
	unlink_locked(pool, file);
	pthread_mutex_unlock(&pool->lock);
}

/* --- at the start ----------------------------------------------------------------------------------------------------------------- */

/* A row's file: its entry says no more than what is. */
static void settle(struct pool *pool, const char *file)
{
	struct pool_entry entry;
	struct file_id id;
	if (entry_load(pool, file, &entry) < 0 || entry.is_device || !entry_owns(pool, &entry, file) || id_of(pool->dirfd, file, &id) < 0)
		return;
	if (!*entry.part && entry.nr_ids == 1)
		return;
	if (!unlink_part(pool, &entry))
		return;
	entry = (struct pool_entry){.ids = {id}, .nr_ids = 1};
	entry_save(pool, file, &entry);
}

static void clear_one(struct store *store, struct pool *pool, const char *file, bool needed)
{
	struct pool_entry entry;
	int err = entry_load(pool, file, &entry);
	if (err && err != -ENOENT)
		store_event(store, NULL, "%s/pools/%s/%s: %s; what it stands for isn't touched", store->store_dir, pool->name, file, strerror(-err));
	else if (needed)
		settle(pool, file);
	else
		unlink_locked(pool, file);
}

void pool_clear_leftovers(struct store *store, struct pool *pool, bool (*is_needed)(void *ctx, const char *layer), void *ctx)
{
	DIR *dir = pool->ledger_fd < 0 ? NULL : dir_open_at(pool->ledger_fd, ".");
	if (!dir)
		return;
	pthread_mutex_lock(&pool->lock);
	for (struct dirent *de; (de = readdir(dir));) {
		char layer[LAYER_NAME_MAX];
		if (file_is_temporary(de->d_name))
			unlinkat(pool->ledger_fd, de->d_name, 0);
		if (*de->d_name == '.' || (size_t)snprintf(layer, sizeof layer, "%s/%s", pool->name, de->d_name) >= sizeof layer)
			continue;
		clear_one(store, pool, de->d_name, is_needed(ctx, layer));
	}
	pthread_mutex_unlock(&pool->lock);
	closedir(dir);
}
