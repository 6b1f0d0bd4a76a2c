/* A look at XML before libxml2 gets it, which compares each attribute of an element with all others: a megabyte of them keeps it busy for
 * minutes. Follows the markup only as far as it takes to count them, so it must see it as libxml2 does: encodings in which a byte
 * below 128 may be anything else than ASCII are refused. */
#ifndef META_XML_SCAN_H
#define META_XML_SCAN_H

#include <stddef.h>

#include "base/reason.h"

#define XML_ATTRIBUTES_MAX 256u /* of one element; libvirt's have 10 */

/* 0; -EINVAL. What isn't XML at all may pass. */
int xml_scan(const char *text, size_t len, struct reason *why);

#endif
