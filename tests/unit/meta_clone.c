/* Commands written into actions/clone and actions/flatten: lines, libvirt's and oVirt's XML with and without words before it. */
#include <errno.h>
#include <sys/types.h>

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

#define CHECK_OK(command) \
	do { \
		CHECK_INT(parse(ACTION_CLONE, command), 0); \
		CHECK_STR(why.text, ""); \
	} while (0)
#define CHECK_REFUSED(kind, command, err, want_words)                                                                          \
	do { \
		CHECK_INT(parse(kind, command), err); \
		if (!strstr(why.text, want_words)) \
			CHECK_STR(why.text, want_words); \
	} while (0)

static void test_lines(void)
{
	CHECK_OK("upgraded");
	CHECK_STR(action.snapshot, "upgraded");
	CHECK_STR(action.name, NULL);
	CHECK(!action.nr_rows && !action.all.mode && !action.domain && !action.is_volume);
	CHECK_OK("'before <x>' \"my clone\" mode=full format=raw allocation=full pool=fast capacity=10G shrink=yes serial=renew permissions=0640");
	CHECK_STR(action.snapshot, "before <x>");
	CHECK_STR(action.name, "my clone");
	CHECK_INT(action.all.mode, ACTION_FULL);
	CHECK_INT(action.all.format, ACTION_RAW);
	CHECK_INT(action.all.allocation, ACTION_ALLOCATED);
	CHECK_INT(action.all.capacity, 10L << 30);
	CHECK_INT(action.all.shrink, ACTION_SHRINK);
	CHECK_INT(action.all.serial, ACTION_RENEW_SERIAL);
	CHECK_INT(action.all.mode_bits, 0640);
	CHECK_STR(action.all.pool, "fast");
	CHECK_OK("s mode=thin format=qcow2 allocation=sparse shrink=no serial=keep volume=x.qcow2 target=vdc bus=virtio pool=");
	CHECK_STR(action.name, NULL);
	CHECK(action.all.mode == ACTION_THIN && action.all.format == ACTION_QCOW2 && action.all.allocation == ACTION_SPARSE);
	CHECK(action.all.shrink == ACTION_NO_SHRINK && action.all.serial == ACTION_KEEP_SERIAL);
	CHECK_STR(action.all.volume, "x.qcow2");
	CHECK_STR(action.all.pool, "");
}

static void test_disks(void)
{
	CHECK_OK("s n vda.format=raw vda.pool=fast vda.target=sda vda.bus=scsi vdb=none vdc.img.capacity=4096 vda.volume='a b' /img/d.qcow2.mode=full");
	CHECK_INT(action.nr_rows, 4);
	const struct action_clone_disk *row = action.rows;
	CHECK_STR(row[0].disk, "vda");
	CHECK_INT(row[0].format, ACTION_RAW);
	CHECK_STR(row[0].pool, "fast");
	CHECK_STR(row[0].target, "sda");
	CHECK_STR(row[0].bus, "scsi");
	CHECK_STR(row[0].volume, "a b");
	CHECK(!row[0].left_out);
	CHECK_STR(row[1].disk, "vdb");
	CHECK(row[1].left_out);
	CHECK_STR(row[2].disk, "vdc.img");
	CHECK_INT(row[2].capacity, 4096);
	CHECK_STR(row[3].disk, "/img/d.qcow2");
	CHECK_INT(row[3].mode, ACTION_FULL);
	CHECK_OK("s vda.img=none");
	CHECK_STR(action.rows[0].disk, "vda.img");
}

static void test_sizes(void)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} rows[] = {{"1", 1}, {"512b", 512}, {"3bytes", 3}, {"2K", 2048}, {"2k", 2048}, {"2KiB", 2048}, {"2KB", 2000}, {"5M", 5 << 20},
		    {"1G", 1 << 30}, {"1GB", 1000000000}, {"2T", 2l << 40}, {"1PiB", 1l << 50}, {"1E", 1l << 60}, {"07", 7}};
	static const char *const bad[] = {"", "0", "K", "-1", "+1", "1.5G", "1X", "1Kb1", "1Ki", "0x10", "8E", "99999999999999999999", "1 G G", "1G2"};
	char text[100];
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		snprintf(text, sizeof text, "s n capacity=%s", rows[i].text);
		CHECK_OK(text);
		CHECK_INT(action.all.capacity, rows[i].bytes);
	}
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		snprintf(text, sizeof text, "s n 'capacity'='%s'", bad[i]);
		CHECK_REFUSED(ACTION_CLONE, text, -EINVAL, "expected bytes");
	}
}

