/* Reading XML that may be hostile, and writing it back unchanged but for what was meant to change.
 *
 * libxml2 with no network, no entity expansion and no DTD; documents with an internal subset are refused (-EINVAL), and so
 * are those over XML_TEXT_MAX (-EFBIG). Reasons name line and column. */
#ifndef META_XML_H
#define META_XML_H

#include <libxml/tree.h>
#include <stddef.h>

#include "base/reason.h"

#define XML_TEXT_MAX (4u << 20) /* the largest domain XML seen in the field is under 200 KiB */

/* Once, before any thread: switches external entities off for the process. */
void xml_init(void);

/* The caller frees with xmlFreeDoc, or has declared it auto_doc. TEXT needs no terminating NUL. */
int xml_parse(const char *text, size_t len, xmlDocPtr *ret, struct reason *why);

/* The same, quicker, for what is neither changed nor printed: without the white space between elements. */
int xml_parse_to_read(const char *text, size_t len, xmlDocPtr *ret, struct reason *why);

/* NODE and all below it as text with an XML declaration left out; the caller frees with free(). Namespace declarations in scope are kept. */
int xml_print(xmlDocPtr doc, xmlNodePtr node, char **ret_text);

/* The first child element NAME; NULL: none. */
xmlNodePtr xml_child(xmlNodePtr parent, const char *name);

/* The next sibling element of that name. */
xmlNodePtr xml_next(xmlNodePtr node, const char *name);

/* Text content with white space trimmed, or an attribute; NULL: absent or empty. The caller frees with free(). */
char *xml_text(xmlNodePtr node);
char *xml_attr(xmlNodePtr node, const char *name);

void xml_cleanup_doc(xmlDocPtr *doc);
#define auto_doc __attribute__((cleanup(xml_cleanup_doc)))

#endif
