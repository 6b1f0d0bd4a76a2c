#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/head_priv.h"
#include "block/qcow2_format.h"
#include "block/qcow2_l2.h"
#include "block/raw.h"

/* --- L1 -------------------------------------------------------------------------------------------------------------- */

int tables_init(struct head *head, struct reason *why)
{
	const struct qcow2_header *h = &head->header;
	list_init(&head->ages);
	list_init(&head->dirty);
	list_init(&head->busy);
	head->l1 = mem_new_array(h->l1_size, sizeof *head->l1);
	head->l1_states = mem_new_array(h->l1_size, sizeof *head->l1_states);
	if (!head->l1 || !head->l1_states)
		return -ENOMEM;
	int err = file_read_padded(head->fd, head->l1, (size_t)h->l1_size * 8, h->l1_offset);
	return err ? reason_set(why, err, "reading the L1 table: %s", strerror(-err)) : 0;
}

void tables_done(struct head *head)
{
	for (unsigned i = 0; i < L2_PAGE_BUCKETS; i++) {
		for (struct l2_page *page = head->buckets[i], *next; page; page = next) {
			next = page->next;
			free(page);
		}
		head->buckets[i] = NULL;
	}
	free(head->l1);
	free(head->l1_states);
	head->l1 = NULL;
	head->l1_states = NULL;
	list_init(&head->ages);
	list_init(&head->dirty);
	head->nr_pages = head->nr_l1_dirty = 0;
	atomic_store(&head->nr_dirty, 0);
}

static uint64_t l1_index_of(const struct head *head, uint64_t guest_off)
{
	return guest_off >> qcow2_l2_span_bits(&head->header.geo);
}

static uint64_t l2_offset_of(const struct head *head, uint64_t l1_index)
{
	return l1_index < head->header.l1_size ? be64_get(head->l1[l1_index]) & QCOW2_OFFSET_MASK : 0;
}

bool tables_has_l2(const struct head *head, uint64_t guest_off)
{
	return l2_offset_of(head, l1_index_of(head, guest_off)) != 0;
}

bool tables_are_empty(const struct head *head)
{
	for (uint32_t i = 0; i < head->header.l1_size; i++)
		if (head->l1[i].raw)
			return false;
	return true;
}

/* --- pages of L2 -------------------------------------------------------------------------------------------------------- */

static struct l2_page **bucket_of(struct head *head, uint64_t host_off)
{
	return &head->buckets[host_off / L2_PAGE_BYTES % L2_PAGE_BUCKETS];
}

static struct l2_page *lookup_page(struct head *head, uint64_t host_off)
{
	struct l2_page *page = *bucket_of(head, host_off);
	while (page && page->host_off != host_off)
		page = page->next;
	return page;
}

static void drop_page(struct head *head, struct l2_page *page)
{
	struct l2_page **link = bucket_of(head, page->host_off);
	while (*link != page)
		link = &(*link)->next;
	*link = page->next;
	list_remove(&page->age);
	head->nr_pages--;
	free(page);
}

/* A page that was used since gets another round. */
static void evict_pages(struct head *head)
{
	for (size_t nr = 2 * head->nr_pages; nr && head->nr_pages >= L2_PAGES_MAX; nr--) {
		struct l2_page *page = list_entry(head->ages.next, struct l2_page, age);
		if (!page->recent && !page->dirty && !page->writing && !page->loading && !page->nr_users) {
			drop_page(head, page);
			continue;
		}
		page->recent = false;
		list_remove(&page->age);
		list_push(&head->ages, &page->age);
	}
}

static struct l2_page *insert_page(struct head *head, uint64_t host_off, uint64_t l1_index)
{
	evict_pages(head);
	struct l2_page *page = calloc(1, sizeof *page);
	if (!page)
		return NULL;
	page->host_off = host_off;
	page->l1_index = l1_index;
	struct l2_page **bucket = bucket_of(head, host_off);
	page->next = *bucket;
	*bucket = page;
	list_push(&head->ages, &page->age);
	list_init(&page->dirty_link);
	head->nr_pages++;
	return page;
}

void tables_wait_locked(struct head *head)
{
	head->nr_waiting++;
	pthread_cond_wait(&head->changed, &head->lock);
	head->nr_waiting--;
}

void tables_wake_locked(struct head *head)
{
	if (head->nr_waiting)
		pthread_cond_broadcast(&head->changed);
}

/* Zeros may be a hole. */
static bool is_written(const struct l2_page *page)
{
	for (unsigned i = 0; i < L2_PAGE_WORDS; i++)
		if (page->words[i].raw)
			return true;
	return false;
}

