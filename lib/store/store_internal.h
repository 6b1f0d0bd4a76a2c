/* The inside of the store, for the files of lib/store alone: what its parts share. Each part's own state is in its own header.
 *
 * Locks, outermost first. None but `lock` and those inside the parts is taken twice by one thread.
 *   found->refresh     one reading of SOURCE at a time: by the thread in the background, which is waited for for a while only
 *   entry->change      one change to a managed VM, or one reading of a found one's snapshots, at a time; two of them in order of VM id
 *   open_head->swap    shared by each read and write; exclusively while the head's file changes; several in order of disk
 *   store->layout      shared while a chain is opened by the names of its files; exclusively while a merge changes what they name. Held across
 *                      I/O, never for long
 *   jobs->lock         the list of jobs
 *   flats->lock        the list of flat files; their making is outside
 *   store->lock        the tables: VMs, names, open heads, layers. Not held across I/O
 *   store->spare_lock  held across the replacing of one file
 *   stats->lock        the cache of disk_stat()
 *   text_sizes->lock   the lengths of texts
 */
#ifndef STORE_STORE_INTERNAL_H
#define STORE_STORE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/list.h"
#include "store/intern.h"
#include "store/layers.h"
#include "store/pools.h"
#include "store/store.h"
#include "store/vm_make.h"

struct flats;
struct found;
struct jobs;
struct stat_cache;
struct text_sizes;
struct whole;
struct open_head;

#define SNAPSHOTS_DIR "snapshots" /* in STORE/vms/UUID */

/* A VM through all its descriptions. Never freed while the store is open: its id is never used again. */
struct entry {
	uint32_t id;
	char *key; /* SOURCE path of its XML or image; UUID of a managed VM */
	pthread_mutex_t change;
	atomic_uint nr_waiting; /* for its heads to be closed by whoever only looks at them or works on them in the background */
	uint64_t snapshots_complaint; /* protected by change: hash of what was said to be wrong with its snapshots; 0: nothing */

	/* protected by store->lock */
	struct vm *vm; /* NULL: gone */
	struct whole *whole; /* the same with its snapshots; NULL: not read, or forgotten */
	struct intern snapshot_names, disk_names;
	uint32_t next_reuse; /* of disk_names, when all its numbers are taken */
	uint64_t last_look;  /* found VMs: the look at SOURCE that saw it last */
};

/* The VMs of a place in order of name. */
struct vm_index {
	struct entry **entries;
	size_t nr_entries, cap_entries;
};

struct store {
	char *source_dir, *store_dir, *snapshots_dir, *mountpoint; /* the last two may be NULL */
	char *layers_dir; /* NULL: there is no store */
	bool is_named; /* by the user: not just found in SOURCE */
	bool writable;
	bool is_settled; /* what is seen in it is what a power cut leaves */
	bool allow_devices;
	bool clone_full;
	struct log_sink log;
	struct trust *trust;
	struct image_cache *images;
	int store_fd, layers_fd, vms_fd, lock_fd; /* -1: none */
	struct found *found;
	struct jobs *jobs;
	struct stat_cache *stats;
	struct text_sizes *text_sizes;
	struct flats *flats;
	struct pool *pools;
	size_t nr_pools;
	bool lacks_vms;	  /* the description of a VM couldn't be read: nobody knows which one */
	bool lacks_pools; /* there are files of ours in pools that weren't given: what lies beneath them isn't known */

	pthread_mutex_t spare_lock; /* one at a time writes into STORE/spare; see spare.h */
	atomic_bool spare_is_short;
	bool spare_is_unsure; /* protected by spare_lock: it may be a vm.xml on disk, so nothing is written into it until the next start */
	pthread_rwlock_t layout;
	pthread_mutex_t lock;
	/* protected by lock */
	struct intern keys; /* the number is the VM's id */
	struct entry **entries; /* entries[id - 1] */
	size_t nr_entries, cap_entries;
	struct vm_index index[NR_PLACES]; /* by enum vm_place */
	bool index_stale;
	struct list wholes; /* see whole.h */
	size_t wholes_weight;
	struct reservation *reservations;
	struct open_head *heads;
	struct layers layers;
};

/* Puts a line into the log. */
void store_event(struct store *store, const char *vm_name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* --- table.c: entries, names, descriptions ------------------------------------------------------------------------ */

/* The entry of KEY, made where there is none; NULL: memory or numbers are out. */
struct entry *table_intern(struct store *store, const char *key);
struct entry *table_entry(struct store *store, uint32_t vm_id); /* NULL: there was never one */

/* A reference to the entry's description; NULL: the VM is gone. */
struct vm *table_current(struct store *store, struct entry *entry);

/* Makes VM the entry's description: gives it and its parts their ids. Takes the reference over on success alone. */
int table_publish(struct store *store, struct entry *entry, struct vm *vm);
int table_publish_locked(struct store *store, struct entry *entry, struct vm *vm);

/* Gives the VM and its parts their ids. */
int table_number_locked(struct entry *entry, struct vm *vm);

/* The next disk called FILE_NAME gets another number than the one that has it, or had. */
int table_renumber_disk(struct store *store, struct entry *entry, const char *file_name);

/* The VM is gone. Names and numbers of a found one are remembered: it may come back. */
void table_withdraw(struct store *store, struct entry *entry);
void table_withdraw_locked(struct store *store, struct entry *entry);

struct vm *table_find(struct store *store, enum vm_place place, const char *name);
int table_list(struct store *store, enum vm_place place, struct vm ***ret, size_t *ret_nr);
int table_list_from(struct store *store, enum vm_place place, uint32_t first_id, size_t max, struct vm ***ret, size_t *ret_nr);

/* A name that an operation under way is going to use. */
struct reservation {
	struct reservation *next;
	enum vm_place place;
	const char *name;
};

/* -EEXIST: a VM of PLACE, or another reservation, has NAME. R lies on the caller's stack until it is released. */
int table_reserve(struct store *store, struct reservation *r, enum vm_place place, const char *name);
void table_release(struct store *store, struct reservation *r);
bool table_is_reserved_locked(struct store *store, enum vm_place place, const char *name);

void table_done(struct store *store);

#endif
