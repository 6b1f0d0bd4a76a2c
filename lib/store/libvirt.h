/* The inside of libvirt.c and libvirt_snapshots.c. */
#ifndef STORE_LIBVIRT_H
#define STORE_LIBVIRT_H

#include "meta/domain.h"
#include "store/found.h"

#define LIBVIRT_DISKS_MAX 1000u /* of one VM; its disks' numbers have 12 bits */

/* The text of an XML file that was listed; the caller frees. */
int libvirt_load_text(const char *path, char **ret_text, size_t *ret_len, struct stat *ret_st, struct reason *why);

/* Adds a disk of a configuration; what keeps it from being read is its error. */
int libvirt_add_disk(struct store *store, const struct domain_disk *from, struct vm_disk **disks, size_t *nr_disks);

int libvirt_ref_disk(struct file_refs *refs, const struct vm_disk *disk);

#endif
