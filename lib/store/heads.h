/* Managed disks that are open: one head for all who have the disk open, closed with the last of them.
 *
 * The file behind an open disk changes under its users (a clone of the disk freezes the layer and puts a new one on top): each read and
 * write therefore goes through `swap`, shared; who exchanges the head holds it exclusively. */
#ifndef STORE_HEADS_H
#define STORE_HEADS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "block/head.h"
#include "store/layers.h"
#include "store/vm.h"

struct entry;
struct store;

/* A frozen disk that others can be put over: the view, and how a qcow2 header or a vm.xml names it. Counted references. */
struct frozen {
	atomic_uint nr_refs;
	struct view *view;
	char *path; /* absolute; its directory is real */
	enum image_format format;
	char *snapshot; /* internal snapshot, which no header can name; NULL: none */
};

int frozen_new(struct store *store, struct view *view, const char *path, const char *snapshot, struct frozen **ret,
	       struct reason *why);
struct frozen *frozen_ref(struct frozen *frozen); /* NULL gives NULL */
void frozen_put(struct frozen *frozen);

struct open_head {
	struct open_head *next;	    /* in store->heads; protected by store->lock */
	char layer[LAYER_NAME_MAX]; /* changed under store->lock and swap */
	struct entry *entry;	    /* the VM's */

	/* changed under the VM's change lock */
	atomic_uint nr_users;
	atomic_uint nr_writers; /* of these, who has opened it for writing */
	atomic_uint nr_lookers; /* of these, who only asks for its size and space, and is done in a moment */
	bool removed; /* no disk of the VM any more: the layer goes with the last user */

	pthread_rwlock_t swap;
	/* protected by swap */
	struct head *head;   /* NULL: it couldn't be opened again: every operation fails with lost_err */
	struct view *locked; /* what lies beneath, with its image locks held; NULL: nothing */
	struct frozen *hint;   /* where the bytes of a blank disk probably come from */
	struct frozen *origin; /* what its layer was put over while it was open; NULL: it wasn't */
	int lost_err;
	uint64_t lost_size; /* bytes it had before: who reads on is to hear of the error, not of an end */

	atomic_int unsaved_err; /* a close failed, and no writer has been told yet that what it flushed or wrote last may be lost */
	_Atomic time_t no_revival; /* of the monotonic clock: in this second it was tried already */
	atomic_bool hinting; /* whether a write looks at the hint at all */
};

/* What lies beneath DISK's layer: its backing chain, or the internal snapshot that isn't copied yet (-EIO: that one has gone or
 * changed). NULL: nothing. */
int beneath_open(struct store *store, const struct vm_disk *disk, struct view **ret, struct reason *why);

/* The open head of DISK, a disk of the VM's current description, opened where it isn't yet. The caller holds the VM's change lock. */
int head_get(struct store *store, struct entry *entry, const struct vm_disk *disk, struct open_head **ret,
	     struct reason *why);
/* Tries to open again one that was lost (the filesystem was full when it should have been opened, say), unless somebody is changing its VM, or that was tried
 * in the same second. The caller holds no lock. */
void head_revive(struct store *store, struct open_head *oh);
/* The same, NULL where it isn't open. */
struct open_head *head_lookup(struct store *store, const struct vm_disk *disk);
/* Gives it back; the last one closes it, and hears of what couldn't be written. Takes the change lock of the VM itself. */
int head_put(struct store *store, struct open_head *oh);
int head_put_locked(struct store *store, struct open_head *oh); /* the caller holds it */

/* Whether any disk of the VM (one that was removed isn't any more) is open, but to be looked at. Exact while the caller holds the change lock. */
bool heads_in_use(struct store *store, const struct entry *entry);
/* Whether another program has DISK's file open, as QEMU's image locks say: it goes on with a file that has no name, and what it writes is lost, if the disk is
 * removed then. -EBUSY. Nothing is asked of a disk that is open here, whose locks are ours. The caller holds the change lock. */
int head_check_foreign(struct store *store, const struct vm_disk *disk, struct reason *why);
int heads_check_foreign(struct store *store, const struct vm *now, struct reason *why); /* any of them */
/* Whether any is open for writing. */
bool heads_have_writer(struct store *store, const struct entry *entry);
/* Whether any is open at all, be it to be looked at. */
bool heads_are_open(struct store *store, const struct entry *entry);
/* The VM's layers go with the last who looks at them. The caller holds the change lock. */
void heads_removed(struct store *store, const struct entry *entry);

/* Opens LAYER over BENEATH (may be NULL), whose image locks it takes, into OH. The caller holds swap exclusively, or is alone. -EAGAIN: something has been
 * written into what lies beneath since BENEATH was opened. */
int head_attach(struct store *store, struct open_head *oh, const char *layer, struct view *beneath, struct reason *why);
/* Opens the layer of DISK again, over what lies beneath it. As head_attach(). */
int head_reattach(struct store *store, struct open_head *oh, const struct vm_disk *disk, struct reason *why);
/* Closes the file and lets go of what is beneath; OH has no head then. An error is the next flush's, too: a head that is opened anew knows nothing of it. */
int head_detach(struct open_head *oh);
/* After a merge: every open head whose chain goes through one of the layers NAMES gets its chain opened anew, so that no file is kept that
 * has no name any more. The caller holds no lock. */
int heads_reopen_beneath(struct store *store, char (*names)[LAYER_NAME_MAX], size_t nr);
/* Puts VIEW in the place of what lies beneath as far as locks go; the head itself is told by the caller. */
int head_relock(struct open_head *oh, struct view *view, struct reason *why);

#endif
