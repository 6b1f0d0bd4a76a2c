/* Faults while VMs are made, renamed, copied into and removed: the source stays as it is, a VM is whole or not there, and nothing of what was begun is left.
 * limit: 120
 * nightly: 7200 */
#include "common/world.h"

static void prepare_web(const char *dir)
{
	world_prepare(dir);
	world_prepared(false);
}

/* A VM "vm" with a snapshot "s1", and something written since. */
static void prepare_vm(const char *dir)
{
	world_prepare(dir);
	do_clone("web", "base", "vm");
	do_write("vm", "vda.img", 2, 4, 3);
	do_snapshot("vm", "s1");
	do_write("vm", "vda.img", 5, 3, 4);
	do_flush("vm", "vda.img");
	world_prepared(false);
}

static void run_external(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_clone("web", "base", "new");
	do_write("new", "vda.img", 1, 2, 5);
	do_flush("new", "vda.img");
	do_write("new", "vda.img", 2, 2, 6);
	world_end();
}

static void run_internal(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_clone("web", "inner", "new");
	do_write("new", "vda.img", 1, 2, 5);
	do_flush("new", "vda.img");
	do_jobs();
	do_write("new", "vda.img", 2, 2, 6);
	do_flush("new", "vda.img");
	world_end();
}

/* Of the state now, with the disk open. */
static void run_head(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_write("vm", "vda.img", 1, 2, 7);
	do_clone("vm", NULL, "one");
	do_write("vm", "vda.img", 2, 2, 8);
	do_flush("vm", "vda.img");
	do_close("vm", "vda.img");
	do_clone("vm", NULL, "two");
	do_clone("vm", "s1", "three");
	world_end();
}

static void run_names(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_rename("vm", PLACE_VMS, "other");
	do_snapshot_rename("other", "s1", "first");
	do_domain("other");
	do_rename("other", PLACE_CLONES, "vm");
	world_end();
}

static void run_remove(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_clone("vm", NULL, "new");
	do_delete("vm", "s1", SNAPSHOT_DROP);
	do_remove("vm");
	do_jobs();
	do_remove("new");
	do_jobs();
	world_end();
}

static void run_copy(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_create("new");
	if (!do_disk("new", "vda.img")) {
		do_copy("vm", "s1", "vda.img", "new", "vda.img");
		do_flush("new", "vda.img");
		do_write("new", "vda.img", 3, 1, 9);
		do_flush("new", "vda.img");
	}
	do_jobs();
	do_close("new", "vda.img");
	do_disk_remove("new", "vda.img");
	world_end();
}

static void run_copy_inner(const char *dir, struct promise *promise)
{
	if (!world_begin(dir, promise))
		return;
	do_create("new");
	if (!do_disk("new", "vda.img")) {
		do_copy("web", "inner", "vda.img", "new", "vda.img");
		do_flush("new", "vda.img");
	}
	do_jobs();
	world_end();
}

static const struct scenario scenarios[] = {
	{"external", prepare_web, run_external, world_check, world_restart},
	{"internal", prepare_web, run_internal, world_check, world_restart},
	{"head", prepare_vm, run_head, world_check, world_restart},
	{"names", prepare_vm, run_names, world_check, world_restart},
	{"remove", prepare_vm, run_remove, world_check, world_restart},
	{"copy", prepare_vm, run_copy, world_check, world_restart},
	{"copy-inner", prepare_web, run_copy_inner, world_check, world_restart},
};

int main(int argc, char **argv)
{
	static const char *const must[] = {"VM's directory/VM's directory", "commit/small file", "new overlay/overlay creation", "new overlay/directory", "pending base", "VM's removal", "reclaim", "overlay exchange", NULL};
	return matrix_main(argc, argv, scenarios, sizeof scenarios / sizeof *scenarios, 14, world_must(must));
}