/* Reads a page without the lock; others that want it wait. */
static int load_page(struct head *head, uint64_t host_off, uint64_t l1_index, struct l2_page **ret)
{
	struct l2_page *page = insert_page(head, host_off, l1_index);
	if (!page)
		return -ENOMEM;
	page->loading = true;
	pthread_mutex_unlock(&head->lock);
	int err = file_read_padded(head->fd, page->words, L2_PAGE_BYTES, host_off);
	pthread_mutex_lock(&head->lock);
	page->loading = false;
	page->has_space = head->is_device || is_written(page);
	tables_wake_locked(head);
	if (err)
		drop_page(head, page);
	else
		*ret = page;
	return err;
}

static int get_page(struct head *head, uint64_t host_off, uint64_t l1_index, struct l2_page **ret)
{
	for (;;) {
		struct l2_page *page = lookup_page(head, host_off);
		int err = 0;
		if (!page)
			err = load_page(head, host_off, l1_index, &page);
		if (err)
			return err;
		if (!page->loading) {
			page->recent = true;
			page->nr_users++;
			*ret = page;
			return 0;
		}
		tables_wait_locked(head);
	}
}

/* Zeros in a cluster that lay free inside the file and may hold anything. */
static int zero_cluster(const struct head *head, uint64_t host_off)
{
	uint64_t cluster_size = qcow2_cluster_size(&head->header.geo);
	if (fallocate(head->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)host_off, (off_t)cluster_size) == 0)
		return 0;
	auto_free void *zeros = calloc(1, cluster_size);
	return zeros ? file_write(head->fd, zeros, cluster_size, host_off) : -ENOMEM;
}

/* Zeros over zeros, perhaps a hole: what is written there later can't fail for want of space. Not fallocate(2): writing to what is only allocated
 * may need a block for the map of the file. */
static int claim_space(const struct head *head, uint64_t host_off)
{
	static const char zeros[L2_PAGE_BYTES];
	return head->is_device ? 0 : file_write(head->fd, zeros, sizeof zeros, host_off);
}

int tables_claim_locked(const struct head *head, struct l2_page *page)
{
	int err = page->has_space ? 0 : claim_space(head, page->host_off);
	page->has_space |= !err;
	return err;
}

/* The same for the page of the L1 table that is to have its first entry. */
static int claim_l1(const struct head *head, uint64_t l1_index)
{
	uint64_t per_page = L2_PAGE_BYTES / sizeof(be64), first = l1_index / per_page * per_page;
	for (uint64_t i = first; i < first + per_page && i < head->header.l1_size; i++)
		if (head->l1[i].raw)
			return 0;
	return claim_space(head, head->header.l1_offset + first * sizeof(be64));
}

/* An empty L2 table: a hole at the file's end, or a cluster zeroed by hand (rare enough to do under the lock). */
static int new_l2(struct head *head, uint64_t l1_index)
{
	uint64_t host_off = 0;
	bool fresh = false;
	int err = space_alloc(&head->space, &host_off, &fresh);
	if (err)
		return err;
	if (!fresh)
		err = zero_cluster(head, host_off);
	if (!err)
		err = claim_l1(head, l1_index);
	if (err) {
		space_release(&head->space, host_off);
		return err;
	}
	head->l1[l1_index] = be64_make(host_off | QCOW2_COPIED);
	head->l1_states[l1_index] = L1_NEW;
	head->nr_l1_dirty++;
	return 0;
}

int tables_get_locked(struct head *head, uint64_t guest_off, bool create, struct l2_page **ret_page, unsigned *ret_word)
{
	const struct qcow2_geometry *geo = &head->header.geo;
	uint64_t l1_index = l1_index_of(head, guest_off);
	if (l1_index >= head->header.l1_size)
		return -EFBIG;
	if (!l2_offset_of(head, l1_index)) {
		*ret_page = NULL;
		int err = create ? new_l2(head, l1_index) : 0;
		if (err || !create)
			return err;
	}
	uint64_t l2_index = (guest_off >> geo->cluster_bits) & ((1ull << geo->l2_bits) - 1);
	uint64_t byte = l2_offset_of(head, l1_index) + l2_index * qcow2_l2_words(geo) * 8;
	*ret_word = (unsigned)(byte / 8 % L2_PAGE_WORDS);
	return get_page(head, byte & ~(uint64_t)(L2_PAGE_BYTES - 1), l1_index, ret_page);
}

