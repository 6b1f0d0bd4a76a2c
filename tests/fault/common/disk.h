/* The disk under a test of faults: everything that the library and the test do to files below one directory goes through here (the calls
 * are wrapped at the link, see FAULT_WRAPS in the Makefile), is counted, can fail, can be the last thing that the process does, and is
 * remembered, so that the directory can be made again as a power cut could have left it.
 *
 * A *step* is one such call that changes something: a write, a sync, a truncation, an allocation or a hole, a file or directory made, renamed, linked,
 * unlinked; FICLONERANGE and copy_file_range. Reads are counted apart. Each step has a name, told by the functions on its stack (struct step_name):
 * "refcounts", "L2 tables", "freeze: new overlay". A step on whose stack no named function is has the name "unnamed", which fails the test: whoever
 * adds a write path names it here. */
#ifndef FAULT_DISK_H
#define FAULT_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Of the functions on a step's stack the innermost that is in the table names it. STEP may depend on the call: "sync" or "write" is put behind it
 * by disk_step_name(). The table ends with {NULL}. */
struct step_name {
	const char *function, *step;
};
extern const struct step_name step_names[]; /* tests/fault/common/steps.c */

enum fault_kind {
	FAULT_NONE,
	FAULT_EIO,	/* the step does nothing and says EIO */
	FAULT_EIO_LATE, /* the step is done and says EIO all the same */
	FAULT_ENOSPC,
	FAULT_SHORT,	/* half of a write is done, and said to be; other steps: EIO */
	FAULT_KILL,	/* the process ends before the step, with status DISK_KILLED */
	FAULT_KILL_HALF, /* after half of a write */
	FAULT_READ_EIO, /* of the reads, the Nth */
	NR_FAULT_KINDS
};
#define DISK_KILLED 99
extern const char *const fault_kind_names[NR_FAULT_KINDS];

/* What happens below DIR (real) is this disk's, from now on; the rest of the world isn't touched. Once in a process. */
void disk_watch(const char *dir);

/* The step with number NTH (the first is 0) from now on fails as KIND says; with FOR_GOOD all later ones too (for ENOSPC: those that need space;
 * syncs, holes, unlinks and renames go on). */
void disk_arm(enum fault_kind kind, uint64_t nth, bool for_good);
void disk_disarm(void);
uint64_t disk_nr_steps(void); /* since disk_arm */
uint64_t disk_nr_reads(void);
/* Whether the armed fault has happened, and at which step. The name holds until disk_arm. */
bool disk_struck(const char **ret_step_name);

/* Power cuts. From disk_record() on each step is remembered, with its data and in the order in which it happened. */
void disk_record(void);
uint64_t disk_nr_recorded(void);
const char *disk_recorded_name(uint64_t nr);
/* Makes TO (which isn't there) the directory as a cut before the recorded step CUT could have left it: what was there at disk_record(); all that a
 * sync of its file, or for names of its directory, has made stable; and of the rest, by the dice of SEED, any part in any order, data torn at 512 bytes.
 * A rename is whole or not at all. */
void disk_rebuild(const char *to, uint64_t cut, unsigned seed);

#endif
