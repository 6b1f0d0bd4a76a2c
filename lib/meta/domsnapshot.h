/* libvirt domain snapshot metadata (https://libvirt.org/formatsnapshot.html): the public form and libvirt's private one, which has
 * <active> and friends as well. */
#ifndef META_DOMSNAPSHOT_H
#define META_DOMSNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>

#include "meta/domain.h"

enum domsnapshot_location {
	DOMSNAPSHOT_NONE,     /* not part of the snapshot: 'no' or 'manual' */
	DOMSNAPSHOT_INTERNAL, /* in the image that <domain> names, under the snapshot's name */
	DOMSNAPSHOT_EXTERNAL, /* the image that <domain> names is the snapshot; a new overlay took over */
};

struct domsnapshot_disk {
	char *name; /* target, or a source path that libvirt allows too: resolved to the target where the <domain> tells */
	enum domsnapshot_location location;
	char *overlay; /* path of the new overlay, if said */
};

struct domsnapshot {
	char *name;
	char *description;
	char *state; /* "running", "shutoff", "disk-snapshot", … */
	char *parent; /* name; NULL: a root */
	int64_t created; /* seconds since the epoch; 0: not said */
	bool active;	 /* libvirt's "current" */
	enum domsnapshot_location memory; /* missing <memory>: none for shutoff and disk-snapshot, else internal */
	char *memory_file; /* external only */
	bool has_domain;
	struct domain domain; /* the configuration at that moment, if has_domain */
	struct domsnapshot_disk *disks; /* as written; without <disks>: one row for each disk of the domain, by libvirt's old rule (internal) */
	size_t nr_disks;
};

/* -EINVAL: not a <domainsnapshot>, no name, or its <domain> is a bad one (domain_parse). What else is missing or
 * unknown gets libvirt's default. The caller frees with domsnapshot_done. */
int domsnapshot_parse_text(const char *text, size_t len, struct domsnapshot *ret, struct reason *why);
void domsnapshot_done(struct domsnapshot *snapshot);

/* Where disk TARGET was kept; disks not listed in a snapshot that lists others: libvirt's default, which is what the
 * <disk> itself says (attribute snapshot), none for a read-only disk or one without a source, else by kind of snapshot
 * (external for disk-snapshot state or external memory, else internal). */
enum domsnapshot_location domsnapshot_disk_location(const struct domsnapshot *snapshot, const char *target);

/* Only the <domain> of that moment, as text, its lines as far left as if it stood alone; -ENOENT: it holds none, or only
 * the UUID that libvirt kept long ago. The caller frees. */
int domsnapshot_domain_text(const char *text, size_t len, char **ret_text, struct reason *why);

/* The public form: what only libvirt's private form has is taken out, so that it validates. The caller frees. */
int domsnapshot_public_text(const char *text, size_t len, char **ret_text, struct reason *why);

/* What domsnapshot_render writes. */
struct domsnapshot_spec {
	const char *name, *description /* NULL: none */, *state, *parent /* NULL: root */;
	int64_t created;
	bool has_memory; /* internal, unless MEMORY_FILE says where */
	const char *memory_file;
	const struct domsnapshot_disk *disks;
	size_t nr_disks;
	const char *domain_text; /* a whole <domain> without XML declaration; NULL: none */
};

/* A valid <domainsnapshot> (libvirt schema). -EINVAL: a text that XML can't hold, or DOMAIN_TEXT isn't a domain. The
 * caller frees. */
int domsnapshot_render(const struct domsnapshot_spec *spec, char **ret_text);

#endif