void tables_put_locked(struct l2_page *page)
{
	if (page)
		page->nr_users--;
}

void tables_dirty_locked(struct head *head, struct l2_page *page)
{
	if (!page->dirty) {
		page->dirty = true;
		list_push(&head->dirty, &page->dirty_link);
		atomic_fetch_add(&head->nr_dirty, 1);
	}
}

/* --- writing (F1 to F6) ---------------------------------------------------------------------------------------------------- */

/* What a flush writes: copies, so that guest writes go on meanwhile. */
struct flush_set {
	struct l2_page **pages; /* by their places; those of known tables, which an L1 entry on disk names, behind the others */
	size_t nr_pages, nr_unknown;
	be64 *words; /* of all pages, one after the other */
	uint64_t *host_offs;
	uint64_t *l1_indices;
	be64 *l1_entries;
	size_t nr_l1;
	bool size_dirty;
	uint64_t virtual_size;
};

static void flush_set_done(struct flush_set *set)
{
	free(set->pages);
	free(set->words);
	free(set->host_offs);
	free(set->l1_indices);
	free(set->l1_entries);
}

static int compare_places(const void *a, const void *b)
{
	uint64_t x = (*(struct l2_page *const *)a)->host_off, y = (*(struct l2_page *const *)b)->host_off;
	return x < y ? -1 : x > y;
}

/* Whether an L1 entry on disk names its table, or may: a flush may have failed after it had written the entry. */
static bool is_known(const struct head *head, const struct l2_page *page)
{
	return head->l1_states[page->l1_index] != L1_NEW;
}

/* The dirty pages whose tables are KNOWN, or aren't. */
static void pick_pages(struct head *head, struct flush_set *set, bool known)
{
	size_t first = set->nr_pages;
	for (struct list *node = head->dirty.next; node != &head->dirty; node = node->next) {
		struct l2_page *page = list_entry(node, struct l2_page, dirty_link);
		if (is_known(head, page) == known)
			set->pages[set->nr_pages++] = page;
	}
	qsort(set->pages + first, set->nr_pages - first, sizeof *set->pages, compare_places);
}

static void collect_pages(struct head *head, struct flush_set *set)
{
	pick_pages(head, set, false);
	set->nr_unknown = set->nr_pages;
	pick_pages(head, set, true);
	for (size_t i = 0; i < set->nr_pages; i++) {
		struct l2_page *page = set->pages[i];
		set->host_offs[i] = page->host_off;
		memcpy(set->words + i * L2_PAGE_WORDS, page->words, sizeof page->words);
		list_remove(&page->dirty_link);
		page->dirty = false;
		page->writing = true; /* so that it stays in memory */
	}
	atomic_store(&head->nr_dirty, 0);
}

static void collect_l1(struct head *head, struct flush_set *set)
{
	for (uint64_t i = 0; i < head->header.l1_size && set->nr_l1 < head->nr_l1_dirty; i++) {
		if (head->l1_states[i] == L1_STABLE)
			continue;
		set->l1_indices[set->nr_l1] = i;
		set->l1_entries[set->nr_l1++] = head->l1[i];
	}
}

/* F1, the part under the lock. L1 entries are written again until they are stable. */
static int collect(struct head *head, struct flush_set *set)
{
	size_t nr_dirty = atomic_load(&head->nr_dirty);
	set->pages = mem_new_array(nr_dirty, sizeof *set->pages);
	set->words = mem_new_array(nr_dirty, L2_PAGE_BYTES);
	set->host_offs = mem_new_array(nr_dirty, sizeof *set->host_offs);
	set->l1_indices = mem_new_array(head->nr_l1_dirty, sizeof *set->l1_indices);
	set->l1_entries = mem_new_array(head->nr_l1_dirty, sizeof *set->l1_entries);
	if (!set->pages || !set->words || !set->host_offs || !set->l1_indices || !set->l1_entries)
		return -ENOMEM;
	collect_pages(head, set);
	collect_l1(head, set);
	set->size_dirty = head->size_dirty;
	set->virtual_size = atomic_load(&head->virtual_size);
	head->size_dirty = false;
	return 0;
}

/* Neighbours go together. */
static int write_pages(const struct head *head, const struct flush_set *set, size_t first, size_t end)
{
	int err = 0;
	for (size_t i = first, next; i < end && !err; i = next) {
		for (next = i + 1; next < end && set->host_offs[next] == set->host_offs[next - 1] + L2_PAGE_BYTES;)
			next++;
		err = file_write(head->fd, set->words + i * L2_PAGE_WORDS, (next - i) * L2_PAGE_BYTES, set->host_offs[i]);
	}
	return err;
}

