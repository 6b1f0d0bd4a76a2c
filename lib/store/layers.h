/* The files in STORE/layers: their names, what lies beneath each, and which of them are still needed.
 *
 * A layer is needed while a managed VM's disk, now or in a snapshot, an open head, or another needed layer names it, and while an operation
 * that makes or uses it is under way (a pin). layers_sweep() unlinks the others. When at the start a table or a header couldn't be read,
 * nothing is ever unlinked: what looks unneeded may not be.
 *
 * A layer that is needed by exactly one other layer and by nobody else can be merged with it: see merge.h. */
#ifndef STORE_LAYERS_H
#define STORE_LAYERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/reason.h"
#include "block/head.h"
#include "store/layer_files.h"

struct store;
struct vm;

struct layer_row {
	struct layer_row *next; /* in its bucket */
	char name[LAYER_NAME_MAX];
	char beneath[LAYER_NAME_MAX]; /* a layer of the store; "": none, or a file from elsewhere */
	unsigned nr_pins;
	bool merging;	/* a merge is about to do away with it: nobody may begin to use it */
	bool spoiled;	/* what is above it is being written into it, or below it: it may never be read by itself again */
	bool dirty;	/* as it was found at the start */
	bool cancelled; /* the merge into it was cancelled, or can't be done */
	/* scratch of the sweep */
	bool needed;
	bool named;  /* by others than layers */
	bool is_head; /* the VM's disk now names it */
	bool kept;   /* for the end of a preview */
	bool elsewhere; /* other VMs need it */
	unsigned nr_names; /* of disks, now and in snapshots */
	unsigned nr_children;
	const struct layer_row *child; /* one of them */
	uint32_t vm_id; /* a VM that needs it; 0: none */
};

struct layers {
	struct layer_row **buckets;
	size_t nr_buckets, nr_rows;
	bool unknown; /* never unlink anything; rows may be missing */
	uint64_t nr_merges; /* that have changed chains */
};

/* --- layer_names.c ------------------------------------------------------------------------------------------------- */

/* A new name: UUID and ENDING (".qcow2", ".raw"). */
void layer_name_new(char *name, const char *ending);
/* The same in the directory that OTHER is in. */
void layer_name_beside(char name[LAYER_NAME_MAX], const char *other, const char *ending);
/* A file name for what is about to be called NAME, in its directory. */
void layer_temporary_name(char temporary[LAYER_NAME_MAX + 8], const char *name);

/* Whether NAME is one that layer_name_new() could have made, or a file's in a pool. */
bool layer_name_is_valid(const char *name);
/* Whether a file in STORE/layers is one of ours, which goes when no layer of the table has its name. */
bool layer_is_leftover_name(const char *name);

/* IMAGE_QCOW2, or IMAGE_RAW: the ending says it. */
enum image_format layer_format(const char *name);

/* Where a layer's file lies: NAME in DIRFD (-1: its pool isn't there), which is the directory DIR. Borrowed. */
struct layer_place {
	int dirfd;
	const char *name;
	const char *dir;
};
struct layer_place layer_place(const struct store *store, const char *name);
bool layers_share_dir(const char *a, const char *b);

/* The path of the layer NAME; the caller frees. NULL: memory is out. */
char *layer_path(const struct store *store, const char *name);

/* Whether REAL_PATH is a layer; its NAME then. */
bool layer_of_path(const struct store *store, const char *real_path, char name[LAYER_NAME_MAX]);

/* How the header of LAYER names the file REAL_PATH: relatively where both lie in one directory or move together (both below SOURCE, or below the directory
 * that holds the store), else absolutely. The caller frees. -ENAMETOOLONG: longer than qcow2 allows. */
int layer_backing_name(struct store *store, const char *layer, const char *real_path, char **ret, struct reason *why);

/* --- layers.c --------------------------------------------------------------------------------------------------------- */

