#include "block/head.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/head_priv.h"
#include "block/image_priv.h"
#include "block/merge.h"
#include "block/qcow2_format.h"

/* --- opening -------------------------------------------------------------------------------------------------------- */

void head_free(struct head *head)
{
	if (!head)
		return;
	tables_done(head);
	space_done(&head->space);
	qcow2_header_done(&head->header);
	view_put(head->below);
	if (head->fd >= 0)
		close(head->fd);
	pthread_rwlock_destroy(&head->gate);
	pthread_mutex_destroy(&head->flush_lock);
	pthread_mutex_destroy(&head->lock);
	pthread_cond_destroy(&head->changed);
	pthread_cond_destroy(&head->flushed);
	free(head->name);
	free(head->path);
	free(head);
}

static int check_writable(const struct qcow2_header *h, struct reason *why)
{
	if (h->incompatible & QCOW2_INCOMPAT_CORRUPT)
		return reason_set(why, -EUCLEAN, "marked as corrupt; repair it with qemu-img check -r all");
	uint64_t features = h->incompatible & ~(uint64_t)QCOW2_INCOMPAT_DIRTY;
	if (features != QCOW2_INCOMPAT_EXTENDED_L2 || h->refcount_order != 4)
		return reason_set(why, -EOPNOTSUPP, "a qcow2 variant that isn't written to (features 0x%llx, refcount order %u)",
				  (unsigned long long)h->incompatible, h->refcount_order);
	if (h->nr_snapshots)
		return reason_set(why, -EOPNOTSUPP, "another program has put internal snapshots into it; delete them with qemu-img snapshot -d");
	return 0;
}

/* A device is never found by a name: see head.h. */
static int open_name(const struct head *head)
{
	struct stat st;
	bool is_device = !*head->name;
	auto_close int fd = is_device ? fcntl(head->dirfd, F_DUPFD_CLOEXEC, 3)
				      : openat(head->dirfd, head->name, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (is_device)
		return S_ISBLK(st.st_mode) ? take_fd(&fd) : -ENOTBLK;
	return S_ISREG(st.st_mode) ? take_fd(&fd) : -EINVAL;
}

int head_open_file(struct head *head, uint64_t *ret_file_size, struct reason *why)
{
	struct stat st = {0};
	int fd = open_name(head);
	if (fd < 0)
		return reason_set(why, fd, "%s: %s", head->path, strerror(-fd));
	head->fd = fd;
	off_t end = lseek(fd, 0, SEEK_END);
	if (end < 0 || fstat(fd, &st) < 0)
		return reason_set(why, -errno, "%s: %s", head->path, strerror(errno));
	head->is_device = S_ISBLK(st.st_mode);
	*ret_file_size = (uint64_t)end;
	return image_locks_take(fd, head->locks, head->path, why);
}

/* The file of HEAD, locked, its header and its L1 table. */
static int load_header(struct head *head, struct reason *why)
{
	uint64_t file_size = 0;
	int err = head_open_file(head, &file_size, why);
	if (err)
		return err;
	err = qcow2_header_load(head->fd, file_size, &head->header, why);
	if (!err)
		err = tables_init(head, why);
	if (err)
		return reason_prefix(why, err, "%s: ", head->path);
	atomic_store(&head->virtual_size, head->header.virtual_size);
	atomic_store(&head->is_dirty, (head->header.incompatible & QCOW2_INCOMPAT_DIRTY) != 0);
	return 0;
}

/* What a writer must know besides. */
static int load_space(struct head *head, struct reason *why)
{
	int err = check_writable(&head->header, why);
	head->space.fixed = head->is_device;
	if (!err)
		err = space_scan(&head->space, head->fd, &head->header, head->l1, why);
	return err ? reason_prefix(why, err, "%s: ", head->path) : 0;
}

static int load(struct head *head, struct reason *why)
{
	int err = load_header(head, why);
	return err ? err : load_space(head, why);
}

static int write_features(struct head *head, uint64_t incompatible, uint64_t autoclear)
{
	struct {
		be64 incompatible, compatible, autoclear;
	} features = {be64_make(incompatible), be64_make(head->header.compatible), be64_make(autoclear)};
	int err = file_write(head->fd, &features, sizeof features, offsetof(struct qcow2_header_disk, incompatible_features));
	/* I7: the error may be that of guest data that was never flushed, and is told once. */
	if (!err)
		err = tables_barrier(head);
	if (!err) {
		head->header.incompatible = incompatible;
		head->header.autoclear = autoclear;
		atomic_store(&head->is_dirty, (incompatible & QCOW2_INCOMPAT_DIRTY) != 0);
	}
	return err;
}

/* C2 to C5. */
static int write_refcounts(struct head *head)
{
	if (!(head->header.incompatible & QCOW2_INCOMPAT_DIRTY))
		return 0;
	int err = space_write(head);
	/* What place_blocks added at the end is in the file. */
	uint64_t file_size = head->space.nr_clusters << head->space.cluster_bits;
	if (!err && (uint64_t)lseek(head->fd, 0, SEEK_END) < file_size && ftruncate(head->fd, (off_t)file_size) < 0)
		err = -errno;
	if (!err)
		err = tables_barrier(head); /* C3: refcounts are stable before the dirty bit says so */
	return err ? err : write_features(head, head->header.incompatible & ~(uint64_t)QCOW2_INCOMPAT_DIRTY, head->header.autoclear);
}

static int head_init(struct head *head)
{
	pthread_rwlockattr_t attr;
	pthread_rwlockattr_init(&attr);
	/* Who stops them all must get its turn while writers keep coming. */
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&head->gate, &attr);
	pthread_rwlockattr_destroy(&attr);
	pthread_mutex_init(&head->flush_lock, NULL);
	pthread_mutex_init(&head->lock, NULL);
	pthread_cond_init(&head->changed, NULL);
	pthread_cond_init(&head->flushed, NULL);
	list_init(&head->ages);
	list_init(&head->dirty);
	list_init(&head->busy);
	atomic_store(&head->nr_changes, 1); /* what another process left in the page cache */
	return head->name && head->path ? 0 : -ENOMEM;
}

