/* The content of open files. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "fs/control.h"
#include "fs/loop.h"
#include "fs/ops.h"
#include "meta/action.h"

#define COPY_CHUNK (1u << 20)
#define MUCH_READ  (1u << 20)

/* --- read and write --------------------------------------------------------------------------------------------------- */

static size_t clamp(uint64_t off, size_t len, uint64_t file_size)
{
	return off >= file_size ? 0 : file_size - off < len ? (size_t)(file_size - off) : len;
}

/* What is read much is worth a flat file: the next one who opens it gets that, if the kernel can. */
static void count_read(struct fs *fs, struct handle *handle, size_t len)
{
	if (handle->is_counted && passthrough_is_usable(fs->passthrough) && atomic_load(&handle->nr_read) < MUCH_READ && atomic_fetch_add(&handle->nr_read, len) + len >= MUCH_READ)
		disk_flat_want(handle->disk);
}

static ssize_t read_disk(struct fs *fs, struct handle *handle, void *buf, size_t len, uint64_t off)
{
	size_t n = clamp(off, len, disk_virtual_size(handle->disk));
	count_read(fs, handle, n);
	int err = n ? disk_read(handle->disk, buf, n, off) : 0;
	return err ? err : (ssize_t)n;
}

static ssize_t read_text(const char *text, size_t text_len, void *buf, size_t len, uint64_t off)
{
	size_t n = clamp(off, len, text_len);
	if (n)
		memcpy(buf, text + off, n);
	return (ssize_t)n;
}

/* Returns how much was there, or a negative errno. */
static ssize_t read_handle(struct fs *fs, struct handle *handle, void *buf, size_t len, uint64_t off)
{
	switch (handle->kind) {
	case HANDLE_DISK:
		return read_disk(fs, handle, buf, len, off);
	case HANDLE_TEXT:
		return read_text(handle->text, handle->text_len, buf, len, off);
	case HANDLE_ACTION: {
		const char *usage = action_usage(handle->place->node.disk);
		return read_text(usage, strlen(usage), buf, len, off);
	}
	case HANDLE_EVENTS:
		return events_read(fs->events, handle->place->vm ? handle->place->vm->name : NULL, buf, len, off);
	case HANDLE_DOMAIN:
		return (ssize_t)handle_edit_read(fs, handle, buf, len, off);
	case HANDLE_SCRATCH:
		return scratch_read(fs->scratch, node_number(handle->place->node), buf, len, off);
	case HANDLE_DIR:
		break;
	}
	return -EISDIR;
}

static int write_handle(struct fs *fs, struct handle *handle, const void *buf, size_t len, uint64_t off)
{
	switch (handle->kind) {
	case HANDLE_DISK:
		return disk_write(handle->disk, buf, len, off);
	case HANDLE_DOMAIN:
		return handle_edit(fs, handle, buf, len, off);
	case HANDLE_SCRATCH:
		return scratch_write(fs->scratch, node_number(handle->place->node), buf, len, off);
	case HANDLE_ACTION: /* see ops_write */
	case HANDLE_TEXT:
	case HANDLE_EVENTS:
	case HANDLE_DIR:
		break;
	}
	return -EBADF;
}

void ops_read(fuse_req_t req, fuse_ino_t ino, size_t len, off_t off, struct fuse_file_info *fi)
{
	(void)ino;
	struct fs *fs = ops_fs(req);
	struct handle *handle = handle_ref(ops_handle(fi));
	char *buf = loop_reply_buffer(len);
	ssize_t n = buf ? read_handle(fs, handle, buf, len, (uint64_t)off) : -ENOMEM;
	if (n < 0)
		ops_fail(req, handle->place, "read", NULL, (int)n, NULL);
	/* First, so that a close(2) after the reply is the last. */
	handle_put(fs, handle);
	if (n >= 0)
		fuse_reply_buf(req, buf, (size_t)n);
}

void ops_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t len, off_t off, struct fuse_file_info *fi)
{
	(void)ino;
	struct handle *handle = ops_handle(fi);
	struct reason why = {0};
	int err = handle->kind == HANDLE_ACTION ? control_write(req, handle, buf, len, &why)
						: write_handle(ops_fs(req), handle, buf, len, (uint64_t)off);
	if (err)
		ops_fail(req, handle->place, "write", NULL, err, &why);
	else
		fuse_reply_write(req, len);
}

/* --- holes ------------------------------------------------------------------------------------------------------------ */

/* A file without holes, as far as anybody is told. */
static int seek_in_full(uint64_t off, bool data, uint64_t file_size, uint64_t *ret)
{
	if (off >= file_size)
		return -ENXIO;
	*ret = data ? off : file_size;
	return 0;
}

