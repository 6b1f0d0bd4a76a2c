/* The files of layers: made, named, unlinked. In a pool each step is in its ledger first (pools.h); in STORE/layers all files of certain names are ours. */
#ifndef STORE_LAYER_FILES_H
#define STORE_LAYER_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/reason.h"
#include "block/head.h"

struct layer_place;
struct pool;
struct store;

#define LAYER_NAME_MAX 256 /* "UUID.qcow2", or "POOL/FILE" */
#define LAYER_TEMPORARY_MAX (LAYER_NAME_MAX + 8)

/* Who a new file belongs to. */
struct layer_owner {
	mode_t mode;
	uid_t uid;
	gid_t gid;
};

/* The pool that the layer NAME lies in; NULL: it lies in STORE/layers, or this mount doesn't have it. */
struct pool *layer_pool(const struct store *store, const char *name);

/* -ENODEV, with the reason: NAME lies in a pool that this mount doesn't have. */
int layer_check_place(const struct store *store, const char *name, struct reason *why);

/* Whether the layer NAME is a block device, of a pool. */
bool layer_is_device(struct store *store, const char *name);

/* -EROFS, with the reason: in its pool another program has put a file in the place of the layer NAME, which is never written to. A device is, whoever made its
 * name; what isn't there at all is for who opens it to say. */
int layer_check_owner(struct store *store, const char *name, struct reason *why);

/* How the layer NAME is given to those functions of head.h that open one: of a file its place, which it is checked to be the owner of (layer_check_owner), of
 * a block device that itself, which the caller closes, opened with FLAGS (O_RDWR or O_RDONLY, O_EXCL) by a trusted path. RET_DEVICE isn't touched for a file.
 * -EBUSY: with O_EXCL, the system uses it. -ESTALE: another device, or a device at all, has come to that name. */
int layer_place_to_open(struct store *store, const char *name, int flags, struct layer_place *ret, int *ret_device, struct reason *why);

/* Makes the overlay NAME. -EEXIST. */
int layer_file_make_overlay(struct store *store, const char *name, const struct overlay_spec *spec, const struct layer_owner *owner, struct reason *why);

/* An empty raw file that is to become the layer NAME, open for reading and writing; the caller closes it. It has a temporary name, under which the next start
 * keeps it while a disk's full_base is NAME. -EEXIST: there is a file of that name, or one is being made. AGAIN: one that was begun earlier goes on with what
 * is in it. Where NAME is a block device that is there, it is that one: -EBUSY where it is in use, and its old bytes are in it. */
int layer_file_begin(struct store *store, const char *name, const struct layer_owner *owner, bool again, int *ret_fd, struct reason *why);
/* What FD, from layer_file_begin(), is has all its bytes, and they are stable: it gets its name, durably. -EEXIST: another program has made a file of that
 * name. -ESTALE: it was cancelled; what has the temporary name now, if anything, is somebody else's. */
int layer_file_finish(struct store *store, const char *name, int fd, struct reason *why);
/* It isn't going to be. */
void layer_file_cancel(struct store *store, const char *name);
/* Whether there is a file, or a device in use, that was made as the layer NAME. */
bool layer_file_exists(struct store *store, const char *name);
/* Whether it has been through layer_file_finish(). */
bool layer_file_is_finished(struct store *store, const char *name);

/* Unlinks the file of a layer; in a pool only while it is the one that was made here. */
void layer_file_unlink(struct store *store, const char *name);
/* Gives the file of a layer a second name in its directory. */
int layer_file_link(struct store *store, const char *name, const char *new_name);
/* A temporary name in the directory of the layer NAME, for a file that is going to take its place; nothing has it. */
int layer_file_begin_replace(struct store *store, const char *name, char tmp[LAYER_TEMPORARY_MAX]);
/* It takes its place, by one rename. */
int layer_file_replace(struct store *store, const char *name, const char *tmp);

#endif