/* The file ends behind its last cluster: the holes of new tables are in it. Under the lock, and to where the last cluster lies now: a writer that
 * has got a cluster behind that meanwhile may have made the file longer since its end was looked at, and would be cut off. */
static int extend_file(struct head *head)
{
	pthread_mutex_lock(&head->lock);
	uint64_t file_size = head->space.nr_clusters << head->space.cluster_bits;
	off_t end = lseek(head->fd, 0, SEEK_END);
	int err = end < 0 || ((uint64_t)end < file_size && ftruncate(head->fd, (off_t)file_size) < 0) ? -errno : 0;
	pthread_mutex_unlock(&head->lock);
	return err;
}

static int write_new_tables(const struct head *head, const struct flush_set *set)
{
	return write_pages(head, set, 0, set->nr_unknown);
}

static int write_known_tables(const struct head *head, const struct flush_set *set)
{
	return write_pages(head, set, set->nr_unknown, set->nr_pages);
}

/* From here on the tables may be seen, whatever becomes of this flush. */
static void name_tables(struct head *head, const struct flush_set *set)
{
	pthread_mutex_lock(&head->lock);
	for (size_t i = 0; i < set->nr_l1; i++)
		head->l1_states[set->l1_indices[i]] = L1_NAMED;
	pthread_mutex_unlock(&head->lock);
}

static int write_l1(struct head *head, const struct flush_set *set)
{
	int err = 0;
	name_tables(head, set);
	for (size_t i = 0; i < set->nr_l1 && !err; i++)
		err = file_write(head->fd, &set->l1_entries[i], 8, head->header.l1_offset + set->l1_indices[i] * 8);
	return err;
}

static int write_size(const struct head *head, const struct flush_set *set)
{
	be64 size = be64_make((set->virtual_size + 511) & ~511ull);
	return file_write(head->fd, &size, sizeof size, offsetof(struct qcow2_header_disk, virtual_size));
}

void tables_fail(struct head *head, int err)
{
	pthread_mutex_lock(&head->lock);
	head->failed = err;
	pthread_mutex_unlock(&head->lock);
}

int tables_barrier(struct head *head)
{
	int err = file_sync(head->fd);
	if (err)
		tables_fail(head, err);
	return err;
}

/* The pages of the set needn't stay in memory any longer; after a failure they are to be written another time. */
static void settle_pages_locked(struct head *head, const struct flush_set *set, bool failed)
{
	for (size_t i = 0; i < set->nr_pages; i++) {
		set->pages[i]->writing = false;
		if (failed)
			tables_dirty_locked(head, set->pages[i]);
	}
	if (failed && set->size_dirty)
		head->size_dirty = true;
}

static void settle_l1_locked(struct head *head, const struct flush_set *set)
{
	for (size_t i = 0; i < set->nr_l1; i++)
		head->l1_states[set->l1_indices[i]] = L1_STABLE;
	head->nr_l1_dirty -= set->nr_l1;
}

static int write_set(struct head *head, const struct flush_set *set)
{
	bool tables = set->nr_pages || set->nr_l1 || set->size_dirty;
	int err = tables ? extend_file(head) : 0;
	if (!err)
		err = write_new_tables(head, set);
	if (!err)
		err = tables_barrier(head); /* F2: data and new tables are stable before anything on disk names them */
	if (err || !tables)
		return err;
	err = write_known_tables(head, set);
	if (!err)
		err = write_l1(head, set);
	if (!err)
		err = tables_barrier(head); /* F4: what a longer disk hides of what lies beneath is hidden before it is longer */
	if (err || !set->size_dirty)
		return err;
	err = write_size(head, set);
	return err ? err : tables_barrier(head); /* F6 */
}

/* --- growing the L1 table (G1 to G5) ------------------------------------------------------------------------------------------ */

static uint64_t clusters_of(const struct head *head, uint64_t bytes)
{
	return (bytes + qcow2_cluster_size(&head->header.geo) - 1) >> head->header.geo.cluster_bits;
}

static void release_run(struct head *head, uint64_t host_off, uint64_t nr)
{
	pthread_mutex_lock(&head->lock);
	for (uint64_t i = 0; i < nr; i++)
		space_release(&head->space, host_off + (i << head->header.geo.cluster_bits));
	pthread_mutex_unlock(&head->lock);
}