static void test_refused_lines(void)
{
	static const struct {
		const char *line, *word;
	} rows[] = {
		{"mode=full", "which snapshot"},
		{"s n x", "expected SNAPSHOT"},
		{"s ''", "expected SNAPSHOT"},
		{"s mode=fat", "mode=fat: expected thin or full"},
		{"s mode=", "expected thin or full"},
		{"s mode=thin mode=full", "said twice"},
		{"s vda.mode=thin vda.mode=thin", "said twice"},
		{"s format=vmdk", "raw or qcow2"},
		{"s permissions=0888", "octal"},
		{"s permissions=01777", "octal"},
		{"s permissions=0", "octal"},
		{"s permissions=-1", "octal"},
		{"s volume=", "file's name"},
		{"s bus=", "bus"},
		{"s vda.colour=red", "expected SNAPSHOT"},
		{"s colour=red", "expected SNAPSHOT"},
		{"s .mode=full", "expected SNAPSHOT"},
		{"s vda=some", "expected SNAPSHOT"},
		{"s 'n", "isn't closed"},
	};
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
		CHECK_REFUSED(ACTION_CLONE, rows[i].line, -EINVAL, rows[i].word);
}

static void test_flatten(void)
{
	CHECK_INT(parse(ACTION_FLATTEN, "all"), 0);
	CHECK(!action.subset && !action.nr_disks);
	CHECK_INT(parse(ACTION_FLATTEN, "flatten"), 0);
	CHECK(action.kind == ACTION_FLATTEN && !action.subset && !action.nr_disks);
	CHECK_INT(parse(ACTION_FLATTEN, " vda  vdb.img "), 0);
	CHECK(action.subset && action.nr_disks == 2);
	CHECK_STR(action.disks[1], "vdb.img");
	CHECK_INT(parse(ACTION_FLATTEN, ""), 0);
	CHECK_INT(action.kind, ACTION_NONE);
	CHECK_REFUSED(ACTION_FLATTEN, "all vda", -EINVAL, "vda: expected all");
	CHECK_REFUSED(ACTION_FLATTEN, "vda all", -EINVAL, "all: expected all");
	CHECK_REFUSED(ACTION_FLATTEN, "a=b", -EINVAL, "expected all");
	CHECK_REFUSED(ACTION_FLATTEN, "<action/>", -EINVAL, "expected a line");
}

/* --- libvirt's <volume> ------------------------------------------------------------------------------------------------ */

/* The shapes of "Storage volume XML": general metadata, target, backing store, and the whole file-based volume. */
#define METADATA "<volume type='file'>\n  <name>sparse.img</name>\n  <key>/pools/sparse.img</key>\n  <allocation>0</allocation>\n" \
		 "  <capacity unit=\"T\">1</capacity>\n"
#define TARGET \
	"  <target>\n    <path>/pools/sparse.img</path>\n    <format type='qcow2'/>\n    <permissions>\n      <owner>107</owner>\n" \
	"      <group>107</group>\n      <mode>0744</mode>\n      <label>virt_image_t</label>\n    </permissions>\n    <timestamps>\n" \
	"      <atime>1341933637.273190990</atime>\n      <mtime>1341930622.047245868</mtime>\n      <ctime>1341930622.047245868</ctime>\n" \
	"    </timestamps>\n    <compat>1.1</compat>\n    <nocow/>\n    <clusterSize unit='KiB'>64</clusterSize>\n    <features>\n" \
	"      <lazy_refcounts/>\n      <extended_l2/>\n    </features>\n  </target>\n"
#define BACKING \
	"  <backingStore>\n    <path>/pools/master.img</path>\n    <format type='raw'/>\n    <permissions>\n      <owner>107</owner>\n" \
	"      <group>107</group>\n      <mode>0744</mode>\n      <label>virt_image_t</label>\n    </permissions>\n  </backingStore>\n"