/* Enters a layer into the table, pinned; BENEATH NULL: no layer of the store. -ESTALE: BENEATH has gone, or is about to. */
int layers_add(struct store *store, const char *name, const char *beneath);
/* The same. -EEXIST: another layer has the name, which in a pool somebody chose. */
int layers_add_new(struct store *store, const char *name, const char *beneath);
/* Keeps a layer that is in the table; -ESTALE: it isn't any more, or is being merged with what needs it. */
int layers_pin(struct store *store, const char *name);
void layers_unpin(struct store *store, const char *name);
void layers_set_beneath(struct store *store, const char *name, const char *beneath);

/* Makes an overlay, pinned and stable (but for the directory), under NAME, or, where that is "", under a new one beside BENEATH or in STORE/layers, which
 * is put there. BENEATH: the layer of the store that SPEC's backing file is, or NULL. Where SPEC names no backing file, BENEATH is named. */
int layer_create(struct store *store, const struct overlay_spec *spec, const char *beneath, const struct layer_owner *owner,
		 char name[LAYER_NAME_MAX], struct reason *why);

/* Makes the directory of a layer stable: what lies in it keeps its name. */
int layer_sync_dir(struct store *store, const char *name, struct reason *why);
/* overlay_settle() of a layer, overlay_allocated(), image_open(). */
int layer_settle(struct store *store, const char *name, struct overlay_facts *ret, struct reason *why);
int layer_allocated(struct store *store, const char *name, uint64_t *ret_bytes);
int layer_open_image(struct store *store, const char *name, struct image **ret, struct reason *why);

/* Takes the row out of the table; the file stays. */
void layers_forget(struct store *store, const char *name);

/* Unlinks a layer that was made but isn't going to be used after all, and forgets it. */
void layer_abandon(struct store *store, const char *name);
/* After an operation failed: abandons the layer, but for one that a vm.xml or a header may name all the same (TRIED), which is only forgotten:
 * the next start knows. */
void layer_drop(struct store *store, const char *name, bool tried);

#define OPEN_TRIES 3 /* of a chain that is written into while it is opened */

/* view_open() of a chain that may go through layers of the store: a merge doesn't get in between. */
int layers_open_view(struct store *store, const struct disk_source *source, struct view **ret, struct reason *why);
/* The same, locked, with all files as they are now. -EBUSY: see view_lock(); or they don't stop changing. */
int layers_open_locked(struct store *store, const struct disk_source *source, struct view **ret, struct reason *why);
/* What lies beneath the layer NAME, by its header; NULL: nothing. */
int layers_open_beneath(struct store *store, const char *name, struct view **ret, struct reason *why);

/* Learns, at the start, what lies beneath the layers that the VMs use. */
int layers_load(struct store *store, struct reason *why);

/* At the start: makes stable what layers_load() has read in the headers. */
int layers_settle(struct store *store);

/* After somebody let go of a layer: unlinks what nobody needs any more, and plans the merges of what only one still needs. */
void layers_sweep(struct store *store);
/* The first of these alone. */
void layers_unlink_unneeded(struct store *store);

/* Who needs a layer. */
struct layer_use {
	char name[LAYER_NAME_MAX], beneath[LAYER_NAME_MAX];
	char child[LAYER_NAME_MAX]; /* one of them; "": none */
	unsigned nr_names; /* of disks, now and in snapshots */
	unsigned nr_children;
};

/* All layers that are needed; the caller frees. */
int layers_list_uses(struct store *store, struct layer_use **ret, size_t *ret_nr);

/* The part of a chain that is a VM's own: from the top down, the layers that it names or needs alone. (A raw one it must name: what a job has
 * copied for it goes on to where it is wanted.) */
struct layer_own {
	char bottom[LAYER_NAME_MAX]; /* the last of these */
	char beneath[LAYER_NAME_MAX]; /* a layer of the store, which isn't one of these; "": its header knows */
	bool is_head;		     /* the bottom is the VM's disk now */
	bool kept;		     /* for the end of a preview */
};

