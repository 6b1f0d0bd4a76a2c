/* libvirt's snapshot metadata: read, made public and made new, against libvirt's schemas. */
#include <errno.h>

#include "meta/domsnapshot.h"
#include "meta_test.h"

static xmlRelaxNGPtr schema, domain_schema;

/* As libvirt keeps an external snapshot of a running domain. */
static const char private_xml[] =
    "<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE\nOVERWRITTEN AND LOST.\n-->\n\n"
    "<domainsnapshot>\n"
    "  <name>upgraded</name>\n"
    "  <description>after &lt;dist-upgrade&gt;</description>\n"
    "  <state>running</state>\n"
    "  <parent>\n"
    "    <name>fresh</name>\n"
    "  </parent>\n"
    "  <creationTime>1700000000</creationTime>\n"
    "  <memory snapshot='external' file='/img/web.mem'/>\n"
    "  <disks>\n"
    "    <disk name='vda' snapshot='external' type='file'>\n"
    "      <driver type='qcow2'/>\n"
    "      <source file='/img/web.upgraded'/>\n"
    "      <snapshotDeleteInProgress/>\n"
    "    </disk>\n"
    "    <disk name='/img/data.qcow2' snapshot='internal'/>\n"
    "    <disk name='vdc' snapshot='no'/>\n"
    "    <disk name='vdd' snapshot='manual'/>\n"
    "    <disk name='sda' snapshot='no'/>\n"
    "  </disks>\n"
    "  <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
    "    <name>web</name>\n"
    "    <uuid>2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11</uuid>\n"
    "    <memory unit='KiB'>1048576</memory>\n"
    "    <os>\n"
    "      <type arch='x86_64'>hvm</type>\n"
    "    </os>\n"
    "    <devices>\n"
    "      <disk type='file' device='disk'>\n"
    "        <driver name='qemu' type='qcow2'/>\n"
    "        <source file='/img/web.qcow2'/>\n"
    "        <target dev='vda' bus='virtio'/>\n"
    "      </disk>\n"
    "      <disk type='file' device='disk'>\n"
    "        <driver name='qemu' type='qcow2'/>\n"
    "        <source file='/img/data.qcow2'/>\n"
    "        <target dev='vdb' bus='virtio'/>\n"
    "      </disk>\n"
    "    </devices>\n"
    "    <qemu:commandline>\n"
    "      <qemu:arg value='-nodefaults'/>\n"
    "    </qemu:commandline>\n"
    "  </domain>\n"
    "  <inactiveDomain type='kvm'>\n"
    "    <name>web</name>\n"
    "    <memory unit='KiB'>1048576</memory>\n"
    "    <os>\n"
    "      <type arch='x86_64'>hvm</type>\n"
    "    </os>\n"
    "  </inactiveDomain>\n"
    "  <revertDisks>\n"
    "    <disk name='vda' snapshot='external'/>\n"
    "  </revertDisks>\n"
    "  <cookie>\n"
    "    <cpu mode='host-model'/>\n"
    "  </cookie>\n"
    "  <active>1</active>\n"
    "</domainsnapshot>\n";

static void parse(const char *text, struct domsnapshot *ret)
{
	struct reason why = {0};
	*ret = (struct domsnapshot){0};
	CHECK_INT(domsnapshot_parse_text(text, strlen(text), ret, &why), 0);
	CHECK_STR(why.text, "");
}

static void test_words(void)
{
	struct domsnapshot s;
	parse(private_xml, &s);
	CHECK_STR(s.name, "upgraded");
	CHECK_STR(s.description, "after <dist-upgrade>");
	CHECK_STR(s.state, "running");
	CHECK_STR(s.parent, "fresh");
	CHECK_INT(s.created, 1700000000);
	CHECK(s.active && s.has_domain);
	CHECK_INT(s.memory, DOMSNAPSHOT_EXTERNAL);
	CHECK_STR(s.memory_file, "/img/web.mem");
	CHECK_STR(s.domain.name, "web");
	CHECK_INT(s.domain.nr_disks, 2);
	domsnapshot_done(&s);
	domsnapshot_done(&s);
}

