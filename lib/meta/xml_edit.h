/* Changing an XML tree so that what was not changed prints as it was, and what was added is indented as libvirt
 * does it (two spaces a level). For lib/meta only. */
#ifndef META_XML_EDIT_H
#define META_XML_EDIT_H

#include "meta/xml.h"

/* 0, or -EINVAL with a reason ("the name … ") where XML 1.0 can't hold TEXT: not UTF-8, control characters. */
int xml_check_text(const char *what, const char *text, struct reason *why);

/* Both take plain text, not markup. -EINVAL: see xml_check_text; -ENOMEM. xml_set_text replaces all children. */
int xml_set_attr(xmlNodePtr node, const char *name, const char *value);
int xml_set_text(xmlNodePtr node, const char *text);

void xml_drop_attr(xmlNodePtr node, const char *name);

/* Unlinks and frees NODE, and the white space that indented it. NULL does nothing. */
void xml_drop(xmlNodePtr node);

/* Drops every child element NAME. */
void xml_drop_children(xmlNodePtr parent, const char *name);

/* Makes an empty element NAME behind AFTER, a child of PARENT (NULL: as the first child). NULL: out of memory. */
xmlNodePtr xml_add(xmlNodePtr parent, xmlNodePtr after, const char *name);

/* Moves the lines below NODE by BY columns to the right (to the left if negative): only white space between
 * elements changes. */
int xml_indent(xmlNodePtr node, int by);

/* By how many columns the end tag of NODE is indented. */
int xml_indentation(xmlNodePtr node);

#endif