/* The L1 table's place and length as the header says them, which lie in one sector. */
static int name_l1(const struct head *head, uint64_t l1_offset, uint32_t l1_size)
{
	be32 size = be32_make(l1_size);
	be64 offset = be64_make(l1_offset);
	char both[sizeof size + sizeof offset];
	static_assert(offsetof(struct qcow2_header_disk, l1_table_offset) == offsetof(struct qcow2_header_disk, l1_size) + sizeof size,
		      "one write");
	memcpy(both, &size, sizeof size);
	memcpy(both + sizeof size, &offset, sizeof offset);
	return file_write(head->fd, both, sizeof both, offsetof(struct qcow2_header_disk, l1_size));
}

/* G2 and G3. */
static int write_l1_at(struct head *head, uint64_t l1_offset, uint32_t l1_size)
{
	int err = extend_file(head);
	if (!err && head->is_device)
		err = raw_write_zeros(head->fd, l1_offset, (uint64_t)l1_size * 8);
	if (!err) /* what follows is zeros: it lay behind the file's end */
		err = file_write(head->fd, head->l1, (size_t)head->header.l1_size * 8, l1_offset);
	return err ? err : tables_barrier(head); /* G3: the copy is stable before the header names it */
}

/* After a G4 that failed the header may name the table that was to be: it is made to name the one that is, before anything else happens to either. */
static int settle_l1_place(struct head *head)
{
	if (!head->l1_attempt_nr)
		return 0;
	int err = name_l1(head, head->header.l1_offset, head->header.l1_size);
	if (!err)
		err = tables_barrier(head);
	if (!err) {
		release_run(head, head->l1_attempt_off, head->l1_attempt_nr);
		head->l1_attempt_nr = 0;
	}
	return err;
}

int tables_write(struct head *head)
{
	struct flush_set set = {0};
	pthread_mutex_lock(&head->lock);
	int err = head->failed;
	pthread_mutex_unlock(&head->lock);
	if (!err)
		err = settle_l1_place(head);
	if (err)
		return err;
	pthread_mutex_lock(&head->lock);
	err = collect(head, &set);
	pthread_mutex_unlock(&head->lock);
	if (!err) {
		err = write_set(head, &set);
		pthread_mutex_lock(&head->lock);
		settle_pages_locked(head, &set, err != 0);
		if (!err)
			settle_l1_locked(head, &set);
		pthread_mutex_unlock(&head->lock);
	}
	flush_set_done(&set);
	return err;
}

static int move_l1(struct head *head, uint32_t l1_size)
{
	auto_free be64 *l1 = mem_new_array(l1_size, sizeof *l1);
	auto_free enum l1_state *l1_states = mem_new_array(l1_size, sizeof *l1_states);
	if (!l1 || !l1_states)
		return -ENOMEM;
	memcpy(l1, head->l1, (size_t)head->header.l1_size * 8);
	uint64_t l1_offset = 0, nr = clusters_of(head, (uint64_t)l1_size * 8);
	pthread_mutex_lock(&head->lock);
	int err = space_alloc_run(&head->space, nr, &l1_offset);
	pthread_mutex_unlock(&head->lock);
	if (err)
		return err;
	err = write_l1_at(head, l1_offset, l1_size);
	if (err) {
		release_run(head, l1_offset, nr);
		return err;
	}
	err = name_l1(head, l1_offset, l1_size); /* G4 */
	if (err) {
		head->l1_attempt_off = l1_offset;
		head->l1_attempt_nr = nr;
		return err;
	}
	err = tables_barrier(head); /* G5: the header is stable before the old table's place is used for anything else */
	if (err)
		return err;
	uint64_t old_offset = head->header.l1_offset, old_nr = clusters_of(head, (uint64_t)head->header.l1_size * 8);
	pthread_mutex_lock(&head->lock);
	free(head->l1);
	free(head->l1_states);
	head->l1 = take_ptr(l1);
	head->l1_states = take_ptr(l1_states);
	head->header.l1_offset = l1_offset;
	head->header.l1_size = l1_size;
	pthread_mutex_unlock(&head->lock);
	release_run(head, old_offset, old_nr);
	return 0;
}

int tables_grow_l1(struct head *head, uint64_t nr_needed)
{
	uint64_t size = qcow2_l1_roomy(&head->header.geo, nr_needed);
	if (!size)
		return -EFBIG;
	int err = head_mark_dirty(head);
	if (err)
		return err;
	pthread_mutex_lock(&head->flush_lock);
	err = tables_write(head);
	if (!err)
		err = move_l1(head, (uint32_t)size);
	pthread_mutex_unlock(&head->flush_lock);
	return err;
}
