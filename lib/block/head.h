/* A head: a writable qcow2 overlay and the view beneath it, or a raw file or block device with nothing beneath it.
 *
 * The overlay is standard qcow2 v3. New ones have 128 KiB clusters with 32 subclusters (extended L2), so that 4 KiB
 * written cost 4 KiB. All functions may be called from any number of threads, but open and close. */
#ifndef BLOCK_HEAD_H
#define BLOCK_HEAD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/reason.h"
#include "block/view.h"

/* What a new overlay file says in its header. */
struct overlay_spec {
	uint64_t virtual_size;
	const char *backing_name; /* NULL: none */
	enum image_format backing_format; /* IMAGE_RAW or IMAGE_QCOW2 when there is a backing file */
};

/* Writes a new, empty overlay under NAME in DIRFD (-EEXIST when it is there) and makes it stable; the directory is left
 * to the caller to sync. */
int overlay_create(int dirfd, const char *name, const struct overlay_spec *spec, mode_t mode);

/* The same in a block device, whose bytes are lost: they needn't be zeros. The header comes last. An overlay in a device never becomes longer than it: -ENOSPC;
 * nor another file: head_adopt is -EOPNOTSUPP, and after a truncation to nothing what lay beneath still does, hidden. Its clusters stay with the places
 * of the disk that they were given to, whatever is discarded. -EBUSY, -ENOTBLK. */
int overlay_create_in_device(int dirfd, const char *name, const char *path, const struct overlay_spec *spec, struct reason *why);

struct overlay_facts {
	struct stat st;
	uint64_t virtual_size;
	bool empty; /* by its tables nothing was ever written to it */
	bool has_backing;
};

/* Makes an overlay that nobody of us has open ready to be frozen: under QEMU's write locks, which are held meanwhile, it is repaired if it
 * was left dirty, and made stable. A clean one costs its header and L1 table alone. Errors as head_open's. */
int overlay_settle(int dirfd, const char *name, const char *path, struct overlay_facts *ret, struct reason *why);

/* The same for a raw file or block device (see head_open_raw); it is never EMPTY, since nothing tells. */
int raw_settle(int dirfd, const char *name, const char *path, struct overlay_facts *ret, struct reason *why);

/* Bytes of data that an overlay or a raw file holds, about: what it takes on its filesystem. Of a block device: its size. */
int overlay_allocated(int dirfd, const char *name, uint64_t *ret_bytes);

struct head;

/* Opens NAME in DIRFD (PATH: its full path, for messages) for writing, with the write locks of QEMU, over BELOW (the head
 * takes its own reference; NULL: nothing beneath). DIRFD must outlive the head. Here and wherever a head's file is named: it is a regular file, and no link;
 * or NAME is "", and DIRFD itself is the block device, open for reading and writing, of which the head takes a duplicate: which names may lead to a device
 * is for the caller to say, and with O_EXCL who mounts it, say, keeps us out, as we keep him. An image left dirty is repaired first.
 * -EBUSY: somebody else has it open. -EUCLEAN, -EOPNOTSUPP, -EIO, -ENOSPC. */
int head_open(int dirfd, const char *name, const char *path, struct view *below, struct head **ret, struct reason *why);

/* Who keeps a list of the directory's files says how a new one takes the place of the head's: TEMPORARY gives it a name that nothing has, TAKE_NAME renames it.
 * NAMES outlives the head. */
#define HEAD_TEMPORARY_MAX 300
struct head_names {
	int (*temporary)(const struct head_names *names, const char *name, char tmp[HEAD_TEMPORARY_MAX]);
	int (*take_name)(const struct head_names *names, const char *name, const char *tmp);
};
void head_set_names(struct head *head, const struct head_names *names);

/* Writes everything back, marks the file clean, makes it stable, and frees the head, whatever is returned. */
int head_close(struct head *head);

/* The same for a raw file or a block device, of which the bytes are the disk's, under QEMU's write locks for raw images. Nothing lies beneath it: head_adopt,
 * head_share, head_pull and head_rebase are -EOPNOTSUPP, and it is never blank nor untouched. A file's size is the disk's, in whole sectors when it is opened. A
 * device keeps its size: -ENOSPC beyond it, -EOPNOTSUPP for less. */
int head_open_raw(int dirfd, const char *name, const char *path, struct head **ret, struct reason *why);

/* Of a raw head, or an overlay without a backing file (else -EINVAL): gives every cluster of [GUEST_OFF, +LEN) its place in the file, and the file its space; what isn't
 * written yet goes on reading as zeros (qcow2: allocated clusters with the zero flag). While others read and write it. Space that is shared with another
 * file becomes its own. A discard gives space back, as ever. -ENOSPC, -EOPNOTSUPP (a raw file on a filesystem that can't allocate without writing). */
int head_preallocate(struct head *head, uint64_t guest_off, uint64_t len);

uint64_t head_virtual_size(struct head *head);
bool head_is_device(const struct head *head);
const struct stat *head_stat(struct head *head, struct stat *ret); /* of its file, now */
struct view *head_below(struct head *head); /* a new reference; NULL: none */

int head_read(struct head *head, void *buf, size_t len, uint64_t guest_off);

/* Grows the disk where it ends beyond it. What lies between the old end and GUEST_OFF becomes zeros. */
int head_write(struct head *head, const void *buf, size_t len, uint64_t guest_off);

/* Zeros [GUEST_OFF, +LEN) and gives the space back; doesn't grow the disk. */
int head_discard(struct head *head, uint64_t guest_off, uint64_t len);

/* Truncate: shrinking forgets what was cut off, growing adds zeros. */
int head_resize(struct head *head, uint64_t virtual_size);

/* Lets the raw file at TO_OFF share the first blocks of EXTENT, which is data of a view that the caller has locked; grows the disk. RET_LEN: how much was
 * shared. -EXDEV: there is no sharing between these two files. -EINVAL: these bytes can't be shared: they don't lie on whole blocks. */
int head_clone_extent(struct head *head, const struct extent *extent, uint64_t to_off, uint64_t *ret_len);

/* All that was written before the call is stable when it returns. */
int head_flush(struct head *head);

/* The first extent at GUEST_OFF: data or zeros. */
int head_map(struct head *head, uint64_t guest_off, uint64_t len, struct extent *ret);

/* Whether nothing was ever written to the overlay and nothing lies beneath it (it may have a size). */
bool head_is_blank(struct head *head);

/* Whether nothing was written to it since it was made, nor its size changed: it reads what lies beneath it. */
bool head_is_untouched(struct head *head);

/* Puts a blank head over VIEW: its file then names the backing file in SPEC, and the first virtual_size bytes of SPEC read as
 * VIEW's; a disk that was larger stays so, with zeros behind. From then on, writes that equal what VIEW has take no space.
 * Atomic: a new file renamed over the old one. */
int head_adopt(struct head *head, struct view *view, const struct overlay_spec *spec);

/* Makes [GUEST_OFF, +LEN) read what BENEATH, the view beneath, has there, without storing it; grows the disk. -ESTALE: another one lies
 * beneath by now, which needn't read the same, or layers of it are being pulled (merge.h). */
int head_share(struct head *head, const struct view *beneath, uint64_t guest_off, uint64_t len);

/* Puts VIEW, which reads the same as the one beneath, in its place (the head takes its own reference). */
void head_replace_below(struct head *head, struct view *view);

#endif
