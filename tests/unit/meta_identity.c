/* domain_clone_identity: nothing that two domains must not share, and nothing else changed. */
#include <errno.h>

#include "meta/domain.h"
#include "meta_fixtures.h"
#include "meta_test.h"

#define NEW_UUID "11111111-2222-3333-4444-555555555555"

static xmlRelaxNGPtr schema;

static char *notes; /* of the last clone */

static char *cloned(const char *text, const char *name, const char *nvram)
{
	char *out = NULL;
	struct reason why = {0};
	free(notes);
	notes = NULL;
	CHECK_INT(domain_clone_identity(text, strlen(text), name, NEW_UUID, nvram, &out, &notes, &why), 0);
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
	    {CHANNEL("/run/libvirt/other/org.example"), ""},
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

#define DEVICES(devices) \
	"<domain type='kvm'><name>n</name><uuid>2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11</uuid><memory>1</memory><os><type>hvm</type></os><devices>" \
	devices "</devices></domain>"

static void check_note(const char *words)
{
	if (!notes || !strstr(notes, words))
		CHECK_STR(notes, words);
}

/* What QEMU makes gets the new name; of what two VMs can't have there is a note. */
static void test_host(void)
{
	char *out = cloned(DEVICES("<interface type='vhostuser'><mac address='52:54:00:1:2:3'/><source type='unix' path='/run/n.sock' mode='server'/>"
				   "<model type='virtio'/></interface>"
				   "<interface type='vhostuser'><source type='unix' path='/run/n-client' mode='client'/><model type='virtio'/></interface>"
				   "<serial type='file'><source path='/var/log/serial'/></serial>"
				   "<console type='file'><source path='/var/log/serial'/></console>"
				   "<serial type='tcp'><source mode='bind' host='::1' service='4555'/></serial>"
				   "<serial type='tcp'><source mode='connect' host='::1' service='4556'/></serial>"
				   "<redirdev bus='usb' type='unix'><source mode='bind' path='/run/n.usb'/></redirdev>"
				   "<rng model='virtio'><backend model='egd' type='unix'><source mode='bind' path='/run/n.egd'/></backend></rng>"
				   "<audio id='1' type='file' path='/tmp/n.wav'/>"
				   "<vsock model='virtio'><cid auto='no' address='3'/></vsock>"
				   "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/><source type='unix' path='/run/blk'/>"
				   "<target dev='vdz' bus='virtio'/></disk>"),
			   "m", NULL);
	CHECK_XPATH(out, "//interface[1]/source/@path", "/run/m.sock");
	CHECK_XPATH(out, "//interface[2]/source/@path", "/run/n-client");
	CHECK_XPATH(out, "//redirdev/source/@path", "/run/m.usb");
	CHECK_XPATH(out, "//rng/backend/source/@path", "/run/m.egd");
	CHECK_XPATH(out, "//audio/@path", "/tmp/m.wav");
	CHECK_COUNT(out, "//vsock/cid[@auto='yes' and not(@address)]", 1);
	check_note("vhost-user socket /run/n-client is still");
	check_note("its serial is still /var/log/serial");
	check_note("its port 4555");
	check_note("vhost-user disk /run/blk");
	CHECK(!strstr(notes, "4556") && !strstr(notes, "console") && nr_lines(notes) == 3);
	free(out);
	out = cloned(DEVICES("<serial type='file'><source path='/log&#10;its soul is gone'/></serial>"), "m", NULL);
	CHECK(!strchr(notes, '\n'));
	free(out);
	out = cloned("<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>n</name><memory>1</memory><os><type>hvm</type></os>"
		     "<qemu:commandline><qemu:arg value='-x'/><qemu:arg value='path=/run/n.qmp'/></qemu:commandline></domain>",
		     "m", NULL);
	CHECK_XPATH(out, "//qemu:arg[2]/@value", "path=/run/n.qmp");
	check_note("QEMU argument path=/run/n.qmp");
	free(out);
}

static void test_ids_elsewhere(void)
{
	char *out = cloned("<domain type='kvm'><name>n</name><uuid>2F3C0B5E1D584C8E9A530A7F2F1F7C11</uuid><memory>1</memory>"
			   "<sysinfo type='smbios'><system><entry name='serial'>2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11</entry></system>"
			   "<baseBoard><entry name='serial'>B-1</entry><entry name='asset'>2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11</entry></baseBoard>"
			   "<chassis><entry name='serial'>C-1</entry></chassis></sysinfo><os><type>hvm</type></os><devices>"
			   "<interface type='bridge'><mac address='52:54:00:aa:BB:cc'/><source bridge='b'/><virtualport type='openvswitch'>"
			   "<parameters interfaceid='09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f'/></virtualport><filterref filter='f'>"
			   "<parameter name='MAC' value='52:54:00:AA:bb:cc'/><parameter name='IP' value='10.0.0.1'/></filterref></interface>"
			   "</devices></domain>",
			   "m", NULL);
	CHECK_XPATH(out, "/domain/uuid", NEW_UUID);
	CHECK_XPATH(out, "//system/entry", NEW_UUID);
	CHECK_XPATH(out, "//baseBoard/entry[@name='asset']", NEW_UUID);
	CHECK_XPATH(out, "//baseBoard/entry[@name='serial']", "B-1");
	CHECK_XPATH(out, "//chassis/entry", "C-1");
	CHECK_COUNT(out, "//parameters[@interfaceid != '09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f' and string-length(@interfaceid) = 36]", 1);
	CHECK_COUNT(out, "//interface[mac/@address = filterref/parameter[1]/@value]", 1);
	CHECK_XPATH(out, "//filterref/parameter[2]/@value", "10.0.0.1");
	CHECK_STR(notes, "");
	free(out);
}

/* State that lies outside the disks. */
static void test_state(void)
{
	char *out = cloned(DEVICES("<tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes'>"
				   "<encryption secret='6dd3e4a5-1d76-44ce-961f-f119f5aad935'/></backend></tpm>"
				   "<memory model='nvdimm' access='shared'><source><path>/mem/a</path></source><target><size>1</size><node>0</node></target></memory>"
				   "<memory model='nvdimm' access='private'><source><path>/mem/b</path></source><target><size>1</size><node>0</node></target></memory>"
				   "<memory model='dimm'><target><size>1</size><node>0</node></target></memory>"),
			   "m", NULL);
	CHECK_COUNT(out, "//tpm/backend[@persistent_state='yes']/encryption", 1);
	CHECK_COUNT(out, "//memory[@model]", 2);
	check_note("its TPM starts empty");
	check_note("its memory device /mem/a is left out");
	CHECK(!strstr(notes, "/mem/b"));
	free(out);
	/* Newer than the schema. */
	static const char newer[] = DEVICES("<tpm><backend type='emulator'><source type='dir' path='/tpm/n'/></backend></tpm>"
					    "<pstore backend='acpi-erst'><path>/erst/n</path></pstore>");
	struct reason why = {0};
	free(notes);
	notes = out = NULL;
	CHECK_INT(domain_clone_identity(newer, strlen(newer), "m", NEW_UUID, NULL, &out, &notes, &why), 0);
	CHECK_COUNT(out, "//tpm/backend/*", 0);
	CHECK_XPATH(out, "//pstore/path", "/erst/m");
	free(out);
}

static void test_refused(void)
{
	char *out = NULL, *said = NULL;
	struct reason why = {0};
	CHECK_INT(domain_clone_identity(web_xml, strlen(web_xml), "a/b", NEW_UUID, NULL, &out, &said, &why), -EINVAL);
	CHECK(strstr(why.text, "a/b"));
	CHECK_INT(domain_clone_identity(web_xml, strlen(web_xml), "", NEW_UUID, NULL, &out, &said, &why), -EINVAL);
	CHECK_INT(domain_clone_identity(web_xml, strlen(web_xml), "a", NEW_UUID, "/\xff", &out, &said, &why), -EINVAL);
	CHECK_INT(domain_clone_identity("<domain/>", 9, "a", NEW_UUID, NULL, &out, &said, &why), -EINVAL);
	CHECK(!out && !said);
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
	test_host();
	test_ids_elsewhere();
	test_state();
	test_nvram();
	test_name_in_paths();
	test_graphics_socket();
	test_refused();
	free(notes);
	xmlRelaxNGFree(schema);
	return test_result();
}
