/* Commands written into actions/: lines, libvirt's and oVirt's XML, and how a stream of text falls into commands. */
#include <errno.h>

#include "meta/action.h"
#include "meta_test.h"

static struct action action;
static struct reason why;

static int parse(enum action_kind kind, const char *text)
{
	action_done(&action);
	why = (struct reason){0};
	return action_parse(kind, text, strlen(text), &action, &why);
}

#define CHECK_OK(kind, text) CHECK_INT(parse(kind, text), 0)
#define CHECK_REFUSED(kind, command, err, want_words)                                                                          \
	do { \
		CHECK_INT(parse(kind, command), err); \
		if (!strstr(why.text, want_words)) \
			CHECK_STR(why.text, want_words); \
	} while (0)

static void test_nothing(void)
{
	static const char *const nothing[] = {"", " ", "# NAME", "  # restore x", "\n#", "\r", "\t#\n"};
	for (int kind = ACTION_NONE + 1; kind < ACTION_KINDS; kind++) {
		for (size_t i = 0; i < sizeof nothing / sizeof *nothing; i++) {
			CHECK_OK(kind, nothing[i]);
			CHECK_INT(action.kind, ACTION_NONE);
		}
		CHECK_INT(action_kind_by_name(action_name(kind)), kind);
		/* What reading gives does nothing when it is written. */
		const char *usage = action_usage(kind);
		for (const char *line = usage; *line; line = strchr(line, '\n') + 1)
			CHECK(*line == '#');
	}
	CHECK_INT(action_kind_by_name("copy"), ACTION_NONE);
	CHECK_INT(action_kind_by_name(""), ACTION_NONE);
}

static void test_snapshot_lines(void)
{
	CHECK_OK(ACTION_SNAPSHOT, "before");
	CHECK_INT(action.kind, ACTION_SNAPSHOT);
	CHECK_STR(action.name, "before");
	CHECK_STR(action.description, NULL);
	CHECK(!action.subset && !action.nr_disks);

	CHECK_OK(ACTION_SNAPSHOT, "  before\tvda  vdb.img description=the \"old\" one, as it's called \r");
	CHECK_STR(action.name, "before");
	CHECK_STR(action.description, "the \"old\" one, as it's called");
	CHECK(action.subset);
	CHECK_INT(action.nr_disks, 2);
	CHECK_STR(action.disks[0], "vda");
	CHECK_STR(action.disks[1], "vdb.img");

	CHECK_OK(ACTION_SNAPSHOT, "'before the upgrade' description=\"two  words\\\"\"  ");
	CHECK_STR(action.name, "before the upgrade");
	CHECK_STR(action.description, "two  words\"");
	CHECK_OK(ACTION_SNAPSHOT, "a\\ b\\\\c\"d e\"'f \\g' description=\"one\" and \"two\"");
	CHECK_STR(action.name, "a b\\cd ef \\g");
	CHECK_STR(action.description, "\"one\" and \"two\"");
	CHECK_OK(ACTION_SNAPSHOT, "description=only that");
	CHECK_STR(action.name, NULL);
	CHECK_STR(action.description, "only that");
	CHECK_OK(ACTION_SNAPSHOT, "'a=b' description=");
	CHECK_STR(action.name, "a=b");
	CHECK_OK(ACTION_SNAPSHOT, "schön \xe2\x82\xac");
	CHECK_STR(action.name, "schön");

	CHECK_REFUSED(ACTION_SNAPSHOT, "name=a", -EINVAL, "expected NAME");
	CHECK_REFUSED(ACTION_SNAPSHOT, "a vda=b", -EINVAL, "expected NAME");
	CHECK_REFUSED(ACTION_SNAPSHOT, "\"a", -EINVAL, "isn't closed");
	CHECK_REFUSED(ACTION_SNAPSHOT, "a description='b", -EINVAL, "isn't closed");
	CHECK_INT(action_parse(ACTION_SNAPSHOT, "a\0b", 3, &action, &why), -EINVAL);
	char *large = calloc(1, ACTION_TEXT_MAX + 2);
	memset(large, 'a', ACTION_TEXT_MAX + 1);
	CHECK_INT(action_parse(ACTION_SNAPSHOT, large, ACTION_TEXT_MAX + 1, &action, &why), -EFBIG);
	free(large);
}

