/* Attributes: reading and changing them. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "fs/control.h"
#include "fs/ops.h"
#include "fs/tree.h"
#include "fs/xattr.h"

static void reply_attr(fuse_req_t req, const struct place *place, const struct handle *handle, struct fuse_file_info *fi)
{
	struct stat st;
	double timeout;
	int err = attr_load(ops_fs(req), place, handle, ops_thread(req), &st, &timeout);
	/* Who reads asks where what he has opened ends. Under its name there may be something shorter now. */
	if (!err && fi && ops_handle(fi)->kind == HANDLE_DISK)
		st.st_size = (off_t)disk_virtual_size(ops_handle(fi)->disk);
	if (err)
		fuse_reply_err(req, -err);
	else
		fuse_reply_attr(req, &st, timeout);
}

void ops_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = ops_fs(req);
	auto_place struct place place = {0};
	if (place_open(fs, ino, &place) == 0) {
		reply_attr(req, &place, NULL, fi);
		return;
	}
	/* What has been removed may be open still. */
	struct handle *handle = handles_find(fs->handles, ino);
	if (!handle) {
		fuse_reply_err(req, ESTALE);
		return;
	}
	reply_attr(req, handle->place, handle, fi);
	handle_put(fs, handle);
}

/* --- changing --------------------------------------------------------------------------------------------------------- */

static int resize_disk(struct fs *fs, const struct place *place, struct fuse_file_info *fi, uint64_t file_size,
		       struct reason *why)
{
	if (fi)
		return disk_resize(ops_handle(fi)->disk, file_size);
	struct disk_file *file;
	int err = disk_open(fs->store, place->vm, NULL, place->disk, true, &file, why);
	if (err)
		return err;
	err = disk_resize(file, file_size);
	int close_err = disk_close(file, why);
	return err ? err : close_err;
}

static int resize_domain(struct fs *fs, const struct place *place, struct fuse_file_info *fi, uint64_t file_size,
			 struct reason *why)
{
	int err = 0;
	if (fi)
		return handle_edit_resize(fs, ops_handle(fi), file_size);
	if (handles_edit_resize(fs, place_ino(place), file_size, &err))
		return err;
	return reason_set(why, -EINVAL, "a part of a configuration is none. Write the whole file");
}

static int resize(struct fs *fs, const struct place *place, struct fuse_file_info *fi, uint64_t file_size, struct reason *why)
{
	if (place->node.kind == NODE_DISK)
		return resize_disk(fs, place, fi, file_size, why);
	if (place->node.kind == NODE_DOMAIN)
		return resize_domain(fs, place, fi, file_size, why);
	if (place->node.kind == NODE_SCRATCH)
		return scratch_resize(fs->scratch, node_number(place->node), file_size);
	if (place->node.kind == NODE_ACTION)
		return 0;
	return -EPERM;
}

static int change_mode(struct fs *fs, const struct place *place, mode_t mode)
{
	if (place->node.kind == NODE_DISK)
		return disk_chmod(fs->store, place->vm, place->disk->file_name, mode & 0777);
	if (place->node.kind == NODE_DOMAIN)
		return store_chmod_domain(fs->store, place->vm, mode);
	if (place->node.kind == NODE_SCRATCH)
		return scratch_chmod(fs->scratch, node_number(place->node), mode);
	return 0;
}

void ops_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	struct fs *fs = ops_fs(req);
	struct reason why = {0};
	auto_place struct place place = {0};
	const struct handle *handle = fi ? ops_handle(fi) : NULL;
	if (handle)
		place_copy(handle->place, &place); /* it may have been removed since */
	else if (!ops_place(req, ino, &place))
		return;
	/* Owner and times of what is ours are accepted and forgotten: copying programs set them. */
	int err = !place.vm ? -EPERM : place_is_managed(&place) || control_takes_commands(&place) ? 0 : -EROFS;
	if (!err && (to_set & FUSE_SET_ATTR_SIZE))
		err = resize(fs, &place, fi, (uint64_t)attr->st_size, &why);
	if (!err && (to_set & FUSE_SET_ATTR_MODE))
		err = change_mode(fs, &place, attr->st_mode);
	if (err)
		ops_fail(req, &place, to_set & FUSE_SET_ATTR_SIZE ? "truncate" : "change", NULL, err, &why);
	else
		reply_attr(req, &place, handle, NULL);
}

