/* Faults at the start: of a store that isn't there yet, and of one whose daemon was killed in the middle of much, while the rest of that is cleared away. That
 * can be repeated however often it is interrupted, and takes nothing that is needed.
 * limit: 60
 * nightly: 7200 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/world.h"

static void put(const char *dir, const char *name, const char *text)
{
	char path[1000];
	snprintf(path, sizeof path, "%s/src/.vmsnapfs/%s", dir, name);
	FILE *f = fopen(path, "w");
	if (!f || fputs(text, f) < 0 || fclose(f) != 0)
		exit(1);
}

static void make(const char *dir, const char *name)
{
	char path[1000];
	snprintf(path, sizeof path, "%s/src/.vmsnapfs/%s", dir, name);
	if (mkdir(path, 0700) < 0 && access(path, F_OK) < 0)
		exit(1);
}

#define GONE "vms/.gone-0d3c2a44-7ef5-4a9c-8a55-2f1d6b0c9e11"
#define HALF "vms/1d3c2a44-7ef5-4a9c-8a55-2f1d6b0c9e11"

/* Snapshots that were deleted and not merged, a disk that was written to and not closed, a copy that wasn't made, and the rest of what was never committed. */
static void prepare_killed(const char *dir)
{
	world_prepare(dir);
	do_clone("web", "base", "vm");
	do_write("vm", "vda.img", 0, 2, 3);
	do_snapshot("vm", "s1");
	do_write("vm", "vda.img", 1, 8, 4);
	do_snapshot("vm", "s2");
	do_write("vm", "vda.img", 2, 2, 5);
	do_snapshot("vm", "s3");
	do_write("vm", "vda.img", 3, 2, 6);
	do_flush("vm", "vda.img");
	do_jobs();
	world_halt(dir); /* no job is done from here on */
	do_clone("web", "inner", "copy");
	do_flatten("copy");
	do_delete("vm", "s2", SNAPSHOT_DROP);
	do_delete("vm", "s3", SNAPSHOT_DROP);
	do_write("vm", "vda.img", 4, 2, 7);
	world_prepared(true);
	make(dir, "jobs");
	make(dir, GONE);
	make(dir, GONE "/snapshots");
	make(dir, HALF);
	put(dir, GONE "/vm.xml", "<vm/>");
	put(dir, GONE "/snapshots/2d3c2a44-7ef5-4a9c-8a55-2f1d6b0c9e11.xml", "<domainsnapshot/>");
	put(dir, HALF "/.vm.xml.tmp", "<vm");
	put(dir, "layers/3d3c2a44-7ef5-4a9c-8a55-2f1d6b0c9e11.qcow2", "");
	put(dir, "layers/4d3c2a44-7ef5-4a9c-8a55-2f1d6b0c9e11.raw.part", "half");
	put(dir, "jobs/4d3c2a44-7ef5-4a9c-8a55-2f1d6b0c9e11.raw.xml", "<fill/>");
	put(dir, "jobs/.4d3c2a44-7ef5-4a9c-8a55-2f1d6b0c9e11.raw.xml.tmp", "<fi");
}

static void run_start(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_jobs();
	do_write("vm", "vda.img", 5, 1, 8);
	do_flush("vm", "vda.img");
	world_end();
}

/* There is no store yet. */
static void prepare_nothing(const char *dir)
{
	char cmd[1000];
	world_prepare(dir);
	world_prepared(false);
	snprintf(cmd, sizeof cmd, "rm -r '%s/src/.vmsnapfs'", dir);
	if (system(cmd) != 0)
		exit(1);
}

static void run_first(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_clone("web", "base", "new");
	do_write("new", "vda.img", 1, 1, 3);
	do_flush("new", "vda.img");
	do_snapshot("new", "s1");
	world_end();
}

static void prepare_pool(const char *dir)
{
	char path[1000];
	snprintf(path, sizeof path, "%s/pool", dir);
	if (mkdir(path, 0700) < 0)
		exit(1);
	prepare_nothing(dir);
}

/* The pool's own VM isn't there before the first start: it comes and goes with it. */
static void run_first_pool(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	if (!do_disk("fast", "one.raw")) {
		do_write("fast", "one.raw", 1, 1, 3);
		do_flush("fast", "one.raw");
	}
	world_end();
}

static const struct scenario scenarios[] = {
	{"first-pool", prepare_pool, run_first_pool, world_check, world_restart},
	{"first", prepare_nothing, run_first, world_check, world_restart},
	{"killed", prepare_killed, run_start, world_check, world_restart},
};

int main(int argc, char **argv)
{
	static const char *const must[] = {"store's directories", "start-up clearing", "start-up clearing/VM's removal", NULL};
	return matrix_main(argc, argv, scenarios, sizeof scenarios / sizeof *scenarios, 8, world_must(must));
}
