/* A <domain> that is being changed: the tree, and what it said before. For lib/meta only. */
#ifndef META_DOMAIN_EDIT_H
#define META_DOMAIN_EDIT_H

#include "meta/domain.h"

struct domain_edit {
	xmlDocPtr doc;
	xmlNodePtr root;
	struct domain before;
};

/* The caller ends with domain_edit_done, also after a failure. */
int domain_edit_init(struct domain_edit *edit, const char *text, size_t len, struct reason *why);
void domain_edit_done(struct domain_edit *edit);

/* The changed text, with the comments around the root but for libvirt's "AUTO-GENERATED FILE" notice, which is true of
 * the original alone. The caller frees. */
int domain_edit_print(const struct domain_edit *edit, char **ret_text);

int domain_edit_name(struct domain_edit *edit, const char *name);

/* <uuid>, and the system UUID in <sysinfo>, which libvirt wants to be the same. An equal UUID keeps its spelling. */
int domain_edit_uuid(struct domain_edit *edit, const char *uuid);

/* Case and dashes don't matter. */
bool domain_uuid_equal(const char *a, const char *b);

/* The first <NAME> in <devices>, and the next one behind DEVICE; NULL: none. */
xmlNodePtr domain_device(xmlNodePtr domain, const char *name);
xmlNodePtr domain_next_device(xmlNodePtr device, const char *name);

/* Whether a <disk> is one (device='disk', the default), not a CD-ROM, floppy or LUN. */
bool domain_device_is_disk(xmlNodePtr disk);

/* The <disk> (a CD-ROM, floppy or LUN too) whose target is TARGET; NULL: none. */
xmlNodePtr domain_device_at(xmlNodePtr domain, const char *target);

/* Whether libvirt takes TARGET for the name of a disk: a prefix ("vd", or any that it knows), letters, then perhaps the number of a
 * partition (virDiskNameParse). */
bool domain_has_prefix(const char *target, const char *prefix);
bool domain_is_disk_name(const char *target);

/* The attribute dev of its <target>; NULL: none. The caller frees. */
char *domain_device_target(xmlNodePtr disk);

#endif
