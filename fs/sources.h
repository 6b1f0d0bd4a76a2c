/* The snapshot disks that are open for reading: whoever writes a new disk now probably copies one of them.
 * Safe from any thread. */
#ifndef FS_SOURCES_H
#define FS_SOURCES_H

#include <sys/types.h>

#include "store/store.h"

struct sources;

int sources_new(struct sources **ret);
void sources_free(struct sources *sources);

/* FILE, called NAME, was opened by THREAD. It is remembered until sources_remove, which comes before it is closed. */
void sources_add(struct sources *sources, struct disk_file *file, const char *name, pid_t thread);
void sources_remove(struct sources *sources, struct disk_file *file);

/* Tells the new disk TO, called NAME (or a copying program's temporary name for it: ".NAME.XXXXXX"), what THREAD is likely to copy:
 * what its process opened last, preferably under that name; else what anybody opened under that name within a minute. */
void sources_hint(struct sources *sources, struct disk_file *to, const char *name, pid_t thread);

#endif
