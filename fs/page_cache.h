/* Whether what the kernel has cached of a snapshot's disk is still what it holds.
 *
 * A snapshot never changes, so its pages are kept from one open to the next. But a found snapshot can go, and another one come under
 * its name and so under its node number: what was opened is remembered (by a hash) for each number, and where it differs the
 * kernel is told to drop its pages. Safe from any thread. */
#ifndef FS_PAGE_CACHE_H
#define FS_PAGE_CACHE_H

#include <stdbool.h>
#include <stdint.h>

struct page_cache;

int page_cache_new(struct page_cache **ret);
void page_cache_free(struct page_cache *cache);

/* The file INO is being opened and holds what CONTENT is a hash of. True: the same as the last time. */
bool page_cache_is_current(struct page_cache *cache, uint64_t ino, uint64_t content);

#endif
