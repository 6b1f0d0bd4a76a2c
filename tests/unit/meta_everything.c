/* A domain with everything in it becomes a clone's: what differs, in canonical form, is the identity, and nothing else. */
#include <ctype.h>
#include <libxml/c14n.h>

#include "base/strbuf.h"
#include "meta/domain.h"
#include "meta_test.h"

#define NEW_UUID "11111111-2222-3333-4444-555555555555"

static char *load_fixture(void)
{
	char path[4096];
	const char *top = getenv("TOP");
	snprintf(path, sizeof path, "%s/tests/unit/everything.xml", top ? top : ".");
	FILE *file = fopen(path, "r");
	char *text = NULL;
	size_t cap = 0;
	if (!file || getdelim(&text, &cap, '\0', file) < 0) {
		printf("%s can't be read: set TOP\n", path);
		exit(1);
	}
	fclose(file);
	return text;
}

/* What libvirt doesn't know (yet) at places of all sorts. */
static char *with_unknown(const char *text)
{
	static const struct {
		const char *before, *added;
	} rows[] = {
		{"<on_poweroff>", "<future mode=\"all\">\n    <deep/>text &amp; <![CDATA[<all>]]>\n  </future>\n  "},
		{"<emulator>", "<gizmo>\n      <source path=\"/run/all.gizmo\"/>\n    </gizmo>\n    "},
		{"<link state", "<ns:thing xmlns:ns=\"urn:x\" ns:name=\"all\"/><?keep this?>\n      "},
		{"<seclabel type=\"static\"", "<nothing/>\n  "},
		{"<maxMemory", "<!-- between elements -->\n  "},
	};
	char *out = strdup(text);
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		const char *at = strstr(out, rows[i].before);
		char *next = NULL;
		if (!at || asprintf(&next, "%.*s%s%s", (int)(at - out), out, rows[i].added, at) < 0)
			exit(1);
		free(out);
		out = next;
	}
	return out;
}

/* --- lines -------------------------------------------------------------------------------------------------------------- */

struct lines {
	char *text;
	char **line; /* without what indents it */
	size_t nr;
};

