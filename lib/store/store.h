/* The store: everything that a mount shows and all that can be done to it. Knows no FUSE.
 *
 * Found VMs (of SOURCE) are only read. Managed VMs lie in the store directory:
 *
 *   STORE/lock                      one daemon at a time (holds its pid)
 *   STORE/spare                     room for a description on a full filesystem: see spare.h
 *   STORE/layers/UUID.qcow2, .raw   every layer, once; backing names relative where both lie below SOURCE or the store
 *   STORE/vms/UUID/vm.xml           name, place, disks and their layers, configuration
 *   STORE/pools/NAME/FILE           the files that were made in a pool: see pools.h
 *   STORE/jobs/ID.xml               work in the background (ID is that of the VM and disk it works for)
 *   STORE/events.log
 *
 * Each operation commits with one rename of a vm.xml, file and directory synced; what no committed VM reaches is the rest of an
 * interrupted operation and is cleared away by store_open - unless any vm.xml or layer header can't be read, then nothing is.
 *
 * All functions may be called from any number of threads. They return 0 or a negative errno (INTERFACE section 7)
 * and explain failures in WHY; they don't report to the log themselves, but for what happens in the background. */
#ifndef STORE_STORE_H
#define STORE_STORE_H

#include <sys/statvfs.h>
#include <sys/types.h>

#include "base/reason.h"
#include "block/access.h"
#include "store/vm.h"

/* Where events go. Called from any thread; VM may be NULL. */
struct log_sink {
	void (*event)(void *ctx, const char *vm, const char *text);
	void *ctx;
};

/* A further place for images: -o pool=NAME:DIR. */
struct pool_config {
	const char *name; /* as name_check(), 40 bytes at most, without '/' */
	const char *dir;  /* absolute, real */
};

struct store_config {
	const char *source_dir;	  /* absolute, real */
	const char *store_dir;	  /* NULL: SOURCE/.vmsnapfs */
	const char *snapshots_dir; /* libvirt's snapshot metadata; NULL: beside each domain XML */
	const char *const *trust_dirs;
	size_t nr_trust_dirs;
	const char *mountpoint; /* absolute, real; NULL: none. Never read from */
	bool allow_devices;
	size_t index_bytes; /* bounds the collapsed index; 0: the default */
	const struct pool_config *pools;
	size_t nr_pools;
	bool clone_full; /* what clones are where it isn't said: copies that depend on nothing */
	bool read_only; /* don't make a store; one that is there is only looked at, without its lock */
	struct log_sink log;
};

struct store;

/* Opens (and, where it can, makes) the store. SOURCE is read when somebody asks, or in the background. A store that can't be written, or held by another daemon's lock
 * (-EBUSY, with its pid), makes the mount read-only for the first and fails for the second. */
int store_open(const struct store_config *config, struct store **ret, struct reason *why);
/* Starts the background threads: after the daemon has forked. */
int store_start(struct store *store);
/* It has been unmounted: who opens the store now waits for store_close(), instead of being refused. */
void store_say_ending(struct store *store);
/* Ends jobs (they go on at the next start) and closes all. Every disk file must be closed. */
void store_close(struct store *store);
bool store_is_writable(const struct store *store);
/* The store's directory, borrowed; -1: there is none. */
int store_dirfd(const struct store *store);
int store_statvfs(struct store *store, struct statvfs *ret);
struct image_cache *store_images(struct store *store);

/* The pools that were given. */
size_t store_nr_pools(const struct store *store);
const char *store_pool_name(const struct store *store, size_t i);
/* Of the filesystem that the pool of VM lies on. -ENODEV: it is no pool. */
int store_pool_statvfs(struct store *store, const struct vm *vm, struct statvfs *ret);

/* --- looking -------------------------------------------------------------------------------------------------- */

/* Reference to a VM; NULL: none. Lookups notice what changed in SOURCE, at most a second late; the first one waits until SOURCE has been read. */
struct vm *store_find(struct store *store, enum vm_place place, const char *name);
struct vm *store_get(struct store *store, uint32_t vm_id);

/* The same, perhaps without snapshots: see vm->is_brief. Nothing is read for it. */
struct vm *store_find_brief(struct store *store, enum vm_place place, const char *name);
struct vm *store_get_brief(struct store *store, uint32_t vm_id);

/* The VM as store_get() has it; takes the reference (may be NULL) over. */
struct vm *store_whole(struct store *store, struct vm *vm);

/* References to all VMs of PLACE in order of name, brief; the caller puts each and frees the array. */
int store_list(struct store *store, enum vm_place place, struct vm ***ret, size_t *ret_nr);

