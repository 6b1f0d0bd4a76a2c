/* The library without a mount: lists virtual machines, prints disks.
 *
 *   vmcat DIR                      every VM, its snapshots and disks
 *   vmcat DIR VM[@SNAPSHOT] DISK   the bytes of a disk (vda), to stdout */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/xml.h"
#include "store/store.h"

static void print_event(void *ctx, const char *vm, const char *text)
{
	(void)ctx;
	fprintf(stderr, "%s%s%s\n", vm ? vm : "", vm ? ": " : "", text);
}

static int fail(const char *what, int err, const struct reason *why)
{
	fprintf(stderr, "vmcat: %s: %s\n", what, *why->text ? why->text : strerror(-err));
	return 1;
}

static void list_disks(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot)
{
	size_t nr = snapshot ? snapshot->nr_disks : vm ? vm->nr_disks : 0;
	for (size_t i = 0; i < nr; i++) {
		const struct vm_disk *disk = snapshot ? &snapshot->disks[i] : &vm->disks[i];
		struct disk_stat st;
		struct reason why = {{0}};
		int err = disk_stat(store, vm, snapshot, disk, &st, &why);
		if (err)
			printf("    %s: %s\n", disk->file_name, *why.text ? why.text : strerror(-err));
		else
			printf("    %s: %ju bytes, %ju allocated\n", disk->file_name, (uintmax_t)st.virtual_size, (uintmax_t)st.allocated);
	}
}

static int list(struct store *store)
{
	struct vm **vms = NULL;
	size_t nr = 0;
	struct reason why = {{0}};
	int err = store_list(store, PLACE_VMS, &vms, &nr);
	for (size_t i = 0; i < nr; i++) {
		struct vm *vm = store_whole(store, vms[i]);
		printf("%s\n", vm ? vm->name : "(gone)");
		list_disks(store, vm, NULL);
		for (size_t s = 0; vm && s < vm->nr_snapshots; s++) {
			printf("  @%s%s\n", vm->snapshots[s]->name, (int)s == vm->current ? " (current)" : "");
			list_disks(store, vm, vm->snapshots[s]);
		}
		vm_put(vm);
	}
	free(vms);
	return err ? fail("listing", err, &why) : 0;
}

static int print_disk(struct store *store, char *name, const char *target)
{
	static char buf[65536], disk_name[256];
	snprintf(disk_name, sizeof disk_name, "%s.img", target);
	struct reason why = {{0}};
	struct disk_file *file = NULL;
	char *snapshot_name = name, *vm_name = strsep(&snapshot_name, "@");
	struct vm *vm = store_find(store, PLACE_VMS, vm_name);
	const struct vm_snapshot *snapshot = vm && snapshot_name ? vm_find_snapshot(vm, snapshot_name) : NULL;
	if (!vm || (snapshot_name && !snapshot))
		return vm_put(vm), fail(vm_name, -ENOENT, &why);
	const struct vm_disk *disk = snapshot ? vm_find_disk(snapshot->disks, snapshot->nr_disks, disk_name)
					      : vm_find_disk(vm->disks, vm->nr_disks, disk_name);
	int err = disk ? disk_open(store, vm, snapshot, disk, false, &file, &why) : -ENOENT;
	for (uint64_t off = 0, end = err ? 0 : disk_virtual_size(file); !err && off < end; off += sizeof buf) {
		size_t n = end - off < sizeof buf ? (size_t)(end - off) : sizeof buf;
		err = disk_read(file, buf, n, off);
		if (!err && fwrite(buf, 1, n, stdout) != n)
			err = -EIO;
	}
	disk_close(file, NULL);
	vm_put(vm);
	return err ? fail(disk_name, err, &why) : 0;
}

int main(int argc, char **argv)
{
	struct reason why = {{0}};
	struct store *store = NULL;
	char *dir = argc == 2 || argc == 4 ? realpath(argv[1], NULL) : NULL;
	if (!dir)
		return fail("usage: vmcat DIR [VM[@SNAPSHOT] DISK]", -EINVAL, &why);
	struct store_config config = {.source_dir = dir, .read_only = true, .log = {print_event, NULL}};
	xml_init();
	int err = store_open(&config, &store, &why);
	int status = err ? fail(dir, err, &why) : argc == 2 ? list(store) : print_disk(store, argv[2], argv[3]);
	store_close(store);
	free(dir);
	return status;
}