static void check_sparse_img(int format, int mode)
{
	CHECK(action.is_volume);
	CHECK_STR(action.all.volume, "sparse.img");
	CHECK_INT(action.all.capacity, 1L << 40);
	CHECK_INT(action.all.allocation, ACTION_SPARSE);
	CHECK_INT(action.all.format, format);
	CHECK_INT(action.all.mode, mode);
}

static void test_volume_examples(void)
{
	CHECK_OK(METADATA "</volume>");
	check_sparse_img(ACTION_RAW, ACTION_FULL);
	CHECK(action.owner == -1 && action.group == -1 && !action.all.mode_bits && !action.snapshot && !action.volume_disk);
	CHECK_OK(METADATA TARGET "</volume>\n");
	check_sparse_img(ACTION_QCOW2, ACTION_FULL);
	CHECK(action.owner == 107 && action.group == 107 && action.all.mode_bits == 0744);
	CHECK_OK(METADATA TARGET BACKING "</volume>\n");
	check_sparse_img(ACTION_QCOW2, ACTION_THIN);
	CHECK_STR(action.backing, "/pools/master.img");
	CHECK_OK(METADATA BACKING "</volume>\n");
	check_sparse_img(ACTION_QCOW2, ACTION_THIN);
	/* What virsh vol-dumpxml prints. */
	CHECK_OK("<volume type='file'>\n  <name>a.qcow2</name>\n  <key>/p/a.qcow2</key>\n  <source>\n  </source>\n  <capacity unit='bytes'>1048576"
		 "</capacity>\n  <allocation unit='bytes'>200704</allocation>\n  <physical unit='bytes'>196616</physical>\n  <target>\n"
		 "    <path>/p/a.qcow2</path>\n    <format type='qcow2'/>\n    <permissions>\n      <mode>0600</mode>\n      <owner>0</owner>\n"
		 "      <group>-1</group>\n    </permissions>\n  </target>\n</volume>");
	CHECK(action.all.capacity == 1 << 20 && action.all.allocation == ACTION_SPARSE && action.owner == 0 && action.group == -1);
	/* What virt-manager sends for a copy: sizes in bytes, an empty backing store. */
	CHECK_OK("<volume><name>n.img</name><capacity>1000000</capacity><allocation>1000000</allocation><target><format type='raw'/>"
		 "<permissions><mode>00</mode></permissions></target><backingStore/></volume>");
	CHECK(action.all.allocation == ACTION_ALLOCATED && action.all.mode == ACTION_FULL && !action.backing && !action.all.mode_bits);
}

static void test_volume_sizes(void)
{
	/* Left out: as the source has it; and a raw one is allocated in full, as libvirt's are. */
	CHECK_OK("<volume><name>a.img</name></volume>");
	CHECK(!action.all.capacity && action.all.allocation == ACTION_ALLOCATED && action.all.format == ACTION_RAW);
	CHECK_OK("<volume><name>a.qcow2</name><capacity>0</capacity></volume>");
	CHECK(!action.all.capacity && !action.all.allocation && action.all.format == ACTION_QCOW2);
	CHECK_OK("<volume><name>a</name><capacity unit='GB'>2</capacity><allocation unit='G'>2</allocation></volume>");
	CHECK(action.all.capacity == 2000000000 && action.all.allocation == ACTION_ALLOCATED);
	CHECK_OK("<volume><name>a</name><capacity unit='G'>2</capacity><allocation unit='GB'>2</allocation></volume>");
	CHECK_INT(action.all.allocation, ACTION_SPARSE);
	CHECK_OK("<volume><name>a.qcow2</name><capacity>5</capacity><allocation>5</allocation><backingStore><path>/b</path></backingStore></volume>");
	CHECK_INT(action.all.allocation, ACTION_SPARSE);
}

