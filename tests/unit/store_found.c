/* What is found in SOURCE: names, numbers that stay, what isn't followed, what changes, what is wrong. */
#include <sys/stat.h>

#include "store_test.h"

static struct store *store;

static void put_domain(const char *file, const char *name, const char *disk)
{
	put_file(file,
		 "<domain type='kvm'><name>%s</name><memory>1048576</memory><os><type>hvm</type></os><devices>"
		 "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>"
		 "</devices></domain>", name, disk);
}

static void put_snapshot(const char *file, const char *name, const char *parent, int created, int active, const char *disk)
{
	char parent_xml[200] = "";
	if (parent)
		snprintf(parent_xml, sizeof parent_xml, "<parent><name>%s</name></parent>", parent);
	put_file(file,
		 "<domainsnapshot><name>%s</name>%s<state>shutoff</state><creationTime>%d</creationTime><memory snapshot='no'/>"
		 "<disks><disk name='vda' snapshot='internal'/></disks>"
		 "<domain type='kvm'><name>x</name><memory>1048576</memory><os><type>hvm</type></os><devices>"
		 "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>"
		 "</devices></domain><active>%d</active></domainsnapshot>",
		 name, parent_xml, created, disk, active);
}

static void check_names(const char *want)
{
	struct vm **vms = NULL;
	size_t nr = 0;
	char got[4000] = "";
	CHECK(store_list(store, PLACE_VMS, &vms, &nr) == 0);
	for (size_t i = 0; i < nr; i++) {
		strcat(strcat(got, i ? " " : ""), vms[i]->name);
		vm_put(vms[i]);
	}
	free(vms);
	CHECK_STR(got, want);
}

static struct vm *find(const char *name)
{
	struct vm *vm = store_find(store, PLACE_VMS, name);
	if (!vm) {
		printf("no VM %s\n", name);
		exit(1);
	}
	return vm;
}

/* Lookups notice a change after a second; a test needn't wait. */
static void look_again(void)
{
	for (int i = 0; i < 25; i++) {
		usleep(50000);
		struct vm *vm = store_find(store, PLACE_VMS, "nothing");
		CHECK(!vm);
	}
}

static void make_source(void)
{
	run("cd %s/src && mkdir -p a b .hidden sub/deep mnt a/dup meta && "
	    "for f in a/dup.qcow2 b/dup.qcow2 alone.qcow2 sub/deep/inner.qcow2 .hidden/no.qcow2 mnt/no.qcow2 named; do qemu-img create -q -f qcow2 $f 1M; done && "
	    "for s in s1 s2; do qemu-img snapshot -c $s a/dup.qcow2; done && "
	    "qemu-img create -q -f qcow2 -b alone.qcow2 -F qcow2 top.qcow2 && truncate -s 1M plain.raw && echo text >notes.txt && "
	    "ln -s /etc link && ln -s a/dup.qcow2 linked.qcow2 && mkfifo pipe.xml pipe.img", dir);
	char path[400];
	snprintf(path, sizeof path, "%s/src/a/dup.qcow2", dir);
	put_domain("src/a/dup.xml", "dup", path);
	put_snapshot("src/a/dup/x1.xml", "s1", NULL, 100, 0, path);
	put_snapshot("src/a/dup/x2.xml", "s2", "s1", 200, 1, path);
	put_snapshot("src/a/dup/x3.xml", "s1", "s2", 300, 0, path);
	put_file("src/a/dup/x4.xml", "<domainsnapshot><name>");
	snprintf(path, sizeof path, "%s/src/b/dup.qcow2", dir);
	put_domain("src/b/dup.xml", "dup", path);
	put_domain("src/odd.xml", "..odd/na me", "/nowhere/at/all.qcow2");
	put_file("src/other.xml", "<network><name>x</name></network>");
	put_file("src/entity.xml", "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><domain><name>&e;</name></domain>");
}

