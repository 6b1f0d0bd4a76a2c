/* What a clone is asked to be: names, left-out disks, sizes, targets, buses, another configuration, and all that can't be. */
#include "store_test.h"

#define MIB (1ull << 20)

static struct store *store;
static struct vm *web;

static int make(const struct clone_spec *spec, struct vm **ret)
{
	*ret = NULL;
	why = (struct reason){0};
	return store_clone_with(store, web, vm_find_snapshot(web, "base"), spec, ret, &why);
}

static struct vm *made(struct clone_spec spec)
{
	struct vm *vm = NULL;
	spec.uid = getuid();
	spec.gid = getgid();
	CHECK_ERR(make(&spec, &vm), 0);
	return vm;
}

static void check_refused(const struct disk_spec *all, int err, const char *words)
{
	const struct clone_spec spec = {.name = "refused", .all = *all, .uid = getuid(), .gid = getgid()};
	struct vm *vm = NULL;
	CHECK_ERR(make(&spec, &vm), err);
	if (!strstr(why.text, words)) {
		printf("not said: \"%s\" but \"%s\"\n", words, why.text);
		exit(1);
	}
	vm = store_find(store, PLACE_CLONES, "refused");
	CHECK(!vm);
}

static char *xml_of(const struct vm *vm)
{
	char *text = NULL;
	size_t len = 0;
	CHECK_ERR(store_domain_xml(store, vm, NULL, NULL, &text, &len, NULL, &why), 0);
	return text;
}

static void check_names(void)
{
	struct vm *vm = made((struct clone_spec){0}), *again = made((struct clone_spec){0});
	CHECK_STR(vm->name, "copy_of_web");
	CHECK_STR(again->name, "copy_of_web_2");
	CHECK(vm->nr_disks == 2 && !vm->disks[0].full);
	vm_put(vm);
	vm_put(again);
}

static void check_left_out(void)
{
	struct disk_spec rows[] = {{.disk = "vda", .left_out = true}};
	struct vm *vm = made((struct clone_spec){.name = "less", .disks = rows, .nr_disks = 1});
	CHECK(vm->nr_disks == 1 && strcmp(vm->disks[0].file_name, "vdb.img") == 0);
	vm_put(vm);
	rows[0].left_out = false;
	vm = made((struct clone_spec){.name = "only", .disks = rows, .nr_disks = 1, .only_listed = true});
	CHECK(vm->nr_disks == 1 && strcmp(vm->disks[0].file_name, "vda.img") == 0);
	char *xml = xml_of(vm);
	CHECK(strstr(xml, "\"vda\"") && !strstr(xml, "\"vdb\""));
	free(xml);
	vm_put(vm);
	rows[0].disk = "vdz";
	const struct clone_spec spec = {.name = "none", .disks = rows, .nr_disks = 1};
	CHECK_ERR(make(&spec, &vm), -ENOENT);
}

static uint64_t size_of(const struct vm *vm, const char *file_name)
{
	struct disk_stat st;
	CHECK_ERR(disk_stat(store, vm, NULL, disk_of(vm, NULL, file_name), &st, &why), 0);
	return st.virtual_size;
}

static void check_sizes(void)
{
	const struct disk_spec row = {.disk = "vda", .capacity = 6 * MIB + 1};
	struct vm *vm = made((struct clone_spec){.name = "larger", .disks = &row, .nr_disks = 1});
	CHECK(size_of(vm, "vda.img") == 6 * MIB + 512 && size_of(vm, "vdb.img") == 2 * MIB);
	struct disk_file *file = NULL;
	char buf[4096], zeros[4096] = {0};
	CHECK_ERR(disk_open(store, vm, NULL, disk_of(vm, NULL, "vda.img"), false, &file, &why), 0);
	CHECK_ERR(disk_read(file, buf, sizeof buf, 3 * MIB - 4096), 0);
	CHECK(buf[0] == 5);
	CHECK_ERR(disk_read(file, buf, sizeof buf, 3 * MIB), 0);
	CHECK(memcmp(buf, zeros, sizeof buf) == 0);
	CHECK_ERR(disk_close(file, &why), 0);
	vm_put(vm);
	check_refused(&(struct disk_spec){.capacity = MIB}, -EINVAL, "shrink='yes'");
	vm = made((struct clone_spec){.name = "smaller", .all = {.capacity = MIB, .shrink = true}});
	CHECK(size_of(vm, "vda.img") == MIB && size_of(vm, "vdb.img") == MIB);
	vm_put(vm);
}

static void check_targets(void)
{
	struct disk_spec rows[] = {{.disk = "vda", .target = "sda", .bus = "sata"}, {.disk = "vdb", .renew_serial = true}};
	struct vm *vm = made((struct clone_spec){.name = "sata", .disks = rows, .nr_disks = 2});
	char *xml = xml_of(vm);
	CHECK(disk_of(vm, NULL, "sda.img") && !disk_of(vm, NULL, "vda.img"));
	CHECK(strstr(xml, "\"sda\"") && strstr(xml, "\"sata\"") && !strstr(xml, "\"vda\"") && !strstr(xml, "<serial>B1</serial>"));
	free(xml);
	vm_put(vm);
	/* The name of a disk that is left out is free. */
	rows[0] = (struct disk_spec){.disk = "vda", .target = "vdb"};
	rows[1] = (struct disk_spec){.disk = "vdb", .left_out = true};
	vm = made((struct clone_spec){.name = "moved", .disks = rows, .nr_disks = 2});
	CHECK(vm->nr_disks == 1 && size_of(vm, "vdb.img") == 3 * MIB);
	vm_put(vm);
	check_refused(&(struct disk_spec){.target = "vdc"}, -EEXIST, "vdc");
	check_refused(&(struct disk_spec){.target = "../x"}, -EINVAL, "not a name for a disk");
}

