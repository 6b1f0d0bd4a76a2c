/* domain_clone_identity: nothing that two domains must not share, and nothing else changed. */
#include <errno.h>

#include "meta/domain.h"
#include "meta_fixtures.h"
#include "meta_test.h"

#define NEW_UUID "11111111-2222-3333-4444-555555555555"

static xmlRelaxNGPtr schema;

static char *cloned(const char *text, const char *name, const char *nvram)
{
	char *out = NULL;
	struct reason why = {0};
	CHECK_INT(domain_clone_identity(text, strlen(text), name, NEW_UUID, nvram, &out, &why), 0);
	CHECK_STR(why.text, "");
	CHECK(schema_accepts(schema, out));
	return out;
}

static void test_ids(const char *out)
{
	CHECK_XPATH(out, "/domain/name", "web2");
	CHECK_XPATH(out, "/domain/uuid", NEW_UUID);
	CHECK_XPATH(out, "/domain/sysinfo/system/entry[@name='uuid']", NEW_UUID);
	CHECK_COUNT(out, "/domain/@id | /domain/title", 0);
	CHECK_COUNT(out, "/domain/genid", 1);
	CHECK(strcmp(xpath(out, "string(/domain/genid)"), "43dc0cf8-809b-4adb-9bea-a9abb5f3d90e") != 0);
	CHECK_COUNT(out, "/domain/genid[string-length() = 36]", 1);
	CHECK_XPATH(out, "/domain/os/nvram", "/store/web2_VARS.fd");
	CHECK_XPATH(out, "/domain/os/nvram/@template", "/usr/share/OVMF/OVMF_VARS_4M.fd");
}

static void test_interfaces(const char *out)
{
	CHECK_COUNT(out, "//interface/target", 0);
	CHECK_COUNT(out, "//interface[1]/mac[starts-with(@address, '52:54:00:') and string-length(@address) = 17]", 1);
	CHECK_COUNT(out, "//interface[2]/mac[starts-with(@address, '00:16:3e:') and string-length(@address) = 17]", 1);
	CHECK(!strstr(out, "52:54:00:aa:bb:cc") && !strstr(out, "00:16:3e:01:02:03"));
}

static void test_paths(const char *out)
{
	CHECK_XPATH(out, "//serial[1]/source/@path", "/logs/web/web2.serial");
	CHECK_XPATH(out, "//serial[1]/log/@file", "/logs/web2-chardev.log");
	CHECK_XPATH(out, "//serial[2]/source/@path", "/run/collector/web");
	CHECK_XPATH(out, "//console/source/@path", "/logs/web/web2.serial");
	CHECK_XPATH(out, "//channel[1]/source/@path",
	            "/var/lib/libvirt/qemu/channel/target/domain-7-web2/org.qemu.guest_agent.0");
	CHECK_XPATH(out, "//channel[2]/source/@path", "/run/webcam.sock");
}

static void test_graphics(const char *out)
{
	CHECK_COUNT(out, "//graphics[1][@port='-1' and @tlsPort='-1' and @autoport='yes' and @listen='127.0.0.1']", 1);
	CHECK_COUNT(out, "//graphics[1]/listen[@address='127.0.0.1']", 1);
	CHECK_COUNT(out, "//graphics[2][@port='-1' and @websocket='-1' and @autoport='yes']", 1);
}

static void test_labels(const char *out)
{
	CHECK_COUNT(out, "/domain/seclabel[@type='dynamic']/*", 0);
	CHECK_XPATH(out, "/domain/seclabel[@type='static']/label", "+107:+107");
}

static size_t nr_lines(const char *text)
{
	size_t nr = 0;
	for (; *text; text++)
		nr += *text == '\n';
	return nr;
}

/* What wasn't named above is there, byte for byte: the lines of the source that aren't in the clone are the changed
 * ones. */