static void test_disks(void)
{
	struct domsnapshot s;
	parse(private_xml, &s);
	CHECK_INT(s.nr_disks, 5);
	if (s.nr_disks == 5) {
		CHECK_STR(s.disks[0].name, "vda");
		CHECK_STR(s.disks[0].overlay, "/img/web.upgraded");
		CHECK_STR(s.disks[1].name, "vdb");
		CHECK_STR(s.disks[1].overlay, NULL);
	}
	CHECK_INT(domsnapshot_disk_location(&s, "vda"), DOMSNAPSHOT_EXTERNAL);
	CHECK_INT(domsnapshot_disk_location(&s, "vdb"), DOMSNAPSHOT_INTERNAL);
	CHECK_INT(domsnapshot_disk_location(&s, "vdc"), DOMSNAPSHOT_NONE);
	CHECK_INT(domsnapshot_disk_location(&s, "vdd"), DOMSNAPSHOT_NONE);
	CHECK_INT(domsnapshot_disk_location(&s, "vde"), DOMSNAPSHOT_EXTERNAL);
	domsnapshot_done(&s);
}

#define SNAPSHOT(rest) "<domainsnapshot><name>s</name>" rest "</domainsnapshot>"
#define FOUR_DISKS                                                                                                     \
	"<domain type='kvm'><name>n</name><devices>"                                                                   \
	"<disk type='file'><source file='/a'/><target dev='vda'/></disk>"                                              \
	"<disk type='file' snapshot='no'><source file='/b'/><target dev='vdb'/></disk>"                                \
	"<disk type='file'><source file='/c'/><target dev='vdc'/><readonly/></disk>"                                   \
	"<disk type='file'><target dev='vdd'/></disk></devices></domain>"

static void test_without_disks(void)
{
	struct domsnapshot s;
	parse(SNAPSHOT("<state>running</state>" FOUR_DISKS), &s);
	CHECK_INT(s.nr_disks, 4);
	CHECK_INT(domsnapshot_disk_location(&s, "vda"), DOMSNAPSHOT_INTERNAL);
	CHECK_INT(domsnapshot_disk_location(&s, "vdb"), DOMSNAPSHOT_NONE);
	CHECK_INT(domsnapshot_disk_location(&s, "vdc"), DOMSNAPSHOT_NONE);
	CHECK_INT(domsnapshot_disk_location(&s, "vdd"), DOMSNAPSHOT_NONE);
	domsnapshot_done(&s);
	parse(SNAPSHOT("<state>disk-snapshot</state>" FOUR_DISKS), &s);
	CHECK_INT(domsnapshot_disk_location(&s, "vda"), DOMSNAPSHOT_EXTERNAL);
	domsnapshot_done(&s);
	parse(SNAPSHOT("<domain><uuid>2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11</uuid></domain>"), &s);
	CHECK(!s.has_domain && s.nr_disks == 0);
	domsnapshot_done(&s);
}

static void test_unsaid(void)
{
	struct domsnapshot s;
	parse(SNAPSHOT("<state>shutoff</state><disks><disk name='vda'/><disk name='vdb'><source file='/o'/></disk>"
	               "<disk name='/nowhere' snapshot='internal'/></disks>" FOUR_DISKS),
	      &s);
	CHECK_INT(domsnapshot_disk_location(&s, "vda"), DOMSNAPSHOT_INTERNAL);
	CHECK_INT(domsnapshot_disk_location(&s, "vdb"), DOMSNAPSHOT_EXTERNAL);
	CHECK_INT(domsnapshot_disk_location(&s, "vdc"), DOMSNAPSHOT_NONE);
	CHECK_INT(domsnapshot_disk_location(&s, "/nowhere"), DOMSNAPSHOT_INTERNAL);
	CHECK(!s.active && !s.parent && !s.description && s.created == 0);
	domsnapshot_done(&s);
}

