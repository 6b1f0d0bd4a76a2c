/* Faults while snapshots are made and deleted, while what they leave is merged, and while a VM goes back to them: each state holds what it should, before and
 * after, and nothing that is gone comes back.
 * limit: 150
 * nightly: 7200 */
#include "common/world.h"

/* s1 < s2 < s3 < now, each with something of its own; MUCH: of s2, the most. */
static void prepare_chain(const char *dir, bool much, bool empty_top)
{
	world_prepare(dir);
	do_clone("web", "base", "vm");
	do_write("vm", "vda.img", 0, 2, 3);
	do_snapshot("vm", "s1");
	do_write("vm", "vda.img", 1, much ? 16 : 2, 4);
	do_snapshot("vm", "s2");
	do_write("vm", "vda.img", 3, 2, 5);
	do_snapshot("vm", "s3");
	if (!empty_top)
		do_write("vm", "vda.img", 4, 2, 6);
	do_flush("vm", "vda.img");
	world_prepared(false);
}

static void prepare_pull(const char *dir)
{
	prepare_chain(dir, false, false);
}

static void prepare_push(const char *dir)
{
	prepare_chain(dir, true, false);
}

static void prepare_idle(const char *dir)
{
	prepare_chain(dir, true, true);
}

static void prepare_two(const char *dir)
{
	world_prepare(dir);
	do_create("vm");
	do_disk("vm", "vda.img");
	do_disk("vm", "vdb.img");
	do_write("vm", "vda.img", 0, 2, 3);
	do_write("vm", "vdb.img", 1, 2, 4);
	world_prepared(false);
}

static void run_writes(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_write("vm", "vda.img", 8, 2, 7);
	do_flush("vm", "vda.img");
	do_discard("vm", "vda.img", 1, 3);
	do_write("vm", "vda.img", 9, 1, 8);
	do_flush("vm", "vda.img");
	do_write("vm", "vda.img", 10, 1, 9);
	do_close("vm", "vda.img");
	world_end();
}

/* One open, one not. */
static void run_snapshot(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_write("vm", "vda.img", 1, 2, 7);
	do_snapshot("vm", "s1");
	do_write("vm", "vda.img", 2, 2, 8);
	do_flush("vm", "vda.img");
	do_snapshot_of("vm", "s2", "vda.img");
	do_write("vm", "vda.img", 3, 1, 9);
	do_write("vm", "vdb.img", 1, 1, 10);
	do_flush("vm", "vdb.img");
	world_end();
}

/* Frozen ones alone: s2 goes, and s1. */
static void run_delete(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_delete("vm", "s2", SNAPSHOT_DROP);
	do_jobs();
	do_delete("vm", "s1", SNAPSHOT_MERGE);
	do_jobs();
	world_end();
}

/* The disk of now takes part, while it is written to. */
static void run_delete_head(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_write("vm", "vda.img", 5, 1, 7);
	do_flush("vm", "vda.img");
	do_delete("vm", "s3", SNAPSHOT_DROP);
	do_jobs();
	do_write("vm", "vda.img", 6, 1, 8);
	do_flush("vm", "vda.img");
	do_delete("vm", "s2", SNAPSHOT_DROP);
	do_jobs();
	do_write("vm", "vda.img", 7, 1, 9);
	do_flush("vm", "vda.img");
	world_end();
}

static void run_delete_idle(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_delete("vm", "s3", SNAPSHOT_DROP);
	do_delete("vm", "s2", SNAPSHOT_DROP);
	do_jobs();
	world_end();
}

/* s3 takes the place of s2: the VM goes on from s1. */
static void prepare_fork(const char *dir)
{
	world_prepare(dir);
	do_clone("web", "base", "vm");
	do_write("vm", "vda.img", 0, 2, 3);
	do_snapshot("vm", "s1");
	do_write("vm", "vda.img", 1, 3, 4);
	do_snapshot("vm", "s2");
	do_write("vm", "vda.img", 2, 3, 5);
	do_snapshot("vm", "s3");
	do_close("vm", "vda.img");
	do_restore("vm", "s1", true);
	do_jobs();
	world_prepared(false);
}

static void run_merge_force(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_delete("vm", "s3", SNAPSHOT_MERGE_FORCE);
	do_jobs();
	world_end();
}

/* Something is written first: the state before equals no snapshot. */
static void run_preview(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_preview("vm", "s2");
	do_write("vm", "vda.img", 12, 1, 7);
	do_flush("vm", "vda.img");
	do_close("vm", "vda.img");
	do_undo("vm");
	do_preview("vm", "s1");
	do_commit("vm", false);
	do_jobs();
	world_end();
}

static void run_restore(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_restore("vm", "s2", false);
	do_write("vm", "vda.img", 12, 1, 7);
	do_flush("vm", "vda.img");
	do_close("vm", "vda.img");
	do_restore("vm", "s1", true);
	do_jobs();
	world_end();
}

static const struct scenario scenarios[] = {
	{"writes", prepare_pull, run_writes, world_check, world_restart},
	{"snapshot", prepare_two, run_snapshot, world_check, world_restart},
	{"delete-pull", prepare_pull, run_delete, world_check, world_restart},
	{"delete-push", prepare_push, run_delete, world_check, world_restart},
	{"delete-head", prepare_push, run_delete_head, world_check, world_restart},
	{"delete-head-pull", prepare_pull, run_delete_head, world_check, world_restart},
	{"delete-idle", prepare_idle, run_delete_idle, world_check, world_restart},
	{"merge-force", prepare_fork, run_merge_force, world_check, world_restart},
	{"preview", prepare_pull, run_preview, world_check, world_restart},
	{"restore", prepare_pull, run_restore, world_check, world_restart},
};

int main(int argc, char **argv)
{
	static const char *const must[] = {"new overlay/overlay creation", "freeze/directory", "freeze/refcounts", "freeze/close", "snapshot's description/small file", "snapshot's description gone", "commit/small file", "merge pull", "merge pull/rebase", "merge push/data", "merge: overlay on top/overlay creation", "merge: exchange", "reclaim", NULL};
	return matrix_main(argc, argv, scenarios, sizeof scenarios / sizeof *scenarios, 22, world_must(must));
}