void ops_access(fuse_req_t req, fuse_ino_t ino, int mask)
{
	auto_place struct place place = {0};
	if (!ops_place(req, ino, &place))
		return;
	struct stat st;
	double timeout;
	int err = attr_load(ops_fs(req), &place, NULL, ops_thread(req), &st, &timeout);
	if (!err && (mask & W_OK) && !(st.st_mode & 0222))
		err = -EROFS;
	if (!err && (mask & X_OK) && S_ISREG(st.st_mode))
		err = -EACCES;
	fuse_reply_err(req, -err);
}

/* --- links, extended attributes, the filesystem ---------------------------------------------------------------------- */

void ops_readlink(fuse_req_t req, fuse_ino_t ino)
{
	auto_place struct place place = {0};
	auto_free char *target = NULL;
	if (!ops_place(req, ino, &place))
		return;
	int err = tree_link_target(ops_fs(req), &place, &target);
	if (err)
		fuse_reply_err(req, -err);
	else
		fuse_reply_readlink(req, target);
}

static void reply_value(fuse_req_t req, const char *value, size_t value_len, size_t len)
{
	if (!len)
		fuse_reply_xattr(req, value_len);
	else if (value_len > len)
		fuse_reply_err(req, ERANGE);
	else
		fuse_reply_buf(req, value, value_len);
}

void ops_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t len)
{
	auto_place struct place place = {0};
	auto_free char *value = NULL;
	size_t value_len = 0;
	/* Asked before each write: the quick way out. */
	if (!strncmp(name, "security.", 9)) {
		fuse_reply_err(req, ENODATA);
		return;
	}
	if (!strncmp(name, "system.", 7)) {
		fuse_reply_err(req, EOPNOTSUPP);
		return;
	}
	if (!ops_place(req, ino, &place))
		return;
	int err = xattr_load(ops_fs(req), &place, name, &value, &value_len);
	if (err)
		fuse_reply_err(req, -err);
	else
		reply_value(req, value, value_len, len);
}

void ops_listxattr(fuse_req_t req, fuse_ino_t ino, size_t len)
{
	auto_place struct place place = {0};
	auto_free char *names = NULL;
	size_t names_len = 0;
	if (!ops_place(req, ino, &place))
		return;
	int err = xattr_list(ops_fs(req), &place, &names, &names_len);
	if (err)
		fuse_reply_err(req, -err);
	else
		reply_value(req, names, names_len, len);
}

/* cp -a tries to set ACLs and takes "not supported" for an answer. */
static void refuse_xattr(fuse_req_t req, fuse_ino_t ino)
{
	auto_place struct place place = {0};
	if (ops_place(req, ino, &place))
		fuse_reply_err(req, place_is_managed(&place) ? EOPNOTSUPP : EROFS);
}

void ops_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t len, int flags)
{
	(void)name;
	(void)value;
	(void)len;
	(void)flags;
	refuse_xattr(req, ino);
}

void ops_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	(void)name;
	refuse_xattr(req, ino);
}

void ops_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct fs *fs = ops_fs(req);
	struct statvfs st = {0};
	auto_place struct place place = {0};
	bool in_pool = place_open(fs, ino, &place) == 0 && place_is_pool(&place) && store_pool_statvfs(fs->store, place.vm, &st) == 0;
	int err = in_pool ? 0 : store_statvfs(fs->store, &st);
	st.f_namemax = 255;
	if (err)
		fuse_reply_err(req, -err);
	else
		fuse_reply_statfs(req, &st);
}
