/* The files in STORE/layers: their names, what lies beneath each, and which of them are still needed.
 *
 * A layer is needed while a managed VM's disk, an open head, or another needed layer names it, and while an operation that
 * makes or uses it is under way (a pin). layers_sweep() unlinks the others. When at the start a table or a header couldn't be read,
 * nothing is ever unlinked: what looks unneeded may not be. */
#ifndef STORE_LAYERS_H
#define STORE_LAYERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/reason.h"
#include "block/head.h"

struct store;

#define LAYER_NAME_MAX 48 /* UUID, ending, NUL */

struct layer_row {
	char name[LAYER_NAME_MAX];
	char beneath[LAYER_NAME_MAX]; /* a layer of the store; "": none, or a file from elsewhere */
	unsigned nr_pins;
	bool needed; /* scratch of the sweep */
};

struct layers {
	struct layer_row *rows;
	size_t nr_rows, cap_rows;
	bool unknown; /* never unlink anything */
};

/* A new name: UUID and ENDING (".qcow2", ".raw"). */
void layer_name_new(char name[LAYER_NAME_MAX], const char *ending);

/* Whether NAME is one that layer_name_new() could have made. */
bool layer_name_is_valid(const char *name);

/* Enters a layer into the table, pinned; BENEATH NULL: no layer of the store. */
int layers_add(struct store *store, const char *name, const char *beneath);
/* Keeps a layer that is in the table; -ESTALE: it isn't any more. */
int layers_pin(struct store *store, const char *name);
void layers_unpin(struct store *store, const char *name);
void layers_set_beneath(struct store *store, const char *name, const char *beneath);

/* Who a new file belongs to. */
struct layer_owner {
	mode_t mode;
	uid_t uid;
	gid_t gid;
};

/* Makes an overlay under a new name, pinned and stable (but for the directory). BENEATH: the layer of the store that
 * SPEC's backing file is, or NULL. */
int layer_create(struct store *store, const struct overlay_spec *spec, const char *beneath, const struct layer_owner *owner,
		 char name[LAYER_NAME_MAX], struct reason *why);

/* Takes the row out of the table; the file stays. */
void layers_forget(struct store *store, const char *name);

/* Unlinks a layer that was made but isn't going to be used after all, and forgets it. */
void layer_abandon(struct store *store, const char *name);

/* How a header in STORE/layers names the file REAL_PATH: relatively where both move together (below SOURCE, or below the directory that
 * holds the store), else absolutely. The caller frees. -ENAMETOOLONG: longer than qcow2 allows. */
int layer_backing_name(struct store *store, const char *real_path, char **ret, struct reason *why);

/* The name of the layer that REAL_PATH is (borrowed from it), NULL when it isn't one. */
const char *layer_of_path(struct store *store, const char *real_path);

/* The path of the layer NAME; the caller frees. NULL: memory is out. */
char *layer_path(struct store *store, const char *name);

/* Learns, at the start, what lies beneath the layers that the VMs use. */
int layers_load(struct store *store, struct reason *why);

/* Unlinks what nobody needs any more. */
void layers_sweep(struct store *store);

/* At the start: unlinks every file of ours in STORE/layers that isn't in the table. */
void layers_clear_leftovers(struct store *store);

void layers_done(struct layers *layers);

#endif
