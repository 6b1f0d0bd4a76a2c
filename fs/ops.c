#include "fs/ops.h"

#include <errno.h>
#include <string.h>

/* Readahead and direct I/O under way at once, of all files: more would wait inside the kernel, behind those that a slow disk has. */
#define MAX_BACKGROUND 512

struct fs *ops_fs(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

pid_t ops_thread(fuse_req_t req)
{
	return fuse_req_ctx(req)->pid;
}

void ops_vms_changed(struct fs *fs)
{
	atomic_store(&fs->changed, (long long)time(NULL));
}

/* --- failures --------------------------------------------------------------------------------------------------------- */

static const char *why_read_only(struct fs *fs, const struct place *place)
{
	if (place->snapshot && place->node.kind != NODE_CLONES_OF)
		return "a snapshot never changes. Clone it (mkdir clones/VM@SNAPSHOT/NEW) and change the clone";
	if (place->vm && place->vm->kind != VM_MANAGED && place->node.kind != NODE_CLONES_OF)
		return "a VM that was found is never written. Clone it (mkdir clones/VM@SNAPSHOT/NEW), or use the tool that owns it";
	if (!store_is_writable(fs->store))
		return "there is no store that could be written. Mount with -o store=DIR";
	if (place_is_pool(place))
		return "it wasn't made here but found in the pool's directory: it is only shown. Use the tool that made it";
	return "nothing can be made or changed here. Clones go to clones/";
}

/* NULL: the error says it all. */
static const char *why_by_error(struct fs *fs, const struct place *place, int err)
{
	switch (err) {
	case -EROFS:
		return why_read_only(fs, place);
	case -ENOSPC:
		return place_is_pool(place) ? "the pool is full, or the device ends there" : "the disk that the store lies on is full. Make room and try again";
	case -ESTALE:
		return "an image was changed by another program while it was open here. Open the file again";
	case -EBUSY:
		return "somebody else uses it. Close it there and try again";
	case -EEXIST:
		return "the name is taken";
	case -EPERM:
		return "that can't be done to such a file";
	case -EFBIG:
		return "such a file may not be so large";
	}
	return NULL;
}

void ops_fail(fuse_req_t req, const struct place *place, const char *verb, const char *name, int err,
	      const struct reason *why)
{
	struct fs *fs = ops_fs(req);
	const char *vm = place->vm && !place_is_pool(place) ? place->vm->name : NULL;
	char path[600];
	place_path(fs, place, name, path, sizeof path);
	const char *text = why && *why->text ? why->text : why_by_error(fs, place, err);
	if (text)
		events_add(fs->events, vm, "%s %s: %s (%s)", verb, path, text, strerror(-err));
	else
		events_add(fs->events, vm, "%s %s: %s", verb, path, strerror(-err));
	fuse_reply_err(req, -err);
}

/* --- shared by the operations ------------------------------------------------------------------------------------------ */

bool ops_place(fuse_req_t req, fuse_ino_t ino, struct place *ret)
{
	int err = place_open(ops_fs(req), ino, ret);
	/* ESTALE makes the kernel walk the path again: the name may stand for something else now. */
	if (err)
		fuse_reply_err(req, ESTALE);
	return !err;
}

int ops_entry(fuse_req_t req, const struct place *parent, const struct place *child, struct fuse_entry_param *ret)
{
	struct fs *fs = ops_fs(req);
	*ret = (struct fuse_entry_param){.ino = place_ino(child), .entry_timeout = attr_entry_timeout(parent)};
	if (child->node.kind == NODE_CLONES_OF) /* another snapshot may have the name next */
		ret->entry_timeout = 0;
	return attr_load(fs, child, NULL, ops_thread(req), &ret->attr, &ret->attr_timeout);
}

void ops_reply_entry(fuse_req_t req, const struct place *parent, const struct place *child)
{
	struct fuse_entry_param entry;
	int err = ops_entry(req, parent, child, &entry);
	if (err)
		fuse_reply_err(req, -err);
	else
		fuse_reply_entry(req, &entry);
}

/* Numbers are computed: there is nothing to forget. */
static void ops_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
	(void)ino;
	(void)nlookup;
	fuse_reply_none(req);
}

static void ops_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	(void)count;
	(void)forgets;
	fuse_reply_none(req);
}

static void want(struct fuse_conn_info *conn, unsigned capabilities)
{
	conn->want |= conn->capable & capabilities;
}

static void ops_init(void *userdata, struct fuse_conn_info *conn)
{
	(void)userdata;
	conn->max_write = OPS_MAX_WRITE;
	conn->max_background = MAX_BACKGROUND;
	conn->congestion_threshold = MAX_BACKGROUND * 3 / 4;
	want(conn, FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ASYNC_DIO | FUSE_CAP_ASYNC_READ | FUSE_CAP_ATOMIC_O_TRUNC |
			   FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_EXPORT_SUPPORT);
	/* Splicing is slower than copying here. Which pages are still good is decided when a file is opened (page_cache.h), not by a
	 * GETATTR before each read, which AUTO_INVAL_DATA would cost. Locks are the kernel's own. */
	conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_AUTO_INVAL_DATA |
				  FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS);
}

const struct fuse_lowlevel_ops ops_table = {
	.init = ops_init,
	.lookup = ops_lookup,
	.forget = ops_forget,
	.forget_multi = ops_forget_multi,
	.getattr = ops_getattr,
	.setattr = ops_setattr,
	.access = ops_access,
	.readlink = ops_readlink,
	.getxattr = ops_getxattr,
	.listxattr = ops_listxattr,
	.setxattr = ops_setxattr,
	.removexattr = ops_removexattr,
	.statfs = ops_statfs,
	.opendir = ops_opendir,
	.readdir = ops_readdir,
	.readdirplus = ops_readdirplus,
	.releasedir = ops_releasedir,
	.mkdir = ops_mkdir,
	.create = ops_create,
	.mknod = ops_mknod,
	.symlink = ops_symlink,
	.unlink = ops_unlink,
	.rmdir = ops_rmdir,
	.rename = ops_rename,
	.open = ops_open,
	.flush = ops_flush,
	.release = ops_release,
	.fsync = ops_fsync,
	.read = ops_read,
	.write = ops_write,
	.lseek = ops_lseek,
	.fallocate = ops_fallocate,
	.copy_file_range = ops_copy_file_range,
};
