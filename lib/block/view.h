/* A view: a frozen chain of images read as one flat disk.
 *
 * A chain is the layers of one disk at one moment, top first. A layer is an image in its active state or, for the top
 * one only, one of its internal snapshots. Depth is not limited and not recursive. Reads are safe from any number of threads. */
#ifndef BLOCK_VIEW_H
#define BLOCK_VIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/reason.h"
#include "block/access.h"
#include "block/image.h"

/* What the user named: the top image of a chain, and one of its internal snapshots or NULL. Strings are borrowed
 * by the functions that take it. */
struct disk_source {
	const char *path; /* absolute */
	enum image_format format;
	const char *snapshot; /* tag or id of an internal snapshot; NULL: the active state */
};

enum extent_kind {
	EXTENT_DATA, /* bytes at host_off of a file */
	EXTENT_ZERO, /* reads as zeros, takes no space */
	EXTENT_COMPRESSED,
	EXTENT_UNALLOCATED, /* of one layer: look below; a view never answers this */
};

/* A run of guest bytes that are all of one kind. */
struct extent {
	uint64_t guest_off;
	uint64_t len;
	enum extent_kind kind;
	struct image *image; /* borrowed from the view; the file that has the bytes; NULL for zeros */
	uint64_t host_off;   /* EXTENT_DATA: of the first byte. EXTENT_COMPRESSED: of the compressed cluster */
	uint32_t host_len;   /* EXTENT_COMPRESSED: its length, at most */
	uint32_t cluster_off; /* EXTENT_COMPRESSED: where guest_off lies in the cluster */
};

struct view; /* counted references */

/* Opens the whole chain under SOURCE. Errors as image_open's; -EUCLEAN also for a chain that comes back to itself. */
int view_open(struct image_cache *cache, const struct disk_source *source, struct view **ret, struct reason *why);

/* Opens TOP alone and puts it over the layers of BELOW (NULL: none): the caller vouches that this is what its header names. The chain
 * isn't walked by name. */
int view_open_over(struct image_cache *cache, const struct disk_source *top, struct view *below, struct view **ret, struct reason *why);

/* A view of the layers below the active state of IMAGE: its backing chain. RET is NULL when it has none. */
int view_open_backing(struct image_cache *cache, struct image *image, struct view **ret, struct reason *why);
struct view *view_ref(struct view *view);
void view_put(struct view *view);

uint64_t view_virtual_size(const struct view *view);
size_t view_depth(const struct view *view);
struct image *view_layer(const struct view *view, size_t i); /* borrowed; 0 is the top */
const struct image_snapshot *view_snapshot(const struct view *view); /* of the top layer; NULL: its active state */

/* Two views that read the same layers at the same states. */
bool view_equal(const struct view *a, const struct view *b);

/* Whether the files still hold what they did when the view was opened, so that what was read and mapped up to now is what they hold. Who uses QEMU's
 * locks can't change them while the view has its own; others can. -ESTALE: one was written to, or the internal snapshot has gone. */
int view_check(struct view *view);

/* The first extent at GUEST_OFF, at most LEN bytes long. Beyond the end: zeros. Errors as view_read's. */
int view_map(struct view *view, uint64_t guest_off, uint64_t len, struct extent *ret);

/* The first extent of the top NR_LAYERS alone; EXTENT_UNALLOCATED where none of them has anything. Behind the end of one of them: zeros, since
 * it hides what is longer below it. */
int view_map_top(struct view *view, size_t nr_layers, uint64_t guest_off, uint64_t len, struct extent *ret);

/* The first extent of what lies beneath the top NR_LAYERS: data or zeros. */
int view_map_beneath(struct view *view, size_t nr_layers, uint64_t guest_off, uint64_t len, struct extent *ret);

/* The descriptor that an EXTENT_DATA's host_off counts in; borrowed from the view. */
int extent_fd(const struct extent *extent);

/* Whether B continues A in the same file, so that they can be read, or shared, as one; or zeros go on. */
bool extent_continues(const struct extent *a, const struct extent *b);

/* Fills BUF; what lies beyond the virtual size reads as zeros. -EUCLEAN: a table or a cluster is damaged. -ESTALE: see view_check(), which is asked
 * afterwards, though not for every few bytes. -EIO. */
int view_read(struct view *view, void *buf, size_t len, uint64_t guest_off);

/* Bytes that aren't holes. Exact where the tables are small enough to walk at once, else what the files take,
 * never more than the virtual size. */
int view_allocated(struct view *view, uint64_t *ret_bytes);

/* Reads the RAM state of the internal snapshot that the view shows, LEN bytes at OFF of vm_state_size. */
int view_read_vmstate(struct view *view, void *buf, size_t len, uint64_t off);

void view_access(const struct view *view, struct access *ret);

/* Takes QEMU's image locks for reading on every layer, while somebody has the view open as a file: consistent read, and
 * nobody may write or resize. The top of an internal snapshot is only marked as read, as qemu-img -U would: its VM may
 * be running. -EBUSY: somebody writes to one of them. -ESTALE: we have written into one, or found it changed, since the view was opened: open
 * it again. Calls nest, of which the outermost alone can say that; each is undone by view_unlock(). */
int view_lock(struct view *view, struct reason *why);
void view_unlock(struct view *view);

/* Whether a locked view, but BUT's one lock, reads FILE and lacks one of the NR files OVER: what these hold would show in it if it were written into FILE. A
 * view goes on with the files that it was opened with, also where its chain has become another one since. */
bool views_read_without(struct image_cache *cache, const struct view *but, const struct stat *file, const struct stat *over, size_t nr);

#endif
