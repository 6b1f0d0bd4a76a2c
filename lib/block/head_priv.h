/* The inside of a head, for lib/block/head*.c alone.
 *
 * THE MODEL OF THE WRITE PATH
 *
 * A guest cluster has, in its L2 entry, a host cluster or none, and for each subcluster one of three states: A allocated
 * (bytes in the host cluster), Z zero, U unallocated (read from the view beneath). Transitions:
 *   U,Z -> A  write        A,U -> Z  discard        A,Z -> U  share (the bytes equal what lies beneath)
 *   U -> Z  preallocation, of all subclusters of a cluster that gets its host cluster by that (nothing lies beneath: both read as zeros)
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
 * The steps of a write, for a span of clusters at a time
 *  W1  dirty bit set and stable, before the first allocation (I4)
 *  W2  host clusters allocated, in memory; space for the table pages that will name them, in the file: a full filesystem is told to who
 *      writes, not to who flushes what was acknowledged
 *  W3  data written; partly covered subclusters filled up from beneath
 *  W4  L2 entries changed, in memory
 * The steps of a preallocation, for a span of clusters that had none, or lack space
 *  P1  dirty bit (as W1)   P2  host clusters allocated, in memory   P3  the file's space allocated, what is shared with other files made its own
 *  P4  L2 entries changed to Z, in memory. What a host cluster holds where it is Z doesn't matter: it may have been another's once
 * The steps of a flush; one that began after a write was done serves all who wait to have that write stable
 *  F1  the changed table pages are copied, in memory; L2 pages of tables that no L1 entry on disk can name are written: nobody
 *      can see them yet (a flush that failed in F3 may have named a table: it counts as known from then on)
 *  F2  barrier: data and new tables are stable
 *  F3  L2 pages of known tables, L1 entries are written (I1, I2)
 *  F4  barrier
 *  F5  the virtual size, if it has changed: what is zeros between an old end and a new one is said by tables that are stable   F6  barrier
 * The steps of an L1 table's move to a larger place, with all writers stopped
 *  G1  dirty bit, flush: the L1 table on disk is that in memory
 *  G2  a copy at the file's end   G3  barrier   G4  the header names it, in one sector   G5  barrier; then the old one's place is free
 *      After a G4 that failed both places stay as they are until the header was made to name the old one, and that is stable
 * The steps of a rebase: what lies beneath gets another name, after all that the layers in between have was pulled
 *  B1  flush: what was pulled is stable   B2  the name is written where the header's cluster has nothing   B3  barrier
 *  B4  the first sector names it   B5  barrier   B6  the view that it stands for takes its place, with all writers stopped
 * From the first pull on nothing is shared, and where a pull has passed a subcluster is U only if the pulled layers have nothing there, or
 * zeros over zeros.
 * The steps of a repair, of a file whose dirty bit says at the opening that nobody closed it
 *  R1  what tables and header hold is written again, as it was read: what a sync has failed to write is in the page cache as if it were on the
 *      disk, and no later sync writes it. In any order: of what is read, nothing names what isn't stable (I1, I2)
 *  R2  all refcounts are written, as in C2 to C5
 * The steps of a close
 *  C1  flush   C2  refcounts written, the refcount table moved in the same way if it has become too short
 *  C3  barrier   C4  dirty bit cleared   C5  barrier
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
#include "block/image_locks.h"
#include "block/qcow2_header.h"

#define L2_PAGE_BYTES 4096u
#define L2_PAGE_WORDS (L2_PAGE_BYTES / 8)
#define L2_PAGE_BUCKETS 4096u
#define L2_PAGES_MAX  4096u /* 16 MiB; more only while they are dirty */
#define L2_DIRTY_MAX  2048u /* then the writer flushes */
#define SPAN_MAX      64u   /* clusters */

/* 4 KiB of an L2 table, in memory. */
struct l2_page {
	uint64_t host_off;
	uint64_t l1_index; /* of the table */
	bool loading;	   /* being read without the lock: wait on `changed` */
	bool recent;	   /* used since it was last looked at for eviction */
	bool dirty;
	bool has_space; /* the file has space for it: a flush can't fail for want of it */
	bool writing; /* in a flush's hands: must not be evicted and read again before it is on disk */
	unsigned nr_users; /* pinned while non-zero */
	struct l2_page *next; /* in its bucket */
	struct list age;
	struct list dirty_link;
	be64 words[L2_PAGE_WORDS];
};

