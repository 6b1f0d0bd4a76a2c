/* makehosts [-l] [-i] [-x] DIR VMS SNAPSHOTS: what a libvirt host with that many VMs and snapshots of each has on its disk.
 *
 *   DIR/qemu/vmNNNNN.xml                       the domains: SOURCE
 *   DIR/qemu/snapshot/vmNNNNN/snapNNN.xml      the snapshots' metadata: -o snapshots=
 *   DIR/images/vmNNNNN.qcow2                   the images: -o trust=. Links to one file that has all the snapshots
 *
 * -l  the metadata of the VMs are links to those of the first (seconds and little space, where 1,000,000 files of their own take minutes
 *     and 4 GiB); they name the image of the first VM
 * -i  as vmsnapfs has it without options: DIR/vmNNNNN.xml, DIR/vmNNNNN/snapNNN.xml, DIR/images/: SOURCE is DIR
 * -x  the snapshots are external: DIR/images/vmNNNNN/NNN.qcow2, each over the one before
 *
 * 10,000 VMs of 100 snapshots with -l: 5 s. */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *top, *domain_dir = "qemu", *snapshot_dir = "qemu/snapshot";
static bool links, external;
static unsigned nr_vms, nr_snapshots;

__attribute__((format(printf, 1, 2))) static char *text(const char *fmt, ...)
{
	char *made;
	va_list ap;
	va_start(ap, fmt);
	if (vasprintf(&made, fmt, ap) < 0)
		err(1, "vasprintf");
	va_end(ap);
	return made;
}

static void make_dir(const char *path)
{
	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		err(1, "%s", path);
}

static void put(const char *path, const char *content)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, content, strlen(content)) != (ssize_t)strlen(content) || close(fd) < 0)
		err(1, "%s", path);
}

/* About as long as what libvirt writes. */
static char *domain_of(unsigned vm, unsigned layer)
{
	char image[50];
	snprintf(image, sizeof image, external ? "vm%05u/%03u.qcow2" : "vm%05u.qcow2", vm, layer);
	return text("<domain type='kvm'>\n  <name>vm%05u</name>\n  <uuid>%08x-0000-4000-8000-000000000001</uuid>\n"
		    "  <metadata>\n    <libosinfo:libosinfo xmlns:libosinfo=\"http://libosinfo.org/xmlns/libvirt/domain/1.0\">\n"
		    "      <libosinfo:os id=\"http://debian.org/debian/12\"/>\n    </libosinfo:libosinfo>\n  </metadata>\n"
		    "  <memory unit='KiB'>2097152</memory>\n  <currentMemory unit='KiB'>2097152</currentMemory>\n  <vcpu placement='static'>2</vcpu>\n"
		    "  <os>\n    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>\n    <boot dev='hd'/>\n  </os>\n"
		    "  <features>\n    <acpi/>\n    <apic/>\n    <vmport state='off'/>\n  </features>\n"
		    "  <cpu mode='host-passthrough' check='none' migratable='on'/>\n"
		    "  <clock offset='utc'>\n    <timer name='rtc' tickpolicy='catchup'/>\n    <timer name='pit' tickpolicy='delay'/>\n"
		    "    <timer name='hpet' present='no'/>\n  </clock>\n"
		    "  <on_poweroff>destroy</on_poweroff>\n  <on_reboot>restart</on_reboot>\n  <on_crash>destroy</on_crash>\n"
		    "  <pm>\n    <suspend-to-mem enabled='no'/>\n    <suspend-to-disk enabled='no'/>\n  </pm>\n"
		    "  <devices>\n    <emulator>/usr/bin/qemu-system-x86_64</emulator>\n"
		    "    <disk type='file' device='disk'>\n      <driver name='qemu' type='qcow2' discard='unmap'/>\n"
		    "      <source file='%s/images/%s'/>\n      <target dev='vda' bus='virtio'/>\n"
		    "      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>\n    </disk>\n"
		    "    <disk type='file' device='cdrom'>\n      <driver name='qemu' type='raw'/>\n      <target dev='sda' bus='sata'/>\n"
		    "      <readonly/>\n      <address type='drive' controller='0' bus='0' target='0' unit='0'/>\n    </disk>\n"
		    "    <controller type='usb' index='0' model='qemu-xhci' ports='15'/>\n    <controller type='sata' index='0'/>\n"
		    "    <controller type='pci' index='0' model='pcie-root'/>\n"
		    "    <interface type='network'>\n      <mac address='52:54:00:%02x:%02x:%02x'/>\n      <source network='default'/>\n"
		    "      <model type='virtio'/>\n    </interface>\n"
		    "    <serial type='pty'>\n      <target type='isa-serial' port='0'>\n        <model name='isa-serial'/>\n      </target>\n    </serial>\n"
		    "    <console type='pty'>\n      <target type='serial' port='0'/>\n    </console>\n"
		    "    <channel type='unix'>\n      <target type='virtio' name='org.qemu.guest_agent.0'/>\n    </channel>\n"
		    "    <input type='tablet' bus='usb'/>\n    <graphics type='spice' autoport='yes'>\n      <listen type='address'/>\n    </graphics>\n"
		    "    <video>\n      <model type='virtio' heads='1' primary='yes'/>\n    </video>\n"
		    "    <memballoon model='virtio'/>\n    <rng model='virtio'>\n      <backend model='random'>/dev/urandom</backend>\n    </rng>\n"
		    "  </devices>\n</domain>\n",
		    vm, vm, top, image, vm >> 16 & 255, vm >> 8 & 255, vm & 255);
}