static void test_rest(const char *out)
{
	char *source = strdup(web_xml), *save = NULL;
	size_t changed = 0;
	for (char *line = strtok_r(source, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		changed += strstr(out, line) == NULL;
	free(source);
	/* domain, name, uuid, genid, title, sysinfo, nvram, MAC twice, vnet3, serial (and console: the same line), its
	 * log, channel, graphics twice, label, imagelabel; </seclabel> is found at the other one, its <seclabel …>
	 * isn't. */
	CHECK_INT(changed, 19);
	CHECK_INT(nr_lines(web_xml) - nr_lines(out), 5);
	CHECK(strstr(out, "/img/web.overlay") && strstr(out, "<app:name>web</app:name>"));
}

static void test_two_clones_differ(const char *out)
{
	char *other = cloned(web_xml, "web2", "/store/web2_VARS.fd");
	char *mac = strdup(xpath(out, "string(//interface[1]/mac/@address)"));
	CHECK(strcmp(xpath(other, "string(//interface[1]/mac/@address)"), mac) != 0);
	free(mac);
	char *genid = strdup(xpath(out, "string(//genid)"));
	CHECK(strcmp(xpath(other, "string(//genid)"), genid) != 0);
	free(genid);
	free(other);
}

static void test_nvram(void)
{
#define OS(nvram) "<domain type='kvm'><name>n</name><memory>1</memory><os><type>hvm</type>" nvram "</os></domain>"
	char *out = cloned(OS("<nvram template='/t.fd'>/old</nvram>"), "m", NULL);
	CHECK_COUNT(out, "//nvram", 0);
	free(out);
	out = cloned(OS("<nvram type='file'><source file='/old' index='1'/></nvram>"), "m", "/new");
	CHECK_XPATH(out, "//nvram[@type='file']/source/@file", "/new");
	CHECK_COUNT(out, "//nvram/source/@*", 1);
	CHECK(out && !strstr(out, "/old"));
	free(out);
	out = cloned(OS("<nvram type='block'><source dev='/dev/x'/></nvram>"), "m", "/new");
	CHECK_XPATH(out, "//nvram[@type='file']/source/@file", "/new");
	free(out);
	out = cloned(OS(""), "m", "/new");
	CHECK_COUNT(out, "//nvram", 0);
	free(out);
}

static void test_name_in_paths(void)
{
#define CHANNEL(path)                                                                                                  \
	"<domain type='kvm'><name>qemu</name><memory>1</memory><os><type>hvm</type></os><devices><channel "            \
	"type='unix'>"                                                                                                 \
	"<source mode='bind' path='" path "'/><target type='virtio' name='org.example'/></channel></devices></domain>"
	static const struct {
		const char *text, *path;
	} rows[] = {
	    {CHANNEL("/var/lib/libvirt/qemu/qemu.agent"), "/var/lib/libvirt/qemu/m.agent"},
	    {CHANNEL("/run/qemux/xqemu/qemü"), "/run/qemux/xqemu/qemü"},
	    {CHANNEL("qemu"), "m"},
	    {CHANNEL("/a/qemu_1"), "/a/m_1"},
	};
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		char *out = cloned(rows[i].text, "m", NULL);
		CHECK_XPATH(out, "//channel/source/@path", rows[i].path);
		free(out);
	}
}

static void test_graphics_socket(void)
{
	char *out =
	    cloned("<domain type='kvm'><name>n</name><memory>1</memory><os><type>hvm</type></os><devices>"
	           "<graphics type='vnc' socket='/run/n.vnc'><listen type='socket' socket='/run/n.vnc'/></graphics>"
	           "<graphics type='sdl' display=':0'/></devices></domain>",
	           "m", NULL);
	CHECK_COUNT(out, "//graphics/@port | //graphics/@autoport", 0);
	CHECK_XPATH(out, "//graphics/@socket", "/run/m.vnc");
	CHECK_XPATH(out, "//graphics/listen/@socket", "/run/m.vnc");
	free(out);
}

static void test_refused(void)
{
	char *out = NULL;
	struct reason why = {0};
	CHECK_INT(domain_clone_identity(web_xml, strlen(web_xml), "a/b", NEW_UUID, NULL, &out, &why), -EINVAL);
	CHECK(strstr(why.text, "a/b"));
	CHECK_INT(domain_clone_identity(web_xml, strlen(web_xml), "", NEW_UUID, NULL, &out, &why), -EINVAL);
	CHECK_INT(domain_clone_identity(web_xml, strlen(web_xml), "a", NEW_UUID, "/\xff", &out, &why), -EINVAL);
	CHECK_INT(domain_clone_identity("<domain/>", 9, "a", NEW_UUID, NULL, &out, &why), -EINVAL);
	CHECK(!out);
}

int main(void)
{
	schema = schema_load(SCHEMAS "domain.rng");
	xml_init();
	char *out = cloned(web_xml, "web2", "/store/web2_VARS.fd");
	if (out) {
		test_ids(out);
		test_interfaces(out);
		test_paths(out);
		test_graphics(out);
		test_labels(out);
		test_rest(out);
		test_two_clones_differ(out);
	}
	free(out);
	test_nvram();
	test_name_in_paths();
	test_graphics_socket();
	test_refused();
	xmlRelaxNGFree(schema);
	return test_result();
}
