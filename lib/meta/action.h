/* What is written into the files of a VM's actions/ directory: a line each, or XML in the form that the field already has.
 *
 * Words of a line are separated by blanks; quotes "…" '…' and a backslash keep blanks in a word, as in a shell. Empty lines and lines that
 * begin with '#' mean nothing: reading such a file gives nothing else, so that a copied VM directory can't set off anything.
 *
 * XML is libvirt's <domainsnapshot> (https://libvirt.org/formatsnapshot.html), <volume> (formatstorage.html, virStorageVolCreateXMLFrom) and
 * <domain>, and oVirt's <snapshot>, <vm> and <action> (REST API, snapshots/add, vms/add, vm/clone, vms/previewsnapshot, snapshot/restore). Before
 * that of a clone, words may stand on its first line: they decide where the two differ. Nothing is known here of which snapshots and
 * disks there are. */
#ifndef META_ACTION_H
#define META_ACTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/reason.h"

#define ACTION_TEXT_MAX (1u << 20)

enum action_kind {
	ACTION_NONE,
	ACTION_SNAPSHOT,
	ACTION_PREVIEW,
	ACTION_COMMIT,
	ACTION_UNDO,
	ACTION_RESTORE,
	ACTION_DELETE,
	ACTION_CLONE,
	ACTION_FLATTEN,
	ACTION_KINDS
};

enum action_delete { ACTION_DROP, ACTION_MERGE, ACTION_MERGE_FORCE, ACTION_DISCARD, ACTION_DISCARD_FORCE };

struct action_disk {
	char *disk;
	char *snapshot; /* NULL: the disk is left out, unless IMAGE says more */
	char *image;	/* oVirt's image_id, of the disk as it was in some snapshot; NULL: not said */
};

/* Each of these may be left unsaid. */
enum action_mode { ACTION_MODE_UNSAID, ACTION_THIN, ACTION_FULL };
enum action_format { ACTION_FORMAT_UNSAID, ACTION_RAW, ACTION_QCOW2 };
enum action_allocation { ACTION_ALLOCATION_UNSAID, ACTION_SPARSE, ACTION_ALLOCATED };
enum action_shrink { ACTION_SHRINK_UNSAID, ACTION_SHRINK, ACTION_NO_SHRINK };
enum action_serial { ACTION_SERIAL_UNSAID, ACTION_KEEP_SERIAL, ACTION_RENEW_SERIAL };

/* What a disk of a clone is to be; NULL and 0: not said. */
struct action_clone_disk {
	char *disk;	/* NULL: told by IMAGE */
	char *image;	/* oVirt's image_id, of the disk as it was in the snapshot */
	bool left_out;
	int mode, format, allocation, shrink, serial; /* of the enums above */
	char *pool;	/* "": the store's own directory */
	char *volume;
	uint64_t capacity; /* bytes */
	char *target, *bus;
	unsigned mode_bits;
};

struct action {
	enum action_kind kind; /* ACTION_NONE: nothing is to be done */

	/* ACTION_SNAPSHOT, and what ACTION_CLONE and ACTION_FLATTEN have of it: NAME, and DISKS with SUBSET */
	char *name;	   /* of the new one; NULL: not said */
	bool name_is_made; /* from a description: it may be taken without that being a mistake */
	char *description;
	bool subset; /* only disks[] take part, which may be none; else all but left_out[] */
	char **disks;
	size_t nr_disks;
	char **left_out;
	size_t nr_left_out;
	char *memory_path; /* absolute */

	/* ACTION_PREVIEW, ACTION_RESTORE, ACTION_DELETE; ACTION_CLONE: SNAPSHOT, where NULL means that it wasn't said */
	char *snapshot; /* the whole of it, but for what follows; NULL: only what follows changes */
	char *config, *memory; /* the snapshots that they come from */
	struct action_disk *changes;
	size_t nr_changes;

	bool discard;		   /* ACTION_COMMIT, ACTION_RESTORE: what was before isn't kept */
	enum action_delete delete; /* ACTION_DELETE */

	/* ACTION_CLONE */
	struct action_clone_disk all; /* holds where a disk's own row doesn't say */
	struct action_clone_disk *rows; /* the first one that says something of a disk counts */
	size_t nr_rows;
	char *domain; /* a <domain> to be its configuration; NULL: the source's */
	bool is_volume; /* no VM, but a volume in a pool (see ALL) of one disk of the source */
	char *volume_disk; /* that disk; NULL: the only one */
	char *backing; /* the file that a thin volume goes on from; NULL: not said */
	long owner, group; /* -1: not said */
};

/* The name of the file in actions/, and what reading it gives: lines that begin with '#'. */
const char *action_name(enum action_kind kind);
const char *action_usage(enum action_kind kind);
/* ACTION_NONE: there is no such action. */
enum action_kind action_kind_by_name(const char *name);

/* The first complete command for KIND in TEXT, a line without its newline or an XML document with the words before it; blanks before it are no
 * part of it. LAST: nothing will follow, so what is there is complete. False: there is none (yet). The command ends at RET_OFF + RET_LEN. */
bool action_next(enum action_kind kind, const char *text, size_t len, bool last, size_t *ret_off, size_t *ret_len);

/* Parses one command for KIND. -EINVAL: not one, -EOPNOTSUPP: asks for what we don't do; the reason says what was expected. The caller frees
 * with action_done. */
int action_parse(enum action_kind kind, const char *text, size_t len, struct action *ret, struct reason *why);
void action_done(struct action *action);

#endif