/* At most MAX of them, those with the lowest ids from FIRST_ID on, in order of id. */
int store_list_from(struct store *store, enum vm_place place, uint32_t first_id, size_t max, struct vm ***ret, size_t *ret_nr);

/* Texts as files show them; SNAPSHOT NULL: the VM as it is now. The caller frees. MOUNT_DIR is the mount point: a disk
 * that exists only there yet is named by its path in it (NULL: by its future path). From ACCESS (may be NULL) is taken what the
 * files that were read don't grant: they may not be those that store_config_access() has looked at. */
int store_domain_xml(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const char *mount_dir,
		     char **ret, size_t *ret_len, struct access *access, struct reason *why);
int store_snapshot_xml(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, char **ret,
		       size_t *ret_len, struct access *access, struct reason *why);
/* Who may read them: who may read the files that they come from. */
void store_config_access(const struct vm *vm, const struct vm_snapshot *snapshot, struct access *ret);
/* Only how long these are. */
int store_domain_xml_size(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const char *mount_dir,
			  size_t *ret_len);
int store_snapshot_xml_size(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, size_t *ret_len);
int store_status_text(struct store *store, const struct vm *vm, char **ret, size_t *ret_len);

/* What stat(2) says of a disk, without holding it open. */
struct disk_stat {
	uint64_t virtual_size;
	uint64_t allocated; /* bytes that aren't holes */
	uid_t uid;
	gid_t gid;
	mode_t mode; /* permission bits: no write bits but for managed heads */
	struct timespec mtime;
	size_t depth; /* layers */
};
/* On an image that can't be served: its errno, with RET filled in as far as is known (size 0). */
int disk_stat(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk,
	      struct disk_stat *ret, struct reason *why);

/* Whether the last disk_stat() said what was remembered of a failure: the disk could be opened meanwhile, and the next one looks anew. */
bool disk_forget_failure(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk);

/* The paths of the chain's files, top first, newline-separated; the caller frees. */
int disk_chain(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk,
	       char **ret, struct reason *why);

/* --- disk files ----------------------------------------------------------------------------------------------- */

struct disk_file; /* an open disk: a frozen view or a head */

/* Opens a disk. WRITABLE on anything but a managed head: -EROFS. Image locks are held until disk_close. */
int disk_open(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const struct vm_disk *disk,
	      bool writable, struct disk_file **ret, struct reason *why);
/* Opens the RAM state of a snapshot, or that of the VM as it is now, read-only. -ENOENT: it has none. */
int memory_open(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, struct disk_file **ret,
		struct reason *why);
int memory_stat(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, struct disk_stat *ret,
		struct reason *why);
int disk_close(struct disk_file *file, struct reason *why);

bool disk_is_head(const struct disk_file *file);
uint64_t disk_virtual_size(struct disk_file *file);
int disk_fstat(struct disk_file *file, struct disk_stat *ret);
/* -ESTALE: another program has changed an image that a snapshot's disk, or one that was found, is read from, since it was opened. */
int disk_check(struct disk_file *file);
/* A number that another content of the file has not: made of what the files are that it is read from, and when they last changed. */
uint64_t disk_content(struct disk_file *file);
int disk_read(struct disk_file *file, void *buf, size_t len, uint64_t off);
int disk_write(struct disk_file *file, const void *buf, size_t len, uint64_t off);
int disk_resize(struct disk_file *file, uint64_t virtual_size);
int disk_discard(struct disk_file *file, uint64_t off, uint64_t len); /* zeros, space given back; within the size */
int disk_flush(struct disk_file *file);
/* lseek(2) SEEK_DATA and SEEK_HOLE: *RET is the offset; -ENXIO at or beyond the end. */
int disk_seek(struct disk_file *file, uint64_t off, bool data, uint64_t *ret);
/* A descriptor of one flat host file that holds just what the snapshot's disk does, for the kernel to read by itself; the caller closes it.
 * -ENOENT: there is none (yet). */
int disk_flat_open(struct disk_file *file);
/* Has one made in the background, where the filesystem can share extents. */
void disk_flat_want(struct disk_file *file);
/* Copies LEN bytes; shares blocks where the two allow it. Returns the bytes copied (as copy_file_range: fewer at the end of FROM). */
ssize_t disk_copy(struct disk_file *from, uint64_t from_off, struct disk_file *to, uint64_t to_off, uint64_t len,
		  struct reason *why);