static void lines_of(const char *text, struct lines *ret)
{
	*ret = (struct lines){.text = strdup(text)};
	char *save = NULL;
	for (char *line = strtok_r(ret->text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		ret->line = realloc(ret->line, (ret->nr + 1) * sizeof *ret->line);
		ret->line[ret->nr++] = line + strspn(line, " ");
	}
}

static void lines_done(struct lines *lines)
{
	free(lines->line);
	free(lines->text);
}

static void canonical(const char *text, struct lines *ret)
{
	xmlDocPtr doc = xmlReadMemory(text, (int)strlen(text), NULL, NULL, XML_PARSE_NONET);
	xmlChar *out = NULL;
	if (xmlC14NDocDumpMemory(doc, NULL, XML_C14N_1_0, NULL, 1, &out) < 0)
		exit(1);
	lines_of((const char *)out, ret);
	xmlFree(out);
	xmlFreeDoc(doc);
}

/* Whether LEN bytes at P look like FORM, where x is a hexadecimal digit. */
static bool looks_like(const char *p, const char *form)
{
	for (; *form; p++, form++)
		if (*form == 'x' ? !isxdigit((unsigned char)*p) : *p != *form)
			return false;
	return true;
}

/* Adds LINE; what is random in it becomes '?': UUIDs but for NEW_UUID, and the last half of MAC addresses. */
static void add_masked(struct strbuf *b, char sign, const char *line)
{
	strbuf_add(b, &sign, 1);
	for (const char *p = line; *p; p++) {
		if (looks_like(p, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") && sign == '+' && strncmp(p, NEW_UUID, 36) != 0) {
			strbuf_add(b, "?", 1);
			p += 35;
		} else if (looks_like(p, "xx:xx:xx:xx:xx:xx") && sign == '+') {
			strbuf_add(b, p, 9);
			strbuf_add(b, "?", 1);
			p += 16;
		} else {
			strbuf_add(b, p, 1);
		}
	}
	strbuf_add(b, "\n", 1);
}

/* The lines that only one of them has, in their order: "-old", "+new". */
static char *diff(const char *old_text, const char *new_text)
{
	struct lines a, b;
	struct strbuf out = {0};
	canonical(old_text, &a);
	canonical(new_text, &b);
	/* common[i][k]: how many lines a[i…] and b[k…] have in common, at most */
	size_t width = b.nr + 1;
	unsigned *common = calloc((a.nr + 1) * width, sizeof *common);
	for (size_t i = a.nr; i-- > 0;)
		for (size_t k = b.nr; k-- > 0;) {
			unsigned skip_a = common[(i + 1) * width + k], skip_b = common[i * width + k + 1];
			bool equal = strcmp(a.line[i], b.line[k]) == 0;
			common[i * width + k] = equal ? common[(i + 1) * width + k + 1] + 1 : skip_a > skip_b ? skip_a : skip_b;
		}
	size_t i = 0, k = 0;
	while (i < a.nr || k < b.nr) {
		if (i < a.nr && k < b.nr && strcmp(a.line[i], b.line[k]) == 0)
			i++, k++;
		else if (i < a.nr && (k == b.nr || common[(i + 1) * width + k] >= common[i * width + k + 1]))
			add_masked(&out, '-', a.line[i++]);
		else
			add_masked(&out, '+', b.line[k++]);
	}
	free(common);
	lines_done(&a);
	lines_done(&b);
	char *text = NULL;
	strbuf_take(&out, &text, NULL);
	return text;
}

/* --- the clone --------------------------------------------------------------------------------------------------------------- */

#define NR_CHANGED 35

static const char expected_diff[] =
	"-<domain xmlns:qemu=\"http://libvirt.org/schemas/domain/qemu/1.0\" id=\"4\" type=\"kvm\">\n"
	"-<name>all</name>\n"
	"-<uuid>7b9f4d0c-5f0e-4f53-8a61-9f7f3a1f0a11</uuid>\n"
	"-<genid>a1b0c2d3-0000-4111-8222-933344445555</genid>\n"
	"-<title>Everything, &amp; the kitchen sink</title>\n"
	"+<domain xmlns:qemu=\"http://libvirt.org/schemas/domain/qemu/1.0\" type=\"kvm\">\n"
	"+<name>copy</name>\n"
	"+<uuid>11111111-2222-3333-4444-555555555555</uuid>\n"
	"+<genid>?</genid>\n"
	"-<entry name=\"serial\">7b9f4d0c-5f0e-4f53-8a61-9f7f3a1f0a11</entry>\n"
	"-<entry name=\"uuid\">7b9f4d0c-5f0e-4f53-8a61-9f7f3a1f0a11</entry>\n"
	"+<entry name=\"serial\">11111111-2222-3333-4444-555555555555</entry>\n"
	"+<entry name=\"uuid\">11111111-2222-3333-4444-555555555555</entry>\n"
	"-<entry name=\"asset\">7b9f4d0c-5f0e-4f53-8a61-9f7f3a1f0a11</entry>\n"
	"+<entry name=\"asset\">11111111-2222-3333-4444-555555555555</entry>\n"
	"-<nvram template=\"/usr/share/OVMF/OVMF_VARS_4M.ms.fd\">/var/lib/libvirt/qemu/nvram/all_VARS.fd</nvram>\n"
	"+<nvram template=\"/usr/share/OVMF/OVMF_VARS_4M.ms.fd\">/store/vms/1/copy_VARS.fd</nvram>\n"
	"-<source file=\"/img/all.qcow2\"></source>\n"
	"+<source file=\"/store/layers/1.qcow2\"></source>\n"
	"-<driver name=\"qemu\" type=\"raw\"></driver>\n"
	"-<source file=\"/img/all-data.raw\"></source>\n"
	"+<driver name=\"qemu\" type=\"qcow2\"></driver>\n"
	"+<source file=\"/store/layers/2.qcow2\"></source>\n"
	"-<mac address=\"52:54:00:0a:0b:0c\"></mac>\n"
	"+<mac address=\"52:54:00:?\"></mac>\n"
	"-<parameters interfaceid=\"09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f\" profileid=\"menial\"></parameters>\n"
	"+<parameters interfaceid=\"?\" profileid=\"menial\"></parameters>\n"
	"-<target dev=\"vnet7\"></target>\n"
	"-<parameter name=\"MAC\" value=\"52:54:00:0a:0b:0c\"></parameter>\n"
	"+<parameter name=\"MAC\" value=\"52:54:00:?\"></parameter>\n"
	"-<mac address=\"00:16:3e:5d:c7:9e\"></mac>\n"
	"+<mac address=\"00:16:3e:?\"></mac>\n"
	"-<mac address=\"52:54:00:3b:83:1a\"></mac>\n"
	"-<source mode=\"server\" path=\"/run/vhost/all.sock\" type=\"unix\"></source>\n"
	"+<mac address=\"52:54:00:?\"></mac>\n"
	"+<source mode=\"server\" path=\"/run/vhost/copy.sock\" type=\"unix\"></source>\n"
	"-<mac address=\"52:54:00:6d:90:02\"></mac>\n"
	"+<mac address=\"52:54:00:?\"></mac>\n"
	"-<source append=\"on\" path=\"/var/log/all.serial\"></source>\n"
	"-<log append=\"off\" file=\"/var/log/libvirt/all-serial.log\"></log>\n"
	"+<source append=\"on\" path=\"/var/log/copy.serial\"></source>\n"
	"+<log append=\"off\" file=\"/var/log/libvirt/copy-serial.log\"></log>\n"
	"-<source path=\"/var/spool/all.parallel\"></source>\n"
	"+<source path=\"/var/spool/copy.parallel\"></source>\n"
	"-<source append=\"on\" path=\"/var/log/all.serial\"></source>\n"
	"-<log append=\"off\" file=\"/var/log/libvirt/all-serial.log\"></log>\n"
	"+<source append=\"on\" path=\"/var/log/copy.serial\"></source>\n"
	"+<log append=\"off\" file=\"/var/log/libvirt/copy-serial.log\"></log>\n"
	"-<source mode=\"bind\" path=\"/var/lib/libvirt/qemu/channel/target/domain-4-all/org.qemu.guest_agent.0\"></source>\n"
	"+<source mode=\"bind\" path=\"/var/lib/libvirt/qemu/channel/target/domain-4-copy/org.qemu.guest_agent.0\"></source>\n"
	"-<graphics autoport=\"no\" listen=\"127.0.0.1\" passwd=\"12345\" port=\"5907\" tlsPort=\"5908\" type=\"spice\">\n"
	"+<graphics autoport=\"yes\" listen=\"127.0.0.1\" passwd=\"12345\" port=\"-1\" tlsPort=\"-1\" type=\"spice\">\n"
	"-<graphics socket=\"/run/all.vnc\" type=\"vnc\">\n"
	"-<listen socket=\"/run/all.vnc\" type=\"socket\"></listen>\n"
	"+<graphics socket=\"/run/copy.vnc\" type=\"vnc\">\n"
	"+<listen socket=\"/run/copy.vnc\" type=\"socket\"></listen>\n"
	"-<audio id=\"1\" path=\"/var/tmp/all.wav\" type=\"file\"></audio>\n"
	"+<audio id=\"1\" path=\"/var/tmp/copy.wav\" type=\"file\"></audio>\n"
	"-<memory access=\"shared\" model=\"nvdimm\">\n"
	"-<source>\n"
	"-<path>/var/lib/pmem/all</path>\n"
	"-</source>\n"
	"-<target>\n"
	"-<size unit=\"KiB\">524288</size>\n"
	"-<node>0</node>\n"
	"-</target>\n"
	"-</memory>\n"
	"-<cid address=\"3\" auto=\"no\"></cid>\n"
	"+<cid auto=\"yes\"></cid>\n"
	"-<seclabel model=\"selinux\" relabel=\"yes\" type=\"dynamic\">\n"
	"-<label>system_u:system_r:svirt_t:s0:c192,c392</label>\n"
	"-<imagelabel>system_u:object_r:svirt_image_t:s0:c192,c392</imagelabel>\n"
	"-</seclabel>\n"
	"+<seclabel model=\"selinux\" relabel=\"yes\" type=\"dynamic\"></seclabel>\n";

static const char expected_notes[] =
	"its TPM starts empty, for the state of the original's isn't copied: what is sealed with that needs its recovery key\n"
	"its memory device /var/lib/pmem/all is left out, for the original writes to that file: copy it, and add the device in domain.xml\n"
	"its QEMU argument name=opt/org.example/all,string=7 is the original's: look whether both can have it";

/* As the store does it: the identity, then the disks that it has; network disks and others stay. */
static char *cloned(const char *text, char **ret_notes)
{
	const struct domain_disk_file files[] = {{"vda", "/store/layers/1.qcow2", "qcow2", false}, {"sda", "/store/layers/2.qcow2", "qcow2", false}};
	struct reason why = {0};
	char *config = NULL, *out = NULL;
	CHECK_INT(domain_clone_identity(text, strlen(text), "copy", NEW_UUID, "/store/vms/1/copy_VARS.fd", &config, ret_notes, &why), 0);
	if (config)
		CHECK_INT(domain_render(config, strlen(config), "copy", NEW_UUID, files, 2, &out, &why), 0);
	CHECK_STR(why.text, "");
	free(config);
	return out;
}

static void check_clone(const char *text, xmlRelaxNGPtr schema)
{
	char *notes = NULL;
	char *out = cloned(text, &notes);
	if (!out)
		return;
	if (schema)
		CHECK(schema_accepts(schema, out));
	char *changes = diff(text, out);
	CHECK_STR(changes, expected_diff);
	CHECK_STR(notes, expected_notes);
	free(changes);
	free(notes);
	free(out);
}

/* Not only in canonical form: what wasn't changed is there byte for byte. CHANGED: lines that differ, without those that are found elsewhere, too. */
static void check_bytes(const char *text, size_t changed)
{
	struct lines before;
	char *notes = NULL;
	char *out = cloned(text, &notes);
	size_t nr = 0;
	lines_of(text, &before);
	for (size_t i = 0; out && i < before.nr; i++)
		nr += strstr(out, before.line[i]) == NULL;
	CHECK_INT(nr, changed);
	lines_done(&before);
	free(notes);
	free(out);
}

int main(void)
{
	xmlRelaxNGPtr schema = schema_load(SCHEMAS "domain.rng");
	xml_init();
	char *text = load_fixture();
	char *strange = with_unknown(text);
	CHECK(schema_accepts(schema, text));
	check_clone(text, schema);
	check_clone(strange, NULL);
	check_bytes(text, NR_CHANGED);
	check_bytes(strange, NR_CHANGED);
	free(strange);
	free(text);
	xmlRelaxNGFree(schema);
	return test_result();
}
