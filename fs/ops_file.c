/* Opening and closing files. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "fs/channel.h"
#include "fs/control.h"
#include "fs/kernel.h"
#include "fs/ops.h"
#include "fs/text.h"
#include "meta/action.h"
#include "store/intern.h"

/* Who opens to truncate writes, whatever the access mode. */
static bool wants_write(const struct fuse_file_info *fi)
{
	return (fi->flags & O_ACCMODE) != O_RDONLY || (fi->flags & O_TRUNC);
}

/* The kernel has looked at the owner and mode that we showed, but a name may have got another file since, or lie in another
 * directory: what has been opened is what counts. */
static int check_opened(fuse_req_t req, const struct access *access, struct reason *why)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	struct caller_ids ids;
	if (access->mode == 0444 || (ctx->uid == access->uid && access->mode & 0400))
		return 0;
	int err = ops_load_caller(req, &ids);
	if (err)
		return err;
	if (!ops_caller_may_read(&ids, access->uid, access->gid, access->mode))
		err = reason_set(why, -EACCES, "user %u may not read the files that it comes from", (unsigned)ids.uid);
	free(ids.groups);
	return err;
}

/* --- disks ------------------------------------------------------------------------------------------------------------ */

/* What tells what a file of a snapshot holds from anything else that may come under its name. */
static uint64_t content_hash(struct disk_file *file)
{
	uint64_t words[] = {disk_content(file), disk_virtual_size(file)};
	return hash_bytes(HASH_START, words, sizeof words);
}

static int open_disk_file(struct fs *fs, const struct place *place, bool writable, struct disk_file **ret,
			  struct reason *why)
{
	if (place->node.kind == NODE_MEMORY)
		return writable ? -EROFS : memory_open(fs->store, place->vm, place->snapshot, ret, why);
	return disk_open(fs->store, place->vm, place->snapshot, place->disk, writable, ret, why);
}

/* Whether the kernel reads it by itself. */
static int choose_way(struct fs *fs, const struct place *place, struct handle *handle)
{
	/* Whether it is allowed or not: a node that is passed through stays so until all have closed it. */
	if (!channel_features()->passthrough)
		return 0;
	int id = passthrough_open(fs->passthrough, place, content_hash(handle->disk), handle->disk);
	handle->is_counted = id >= 0;
	handle->backing_id = id < 0 ? 0 : id;
	return id < 0 ? id : 0;
}

static int check_disk(fuse_req_t req, struct disk_file *file, struct reason *why)
{
	struct disk_stat st;
	int err = disk_fstat(file, &st);
	const struct access access = {.uid = st.uid, .gid = st.gid, .mode = st.mode & 0444};
	return err ? err : check_opened(req, &access, why);
}

static int open_disk(fuse_req_t req, const struct place *place, struct fuse_file_info *fi, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	struct disk_file *file = NULL;
	bool writable = wants_write(fi);
	int err = open_disk_file(fs, place, writable, &file, why);
	if (err)
		return err;
	if ((fi->flags & O_ACCMODE) != O_WRONLY)
		err = check_disk(req, file, why);
	if (!err && (fi->flags & O_TRUNC))
		err = disk_resize(file, 0);
	struct handle *handle = err ? NULL : handle_new(fs, place, HANDLE_DISK, writable);
	if (!handle) {
		disk_close(file, NULL);
		return err ? err : -ENOMEM;
	}
	handle_set_disk(fs, handle, file);
	err = place->snapshot && place->disk ? choose_way(fs, place, handle) : 0;
	if (err) {
		handle_put(fs, handle);
		return err;
	}
	if (fi->flags & O_TRUNC)
		sources_hint(fs->sources, file, place->disk->file_name, ops_thread(req));
	if (place->snapshot) {
		fi->keep_cache = page_cache_is_current(fs->page_cache, place_ino(place), content_hash(file));
		if (place->disk)
			sources_add(fs->sources, file, place->disk->file_name, ops_thread(req));
	}
	fi->fh = (uintptr_t)handle;
	return 0;
}

/* --- texts ------------------------------------------------------------------------------------------------------------ */

