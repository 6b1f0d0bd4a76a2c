/* An image: one file that holds a disk, raw or qcow2, opened once and shared by everything that reads it.
 *
 * What an image says of itself (header, snapshot table) is parsed and checked when it is opened and doesn't change
 * afterwards. Images live in a cache, known by device and inode number; one that nobody uses stays open for a while
 * and is opened anew when its file has changed since. An image holds no lock: see view_lock(). */
#ifndef BLOCK_IMAGE_H
#define BLOCK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/reason.h"
#include "block/trust.h"

enum image_format {
	IMAGE_PROBE, /* not declared: found out from the content, and then it may not name further files (libvirt's rule) */
	IMAGE_RAW,
	IMAGE_QCOW2,
};

/* A row of the qcow2 snapshot table (specification, "Snapshots"). */
struct image_snapshot {
	char *id;   /* QEMU's numbering: "1", "2", … */
	char *name; /* the tag */
	int64_t date_sec;
	uint32_t date_nsec;
	uint64_t vm_clock_nsec;
	uint64_t virtual_size;
	uint64_t vm_state_size; /* bytes of RAM and device state; 0: none */
	uint64_t l1_offset;
	uint32_t l1_size;
};

struct image;       /* counted references: image_open, image_put */
struct image_cache; /* every open image, and the bounded caches of tables and decompressed clusters */

#define IMAGE_INDEX_BYTES (64u << 20)

/* TRUST is borrowed and outlives the cache. INDEX_BYTES bounds the collapsed index of all chains (index.h); 0: IMAGE_INDEX_BYTES. */
int image_cache_new(const struct trust *trust, size_t index_bytes, struct image_cache **ret);
void image_cache_free(struct image_cache *cache);
/* Lets go of every unused image whose file was deleted or has changed: an open descriptor would keep its space. */
void image_cache_trim(struct image_cache *cache);

/* The file has been changed by us: the image that is known for it stays with those who use it, and is never given out again. */
void image_cache_forget(struct image_cache *cache, dev_t dev, ino_t ino);

/* While it is ON we write into a file that views may have open, without changing what they read: its image stays current, and is given out
 * as before. Switching it off forgets it. -ENOMEM. */
int image_cache_expect_changes(struct image_cache *cache, dev_t dev, ino_t ino, bool on);

/* Opens the image NAME (relative to BASE_DIR, which may be NULL for an absolute name). -EUCLEAN: damaged.
 * -EOPNOTSUPP: encrypted, a feature we don't know, or a format we don't read. -EACCES: see trust_open(), and an
 * undeclared format that names a backing or data file. -ENOENT, -EIO. */
int image_open(struct image_cache *cache, const char *base_dir, const char *name, enum image_format format,
	       struct image **ret, struct reason *why);
void image_put(struct image *image);

/* Whether the file is still what was opened (same size and times, or changed by us). */
bool image_is_current(const struct image *image);
/* The same as far as this machine knows it: a server or disk that may not answer isn't asked. Good for what was changed here; under locks. */
bool image_seems_current(const struct image *image);

/* The same for who has it open and reads on: that it was given another owner, mode or name, which changes its ctime alone, doesn't count. */
bool image_is_unchanged(const struct image *image);

/* Whether the file still has SNAPSHOT, one of IMAGE's, as it was when it was opened. Reads the table. */
bool image_has_still(const struct image *image, const struct image_snapshot *snapshot);

/* Whether a writer has left it without clearing the dirty bit: its refcounts may lag (qcow2 specification, incompatible feature bit 0). */
bool image_is_dirty(const struct image *image);
const char *image_path(const struct image *image);
const struct stat *image_stat(const struct image *image); /* when it was opened */
enum image_format image_format(const struct image *image);
uint64_t image_virtual_size(const struct image *image); /* bytes, a multiple of 512 */
const char *image_backing_name(const struct image *image); /* as the header has it; NULL: none */
enum image_format image_backing_format(const struct image *image);
const char *image_data_path(const struct image *image); /* the external data file; NULL: none */
const struct stat *image_data_stat(const struct image *image); /* the same; NULL: none */

uint32_t image_nr_snapshots(const struct image *image);
const struct image_snapshot *image_snapshot(const struct image *image, uint32_t i);

/* By tag, or failing that by id, as QEMU does; -1: there is none. */
int image_find_snapshot(const struct image *image, const char *tag);

const char *image_format_name(enum image_format format); /* "raw", "qcow2" */
/* libvirt's and QEMU's name of a format; IMAGE_PROBE for NULL; -EOPNOTSUPP for one that we don't read. */
int image_format_parse(const char *name, enum image_format *ret);

#endif
