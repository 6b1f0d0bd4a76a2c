/* vm.xml: what is saved comes back byte for byte; what somebody else wrote there is checked. */
#include <fcntl.h>

#include "meta/domain.h"
#include "store/managed.h"
#include "store/manifest.h"
#include "store/store_internal.h"
#include "store_test.h"

#define UUID  "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
#define LAYER "16fd2706-8baf-433b-82eb-8c7fada847da"
#define BASE  "886313e1-3b8a-4372-9b90-0c9aee199e5d"

static struct store *store;

static struct vm *make_vm(const char *name, const char *config)
{
	struct vm *vm = managed_new(PLACE_CLONES, name, getuid(), getgid());
	CHECK(vm && text_set(&vm->uuid, UUID) == 0 && text_set(&vm->config, config) == 0 && text_set(&vm->origin, "a<b>&'\"@\tc") == 0);
	return vm;
}

static void add_disk(struct vm *vm, const char *file_name, const char *target)
{
	struct vm_disk *disk = vm_disk_add(&vm->disks, &vm->nr_disks);
	CHECK(disk && text_set(&disk->file_name, file_name) == 0 && text_set(&disk->target, target) == 0 &&
	      text_set(&disk->layer, LAYER ".qcow2") == 0);
	disk->format = IMAGE_QCOW2;
}

static void check_round_trip(const char *name, const char *config)
{
	struct vm *vm = make_vm(name, config), *again = NULL;
	add_disk(vm, "vda.img", "vda");
	add_disk(vm, ".vda.img.Xy12", NULL);
	CHECK(text_set(&vm->disks[0].pending_path, "/a dir/'quoted'\n&.qcow2") == 0 &&
	      text_set(&vm->disks[0].pending_snapshot, " tag\twith  blanks ") == 0 &&
	      text_set(&vm->disks[0].pending_base, BASE ".raw") == 0 && text_set(&vm->disks[0].pending_row, "1 2.3 4 5") == 0);
	vm->disks[0].pending_format = IMAGE_QCOW2;
	CHECK_ERR(manifest_save(store, vm, NULL, &why), 0);
	CHECK_ERR(manifest_load(store, UUID, &again, &why), 0);
	CHECK_STR(again->name, name);
	CHECK_STR(again->config, config);
	CHECK_STR(again->origin, vm->origin);
	CHECK(again->nr_disks == 2 && !again->disks[1].target && again->created == vm->created);
	CHECK_STR(again->disks[0].target, "vda");
	CHECK_STR(again->disks[1].file_name, ".vda.img.Xy12");
	CHECK_STR(again->disks[0].pending_path, vm->disks[0].pending_path);
	CHECK_STR(again->disks[0].pending_snapshot, vm->disks[0].pending_snapshot);
	CHECK_STR(again->disks[0].pending_row, "1 2.3 4 5");
	CHECK(again->changed.tv_sec == vm->changed.tv_sec && again->changed.tv_nsec == vm->changed.tv_nsec);
	vm_put(vm);
	vm_put(again);
}

static void check_refused_save(const char *name, const char *config)
{
	struct vm *vm = make_vm(name, config), *again = NULL;
	CHECK_ERR(manifest_save(store, vm, NULL, &why), -EINVAL);
	CHECK_ERR(manifest_load(store, UUID, &again, &why), 0); /* the one before */
	vm_put(vm);
	vm_put(again);
}

static void check_refused_load(const char *uuid, const char *name, const char *disk)
{
	struct vm *vm = NULL;
	put_file("src/.vmsnapfs/vms/" UUID "/vm.xml",
		 "<vm uuid='%s' place='clones' created='1' mode='0400'><name>%s</name>%s"
		 "<config>&lt;domain type='kvm'>&lt;name>x&lt;/name>&lt;/domain></config></vm>",
		 uuid, name, disk);
	int err = manifest_load(store, UUID, &vm, &why);
	if (err != -EUCLEAN && err != -EINVAL) {
		printf("loaded (%d): uuid %s name %s disk %s\n", err, uuid, name, disk);
		exit(1);
	}
}

