/* Who may read: the owner and the permission bits that a view made of several files may honestly show.
 *
 * Whoever can't read every file of a chain (its directories' search permission counted) can't read the view. */
#ifndef BLOCK_ACCESS_H
#define BLOCK_ACCESS_H

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

/* access_restrict for every directory above the absolute PATH. */
void access_restrict_parents(struct access *access, const char *path);

#endif
