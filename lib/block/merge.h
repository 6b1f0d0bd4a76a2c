/* Merging layers: what a job needs to make a chain shorter without changing a byte of what anybody reads.
 *
 * Pull: a head D over U1..Uk over B gets what U1..Uk have and it lacks (head_pull), and then names B (head_rebase). D may be live, or a
 * frozen layer that was opened with head_open_frozen.
 * Push: what C and U1..Uk have is written into the frozen D beneath them (head_absorb); then D takes C's place under C's name.
 *
 * While a frozen layer is written to, image_cache_expect_changes() is on for it: whoever reads through it must not take it for changed. */
#ifndef BLOCK_MERGE_H
#define BLOCK_MERGE_H

#include "block/head.h"

/* As head_open, for a frozen layer that views of this process have open and locked: only the locks of a reader are taken, which go with
 * theirs. -EBUSY: another program writes to it. Who calls it sees to it that nobody else does. */
int head_open_frozen(int dirfd, const char *name, const char *path, struct view *below, struct head **ret, struct reason *why);

/* The same for a raw file or block device. */
int head_open_raw_frozen(int dirfd, const char *name, const char *path, struct head **ret, struct reason *why);

/* To be called before head_absorb(), which changes what the file shows to who reads it by itself: until the head is closed nobody else begins
 * to read it who takes QEMU's locks. Changes are expected. -EBUSY: another program reads it; the head can only be closed then. */
int head_claim(struct head *head, struct image_cache *images, struct reason *why);

/* What the top NR_LAYERS of the view beneath have in [GUEST_OFF, +LEN) and the head lacks becomes the head's own, while others read and write
 * it: what they write in between stays. What lies behind the head's end is left alone. RET_STORED (may be NULL): bytes of data that it took.
 * A pull begins at GUEST_OFF 0, with LEN bytes or none, and goes on until head_rebase. -ESTALE: it wasn't begun with that NR_LAYERS, or
 * something else came beneath the head since (head_replace_below, a truncation to nothing): begin it again. */
int head_pull(struct head *head, size_t nr_layers, uint64_t guest_off, uint64_t len, uint64_t *ret_stored);

/* What the top NR_LAYERS of ABOVE have in [GUEST_OFF, +LEN), data or zeros, is written into INTO; what they lack is left as it is.
 * INTO may be raw. -EINVAL: ABOVE and INTO differ in size. */
int head_absorb(struct head *into, struct view *above, size_t nr_layers, uint64_t guest_off, uint64_t len, uint64_t *ret_stored);

/* Ends a pull of everything: durably names BACKING_NAME of FORMAT in the header (NULL: nothing), and puts VIEW (NULL: nothing) in the place of
 * the view beneath. VIEW reads as what lay beneath the pulled layers. Flushes first; a power cut leaves the old name or the new one. -ESTALE:
 * see head_pull. -ENAMETOOLONG. After another error the header may say either, and both are right. */
int head_rebase(struct head *head, struct view *view, const char *backing_name, enum image_format format);

/* The same without a pull: VIEW, which BACKING_NAME names, reads what BENEATH (NULL: nothing lies beneath) reads, and takes its place. A pull that was begun
 * is forgotten; what it has pulled stays. -ESTALE: something else lies beneath the head. */
int head_exchange_base(struct head *head, const struct view *beneath, struct view *view, const char *backing_name, enum image_format format);

#endif
