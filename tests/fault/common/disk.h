/* The disk under a test of faults: everything that the library and the test do to files below one directory goes through here (the calls
 * are wrapped at the link, see FAULT_WRAPS in the Makefile), is counted, can fail, can be the last thing that the process does, and is
 * remembered, so that the directory can be made again as a power cut could have left it.
 *
 * A *step* is one such call that changes something: a write, a sync, a truncation, an allocation or a hole, a file or directory made, renamed, linked,
 * unlinked; FICLONERANGE and copy_file_range. Reads are counted apart. Each step has a name, told by the functions on its stack (struct step_name):
 * "refcounts: write", "L2 tables: write", "new overlay: create": what the table says, and the kind of call. A step on whose stack no named function is has the name "unnamed", which fails the test: whoever
 * adds a write path names it here. */
#ifndef FAULT_DISK_H
#define FAULT_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Of the functions on a step's stack the innermost that is in the table names it; "file.c:function" where more than one file has a function of that
 * name. Static and inlined functions count. A STEP with / at its end is put before the name that the rest of the stack gives: "merge push/data".
 * The table ends with {NULL}. */
struct step_name {
	const char *function, *step;
};
extern const struct step_name step_names[]; /* tests/fault/common/steps.c */

enum fault_kind {
	FAULT_NONE,
	FAULT_EIO,	/* the step does nothing and says EIO */
	FAULT_EIO_LATE, /* the step is done and says EIO all the same */
	FAULT_ENOSPC,
	FAULT_ENOSPC_SYNC, /* of a sync: that there was space turns out only now (a thin pool, NFS) */
	FAULT_SHORT,	/* half of a write is done, and said to be; other steps: EIO */
	FAULT_KILL,	/* the process ends before the step, with status DISK_KILLED */
	FAULT_KILL_HALF, /* after half of a write */
	FAULT_READ_EIO, /* of the reads, the Nth */
	NR_FAULT_KINDS
};
#define DISK_KILLED 99
extern const char *const fault_kind_names[NR_FAULT_KINDS];

/* What outlives a process: a parent that wants to know calls it before its children disk_watch(). */
void disk_init(void);

/* What happens below DIR (real) is this disk's, from now on; the rest of the world isn't touched. Once in a process. */
void disk_watch(const char *dir);
void disk_leave(void);

/* FICLONERANGE works (by copying), as on a filesystem that shares blocks; else it is -EOPNOTSUPP, and no step. */
void disk_allow_clones(void);

/* Who looks at the clock finds it SECONDS later each time. */
void disk_hurry(unsigned seconds);

/* The step with number NTH (the first is 0) from now on fails as KIND says; with FOR_GOOD all later ones too (for ENOSPC: those that need space;
 * syncs, holes, unlinks and renames go on). */
void disk_arm(enum fault_kind kind, uint64_t nth, bool for_good);
void disk_disarm(void);
uint64_t disk_nr_steps(void); /* since disk_arm */
uint64_t disk_nr_reads(void);
/* Step NR's since disk_arm; NULL: it wasn't there. */
const char *disk_step_name(uint64_t nr, bool *ret_needs_space);
/* Whether the armed fault has happened, and at which step ("unnamed" for a read). */
bool disk_struck(const char **ret_step_name);

/* Power cuts. From disk_record() on each step is remembered, with its data and in the order in which it happened. */
void disk_record(void);
uint64_t disk_nr_recorded(void);
const char *disk_recorded_name(uint64_t nr);
/* Makes TO (which isn't there) the directory as a cut before the recorded step CUT could have left it: what was there at disk_record(); all that a
 * sync of its file, or for names of its directory, has made stable; and of the rest, by the dice of SEED, any part in any order, data torn at 512 bytes.
 * A rename is whole or not at all. TO.numbers says which file is which: for each a line with the inode number that it has there and the one that it had. */
void disk_rebuild(const char *to, uint64_t cut, unsigned seed);
/* At the step with number NTH (as disk_arm counts) the power goes: what could be left is put into TO0, TO1 and so on, and the process ends with status
 * DISK_KILLED. Whatever else is armed. NR_SYNCS, if it isn't 0: at that sync after the armed fault. */
#define DISK_CUTS 6u /* at most */
#define DISK_AFTER_UNLINK UINT32_MAX /* as NR_SYNCS: at the first sync behind the next unlink */
void disk_arm_cut(uint64_t nth, unsigned nr_syncs, const char *to, unsigned seed);
/* A process that ends by FAULT_KILL leaves another one, which does AGAIN(CTX) once the killed one is gone, its locks with it: the page cache has all that
 * was done, nothing fails, and what is done is remembered behind what was. AGAIN calls disk_arm_cut(); if it comes to its end, the power goes there. The
 * process becomes a child of the next subreaper, and has of the killed one its memory, whose threads and open files are gone. */
void disk_live_again(void (*again)(void *ctx), void *ctx);
/* The bytes, names, links and times below FROM, made again in TO, which isn't there. */
void disk_copy_tree(const char *from, const char *to);

#endif
