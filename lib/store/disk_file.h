/* An open disk, as disk.c and copy.c see it. */
#ifndef STORE_DISK_FILE_H
#define STORE_DISK_FILE_H

#include "store/heads.h"
#include "store/store.h"

enum disk_file_kind {
	DISK_FILE_HEAD,	  /* a managed disk: head */
	DISK_FILE_VIEW,	  /* a chain that we only read: view, locked */
	DISK_FILE_VMSTATE, /* the RAM state in an internal snapshot: view, locked */
	DISK_FILE_PLAIN,  /* the RAM state in a file of its own: fd */
};

struct disk_file {
	struct store *store;
	enum disk_file_kind kind;
	bool writable;
	struct open_head *head;
	struct view *view;
	struct frozen *frozen; /* what others can be put over; NULL: it may change, or isn't a disk */
	int fd;
	char *outside; /* where fd's file lies, when that isn't in the store; NULL */
	int64_t created; /* of the snapshot; 0: not one */
	/* A managed VM's snapshot: */
	char *pinned; /* its layer, which isn't merged meanwhile even if the snapshot is deleted; NULL: none */
	uint32_t vm_id, snapshot_id;
};

/* copy.c: a write of BUF comes to a blank disk that has a hint. Puts it over the hint's chain if that has the same bytes there. */
void copy_try_hint(struct disk_file *to, const void *buf, size_t len, uint64_t off);

#endif