static int load_text(fuse_req_t req, const struct place *place, char **ret, size_t *ret_len, struct reason *why)
{
	bool is_config = place->node.kind == NODE_DOMAIN || place->node.kind == NODE_SNAPSHOT_XML;
	struct access access = {.mode = 0444};
	if (is_config)
		store_config_access(place->vm, place->snapshot, &access);
	int err = text_load(ops_fs(req), place, ret, ret_len, &access, why);
	if (!err && is_config)
		err = check_opened(req, &access, why);
	return err;
}

static int open_text(fuse_req_t req, const struct place *place, struct fuse_file_info *fi, struct reason *why)
{
	auto_free char *text = NULL;
	size_t len = 0;
	struct fs *fs = ops_fs(req);
	int err = load_text(req, place, &text, &len, why);
	struct handle *handle = err ? NULL : handle_new(fs, place, HANDLE_TEXT, false);
	if (!handle)
		return err ? err : -ENOMEM;
	handle->text = take_ptr(text);
	handle->text_len = len;
	fi->fh = (uintptr_t)handle;
	return 0;
}

static int open_domain_to_edit(fuse_req_t req, const struct place *place, struct fuse_file_info *fi, struct reason *why)
{
	auto_free char *text = NULL;
	size_t len = 0;
	struct fs *fs = ops_fs(req);
	bool empty = fi->flags & O_TRUNC;
	int err = empty ? 0 : (fi->flags & O_ACCMODE) == O_WRONLY ? text_load(fs, place, &text, &len, NULL, why) : load_text(req, place, &text, &len, why);
	struct handle *handle = err ? NULL : handle_new(fs, place, HANDLE_DOMAIN, true);
	if (!handle)
		return err ? err : -ENOMEM;
	if (empty)
		handle->is_changed = true;
	else
		strbuf_add(&handle->edited, text, len);
	fi->fh = (uintptr_t)handle;
	return 0;
}

static int open_action(struct fs *fs, const struct place *place, pid_t thread, struct fuse_file_info *fi)
{
	struct control *control = NULL;
	int err = control_new(thread, &control);
	struct handle *handle = err ? NULL : handle_new(fs, place, HANDLE_ACTION, true);
	if (!handle) {
		control_free(control);
		return -ENOMEM;
	}
	handle->control = control;
	fi->fh = (uintptr_t)handle;
	return 0;
}

static int open_live(struct fs *fs, const struct place *place, enum handle_kind kind, struct fuse_file_info *fi)
{
	int err = kind == HANDLE_SCRATCH && scratch_open(fs->scratch, node_number(place->node)) < 0 ? -ESTALE : 0;
	struct handle *handle = err ? NULL : handle_new(fs, place, kind, wants_write(fi));
	if (!handle) {
		if (!err && kind == HANDLE_SCRATCH)
			scratch_close(fs->scratch, node_number(place->node));
		return err ? err : -ENOMEM;
	}
	if (kind == HANDLE_SCRATCH && (fi->flags & O_TRUNC))
		scratch_resize(fs->scratch, node_number(place->node), 0);
	fi->fh = (uintptr_t)handle;
	return 0;
}

/* --- the operations --------------------------------------------------------------------------------------------------- */

int ops_open_place(fuse_req_t req, const struct place *place, struct fuse_file_info *fi, struct reason *why)
{
	struct fs *fs = ops_fs(req);
	bool writable = wants_write(fi);
	if (place->node.kind == NODE_DISK || place->node.kind == NODE_MEMORY)
		return open_disk(req, place, fi, why);
	fi->direct_io = 1; /* texts change, and their sizes with them */
	if (place->node.kind == NODE_SCRATCH)
		return open_live(fs, place, HANDLE_SCRATCH, fi);
	if (writable && place->node.kind == NODE_DOMAIN && place_is_managed(place))
		return open_domain_to_edit(req, place, fi, why);
	if (writable && control_takes_commands(place))
		return open_action(fs, place, fuse_req_ctx(req)->pid, fi);
	if (writable)
		return place_is_managed(place) ? -EPERM : -EROFS;
	if (text_is(place))
		return open_text(req, place, fi, why);
	return open_live(fs, place, HANDLE_EVENTS, fi);
}

