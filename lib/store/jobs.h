/* Work in the background: one thread that copies what disks still have in internal snapshots (see pending.h), one after the other. What
 * there is to do is written in the vm.xml files, so it goes on after a restart; a copy that was interrupted begins again. */
#ifndef STORE_JOBS_H
#define STORE_JOBS_H

#include <stdint.h>

#include "base/reason.h"
#include "store/vm.h"

struct jobs;
struct store;

int jobs_new(struct jobs **ret);

/* Starts the thread. */
int jobs_start(struct store *store);

/* Ends the thread; NULL is fine. */
void jobs_free(struct jobs *jobs);

/* Adds a job for DISK, pending, of VM. */
int jobs_add(struct store *store, const struct vm *vm, const struct vm_disk *disk);

/* Adds the jobs of all pending disks of all VMs: at the start. */
int jobs_add_all(struct store *store);

/* The VM, or the disk with this layer, is gone: nobody needs the copy any more. */
void jobs_forget_vm(struct store *store, uint32_t vm_id);
void jobs_forget_layer(struct store *store, const char *layer);

/* Waits until the disk with this layer isn't pending any more. -EBUSY: its job failed, and waits for its next attempt. -EINTR: the
 * store is being closed. The caller holds no lock. */
int jobs_wait(struct store *store, const char *layer, struct reason *why);

/* "copy of vda.img, 27 %" for each job of the VM, in lines; the caller frees. */
int jobs_status(struct store *store, uint32_t vm_id, char **ret);

#endif