static void test_volume_words(void)
{
	CHECK_OK("'the snapshot' vdb pool=fast  " METADATA "</volume>");
	CHECK_STR(action.snapshot, "the snapshot");
	CHECK_STR(action.volume_disk, "vdb");
	CHECK_STR(action.all.pool, "fast");
	CHECK_STR(action.name, NULL);
	CHECK_OK("s pool=fast volume=other.qcow2 format=qcow2 capacity=2T shrink=yes allocation=full permissions=0600 <?xml version='1.0'?><!-- c -->"
		 "<volume><name>n.img</name><capacity>1</capacity><target><format type='raw'/><permissions><mode>0644</mode></permissions></target></volume>");
	CHECK_STR(action.all.volume, "other.qcow2");
	CHECK_STR(action.volume_disk, NULL);
	CHECK(action.all.format == ACTION_QCOW2 && action.all.capacity == 2L << 40 && action.all.allocation == ACTION_ALLOCATED);
	CHECK(action.all.mode_bits == 0600 && action.all.shrink == ACTION_SHRINK);
	CHECK_OK("pool=fast <volume><name>n</name></volume>");
	CHECK_STR(action.snapshot, NULL);
}

#define VOLUME(more) "<volume>\n<name>a</name>\n" more "</volume>"
static void test_volume_refused(void)
{
	static const struct {
		const char *text;
		int err;
		const char *word;
	} rows[] = {
		{"<volume/>", -EINVAL, "line 1: the <volume> has no <name>"},
		{VOLUME("<capacity unit='cubits'>1</capacity>"), -EINVAL, "line 3: <capacity unit=cubits>1: expected"},
		{VOLUME("\n<capacity>x</capacity>"), -EINVAL, "line 4"},
		{VOLUME("<capacity/>"), -EINVAL, "line 3"},
		{VOLUME("<capacity unit='E'>9</capacity>"), -EINVAL, "below 8 EiB"},
		{VOLUME("<capacity>1K</capacity><allocation unit='K'>1K</allocation>"), -EINVAL, "<allocation unit=K>1K"},
		{VOLUME("<allocation>-1</allocation>"), -EINVAL, "line 3: <allocation>-1"},
		{VOLUME("<target>\n<format type='vmdk'/></target>"), -EOPNOTSUPP, "line 4: <format type='vmdk'>"},
		{VOLUME("<target><permissions>\n<mode>rw</mode></permissions></target>"), -EINVAL, "line 4: <mode>rw: expected an octal"},
		{VOLUME("<target><permissions>\n<owner>root</owner></permissions></target>"), -EINVAL, "line 4: <owner>root"},
		{VOLUME("<target><permissions>\n<group>4294967295</group></permissions></target>"), -EINVAL, "line 4"},
		{VOLUME("<target><encryption format='luks'/></target>"), -EOPNOTSUPP, "line 3: encrypted"},
		{VOLUME("<target><format type='raw'/></target>\n<backingStore><path>/a</path></backingStore>"), -EINVAL, "line 4: a raw volume"},
		{"<volume type='network'><name>a</name></volume>", -EOPNOTSUPP, "files and block devices"},
		{"s mode=full " VOLUME("<backingStore><path>/a</path></backingStore>"), -EINVAL, "one or the other"},
		{"s vda.format=raw " VOLUME(""), -EINVAL, "vda: a <volume> is one disk"},
		{"s bus=scsi " VOLUME(""), -EINVAL, "a <volume> has none"},
		{"<pool/>", -EINVAL, "<pool>: expected"},
		{"<volume><name>a</name>\n  <b></volume>", -EINVAL, "line 2, column "},
		{"s <volume>", -EINVAL, "line 1, column "},
		{"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><volume><name>&b;</name></volume>", -EINVAL, "DOCTYPE"},
	};
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
		CHECK_REFUSED(ACTION_CLONE, rows[i].text, rows[i].err, rows[i].word);
}

/* --- libvirt's <domain> ------------------------------------------------------------------------------------------------ */

static void test_domain(void)
{
	static const char domain[] = "<!-- a --><domain type='kvm'>\n  <name>other</name><memory>1</memory></domain>";
	char text[200];
	CHECK_OK(domain);
	CHECK_STR(action.domain, domain);
	CHECK_STR(action.name, "other");
	CHECK(!action.is_volume && !action.snapshot);
	snprintf(text, sizeof text, "s1 mode=full %s", domain);
	CHECK_OK(text);
	CHECK_STR(action.domain, domain);
	CHECK_STR(action.snapshot, "s1");
	CHECK_STR(action.name, "other");
	CHECK_INT(action.all.mode, ACTION_FULL);
	snprintf(text, sizeof text, "s1 mine %s", domain);
	CHECK_OK(text);
	CHECK_STR(action.name, "mine");
	CHECK_REFUSED(ACTION_CLONE, "<domain type='kvm'/>", -EINVAL, "no <name>");
	CHECK_REFUSED(ACTION_CLONE, "<domain><name>a</name><devices>\n<disk type='file'/></devices></domain>", -EINVAL, "line 2: a disk without");
	CHECK_REFUSED(ACTION_CLONE, "<domain><name>a</name>\n <memory>1</vcpu></domain>", -EINVAL, "line 2, column ");
}

