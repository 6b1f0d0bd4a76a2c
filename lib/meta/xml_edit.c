#include "meta/xml_edit.h"

#include <errno.h>
#include <libxml/chvalid.h>
#include <libxml/xmlstring.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static bool is_xml_text(const char *text)
{
	const unsigned char *p = (const unsigned char *)text;
	if (!xmlCheckUTF8(p))
		return false;
	while (*p) {
		int len = 4;
		int c = xmlGetUTF8Char(p, &len);
		if (c < 0 || !xmlIsCharQ((unsigned)c))
			return false;
		p += len;
	}
	return true;
}

int xml_check_text(const char *what, const char *text, struct reason *why)
{
	if (is_xml_text(text))
		return 0;
	return reason_set(why, -EINVAL, "the %s isn't text that XML can hold (UTF-8 without control characters)", what);
}

int xml_set_attr(xmlNodePtr node, const char *name, const char *value)
{
	/* libxml2 would take it, and change the document's encoding. */
	if (!is_xml_text(value))
		return -EINVAL;
	return xmlSetProp(node, BAD_CAST name, BAD_CAST value) ? 0 : -ENOMEM;
}

int xml_set_text(xmlNodePtr node, const char *text)
{
	if (!is_xml_text(text))
		return -EINVAL;
	xmlNodePtr child = xmlNewDocText(node->doc, BAD_CAST text);
	if (!child)
		return -ENOMEM;
	xmlNodeSetContent(node, NULL);
	xmlAddChild(node, child);
	return 0;
}

void xml_drop_attr(xmlNodePtr node, const char *name)
{
	xmlUnsetProp(node, BAD_CAST name);
}

static bool is_blank(xmlNodePtr node)
{
	return node && node->type == XML_TEXT_NODE && xmlIsBlankNode(node);
}

static void unlink_free(xmlNodePtr node)
{
	xmlUnlinkNode(node);
	xmlFreeNode(node);
}

void xml_drop(xmlNodePtr node)
{
	if (!node)
		return;
	xmlNodePtr parent = node->parent;
	if (is_blank(node->prev))
		unlink_free(node->prev);
	unlink_free(node);
	/* What was the only child leaves <a/>, not an end tag on a line of its own. */
	if (parent && is_blank(parent->children) && !parent->children->next)
		unlink_free(parent->children);
}

void xml_drop_children(xmlNodePtr parent, const char *name)
{
	for (xmlNodePtr child; (child = xml_child(parent, name));)
		xml_drop(child);
}

static size_t depth_of(xmlNodePtr node)
{
	size_t depth = 0;
	while ((node = node->parent) && node->type == XML_ELEMENT_NODE)
		depth++;
	return depth;
}

static xmlNodePtr new_line(xmlDocPtr doc, size_t depth)
{
	size_t len = 1 + 2 * depth;
	auto_free char *text = malloc(len);
	if (!text)
		return NULL;
	memset(text, ' ', len);
	*text = '\n';
	return xmlNewDocTextLen(doc, BAD_CAST text, (int)len);
}

static void link_behind(xmlNodePtr parent, xmlNodePtr after, xmlNodePtr node)
{
	if (after)
		xmlAddNextSibling(after, node);
	else if (parent->children)
		xmlAddPrevSibling(parent->children, node);
	else
		xmlAddChild(parent, node);
}

xmlNodePtr xml_add(xmlNodePtr parent, xmlNodePtr after, const char *name)
{
	size_t depth = depth_of(parent);
	xmlNodePtr node = xmlNewDocNode(parent->doc, NULL, BAD_CAST name, NULL);
	xmlNodePtr start = new_line(parent->doc, depth + 1);
	xmlNodePtr end = new_line(parent->doc, depth);
	if (!node || !start || !end) {
		xmlFreeNode(node);
		xmlFreeNode(start);
		xmlFreeNode(end);
		return NULL;
	}
	link_behind(parent, after, node);
	xmlAddPrevSibling(node, start);
	if (node->next)
		xmlFreeNode(end);
	else
		xmlAddNextSibling(node, end);
	return node;
}

/* The columns of the last line of the white space TEXT; -1: it has no line break. */
static int columns_of(xmlNodePtr text)
{
	const char *line = is_blank(text) ? strrchr((const char *)text->content, '\n') : NULL;
	return line ? (int)strlen(line + 1) : -1;
}

static int indent_text(xmlNodePtr text, int by)
{
	int columns = columns_of(text);
	if (columns < 0)
		return 0;
	size_t keep = strlen((const char *)text->content) - (size_t)columns;
	size_t want = columns + by > 0 ? (size_t)(columns + by) : 0;
	auto_free char *content = malloc(keep + want + 1);
	if (!content)
		return -ENOMEM;
	memcpy(content, text->content, keep);
	memset(content + keep, ' ', want);
	content[keep + want] = '\0';
	xmlNodeSetContent(text, BAD_CAST content);
	return 0;
}

/* As deep as the tree, which the parser bounds (256 levels). */
int xml_indent(xmlNodePtr node, int by)
{
	int err = 0;
	for (xmlNodePtr child = node->children; child && !err; child = child->next) {
		if (child->type == XML_TEXT_NODE)
			err = indent_text(child, by);
		else if (child->type == XML_ELEMENT_NODE)
			err = xml_indent(child, by);
	}
	return err;
}

int xml_indentation(xmlNodePtr node)
{
	int columns = columns_of(node->last);
	return columns > 0 ? columns : 0;
}