static char *snapshot_of(unsigned vm, unsigned snapshot)
{
	char *domain = domain_of(vm, snapshot);
	char *parent = snapshot ? text("  <parent>\n    <name>snap%03u</name>\n  </parent>\n", snapshot - 1) : text("%s", "");
	char *made = text("<domainsnapshot>\n  <name>snap%03u</name>\n  <state>shutoff</state>\n%s"
			  "  <creationTime>%u</creationTime>\n  <memory snapshot='no'/>\n"
			  "  <disks>\n    <disk name='vda' snapshot='%s'/>\n  </disks>\n%s  <active>%d</active>\n</domainsnapshot>\n",
			  snapshot, parent, 1500000000 + snapshot * 3600, external ? "external" : "internal", domain, snapshot == nr_snapshots - 1);
	free(parent);
	free(domain);
	return made;
}

static void make_snapshots(unsigned vm)
{
	char *dir = text("%s/%s/vm%05u", top, snapshot_dir, vm);
	make_dir(dir);
	for (unsigned s = 0; s < nr_snapshots; s++) {
		char *path = text("%s/snap%03u.xml", dir, s);
		char *first = text("%s/%s/vm00000/snap%03u.xml", top, snapshot_dir, s);
		char *content = links && vm ? NULL : snapshot_of(vm, s);
		if (content)
			put(path, content);
		else if (link(first, path) < 0)
			err(1, "%s", path);
		free(content);
		free(first);
		free(path);
	}
	free(dir);
}

static void run(char *cmd)
{
	if (system(cmd))
		errx(1, "failed: %s", cmd);
	free(cmd);
}

/* All snapshots in one image. */
static void make_template(void)
{
	run(text("qemu-img create -q -f qcow2 -o cluster_size=512 '%s/images/template' 1M", top));
	for (unsigned s = 0; s < nr_snapshots; s++)
		if (!external)
			run(text("qemu-img snapshot -c snap%03u '%s/images/template'", s, top));
}

/* A chain of links to one overlay would be a circle of one file: each layer is a file of its own, the same in all VMs. */
static void make_chain(unsigned vm)
{
	char *dir = text("%s/images/vm%05u", top, vm);
	make_dir(dir);
	for (unsigned s = 0; s <= nr_snapshots; s++) {
		char *path = text("%s/%03u.qcow2", dir, s);
		char *first = text("%s/images/vm00000/%03u.qcow2", top, s);
		if (vm && link(first, path) < 0)
			err(1, "%s", path);
		else if (!vm && !s)
			run(text("qemu-img create -q -f qcow2 -o cluster_size=512 '%s' 1M", path));
		else if (!vm)
			run(text("cd '%s' && qemu-img create -q -f qcow2 -o cluster_size=512 -b %03u.qcow2 -F qcow2 %03u.qcow2", dir, s - 1, s));
		free(first);
		free(path);
	}
	free(dir);
}

static void make_vm(unsigned vm)
{
	char *domain = domain_of(vm, nr_snapshots);
	char *xml = text("%s/%s/vm%05u.xml", top, domain_dir, vm);
	char *image = text("%s/images/vm%05u.qcow2", top, vm), *template = text("%s/images/template", top);
	put(xml, domain);
	if (nr_snapshots)
		make_snapshots(vm);
	if (external)
		make_chain(vm);
	else if (link(template, image) < 0)
		err(1, "%s", image);
	free(template);
	free(image);
	free(xml);
	free(domain);
}

static void make_dirs(void)
{
	const char *const dirs[] = {"", "images", domain_dir, snapshot_dir};
	for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
		char *path = text("%s/%s", top, dirs[i]);
		make_dir(path);
		free(path);
	}
}

int main(int argc, char **argv)
{
	int opt;
	while ((opt = getopt(argc, argv, "lix")) != -1) {
		if (opt == 'l')
			links = true;
		else if (opt == 'i')
			domain_dir = snapshot_dir = ".";
		else if (opt == 'x')
			external = true;
		else
			errx(1, "usage: makehosts [-l] [-i] [-x] DIR VMS SNAPSHOTS");
	}
	if (argc - optind != 3)
		errx(1, "usage: makehosts [-l] [-i] [-x] DIR VMS SNAPSHOTS");
	make_dir(argv[optind]);
	top = realpath(argv[optind], NULL);
	if (!top)
		err(1, "%s", argv[optind]);
	nr_vms = (unsigned)strtoul(argv[optind + 1], NULL, 10);
	nr_snapshots = (unsigned)strtoul(argv[optind + 2], NULL, 10);
	make_dirs();
	make_template();
	for (unsigned vm = 0; vm < nr_vms; vm++)
		make_vm(vm);
	run(text("rm '%s/images/template'", top));
	return 0;
}
