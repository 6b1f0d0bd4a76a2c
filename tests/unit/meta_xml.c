/* Hostile XML is refused with a reason, and what is read prints as it was. */
#include <errno.h>

#include "meta/xml.h"
#include "meta/xml_edit.h"
#include "meta_test.h"

static int parse(const char *text, struct reason *why)
{
	xmlDocPtr doc = NULL;
	*why = (struct reason){0};
	int err = xml_parse(text, strlen(text), &doc, why);
	xmlFreeDoc(doc);
	return err;
}

static void check_refused(const char *text, const char *word)
{
	struct reason why;
	CHECK_INT(parse(text, &why), -EINVAL);
	if (!strstr(why.text, word)) {
		printf("the reason for %.60s says '%s', not '%s'\n", text, why.text, word);
		failures++;
	}
}

static void test_doctypes(void)
{
	check_refused("<!DOCTYPE a [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><a>&x;</a>", "DTDs and entities");
	check_refused("<!DOCTYPE a SYSTEM \"http://example.org/a.dtd\"><a/>", "DTDs and entities");
	check_refused("<!DOCTYPE a><a/>", "line 1");
	check_refused("<?xml version=\"1.0\"?>\n\n<!DOCTYPE a [<!ATTLIST a b CDATA \"c\">]><a/>", "line 3");
	check_refused("<!DOCTYPE a [<!ENTITY % p SYSTEM \"/dev/zero\"> %p;]><a/>", "DTDs and entities");
	check_refused("<!DOCTYPE a [<!ENTITY l \"ha\"><!ENTITY m \"&l;&l;&l;&l;\"><!ENTITY n \"&m;&m;&m;&m;\">]>"
	              "<a b=\"&n;\">&n;</a>",
	              "DTDs and entities");
	check_refused("<a>&nothing;</a>", "line 1, column");
}

static void test_malformed(void)
{
	check_refused("", "XML");
	check_refused("   \n", "XML");
	check_refused("plain words", "line 1, column 1");
	check_refused("<a>\n<b>\n</a>", "line 3, column");
	check_refused("<a/><b/>", "line 1");
	check_refused("<a>\xff\xfe</a>", "line 1");
	check_refused("<?xml version=\"1.0\" encoding=\"no-such-charset\"?><a/>", "line 1");
	check_refused("<?xml version='1.0' encoding='UTF-7'?><a/>", "UTF-7 isn't read");
	check_refused("<?xml version='1.0' encoding = \"IBM037\"?><a/>", "IBM037 isn't read");
	check_refused("<?xml version='1.0' encoding='UTF-16LE'?><a/>", "UTF-16LE isn't read");
	check_refused("\x4c\x6f\xa7\x94\x93", "EBCDIC");
	check_refused("<a><n:b/>", "line 1");
}

/* An element with that many attributes, BEFORE it. */
static void check_attributes(const char *before, unsigned nr, bool wide, const char *want)
{
	static char text[2 << 20], units[4 << 20];
	struct reason why = {0};
	xmlDocPtr doc = NULL;
	size_t len = (size_t)snprintf(text, sizeof text, "<a>\n%s<b c='=\">='", before);
	for (unsigned i = 1; i < nr; i++)
		len += (size_t)snprintf(text + len, sizeof text - len, " a%u = \"\"", i);
	len += (size_t)snprintf(text + len, sizeof text - len, "/></a>");
	for (size_t i = 0; i < len; i++) {
		units[2 * i] = text[i];
		units[2 * i + 1] = 0;
	}
	int err = xml_parse(wide ? units : text, wide ? 2 * len : len, &doc, &why);
	CHECK_INT(err, want ? -EINVAL : 0);
	if (want && !strstr(why.text, want)) {
		printf("%s, not: %s\n", why.text, want);
		failures++;
	}
	if (!err)
		xmlFreeDoc(doc);
}

/* Text of four bytes for each character, the character in that with number AT, is as good as ASCII to who takes no notice of NUL. */
static void check_four_bytes(const char *mark, unsigned at)
{
	static char text[200000], units[sizeof text * 4 + 4];
	struct reason why = {0};
	xmlDocPtr doc = NULL;
	size_t len = (size_t)snprintf(text, sizeof text, "<a"), nr = *mark || mark[3] ? 4 : 0;
	for (unsigned i = 0; i < 10000; i++)
		len += (size_t)snprintf(text + len, sizeof text - len, " a%u=''", i);
	len += (size_t)snprintf(text + len, sizeof text - len, "/>");
	memcpy(units, mark, nr);
	memset(units + nr, 0, 4 * len);
	for (size_t i = 0; i < len; i++)
		units[nr + 4 * i + at] = text[i];
	CHECK_INT(xml_parse(units, nr + 4 * len, &doc, &why), -EINVAL);
	if (!strstr(why.text, "write UTF-8")) {
		printf("UCS-4 with the character in byte %u: '%s'\n", at, why.text);
		failures++;
	}
}