/* --- oVirt's <vm> -------------------------------------------------------------------------------------------------------- */

/* The shapes of vms/add and vm/clone. */
static void test_vm(void)
{
	CHECK_OK("<vm>\n  <name>myvm</name>\n  <snapshots>\n    <snapshot id=\"266742a5-6a65-483c-816d-d2ce49746680\"/>\n  </snapshots>\n"
		 "  <cluster>\n    <name>mycluster</name>\n  </cluster>\n</vm>");
	CHECK_STR(action.name, "myvm");
	CHECK_STR(action.snapshot, "266742a5-6a65-483c-816d-d2ce49746680");
	CHECK_INT(action.all.mode, ACTION_FULL);
	CHECK(!action.nr_rows && !action.is_volume && !action.all.pool);
	CHECK_OK("<vm><name>myvm</name><snapshots><snapshot id='s'/></snapshots><disk_attachments><disk_attachment><disk>"
		 "<image_id>8d4bd566-6c86-4592-a4a7-912dbf93c298</image_id><storage_domains>"
		 "<storage_domain id='9cb6cb0a-cf1d-41c2-92ca-5a6d665649c9'/></storage_domains></disk></disk_attachment>"
		 "<disk_attachment><disk id='vdb'><format>raw</format><sparse>false</sparse><storage_domains><storage_domain><name>fast</name>"
		 "</storage_domain></storage_domains></disk></disk_attachment></disk_attachments></vm>");
	CHECK_INT(action.nr_rows, 2);
	CHECK_STR(action.rows[0].disk, NULL);
	CHECK_STR(action.rows[0].image, "8d4bd566-6c86-4592-a4a7-912dbf93c298");
	CHECK_STR(action.rows[0].pool, "9cb6cb0a-cf1d-41c2-92ca-5a6d665649c9");
	CHECK(!action.rows[0].format && !action.rows[0].allocation);
	CHECK_STR(action.rows[1].disk, "vdb");
	CHECK_STR(action.rows[1].pool, "fast");
	CHECK(action.rows[1].format == ACTION_RAW && action.rows[1].allocation == ACTION_ALLOCATED);
	/* Version 3. */
	CHECK_OK("<vm><name>cloned_vm</name><template id='64d4aa08'/><cluster id='99408929'/><disks><clone>true</clone><disk id='4825ffda'>"
		 "<format>COW</format><sparse>true</sparse></disk><disk id='42aef10d'><format>cow</format></disk></disks></vm>");
	CHECK(action.nr_rows == 2 && action.rows[0].format == ACTION_QCOW2 && action.rows[0].allocation == ACTION_SPARSE);
	CHECK_INT(action.all.mode, ACTION_FULL);
	CHECK_OK("<vm><name>n</name><clone>false</clone></vm>");
	CHECK_INT(action.all.mode, ACTION_THIN);
	CHECK_OK("s1 mine mode=thin vda.pool=slow <vm><name>n</name><clone>true</clone><disks><disk id='vda'/></disks></vm>");
	CHECK_INT(action.all.mode, ACTION_THIN);
	CHECK_STR(action.name, "mine");
	CHECK_STR(action.snapshot, "s1");
	CHECK_INT(action.nr_rows, 2);
	CHECK_STR(action.rows[0].pool, "slow");
	CHECK_OK("<vm><snapshots><snapshot id='s'/></snapshots></vm>");
	CHECK_STR(action.name, NULL);
}

