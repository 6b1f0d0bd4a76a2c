/* The fault matrix: every scenario, stopped or failed at each of its steps in each way. For one cell the scenario's files are made as they were
 * at its beginning, a child process runs it with the fault armed, and another one opens what is left and looks whether every promise was kept. */
#ifndef FAULT_MATRIX_H
#define FAULT_MATRIX_H

#include "disk.h"

/* What a scenario has promised to its user so far, in memory that outlives its process. What the bytes mean is the scenario's business. */
struct promise {
	uint64_t step;	     /* of the disk when something was last promised; matrix_promised() sets it */
	unsigned char told[1 << 20];
};

struct scenario {
	const char *name;
	/* Makes what the run starts from, in the empty directory DIR: once. */
	void (*prepare)(const char *dir);
	/* Does the work. An error that the library reports is no failure: the run goes on as a user would, or ends. */
	void (*run)(const char *dir, struct promise *promise);
	/* In a process of its own, nothing failing any more: exit(1) with a line on stdout when a promise is broken. PROMISE is what
	 * matrix_promised() was told last before the end, however it came. CUT: by a power cut. */
	void (*check)(const char *dir, const struct promise *promise, bool cut);
	/* Does what the next start does, on the page cache as it is and in the memory of the run that was killed, of which nothing is used but PROMISE, what
	 * matrix_promised() was told last. It neither keeps nor makes promises: the power goes at some step of it, or at its end. exit(1) with a line on
	 * stdout when something fails. NULL: there is no such cell. */
	void (*restart)(const char *dir, const struct promise *promise);
};

/* Tells the world: all that is in *PROMISE now holds, and what it told before no longer need. */
void matrix_promised(struct promise *promise);

/* Of the cell that is run: its scenario, and dice that are the same ones each time with the same SEED. */
const struct scenario *matrix_scenario(void);
unsigned matrix_dice(void);

/* main() of a test: runs all cells of NR scenarios that fit into the time (all of them with NIGHTLY in the environment; else as many as fit
 * in about BUDGET seconds, evenly spread, begun at a place that SEED in the environment says), prints for each step name how often each kind of fault
 * struck it, and fails when a promise was broken, when a step has no name, or when a name in MUST (NULL-terminated) was never struck.
 * MUST has names with their kind of call ("refcounts: write") or without. NAME SCENARIO lists a scenario's steps; NAME SCENARIO KIND [NTH] runs its cells
 * of that kind (or "all"), or one, and leaves its directory there. */
int matrix_main(int argc, char **argv, const struct scenario *scenarios, size_t nr, unsigned budget, const char *const *must);

#endif
