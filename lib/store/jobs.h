/* Work in the background: one thread that does one job after the other, tries again later what failed, and shows how far it is.
 *
 * What there is to do is told by what the store holds (a disk whose data isn't copied yet, layers that can be merged), so it is found
 * again after a restart; a job that was interrupted begins again. */
#ifndef STORE_JOBS_H
#define STORE_JOBS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/reason.h"
#include "base/strbuf.h"
#include "store/layers.h"
#include "store/vm.h"

struct job;
struct jobs;
struct store;

/* How far a job is, for another thread to read. */
struct job_progress {
	atomic_uint_fast64_t done, total; /* bytes */
	atomic_bool stop;		  /* asks it to end: -ECANCELED */
};

struct job_kind {
	const char *verb;  /* "copy": for the line in the VM's status */
	const char *title; /* what it does, in words */
	const char *id_ending; /* what the job's name ends with */
	bool holds_layer;  /* until it is done, the layer can't be frozen: jobs_wait() */
	/* Adds lines to the job's text. Called with jobs->lock held; may be NULL. */
	void (*describe)(const struct job *job, struct strbuf *b);
	/* One attempt, in the thread and without a lock. -ECANCELED and -ESTALE: there is nothing to do any more; another error: it is tried again. */
	int (*run)(struct store *store, struct job *job, struct reason *why);
	/* Says in an event that an attempt failed: once for each error. */
	void (*report)(struct store *store, const struct job *job, int err, const struct reason *why);
	/* Somebody wants it to end: 0, or why that can't be. Called with jobs->lock held; NULL: it can. */
	int (*cancel)(struct store *store, const struct job *job, struct reason *why);
	/* The job was taken off the list because somebody wanted it to. Without a lock; it may be at its last piece yet. May be NULL. */
	int (*cancelled)(struct store *store, uint32_t vm_id, const char *layer, struct reason *why);
};

struct job {
	const struct job_kind *kind;
	uint32_t vm_id;
	char layer[LAYER_NAME_MAX]; /* what it works for */
	struct vm_disk disk; /* a copy of the description's: what the kind needs of it */
	struct job_progress progress;

	/* the rest is that of jobs.c */
	struct job *next;
	char *id; /* file name in jobs/ */
	int reported_err; /* the worker's: said in an event already */
	bool was_busy;	  /* the worker's: the last attempt found somebody at an image */
	/* protected by jobs->lock */
	bool running;
	bool forgotten;
	bool again; /* it was added once more while it was running: what it saw may be old */
	int err; /* of the last attempt; 0: none failed */
	struct reason why;
	int64_t not_before, look_at; /* monotonic seconds */
	uint64_t found_free; /* there was no space, with so many bytes free: with more of them from LOOK_AT on it runs before its time; 0: it isn't that */
	unsigned nr_full;    /* attempts in a row that ended so */
	struct timespec begun;
};

int jobs_new(struct jobs **ret);

/* Starts the thread. */
int jobs_start(struct store *store);

/* Ends the thread; NULL is fine. */
void jobs_free(struct jobs *jobs);

/* Adds a job of KIND for DISK of VM, which has LAYER. -EEXIST: there is such a job; it runs once more if it is at work. */
int jobs_add(struct store *store, const struct job_kind *kind, const struct vm *vm, const struct vm_disk *disk, const char *layer);

/* The VM, or the disk with this layer, is gone: nobody needs the work any more. */
void jobs_forget_vm(struct store *store, uint32_t vm_id);
void jobs_forget_layer(struct store *store, const char *layer);

/* Waits until no job holds the layer any more. -EBUSY: its job failed, and waits for its next attempt. -EINTR: the store is being
 * closed. The caller holds no lock. */
int jobs_wait(struct store *store, const char *layer, struct reason *why);

/* Before JOB opens its VM's disks: who goes back to a snapshot waits until they are closed, and goes first. The caller holds no lock. */
void jobs_let_others_first(struct store *store, const struct job *job);

/* "copy of vda.img, 27 %" for each job of the VM, in lines; the caller frees. */
int jobs_status(struct store *store, uint32_t vm_id, char **ret);

#endif
