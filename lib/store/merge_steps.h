/* The steps of a merge: see merge.h. */
#ifndef STORE_MERGE_STEPS_H
#define STORE_MERGE_STEPS_H

#include "store/heads.h"
#include "store/jobs.h"
#include "store/layers.h"

struct merge {
	struct store *store;
	struct job *job;
	struct entry *entry; /* of the VM that uses the run's top */
	struct layer_run run;
	size_t into; /* which of the run takes up the others */
	bool whole; /* all that lies beneath the run's only layer, whosever it is, is pulled into it, which then lies over nothing */
	const char *source; /* merge_exchange_base(): what run.below is a copy of, by full_raw_describe() */
	bool into_raw; /* the destination is a raw file, which becomes the disk: vm.xml names it then */
	uint64_t nr_unflushed; /* bytes */
	size_t nr_pulled; /* layers, from what lies beneath the destination on */
	bool pull_only; /* nothing can take the top's place: the sizes differ, or somebody reads it by itself */
	struct head *dest; /* open, unless it is a head in use */
	struct stat dest_st; /* when it was opened */
};

/* Where two attempts see something else: the run changed meanwhile. */
#define MERGE_AGAIN (-EAGAIN)

/* Opens names[into], which nobody writes to, as the destination. */
int merge_open_dest(struct merge *m, struct reason *why);
/* Before the destination of a push is opened: whether some of us read it not through all that is to be pushed into it, as who has had a disk open since before
 * a job put it over something else. BENEATH_HEAD: what the run's head itself has locked; NULL: the run has none. -EBUSY, or MERGE_AGAIN: the next attempt
 * doesn't push. */
int merge_check_readers(struct merge *m, const struct view *beneath_head, struct reason *why);
/* Writes it back, stable and clean. */
int merge_close_dest(struct merge *m);

/* What an attempt that failed with ERR while it read VIEW ends with. -ESTALE is for jobs whose work nobody needs any more; here it is -EBUSY, and WHY names
 * the file that another program has changed, or MERGE_AGAIN where none was. */
int merge_view_error(struct view *view, int err, struct reason *why);

/* view_lock(), with that in the place of -ESTALE. */
int merge_lock_view(struct view *view, struct reason *why);

/* One piece of work; RET_STORED: bytes that were written. */
typedef int (*merge_fn)(struct merge *m, void *ctx, uint64_t guest_off, uint64_t len, uint64_t *ret_stored);
/* Calls FN for those pieces of the first SIZE bytes where the top NR_LAYERS of VIEW have anything. -ECANCELED: the job shall end. */
int merge_each(struct merge *m, struct view *view, size_t nr_layers, uint64_t size, merge_fn fn, void *ctx);

/* STORED more bytes were pulled into HEAD: those of a whole chain are made stable now and then, for they aren't pulled again then. */
int merge_flush_some(struct merge *m, struct head *head, uint64_t stored);
/* How many layers of BELOW, which lies beneath the destination, are to be pulled. */
void merge_plan_pull(struct merge *m, const struct view *below);
/* Pulls all that is below the destination into it, and lets it name what is below the run. */
int merge_pull(struct merge *m, struct reason *why);
/* The end of a pull: HEAD, into which all was pulled, gets what is below the run beneath it. OH: it is a head in use; its swap is held. */
int merge_rebase(struct merge *m, struct head *head, struct open_head *oh, struct reason *why);
/* Whether HEAD may lie over what is below the run already: an attempt before this one wrote that, and failed to hear so. */
bool merge_may_be_rebased(struct merge *m, struct head *head);
/* merge_rebase() for such a head. -EBUSY: it lies over something else. MERGE_AGAIN, too, where the run has become longer since that attempt, for the rest. */
int merge_rebase_again(struct merge *m, struct head *head, struct open_head *oh, struct reason *why);

/* Writes what names[FIRST] and the NR_LAYERS - 1 below it have into the destination. */
int merge_push(struct merge *m, size_t first, size_t nr_layers, struct reason *why);
/* The end of a push: the destination, closed, takes the name of the top, and looks like a file with OWNER. */
int merge_take_place(struct merge *m, const struct stat *owner, struct reason *why);

/* Gives the file NAME in DIRFD the owner, mode and time of ST. */
int merge_look_like(int dirfd, const char *name, const struct stat *st);
/* The same for the destination, closed, which others may be opening just now: they don't take it for changed by somebody else. */
int merge_look_like_top(struct merge *m, const struct stat *owner);

/* The run's only layer, which lies over nothing, gets all its space: a frozen one, and a VM's disk now. */
int merge_preallocate(struct merge *m, struct reason *why);
int merge_preallocate_head(struct merge *m, struct reason *why);

/* Calls FN for all of SIZE bytes, piece by piece, until it fails or the job shall end. */
int merge_each_piece(struct merge *m, uint64_t size, int (*fn)(void *ctx, uint64_t guest_off, uint64_t len), void *ctx);

/* The run's only layer lies over run.below, which reads the same, in the place of what it lay over: a frozen layer, and a VM's disk now. */
int merge_exchange_base(struct merge *m, struct reason *why);
int merge_exchange_head_base(struct merge *m, struct reason *why);

/* The same for an open HEAD; OH as in merge_rebase(). The VM's change lock is held. MERGE_AGAIN: no disk shall become run.below any more, or it
 * isn't a copy of what the head lies over. */
int merge_exchange(struct merge *m, struct head *head, struct open_head *oh, struct reason *why);

/* merge_head.c: the top of the run is a VM's disk now. */
int merge_head(struct merge *m, struct reason *why);

#endif