int head_new(const struct head_kind *kind, int dirfd, const char *name, const char *path, enum image_lock_kind locks, struct head **ret)
{
	struct head *head = calloc(1, sizeof *head);
	if (!head)
		return -ENOMEM;
	head->kind = kind;
	head->dirfd = dirfd;
	head->fd = -1;
	head->locks = locks;
	head->name = strdup(name);
	head->path = strdup(path);
	int err = head_init(head);
	if (err)
		head_free(head);
	else
		*ret = head;
	return err;
}

/* Refcounts that lag do no harm to who knows better: they can wait for space, as long as the table that they are to be in needn't move. Not those that a
 * sync has lost (I7): they are taken for written. */
static bool can_wait(const struct head *head, int err)
{
	uint64_t room = ((uint64_t)head->header.reftable_clusters << head->space.cluster_bits) / sizeof(be64);
	return (err == -ENOSPC || err == -EDQUOT) && !head->failed && head->space.nr_refblocks <= room;
}

/* Left dirty by a crash, or by a sync that failed: the walk has found what is in use, so the refcounts can be put right. */
static int repair(struct head *head, struct reason *why)
{
	if (!atomic_load(&head->is_dirty))
		return 0;
	int err = repair_tables(head);
	if (!err)
		err = write_refcounts(head);
	if (err && can_wait(head, err))
		return 0;
	return err ? reason_set(why, err, "%s: repairing it after a crash: %s", head->path, strerror(-err)) : 0;
}

static int open_locked(int dirfd, const char *name, const char *path, enum image_lock_kind locks, struct view *below, struct head **ret,
		       struct reason *why)
{
	struct head *head = NULL;
	int err = head_new(&head_qcow2, dirfd, name, path, locks, &head);
	if (err)
		return err;
	head->below = view_ref(below);
	err = load(head, why);
	if (!err)
		err = repair(head, why);
	if (err) {
		head_free(head);
		return err;
	}
	*ret = head;
	return 0;
}

int head_open(int dirfd, const char *name, const char *path, struct view *below, struct head **ret, struct reason *why)
{
	return open_locked(dirfd, name, path, IMAGE_LOCK_WRITE, below, ret, why);
}

int head_open_frozen(int dirfd, const char *name, const char *path, struct view *below, struct head **ret, struct reason *why)
{
	/* A reader's locks: those of our own views are the same. */
	return open_locked(dirfd, name, path, IMAGE_LOCK_READ, below, ret, why);
}

int head_claim(struct head *head, struct image_cache *images, struct reason *why)
{
	return image_claim(images, head->kind->format, head->fd, head->path, why);
}

