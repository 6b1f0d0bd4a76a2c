/* Disks whose data still lies in an internal snapshot of a found image.
 *
 * qcow2 has no name for "file F at snapshot S" as a backing file. So a clone of such a snapshot names a base that doesn't exist yet
 * (STORE/layers/UUID.raw), its vm.xml says where the data is meanwhile, and a job makes the base: see fill_base(). That the
 * snapshot is still the one that was cloned is told by its row in the image's snapshot table. */
#ifndef STORE_PENDING_H
#define STORE_PENDING_H

#include "store/heads.h"
#include "store/jobs.h"

struct store;

/* The row as vm.xml keeps it; the caller frees. NULL: memory is out. */
char *pending_row_of(const struct image_snapshot *row);

/* The view that the pending disk reads from. -EIO: the snapshot has gone, or is another one now. */
int pending_open(struct store *store, const struct vm_disk *disk, struct view **ret, struct reason *why);

/* Describes in DISK that its data is to come from FROM, an internal snapshot; names a new base. */
int pending_set(struct vm_disk *disk, const struct frozen *from);

/* Makes STORE/layers/BASE, a raw file that holds what the pending disk reads: under a temporary name, by shared extents where the
 * filesystem has them, sparse, stable, and counted only when the snapshot is still the same after the copy. -ESTALE: it isn't. */
int fill_base(struct store *store, const struct vm_disk *disk, struct job_progress *progress, struct reason *why);

/* pending_job.c: adds the job that does this for DISK, pending, of VM. */
int pending_add_job(struct store *store, const struct vm *vm, const struct vm_disk *disk);
/* The jobs of all pending disks of all VMs: at the start. */
int pending_add_jobs(struct store *store);

#endif
