/* What the tests of lib/meta share: checks that count, libvirt's schemas as the judge, XPath to look into a text. */
#ifndef META_TEST_H
#define META_TEST_H

#include <libxml/parser.h>
#include <libxml/relaxng.h>
#include <libxml/xpath.h>
#include <libxml/xpathInternals.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "meta/xml.h"

#define SCHEMAS "/usr/share/libvirt/schemas/"

static int failures;

#define CHECK(what)                                                                                                    \
	do {                                                                                                           \
		if (!(what)) {                                                                                         \
			printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #what);                                      \
			failures++;                                                                                    \
		}                                                                                                      \
	} while (0)

#define CHECK_INT(got, want)                                                                                           \
	do {                                                                                                           \
		long got_ = (got), want_ = (want);                                                                     \
		if (got_ != want_) {                                                                                   \
			printf("%s:%d: %s is %ld, not %ld\n", __FILE__, __LINE__, #got, got_, want_);                  \
			failures++;                                                                                    \
		}                                                                                                      \
	} while (0)

/* NULL equals NULL. */
#define CHECK_STR(got, want) check_str(__FILE__, __LINE__, #got, (got), (want))
static inline void check_str(const char *file, int line, const char *what, const char *got, const char *want)
{
	if (got == want || (got && want && strcmp(got, want) == 0))
		return;
	printf("%s:%d: %s is\n%s\nnot\n%s\n", file, line, what, got ? got : "(NULL)", want ? want : "(NULL)");
	failures++;
}

/* The XPath expression's string in TEXT; to be used before the next call. */
static inline const char *xpath(const char *text, const char *expression)
{
	static char *last;
	xmlFree(last);
	last = NULL;
	xmlDocPtr doc = text ? xmlReadMemory(text, (int)strlen(text), NULL, NULL, XML_PARSE_NONET) : NULL;
	xmlXPathContextPtr ctxt = doc ? xmlXPathNewContext(doc) : NULL;
	if (ctxt)
		xmlXPathRegisterNs(ctxt, BAD_CAST "qemu", BAD_CAST "http://libvirt.org/schemas/domain/qemu/1.0");
	xmlXPathObjectPtr found = ctxt ? xmlXPathEval(BAD_CAST expression, ctxt) : NULL;
	if (found)
		last = (char *)xmlXPathCastToString(found);
	xmlXPathFreeObject(found);
	xmlXPathFreeContext(ctxt);
	xmlFreeDoc(doc);
	return last ? last : "(not XML, or not XPath)";
}
#define CHECK_XPATH(text, expression, want) CHECK_STR(xpath(text, "string(" expression ")"), want)
#define CHECK_COUNT(text, expression, want) CHECK_STR(xpath(text, "count(" expression ")"), #want)

/* A schema, loaded before xml_init() takes the loader away. Skips the test where libvirt isn't installed. */
static inline xmlRelaxNGPtr schema_load(const char *path)
{
	if (access(path, R_OK) != 0) {
		printf("skip: no %s\n", path);
		exit(77);
	}
	xmlRelaxNGParserCtxtPtr parser = xmlRelaxNGNewParserCtxt(path);
	xmlRelaxNGPtr schema = xmlRelaxNGParse(parser);
	xmlRelaxNGFreeParserCtxt(parser);
	if (!schema) {
		printf("%s can't be loaded\n", path);
		exit(1);
	}
	return schema;
}

static inline bool schema_accepts(xmlRelaxNGPtr schema, const char *text)
{
	xmlSetGenericErrorFunc(NULL, NULL); /* back to printing: xml_parse has silenced it */
	xmlDocPtr doc = text ? xmlReadMemory(text, (int)strlen(text), NULL, NULL, XML_PARSE_NONET) : NULL;
	xmlRelaxNGValidCtxtPtr valid = xmlRelaxNGNewValidCtxt(schema);
	int result = doc ? xmlRelaxNGValidateDoc(valid, doc) : -1;
	xmlRelaxNGFreeValidCtxt(valid);
	xmlFreeDoc(doc);
	if (result != 0)
		printf("refused by the schema:\n%s\n", text ? text : "(NULL)");
	return result == 0;
}

/* The last line of main. */
static inline int test_result(void)
{
	xpath(NULL, NULL);
	xmlRelaxNGCleanupTypes();
	xmlCleanupParser();
	if (failures)
		printf("%d checks failed\n", failures);
	return failures ? 1 : 0;
}

#endif
