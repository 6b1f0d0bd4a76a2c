#include "block/access.h"

#include <limits.h>
#include <string.h>

void access_init(struct access *access, const struct stat *st)
{
	*access = (struct access){.uid = st->st_uid, .gid = st->st_gid, .mode = st->st_mode & 0444};
}

/* BITS (4: read, 1: search) of ST must be granted, to each class of ours through the class it is in there. A group or
 * a user that isn't ST's own counts as others: it might be more, never less. */
static void restrict_by(struct access *access, const struct stat *st, mode_t bits)
{
	mode_t mode = st->st_mode;
	mode_t others = mode & bits;
	mode_t group = st->st_gid == access->gid ? mode >> 3 & bits : others;
	mode_t user = st->st_uid == access->uid ? mode >> 6 & bits : group;
	if (!user)
		access->mode &= ~(mode_t)0400;
	if (!group)
		access->mode &= ~(mode_t)0040;
	if (!others)
		access->mode &= ~(mode_t)0004;
}

void access_restrict(struct access *access, const struct stat *st)
{
	restrict_by(access, st, S_ISDIR(st->st_mode) ? 1 : 4);
}

void access_restrict_parents(struct access *access, const char *path)
{
	char dir[PATH_MAX];
	if (strlen(path) >= sizeof dir)
		return;
	strcpy(dir, path);
	for (char *slash = strrchr(dir, '/'); slash && slash != dir; slash = strrchr(dir, '/')) {
		*slash = '\0';
		struct stat st;
		if (stat(dir, &st) == 0)
			access_restrict(access, &st);
	}
}
