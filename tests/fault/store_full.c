/* Faults while disks are made to depend on nothing, as qcow2 and as raw files, in the store and in a pool, and while volumes of a pool are made, renamed and
 * removed: what the ledger says of the pool is true or too much, never too little, and what was there before stays.
 * limit: 120
 * nightly: 7200 */
#include <stdio.h>
#include <sys/stat.h>

#include "common/world.h"

static void prepare_vm(const char *dir)
{
	world_prepare(dir);
	do_clone("web", "base", "vm");
	do_write("vm", "vda.img", 2, 2, 3);
	do_snapshot("vm", "s1");
	do_write("vm", "vda.img", 3, 2, 4);
	do_flush("vm", "vda.img");
	world_prepared(false);
}

static void prepare_pool(const char *dir)
{
	char path[500];
	snprintf(path, sizeof path, "%s/pool", dir);
	mkdir(path, 0700);
	world_prepare(dir);
	world_prepared(false);
}

static void run_flatten(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_write("vm", "vda.img", 6, 1, 5);
	do_flatten("vm");
	do_jobs();
	do_write("vm", "vda.img", 7, 1, 6);
	do_flush("vm", "vda.img");
	world_end();
}

static void run_full(const char *dir, struct promise *promise)
{
	const struct disk_spec spec = {.mode = CLONE_FULL, .format = IMAGE_QCOW2};
	if (!world_begin(dir, promise))
		return;
	do_clone_with("vm", "s1", "new", &spec);
	do_write("new", "vda.img", 6, 1, 5);
	do_flush("new", "vda.img");
	do_jobs();
	world_end();
}

static void run_raw(const char *dir, struct promise *promise)
{
	const struct disk_spec spec = {.mode = CLONE_FULL, .format = IMAGE_RAW};
	if (!world_begin(dir, promise))
		return;
	world_hurry(); /* how far it is is noted at each piece */
	do_clone_with("vm", "s1", "new", &spec);
	do_write("new", "vda.img", 6, 1, 5);
	do_flush("new", "vda.img");
	do_jobs();
	do_write("new", "vda.img", 7, 1, 6);
	do_flush("new", "vda.img");
	world_end();
}

static void run_allocated(const char *dir, struct promise *promise)
{
	const struct disk_spec spec = {.allocation = ALLOCATION_FULL};
	if (!world_begin(dir, promise))
		return;
	do_clone_with("web", "inner", "new", &spec);
	do_jobs();
	world_end();
}

static void run_volumes(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	if (!do_disk("fast", "one.raw")) {
		do_write("fast", "one.raw", 3, 2, 5);
		do_flush("fast", "one.raw");
	}
	do_disk_rename("fast", "one.raw", "two.raw");
	do_close("fast", "two.raw");
	do_disk("fast", "three.qcow2");
	do_close("fast", "three.qcow2");
	do_disk_rename("fast", "three.qcow2", "four.qcow2");
	do_disk_remove("fast", "two.raw");
	do_disk_remove("fast", "four.qcow2");
	do_jobs();
	world_end();
}

/* A clone's disk in the pool, frozen and merged there. */
static void run_pool_disk(const char *dir, struct promise *promise)
{
	const struct disk_spec spec = {.pool = "fast"};
	if (!world_begin(dir, promise))
		return;
	do_clone_with("web", "base", "new", &spec);
	do_write("new", "vda.img", 6, 12, 5);
	do_snapshot("new", "s1");
	do_write("new", "vda.img", 7, 1, 6);
	do_flush("new", "vda.img");
	do_delete("new", "s1", SNAPSHOT_DROP);
	do_jobs();
	do_close("new", "vda.img");
	do_remove("new");
	world_end();
}

static void run_pool_raw(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	world_hurry(); /* how far it is is noted at each piece */
	do_volume("web", "base", "one.raw", (struct disk_spec){.mode = CLONE_FULL});
	do_volume("web", "base", "two.qcow2", (struct disk_spec){0});
	do_jobs();
	do_write("fast", "one.raw", 7, 1, 6);
	do_flush("fast", "one.raw");
	world_end();
}

static const struct scenario scenarios[] = {
	{"flatten", prepare_vm, run_flatten, world_check, world_restart},
	{"full", prepare_vm, run_full, world_check, world_restart},
	{"raw", prepare_vm, run_raw, world_check, world_restart},
	{"allocated", prepare_vm, run_allocated, world_check, world_restart},
	{"volumes", prepare_pool, run_volumes, world_check, world_restart},
	{"pool-disk", prepare_pool, run_pool_disk, world_check, world_restart},
	{"pool-raw", prepare_pool, run_pool_raw, world_check, world_restart},
};

int main(int argc, char **argv)
{
	static const char *const must[] = {"checkpoint/small file", "checkpoint gone", "full raw", "raw file begun", "raw file's name", "full raw exchange/rebase", "pool's ledger/small file", "pool's file", "reclaim/pool's part", "reclaim", NULL};
	return matrix_main(argc, argv, scenarios, sizeof scenarios / sizeof *scenarios, 16, world_must(must));
}
