/* Names: looking them up, listing them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "fs/ops.h"
#include "fs/tree.h"

#define MAX_DIR_REPLY	(1u << 20)
#define MIN_ENTRY_BYTES 32 /* of a name of one letter */
#define ENTRY_BYTES	160 /* with attributes */

/* Where a copy may be going: in clones/, or in a VM that can be written. */
static bool is_target(const struct place *dir)
{
	return dir->node.kind == NODE_CLONES ||
	       ((dir->node.kind == NODE_VM || dir->node.kind == NODE_DISKS) && place_is_managed(dir));
}

void ops_lookup(fuse_req_t req, fuse_ino_t parent_ino, const char *name)
{
	struct fs *fs = ops_fs(req);
	auto_place struct place parent = {0};
	auto_place struct place child = {0};
	if (!ops_place(req, parent_ino, &parent))
		return;
	int err = tree_lookup(fs, &parent, name, ops_thread(req), &child);
	if (err == -ENOENT && is_target(&parent))
		callers_note_missing(fs->callers, ops_thread(req), parent_ino, name);
	if (err)
		fuse_reply_err(req, -err);
	else
		ops_reply_entry(req, &parent, &child);
}

/* --- listing ---------------------------------------------------------------------------------------------------------- */

void ops_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = ops_fs(req);
	auto_place struct place dir = {0};
	if (!ops_place(req, ino, &dir))
		return;
	if (dir.node.kind == NODE_VM || dir.node.kind == NODE_SNAPSHOT)
		callers_note_listing(fs->callers, ops_thread(req));
	struct handle *handle = handle_new(fs, &dir, HANDLE_DIR, false);
	if (!handle) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	fi->fh = (uintptr_t)handle;
	if (fuse_reply_open(req, fi) < 0)
		handle_put(fs, handle);
}

/* The names of a small directory are taken at the start of each pass, so that offsets keep their meaning while it lasts. */
static int list_again(struct fs *fs, struct handle *handle)
{
	struct place now = {0};
	struct dir_list *list = NULL;
	int err = place_open(fs, handle->ino, &now);
	if (!err)
		err = tree_list(fs, &now, &list);
	place_done(&now);
	if (err)
		return err;
	dir_list_free(handle->dir);
	handle->dir = list;
	return 0;
}

/* Room that the entry takes, or would take, of LEN; 0: it can't be shown. Attributes come along only where they cost nothing, for
 * those that are kept: an inode of 0 says "look it up when you want it". */
static size_t add_entry(fuse_req_t req, const struct place *dir, const struct dir_entry *entry, bool plus, char *buf, size_t len)
{
	struct fs *fs = ops_fs(req);
	struct fuse_entry_param param = {.attr = {.st_ino = node_ino(entry->node), .st_mode = attr_type(entry->node.kind)}};
	if (!plus)
		return fuse_add_direntry(req, buf, len, entry->name, &param.attr, entry->next_off);
	auto_place struct place child = {0};
	bool is_dot = !strcmp(entry->name, ".") || !strcmp(entry->name, "..");
	if (!is_dot && S_ISDIR(param.attr.st_mode) && place_open(fs, param.attr.st_ino, &child) == 0)
		ops_entry(req, dir, &child, &param);
	return fuse_add_direntry_plus(req, buf, len, entry->name, &param, entry->next_off);
}

/* What a reply is filled from: *RET_MINE is to be freed after it. */
static int list_for(struct fs *fs, struct handle *handle, size_t max, off_t off, struct dir_list **ret, struct dir_list **ret_mine)
{
	if (tree_is_paged(handle->place)) {
		int err = tree_list_page(fs, handle->place, off, max, ret_mine);
		*ret = *ret_mine;
		return err;
	}
	int err = off == 0 || !handle->dir ? list_again(fs, handle) : 0;
	*ret = handle->dir;
	return err;
}

/* Fills BUF with the entries after OFF. Returns how much of it, or a negative errno. */
static ssize_t fill_locked(fuse_req_t req, struct handle *handle, char *buf, size_t buf_len, off_t off, bool plus)
{
	struct dir_list *list = NULL, *mine = NULL;
	size_t used = 0;
	int err = list_for(ops_fs(req), handle, buf_len / (plus ? ENTRY_BYTES : MIN_ENTRY_BYTES) + 1, off, &list, &mine);
	if (err)
		return err;
	for (size_t i = mine ? 0 : (size_t)off; i < list->nr_entries; i++) {
		const struct dir_entry *entry = &list->entries[i];
		if (entry->next_off <= off)
			continue;
		size_t n = add_entry(req, handle->place, entry, plus, buf + used, buf_len - used);
		if (n > buf_len - used)
			break;
		used += n;
	}
	dir_list_free(mine);
	return (ssize_t)used;
}

static void read_dir(fuse_req_t req, size_t len, off_t off, struct fuse_file_info *fi, bool plus)
{
	struct fs *fs = ops_fs(req);
	struct handle *handle = handle_ref(ops_handle(fi));
	size_t buf_len = len < MAX_DIR_REPLY ? len : MAX_DIR_REPLY;
	auto_free char *buf = malloc(buf_len);
	/* The kernel lets in one reader of a handle at a time; one that was killed may be here still. */
	pthread_mutex_lock(&handle->dir_lock);
	ssize_t n = buf ? fill_locked(req, handle, buf, buf_len, off, plus) : -ENOMEM;
	pthread_mutex_unlock(&handle->dir_lock);
	handle_put(fs, handle);
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_buf(req, buf, (size_t)n);
}

void ops_readdir(fuse_req_t req, fuse_ino_t ino, size_t len, off_t off, struct fuse_file_info *fi)
{
	(void)ino;
	read_dir(req, len, off, fi, false);
}

void ops_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t len, off_t off, struct fuse_file_info *fi)
{
	(void)ino;
	read_dir(req, len, off, fi, true);
}

void ops_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	handle_put(ops_fs(req), ops_handle(fi));
	fuse_reply_err(req, 0);
}
