/* disk_stat() and what it remembers. */
#ifndef STORE_STAT_H
#define STORE_STAT_H

#include "store/heads.h"
#include "store/store.h"

struct stat_cache;

int stat_cache_new(struct stat_cache **ret);
void stat_cache_free(struct stat_cache *cache);

/* What a view says; the time is its top file's unless CREATED (seconds since the epoch) isn't 0. */
int stat_view(struct view *view, int64_t created, struct disk_stat *ret);

/* A number that stands for what the view reads. What we write into layers of ours doesn't change that, and so doesn't count. */
uint64_t stat_content(const struct store *store, const struct view *view);

/* What an open head says. */
int stat_head(struct store *store, struct open_head *oh, struct disk_stat *ret);

#endif
