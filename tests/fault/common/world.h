/* What a store is to hold, as a model, and a store that is driven with it: each operation is done to both. An operation that failed, or didn't come to its
 * end, may have been done or not: so there may be several worlds, of which the store must be one, wholly.
 *
 * A disk is NR_BLOCKS blocks; of each the model keeps the values that it may hold, as a set: NOW as whoever has the disk open sees it, STABLE as it may be
 * found after a restart. A sector holds one value (and says where it lies), never a mixture. */
#ifndef FAULT_WORLD_H
#define FAULT_WORLD_H

#include "matrix.h"
#include "store/store.h"

#define BLOCK	   32768u
#define NR_BLOCKS  32u
#define DISK_SIZE  (BLOCK * NR_BLOCKS)
#define DISKS_MAX  2
#define SNAPS_MAX  4
#define VMS_MAX	   4
#define WORLDS_MAX 16

struct disk_model {
	char file[24]; /* "": none */
	uint32_t now[NR_BLOCKS], stable[NR_BLOCKS];
};

struct state_model {
	char name[24], parent[24]; /* a '*' at the end stands for anything */
	struct disk_model disks[DISKS_MAX];
};

struct vm_model {
	char name[24]; /* "": none */
	int place;
	char current[24];
	struct state_model now;
	struct state_model saved; /* "": nothing is previewed */
	struct state_model snaps[SNAPS_MAX];
};

struct world {
	struct vm_model vms[VMS_MAX];
};

/* --- beginning and end ------------------------------------------------------------------------------------------------------- */

/* In prepare(): makes DIR/src with the images base.qcow2, and web.qcow2 over it, which is the found VM "web" with the snapshots "base" (external) and
 * "inner" (internal); opens the store. */
void world_prepare(const char *dir);
/* What is done from here on is without the jobs that it asks for. */
void world_halt(const char *dir);
/* The end of it: what was done so far is what each run starts from. KILLED: not closed, as if the daemon had been killed. */
void world_prepared(bool killed);

/* In run(): opens the store and starts it; false: that failed (which it may). */
bool world_begin(const char *dir, struct promise *promise);
/* From here on each look at the clock finds it some seconds later. */
void world_hurry(void);
/* After a fault everything goes on in the same process, and the store is the model's. Closes it. */
void world_end(void);

/* As a scenario's restart(): the daemon that comes after a killed one clears away, does the jobs, is looked at, and ends. */
void world_restart(const char *dir, const struct promise *promise);
/* As a scenario's check(). */
void world_check(const char *dir, const struct promise *promise, bool cut);

/* MUST where all cells are run; by day there is no time for all names of steps. */
const char *const *world_must(const char *const *must);

/* --- what can be done: 0 or a negative errno ----------------------------------------------------------------------------------- */

/* NAME: as found VMs, or managed ones, have it; SNAPSHOT NULL: as it is now. */
int do_clone(const char *from, const char *snapshot, const char *name);
int do_clone_with(const char *from, const char *snapshot, const char *name, const struct disk_spec *all);
int do_volume(const char *from, const char *snapshot, const char *volume, struct disk_spec spec);
int do_create(const char *name);
int do_remove(const char *name);
int do_rename(const char *name, enum vm_place place, const char *new_name);
int do_domain(const char *name);

/* Disks: of VM NAME, or of the pool when NAME is "pool". An open one stays open until it is closed. */
int do_open(const char *name, const char *file);
int do_disk(const char *name, const char *file); /* makes and opens it */
int do_write(const char *name, const char *file, unsigned block, unsigned nr_blocks, unsigned value);
int do_discard(const char *name, const char *file, unsigned block, unsigned nr_blocks);
int do_flush(const char *name, const char *file);
int do_close(const char *name, const char *file);
int do_copy(const char *from, const char *snapshot, const char *from_file, const char *name, const char *file);
int do_disk_remove(const char *name, const char *file);
int do_disk_rename(const char *name, const char *file, const char *new_file);

int do_snapshot(const char *name, const char *snapshot);
int do_snapshot_of(const char *name, const char *snapshot, const char *target); /* this disk alone */
int do_snapshot_rename(const char *name, const char *snapshot, const char *new_name);
int do_delete(const char *name, const char *snapshot, enum snapshot_delete how);
int do_preview(const char *name, const char *snapshot);
int do_commit(const char *name, bool discard);
int do_undo(const char *name);
int do_restore(const char *name, const char *snapshot, bool discard);
int do_flatten(const char *name);

/* Waits for the jobs; -EIO: one fails again and again. */
int do_jobs(void);

#endif
