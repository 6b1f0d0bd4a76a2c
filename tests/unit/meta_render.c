/* domain_render: exactly the wanted disks, valid by libvirt's schema, and the rest as it was. */
#include <errno.h>

#include "meta/domain.h"
#include "meta_fixtures.h"
#include "meta_test.h"

static xmlRelaxNGPtr schema;

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define DISK(target) "/domain/devices/disk[target/@dev='" target "']"

static int render(const char *text, const struct domain_disk_file *files, size_t nr, char **ret, struct reason *why)
{
	*ret = NULL;
	return domain_render(text, strlen(text), NULL, NULL, files, nr, ret, why);
}

/* Rendered, checked against the schema, and stable: rendering the result once more changes nothing. */
static char *rendered(const char *text, const struct domain_disk_file *files, size_t nr)
{
	char *once = NULL, *twice = NULL;
	struct reason why = {0};
	CHECK_INT(render(text, files, nr, &once, &why), 0);
	CHECK_STR(why.text, "");
	CHECK(schema_accepts(schema, once));
	if (once)
		CHECK_INT(render(once, files, nr, &twice, NULL), 0);
	CHECK_STR(twice, once);
	free(twice);
	return once;
}

static void test_nothing_changes(void)
{
	static const char text[] =
	    "<!-- before -->\n<domain type=\"kvm\">\n  <name>n</name>\n  <memory>1</memory>\n"
	    "  <os>\n<type>hvm</type></os>  <devices><disk type=\"file\"><driver type=\"raw\" io=\"native\"/>"
	    "<source file=\"/ä\" index=\"1\"/><target dev=\"vda\"/></disk>\n\n\t</devices>\n"
	    "</domain>\n<!-- behind -->\n";
	const struct domain_disk_file files[] = {{"vda", "/ä", "raw", false}};
	char *out = rendered(text, files, COUNT(files));
	CHECK_STR(out, text);
	free(out);
}

static void test_identity(void)
{
	char *out = NULL;
	CHECK_INT(domain_render(web_xml, strlen(web_xml), "new <name>", "11111111-2222-3333-4444-555555555555", NULL, 0,
	                        &out, NULL),
	          0);
	CHECK(schema_accepts(schema, out));
	CHECK_XPATH(out, "/domain/name", "new <name>");
	CHECK_XPATH(out, "/domain/uuid", "11111111-2222-3333-4444-555555555555");
	CHECK_XPATH(out, "/domain/sysinfo/system/entry[@name='uuid']", "11111111-2222-3333-4444-555555555555");
	CHECK_XPATH(out, "/domain/sysinfo/system/entry[@name='manufacturer']", "Täst");
	CHECK_XPATH(out, "/domain/qemu:commandline/qemu:arg/@value", "-nodefaults");
	CHECK(strstr(out, "  <!-- kept: a comment -->\n"));
	CHECK(strstr(out, "<app:name>web</app:name>\t two  spaces</app:thing>\n"));
	free(out);
}

static void check_uuid(const char *text, const char *name, const char *want)
{
	char *out = NULL;
	CHECK_INT(domain_render(text, strlen(text), name, "2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11", NULL, 0, &out, NULL),
	          0);
	CHECK_STR(out, want);
	free(out);
}

static void test_uuid(void)
{
	check_uuid("<domain><name>n</name><uuid>2F3C0B5E1D584C8E9A530A7F2F1F7C11</uuid></domain>", "n",
	           "<domain><name>n</name><uuid>2F3C0B5E1D584C8E9A530A7F2F1F7C11</uuid></domain>\n");
	check_uuid("<domain>\n  <name>n</name>\n</domain>", "m",
	           "<domain>\n  <name>m</name>\n  <uuid>2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11</uuid>\n</domain>\n");
	check_uuid("<domain><name>n</name><uuid>2F3C0B5E</uuid></domain>", "n",
	           "<domain><name>n</name><uuid>2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11</uuid></domain>\n");
}

