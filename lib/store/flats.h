/* Flat files (block/flat.h) of snapshots that are read much: made in the background, kept while there is room, never named. */
#ifndef STORE_FLATS_H
#define STORE_FLATS_H

#include "block/view.h"

struct store;
struct flats;

int flats_new(struct store *store, struct flats **ret);
/* Ends what is being made. Before the images are freed. */
void flats_free(struct flats *flats);

/* A descriptor of a flat file of VIEW, which the caller closes; -ENOENT: there is none (yet). */
int flats_open(struct flats *flats, struct view *view);

/* Has one made, if that isn't tried already. */
void flats_want(struct flats *flats, struct view *view);

/* Lets go of those whose images were deleted or have changed: they keep their space. */
void flats_trim(struct flats *flats);

#endif
