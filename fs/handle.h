/* Open files and directories: what is behind fuse_file_info.fh.
 *
 * All of them are in a table, because a signal can end the mount while files are open (no RELEASE comes then, and the store wants every
 * disk closed), and because other requests must know which files are being written. */
#ifndef FS_HANDLE_H
#define FS_HANDLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"
#include "base/strbuf.h"

struct fs;
struct place;
struct disk_file;
struct dir_list;
struct control;

enum handle_kind {
	HANDLE_DISK,   /* a disk or a snapshot's memory */
	HANDLE_TEXT,   /* a text as it was when it was opened */
	HANDLE_EVENTS, /* live */
	HANDLE_DOMAIN, /* domain.xml being written */
	HANDLE_ACTION, /* a file in actions/ being written */
	HANDLE_SCRATCH,
	HANDLE_DIR,
};

struct handle {
	struct list link;
	atomic_uint nr_refs; /* 0: it is being closed, and gets no other */
	enum handle_kind kind;
	bool writable;
	bool is_counted; /* by passthrough_open */
	bool is_stale;	 /* an image has changed: see watch.h, whose thread's it is */
	int backing_id;	 /* the host file that the kernel reads; 0: none */
	atomic_ullong nr_read; /* bytes; saturates */
	uint64_t ino;
	uint32_t vm;	      /* its id; 0: none */
	struct place *place; /* owned; as it was when it was opened */
	union {
		struct disk_file *disk;
		struct {
			struct dir_list *dir; /* protected by dir_lock */
			pthread_mutex_t dir_lock;
		};
		struct control *control;
		struct {
			char *text;
			size_t text_len;
		};
		/* HANDLE_DOMAIN, protected by the table's lock */
		struct {
			struct strbuf edited;
			bool is_changed; /* since it was last given to the store */
		};
	};
};

struct handles;

int handles_new(struct handles **ret);
void handles_free(struct handles *handles);

/* A handle on PLACE (copied), in the table, with one reference; NULL: memory is out. */
struct handle *handle_new(struct fs *fs, const struct place *place, enum handle_kind kind, bool writable);

/* Fills in what is open behind a HANDLE_DISK. */
void handle_set_disk(struct fs *fs, struct handle *handle, struct disk_file *disk);

/* For who reads: a caller who was killed is answered before he has been served (loop.h), and his file may be closed then. */
struct handle *handle_ref(struct handle *handle);

/* Gives a reference back. With the last one, what it has open is closed; a disk's error is reported as an event. */
void handle_put(struct fs *fs, struct handle *handle);
void handles_close_all(struct fs *fs);

/* Brings to the disk what has been written to the open ones: before an end at which they can't be closed. Returns how many haven't been brought
 * there within SECONDS: no disk waits for another one. */
unsigned handles_flush_all(struct fs *fs, unsigned seconds);

/* A reference to some open file of INO, which may have been removed meanwhile; NULL: there is none. A disk that is only being opened doesn't count. */
struct handle *handles_find(struct handles *handles, uint64_t ino);

/* A reference to the next open disk after PREV (NULL: the first), whose reference is given back; NULL: there is no other. */
struct handle *handles_next_disk(struct fs *fs, struct handle *prev);

/* Whether INO is open for writing. */
bool handles_has_writer(struct handles *handles, uint64_t ino);

/* Waits until no disk of VM is open, for 300 ms at most. The kernel tells us of a close(2) a moment after it has returned, and
 * the next operation may be there before. */
void handles_wait_closed(struct handles *handles, uint32_t vm);

/* --- a domain.xml being written ---------------------------------------------------------------------------------- */

/* -EFBIG, -ENOMEM. */
int handle_edit(struct fs *fs, struct handle *handle, const void *buf, size_t len, uint64_t off);
int handle_edit_resize(struct fs *fs, struct handle *handle, uint64_t file_size);
/* Copies what is there at OFF; returns how much. */
size_t handle_edit_read(struct fs *fs, struct handle *handle, void *buf, size_t len, uint64_t off);

/* A copy of the text, if it has changed since the last time: the caller frees. NULL: unchanged, or memory is out. A shell
 * that redirects into the file closes a descriptor before anything is written: until the LAST close, an empty text is unchanged. */
char *handle_edit_take_changes(struct fs *fs, struct handle *handle, bool last, size_t *ret_len);

/* The length of what is being written to INO by somebody who has changed it; false: nobody has. */
bool handles_edited_size(struct handles *handles, uint64_t ino, uint64_t *ret_file_size);
/* Truncates what is being written to INO; false: nobody writes. */
bool handles_edit_resize(struct fs *fs, uint64_t ino, uint64_t file_size, int *ret_err);

#endif