static int settle(struct head *head, struct overlay_facts *ret, struct reason *why)
{
	int err = load_header(head, why);
	if (!err && head->header.incompatible & QCOW2_INCOMPAT_CORRUPT)
		err = check_writable(&head->header, why);
	if (!err && atomic_load(&head->is_dirty)) {
		err = load_space(head, why);
		if (!err)
			err = repair(head, why);
	}
	if (err)
		return err;
	*ret = (struct overlay_facts){
		.virtual_size = head->header.virtual_size,
		.empty = tables_are_empty(head),
		.has_backing = head->header.backing_name != NULL,
	};
	err = file_sync(head->fd); /* what another process left in the page cache */
	if (!err && fstat(head->fd, &ret->st) < 0)
		err = -errno;
	return err ? reason_set(why, err, "%s: %s", head->path, strerror(-err)) : 0;
}

int overlay_settle(int dirfd, const char *name, const char *path, struct overlay_facts *ret, struct reason *why)
{
	struct head *head = NULL;
	int err = head_new(&head_qcow2, dirfd, name, path, IMAGE_LOCK_WRITE, &head);
	if (!err)
		err = settle(head, ret, why);
	head_free(head);
	return err;
}

int overlay_allocated(int dirfd, const char *name, uint64_t *ret_bytes)
{
	struct stat st;
	if (*name) {
		if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return -errno;
		*ret_bytes = (uint64_t)st.st_blocks * 512;
		return 0;
	}
	/* All of a device is taken, whatever was written to it. */
	off_t end = lseek(dirfd, 0, SEEK_END);
	if (end < 0)
		return -errno;
	*ret_bytes = (uint64_t)end;
	return 0;
}

int head_mark_dirty(struct head *head)
{
	if (atomic_load(&head->is_dirty))
		return 0; /* without waiting for a flush that goes on */
	pthread_mutex_lock(&head->flush_lock);
	int err = 0;
	if (!atomic_load(&head->is_dirty))
		err = write_features(head, head->header.incompatible | QCOW2_INCOMPAT_DIRTY, 0);
	pthread_mutex_unlock(&head->flush_lock);
	return err;
}

/* Flushes, and says so to those who wait for it. */
static int flush_for_all(struct head *head)
{
	pthread_mutex_lock(&head->flush_lock);
	uint64_t nr_changes = atomic_load(&head->nr_changes);
	int err = head->kind->write_back(head);
	pthread_mutex_unlock(&head->flush_lock);
	pthread_mutex_lock(&head->lock);
	head->flushing = false;
	if (!err)
		head->nr_stable = nr_changes;
	pthread_cond_broadcast(&head->flushed);
	pthread_mutex_unlock(&head->lock);
	return err;
}

int head_flush(struct head *head)
{
	uint64_t wanted = atomic_load(&head->nr_changes);
	pthread_mutex_lock(&head->lock);
	while (head->flushing && head->nr_stable < wanted)
		pthread_cond_wait(&head->flushed, &head->lock);
	int err = head->failed;
	bool stable = head->nr_stable >= wanted;
	if (!err && !stable)
		head->flushing = true;
	pthread_mutex_unlock(&head->lock);
	return err || stable ? err : flush_for_all(head);
}

int head_close(struct head *head)
{
	if (!head)
		return 0;
	int err = head_flush(head);
	bool flushed = !err;
	if (!err && head->kind->finish)
		err = head->kind->finish(head);
	if (err && flushed && can_wait(head, err))
		err = 0; /* all that was written is stable; the next opening puts the rest right */
	head_free(head);
	return err;
}

const struct head_kind head_qcow2 = {
	.format = IMAGE_QCOW2,
	.read = overlay_read,
	.write = overlay_write,
	.zero = overlay_zero,
	.map = overlay_map,
	.preallocate = overlay_preallocate,
	.write_growing = overlay_write_growing,
	.resize = overlay_resize,
	.write_back = tables_write,
	.finish = write_refcounts,
};

/* --- what it is -------------------------------------------------------------------------------------------------------- */

uint64_t head_virtual_size(struct head *head)
{
	return atomic_load(&head->virtual_size);
}

const struct stat *head_stat(struct head *head, struct stat *ret)
{
	pthread_rwlock_rdlock(&head->gate);
	if (fstat(head->fd, ret) < 0)
		*ret = (struct stat){0};
	pthread_rwlock_unlock(&head->gate);
	return ret;
}

struct view *head_below(struct head *head)
{
	pthread_rwlock_rdlock(&head->gate);
	struct view *below = view_ref(head->below);
	pthread_rwlock_unlock(&head->gate);
	return below;
}

bool head_is_blank(struct head *head)
{
	pthread_rwlock_rdlock(&head->gate);
	pthread_mutex_lock(&head->lock);
	bool blank = head->kind == &head_qcow2 && !head->below && tables_are_empty(head);
	pthread_mutex_unlock(&head->lock);
	pthread_rwlock_unlock(&head->gate);
	return blank;
}