static void test_memory(void)
{
	static const struct {
		const char *text;
		enum domsnapshot_location memory;
	} rows[] = {
	    {SNAPSHOT("<state>shutoff</state>"), DOMSNAPSHOT_NONE},
	    {SNAPSHOT("<state>disk-snapshot</state>"), DOMSNAPSHOT_NONE},
	    {SNAPSHOT("<state>running</state>"), DOMSNAPSHOT_INTERNAL},
	    {SNAPSHOT("<state>paused</state>"), DOMSNAPSHOT_INTERNAL},
	    {SNAPSHOT("<state>running</state><memory snapshot='no'/>"), DOMSNAPSHOT_NONE},
	    {SNAPSHOT("<state>running</state><memory file='/m'/>"), DOMSNAPSHOT_EXTERNAL},
	    {SNAPSHOT("<state>shutoff</state><memory snapshot='internal'/>"), DOMSNAPSHOT_INTERNAL},
	};
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		struct domsnapshot s;
		parse(rows[i].text, &s);
		CHECK_INT(s.memory, rows[i].memory);
		CHECK_STR(s.memory_file, rows[i].memory == DOMSNAPSHOT_EXTERNAL ? "/m" : NULL);
		domsnapshot_done(&s);
	}
}

static void check_refused(const char *text, const char *word)
{
	struct domsnapshot s = {0};
	struct reason why = {0};
	CHECK_INT(domsnapshot_parse_text(text, strlen(text), &s, &why), -EINVAL);
	if (!strstr(why.text, word)) {
		printf("the reason for %s says '%s', not '%s'\n", text, why.text, word);
		failures++;
	}
	CHECK(!s.name && !s.disks);
}

static void test_refused(void)
{
	check_refused("<domain><name>n</name></domain>", "<domain>");
	check_refused("<domainsnapshot/>", "no <name>");
	check_refused(SNAPSHOT("<disks><disk/></disks>"), "without a name");
	check_refused(SNAPSHOT("<domain><name>n</name><devices><disk/></devices></domain>"), "snapshot s: ");
	check_refused("<!DOCTYPE x [<!ENTITY e 'x'>]>" SNAPSHOT(""), "DTD");
	char *text = NULL;
	CHECK_INT(domsnapshot_domain_text("<domain/>", 9, &text, NULL), -EINVAL);
	CHECK_INT(domsnapshot_public_text("<domain/>", 9, &text, NULL), -EINVAL);
}

static void test_domain_text(void)
{
	char *text = NULL;
	CHECK_INT(domsnapshot_domain_text(private_xml, strlen(private_xml), &text, NULL), 0);
	CHECK(schema_accepts(domain_schema, text));
	CHECK(text && strncmp(text, "<domain ", 8) == 0 && strstr(text, "\n  <name>web</name>\n"));
	CHECK(text && strcmp(text + strlen(text) - strlen("\n</domain>\n"), "\n</domain>\n") == 0);
	CHECK_XPATH(text, "/domain/qemu:commandline/qemu:arg/@value", "-nodefaults");
	free(text);
	struct reason why = {0};
	static const char none[] = SNAPSHOT("<domain><uuid>2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11</uuid></domain>");
	CHECK_INT(domsnapshot_domain_text(none, strlen(none), &text, &why), -ENOENT);
	CHECK(strstr(why.text, "no configuration"));
}

static void test_namespace_of_the_snapshot(void)
{
	static const char outer[] =
	    "<domainsnapshot xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>s</name><domain type='kvm'>"
	    "<name>n</name><memory>1</memory><os><type>hvm</type></os>"
	    "<qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain></domainsnapshot>";
	char *text = NULL;
	CHECK_INT(domsnapshot_domain_text(outer, strlen(outer), &text, NULL), 0);
	CHECK(schema_accepts(domain_schema, text));
	CHECK_XPATH(text, "/domain/qemu:commandline/qemu:arg/@value", "-x");
	free(text);
}

static void test_public_text(void)
{
	char *text = NULL, *again = NULL;
	CHECK_INT(domsnapshot_public_text(private_xml, strlen(private_xml), &text, NULL), 0);
	CHECK(schema_accepts(schema, text));
	CHECK_COUNT(text, "//active | //cookie | //revertDisks | //inactiveDomain | //snapshotDeleteInProgress", 0);
	CHECK_COUNT(text, "/domainsnapshot/*", 8);
	CHECK_XPATH(text, "//disk[@name='vda']/source/@file", "/img/web.upgraded");
	CHECK_INT(domsnapshot_public_text(text, strlen(text), &again, NULL), 0);
	CHECK_STR(again, text);
	free(text);
	free(again);
	/* only what goes, with white space that goes with it */
	static const char bare[] = "<domainsnapshot>\n  <active>0</active>\n</domainsnapshot>";
	CHECK_INT(domsnapshot_public_text(bare, strlen(bare), &text, NULL), 0);
	CHECK_STR(text, "<domainsnapshot/>\n");
	free(text);
}

