/* Pools: further directories that images of the store lie in (-o pool=NAME:DIR). Fixed while the store is open.
 *
 * A pool's directory is the user's: what was in it before is never touched. STORE/pools/NAME/FILE, the ledger, tells which files of it were made here: by
 * inode number and time of birth, which together no later file has. An entry is stable before its file gets its name, and goes after it, so that
 * whatever is interrupted leaves nothing that isn't known. One entry is a few lines:
 *
 *   file INODE SECONDS.NANOSECONDS   the file; two of them while another one is about to take the name
 *   part NAME                        a temporary file in the pool for it (its name is a UUID: nobody else's)
 *   device MAJOR:MINOR BYTES         a block device (or a symbolic link to one) that a disk of ours lies on; it is never unlinked
 *   serial TEXT                      what the system knows the device by, a logical volume's UUID say: it may have another number after a restart
 *   link TEXT                        what the link says, which stands for that where there is no such thing
 *   filling                          the device doesn't hold all its bytes yet */
#ifndef STORE_POOLS_H
#define STORE_POOLS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/reason.h"
#include "block/head.h"

struct pool_config;
struct store;

#define POOL_NAME_MAX 40
#define POOL_FILE_MAX 214 /* bytes of a file's name: with the pool's it is a layer's name */
#define POOL_PART_MAX 64

struct pool {
	char *name;
	char *dir; /* absolute, real */
	int dirfd;
	int ledger_fd; /* STORE/pools/NAME; -1: there is no store */
	pthread_mutex_t lock; /* of the ledger; innermost. Held across I/O on it */
	atomic_llong next_look_ms; /* for found volumes: see pool_vm.h */
	bool said_too_many;	   /* protected by the change lock of the pool's VM */
	struct head_names head_names; /* for the heads that lie in it */
};

/* Opens the directories. -EINVAL: a bad name, two of one name or of one directory, one inside the store. */
int pools_open(struct store *store, const struct pool_config *configs, size_t nr, struct reason *why);
void pools_close(struct store *store);

/* NAME_LEN bytes of NAME; NULL: there is no such pool. */
struct pool *pool_find(const struct store *store, const char *name, size_t name_len);

/* Whether FILE in the pool was made here, and is still that file: only such ones are ever unlinked or written to. */
bool pool_owns(struct pool *pool, const char *file);
/* The same, and it holds all that it is to hold. */
bool pool_has(struct pool *pool, const char *file);

/* -ESTALE: FD, a block device that FILE is or leads to, isn't the one that was taken for it, or what was made here as FILE is a file. Of what wasn't made here
 * nothing is known: 0. */
int pool_check_device(struct pool *pool, const char *file, int fd);

/* FILE is the block device's, or a link to it, and one of our disks lies on it. */
bool pool_find_device(struct pool *pool, dev_t device, char file[POOL_FILE_MAX + 1]);

enum pool_making {
	POOL_NEW,      /* -EEXIST: the name is taken, or about to be */
	POOL_CONTINUE, /* what POOL_NEW began, perhaps before a crash; begins it where that wasn't */
	POOL_REPLACE,  /* another file instead of FILE, which is ours */
};
/* Begins FILE: the caller makes the file PART in the pool, fills it and makes it stable, then publishes it. With POOL_CONTINUE it may be there already. DEVICE:
 * open, the block device that has that name, which is taken as it is; PART is "" then. -1: there is none. -ESTALE: POOL_CONTINUE, and it isn't the same device. */
int pool_part_begin(struct pool *pool, const char *file, enum pool_making how, int device, char part[POOL_PART_MAX]);
/* FILE is what PART was; the directory is left to the caller to sync. -EEXIST: somebody else's file has the name by now. FD: the file that was PART when it was
 * begun, or -1; -ESTALE: it was abandoned since, and PART is another. */
int pool_part_publish(struct pool *pool, const char *file, enum pool_making how, int fd);
/* It isn't going to be: PART goes. */
void pool_part_abandon(struct pool *pool, const char *file);

/* For heads in the pool: a replacement by way of the ledger. */
extern const struct head_names pool_head_names;

/* Gives a file of ours a second name. -EEXIST. */
int pool_link(struct pool *pool, const char *file, const char *new_file);
/* Unlinks a file of ours, and nobody else's; lets go of a device. */
void pool_unlink(struct pool *pool, const char *file);

/* At the start: whatever was interrupted comes to its end, and what IS_NEEDED doesn't know goes, as far as it was made here. */
void pool_clear_leftovers(struct store *store, struct pool *pool, bool (*is_needed)(void *ctx, const char *layer), void *ctx);

#endif