static void test_four_bytes(void)
{
	for (unsigned at = 0; at < 4; at++)
		check_four_bytes("\0\0\0\0", at);
	check_four_bytes("\0\0\xfe\xff", 3);
	check_four_bytes("\xff\xfe\0\0", 0);
}

static void test_attributes(void)
{
	check_attributes("", 256, false, NULL);
	check_attributes("", 257, false, "line 2: an element with more than 256");
	check_attributes("", 100000, false, "line 2: an element with more than 256");
	static const char *const hides[] = {"<!-- \" -->", "<![CDATA[ < ' ]]>", "<?p '<?>", "<x y='>\"'/>", "'\"", "<!-- <b c='-->", "\xe2\x88\xbc"};
	for (size_t i = 0; i < sizeof hides / sizeof *hides; i++) {
		check_attributes(hides[i], 256, false, NULL);
		check_attributes(hides[i], 100000, false, "an element with more than 256");
	}
	check_attributes("<?q?>", 100000, true, "an element with more than 256");
}

static void test_nul_byte(void)
{
	static const char text[] = "<a>one\0two</a>";
	xmlDocPtr doc = NULL;
	CHECK_INT(xml_parse(text, sizeof text - 1, &doc, NULL), -EINVAL);
}

static char *repeat(const char *word, size_t nr)
{
	size_t len = strlen(word);
	char *text = malloc(nr * len + 1);
	if (!text)
		abort();
	for (size_t i = 0; i < nr; i++)
		memcpy(text + i * len, word, len);
	text[nr * len] = '\0';
	return text;
}

static void test_limits(void)
{
	struct reason why = {0};
	char *deep = repeat("<a>", 100000);
	check_refused(deep, "line 1");
	free(deep);
	char *large = repeat(" ", XML_TEXT_MAX + 1);
	CHECK_INT(parse(large, &why), -EFBIG);
	CHECK(strstr(why.text, "4 MiB"));
	free(large);
}

/* What comes in comes out: white space, comments, CDATA, namespaces, any character. */
static void test_print(void)
{
	static const char text[] = "<a xmlns:q=\"urn:q\" b=\"&lt;1&gt; ä\">\n\t<q:c/>  <!-- d --> "
	                           "<![CDATA[<e>]]><?f g?> &amp; ü\n</a>";
	xmlDocPtr doc = NULL;
	char *printed = NULL;
	CHECK_INT(xml_parse(text, sizeof text - 1, &doc, NULL), 0);
	CHECK_INT(xml_print(doc, xmlDocGetRootElement(doc), &printed), 0);
	CHECK_STR(printed, text);
	free(printed);
	xmlFreeDoc(doc);
}

static void test_print_part(void)
{
	static const char text[] = "<a xmlns:q=\"urn:q\" xmlns:r=\"urn:r\"><b><q:c r:d=\"e\"/></b></a>";
	xmlDocPtr doc = NULL;
	char *printed = NULL;
	CHECK_INT(xml_parse(text, sizeof text - 1, &doc, NULL), 0);
	CHECK_INT(xml_print(doc, xml_child(xmlDocGetRootElement(doc), "b"), &printed), 0);
	CHECK_XPATH(printed, "/b/*[namespace-uri()='urn:q' and local-name()='c']/@*[namespace-uri()='urn:r']", "e");
	free(printed);
	xmlFreeDoc(doc);
}

/* The name of a namespace may have markup in it. */
static void test_print_namespaces(void)
{
	static const char text[] = "<a xmlns:q=\"u?a&#38;b&lt;&#34;\"><b xmlns=\"c&#38;d&#10;\"><q:c/></b></a>";
	xmlDocPtr doc = NULL;
	char *printed = NULL;
	CHECK_INT(xml_parse(text, sizeof text - 1, &doc, NULL), 0);
	for (unsigned i = 0; i < 2; i++) {
		CHECK_INT(xml_print(doc, xmlDocGetRootElement(doc), &printed), 0);
		CHECK_STR(printed, text);
		free(printed);
	}
	CHECK_INT(xml_print(doc, xmlFirstElementChild(xmlDocGetRootElement(doc)), &printed), 0);
	CHECK_STR(printed, "<b xmlns=\"c&#38;d&#10;\" xmlns:q=\"u?a&#38;b&lt;&#34;\"><q:c/></b>");
	free(printed);
	xmlFreeDoc(doc);
}

static void test_latin1(void)
{
	static const char text[] = "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><a b=\"\xe4\">\xfc</a>";
	xmlDocPtr doc = NULL;
	char *printed = NULL;
	CHECK_INT(xml_parse(text, sizeof text - 1, &doc, NULL), 0);
	CHECK_INT(xml_print(doc, xmlDocGetRootElement(doc), &printed), 0);
	CHECK_STR(printed, "<a b=\"ä\">ü</a>");
	free(printed);
	xmlFreeDoc(doc);
}

static void check_text_of(xmlNodePtr node, const char *want)
{
	char *text = xml_text(node);
	CHECK_STR(text, want);
	free(text);
}