/* Tells a fresh disk file from which open disk its bytes probably come: while it is blank, a write that equals what FROM has at the same offset
 * makes it an overlay of FROM. */
void disk_hint_source(struct disk_file *to, struct disk_file *from);

/* --- changing managed VMs (-EROFS on found ones) -------------------------------------------------------------------- */

/* A new clone of a snapshot, or of the VM's state now when SNAPSHOT is NULL (managed VMs only: -EROFS else). UID and GID own it. */
int store_clone(struct store *store, struct vm *from, const struct vm_snapshot *snapshot, const char *name, uid_t uid,
		gid_t gid, struct vm **ret, struct reason *why);

enum clone_mode {
	CLONE_AS_MOUNTED, /* store_config.clone_full says */
	CLONE_THIN,	  /* an overlay over the frozen chain */
	CLONE_FULL,	  /* usable at once as the same, until a job has made it depend on nothing */
};
enum disk_allocation { ALLOCATION_SPARSE, ALLOCATION_FULL };

/* What a disk of a clone is to be. All zeros: as it comes. */
struct disk_spec {
	const char *disk; /* target, file name or layer's UUID of the source's disk */
	bool left_out;	  /* the clone has no such disk */
	enum clone_mode mode;
	enum image_format format; /* IMAGE_PROBE: not said: that of VOLUME's ending, else qcow2. IMAGE_RAW is CLONE_FULL: -EINVAL with CLONE_THIN */
	enum disk_allocation allocation; /* ALLOCATION_FULL is CLONE_FULL too */
	const char *pool;    /* name; NULL: the store's own directory. -ENOENT: there is none */
	const char *volume;  /* file name in the pool; NULL: made from the clone's and the disk's name. -EEXIST; a block device is taken as it is, -EBUSY where
			      * it is in use, -ENOSPC where it is too small. -EINVAL: its ending says another format */
	uint64_t capacity;   /* bytes, rounded up to sectors; 0: as the source has. Larger: zeros at the end */
	bool shrink;	     /* it may be smaller than the source: else -EINVAL */
	const char *target;  /* new name on its bus; NULL: the same. -EEXIST, -EINVAL */
	const char *bus;     /* libvirt's word ("virtio", "scsi", "sata", …); NULL: the same */
	mode_t mode_bits;    /* of the file, 0: 0600 */
	bool renew_serial;   /* <serial> and <wwn> become new ones */
};
struct clone_spec {
	const char *name; /* NULL: copy_of_NAME, copy_of_NAME_2, … */
	uid_t uid;
	gid_t gid;
	struct disk_spec all; /* holds for each disk where its own row doesn't say otherwise (a member that is zero says nothing) */
	const struct disk_spec *disks;
	size_t nr_disks;
	bool only_listed;   /* disks that aren't in `disks` are left out */
	const char *domain; /* a <domain> instead of the source's configuration, given this clone's identity; NULL: the source's */
	size_t domain_len;
};
/* As store_clone(), in the way SPEC says. */
int store_clone_with(struct store *store, struct vm *from, const struct vm_snapshot *snapshot, const struct clone_spec *spec,
		     struct vm **ret, struct reason *why);
/* A volume in a pool (SPEC->pool, SPEC->volume: its name) that holds what a snapshot's disk does; thin ones are overlays over it. UID and GID own it. */
int store_clone_volume(struct store *store, struct vm *from, const struct vm_snapshot *snapshot, const struct disk_spec *spec, uid_t uid,
		       gid_t gid, struct reason *why);
/* Has the chains of these disks (none: of all), now and in snapshots, made to depend on nothing but this VM's own layers, in the background. */
int store_flatten(struct store *store, struct vm *vm, const char *const *disks, size_t nr_disks, struct reason *why);

/* An empty VM in clones/. */
int store_create(struct store *store, const char *name, uid_t uid, gid_t gid, struct vm **ret, struct reason *why);
/* -EBUSY: a disk is open; -ENOTEMPTY: it has snapshots. */
int store_remove(struct store *store, struct vm *vm, struct reason *why);
int store_rename(struct store *store, struct vm *vm, enum vm_place place, const char *name, struct reason *why);
/* New configuration text: a domain of another UUID is taken for a copy and given this VM's identity. -EINVAL: not a domain. */
int store_set_domain(struct store *store, struct vm *vm, const char *text, size_t len, struct reason *why);
/* Its permission bits: those to read count. */
int store_chmod_domain(struct store *store, struct vm *vm, mode_t mode);

