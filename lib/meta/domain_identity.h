/* What the two halves of domain_clone_identity share: ids, and what of the host belongs to one VM alone. For lib/meta only. */
#ifndef META_DOMAIN_IDENTITY_H
#define META_DOMAIN_IDENTITY_H

#include "base/strbuf.h"
#include "meta/domain_edit.h"

struct identity {
	const char *old_name, *old_uuid; /* OLD_UUID NULL: it had none */
	const char *name, *uuid;
	const char *nvram_path;
	struct strbuf *notes; /* a line each */
};

/* Calls CHANGE for each <NAME> in <devices>; it may drop that one. */
int identity_each_device(xmlNodePtr domain, const char *name, int (*change)(xmlNodePtr, const struct identity *), const struct identity *id);

void identity_note(const struct identity *id, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Files, sockets and ports of the host: those that QEMU or libvirt makes get the new name, or libvirt's choice; of the others there is a note where two
 * VMs can't have them. */
int identity_set_host(xmlNodePtr domain, const struct identity *id);

#endif
