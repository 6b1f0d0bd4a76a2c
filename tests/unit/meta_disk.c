/* domain_change_disk: another target, bus or serial number, valid by libvirt's schema, and nothing else changed. */
#include <errno.h>

#include "meta/domain.h"
#include "meta_fixtures.h"
#include "meta_test.h"

static xmlRelaxNGPtr schema;
static struct reason why;

static int change(const char *text, const char *target, const char *new_target, const char *bus, bool renew, char **ret)
{
	*ret = NULL;
	why = (struct reason){0};
	return domain_change_disk(text, strlen(text), target, new_target, bus, renew, ret, &why);
}

static char *changed(const char *text, const char *target, const char *new_target, const char *bus, bool renew)
{
	char *out = NULL;
	CHECK_INT(change(text, target, new_target, bus, renew, &out), 0);
	CHECK_STR(why.text, "");
	CHECK(schema_accepts(schema, out));
	return out;
}

#define DOMAIN(disk) \
	"<domain type='kvm'><name>n</name><memory>1</memory><os><type>hvm</type></os><devices>" disk \
	"<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk></devices></domain>"
#define FULL_DISK \
	"<disk type='file' device='disk' model='virtio-transitional'><driver name='qemu' type='qcow2' cache='none' queues='4' iothread='1' " \
	"ioeventfd='on' packed='on' discard='unmap'/><source file='/a'/><target dev='vda' bus='virtio'/><iotune><read_bytes_sec>5" \
	"</read_bytes_sec></iotune><serial>S1</serial><boot order='1'/><alias name='virtio-disk0'/>" \
	"<address type='pci' domain='0' bus='4' slot='0' function='0'/></disk>"
#define SCSI_DISK(alias) \
	"<disk type='file'><driver name='qemu'/><source file='/a'/><target dev='sdb' bus='scsi' removable='on' rotation_rate='1'/>" \
	"<serial>S1</serial><wwn>5000C500155A1B2C</wwn><vendor>V</vendor><product>P</product><alias name='" alias "'/>" \
	"<address type='drive' controller='0' bus='0' target='0' unit='1'/></disk>"

static void test_nothing(void)
{
	char *out = changed(web_xml, "vda", NULL, NULL, false);
	CHECK_STR(out, web_xml);
	free(out);
	out = changed(web_xml, "vda", "vda", "virtio", false);
	CHECK_STR(out, web_xml);
	free(out);
}

static void test_target(void)
{
	char *out = changed(DOMAIN(FULL_DISK), "vda", "vdz", NULL, false);
	CHECK_COUNT(out, "//disk[1][address and alias and serial='S1']/target[@dev='vdz' and @bus='virtio']", 1);
	CHECK_COUNT(out, "//disk[1]/driver[@queues='4' and @iothread='1']", 1);
	free(out);
}

/* What only the old bus has goes; the rest stays. */
static void test_bus(void)
{
	char *out = changed(DOMAIN(FULL_DISK), "vda", "sdb", "scsi", false);
	CHECK_COUNT(out, "//disk[1]/target[@dev='sdb' and @bus='scsi']", 1);
	CHECK_COUNT(out, "//disk[1]/address | //disk[1]/alias | //disk[1]/@model", 0);
	CHECK_COUNT(out, "//disk[1]/driver/@*", 4);
	CHECK_COUNT(out, "//disk[1][driver/@discard='unmap' and iotune and serial='S1' and boot/@order='1' and source/@file='/a']", 1);
	free(out);
	out = changed(DOMAIN(SCSI_DISK("scsi0-0-0-1")), "sdb", "vdb", "virtio", false);
	CHECK_COUNT(out, "//disk[1]/wwn | //disk[1]/vendor | //disk[1]/product | //disk[1]/address | //disk[1]/alias", 0);
	CHECK_COUNT(out, "//disk[1]/target/@*", 2);
	free(out);
	out = changed(DOMAIN(SCSI_DISK("ua-mine")), "sdb", NULL, "sata", false);
	CHECK_COUNT(out, "//disk[1][wwn and alias/@name='ua-mine' and target/@rotation_rate='1']", 1);
	CHECK_COUNT(out, "//disk[1]/vendor | //disk[1]/address | //disk[1]/target/@removable", 0);
	free(out);
	static const char *const buses[] = {"virtio", "scsi", "sata", "ide", "usb", "xen", "sd"};
	for (size_t i = 0; i < sizeof buses / sizeof *buses; i++) {
		out = changed(DOMAIN(SCSI_DISK("a")), "sdb", NULL, buses[i], false);
		CHECK_XPATH(out, "//disk[1]/target/@bus", buses[i]);
		free(out);
	}
}

