/* The inside of a head, for lib/block/head*.c alone.
 *
 * THE MODEL OF THE WRITE PATH
 *
 * A guest cluster has, in its L2 entry, a host cluster or none, and for each subcluster one of three states: A allocated
 * (bytes in the host cluster), Z zero, U unallocated (read from the view beneath). Transitions:
 *   U,Z -> A  write        A,U -> Z  discard        A,Z -> U  share (the bytes equal what lies beneath)
 * A host cluster, once given to a guest cluster, stays with it until the disk is cut off before it; punched space is a hole in the
 * host file. So a host cluster is never handed out twice between two openings, and nothing is ever moved.
 *
 * Invariants
 *  I1  An L2 entry on disk points only at data that is stable, and says A only of subclusters that are.
 *  I2  An L1 entry on disk points only at an L2 table that is stable.
 *  I3  A cluster that any table on disk points at is never handed out.
 *  I4  Refcounts on disk may lag only while the dirty bit is stable on disk. (The other way: a clean file's are exact.)
 *  I5  Bytes of an allocated subcluster beyond the virtual size are zeros.
 *  I6  The header, the L1 table and every cluster that is not data are never written by guest data: host offsets come from
 *      the allocator alone, which knows every cluster that was in use at the opening (found by walking the tables).
 *  I7  After a failed sync nothing more is written to tables: what the disk holds is no longer known. Every later flush fails.
 *
 * The steps of a write
 *  W1  dirty bit set and stable, before the first allocation (I4)
 *  W2  host cluster allocated, in memory
 *  W3  data written; partly covered subclusters filled up from beneath
 *  W4  L2 entry changed, in memory
 * The steps of a flush
 *  F1  the changed table pages are copied, in memory; L2 pages of tables that no L1 entry on disk names are written: nobody
 *      can see them yet
 *  F2  barrier: data and new tables are stable
 *  F3  L2 pages of known tables, L1 entries, the virtual size are written (I1, I2)
 *  F4  barrier
 * The steps of a close
 *  C1  flush   C2  refcounts written   C3  barrier   C4  dirty bit cleared   C5  barrier
 *
 * Deliberately not done: giving host clusters back while open (the file keeps its length, holes take no space);
 * writing images with internal snapshots, compressed clusters, or refcounts of other widths than 16 bit. */
#ifndef BLOCK_HEAD_PRIV_H
#define BLOCK_HEAD_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/bytes.h"
#include "base/list.h"
#include "block/head.h"
#include "block/qcow2_header.h"

#define L2_PAGE_BYTES 4096u
#define L2_PAGE_WORDS (L2_PAGE_BYTES / 8)
#define L2_PAGE_BUCKETS 1024u
#define L2_PAGES_MAX  4096u /* 16 MiB; more only while they are dirty */
#define L2_DIRTY_MAX  2048u /* then the writer flushes */

/* 4 KiB of an L2 table, in memory. */
struct l2_page {
	uint64_t host_off;
	uint64_t l1_index; /* of the table */
	bool loading;	   /* being read without the lock: wait on `changed` */
	bool dirty;
	bool writing; /* in a flush's hands: must not be evicted and read again before it is on disk */
	unsigned nr_users; /* pinned while non-zero */
	struct l2_page *next; /* in its bucket */
	struct list lru;
	be64 words[L2_PAGE_WORDS];
};

/* Which host clusters are in use, and which pages of refcounts on disk no longer say so. */
struct space {
	unsigned cluster_bits;
	uint64_t nr_clusters; /* of the file */
	uint8_t *used;	      /* a bit each */
	size_t used_cap;      /* bytes */
	uint64_t hint;	      /* no free cluster before it */
	be64 *reftable;
	uint64_t nr_refblocks; /* room in reftable */
	bool *stale_blocks;    /* refcount blocks to write */
	bool reftable_stale;
};

/* A guest cluster that somebody is allocating in: others wait. Lives on its holder's stack. */
struct busy_cluster {
	uint64_t number;
	struct list link;
};

struct head {
	int dirfd; /* borrowed */
	char *name, *path;
	int fd;
	struct qcow2_header header; /* virtual_size lives below; incompatible has the dirty bit as it is on disk */
	struct view *below;	    /* changed under the gate, exclusively */
	bool comparing;		    /* writes may equal what lies beneath: set by head_adopt; changed like below */
	atomic_bool is_dirty;	    /* the dirty bit is stable on disk, and nothing is left to autoclear */

	/* Held shared by every operation on guest data, exclusively to stop them all. Taken before flush_lock and lock. */
	pthread_rwlock_t gate;
	pthread_mutex_t flush_lock; /* one flush at a time; taken before lock */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* a page was loaded, a cluster is no longer busy */
	/* protected by lock */
	uint64_t virtual_size;
	bool size_dirty;
	be64 *l1;
	bool *l1_dirty; /* of each entry: not on disk yet */
	size_t nr_l1_dirty;
	struct l2_page *buckets[L2_PAGE_BUCKETS];
	struct list lru; /* of all pages, oldest first */
	size_t nr_pages, nr_dirty;
	struct list busy;
	struct space space;
	int failed; /* I7: the error of the sync that failed */
};

/* --- head_space.c ------------------------------------------------------------------------------------------------ */

/* Finds out which clusters are in use by walking header, tables and entries. -EUCLEAN: two owners, or out of the file. */
int space_scan(struct space *space, int fd, const struct qcow2_header *header, const be64 *l1, struct reason *why);
void space_done(struct space *space);
/* A free cluster, now in use: its byte offset. FRESH: it lies behind the file's end and so is zeros. -EFBIG: the refcount
 * table has no room. */
int space_alloc(struct space *space, uint64_t *ret_host_off, bool *ret_fresh);
/* Of a cluster that no table ever named. */
void space_release(struct space *space, uint64_t host_off);
/* C2: refcount blocks, then (a barrier of its own between) the refcount table if it changed. */
int space_write(struct space *space, int fd, const struct qcow2_header *header);

/* --- head_tables.c (the lock is held) ------------------------------------------------------------------------------- */

int tables_init(struct head *head, struct reason *why);
void tables_done(struct head *head);

/* Whether nothing was ever written. */
bool tables_are_empty(const struct head *head);

/* Whether there is an L2 table for GUEST_OFF. */
bool tables_has_l2(const struct head *head, uint64_t guest_off);

/* The page with the L2 entry of GUEST_OFF, pinned until tables_put, and the entry's first word in it. CREATE: makes the table where
 * there is none (else RET_PAGE is NULL). Drops and retakes the lock when it reads. */
int tables_get_locked(struct head *head, uint64_t guest_off, bool create, struct l2_page **ret_page, unsigned *ret_word);
void tables_put_locked(struct l2_page *page);
void tables_dirty_locked(struct head *head, struct l2_page *page);

/* F1 to F4. Called with flush_lock held and lock not held. */
int tables_write(struct head *head);

/* --- head.c -------------------------------------------------------------------------------------------------------------- */

/* W1. Called without lock. */
int head_mark_dirty(struct head *head);

/* Makes the overlay blank: a new file over the old one. The gate is held exclusively. */
int head_rebuild(struct head *head, const struct overlay_spec *spec, struct view *below);

#endif