static void check_snapshots(void)
{
	struct vm *vm = find("dup");
	CHECK(vm->kind == VM_FOUND_LIBVIRT && vm->nr_snapshots == 3 && vm->current == 1);
	CHECK_STR(vm->snapshots[0]->name, "s1");
	CHECK_STR(vm->snapshots[1]->name, "s2");
	CHECK_STR(vm->snapshots[2]->name, "s1~2");
	CHECK(!vm->snapshots[0]->parent);
	CHECK_STR(vm->snapshots[1]->parent, "s1");
	CHECK_STR(vm->snapshots[2]->parent, "s2");
	CHECK_STR(vm->snapshots[2]->disks[0].snapshot, "s1");
	CHECK(nr_events("x4.xml") == 1);
	vm_put(vm);
	vm = find("top");
	CHECK(vm->kind == VM_FOUND_BARE && vm->nr_snapshots == 1);
	CHECK_STR(vm->snapshots[0]->name, "alone");
	vm_put(vm);
}

static void check_changes(void)
{
	struct vm *vm = find("top"), *dup = find("dup");
	uint32_t id = vm->id, dup_id = dup->id, alone = vm->snapshots[0]->id, disk = vm->disks[0].id, s2 = dup->snapshots[1]->id;
	vm_put(vm);
	vm_put(dup);
	/* A new top: the old one becomes a snapshot. The domain gets a name of its own, and loses a snapshot. */
	run("cd %s/src && qemu-img create -q -f qcow2 -b top.qcow2 -F qcow2 zenith.qcow2 && rm a/dup/x1.xml", dir);
	look_again();
	check_names("_.odd_na me dup dup~2 inner named plain zenith");
	vm = find("zenith");
	CHECK(vm->nr_snapshots == 2);
	vm_put(vm);
	CHECK(!store_get(store, id));
	dup = find("dup");
	CHECK(dup->id == dup_id && dup->nr_snapshots == 2 && vm_find_snapshot(dup, "s2")->id == s2 && !vm_find_snapshot(dup, "s2")->parent);
	vm_put(dup);
	/* And back: everything has the numbers that it had. */
	run("cd %s/src && rm zenith.qcow2", dir);
	look_again();
	vm = find("top");
	CHECK(vm->id == id && vm->snapshots[0]->id == alone && vm->disks[0].id == disk);
	vm_put(vm);
	/* With the first of them gone the second gets the plain name, and keeps its number. */
	vm = find("dup~2");
	id = vm->id;
	vm_put(vm);
	run("cd %s/src && rm -r a", dir);
	look_again();
	vm = find("dup");
	CHECK(vm->id == id);
	vm_put(vm);
	CHECK(nr_events("entity.xml") == 1 && nr_events("x4.xml") == 1);
}

static void check_managed_names(void)
{
	struct vm *vm = NULL;
	CHECK_ERR(store_create(store, "mine", getuid(), getgid(), &vm, &why), 0);
	CHECK_ERR(store_rename(store, vm, PLACE_VMS, "dup", &why), -EEXIST);
	CHECK_ERR(store_rename(store, vm, PLACE_VMS, ".x", &why), -EINVAL);
	CHECK_ERR(store_rename(store, vm, PLACE_VMS, "later", &why), 0);
	vm_put(vm);
	/* A found VM that comes later with the same name steps back. */
	run("cd %s/src && qemu-img create -q -f qcow2 later.qcow2 1M", dir);
	look_again();
	vm = find("later");
	CHECK(vm->kind == VM_MANAGED);
	vm_put(vm);
	vm = find("later~2");
	CHECK(vm->kind == VM_FOUND_BARE);
	CHECK_ERR(store_remove(store, vm, &why), -EROFS);
	CHECK_ERR(store_rename(store, vm, PLACE_VMS, "x", &why), -EROFS);
	CHECK_ERR(disk_remove(store, vm, "vda.img", &why), -EROFS);
	vm_put(vm);
}