static void test_domainsnapshot(void)
{
	CHECK_OK(ACTION_SNAPSHOT, "<domainsnapshot/>");
	CHECK_STR(action.name, NULL);
	CHECK(!action.subset && !action.nr_disks && !action.nr_left_out && !action.memory_path);
	CHECK_OK(ACTION_SNAPSHOT,
		 "<?xml version='1.0'?>\n<!-- a -->\n<domainsnapshot>\n<name> a &amp; b </name><description>c\nd</description>\n"
		 "<state>running</state><memory snapshot='external' file='/img/a.mem'/>"
		 "<disks><disk name='vda' snapshot='external' type='file'><source file='/x'/></disk><disk name='vdb' snapshot='no'/>"
		 "<disk name='/img/c.qcow2'/><disk name='vdd' snapshot='manual'/></disks>"
		 "<domain><name>vm</name></domain></domainsnapshot>\n");
	CHECK_STR(action.name, "a & b");
	CHECK(!action.name_is_made);
	CHECK_STR(action.description, "c\nd");
	CHECK_STR(action.memory_path, "/img/a.mem");
	CHECK(!action.subset);
	CHECK_INT(action.nr_disks, 2);
	CHECK_STR(action.disks[1], "/img/c.qcow2");
	CHECK_INT(action.nr_left_out, 2);
	CHECK_STR(action.left_out[0], "vdb");
	CHECK_OK(ACTION_SNAPSHOT, "<domainsnapshot><memory snapshot='no'/></domainsnapshot>");

	CHECK_REFUSED(ACTION_SNAPSHOT, "<domainsnapshot><memory snapshot='internal'/></domainsnapshot>", -EOPNOTSUPP, "external");
	CHECK_REFUSED(ACTION_SNAPSHOT, "<domainsnapshot><memory snapshot='external'/></domainsnapshot>", -EINVAL, "absolute");
	CHECK_REFUSED(ACTION_SNAPSHOT, "<domainsnapshot><memory file='a'/></domainsnapshot>", -EINVAL, "absolute");
	CHECK_REFUSED(ACTION_SNAPSHOT, "<domainsnapshot><disks><disk/></disks></domainsnapshot>", -EINVAL, "without a name");
	CHECK_REFUSED(ACTION_SNAPSHOT, "<domainsnapshot><disks><disk name='vda' snapshot='x'/></disks></domainsnapshot>", -EINVAL,
		      "expected 'no'");
	CHECK_REFUSED(ACTION_SNAPSHOT, "<domain/>", -EINVAL, "<domainsnapshot>");
	CHECK_REFUSED(ACTION_SNAPSHOT, "<domainsnapshot>", -EINVAL, "not well-formed");
	CHECK_REFUSED(ACTION_SNAPSHOT, "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><domainsnapshot><name>&b;</name></domainsnapshot>",
		      -EINVAL, "DOCTYPE");
}