/* Of an L1 entry, as to the disk. */
enum l1_state {
	L1_STABLE,
	L1_NEW,	  /* the entry there is the old one: nobody can see the table */
	L1_NAMED, /* a flush has begun to write it, and failed or isn't done: the entry may be there or not */
};

/* Of a refcount block, as to the disk. */
enum block_state {
	BLOCK_WRITTEN,
	BLOCK_STALE,
	BLOCK_GARBAGE, /* in a place that was something else's: all of it is to be written */
};

/* Which host clusters are in use, and which pages of refcounts on disk no longer say so. */
struct space {
	unsigned cluster_bits;
	bool fixed;	      /* a block device: it doesn't become longer, and no cluster of it is fresh. Set before space_scan */
	uint64_t nr_clusters; /* of the file */
	uint64_t nr_free, nr_reserved; /* FIXED: free clusters, and how many of them are kept for refcounts, without which it couldn't be closed */
	uint8_t *used;	      /* a bit each */
	size_t used_cap;      /* bytes */
	uint64_t hint;	      /* no free cluster before it */
	be64 *reftable;
	uint64_t nr_refblocks; /* room in reftable; the blocks that the file needs may be more, until they are written */
	enum block_state *stale_blocks; /* refcount blocks to write */
	size_t stale_cap;
	bool reftable_stale;
};

/* Why bytes become zeros. CUT: the disk ends before them, so what lies beneath need not be hidden now. SHARE: not zeros at all
 * but what lies beneath. */
enum zero_mode { ZERO_VISIBLY, ZERO_CUT, ZERO_SHARE };

/* A bit for each subcluster: A, Z, or neither (U). */
struct cluster_state {
	uint64_t host_off; /* 0: none */
	uint32_t allocated, zero;
};

/* Guest clusters whose entries lie in one page of an L2 table, and what somebody has in mind with them. Lives on its owner's stack. */
struct span {
	uint64_t first;
	unsigned nr;
	struct cluster_state states[SPAN_MAX]; /* as they were when it was claimed; then as they shall be */
	bool held; /* others wait for it */
	/* of a span that is held */
	struct list link;     /* in busy */
	struct l2_page *page; /* pinned; NULL: there is no table yet */
	unsigned word;
	uint64_t new_hosts; /* a bit for each cluster that got its host cluster from span_alloc_locked */
};

/* What a head's file is: a qcow2 overlay (head_qcow2, for which the model above stands), or the disk's bytes themselves (head_raw). One of them serves all
 * functions of head.h and merge.h but those that need something beneath the head. */
struct head_kind {
	enum image_format format;
	/* The gate is held, by any number of threads, and the range lies inside the disk; for ZERO it may go on to the end of the disk's last subcluster. */
	int (*read)(struct head *head, void *buf, size_t len, uint64_t guest_off);
	int (*write)(struct head *head, const void *buf, size_t len, uint64_t guest_off);
	int (*zero)(struct head *head, uint64_t guest_off, uint64_t len, enum zero_mode mode);
	/* The first extent of the file alone. */
	int (*map)(struct head *head, uint64_t guest_off, uint64_t len, struct extent *ret);
	/* The beginning of the range: RET_LEN bytes of it, if it's not an error. */
	int (*preallocate)(struct head *head, uint64_t guest_off, uint64_t len, uint64_t *ret_len);
	/* The gate is held exclusively. WRITE_GROWING ends behind the disk's end. */
	int (*write_growing)(struct head *head, const void *buf, size_t len, uint64_t guest_off);
	int (*resize)(struct head *head, uint64_t virtual_size);
	/* flush_lock is held: makes stable what was written before. After a failed sync: I7. */
	int (*write_back)(struct head *head);
	/* After the last write_back, alone. NULL: nothing is left to do. */
	int (*finish)(struct head *head);
};
extern const struct head_kind head_qcow2, head_raw;