static void check_circles(void)
{
	run("cd %s/src && for f in c1 c2 c3; do qemu-img create -q -f qcow2 $f.qcow2 1M; done && "
	    "qemu-img rebase -u -b c2.qcow2 -F qcow2 c1.qcow2 && qemu-img rebase -u -b c3.qcow2 -F qcow2 c2.qcow2 && "
	    "qemu-img rebase -u -b c1.qcow2 -F qcow2 c3.qcow2 && qemu-img create -q -f qcow2 own.qcow2 1M && "
	    "qemu-img rebase -u -b own.qcow2 -F qcow2 own.qcow2", dir);
	look_again();
	struct vm *vm = find("c1"), *own = find("own");
	struct disk_stat st;
	CHECK_ERR(disk_stat(store, vm, NULL, &vm->disks[0], &st, &why), -EUCLEAN);
	CHECK_ERR(disk_stat(store, own, NULL, &own->disks[0], &st, &why), -EUCLEAN);
	CHECK(!store_find(store, PLACE_VMS, "c2") && !store_find(store, PLACE_VMS, "c3"));
	vm_put(vm);
	vm_put(own);
}

/* An image that only a snapshot names is no VM; who has many snapshots may have to wait for that to be known, nobody sees it meanwhile. */
static void check_side_branches(void)
{
	char base[400], side[400];
	run("mkdir %s/wide && cd %s/wide && mkdir host && qemu-img create -q -f qcow2 base.qcow2 1M && qemu-img create -q -f qcow2 own.qcow2 1M && "
	    "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 side.qcow2", dir, dir);
	snprintf(base, sizeof base, "%s/wide/base.qcow2", dir);
	snprintf(side, sizeof side, "%s/wide/side.qcow2", dir);
	put_domain("wide/host.xml", "host", base);
	for (int i = 0; i < 6000; i++) {
		char file[100], name[20];
		snprintf(name, sizeof name, "s%05d", i);
		snprintf(file, sizeof file, "wide/host/%s.xml", name);
		put_snapshot(file, name, NULL, i, 0, i == 5999 ? side : base);
	}
	store = store_at("wide", true);
	struct vm *vm = store_find_brief(store, PLACE_VMS, "host");
	CHECK(vm && vm->is_brief && !vm->nr_snapshots);
	vm = store_whole(store, vm);
	CHECK(vm && !vm->is_brief && vm->nr_snapshots == 6000);
	uint32_t id = vm->snapshots[3000]->id;
	vm_put(vm);
	for (int i = 0; i < 600 && !(vm = store_find(store, PLACE_VMS, "own")); i++) {
		CHECK(!store_find(store, PLACE_VMS, "side"));
		usleep(50000);
	}
	CHECK(vm && vm->kind == VM_FOUND_BARE);
	vm_put(vm);
	check_names("host own");
	run("rm %s/wide/host/s05999.xml", dir);
	for (int i = 0; i < 600 && !(vm = store_find(store, PLACE_VMS, "side")); i++)
		usleep(50000);
	CHECK(vm);
	vm_put(vm);
	for (int i = 0; i < 600 && (vm = find("host"))->nr_snapshots != 5999; i++) {
		vm_put(vm);
		usleep(50000);
	}
	CHECK(vm->nr_snapshots == 5999 && vm->snapshots[3000]->id == id);
	vm_put(vm);
	store_close(store);
}

int main(void)
{
	char source[300], mountpoint[320];
	dir_init();
	make_source();
	snprintf(source, sizeof source, "%s/src", dir);
	snprintf(mountpoint, sizeof mountpoint, "%s/src/mnt", dir);
	struct store_config config = {.source_dir = source, .mountpoint = mountpoint, .log = {keep_event, NULL}};
	CHECK_ERR(store_open(&config, &store, &why), 0);
	check_names("_.odd_na me dup dup~2 inner named plain top");
	check_snapshots();
	CHECK(nr_events("entity.xml") == 1 && nr_events("notes") == 0 && nr_events("pipe") == 0);
	check_changes();
	check_managed_names();
	check_circles();
	store_close(store);
	check_side_branches();
	dir_done();
	return 0;
}