void ops_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	struct fs *fs = ops_fs(req);
	struct handle *handle = ops_handle(fi);
	uint64_t found = 0;
	bool data = whence == SEEK_DATA;
	if (handle->kind != HANDLE_DISK) {
		fuse_reply_err(req, EOPNOTSUPP);
		return;
	}
	handle_ref(handle);
	/* Dirty pages aren't written back before this is asked: where somebody writes, there may be data anywhere. */
	int err = handles_has_writer(fs->handles, ino)
			  ? seek_in_full((uint64_t)off, data, disk_virtual_size(handle->disk), &found)
			  : disk_seek(handle->disk, (uint64_t)off, data, &found);
	handle_put(fs, handle);
	if (err)
		fuse_reply_err(req, -err);
	else
		fuse_reply_lseek(req, (off_t)found);
}

static int discard(struct disk_file *file, uint64_t off, uint64_t len)
{
	uint64_t virtual_size = disk_virtual_size(file);
	if (off >= virtual_size)
		return 0;
	return disk_discard(file, off, virtual_size - off < len ? virtual_size - off : len);
}

static int grow(struct disk_file *file, uint64_t end)
{
	return end > disk_virtual_size(file) ? disk_resize(file, end) : 0;
}

static int allocate(struct disk_file *file, int mode, uint64_t off, uint64_t len)
{
	bool keep_size = mode & FALLOC_FL_KEEP_SIZE;
	int err;
	switch (mode & ~FALLOC_FL_KEEP_SIZE) {
	case 0:
		return keep_size ? 0 : grow(file, off + len);
	case FALLOC_FL_PUNCH_HOLE:
		return discard(file, off, len);
	case FALLOC_FL_ZERO_RANGE:
		err = discard(file, off, len);
		return err || keep_size ? err : grow(file, off + len);
	}
	return -EOPNOTSUPP;
}

void ops_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len, struct fuse_file_info *fi)
{
	(void)ino;
	struct handle *handle = ops_handle(fi);
	if (handle->kind != HANDLE_DISK || !handle->writable) {
		fuse_reply_err(req, EOPNOTSUPP);
		return;
	}
	int err = allocate(handle->disk, mode, (uint64_t)off, (uint64_t)len);
	if (!err || err == -EOPNOTSUPP)
		fuse_reply_err(req, -err);
	else
		ops_fail(req, handle->place, "fallocate", NULL, err, NULL);
}

/* --- copy_file_range -------------------------------------------------------------------------------------------------- */

/* A piece of anything to anything. */
static ssize_t copy_piece(struct fs *fs, struct handle *from, uint64_t from_off, struct handle *to, uint64_t to_off, size_t len)
{
	size_t piece = len < COPY_CHUNK ? len : COPY_CHUNK;
	auto_free char *buf = malloc(piece ? piece : 1);
	if (!buf)
		return -ENOMEM;
	ssize_t n = read_handle(fs, from, buf, piece, from_off);
	int err = n > 0 ? write_handle(fs, to, buf, (size_t)n, to_off) : 0;
	return err ? err : n;
}

static ssize_t copy_to_sink(struct fs *fs, struct handle *from, uint64_t from_off, struct handle *to, uint64_t to_off,
			    size_t len)
{
	size_t n = clamp(from_off, len, disk_virtual_size(from->disk));
	int err = n ? scratch_sink(fs->scratch, node_number(to->place->node), to_off, n) : 0;
	return err ? err : (ssize_t)n;
}

static ssize_t copy_handle(struct fs *fs, struct handle *from, uint64_t from_off, struct handle *to, uint64_t to_off,
			   size_t len, struct reason *why)
{
	if (from->kind == HANDLE_DISK && to->kind == HANDLE_DISK)
		return disk_copy(from->disk, from_off, to->disk, to_off, len, why);
	if (from->kind == HANDLE_DISK && to->kind == HANDLE_SCRATCH &&
	    scratch_is_sink(fs->scratch, node_number(to->place->node)))
		return copy_to_sink(fs, from, from_off, to, to_off, len);
	return copy_piece(fs, from, from_off, to, to_off, len);
}

void ops_copy_file_range(fuse_req_t req, fuse_ino_t from_ino, off_t from_off, struct fuse_file_info *from_fi,
			 fuse_ino_t to_ino, off_t to_off, struct fuse_file_info *to_fi, size_t len, int flags)
{
	(void)from_ino;
	(void)to_ino;
	struct handle *from = ops_handle(from_fi), *to = ops_handle(to_fi);
	struct reason why = {0};
	/* A command isn't copied, but written: the kernel would try again what has failed. */
	ssize_t n = flags || to->kind == HANDLE_ACTION ? -EOPNOTSUPP
			  : copy_handle(ops_fs(req), from, (uint64_t)from_off, to, (uint64_t)to_off, len, &why);
	if (n == -EOPNOTSUPP || n == -EXDEV || n == -EINVAL) /* the kernel copies by itself then */
		fuse_reply_err(req, (int)-n);
	else if (n < 0)
		ops_fail(req, to->place, "copy to", NULL, (int)n, &why);
	else
		fuse_reply_write(req, (size_t)n);
}