struct head {
	const struct head_kind *kind;
	int dirfd; /* borrowed */
	char *name, *path;
	const struct head_names *names; /* NULL: nobody keeps a list */
	int fd;
	bool is_device; /* a block device: its size is what it is */
	enum image_lock_kind locks; /* on fd */
	struct qcow2_header header; /* virtual_size lives below; incompatible has the dirty bit as it is on disk. All zeros in a raw head, whose subclusters so are bytes */
	struct view *below;	    /* changed under the gate, exclusively */
	_Atomic size_t nr_pulled; /* layers of below whose bytes become the head's own; 0: none. Changed like below */
	/* Of a pull: the blocks of the filesystem, 0 where they aren't shared, and the last image that lies elsewhere. */
	_Atomic uint64_t share_block;
	const struct image *_Atomic unshared;
	bool comparing;		    /* writes may equal what lies beneath: set by head_adopt; changed like below */
	atomic_bool is_dirty;	    /* the dirty bit is stable on disk, and nothing is left to autoclear */

	/* Held shared by every operation on guest data, exclusively to stop them all. Taken before flush_lock and lock. */
	pthread_rwlock_t gate;
	pthread_mutex_t flush_lock; /* one flush at a time; taken before lock */
	_Atomic uint64_t nr_changes; /* operations on guest data that are done */
	_Atomic uint64_t virtual_size; /* changed with lock held */
	_Atomic size_t nr_dirty;       /* the same */

	pthread_mutex_t lock;
	pthread_cond_t changed; /* a page was loaded, a span is no longer busy */
	/* protected by lock */
	unsigned nr_waiting; /* for `changed` */
	bool size_dirty;
	be64 *l1;
	enum l1_state *l1_states; /* of each entry */
	size_t nr_l1_dirty; /* that aren't stable */
	struct l2_page *buckets[L2_PAGE_BUCKETS];
	struct list ages;  /* of all pages, oldest first */
	struct list dirty; /* pages */
	size_t nr_pages;
	struct list busy; /* spans */
	struct space space;
	uint64_t nr_stable;	/* of nr_changes */
	bool flushing;		/* somebody flushes: wait on `flushed`, and see whether that was enough */
	pthread_cond_t flushed;
	int failed; /* I7: the error of the sync that failed */
	/* protected by flush_lock: clusters that the header may name as the L1 table, besides the one that is; none: 0 */
	uint64_t l1_attempt_off, l1_attempt_nr;
};

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}
static inline uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}
static inline uint64_t cluster_size_of(const struct head *head)
{
	return qcow2_cluster_size(&head->header.geo);
}
static inline uint64_t subcluster_size_of(const struct head *head)
{
	return 1ull << head->header.geo.subcluster_bits;
}
/* Bytes from GUEST_OFF to the end of its cluster. */
static inline uint64_t to_cluster_end(const struct head *head, uint64_t guest_off)
{
	return cluster_size_of(head) - (guest_off & (cluster_size_of(head) - 1));
}

/* --- head_space.c ------------------------------------------------------------------------------------------------ */

/* Finds out which clusters are in use by walking header, tables and entries. -EUCLEAN: two owners, or out of the file. */
int space_scan(struct space *space, int fd, const struct qcow2_header *header, const be64 *l1, struct reason *why);
void space_done(struct space *space);
/* A free cluster, now in use: its byte offset. FRESH: it lies behind the file's end and so is zeros. -EFBIG: the refcount
 * table would become longer than the format allows. */
int space_alloc(struct space *space, uint64_t *ret_host_off, bool *ret_fresh);
/* NR clusters one behind the other, all of them fresh unless the space is fixed. */
int space_alloc_run(struct space *space, uint64_t nr, uint64_t *ret_host_off);
/* Of a cluster that no table on disk names. */
void space_release(struct space *space, uint64_t host_off);
/* C2: refcount blocks, then (a barrier of its own between) the refcount table if it changed. Where the table has become too short, a
 * longer one, which the header then says. After a failed sync: I7. */
int space_write(struct head *head);

/* --- head_tables.c (the lock is held) ------------------------------------------------------------------------------- */

int tables_init(struct head *head, struct reason *why);
void tables_done(struct head *head);

/* Whether nothing was ever written. */
bool tables_are_empty(const struct head *head);

/* Whether there is an L2 table for GUEST_OFF. */
bool tables_has_l2(const struct head *head, uint64_t guest_off);

/* The page with the L2 entry of GUEST_OFF, pinned until tables_put_locked, and the entry's first word in it. CREATE: makes the table
 * where there is none (else RET_PAGE is NULL). Drops and retakes the lock when it reads. */