static void test_ovirt_snapshot(void)
{
	CHECK_OK(ACTION_SNAPSHOT, "<snapshot><description>My/snapshot\n2</description></snapshot>");
	CHECK_STR(action.name, "My_snapshot_2");
	CHECK(action.name_is_made && !action.subset);
	CHECK_STR(action.description, "My/snapshot\n2");
	CHECK_OK(ACTION_SNAPSHOT, "<snapshot><persist_memorystate>false</persist_memorystate></snapshot>");
	CHECK_STR(action.name, NULL);
	CHECK_OK(ACTION_SNAPSHOT, "<snapshot><description>d</description><disk_attachments><disk_attachment><disk id='vda'>"
				  "<image_id>456</image_id></disk></disk_attachment></disk_attachments></snapshot>");
	CHECK(action.subset);
	CHECK_INT(action.nr_disks, 1);
	CHECK_STR(action.disks[0], "vda");
	CHECK_OK(ACTION_SNAPSHOT, "<snapshot><vm id='1'/><disks><disk id='vda'/><disk id='vdb'/></disks></snapshot>");
	CHECK_INT(action.nr_disks, 2);
	CHECK_OK(ACTION_SNAPSHOT, "<snapshot><disk_attachments/></snapshot>");
	CHECK(action.subset);
	CHECK_INT(action.nr_disks, 0);
	CHECK_REFUSED(ACTION_SNAPSHOT, "<snapshot><disks><disk/></disks></snapshot>", -EINVAL, "without an id");
	CHECK_REFUSED(ACTION_SNAPSHOT, "<snapshot><persist_memorystate>true</persist_memorystate></snapshot>", -EOPNOTSUPP, "RAM");
}

static void test_preview(void)
{
	CHECK_OK(ACTION_PREVIEW, "S1");
	CHECK_STR(action.snapshot, "S1");
	CHECK(!action.config && !action.memory && !action.nr_changes);
	CHECK_OK(ACTION_PREVIEW, "config=S1 memory=S1 vda=S1 vdb=\"S 2\" vdc=none");
	CHECK_STR(action.snapshot, NULL);
	CHECK_STR(action.config, "S1");
	CHECK_STR(action.memory, "S1");
	CHECK_INT(action.nr_changes, 3);
	CHECK_STR(action.changes[1].disk, "vdb");
	CHECK_STR(action.changes[1].snapshot, "S 2");
	CHECK_STR(action.changes[2].disk, "vdc");
	CHECK_STR(action.changes[2].snapshot, NULL);
	CHECK_OK(ACTION_PREVIEW, "vdb=none 'S=1' memory=none");
	CHECK_STR(action.snapshot, "S=1");
	CHECK_STR(action.memory, NULL);
	CHECK_OK(ACTION_PREVIEW, "discard");
	CHECK_STR(action.snapshot, "discard");
	CHECK_REFUSED(ACTION_PREVIEW, "S1 S2", -EINVAL, "one SNAPSHOT");
	CHECK_REFUSED(ACTION_PREVIEW, "S1 discard", -EINVAL, "one SNAPSHOT");
	CHECK_REFUSED(ACTION_PREVIEW, "vda=", -EINVAL, "without a snapshot");
	CHECK_REFUSED(ACTION_PREVIEW, "vda=a vda=b", -EINVAL, "twice");

	CHECK_OK(ACTION_PREVIEW, "<action><snapshot id='S1'/><restore_memory>true</restore_memory><disks><disk id='vda'>"
				 "<image_id>9</image_id><snapshot id='S2'/></disk><disk id='vdb'><image_id>9</image_id></disk>"
				 "<disk id='vdc'/></disks></action>");
	CHECK_STR(action.snapshot, NULL);
	CHECK_STR(action.config, "S1");
	CHECK_STR(action.memory, "S1");
	CHECK_INT(action.nr_changes, 3);
	CHECK_STR(action.changes[0].snapshot, "S2");
	CHECK_STR(action.changes[1].snapshot, NULL);
	CHECK_STR(action.changes[1].image, "9");
	CHECK_STR(action.changes[2].snapshot, "S1");
	CHECK_OK(ACTION_PREVIEW, "<action><async>false</async><snapshot id='S1'/></action>");
	CHECK_STR(action.snapshot, "S1");
	CHECK(!action.config && !action.memory);
	CHECK_REFUSED(ACTION_PREVIEW, "<action/>", -EINVAL, "snapshot id");
	CHECK_REFUSED(ACTION_PREVIEW, "<action><snapshot id='a'/><disks><disk/></disks></action>", -EINVAL, "without an id");
	CHECK_REFUSED(ACTION_PREVIEW, "<snapshot id='a'/>", -EINVAL, "<action>");
}