static void check_domain(void)
{
	static const char text[] = "<domain type='kvm'><name>other</name><memory unit='MiB'>77</memory><os><type>hvm</type></os>"
				   "<devices><disk type='file' device='disk'><source file='/x'/><target dev='vda' bus='virtio'/></disk></devices></domain>";
	struct vm *vm = made((struct clone_spec){.name = "configured", .domain = text, .domain_len = strlen(text)});
	char *xml = xml_of(vm);
	CHECK(strstr(xml, ">77<") && strstr(xml, "<name>configured</name>") && strstr(xml, vm->uuid) && !strstr(xml, "/x"));
	free(xml);
	vm_put(vm);
	const struct clone_spec bad = {.name = "bad", .domain = "<domain>", .domain_len = 8};
	CHECK_ERR(make(&bad, &vm), -EINVAL);
	vm = store_find(store, PLACE_CLONES, "bad");
	CHECK(!vm);
}

static void check_refusals(void)
{
	check_refused(&(struct disk_spec){.mode = CLONE_THIN, .format = IMAGE_RAW}, -EINVAL, "mode='full'");
	check_refused(&(struct disk_spec){.mode = CLONE_THIN, .allocation = ALLOCATION_FULL}, -EINVAL, "mode='full'");
	check_refused(&(struct disk_spec){.pool = "nowhere"}, -ENOENT, "-o pool=nowhere:DIR");
	check_refused(&(struct disk_spec){.volume = "x.qcow2"}, -EINVAL, "in which pool");
	check_refused(&(struct disk_spec){.pool = "fast", .volume = "there.raw"}, -EEXIST, "there.raw");
	check_refused(&(struct disk_spec){.pool = "fast", .volume = "x.raw", .format = IMAGE_QCOW2}, -EINVAL, ".qcow2");
	check_refused(&(struct disk_spec){.pool = "fast", .volume = "x.qcow2", .format = IMAGE_RAW}, -EINVAL, ".raw");
	check_refused(&(struct disk_spec){.pool = "fast", .volume = "x.img", .mode = CLONE_THIN}, -EINVAL, "mode='full'");
	check_refused(&(struct disk_spec){.pool = "fast", .volume = "a/b.raw"}, -EINVAL, "not a name");
	check_refused(&(struct disk_spec){.pool = "fast", .volume = "../b.raw"}, -EINVAL, "not a name");
}

int main(void)
{
	dir_init();
	run("cd %s && mkdir fast src/web && touch fast/there.raw && cd src && qemu-img create -q -f qcow2 base.qcow2 3M && "
	    "qemu-io -c 'write -P 5 0 3M' base.qcow2 >/dev/null && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 web-a.qcow2 && "
	    "qemu-img create -q -f qcow2 data.qcow2 2M && qemu-img create -q -f qcow2 -b data.qcow2 -F qcow2 web-b.qcow2", dir);
	char domains[2][2000];
	for (int i = 0; i < 2; i++)
		snprintf(domains[i], sizeof domains[i],
			 "<domain type='kvm'><name>web</name><memory unit='MiB'>64</memory><os><type>hvm</type></os><devices>"
			 "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s/src/%s.qcow2'/>"
			 "<target dev='vda' bus='virtio'/></disk>"
			 "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s/src/%s.qcow2'/>"
			 "<target dev='vdb' bus='virtio'/><serial>B1</serial></disk></devices></domain>",
			 dir, i ? "base" : "web-a", dir, i ? "data" : "web-b");
	put_file("src/web.xml", "%s", domains[0]);
	put_file("src/web/base.xml",
		 "<domainsnapshot><name>base</name><state>shutoff</state><creationTime>1700000000</creationTime><memory snapshot='no'/><disks>"
		 "<disk name='vda' snapshot='external'><source file='%s/src/web-a.qcow2'/></disk>"
		 "<disk name='vdb' snapshot='external'><source file='%s/src/web-b.qcow2'/></disk></disks>%s</domainsnapshot>",
		 dir, dir, domains[1]);
	char source[300], pool[300];
	snprintf(source, sizeof source, "%s/src", dir);
	snprintf(pool, sizeof pool, "%s/fast", dir);
	const struct pool_config pools[] = {{"fast", pool}};
	const struct store_config config = {.source_dir = source, .pools = pools, .nr_pools = 1, .log = {keep_event, NULL}};
	CHECK_ERR(store_open(&config, &store, &why), 0);
	web = store_find(store, PLACE_VMS, "web");
	CHECK(web);
	CHECK(vm_find_snapshot(web, "base"));
	check_names();
	check_left_out();
	check_sizes();
	check_targets();
	check_domain();
	check_refusals();
	vm_put(web);
	store_close(store);
	run("[ \"$(ls %s/fast)\" = there.raw ]", dir);
	dir_done();
	return 0;
}