/* A file, a block device, a network disk and an encrypted file all become plain files. */
static void test_replaced(void)
{
	const struct domain_disk_file files[] = {{"vda", "/s/a & b.qcow2", "qcow2", false},
	                                         {"vdb", "/s/b.qcow2", "qcow2", false},
	                                         {"vdc", "/s/c.raw", "raw", false},
	                                         {"hda", "/s/d.qcow2", "qcow2", false}};
	char *out = rendered(web_xml, files, COUNT(files));
	CHECK_COUNT(out, "/domain/devices/disk", 6);
	CHECK_COUNT(out, "//disk[not(@device) or @device='disk'][@type='file']", 4);
	CHECK_XPATH(out, DISK("vda") "/source/@file", "/s/a & b.qcow2");
	CHECK_COUNT(out, DISK("vda") "/source/@*", 1);
	CHECK_COUNT(out, DISK("vda") "/source/*", 0);
	CHECK_COUNT(out, "//backingStore", 0);
	CHECK_XPATH(out, DISK("vda") "/driver/@cache", "none");
	CHECK_XPATH(out, DISK("vda") "/serial", "WD-1234");
	CHECK_XPATH(out, DISK("vda") "/alias/@name", "virtio-disk0");
	CHECK_XPATH(out, DISK("vdb") "/source/@file", "/s/b.qcow2");
	CHECK_COUNT(out, DISK("vdb") "/source/@dev | //reservations", 0);
	CHECK_XPATH(out, DISK("vdb") "/driver/@type", "qcow2");
	CHECK_XPATH(out, DISK("vdb") "/@snapshot", "no");
	CHECK_COUNT(out, DISK("vdb") "/shareable", 1);
	CHECK_XPATH(out, DISK("vdc") "/driver/@type", "raw");
	CHECK_COUNT(out, DISK("vdc") "/source/@protocol | //auth | //host", 0);
	CHECK_XPATH(out, DISK("hda") "/driver/@name", "qemu");
	CHECK_XPATH(out, DISK("hda") "/driver/@type", "qcow2");
	CHECK_COUNT(out, "//encryption", 0);
	free(out);
}

static void test_gone(void)
{
	char *out = rendered(web_xml, NULL, 0);
	CHECK_COUNT(out, "/domain/devices/disk", 3);
	CHECK_COUNT(out, DISK("vdc") "[@type='network']/source/host", 1);
	CHECK_COUNT(out, DISK("sda") "[@device='cdrom']", 1);
	CHECK_COUNT(out, DISK("sdb") "[@device='lun']", 1);
	free(out);
}

static void test_added(void)
{
	const struct domain_disk_file files[] = {
	    {"vdz", "/s/1", "qcow2", false}, {"sdc", "/s/2", "raw", false}, {"hdb", "/s/3", "raw", false}, {"xvdaa", "/s/4", "raw", false}};
	char *out = rendered(web_xml, files, COUNT(files));
	CHECK_COUNT(out, "/domain/devices/disk", 7);
	CHECK_XPATH(out, DISK("vdz") "/target/@bus", "virtio");
	CHECK_XPATH(out, DISK("vdz") "/source/@file", "/s/1");
	CHECK_XPATH(out, DISK("sdc") "/target/@bus", "scsi");
	CHECK_XPATH(out, DISK("hdb") "/target/@bus", "ide");
	CHECK_XPATH(out, DISK("xvdaa") "/target/@bus", "xen");
	CHECK(out && strstr(out, "    <disk type=\"file\" device=\"disk\">\n"
	                         "      <driver name=\"qemu\" type=\"qcow2\"/>\n"
	                         "      <source file=\"/s/1\"/>\n"
	                         "      <target dev=\"vdz\" bus=\"virtio\"/>\n"
	                         "    </disk>\n"));
	free(out);
}

static void test_added_to_minimal(void)
{
	const struct domain_disk_file files[] = {{"vda", "/s/1", "qcow2", false}, {"sda", "/s/2", "raw", false}};
	char *minimal = NULL;
	CHECK_INT(domain_minimal("n", NULL, &minimal), 0);
	char *out = rendered(minimal, files, COUNT(files));
	CHECK_XPATH(out, DISK("sda") "/target/@bus", "sata");
	free(out);
	out =
	    rendered("<domain type='kvm'><name>n</name><memory>1</memory><os><type>hvm</type></os></domain>", files, 2);
	CHECK_COUNT(out, "/domain/devices/disk", 2);
	free(out);
	free(minimal);
}

