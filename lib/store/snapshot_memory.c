/* The RAM of a snapshot, which somebody else has saved to a file: a copy is kept. It may be large: it is made before any lock is taken, without
 * a name, so that nothing is left of it when the snapshot fails. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "store/snapshot.h"
#include "store/store_internal.h"

#define COPY_CHUNK (1u << 20)

/* LEN bytes at OFF. Between filesystems the kernel may not want to. */
static int copy_range(int from, int to, off_t off, off_t end)
{
	off_t in = off, out = off;
	while (in < end) {
		ssize_t n = copy_file_range(from, &in, to, &out, (size_t)(end - in), 0);
		if (n < 0 && (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP))
			break;
		if (n <= 0)
			return n < 0 ? -errno : 0;
	}
	auto_free char *buf = in < end ? malloc(COPY_CHUNK) : NULL;
	while (in < end) {
		ssize_t n = buf ? file_read(from, buf, end - in < COPY_CHUNK ? (size_t)(end - in) : COPY_CHUNK, (uint64_t)in) : -ENOMEM;
		int err = n > 0 ? file_write(to, buf, (size_t)n, (uint64_t)in) : (int)n;
		if (err || !n)
			return err;
		in += n;
	}
	return 0;
}

static int copy_sparse(int from, int to, off_t file_size)
{
	int err = ftruncate(to, file_size) < 0 ? -errno : 0;
	for (off_t off = 0; !err && off < file_size;) {
		off_t data = lseek(from, off, SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			break;
		off_t hole = data < 0 ? file_size : lseek(from, data, SEEK_HOLE);
		if (data < 0)
			data = off;
		if (hole < 0 || hole > file_size)
			hole = file_size;
		err = copy_range(from, to, data, hole);
		off = hole;
	}
	return err ? err : file_sync(to);
}

/* The daemon reads the file: who couldn't read it by himself can't have it read. */
static int check_access(const struct snapshot_spec *spec, int fd, const char *path, struct stat *ret_st)
{
	struct access access;
	if (fstat(fd, ret_st) < 0)
		return -errno;
	if (!S_ISREG(ret_st->st_mode))
		return -EINVAL;
	access_init(&access, ret_st);
	struct access_path last = ACCESS_PATH_INIT;
	access_restrict_by_path(&access, &last, path, ret_st);
	access_path_done(&last);
	return spec->may_read && !spec->may_read(spec->ctx, access.uid, access.gid, access.mode) ? -EACCES : 0;
}

int snapshot_copy_memory(struct store *store, const struct snapshot_spec *spec, int *ret_fd, struct reason *why)
{
	struct stat st;
	auto_free char *path = NULL;
	auto_close int from = trust_open(store->trust, NULL, spec->memory_path, O_RDONLY, &path, why);
	if (from < 0)
		return from;
	int err = check_access(spec, from, path, &st);
	if (err)
		return reason_set(why, err, "the RAM in %s can't be taken: %s", spec->memory_path, strerror(-err));
	auto_close int to = openat(store->vms_fd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
	err = to < 0 ? -errno : copy_sparse(from, to, st.st_size);
	if (err)
		return reason_set(why, err, "copying the RAM from %s: %s", spec->memory_path, strerror(-err));
	*ret_fd = take_fd(&to);
	return 0;
}