static void test_clone_action(void)
{
	CHECK_OK("<action>\n  <vm>\n    <name>cloned_vm</name>\n  </vm>\n</action>");
	CHECK_STR(action.name, "cloned_vm");
	CHECK_STR(action.snapshot, NULL);
	CHECK_INT(action.all.mode, ACTION_FULL);
	CHECK_OK("<action><async>false</async><discard_snapshots>true</discard_snapshots><storage_domain id='fast'/><vm><name>c</name></vm></action>");
	CHECK_STR(action.all.pool, "fast");
	CHECK_OK("s1 pool=slow <action><storage_domain><name>fast</name></storage_domain><vm><name>c</name></vm></action>");
	CHECK_STR(action.all.pool, "slow");
	CHECK_STR(action.snapshot, "s1");

	CHECK_REFUSED(ACTION_CLONE, "<action>\n</action>", -EINVAL, "line 1: expected <action><vm>");
	CHECK_REFUSED(ACTION_CLONE, "<vm>\n<clone>maybe</clone></vm>", -EINVAL, "line 2: <clone>maybe: expected true or false");
	CHECK_REFUSED(ACTION_CLONE, "<vm><disks>\n<disk/></disks></vm>", -EINVAL, "line 2: a <disk> without an id");
	CHECK_REFUSED(ACTION_CLONE, "<vm><disks>\n<disk id='a'>\n<format>vmdk</format></disk></disks></vm>", -EINVAL, "line 3: <format>vmdk");
	CHECK_REFUSED(ACTION_CLONE, "<vm><disks><disk id='a'><sparse>\n</sparse></disk></disks></vm>", -EINVAL, "<sparse>: expected true");
	CHECK_REFUSED(ACTION_CLONE, "<vm><snapshots><snapshot/></snapshots></vm>", -EINVAL, "without an id");
	CHECK_REFUSED(ACTION_CLONE, "<vm><snapshots><snapshot id='a'/>\n<snapshot id='b'/></snapshots></vm>", -EINVAL, "line 2: a VM is cloned from one");
	CHECK_REFUSED(ACTION_CLONE, "<vm><name>a</vm>", -EINVAL, "line 1, column ");
}

/* --- a stream ---------------------------------------------------------------------------------------------------------------- */

/* The commands in TEXT, each in brackets, with what is left. */
static const char *split(const char *text, bool last)
{
	static char out[1000];
	size_t len = strlen(text), off, command_len;
	char *p = out;
	while (action_next(ACTION_CLONE, text, len, last, &off, &command_len)) {
		p += sprintf(p, "[%.*s]", (int)command_len, text + off);
		text += off + command_len;
		len -= off + command_len;
	}
	sprintf(p, "%.*s", (int)len, text);
	return out;
}

static void test_stream(void)
{
	CHECK_STR(split("s n\n", false), "[s n]\n");
	CHECK_STR(split("s n", false), "s n");
	CHECK_STR(split("s vda pool=p <volume>\n<a/>", false), "s vda pool=p <volume>\n<a/>");
	CHECK_STR(split("s vda <volume>\n<a/>\n</volume>\nt m\n", false), "[s vda <volume>\n<a/>\n</volume>][t m]\n");
	CHECK_STR(split("s vda <?xml?>\n<!-- \n --><volume/>t", true), "[s vda <?xml?>\n<!-- \n --><volume/>][t]");
	CHECK_STR(split("'a <b>' c\\ <d \\<e f<g\n", false), "['a <b>' c\\ <d \\<e f<g]\n");
	CHECK_STR(split("\"a\\\" <b\" c\n", false), "[\"a\\\" <b\" c]\n");
	CHECK_STR(split("# s <volume>\ns n\n", false), "[# s <volume>][s n]\n");
	CHECK_STR(split("s <volume>\n<name>\n", true), "[s <volume>\n<name>\n]");
	const char *text = "s 'x y' p=q <volume><name>a</name></volume>";
	size_t off, command_len;
	for (size_t len = 0; len < strlen(text); len++)
		CHECK(!action_next(ACTION_CLONE, text, len, false, &off, &command_len));
}

int main(void)
{
	xml_init();
	test_lines();
	test_disks();
	test_sizes();
	test_refused_lines();
	test_flatten();
	test_volume_examples();
	test_volume_sizes();
	test_volume_words();
	test_volume_refused();
	test_domain();
	test_vm();
	test_clone_action();
	test_stream();
	action_done(&action);
	return test_result();
}