static void test_looking(void)
{
	static const char text[] =
	    "<a xmlns:q=\"urn:q\" e=\"\" f=\" g \"><q:b>0</q:b><b> \n1 2\t</b><c/><b/><b>3</b></a>";
	xmlDocPtr doc = NULL;
	CHECK_INT(xml_parse(text, sizeof text - 1, &doc, NULL), 0);
	xmlNodePtr root = xmlDocGetRootElement(doc), b = xml_child(root, "b");
	check_text_of(b, "1 2");
	check_text_of(b = xml_next(b, "b"), NULL);
	check_text_of(b = xml_next(b, "b"), "3");
	CHECK(!xml_next(b, "b") && !xml_child(root, "d") && !xml_child(NULL, "d") && !xml_next(NULL, "d"));
	char *attr = xml_attr(root, "f");
	CHECK_STR(attr, " g ");
	CHECK(!xml_attr(root, "e") && !xml_attr(root, "h") && !xml_attr(NULL, "h") && !xml_text(NULL));
	free(attr);
	xmlFreeDoc(doc);
}

static void check_edit(const char *text, int (*edit)(xmlNodePtr root), const char *want)
{
	xmlDocPtr doc = NULL;
	char *printed = NULL;
	CHECK_INT(xml_parse(text, strlen(text), &doc, NULL), 0);
	CHECK_INT(edit(xmlDocGetRootElement(doc)), 0);
	CHECK_INT(xml_print(doc, xmlDocGetRootElement(doc), &printed), 0);
	CHECK_STR(printed, want);
	free(printed);
	xmlFreeDoc(doc);
}

static int add_first(xmlNodePtr root)
{
	return xml_add(root, NULL, "n") ? 0 : -ENOMEM;
}

static int add_behind_b(xmlNodePtr root)
{
	xmlNodePtr n = xml_add(root, xml_child(root, "b"), "n");
	return n && xml_add(n, NULL, "m") ? 0 : -ENOMEM;
}

static int drop_b(xmlNodePtr root)
{
	xml_drop_children(root, "b");
	return 0;
}

static int set_markup(xmlNodePtr root)
{
	int err = xml_set_text(root, "<&amp;> \"ä\"");
	return err ? err : xml_set_attr(root, "k", "&lt; <\"'>\n");
}

static int indent_2(xmlNodePtr root)
{
	return xml_indent(root, 2);
}

static int indent_minus_4(xmlNodePtr root)
{
	return xml_indent(root, -4);
}

static void test_edits(void)
{
	check_edit("<a/>", add_first, "<a>\n  <n/>\n</a>");
	check_edit("<a>\n  <b/>\n</a>", add_first, "<a>\n  <n/>\n  <b/>\n</a>");
	check_edit("<a>\n</a>", add_first, "<a>\n  <n/>\n</a>");
	check_edit("<a>\n  <b/>\n</a>", add_behind_b, "<a>\n  <b/>\n  <n>\n    <m/>\n  </n>\n</a>");
	check_edit("<a><b/></a>", add_behind_b, "<a><b/>\n  <n>\n    <m/>\n  </n>\n</a>");
	check_edit("<a>\n  <b/>\n  <c/>\n  <b/>\n</a>", drop_b, "<a>\n  <c/>\n</a>");
	check_edit("<a>\n  <b/>\n</a>", drop_b, "<a/>");
	check_edit("<a>text<b/>text</a>", drop_b, "<a>texttext</a>");
	check_edit("<a k=\"1\"><b/></a>", set_markup,
	           "<a k=\"&amp;lt; &lt;&quot;'&gt;&#10;\">&lt;&amp;amp;&gt; \"ä\"</a>");
	check_edit("<a>\n  <b>\n  x  </b>\n</a>", indent_2, "<a>\n    <b>\n  x  </b>\n  </a>");
	check_edit("<a>\n\n      <b/>\n  </a>", indent_minus_4, "<a>\n\n  <b/>\n</a>");
}

static void test_bad_text(void)
{
	struct reason why = {0};
	xmlDocPtr doc = NULL;
	CHECK_INT(xml_parse("<a/>", 4, &doc, NULL), 0);
	xmlNodePtr root = xmlDocGetRootElement(doc);
	CHECK_INT(xml_set_attr(root, "b", "\xff"), -EINVAL);
	CHECK_INT(xml_set_text(root, "\x01"), -EINVAL);
	CHECK_INT(xml_set_text(root, "\xef\xbf\xbf"), -EINVAL);           /* U+FFFF */
	CHECK_INT(xml_check_text("path", "\xed\xa0\x80", &why), -EINVAL); /* a surrogate */
	CHECK(strstr(why.text, "the path"));
	CHECK_INT(xml_check_text("path", "\xf0\x9f\x92\xbe ok", NULL), 0);
	xmlFreeDoc(doc);
}

int main(void)
{
	xml_init();
	test_doctypes();
	test_malformed();
	test_attributes();
	test_four_bytes();
	test_nul_byte();
	test_limits();
	test_print();
	test_print_part();
	test_print_namespaces();
	test_latin1();
	test_looking();
	test_edits();
	test_bad_text();
	return test_result();
}
