/* What the daemon may do, given up as soon as it isn't needed: it reads what guests and strangers have written.
 *
 * An ordinary user's has no capability and needs none. root's keeps those that make it root over files, CAP_DAC_OVERRIDE (or
 * _READ_SEARCH), CAP_FOWNER and CAP_CHOWN: other users' images are read and written, and clones are given to who makes
 * them. Mounting, unmounting and handing files to the kernel are the keeper's (keeper.h). */
#ifndef FS_PRIVILEGES_H
#define FS_PRIVILEGES_H

/* For the daemon, before it has threads: capabilities, no new ones by executing anything, and a filter that refuses system calls
 * which it never makes. Whoever takes it over can't start programs, reach the network, trace processes, mount or load
 * anything, but is still its user to files: as root, writes any of them. */
int privileges_drop(void);

/* For the keeper: capabilities alone. An ordinary user's must be able to execute fusermount3, which is set-user-id; that the same user's daemon
 * doesn't do so in its place, its memory is closed to others. */
void privileges_keep_for_mounting(void);

#endif
