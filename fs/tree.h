/* What exists where: names to places, and the names in a directory. */
#ifndef FS_TREE_H
#define FS_TREE_H

#include <stddef.h>

#include "fs/place.h"

/* The place of NAME in the directory PARENT, as THREAD sees it. -ENOENT, -ENOTDIR, -ENAMETOOLONG. */
int tree_lookup(struct fs *fs, const struct place *parent, const char *name, pid_t thread, struct place *ret);

/* The directory that PLACE is in. */
struct node tree_parent(const struct place *place);

/* Which fixed name (domain.xml, disks, …) of a VM's directory NAME is; NODE_NONE: none. */
enum node_kind tree_service_kind(const char *name);

/* The name that a scratch file NAME in DIR, a VM's directory or its actions/, has among those of the VM. PATH is room for it. */
#define TREE_SCRATCH_MAX 300
const char *tree_scratch_name(const struct place *dir, const char *name, char path[TREE_SCRATCH_MAX]);

/* Where the link PLACE points to; the caller frees. -EINVAL: it is none. */
int tree_link_target(struct fs *fs, const struct place *place, char **ret_target);

struct dir_entry {
	char *name;
	struct node node;
	off_t next_off; /* where the listing goes on after it */
};

/* The names in a directory at one moment, with "." and "..". */
struct dir_list {
	struct dir_entry *entries;
	size_t nr_entries, cap_entries;
};

int tree_list(struct fs *fs, const struct place *dir, struct dir_list **ret);

/* Directories of which there is no list of all names, for they may be huge: vms/ and clones/. */
bool tree_is_paged(const struct place *dir);

/* The names in such a directory from offset OFF on: MAX at most, and perhaps the dots. The offsets mean the same in every listing. */
int tree_list_page(struct fs *fs, const struct place *dir, off_t off, size_t max, struct dir_list **ret);
void dir_list_free(struct dir_list *list);

#endif