static void test_serial(void)
{
	char *out = changed(DOMAIN(SCSI_DISK("a")), "sdb", NULL, NULL, true);
	char *again = changed(out, "sdb", NULL, NULL, true);
	CHECK_COUNT(out, "//disk[1][string-length(serial) = 20 and starts-with(wwn, '5000C50') and string-length(wwn) = 16]", 1);
	CHECK(out && !strstr(out, "S1") && !strstr(out, "5000C500155A1B2C"));
	char *serial = strdup(xpath(out, "string(//disk[1]/serial)"));
	CHECK(strcmp(serial, xpath(again, "string(//disk[1]/serial)")) != 0);
	free(serial);
	free(again);
	free(out);
	out = changed(DOMAIN("<disk type='file'><source file='/a'/><target dev='vda'/></disk>"), "vda", NULL, NULL, true);
	CHECK_COUNT(out, "//serial | //wwn", 0);
	free(out);
}

static void check_refused(const char *text, const char *target, const char *new_target, const char *bus, int err, const char *word)
{
	char *out = NULL;
	CHECK_INT(change(text, target, new_target, bus, false, &out), err);
	if (!strstr(why.text, word))
		CHECK_STR(why.text, word);
	CHECK(!out);
}

static void test_refused(void)
{
	check_refused(web_xml, "vdx", "vdy", NULL, -ENOENT, "vdx");
	check_refused(web_xml, "sda", "sdx", NULL, -ENOENT, "sda");
	check_refused(web_xml, "vda", "vdb", NULL, -EEXIST, "vdb");
	check_refused(web_xml, "vda", "sda", NULL, -EEXIST, "sda");
	check_refused(web_xml, "vda", "disk1", NULL, -EINVAL, "disk1");
	check_refused(web_xml, "vda", "vd", NULL, -EINVAL, "no disk's name");
	check_refused(web_xml, "vda", "", NULL, -EINVAL, "no disk's name");
	check_refused(web_xml, "vda", NULL, "fdc", -EINVAL, "virtio, scsi");
	check_refused("<domain/>", "vda", NULL, NULL, -EINVAL, "");
}

static void test_block(void)
{
	const struct domain_disk_file files[] = {{.target = "vda", .path = "/dev/loop1", .format = "raw", .is_block = true},
						 {.target = "vdf", .path = "/dev/b&w", .format = "raw", .is_block = true},
						 {.target = "vdb", .path = "/img/b.raw", .format = "raw"}};
	char *out = NULL, *again = NULL;
	CHECK_INT(domain_render(web_xml, strlen(web_xml), NULL, NULL, files, 3, &out, &why), 0);
	CHECK(schema_accepts(schema, out));
	CHECK_COUNT(out, "//disk[target/@dev='vda'][@type='block' and source/@dev='/dev/loop1' and not(source/@file) and serial]", 1);
	CHECK_COUNT(out, "//disk[target/@dev='vdf'][@type='block' and @device='disk' and source/@dev='/dev/b&w' and target/@bus='virtio']", 1);
	CHECK_COUNT(out, "//disk[target/@dev='vdb'][@type='file' and source/@file='/img/b.raw' and not(source/@dev)]", 1);
	CHECK_INT(domain_render(out, strlen(out), NULL, NULL, files, 3, &again, &why), 0);
	CHECK_STR(again, out);
	free(again);
	free(out);
}

int main(void)
{
	schema = schema_load(SCHEMAS "domain.rng");
	xml_init();
	test_nothing();
	test_target();
	test_bus();
	test_serial();
	test_refused();
	test_block();
	xmlRelaxNGFree(schema);
	return test_result();
}