static void test_others(void)
{
	CHECK_OK(ACTION_COMMIT, "commit");
	CHECK_INT(action.kind, ACTION_COMMIT);
	CHECK(!action.discard);
	CHECK_OK(ACTION_COMMIT, "commit discard");
	CHECK(action.discard);
	CHECK_OK(ACTION_COMMIT, "discard");
	CHECK(action.discard);
	CHECK_OK(ACTION_COMMIT, "<action/>");
	CHECK_REFUSED(ACTION_COMMIT, "undo", -EINVAL, "expected commit [discard]");
	CHECK_REFUSED(ACTION_COMMIT, "commit commit", -EINVAL, "expected commit [discard]");
	CHECK_OK(ACTION_UNDO, "undo");
	CHECK_OK(ACTION_UNDO, "<action/>");
	CHECK_REFUSED(ACTION_UNDO, "undo discard", -EINVAL, "expected undo");

	CHECK_OK(ACTION_RESTORE, "S1");
	CHECK(!action.discard);
	CHECK_OK(ACTION_RESTORE, "S1 discard");
	CHECK_STR(action.snapshot, "S1");
	CHECK(action.discard);
	CHECK_OK(ACTION_RESTORE, "discard discard");
	CHECK_STR(action.snapshot, "discard");
	CHECK(action.discard);
	CHECK_OK(ACTION_RESTORE, "config=S1 vda=S2 discard");
	CHECK(action.discard && !action.snapshot);
	CHECK_REFUSED(ACTION_RESTORE, "S1 merge", -EINVAL, "[discard]");
	CHECK_OK(ACTION_RESTORE, "<action><snapshot id='S1'/><restore_memory>false</restore_memory></action>");
	CHECK_STR(action.snapshot, "S1");
	CHECK_STR(action.memory, NULL);

	static const char *const modes[] = {"", "merge", "merge-force", "discard", "discard-force"};
	for (int i = ACTION_DROP; i <= ACTION_DISCARD_FORCE; i++) {
		char line[80];
		snprintf(line, sizeof line, "'S 1' %s", modes[i]);
		CHECK_OK(ACTION_DELETE, line);
		CHECK_STR(action.snapshot, "S 1");
		CHECK_INT(action.delete, i);
	}
	CHECK_REFUSED(ACTION_DELETE, "S1 now", -EINVAL, "merge-force");
	CHECK_REFUSED(ACTION_DELETE, "S1 merge S2", -EINVAL, "merge-force");
	CHECK_REFUSED(ACTION_DELETE, "<snapshot id='S1'/>", -EINVAL, "expected a line");
}

/* The commands of TEXT, each in brackets, and what is left. */
static const char *split(const char *text, bool last)
{
	static char out[400];
	size_t len = strlen(text), off, command_len;
	*out = '\0';
	while (action_next(ACTION_SNAPSHOT, text, len, last, &off, &command_len)) {
		snprintf(out + strlen(out), sizeof out - strlen(out), "[%.*s]", (int)command_len, text + off);
		text += off + command_len;
		len -= off + command_len;
	}
	snprintf(out + strlen(out), sizeof out - strlen(out), "%.*s", (int)len, text);
	return out;
}