/* libfuse has no word for passthrough. */
static int reply_open(fuse_req_t req, const struct fuse_file_info *fi)
{
	int backing_id = ops_handle(fi)->backing_id;
	if (!backing_id)
		return fuse_reply_open(req, fi);
	struct kernel_open_out out = {
		.fh = fi->fh,
		.open_flags = KERNEL_FOPEN_PASSTHROUGH | FOPEN_NOFLUSH, /* the kernel takes no other with it */
		.backing_id = backing_id,
	};
	return fuse_reply_buf(req, (const char *)&out, sizeof out);
}

void ops_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = ops_fs(req);
	struct reason why = {0};
	auto_place struct place place = {0};
	if (!ops_place(req, ino, &place))
		return;
	int err = ops_open_place(req, &place, fi, &why);
	if (err) {
		ops_fail(req, &place, wants_write(fi) ? "write to" : "open", NULL, err, &why);
		return;
	}
	/* The kernel has heard of a disk that can't be read, and of no size: it walks the path again. */
	if (place.node.kind == NODE_DISK && disk_forget_failure(fs->store, place.vm, place.snapshot, place.disk)) {
		struct disk_stat st;
		handle_put(fs, ops_handle(fi));
		err = disk_stat(fs->store, place.vm, place.snapshot, place.disk, &st, &why);
		if (err)
			ops_fail(req, &place, "open", NULL, err, &why);
		else
			fuse_reply_err(req, ESTALE);
		return;
	}
	fi->noflush = !wants_write(fi);
	if (reply_open(req, fi) < 0) /* and the request is gone */
		handle_put(fs, ops_handle(fi));
}

/* Gives what has been written to domain.xml to the store. */
static int save_domain(struct fs *fs, struct handle *handle, bool last, struct reason *why)
{
	size_t len = 0;
	auto_free char *text = handle_edit_take_changes(fs, handle, last, &len);
	struct vm *vm = text ? store_get(fs->store, handle->vm) : NULL;
	if (!vm)
		return 0; /* unchanged, or the VM is gone */
	int err = store_set_domain(fs->store, vm, text, len, why);
	vm_put(vm);
	return err;
}

void ops_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	struct fs *fs = ops_fs(req);
	struct handle *handle = ops_handle(fi);
	struct reason why = {0};
	if (handle->vm && handle->writable)
		veil_touch(fs->veil, handle->vm);
	int err = 0;
	if (handle->kind == HANDLE_DOMAIN)
		err = save_domain(fs, handle, false, &why);
	else if (handle->kind == HANDLE_ACTION)
		err = control_finish(req, handle, &why);
	if (err)
		ops_fail(req, handle->place, "write", NULL, err, &why);
	else
		fuse_reply_err(req, 0);
}

void ops_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	struct fs *fs = ops_fs(req);
	struct handle *handle = ops_handle(fi);
	struct reason why = {0};
	if (handle->vm && handle->writable)
		veil_touch(fs->veil, handle->vm);
	int err = handle->kind == HANDLE_DOMAIN ? save_domain(fs, handle, true, &why) : 0;
	if (err)
		ops_fail(req, handle->place, "write", NULL, err, &why);
	if (handle->kind == HANDLE_ACTION && control_has_rest(handle->control))
		events_add(fs->events, handle->place->vm->name, "actions/%s: what was written last has no end, and wasn't carried out: end the line",
			   action_name(handle->place->node.disk));
	handle_put(fs, handle);
	if (!err)
		fuse_reply_err(req, 0);
}

void ops_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino;
	(void)datasync;
	struct handle *handle = ops_handle(fi);
	struct reason why = {0};
	int err = 0;
	if (handle->kind == HANDLE_DISK && handle->writable)
		err = disk_flush(handle->disk);
	else if (handle->kind == HANDLE_DOMAIN)
		err = save_domain(ops_fs(req), handle, false, &why);
	else if (handle->kind == HANDLE_ACTION)
		err = control_finish(req, handle, &why);
	if (err)
		ops_fail(req, handle->place, "fsync", NULL, err, &why);
	else
		fuse_reply_err(req, 0);
}
