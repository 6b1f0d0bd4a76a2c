/* Flat copies: what a view reads, in one raw file or block device. By shared extents (FICLONERANGE) where the filesystem has them, else copied inside
 * the kernel, or read and written where it must be (compressed, encrypted by another layout, unaligned); zeros become holes. */
#ifndef BLOCK_FILL_H
#define BLOCK_FILL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/reason.h"
#include "block/view.h"

struct fill_spec {
	uint64_t virtual_size; /* of the copy: larger than the view's, zeros at the end; smaller, cut off. 0: the view's */
	uint64_t from;	       /* everything before it is there already */
	bool preallocate;      /* all space is allocated, and stays so */
	/* For other threads to read and write; may be NULL. */
	atomic_uint_fast64_t *done, *total; /* bytes of data */
	atomic_bool *stop;		    /* asks it to end: -ECANCELED */
	/* Called now and then: all before OFF is stable. An error ends the work. NULL: nobody wants to know. */
	int (*checkpoint)(void *ctx, uint64_t off);
	void *ctx;
};

/* FD is a regular file of any length (it becomes what the disk is), or a block device that is large enough (-ENOSPC), whose old bytes are overwritten, with
 * zeros as well. Everything is stable when it returns 0. At most 64 MiB of memory, whatever the sizes. -ESTALE: see view_check(); what was copied is no
 * moment's content. */
int view_fill_raw(struct view *view, int fd, const struct fill_spec *spec, struct reason *why);

#endif