/* Makes an empty disk FILE_NAME ("vdb.img"; any other name is a scratch file until it is renamed to such a one) and opens it. */
int disk_create(struct store *store, struct vm *vm, const char *file_name, mode_t mode, uid_t uid, gid_t gid,
		struct disk_file **ret, struct reason *why);
/* Takes the disk out of the VM; who has it open keeps reading and writing what is then nobody's. */
int disk_remove(struct store *store, struct vm *vm, const char *file_name, struct reason *why);
/* Replaces a disk NEW_NAME that is there, as rename(2) does. Both in VM. */
int disk_rename(struct store *store, struct vm *vm, const char *old_name, const char *new_name, struct reason *why);
int disk_chmod(struct store *store, struct vm *vm, const char *file_name, mode_t mode); /* the owner can always read and write */

/* --- snapshots of managed VMs (-EROFS on found ones) ----------------------------------------------------------------- */

/* Snapshots are named by name or UUID; disks by target ("vda"), file name ("vda.img") or the UUID of their layer. */
struct snapshot_spec {
	const char *name; /* NULL: made from the time */
	const char *description; /* NULL: none */
	bool subset; /* only the disks listed; the others go on, and are in no directory of the snapshot */
	const char *const *disks;
	size_t nr_disks;
	const char *memory_path; /* external file with the RAM, of which a copy is kept; NULL: none */
	/* Whether who asks may read a file with that owner, group and mode (read bits); NULL: all. */
	bool (*may_read)(void *ctx, uid_t owner, gid_t group, mode_t mode);
	void *ctx;
};
/* All chosen disks at one moment, in constant time; it becomes the current one. -EEXIST, -EINVAL, -ENOENT (a disk), -EBUSY (a preview
 * is open, or another program has a disk open). */
int store_snapshot_create(struct store *store, struct vm *vm, const struct snapshot_spec *spec, struct reason *why);
int store_snapshot_rename(struct store *store, struct vm *vm, const char *name, const char *new_name, struct reason *why);

enum snapshot_delete {
	SNAPSHOT_DROP,	/* rmdir: its name goes; no other snapshot, clone or the active state changes; always possible */
	SNAPSHOT_MERGE, /* the same, but -EPERM where no snapshot and no active state goes on from it: its state would be lost */
	SNAPSHOT_MERGE_FORCE, /* as merge; where nothing goes on from it, its parent's state becomes its own. -EPERM: no parent either */
	SNAPSHOT_DISCARD, /* its state is dropped; -ENOTEMPTY where it has children */
	SNAPSHOT_DISCARD_FORCE, /* and all its descendants with it */
};
/* Instant; the space comes back through a job. -EBUSY: a preview is open. */
int store_snapshot_delete(struct store *store, struct vm *vm, const char *name, enum snapshot_delete how, struct reason *why);

/* What the VM is to become. */
struct preview_disk {
	const char *disk;
	const char *snapshot; /* NULL: left out */
};
struct preview_spec {
	const char *snapshot; /* configuration and all disks of it, but for what follows; NULL: everything stays as it is, but for it */
	const char *config;   /* snapshot whose configuration; NULL: see above */
	const char *memory;   /* snapshot whose RAM: -EINVAL unless its configuration is taken too */
	const struct preview_disk *disks;
	size_t nr_disks;
};
/* -EBUSY: a disk is open, or a preview is. The state before is kept until the end of the preview. */
int store_preview(struct store *store, struct vm *vm, const struct preview_spec *spec, struct reason *why);
/* Keeps what is previewed; the state before is kept as a snapshot before-restore-TIME unless it equals its own or DISCARD. -EINVAL: none is open. */
int store_preview_commit(struct store *store, struct vm *vm, bool discard, struct reason *why);
int store_preview_undo(struct store *store, struct vm *vm, struct reason *why);
/* Preview of a snapshot and commit in one. */
int store_restore(struct store *store, struct vm *vm, const char *snapshot, bool discard, struct reason *why);

/* Bytes that the chains of its disks take in the store, and bytes that come back when it is deleted (see space.h). -ENODATA: not a managed VM's. */
int store_snapshot_space(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, uint64_t *ret_used, uint64_t *ret_unique);

/* --- jobs -------------------------------------------------------------------------------------------------------------- */

/* Names of the jobs, newline-separated; the text of one; asking one to end (-EPERM where that would lose a VM's data). */
int store_jobs(struct store *store, char **ret);
int store_job_text(struct store *store, const char *id, char **ret, size_t *ret_len);
int store_job_cancel(struct store *store, const char *id, struct reason *why);

#endif