/* layer_own.c: of the chain whose top is NAME. -ENOENT: there is no such layer, or it isn't VM's. */
int layers_find_own(struct store *store, uint32_t vm_id, const char *name, struct layer_own *ret);
/* Whether NAME is in that part of the chain whose top is TOP. */
bool layers_is_own(struct store *store, uint32_t vm_id, const char *top, const char *name);

/* Layers that were found marked dirty and aren't a VM's disk now, which is repaired when it is opened. The caller frees. */
struct dirty_layer {
	char name[LAYER_NAME_MAX];
	uint32_t vm_id; /* a VM that needs it */
};
int layers_list_dirty(struct store *store, struct dirty_layer **ret, size_t *ret_nr);

/* Layers one over the other that can become one: names[0] is needed by others too, the rest only by the one above. */
struct layer_run {
	char (*names)[LAYER_NAME_MAX]; /* top first */
	size_t nr;
	char below[LAYER_NAME_MAX]; /* what lies beneath the last; "": no layer of the store */
	uint32_t vm_id; /* a VM that needs the first */
	bool is_head;	/* the first is that VM's disk now */
};

/* Every run that there is, but for those that are at work, and for those whose merge was cancelled. */
int layers_find_runs(struct store *store, struct layer_run **ret, size_t *ret_nr);
/* The run with NAME at its top, which stays: it is pinned, the rest is marked as about to go. -ENOENT: there is none. */
int layers_begin_run(struct store *store, const char *name, struct layer_run *ret);
/* The run from NAME, a VM's disk now, down to the raw LAST, which only that disk needs. -ENOENT: that isn't so. */
int layers_begin_raw_run(struct store *store, const char *name, const char *last, struct layer_run *ret);
/* Room for one more in RUN. */
int layers_reserve_run(struct layer_run *run);
/* What the top was is MOVED now, which was added with a pin; a new file that lies over it has the top's name. There is room. */
void layers_grow_run(struct store *store, struct layer_run *run, const char *moved);
/* NAME, the last of a run, is a VM's disk by itself now: it may be read. */
void layers_become_top(struct store *store, const char *name);
/* The layers below the top, down to names[INTO], are going to be written to. */
void layers_spoil_run(struct store *store, const struct layer_run *run, size_t into);
/* Whether the top still lies over the rest. */
bool layers_run_is_current(struct store *store, const struct layer_run *run);
/* names[INTO] lies over what the run lay over now: what is below it is no longer needed. With 0 the top does. */
void layers_close_run(struct store *store, const struct layer_run *run, size_t into);
/* Changes when a chain becomes shorter. */
uint64_t layers_nr_merges(struct store *store);
void layers_end_run(struct store *store, struct layer_run *run);
void layer_run_done(struct layer_run *run);
/* Nothing is unlinked any more. */
void layers_keep_all(struct store *store);
/* No merge with NAME at its top until layers_resume_runs(), or the next start. */
void layers_cancel_run(struct store *store, const char *name);
/* A snapshot of VM was deleted: what was cancelled in its chains is merged with that. */
void layers_resume_runs(struct store *store, const struct vm *vm);

/* At the start: unlinks every file of ours, in STORE/layers and in the pools, that isn't in the table, nor is what a disk shall become. */
void layers_clear_leftovers(struct store *store);
/* Whether a disk of any VM, now or in a snapshot, is NAME. */
bool layers_is_named(struct store *store, const char *name);
/* Whether NAME is in the table, or what a disk of any VM, now or in a snapshot, shall become. */
bool layers_is_wanted(struct store *store, const char *name);
/* Takes NAME out of the table, if it is there, for the caller to unlink; false: a layer lies over it, or somebody uses it. */
bool layers_take_unused(struct store *store, const char *name);

void layers_done(struct layers *layers);

#endif
