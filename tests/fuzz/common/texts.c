#include "texts.h"

#include <libxml/parser.h>
#include <libxml/tree.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/xml.h"

#define VALUE_MAX 200u
#define NODES_MAX 2000u
#define WORDS_MAX 400u

static uint64_t dice;

static uint64_t roll(uint64_t below)
{
	dice = dice * 6364136223846793005ull + 1442695040888963407ull;
	return (dice >> 33) % below;
}

/* --- words ----------------------------------------------------------------------------------------------------- */

static char *words[WORDS_MAX];
static size_t nr_words;

/* Plain words of libFuzzer's dictionary. */
static void load_words(const char *path)
{
	char line[300], word[300];
	FILE *in = fopen(path, "r");
	while (in && fgets(line, sizeof line, in) && nr_words < WORDS_MAX)
		if (sscanf(line, "\"%299[A-Za-z0-9_.:/-]\"", word) == 1)
			words[nr_words++] = strdup(word);
	if (in)
		fclose(in);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	xml_init();
	for (int i = 1; i < *argc; i++)
		if (strncmp((*argv)[i], "-dict=", 6) == 0)
			load_words((*argv)[i] + 6);
	return 0;
}

static const char *some_word(void)
{
	return nr_words ? words[roll(nr_words)] : "disk";
}

static bool is_name(const char *word)
{
	return word[strcspn(word, ":/")] == '\0' && (word[0] < '0' || word[0] > '9') && word[0] != '-' && word[0] != '.';
}

static const char *some_name(void)
{
	for (unsigned i = 0; i < 20; i++) {
		const char *word = some_word();
		if (is_name(word))
			return word;
	}
	return "disk";
}

/* --- trees ------------------------------------------------------------------------------------------------------------ */

static void collect(xmlNodePtr node, xmlNodePtr *nodes, size_t *nr)
{
	for (; node && *nr < NODES_MAX; node = node->next) {
		if (node->type == XML_ELEMENT_NODE)
			nodes[(*nr)++] = node;
		collect(node->children, nodes, nr);
	}
}

static xmlAttrPtr some_attr(xmlNodePtr node)
{
	xmlAttrPtr found = NULL;
	unsigned nr = 0;
	for (xmlAttrPtr a = node->properties; a; a = a->next)
		if (roll(++nr) == 0)
			found = a;
	return found;
}

/* OLD changed, by us or by libFuzzer: something that XML can hold. */
static char *other_value(const char *old)
{
	uint8_t buf[VALUE_MAX + 1];
	size_t len = old ? strnlen(old, VALUE_MAX / 2) : 0;
	if (roll(3) == 0)
		return strdup(some_word());
	if (len)
		memcpy(buf, old, len);
	len = LLVMFuzzerMutate(buf, len ? len : 0, VALUE_MAX);
	for (size_t i = 0; i < len; i++)
		if ((buf[i] < 32 && buf[i] != '\n') || buf[i] > 126)
			buf[i] = 'a' + buf[i] % 26;
	buf[len] = '\0';
	return strdup((char *)buf);
}

static void set_value(xmlNodePtr node)
{
	xmlAttrPtr attr = some_attr(node);
	xmlChar *old = attr ? xmlGetNoNsProp(node, attr->name) : NULL;
	char *value = other_value((char *)old);
	if (attr && roll(5))
		xmlSetProp(node, attr->name, BAD_CAST value);
	else
		xmlSetProp(node, BAD_CAST some_name(), BAD_CAST value);
	free(value);
	xmlFree(old);
}

static void set_text(xmlNodePtr node)
{
	if (xmlFirstElementChild(node) && roll(8))
		return;
	xmlChar *old = xmlNodeGetContent(node);
	char *value = other_value((char *)old);
	xmlNodeSetContent(node, NULL);
	xmlNodeAddContent(node, BAD_CAST value);
	free(value);
	xmlFree(old);
}

static bool is_below(xmlNodePtr node, xmlNodePtr above)
{
	while (node && node != above)
		node = node->parent;
	return node;
}

static void change_tree(xmlDocPtr doc)
{
	static xmlNodePtr nodes[NODES_MAX];
	size_t nr = 0;
	collect(doc->children, nodes, &nr);
	xmlNodePtr node = nodes[roll(nr)], other = nodes[roll(nr)], root = xmlDocGetRootElement(doc);
	switch (roll(10)) {
	case 0:
		if (node != root) {
			xmlUnlinkNode(node);
			xmlFreeNode(node);
		}
		break;
	case 1: /* twice */
		if (node != root)
			xmlAddNextSibling(node, xmlDocCopyNode(node, doc, 1));
		break;
	case 2: /* elsewhere */
		if (node != root && !is_below(other, node)) {
			xmlUnlinkNode(node);
			xmlAddChild(other, node);
			xmlReconciliateNs(doc, node);
		}
		break;
	case 3: xmlAddChild(other, xmlDocCopyNode(node, doc, nr < 200)); break;
	case 4: xmlNodeSetName(node, BAD_CAST some_name()); break;
	case 5: xmlNewChild(node, NULL, BAD_CAST some_name(), roll(2) ? BAD_CAST some_word() : NULL); break;
	case 6:
	case 7: set_value(node); break;
	case 8:
		if (some_attr(node))
			xmlRemoveProp(some_attr(node));
		break;
	default: set_text(node); break;
	}
}

/* The document at START of LEN bytes; the new length, or 0: it isn't one, or has become too long. */
static size_t mutate_tree(uint8_t *text, size_t len, size_t max_len)
{
	xmlDocPtr doc = xmlReadMemory((char *)text, (int)len, NULL, NULL, XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
	xmlChar *made = NULL;
	int made_len = 0;
	if (doc && xmlDocGetRootElement(doc)) {
		for (uint64_t i = 1 + roll(4); i > 0; i--)
			change_tree(doc);
		xmlDocDumpMemoryEnc(doc, &made, &made_len, "UTF-8");
	}
	xmlFreeDoc(doc);
	size_t new_len = made && (size_t)made_len <= max_len ? (size_t)made_len : 0;
	if (new_len)
		memcpy(text, made, new_len);
	xmlFree(made);
	return new_len;
}

/* --- texts ---------------------------------------------------------------------------------------------------------------- */

size_t texts_mutate(uint8_t *data, size_t start, size_t size, size_t max_size, unsigned seed)
{
	dice = seed * 0x9e3779b97f4a7c15ull + 1;
	size_t text_end = start < size ? start + strnlen((char *)data + start, size - start) : size;
	uint8_t *xml = start < text_end ? memchr(data + start, '<', text_end - start) : NULL;
	if (!xml || roll(5) == 0)
		return LLVMFuzzerMutate(data, size, max_size);
	size_t at = (size_t)(xml - data), behind = size - text_end;
	uint8_t *tail = malloc(behind + 1);
	if (!tail)
		return size;
	memcpy(tail, data + text_end, behind);
	size_t len = mutate_tree(xml, text_end - at, max_size - behind - at);
	if (len) {
		memcpy(xml + len, tail, behind);
		size = at + len + behind;
	}
	free(tail);
	return len ? size : LLVMFuzzerMutate(data, size, max_size);
}
