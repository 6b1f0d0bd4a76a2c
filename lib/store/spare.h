/* STORE/spare: a file of some length that holds nothing. On a full filesystem, where no new file can be made, it takes in a VM's new description and
 * changes places with the old one. So what gives space back can always be committed, and what needs no more of it too.
 *
 * The file that comes back for it is only as long as the old description, and is made as long as before when there is space again. */
#ifndef STORE_SPARE_H
#define STORE_SPARE_H

#include <stdbool.h>
#include <stddef.h>

struct store;

/* Makes it, or as long as it should be. Without one, all goes on as long as there is space. */
void spare_make(struct store *store);

/* A description found space: so may the spare file, where it lacks some. */
void spare_restore(struct store *store);

/* Makes NAME, which is there, in DIRFD (in the store's filesystem) hold DATA, atomically and durably, without taking space or an inode.
 * -ENOSPC: there is no spare file, or a shorter one. *RET_UNSURE: as file_replace()'s. */
int spare_replace(struct store *store, int dirfd, const char *name, const void *data, size_t len, bool *ret_unsure);

#endif
