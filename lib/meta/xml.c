#include "meta/xml.h"

#include <ctype.h>
#include <errno.h>
#include <libxml/parser.h>
#include <libxml/SAX2.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "meta/xml_scan.h"
#include "base/strbuf.h"

static xmlParserInputPtr load_nothing(const char *url, const char *id, xmlParserCtxtPtr ctxt)
{
	(void)url, (void)id, (void)ctxt;
	return NULL;
}

void xml_init(void)
{
	xmlInitParser();
	xmlSetExternalEntityLoader(load_nothing);
}

/* The SAX handler for <!DOCTYPE: nothing of the subset is read, so neither are its entities expanded. */
static void refuse_doctype(void *data, const xmlChar *name, const xmlChar *id, const xmlChar *url)
{
	(void)name, (void)id, (void)url;
	xmlParserCtxtPtr ctxt = data;
	int *doctype_line = ctxt->_private;
	*doctype_line = xmlSAX2GetLineNumber(ctxt);
	xmlStopParser(ctxt);
}

static void ignore_message(void *ctx, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void ignore_message(void *ctx, const char *fmt, ...)
{
	(void)ctx, (void)fmt;
}

static int explain_failure(xmlParserCtxtPtr ctxt, struct reason *why)
{
	xmlErrorPtr error = xmlCtxtGetLastError(ctxt);
	if (error && error->code == XML_ERR_NO_MEMORY)
		return reason_set(why, -ENOMEM, "out of memory");
	if (!error || !error->message)
		return reason_set(why, -EINVAL, "not XML");
	int len = (int)strcspn(error->message, "\n");
	return reason_set(why, -EINVAL, "not well-formed XML, line %d, column %d: %.*s", error->line, error->int2, len,
	                  error->message);
}

/* Strings are UTF-8 in memory whatever the file's encoding was; the printer must know, or it writes attributes in
 * character references. */
static int set_utf8(xmlDocPtr doc)
{
	xmlChar *utf8 = xmlStrdup(BAD_CAST "UTF-8");
	if (!utf8)
		return -ENOMEM;
	xmlFree((xmlChar *)doc->encoding);
	doc->encoding = utf8;
	return 0;
}

static int parse_in_context(xmlParserCtxtPtr ctxt, const char *text, size_t len, int options, xmlDocPtr *ret, struct reason *why)
{
	int doctype_line = 0;
	ctxt->_private = &doctype_line;
	ctxt->sax->internalSubset = refuse_doctype;
	auto_doc xmlDocPtr doc = xmlCtxtReadMemory(ctxt, text, (int)len, NULL, NULL,
	                                           XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING | options);
	if (doctype_line)
		return reason_set(why, -EINVAL, "line %d: DTDs and entities (<!DOCTYPE) are refused: remove them",
		                  doctype_line);
	if (!doc || !xmlDocGetRootElement(doc))
		return explain_failure(ctxt, why);
	int err = set_utf8(doc);
	if (err)
		return err;
	*ret = take_ptr(doc);
	return 0;
}

static int parse(const char *text, size_t len, int options, xmlDocPtr *ret, struct reason *why)
{
	if (len > XML_TEXT_MAX)
		return reason_set(why, -EFBIG, "the XML is larger than %u MiB", XML_TEXT_MAX >> 20);
	int err = xml_scan(text, len, why);
	if (err)
		return err;
	/* Errors of the character set go to this handler, the thread's own, even under XML_PARSE_NOERROR. */
	xmlSetGenericErrorFunc(NULL, ignore_message);
	xmlParserCtxtPtr ctxt = xmlNewParserCtxt();
	if (!ctxt)
		return reason_set(why, -ENOMEM, "out of memory");
	err = parse_in_context(ctxt, text, len, options, ret, why);
	xmlFreeParserCtxt(ctxt);
	return err;
}

int xml_parse(const char *text, size_t len, xmlDocPtr *ret, struct reason *why)
{
	return parse(text, len, 0, ret, why);
}

int xml_parse_to_read(const char *text, size_t len, xmlDocPtr *ret, struct reason *why)
{
	return parse(text, len, XML_PARSE_NOBLANKS | XML_PARSE_COMPACT, ret, why);
}

void xml_cleanup_doc(xmlDocPtr *doc)
{
	xmlFreeDoc(*doc);
}

static int print_node(xmlDocPtr doc, xmlNodePtr node, char **ret_text)
{
	xmlBufferPtr buf = xmlBufferCreate();
	if (!buf)
		return -ENOMEM;
	char *text = NULL;
	if (xmlNodeDump(buf, doc, node, 0, 0) >= 0)
		text = strdup((const char *)xmlBufferContent(buf));
	xmlBufferFree(buf);
	if (!text)
		return -ENOMEM;
	*ret_text = text;
	return 0;
}

/* A copy of NODE that stands alone: the namespaces that its ancestors declare are declared on it. */
static xmlNodePtr copy_alone(xmlDocPtr doc, xmlNodePtr node)
{
	xmlNodePtr copy = xmlDocCopyNode(node, doc, 1);
	xmlNsPtr *in_scope = copy ? xmlGetNsList(doc, node) : NULL;
	for (size_t i = 0; in_scope && in_scope[i]; i++)
		xmlNewNs(copy, in_scope[i]->href, in_scope[i]->prefix); /* NULL: has that prefix already */
	xmlFree(in_scope);
	return copy;
}

/* libxml2 prints a namespace's name as it is in memory: markup and all, but for '&', which the parser has left as a reference. */
#define AMPERSAND "&#38;"

static bool ns_is_plain(xmlNsPtr ns)
{
	return !ns->href || !strpbrk((const char *)ns->href, "<>\"'\r\n\t");
}

static int escape_name(const char *name, char **ret)
{
	struct strbuf b = {0};
	for (const char *p = name; p;) {
		const char *reference = strstr(p, AMPERSAND);
		auto_free char *piece = strndup(p, reference ? (size_t)(reference - p) : strlen(p));
		b.failed |= !piece;
		if (piece)
			strbuf_add_xml_exact(&b, piece);
		if (reference)
			strbuf_add(&b, AMPERSAND, strlen(AMPERSAND));
		p = reference ? reference + strlen(AMPERSAND) : NULL;
	}
	return strbuf_take(&b, ret, NULL);
}

static int escape_ns(xmlNsPtr ns)
{
	auto_free char *text = NULL;
	int err = escape_name((const char *)ns->href, &text);
	xmlChar *escaped = err ? NULL : xmlStrdup(BAD_CAST text);
	if (!escaped)
		return -ENOMEM;
	xmlFree((xmlChar *)(uintptr_t)ns->href);
	ns->href = escaped;
	return 0;
}

/* The node that follows in the text, of those below TOP. */
static xmlNodePtr next_below(xmlNodePtr node, xmlNodePtr top)
{
	if (node->type == XML_ELEMENT_NODE && node->children)
		return node->children;
	while (node != top && !node->next)
		node = node->parent;
	return node == top ? NULL : node->next;
}

static bool namespaces_are_plain(xmlNodePtr top)
{
	bool plain = true;
	for (xmlNodePtr node = top; node && plain; node = next_below(node, top))
		for (xmlNsPtr ns = node->type == XML_ELEMENT_NODE ? node->nsDef : NULL; ns && plain; ns = ns->next)
			plain = ns_is_plain(ns);
	return plain;
}

/* TOP is only good for being printed then. */
static int escape_namespaces(xmlNodePtr top)
{
	int err = 0;
	for (xmlNodePtr node = top; node && !err; node = next_below(node, top))
		for (xmlNsPtr ns = node->type == XML_ELEMENT_NODE ? node->nsDef : NULL; ns && !err; ns = ns->next)
			err = ns_is_plain(ns) ? 0 : escape_ns(ns);
	return err;
}

int xml_print(xmlDocPtr doc, xmlNodePtr node, char **ret_text)
{
	bool is_alone = node->type != XML_ELEMENT_NODE || node == xmlDocGetRootElement(doc);
	if (is_alone && namespaces_are_plain(node))
		return print_node(doc, node, ret_text);
	xmlNodePtr copy = copy_alone(doc, node);
	if (!copy)
		return -ENOMEM;
	int err = escape_namespaces(copy);
	if (!err)
		err = print_node(doc, copy, ret_text);
	xmlFreeNode(copy);
	return err;
}

/* libvirt's elements are in no namespace; <app:name> isn't <name>. */
static xmlNodePtr first_named(xmlNodePtr node, const char *name)
{
	while (node && (node->type != XML_ELEMENT_NODE || node->ns || strcmp((const char *)node->name, name) != 0))
		node = node->next;
	return node;
}

xmlNodePtr xml_child(xmlNodePtr parent, const char *name)
{
	return parent ? first_named(parent->children, name) : NULL;
}

xmlNodePtr xml_next(xmlNodePtr node, const char *name)
{
	return node ? first_named(node->next, name) : NULL;
}

static char *copy_trimmed(const char *text)
{
	while (isspace((unsigned char)*text))
		text++;
	size_t len = strlen(text);
	while (len && isspace((unsigned char)text[len - 1]))
		len--;
	return len ? strndup(text, len) : NULL;
}

char *xml_text(xmlNodePtr node)
{
	xmlChar *content = node ? xmlNodeGetContent(node) : NULL;
	char *text = content ? copy_trimmed((const char *)content) : NULL;
	xmlFree(content);
	return text;
}

char *xml_attr(xmlNodePtr node, const char *name)
{
	xmlChar *value = node ? xmlGetNoNsProp(node, BAD_CAST name) : NULL;
	char *text = value && *value ? strdup((const char *)value) : NULL;
	xmlFree(value);
	return text;
}
