/* What the processes that use the mount have just been doing: what can be guessed from it is whether one is copying.
 *
 * Debian's cp 9.1 sends copy_file_range only for a file that doesn't look sparse. cp, cp -r, cp -a, install all look their target up, and
 * don't find it, before they stat the source; so a process that has just missed a name below clones/ is shown snapshot
 * disks as if they had no holes. A wrong guess changes st_blocks, never data.
 *
 * The pid of a FUSE request is a thread's; what counts here is its process. Safe from any thread. */
#ifndef FS_CALLERS_H
#define FS_CALLERS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct callers;

int callers_new(struct callers **ret);
void callers_free(struct callers *callers);

/* The process of THREAD; 0: not known (another pid namespace, or it is gone). */
pid_t callers_process(pid_t thread);

/* THREAD looked for NAME in the directory PARENT, of a managed VM or of clones/, and it isn't there. */
void callers_note_missing(struct callers *callers, pid_t thread, uint64_t parent, const char *name);
/* It made something there. */
void callers_note_making(struct callers *callers, pid_t thread);
/* It listed a VM or a snapshot. */
void callers_note_listing(struct callers *callers, pid_t thread);

/* Whether it is likely to be copying into clones/: it missed or made a name there within 10 s. */
bool callers_is_copying(struct callers *callers, pid_t thread);

/* Whether the process that makes the directory NAME in PARENT does so as part of a copy: it listed a VM or a snapshot, or looked NAME up
 * more often than mkdir(2) by itself does. */
bool callers_is_copying_tree(struct callers *callers, pid_t thread, uint64_t parent, const char *name);

/* Whether THREAD has been killed, and only waits for an answer. */
bool callers_is_killed(pid_t thread);

/* Whether files' permissions don't count for THREAD of user UID: root's, unless it has given up the capabilities that say so. The
 * kernel asks itself; this is for what we do on behalf of somebody. */
bool callers_overrides_permissions(uid_t uid, pid_t thread);

#endif
