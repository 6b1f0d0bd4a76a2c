/* What the steps are called: by the function on whose stack they happen, the innermost that is named here. */
#include <stddef.h>

#include "disk.h"

const struct step_name step_names[] = {
	/* lib/base */
	{"file_replace", "small file"},
	/* lib/block: the steps of head_priv.h's model */
	{"head_mark_dirty", "allocation"},
	{"pending_flush", "data"},
	{"write_run", "copy-on-write fill"},
	{"drop_subclusters", "hole"},
	{"give_space", "preallocation"},
	{"head_prealloc.c:write_space", "preallocation"},
	{"zero_cluster", "L2 tables (new)"},
	{"claim_space", "table space"},
	{"extend_file", "file's end"},
	{"write_new_tables", "L2 tables (new)"},
	{"write_known_tables", "L2 tables"},
	{"write_l1", "L1"},
	{"write_size", "virtual size"},
	{"write_set", "flush barrier"},
	{"write_l1_at", "L1 move"},
	{"write_blocks", "refcounts"},
	{"write_block", "refcounts"},
	{"switch_reftable", "refcount table move"},
	{"space_write", "refcount table"},
	{"repair", "repair/"},
	{"head.c:write_refcounts", "close"},
	{"head_close", "close"},
	{"write_name", "rebase"},
	{"write_pulled", "merge pull"},
	{"share_pulled", "merge pull"},
	{"head_absorb", "merge push/"},
	{"overlay_create", "overlay creation"},
	{"overlay_create_in_device", "overlay creation"},
	{"head_rebuild", "overlay exchange"},
	{"head.c:settle", "settling"},
	{"raw_write", "raw data"},
	{"raw_write_growing", "raw data"},
	{"raw_resize", "raw size"},
	{"raw_head_zero", "raw hole"},
	{"raw_write_back", "raw flush"},
	/* where these were inlined: the overlay's steps have names of their own */
	{"head_write", "raw data"},
	{"head_discard", "raw hole"},
	{"flush_for_all", "raw flush"},
	{"head_clone_extent", "raw clone"},
	/* lib/block/fill.c */
	{"copy_piece", "full raw"},
	{"view_fill_raw", "full raw"},
	{"flat_make", "flat copy"},
	/* what tests/fault/head.c does as the store does it */
	{"do_freeze", "freeze"},
	{"do_rebase", "layer deletion"},
	{"do_push", "merge push"},
	{NULL, NULL}};
