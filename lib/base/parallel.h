/* Work that falls into many independent pieces, done by as many threads as there are processors. */
#ifndef BASE_PARALLEL_H
#define BASE_PARALLEL_H

#include <stddef.h>

/* Calls FN for each of 0…NR-1, in several threads at a time and in no order; returns when all have returned. Few pieces, or threads that can't
 * be had: one thread does them. */
void parallel_for(size_t nr, void (*fn)(void *ctx, size_t i), void *ctx);

/* The same for pieces of which each is worth a thread. */
void parallel_for_large(size_t nr, void (*fn)(void *ctx, size_t i), void *ctx);

#endif