bool head_is_untouched(struct head *head)
{
	pthread_rwlock_rdlock(&head->gate);
	pthread_mutex_lock(&head->lock);
	bool untouched = head->kind == &head_qcow2 && tables_are_empty(head) && (!head->below || head_virtual_size(head) == view_virtual_size(head->below));
	pthread_mutex_unlock(&head->lock);
	pthread_rwlock_unlock(&head->gate);
	return untouched;
}

/* --- becoming another file ------------------------------------------------------------------------------------------------ */

/* Where the new file's state is made before it takes the old one's place. */
static int load_replacement(const struct head *head, const char *tmp, struct head *fresh, struct reason *why)
{
	fresh->dirfd = head->dirfd;
	fresh->name = (char *)(uintptr_t)tmp;
	fresh->path = head->path;
	fresh->locks = head->locks;
	return load(fresh, why);
}

static void take_state(struct head *head, struct head *fresh)
{
	tables_done(head);
	space_done(&head->space);
	qcow2_header_done(&head->header);
	close(head->fd);
	head->fd = fresh->fd;
	head->header = fresh->header;
	head->space = fresh->space;
	head->l1 = fresh->l1;
	head->l1_states = fresh->l1_states;
	atomic_store(&head->virtual_size, atomic_load(&fresh->virtual_size));
	head->size_dirty = false;
	head->comparing = false;
	atomic_store(&head->nr_pulled, 0);
	head->failed = 0; /* another file */
	head->l1_attempt_nr = 0;
	atomic_store(&head->is_dirty, atomic_load(&fresh->is_dirty));
}

static int copy_owner(const struct head *head, const char *tmp)
{
	struct stat st;
	if (fstat(head->fd, &st) < 0 || fchmodat(head->dirfd, tmp, st.st_mode & 07777, 0) < 0)
		return -errno;
	/* As an ordinary user it is ours already. */
	return fchownat(head->dirfd, tmp, st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW) < 0 && errno != EPERM ? -errno : 0;
}

bool head_is_device(const struct head *head)
{
	return head->is_device;
}

void head_set_names(struct head *head, const struct head_names *names)
{
	head->names = names;
}

static int temporary_name(const struct head *head, char tmp[HEAD_TEMPORARY_MAX])
{
	if (head->names)
		return head->names->temporary(head->names, head->name, tmp);
	if (snprintf(tmp, HEAD_TEMPORARY_MAX, ".%s.new", head->name) >= HEAD_TEMPORARY_MAX)
		return -ENAMETOOLONG;
	unlinkat(head->dirfd, tmp, 0);
	return 0;
}

static int take_name(const struct head *head, const char *tmp)
{
	if (head->names)
		return head->names->take_name(head->names, head->name, tmp);
	return file_rename(head->dirfd, tmp, head->name);
}

int head_rebuild(struct head *head, const struct overlay_spec *spec, struct view *below)
{
	char tmp[HEAD_TEMPORARY_MAX];
	if (head->is_device)
		return -EOPNOTSUPP; /* nothing can be renamed over it */
	int err = temporary_name(head, tmp);
	if (!err)
		err = overlay_create(head->dirfd, tmp, spec, 0600);
	if (err)
		return err;
	struct head fresh = {.fd = -1};
	err = copy_owner(head, tmp);
	if (!err)
		err = load_replacement(head, tmp, &fresh, NULL);
	if (!err)
		err = take_name(head, tmp);
	if (err) {
		tables_done(&fresh);
		space_done(&fresh.space);
		qcow2_header_done(&fresh.header);
		if (fresh.fd >= 0)
			close(fresh.fd);
		unlinkat(head->dirfd, tmp, 0);
		return err;
	}
	pthread_mutex_lock(&head->flush_lock);
	pthread_mutex_lock(&head->lock);
	take_state(head, &fresh);
	pthread_mutex_unlock(&head->lock);
	pthread_mutex_unlock(&head->flush_lock);
	struct view *old = head->below;
	head->below = view_ref(below);
	view_put(old);
	/* It is another file now, whatever becomes of its name. I7: whether that leads to this one after a crash isn't known, as the next flush tells. */
	err = dir_sync(head->dirfd);
	if (err)
		tables_fail(head, err);
	return 0;
}

void head_replace_below(struct head *head, struct view *view)
{
	pthread_rwlock_wrlock(&head->gate);
	struct view *old = head->below;
	head->below = view_ref(view);
	atomic_store(&head->nr_pulled, 0);
	pthread_rwlock_unlock(&head->gate);
	view_put(old);
}