static void test_qcow2_only_settings(void)
{
	static const char text[] =
	    "<domain type='kvm'><name>n</name><memory>1</memory><os><type>hvm</type></os><devices><disk type='file'>"
	    "<driver name='qemu' type='qcow2'><metadata_cache><max_size "
	    "unit='bytes'>1</max_size></metadata_cache></driver>"
	    "<source file='/a'/><target dev='vda' bus='virtio'/></disk></devices></domain>";
	const struct domain_disk_file raw[] = {{"vda", "/b", "raw", false}}, qcow2[] = {{"vda", "/b", "qcow2", false}};
	char *out = rendered(text, raw, 1);
	CHECK_COUNT(out, "//metadata_cache", 0);
	free(out);
	out = rendered(text, qcow2, 1);
	CHECK_COUNT(out, "//metadata_cache", 1);
	free(out);
}

static void test_mirror(void)
{
	static const char text[] =
	    "<domain type='kvm'><name>n</name><memory>1</memory><os><type>hvm</type></os><devices><disk type='file'>"
	    "<source file='/a'/><mirror type='file' job='copy'><format type='raw'/><source file='/b'/></mirror>"
	    "<target dev='vda' bus='virtio'/></disk></devices></domain>";
	const struct domain_disk_file files[] = {{"vda", "/a", "qcow2", false}};
	CHECK(schema_accepts(schema, text));
	char *out = rendered(text, files, 1);
	CHECK_COUNT(out, "//mirror", 0);
	free(out);
}

static void test_notice_is_dropped(void)
{
	char *out = rendered("<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE\n"
	                     "OVERWRITTEN AND LOST.\n-->\n<domain type='kvm'><name>n</name><memory>1</memory>"
	                     "<os><type>hvm</type></os></domain>",
	                     NULL, 0);
	CHECK(out && !strstr(out, "AUTO-GENERATED"));
	free(out);
}

static void check_refused(const char *text, const struct domain_disk_file *files, size_t nr, int err, const char *word)
{
	char *out = NULL;
	struct reason why = {0};
	CHECK_INT(render(text, files, nr, &out, &why), err);
	CHECK(!out);
	if (!strstr(why.text, word)) {
		printf("the reason says '%s', not '%s'\n", why.text, word);
		failures++;
	}
}

static void test_refused(void)
{
	const struct domain_disk_file cdrom[] = {{"sda", "/s/1", "raw", false}}, no_disk[] = {{"eth0", "/s/1", "raw", false}},
	                              digits[] = {{"vd1", "/s/1", "raw", false}},
	                              twice[] = {{"vda", "/1", "raw", false}, {"vda", "/2", "raw", false}},
	                              bytes[] = {{"vda", "/s/\xff", "raw", false}};
	char *out = NULL;
	check_refused(web_xml, cdrom, 1, -EEXIST, "cdrom");
	check_refused(web_xml, no_disk, 1, -EINVAL, "eth0");
	check_refused(web_xml, digits, 1, -EINVAL, "vd1");
	check_refused(web_xml, twice, 2, -EEXIST, "twice");
	check_refused(web_xml, bytes, 1, -EINVAL, "UTF-8");
	check_refused("<network/>", NULL, 0, -EINVAL, "network");
	check_refused("<domain>", NULL, 0, -EINVAL, "line 1");
	CHECK_INT(domain_render(web_xml, strlen(web_xml), "\x01", NULL, NULL, 0, &out, NULL), -EINVAL);
}

int main(void)
{
	schema = schema_load(SCHEMAS "domain.rng");
	xml_init();
	test_nothing_changes();
	test_identity();
	test_uuid();
	test_replaced();
	test_gone();
	test_added();
	test_added_to_minimal();
	test_qcow2_only_settings();
	test_mirror();
	test_notice_is_dropped();
	test_refused();
	xmlRelaxNGFree(schema);
	return test_result();
}