static void check_names(void)
{
	static const struct {
		const char *file_name, *target;
	} cases[] = {{"vda.img", "vda"}, {"xvdaa.img", "xvdaa"}, {"sdb.img", "sdb"}, {"vd.img", NULL}, {"vda.raw", NULL},
		     {".vda.img", NULL}, {"vda.img~", NULL}, {"vda1.img", NULL}, {"VDA.img", NULL}, {"vda.img.part", NULL}};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char *target = manifest_target_of(cases[i].file_name);
		CHECK(!target == !cases[i].target && (!target || strcmp(target, cases[i].target) == 0));
		free(target);
	}
	CHECK(manifest_check_file_name(".vda.img.X") == 0 && manifest_check_file_name("..") < 0 && manifest_check_file_name(".") < 0);
	CHECK(manifest_check_file_name("a/b") < 0 && manifest_check_file_name("") < 0 && manifest_check_file_name("a\nb") < 0);
}

int main(void)
{
	char *config = NULL;
	dir_init();
	store = store_at("src", false);
	run("mkdir %s/src/.vmsnapfs/vms/" UUID, dir);
	CHECK(domain_minimal("x", UUID, &config) == 0);
	check_round_trip("plain", config);
	check_round_trip(" blanks around ", config);
	check_round_trip("<&>'\"~ äöü \xf0\x9f\x92\xbe", config);
	check_round_trip("crlf", "<?xml version='1.0'?>\r\n<!-- ]]> & -->\r\n\t<domain type='kvm'>\r<name>a&amp;b</name></domain>\n\n");
	check_refused_save("not XML: \xef\xbf\xbe", config);
	check_refused_save("x", "<domain><name>\xff</name></domain>");
	check_refused_save("x", "no domain");

	check_refused_load(BASE, "n", "");
	check_refused_load(UUID, "", "");
	check_refused_load(UUID, "..", "");
	check_refused_load(UUID, "a/b", "");
	static const char *const disks[] = {
		"<disk target='vda' file='vda.img' layer='../../x.qcow2' format='qcow2'/>",
		"<disk target='vda' file='vda.img' layer='" LAYER ".raw' format='qcow2'/>",
		"<disk target='vda' file='vda.img' layer='" LAYER ".qcow2' format='raw'/>",
		"<disk target='vda' file='vda.img' layer='" LAYER ".qcow2'/>",
		"<disk target='vda' file='vda.img' format='qcow2'/>",
		"<disk target='vdb' file='vda.img' layer='" LAYER ".qcow2' format='qcow2'/>",
		"<disk target='vda' file='../vda.img' layer='" LAYER ".qcow2' format='qcow2'/>",
		"<disk file='x' layer='" LAYER ".qcow2' format='qcow2'/><disk file='x' layer='" LAYER ".qcow2' format='qcow2'/>",
		"<disk file='x' layer='" LAYER ".qcow2' format='qcow2'><pending/></disk>",
		"<disk file='x' layer='" LAYER ".qcow2' format='qcow2'><pending path='rel' format='qcow2' snapshot='s' base='" BASE ".raw' row='r'/></disk>",
		"<disk file='x' layer='" LAYER ".qcow2' format='qcow2'><pending path='/x' format='qcow2' snapshot='s' base='../" BASE ".raw' row='r'/></disk>",
		"<disk file='x' layer='" LAYER ".qcow2' format='qcow2'><pending path='/x' format='vmdk' snapshot='s' base='" BASE ".raw' row='r'/></disk>",
	};
	for (size_t i = 0; i < sizeof disks / sizeof *disks; i++)
		check_refused_load(UUID, "n", disks[i]);
	check_names();
	free(config);
	store_close(store);
	dir_done();
	return 0;
}
