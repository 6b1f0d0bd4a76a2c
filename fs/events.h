/* What happened, a line each: "TIME VM: text". Shown as the mount's events files, kept in STORE/events.log, and said on stderr
 * (in the foreground) or to syslog.
 *
 * In memory are the last lines, EVENTS_MAX_BYTES at most; when they are too many, the older half goes, which tail -f takes
 * for a truncated log, and reads on. The same line twice within a minute is said once. Safe from any thread. */
#ifndef FS_EVENTS_H
#define FS_EVENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "store/store.h"

#define EVENTS_MAX_BYTES (1u << 20)

struct events;

/* FOREGROUND: lines go to stderr, not to syslog. */
int events_new(bool foreground, struct events **ret);
void events_free(struct events *events);

/* For the store. */
struct log_sink events_sink(struct events *events);

/* Adds what events.log in the store's directory holds of earlier mounts, and appends to it from now on. Where that can't be written
 * it isn't: no error. */
void events_open_log(struct events *events, int store_dirfd);

/* VM NULL: of none. */
void events_add(struct events *events, const char *vm, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The lines of VM (NULL: all), as a file: its length, when it last changed, its bytes (the number that were there). */
uint64_t events_size(struct events *events, const char *vm);
struct timespec events_changed(struct events *events);
ssize_t events_read(struct events *events, const char *vm, void *buf, size_t len, uint64_t off);

#endif