static void test_stream(void)
{
	CHECK_STR(split("", true), "");
	CHECK_STR(split("a\nb c\n\n  d", false), "[a][b c]\n\n  d");
	CHECK_STR(split("a\nb c\n\n  d", true), "[a][b c][d]");
	CHECK_STR(split(" \n\n", true), " \n\n");
	CHECK_STR(split("<a/>x", false), "[<a/>]x");
	CHECK_STR(split("<a><b/>\n</a>\n<c></c>\nx\n", false), "[<a><b/>\n</a>][<c></c>][x]\n");
	CHECK_STR(split("<?xml version='1.0'?><!-- </a> --><a b='>' c=\"/>'\"><![CDATA[</a>]]><d><e/></d></a>\n", false),
		  "[<?xml version='1.0'?><!-- </a> --><a b='>' c=\"/>'\"><![CDATA[</a>]]><d><e/></d></a>]\n");
	static const char xml[] = "<?x?><!--y--><a b='c'><![CDATA[z]]>\n<d/></a>";
	for (size_t len = 1; len < sizeof xml - 1; len++) {
		size_t off, command_len;
		CHECK(!action_next(ACTION_SNAPSHOT, xml, len, false, &off, &command_len));
		CHECK(action_next(ACTION_SNAPSHOT, xml, len, true, &off, &command_len) && command_len == len);
	}
	CHECK_STR(split(xml, false), "[<?x?><!--y--><a b='c'><![CDATA[z]]>\n<d/></a>]");
	CHECK_STR(split("</a>", false), "[</a>]");
	CHECK_STR(split("<", false), "<");
}

/* Whatever is written, it is a command or is refused with a reason, and is consumed. */
static void test_noise(void)
{
	static const char *const samples[] = {
		"before vda 'v d' description=\"a\\\" b\" c",
		"config=S1 memory=S1 vda=\"S 2\" vdb=none discard\n# x\nS1 merge-force\n",
		"<?xml version='1.0'?><domainsnapshot><name>a</name><memory snapshot='external' file='/m'/><disks><disk name='vda' "
		"snapshot='no'/><disk name='vdb'/></disks></domainsnapshot>\nx\n",
		"<action><!-- > --><snapshot id=\"S1\"/><restore_memory>true</restore_memory><disks><disk id='vda'><image_id>1</image_id></disk>"
		"</disks></action><snapshot><description><![CDATA[a/b]]></description><disk_attachments/></snapshot>",
		"'s 1' new mode=full vda.capacity=10G vdb=none pool=fast vdb.target=sda permissions=0640\nflatten vda\n",
		"s1 vda pool=fast <volume><name>a</name><capacity unit='KiB'>10</capacity><allocation>0</allocation><target><format type='raw'/>"
		"<permissions><mode>0644</mode><owner>1</owner></permissions></target><backingStore><path>/x</path></backingStore></volume>\n",
		"<vm><name>v</name><snapshots><snapshot id='a'/></snapshots><clone>true</clone><disks><disk id='b'><image_id>c</image_id><sparse>true"
		"</sparse><format>cow</format></disk></disks></vm>",
		"s n mode=thin <domain><name>a</name><devices><disk><target dev='vda'/></disk></devices></domain>",
	};
	static const char noise[] = "<>/='\"\\ \n\t#!?-[]&;az\x80\xff";
	const char *seed = getenv("SEED");
	srand(seed ? (unsigned)atoi(seed) : 1);
	for (int i = 0; i < 20000; i++) {
		char text[400];
		snprintf(text, sizeof text, "%s", samples[(size_t)i % (sizeof samples / sizeof *samples)]);
		size_t len = strlen(text), off, command_len;
		for (int k = rand() % 8; k >= 0; k--)
			text[(size_t)rand() % len] = noise[(size_t)rand() % sizeof noise];
		enum action_kind kind = 1 + rand() % (ACTION_KINDS - 1);
		for (const char *p = text; action_next(kind, p, len, rand() % 4 != 0, &off, &command_len);) {
			CHECK(command_len > 0 && off + command_len <= len);
			why = (struct reason){0};
			action_done(&action);
			int err = action_parse(kind, p + off, command_len, &action, &why);
			CHECK(!err || *why.text);
			p += off + command_len;
			len -= off + command_len;
		}
	}
}

int main(void)
{
	xml_init();
	test_noise();
	test_nothing();
	test_snapshot_lines();
	test_domainsnapshot();
	test_ovirt_snapshot();
	test_preview();
	test_others();
	test_stream();
	action_done(&action);
	return failures != 0;
}
