/* The FUSE operations: one function each, thin. They find the place, call the store, and reply. */
#ifndef FS_OPS_H
#define FS_OPS_H

#include <fuse_lowlevel.h>

#include "fs/attr.h"
#include "fs/fs.h"
#include "fs/place.h"

extern const struct fuse_lowlevel_ops ops_table;

#define OPS_MAX_WRITE (1u << 20) /* libfuse 3.14 can't take more */

struct fs *ops_fs(fuse_req_t req);
pid_t ops_thread(fuse_req_t req);

/* Replies with ERR (a negative errno) and puts a line into the events: VERB, the path of NAME (NULL: nothing) in PLACE, and why;
 * without WHY, what that error means there. */
void ops_fail(fuse_req_t req, const struct place *place, const char *verb, const char *name, int err,
	      const struct reason *why);

/* The place of INO; false: it has gone, and that has been replied. */
bool ops_place(fuse_req_t req, fuse_ino_t ino, struct place *ret);

/* What a lookup of CHILD in PARENT answers. -ENOENT. */
int ops_entry(fuse_req_t req, const struct place *parent, const struct place *child, struct fuse_entry_param *ret);

/* Looks NAME up in PARENT, where it has just been made, and replies with it. */
void ops_reply_entry(fuse_req_t req, const struct place *parent, const struct place *child);

/* A managed VM has come, gone, or got another name: directories have changed. */
void ops_vms_changed(struct fs *fs);

/* The snapshot of VM itself that the target of a link in its directory means; NULL: none. */
const struct vm_snapshot *ops_links_to_snapshot(struct fs *fs, const struct place *vm, const char *target);
/* `current` shall point to TARGET: goes back to that snapshot. */
int ops_restore_link(struct fs *fs, const struct place *vm, const char *target, struct reason *why);

/* Who asks, with all groups. */
struct caller_ids {
	uid_t uid;
	bool overrides; /* permissions don't hold him up */
	gid_t *groups; /* owned */
	size_t nr_groups;
};
int ops_load_caller(fuse_req_t req, struct caller_ids *ret);
/* Whether IDS, a struct caller_ids, may read a file with that owner, group and mode. */
bool ops_caller_may_read(void *ids, uid_t owner, gid_t group, mode_t mode);

/* -EACCES: the caller may not read the VM's configuration. */
int ops_check_may_read_config(fuse_req_t req, const struct vm *vm, const struct vm_snapshot *snapshot, struct reason *why);
/* A clone shows its owner all that it was cloned from: -EACCES where the caller may not read the configuration and every image. ONLY: no configuration,
 * and this disk's image alone. */
int ops_check_may_clone(fuse_req_t req, const struct vm *from, const struct vm_snapshot *snapshot, const struct vm_disk *only,
			struct reason *why);

/* Opens what lies at PLACE, with the flags in FI, which gets the handle. */
int ops_open_place(fuse_req_t req, const struct place *place, struct fuse_file_info *fi, struct reason *why);

/* ops_dir.c */
void ops_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void ops_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_readdir(fuse_req_t req, fuse_ino_t ino, size_t len, off_t off, struct fuse_file_info *fi);
void ops_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t len, off_t off, struct fuse_file_info *fi);
void ops_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);

/* ops_attr.c */
void ops_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi);
void ops_access(fuse_req_t req, fuse_ino_t ino, int mask);
void ops_readlink(fuse_req_t req, fuse_ino_t ino);
void ops_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t len);
void ops_listxattr(fuse_req_t req, fuse_ino_t ino, size_t len);
void ops_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t len, int flags);
void ops_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);
void ops_statfs(fuse_req_t req, fuse_ino_t ino);

/* ops_make.c */
void ops_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void ops_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi);
void ops_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void ops_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);

/* ops_move.c */
void ops_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void ops_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void ops_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent, const char *new_name,
		unsigned flags);

/* ops_file.c */
void ops_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);

/* ops_io.c */
void ops_read(fuse_req_t req, fuse_ino_t ino, size_t len, off_t off, struct fuse_file_info *fi);
void ops_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t len, off_t off, struct fuse_file_info *fi);
void ops_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi);
void ops_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len, struct fuse_file_info *fi);
void ops_copy_file_range(fuse_req_t req, fuse_ino_t from_ino, off_t from_off, struct fuse_file_info *from_fi,
			 fuse_ino_t to_ino, off_t to_off, struct fuse_file_info *to_fi, size_t len, int flags);

static inline struct handle *ops_handle(const struct fuse_file_info *fi)
{
	return (struct handle *)(uintptr_t)fi->fh;
}

#endif