static void test_render(void)
{
	char *domain = NULL, *text = NULL;
	CHECK_INT(domsnapshot_domain_text(private_xml, strlen(private_xml), &domain, NULL), 0);
	struct domsnapshot_disk disks[] = {
	    {.name = "vda", .location = DOMSNAPSHOT_EXTERNAL, .overlay = "/a & b"},
	    {.name = "vdb", .location = DOMSNAPSHOT_INTERNAL},
	    {.name = "vdc", .location = DOMSNAPSHOT_NONE, .overlay = "/unused"},
	    {.name = "vdd", .location = DOMSNAPSHOT_EXTERNAL},
	};
	struct domsnapshot_spec spec = {.name = "a<b",
	                                .description = "two\nlines",
	                                .state = "running",
	                                .parent = "p&q",
	                                .created = 1700000001,
	                                .has_memory = true,
	                                .disks = disks,
	                                .nr_disks = 4,
	                                .domain_text = domain};
	CHECK_INT(domsnapshot_render(&spec, &text), 0);
	CHECK(schema_accepts(schema, text));
	struct domsnapshot s;
	parse(text, &s);
	CHECK_STR(s.name, "a<b");
	CHECK_STR(s.description, "two\nlines");
	CHECK_STR(s.parent, "p&q");
	CHECK_INT(s.created, 1700000001);
	CHECK_INT(s.memory, DOMSNAPSHOT_INTERNAL);
	CHECK_INT(s.nr_disks, 4);
	CHECK_INT(domsnapshot_disk_location(&s, "vdc"), DOMSNAPSHOT_NONE);
	CHECK_STR(s.nr_disks == 4 ? s.disks[0].overlay : NULL, "/a & b");
	domsnapshot_done(&s);
	/* and the configuration comes out as it went in */
	char *back = NULL;
	CHECK_INT(domsnapshot_domain_text(text, strlen(text), &back, NULL), 0);
	CHECK_STR(back, domain);
	free(back);
	free(text);
	free(domain);
}

static void test_render_little(void)
{
	char *text = NULL;
	struct domsnapshot_spec spec = {.name = "s", .state = "shutoff"};
	CHECK_INT(domsnapshot_render(&spec, &text), 0);
	CHECK(schema_accepts(schema, text));
	CHECK_COUNT(text, "//description | //parent | //domain", 0);
	free(text);
	spec.state = "running";
	spec.memory_file = "/a <b>";
	CHECK_INT(domsnapshot_render(&spec, &text), 0);
	CHECK(schema_accepts(schema, text));
	CHECK_XPATH(text, "/domainsnapshot/memory[@snapshot='external']/@file", "/a <b>");
	free(text);
	spec.memory_file = "/a\n\tb\r";
	struct domsnapshot s;
	CHECK_INT(domsnapshot_render(&spec, &text), 0);
	parse(text, &s);
	CHECK_STR(s.memory_file, "/a\n\tb\r");
	domsnapshot_done(&s);
	free(text);
	spec.memory_file = NULL;
	spec.domain_text = "</domainsnapshot><evil/>";
	CHECK_INT(domsnapshot_render(&spec, &text), -EINVAL);
	spec.domain_text = "<network/>";
	CHECK_INT(domsnapshot_render(&spec, &text), -EINVAL);
	spec.domain_text = NULL;
	spec.name = "\x07";
	CHECK_INT(domsnapshot_render(&spec, &text), -EINVAL);
}

int main(void)
{
	schema = schema_load(SCHEMAS "domainsnapshot.rng");
	domain_schema = schema_load(SCHEMAS "domain.rng");
	xml_init();
	test_words();
	test_disks();
	test_without_disks();
	test_unsaid();
	test_memory();
	test_refused();
	test_domain_text();
	test_namespace_of_the_snapshot();
	test_public_text();
	test_render();
	test_render_little();
	xmlRelaxNGFree(schema);
	xmlRelaxNGFree(domain_schema);
	return test_result();
}
