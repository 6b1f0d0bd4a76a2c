/* What domain_parse says of a domain, and domain_minimal against libvirt's schema. */
#include <errno.h>

#include "meta/domain.h"
#include "meta_fixtures.h"
#include "meta_test.h"

static void test_web(void)
{
	struct domain d = {0};
	CHECK_INT(domain_parse_text(web_xml, sizeof web_xml - 1, &d, NULL), 0);
	CHECK_STR(d.name, "web");
	CHECK_STR(d.uuid, "2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11");
	CHECK_STR(d.title, "The <web> server & more");
	CHECK_STR(d.nvram, "/var/lib/libvirt/qemu/nvram/web_VARS.fd");
	CHECK_INT(d.nr_disks, 4);
	domain_done(&d);
	domain_done(&d);
}

static void test_web_disks(void)
{
	struct domain d = {0};
	CHECK_INT(domain_parse_text(web_xml, sizeof web_xml - 1, &d, NULL), 0);
	if (d.nr_disks == 4) {
		const struct domain_disk *vda = &d.disks[0], *vdb = &d.disks[1], *vdc = &d.disks[2], *hda = &d.disks[3];
		CHECK_STR(vda->target, "vda");
		CHECK_STR(vda->path, "/img/web.overlay");
		CHECK_STR(vda->format, "qcow2");
		CHECK(vda->kind == DOMAIN_DISK_FILE && !vda->shareable && !vda->readonly && !vda->encrypted);
		CHECK_STR(vda->snapshot, NULL);
		CHECK_STR(vdb->path, "/dev/vg/data");
		CHECK(vdb->kind == DOMAIN_DISK_BLOCK && vdb->shareable);
		CHECK_STR(vdb->snapshot, "no");
		CHECK_STR(vdb->source_type, "block");
		CHECK(vdc->kind == DOMAIN_DISK_OTHER && !vdc->path);
		CHECK_STR(vdc->source_type, "network");
		CHECK_STR(hda->path, "/img/ünï.raw");
		CHECK_STR(hda->format, "raw");
		CHECK(hda->kind == DOMAIN_DISK_FILE && hda->readonly && hda->encrypted);
	}
	domain_done(&d);
}

static int parse(const char *text, struct domain *d)
{
	*d = (struct domain){0};
	return domain_parse_text(text, strlen(text), d, NULL);
}

static void test_old_and_new_forms(void)
{
	struct domain d;
	CHECK_INT(
	    parse(
	        "<domain type='xen'><name> n </name><os><nvram type='file'><source file='/v.fd'/></nvram></os><devices>"
	        "<disk device='disk'><driver name='tap' type='aio'/><source file='/a b'/><target "
	        "dev='ioemu:hda'/></disk>"
	        "<disk><encryption format='qcow'/><target dev='xvdb'/></disk></devices>"
	        "<devices><disk><target dev='xvdc'/></disk></devices></domain>",
	        &d),
	    0);
	CHECK_STR(d.name, "n");
	CHECK_STR(d.nvram, "/v.fd");
	CHECK(!d.uuid && !d.title);
	CHECK_INT(d.nr_disks, 3);
	if (d.nr_disks == 3) {
		CHECK_STR(d.disks[0].path, "/a b");
		CHECK_STR(d.disks[0].format, "raw");
		CHECK_STR(d.disks[0].source_type, "file");
		CHECK(!d.disks[1].path && d.disks[1].encrypted);
		CHECK_STR(d.disks[2].target, "xvdc");
	}
	domain_done(&d);
}

static void check_refused(const char *text, const char *word)
{
	struct domain d = {0};
	struct reason why = {0};
	CHECK_INT(domain_parse_text(text, strlen(text), &d, &why), -EINVAL);
	if (!strstr(why.text, word)) {
		printf("the reason for %s says '%s', not '%s'\n", text, why.text, word);
		failures++;
	}
	CHECK(!d.name && !d.disks);
}

#define DISKS(disks) "<domain><name>n</name><devices>" disks "</devices></domain>"

static void test_refused(void)
{
	check_refused("<network><name>n</name></network>", "<network>");
	check_refused("<domain xmlns='urn:other'><name>n</name></domain>", "domain");
	check_refused("<domain/>", "no <name>");
	check_refused("<domain><name> </name></domain>", "no <name>");
	check_refused("<domain><x:name xmlns:x='urn:x'>n</x:name></domain>", "no <name>");
	check_refused(DISKS("<disk/>"), "target");
	check_refused(DISKS("<disk><target dev='../../etc/x'/></disk>"), "../../etc/x");
	check_refused(DISKS("<disk><target dev='.x'/></disk>"), ".x");
	check_refused(DISKS("<disk><target dev='vda'/></disk><disk><target dev='vda'/></disk>"), "two disks");
	check_refused("<!DOCTYPE domain [<!ENTITY e SYSTEM '/etc/passwd'>]><domain><name>&e;</name></domain>", "DTD");
}

static void test_many_disks(void)
{
	size_t room = 64 * (DOMAIN_DISKS_MAX + 2);
	char *text = malloc(room), *p = text;
	if (!text)
		abort();
	p += sprintf(p, "<domain><name>n</name><devices>");
	for (int i = 0; i <= DOMAIN_DISKS_MAX; i++)
		p += sprintf(p, "<disk><target dev='d%d'/></disk>", i);
	strcpy(p, "</devices></domain>");
	check_refused(text, "more than");
	free(text);
}

static void test_minimal(xmlRelaxNGPtr schema)
{
	char *text = NULL;
	struct domain d = {0};
	CHECK_INT(domain_minimal("a<b>&'c", "2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11", &text), 0);
	CHECK(schema_accepts(schema, text));
	CHECK_INT(domain_parse_text(text, strlen(text), &d, NULL), 0);
	CHECK_STR(d.name, "a<b>&'c");
	CHECK_STR(d.uuid, "2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11");
	CHECK_INT(d.nr_disks, 0);
	domain_done(&d);
	free(text);
	CHECK_INT(domain_minimal("n", NULL, &text), 0);
	CHECK(schema_accepts(schema, text));
	free(text);
	CHECK_INT(domain_minimal("\x1b[2J", NULL, &text), -EINVAL);
}

int main(void)
{
	xmlRelaxNGPtr schema = schema_load(SCHEMAS "domain.rng");
	xml_init();
	CHECK(schema_accepts(schema, web_xml));
	test_web();
	test_web_disks();
	test_old_and_new_forms();
	test_refused();
	test_many_disks();
	test_minimal(schema);
	xmlRelaxNGFree(schema);
	return test_result();
}