int tables_get_locked(struct head *head, uint64_t guest_off, bool create, struct l2_page **ret_page, unsigned *ret_word);
void tables_put_locked(struct l2_page *page);

/* Before the first entry of PAGE is made: the file gets space for it. */
int tables_claim_locked(const struct head *head, struct l2_page *page);
void tables_dirty_locked(struct head *head, struct l2_page *page);

/* Waits until a page is loaded or a span let go. */
void tables_wait_locked(struct head *head);
void tables_wake_locked(struct head *head);

/* F1 to F6. Called with flush_lock held and lock not held. */
int tables_write(struct head *head);

/* I7 from now on. */
void tables_fail(struct head *head, int err);

/* A barrier, after whose failure nothing more is written (I7). */
int tables_barrier(struct head *head);

/* G1 to G5: an L1 table with room for NR_NEEDED entries. The gate is held exclusively. -EFBIG: more than the format allows. */
int tables_grow_l1(struct head *head, uint64_t nr_needed);

/* --- head_repair.c --------------------------------------------------------------------------------------------------- */

/* R1, before anything is changed. */
int repair_tables(const struct head *head);

/* --- head_span.c ----------------------------------------------------------------------------------------------------- */

/* Subclusters of its first cluster that [GUEST_OFF, +LEN) touches, and those that it covers from end to end. */
uint32_t subclusters_touched(const struct head *head, uint64_t guest_off, uint64_t len);
uint32_t subclusters_covered(const struct head *head, uint64_t guest_off, uint64_t len);

/* How much of [GUEST_OFF, +LEN) fits into one span. */
uint64_t span_fit(const struct head *head, uint64_t guest_off, uint64_t len);

/* Waits until nobody holds any of the clusters that [GUEST_OFF, +LEN) touches, and looks at their states. Holds them until
 * span_release_locked if any subcluster of the range isn't allocated, or ALWAYS. */
int span_claim_locked(struct head *head, struct span *span, uint64_t guest_off, uint64_t len, bool always);
/* W2: makes the table where there is none, and gives each cluster of WANTED (a bit each) a host cluster if it has none. */
int span_alloc_locked(struct head *head, struct span *span, uint64_t wanted);
/* W4, unless ERR: then host clusters that the span has got are given back. Lets go of the span. */
int span_release_locked(struct head *head, struct span *span, int err);

/* --- head_io.c: the gate is held ----------------------------------------------------------------------------------------- */

int head_read_below(struct head *head, void *buf, size_t len, uint64_t guest_off);
bool head_is_zeros(const char *p, size_t len);
/* Beyond the virtual size: zeros. */
int overlay_read(struct head *head, void *buf, size_t len, uint64_t guest_off);
int overlay_write(struct head *head, const void *buf, size_t len, uint64_t guest_off);
int overlay_map(struct head *head, uint64_t guest_off, uint64_t len, struct extent *ret);
/* What a change of guest data ends with, after the gate: ERR, or that of the flush if too much was left to one. */
int head_changed(struct head *head, int err);

/* --- head_zero.c: the gate is held ------------------------------------------------------------------------------------- */

int overlay_zero(struct head *head, uint64_t guest_off, uint64_t len, enum zero_mode mode);

/* --- head_prealloc.c: the gate is held ------------------------------------------------------------------------------------ */

int overlay_preallocate(struct head *head, uint64_t guest_off, uint64_t len, uint64_t *ret_len);
int raw_preallocate(struct head *head, uint64_t guest_off, uint64_t len, uint64_t *ret_len);

/* --- head_size.c --------------------------------------------------------------------------------------------------------- */

int overlay_write_growing(struct head *head, const void *buf, size_t len, uint64_t guest_off);
int overlay_resize(struct head *head, uint64_t virtual_size);

/* --- head.c -------------------------------------------------------------------------------------------------------------- */

int head_new(const struct head_kind *kind, int dirfd, const char *name, const char *path, enum image_lock_kind locks, struct head **ret);
void head_free(struct head *head);

/* Opens its file, whose length is stored, and takes the locks. */
int head_open_file(struct head *head, uint64_t *ret_file_size, struct reason *why);

/* W1. Called without lock. */
int head_mark_dirty(struct head *head);

/* Makes the overlay blank: a new file over the old one. The gate is held exclusively. */
int head_rebuild(struct head *head, const struct overlay_spec *spec, struct view *below);

#endif
