/* A bounded cache of metadata: 4 KiB pages of the tables of images that don't change.
 *
 * Tables are read a page at a time, never whole: what an image claims of its own size costs no memory. */
#ifndef BLOCK_TABLE_CACHE_H
#define BLOCK_TABLE_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

#define TABLE_PAGE_BITS	 12u
#define TABLE_PAGE_WORDS (1u << (TABLE_PAGE_BITS - 3))

struct table_cache;

/* A page, borrowed until table_cache_put. */
struct table_page {
	be64 words[TABLE_PAGE_WORDS];
};

int table_cache_new(size_t max_bytes, struct table_cache **ret);
void table_cache_free(struct table_cache *cache);

/* The page with the byte at OFF of FD, whose contents SERIAL stands for. What lies behind the file's end is zeros. -EIO, -ENOMEM. */
int table_cache_get(struct table_cache *cache, uint64_t serial, int fd, uint64_t off, const struct table_page **ret);
void table_cache_put(struct table_cache *cache, const struct table_page *page);

#endif
