/* Who may read: the owner and the permission bits that a view made of several files may honestly show.
 *
 * Whoever can't read every file of a chain (its directories' search permission counted) can't read the view. Owner and mode
 * are all that a view can show, so where they can't say exactly what a file's own grant, they say less: of a file with an ACL
 * only its owner is sure to read it; whoever may be in its group needs the group's bits, and others' as well. */
#ifndef BLOCK_ACCESS_H
#define BLOCK_ACCESS_H

#include <limits.h>
#include <sys/stat.h>

struct access {
	uid_t uid;
	gid_t gid;
	mode_t mode; /* read bits only: a subset of 0444 */
};

/* The access of the first file: its owner, its read bits. */
void access_init(struct access *access, const struct stat *st);

/* Takes away what ST, a further file (its read bits) or directory (its search bits), doesn't grant. */
void access_restrict(struct access *access, const struct stat *st);

/* The directory that was looked at last: files of a chain lie side by side. Begins as ACCESS_PATH_INIT, ends with
 * access_path_done(). */
struct access_path {
	int dirfd; /* -1: none */
	char dir[PATH_MAX];
};

#define ACCESS_PATH_INIT {.dirfd = -1}
void access_path_done(struct access_path *last);

/* Takes away what the directories above the absolute, real PATH don't grant, and what an ACL may take from somebody. ST is
 * the file that was read there: where PATH doesn't lead to it (any more, or the directories are being exchanged under us),
 * its owner alone is left. All calls with one LAST are for one ACCESS. */
void access_restrict_by_path(struct access *access, struct access_path *last, const char *path, const struct stat *st);

#endif
