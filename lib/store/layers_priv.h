/* The inside of the table of layers, for layers.c and layer_runs.c. */
#ifndef STORE_LAYERS_PRIV_H
#define STORE_LAYERS_PRIV_H

#include "store/layers.h"

/* Every row; the body may free it. */
#define for_each_row(layers, row)                                                                                                 \
	for (size_t bucket_ = 0; bucket_ < (layers)->nr_buckets; bucket_++)                                                        \
		for (struct layer_row *row = (layers)->buckets[bucket_], *next_; row && (next_ = row->next, true); row = next_)

struct layer_row *layer_row_find_locked(const struct layers *layers, const char *name); /* NULL: there is none */
void layer_row_set_beneath(struct layer_row *row, const char *beneath); /* NULL: nothing */

/* Fills in the scratch of each row but its children. */
void layers_mark_locked(struct store *store);

#endif
