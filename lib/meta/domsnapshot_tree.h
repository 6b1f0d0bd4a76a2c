/* The tree of a <domainsnapshot>. For lib/meta only. */
#ifndef META_DOMSNAPSHOT_TREE_H
#define META_DOMSNAPSHOT_TREE_H

#include "meta/domsnapshot.h"

/* -EINVAL: the root is something else. */
int domsnapshot_root(xmlDocPtr doc, xmlNodePtr *ret, struct reason *why);

/* Its <domain>, if that is a whole one and not only a UUID; NULL: none. */
xmlNodePtr domsnapshot_domain_node(xmlNodePtr root);

#endif
