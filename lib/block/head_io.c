/* Guest reads, writes, discards and changes of size: steps W2 to W4 of head_priv.h. */
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

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

static uint64_t cluster_size_of(const struct head *head)
{
	return qcow2_cluster_size(&head->header.geo);
}

static uint64_t subcluster_size_of(const struct head *head)
{
	return 1ull << head->header.geo.subcluster_bits;
}

/* Bytes from GUEST_OFF to the end of its cluster. */
static uint64_t to_cluster_end(const struct head *head, uint64_t guest_off)
{
	return cluster_size_of(head) - (guest_off & (cluster_size_of(head) - 1));
}

/* --- the state of a cluster ------------------------------------------------------------------------------------------ */

/* A bit for each subcluster: A, Z, or neither (U). */
struct cluster_state {
	uint64_t host_off; /* 0: none */
	uint32_t allocated, zero;
};

static struct cluster_state state_get(const struct head *head, const struct l2_page *page, unsigned word)
{
	if (!page)
		return (struct cluster_state){0};
	struct qcow2_l2_entry l2 = qcow2_l2_get(&head->header.geo, page->words + word, 0);
	return (struct cluster_state){l2.entry & QCOW2_OFFSET_MASK, (uint32_t)l2.bitmap, (uint32_t)(l2.bitmap >> 32)};
}

/* W4. */
static int state_set(struct head *head, uint64_t guest_off, const struct cluster_state *state)
{
	struct l2_page *page = NULL;
	unsigned word = 0;
	pthread_mutex_lock(&head->lock);
	int err = tables_get_locked(head, guest_off, true, &page, &word);
	if (!err) {
		page->words[word] = be64_make(state->host_off ? state->host_off | QCOW2_COPIED : 0);
		page->words[word + 1] = be64_make((uint64_t)state->zero << 32 | state->allocated);
		tables_dirty_locked(head, page);
		tables_put_locked(page);
	}
	pthread_mutex_unlock(&head->lock);
	return err;
}

static bool is_busy(const struct head *head, uint64_t number)
{
	for (struct list *node = head->busy.next; node != &head->busy; node = node->next)
		if (list_entry(node, struct busy_cluster, link)->number == number)
			return true;
	return false;
}

static int get_state_locked(struct head *head, uint64_t guest_off, struct cluster_state *ret)
{
	struct l2_page *page = NULL;
	unsigned word = 0;
	int err = tables_get_locked(head, guest_off, false, &page, &word);
	if (!err)
		*ret = state_get(head, page, word);
	tables_put_locked(page);
	return err;
}

/* Waits until nobody allocates in the cluster; then keeps others out until cluster_release, if any subcluster of WANTED isn't
 * allocated (RET_HELD says so). WANTED 0: keeps them out whatever there is. */
static int cluster_claim(struct head *head, uint64_t guest_off, uint32_t wanted, struct busy_cluster *busy,
			 struct cluster_state *ret_state, bool *ret_held)
{
	busy->number = guest_off >> head->header.geo.cluster_bits;
	pthread_mutex_lock(&head->lock);
	int err = head->failed;
	bool settled = false;
	while (!err && !settled) {
		while (is_busy(head, busy->number))
			pthread_cond_wait(&head->changed, &head->lock);
		err = get_state_locked(head, guest_off, ret_state);
		settled = !is_busy(head, busy->number); /* the lock may have been dropped to read the table */
	}
	*ret_held = !err && (!wanted || (ret_state->allocated & wanted) != wanted);
	if (*ret_held)
		list_push(&head->busy, &busy->link);
	pthread_mutex_unlock(&head->lock);
	return err;
}

static void cluster_release(struct head *head, struct busy_cluster *busy)
{
	pthread_mutex_lock(&head->lock);
	list_remove(&busy->link);
	pthread_cond_broadcast(&head->changed);
	pthread_mutex_unlock(&head->lock);
}

/* --- reading -------------------------------------------------------------------------------------------------------------- */

/* The first run of the overlay alone. */
static int lookup(struct head *head, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	const struct qcow2_geometry *geo = &head->header.geo;
	struct l2_page *page = NULL;
	unsigned word = 0;
	struct extent e = {.kind = EXTENT_UNALLOCATED};
	pthread_mutex_lock(&head->lock);
	int err = tables_get_locked(head, guest_off, false, &page, &word);
	if (!err && page)
		err = qcow2_l2_run(geo, page->words + word, (L2_PAGE_WORDS - word) / 2, guest_off & (cluster_size_of(head) - 1), &e);
	else
		e.len = (1ull << qcow2_l2_span_bits(geo)) - (guest_off & ((1ull << qcow2_l2_span_bits(geo)) - 1));
	tables_put_locked(page);
	pthread_mutex_unlock(&head->lock);
	e.guest_off = guest_off;
	e.len = min_u64(e.len, len);
	*ret = e;
	return err;
}

static int read_below(struct head *head, void *buf, size_t len, uint64_t guest_off)
{
	if (head->below)
		return view_read(head->below, buf, len, guest_off);
	memset(buf, 0, len);
	return 0;
}

/* Beyond the virtual size: zeros. The gate is held. */
static int read_range(struct head *head, void *buf, size_t len, uint64_t guest_off)
{
	uint64_t end = head_virtual_size(head);
	size_t inside = guest_off < end ? (size_t)min_u64(len, end - guest_off) : 0;
	memset((char *)buf + inside, 0, len - inside);
	char *to = buf;
	while (inside) {
		struct extent e = {0};
		int err = lookup(head, guest_off, inside, &e);
		if (!err && e.kind == EXTENT_DATA)
			err = file_read_padded(head->fd, to, e.len, e.host_off);
		else if (!err && e.kind == EXTENT_UNALLOCATED)
			err = read_below(head, to, e.len, guest_off);
		else if (!err)
			memset(to, 0, e.len);
		if (err)
			return err;
		to += e.len;
		guest_off += e.len;
		inside -= e.len;
	}
	return 0;
}

int head_read(struct head *head, void *buf, size_t len, uint64_t guest_off)
{
	pthread_rwlock_rdlock(&head->gate);
	int err = read_range(head, buf, len, guest_off);
	pthread_rwlock_unlock(&head->gate);
	return err;
}

int head_map(struct head *head, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	pthread_rwlock_rdlock(&head->gate);
	uint64_t end = head_virtual_size(head);
	struct extent e = {.guest_off = guest_off, .len = len, .kind = EXTENT_ZERO};
	int err = 0;
	if (guest_off < end)
		err = lookup(head, guest_off, min_u64(len, end - guest_off), &e);
	if (!err && e.kind == EXTENT_UNALLOCATED) {
		e.kind = EXTENT_ZERO;
		if (head->below)
			err = view_map(head->below, guest_off, e.len, &e);
	}
	pthread_rwlock_unlock(&head->gate);
	*ret = e;
	return err;
}

/* --- writing --------------------------------------------------------------------------------------------------------------- */

/* Guest bytes inside one cluster that are to be written. */
struct piece {
	uint64_t guest_off;
	const char *buf;
	size_t len;
};

static uint32_t bits_between(unsigned first, unsigned end)
{
	return (uint32_t)(((1ull << end) - 1) & ~((1ull << first) - 1));
}

/* Subclusters that the piece touches. */
static uint32_t touched(const struct head *head, uint64_t guest_off, uint64_t len)
{
	uint64_t in = guest_off & (cluster_size_of(head) - 1);
	unsigned bits = head->header.geo.subcluster_bits;
	return bits_between((unsigned)(in >> bits), (unsigned)((in + len - 1) >> bits) + 1);
}

/* Subclusters that it covers from end to end. */
static uint32_t covered(const struct head *head, uint64_t guest_off, uint64_t len)
{
	uint64_t in = guest_off & (cluster_size_of(head) - 1);
	unsigned bits = head->header.geo.subcluster_bits;
	unsigned first = (unsigned)((in + subcluster_size_of(head) - 1) >> bits), end = (unsigned)((in + len) >> bits);
	return first < end ? bits_between(first, end) : 0;
}

static bool all_zero(const char *p, size_t len)
{
	return !len || (!*p && memcmp(p, p + 1, len - 1) == 0);
}

static const char *subcluster_bytes(const struct head *head, const struct piece *piece, unsigned sc)
{
	uint64_t base = piece->guest_off & ~(cluster_size_of(head) - 1);
	return piece->buf + (base + ((uint64_t)sc << head->header.geo.subcluster_bits) - piece->guest_off);
}

/* Of the subclusters that PIECE covers and that hold nothing yet, those to which it would give zeros only. */
static uint32_t find_zeros(const struct head *head, const struct piece *piece, const struct cluster_state *state)
{
	uint32_t candidates = covered(head, piece->guest_off, piece->len) & ~state->allocated;
	uint32_t zeros = 0;
	for (unsigned sc = 0; sc < QCOW2_SUBCLUSTERS; sc++)
		if (candidates & 1u << sc && all_zero(subcluster_bytes(head, piece, sc), (size_t)subcluster_size_of(head)))
			zeros |= 1u << sc;
	return zeros;
}

static bool equals_below(struct head *head, const struct piece *piece)
{
	auto_free char *below = malloc(piece->len);
	return below && read_below(head, below, piece->len, piece->guest_off) == 0 && memcmp(below, piece->buf, piece->len) == 0;
}

/* W3 for the subclusters [FIRST, END), all of them to be written: with what surrounds the piece in the first and last of them, where that
 * isn't in the host cluster yet. */
static int write_run(struct head *head, const struct piece *piece, const struct cluster_state *state, unsigned first, unsigned end)
{
	uint64_t base = piece->guest_off & ~(cluster_size_of(head) - 1);
	unsigned bits = head->header.geo.subcluster_bits;
	uint64_t run_start = base + ((uint64_t)first << bits), run_end = base + ((uint64_t)end << bits);
	uint64_t start = run_start > piece->guest_off ? run_start : piece->guest_off;
	uint64_t stop = min_u64(run_end, piece->guest_off + piece->len);
	const char *data = piece->buf + (start - piece->guest_off);
	bool fill_front = start > run_start && !(state->allocated & 1u << first);
	bool fill_back = stop < run_end && !(state->allocated & 1u << (end - 1));
	if (!fill_front && !fill_back)
		return file_write(head->fd, data, stop - start, state->host_off + (start - base));
	uint64_t from = fill_front ? run_start : start, to = fill_back ? run_end : stop;
	auto_free char *filled = malloc(to - from);
	if (!filled)
		return -ENOMEM;
	int err = fill_front ? read_range(head, filled, start - from, from) : 0;
	if (!err && fill_back)
		err = read_range(head, filled + (stop - from), to - stop, stop);
	memcpy(filled + (start - from), data, stop - start);
	return err ? err : file_write(head->fd, filled, to - from, state->host_off + (from - base));
}

static int write_runs(struct head *head, const struct piece *piece, const struct cluster_state *state, uint32_t to_write)
{
	int err = 0;
	for (unsigned sc = 0; sc < QCOW2_SUBCLUSTERS && !err;) {
		unsigned end = sc;
		while (end < QCOW2_SUBCLUSTERS && to_write & 1u << end)
			end++;
		if (end > sc)
			err = write_run(head, piece, state, sc, end);
		sc = end + 1;
	}
	return err;
}

static int alloc_cluster(struct head *head, uint64_t *ret_host_off)
{
	bool fresh;
	pthread_mutex_lock(&head->lock);
	int err = space_alloc(&head->space, ret_host_off, &fresh);
	pthread_mutex_unlock(&head->lock);
	return err;
}

/* The cluster is claimed. */
static int write_allocating(struct head *head, const struct piece *piece, struct cluster_state state)
{
	uint32_t all = touched(head, piece->guest_off, piece->len);
	if (head->comparing && !((state.allocated | state.zero) & all) && equals_below(head, piece))
		return 0;
	uint32_t zeros = find_zeros(head, piece, &state);
	uint32_t to_write = all & ~zeros;
	uint32_t new_zeros = head->below ? zeros & ~state.zero : 0; /* with nothing beneath U is zeros already */
	if (!to_write && !new_zeros)
		return 0;
	int err = head_mark_dirty(head);
	bool is_new = to_write && !state.host_off;
	if (!err && is_new)
		err = alloc_cluster(head, &state.host_off);
	if (err)
		return err;
	err = write_runs(head, piece, &state, to_write);
	state.allocated |= to_write;
	state.zero = (state.zero & ~to_write) | new_zeros;
	if (!err)
		err = state_set(head, piece->guest_off, &state);
	if (err && is_new) {
		pthread_mutex_lock(&head->lock);
		space_release(&head->space, state.host_off);
		pthread_mutex_unlock(&head->lock);
	}
	return err;
}

static int write_piece(struct head *head, const struct piece *piece)
{
	struct busy_cluster busy;
	struct cluster_state state = {0};
	bool held = false;
	int err = cluster_claim(head, piece->guest_off, touched(head, piece->guest_off, piece->len), &busy, &state, &held);
	if (err)
		return err;
	if (!held)
		return file_write(head->fd, piece->buf, piece->len, state.host_off + (piece->guest_off & (cluster_size_of(head) - 1)));
	err = write_allocating(head, piece, state);
	cluster_release(head, &busy);
	return err;
}

static int write_range(struct head *head, const void *buf, size_t len, uint64_t guest_off)
{
	int err = 0;
	for (size_t done = 0; done < len && !err;) {
		uint64_t at = guest_off + done;
		struct piece piece = {at, (const char *)buf + done, (size_t)min_u64(len - done, to_cluster_end(head, at))};
		err = write_piece(head, &piece);
		done += piece.len;
	}
	return err;
}

/* --- zeros -------------------------------------------------------------------------------------------------------------------- */

/* Why bytes become zeros. CUT: the disk ends before them, so what lies beneath need not be hidden now. SHARE: not zeros at all
 * but what lies beneath. */
enum zero_mode { ZERO_VISIBLY, ZERO_CUT, ZERO_SHARE };

/* Whole subclusters of one cluster. */
static int drop_subclusters(struct head *head, uint64_t guest_off, uint64_t len, enum zero_mode mode)
{
	uint32_t all = covered(head, guest_off, len);
	struct busy_cluster busy;
	struct cluster_state state = {0};
	bool held = false;
	int err = head_mark_dirty(head);
	if (!err)
		err = cluster_claim(head, guest_off, 0, &busy, &state, &held);
	if (err)
		return err;
	uint32_t before_allocated = state.allocated, before_zero = state.zero;
	uint64_t base = guest_off & ~(cluster_size_of(head) - 1);
	for (unsigned sc = 0; sc < QCOW2_SUBCLUSTERS; sc++) {
		uint64_t host_off = state.host_off + ((uint64_t)sc << head->header.geo.subcluster_bits);
		/* Before or after the table knows: a hole in an allocated subcluster is zeros as well. */
		if (all & state.allocated & 1u << sc)
			fallocate(head->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)host_off, (off_t)subcluster_size_of(head));
	}
	uint32_t hide = mode == ZERO_VISIBLY ? all : mode == ZERO_CUT ? all & state.allocated : 0;
	state.allocated &= ~all;
	state.zero = mode == ZERO_SHARE ? state.zero & ~all : state.zero | (head->below ? hide : 0);
	if (state.allocated != before_allocated || state.zero != before_zero)
		err = state_set(head, base, &state);
	cluster_release(head, &busy);
	return err;
}

/* Less than a subcluster. */
static int zero_part(struct head *head, uint64_t guest_off, size_t len, enum zero_mode mode)
{
	struct cluster_state state = {0};
	pthread_mutex_lock(&head->lock);
	int err = get_state_locked(head, guest_off, &state);
	pthread_mutex_unlock(&head->lock);
	uint32_t bit = touched(head, guest_off, len);
	bool allocated = state.allocated & bit, zero = state.zero & bit;
	if (err || (zero && mode != ZERO_SHARE) || (!allocated && !zero && (mode != ZERO_VISIBLY || !head->below)))
		return err;
	auto_free char *bytes = calloc(1, len);
	if (!bytes)
		return -ENOMEM;
	if (mode == ZERO_SHARE)
		err = read_below(head, bytes, len, guest_off);
	return err ? err : write_range(head, bytes, len, guest_off);
}

/* One cluster's worth: the whole subclusters and what sticks out before and behind them. */
static int zero_in_cluster(struct head *head, uint64_t guest_off, uint64_t len, enum zero_mode mode)
{
	uint64_t sc_size = subcluster_size_of(head), end = guest_off + len;
	uint64_t first = min_u64(round_up(guest_off, sc_size), end), last = end / sc_size * sc_size;
	if (last < first)
		last = first;
	int err = 0;
	if (guest_off < first)
		err = zero_part(head, guest_off, (size_t)(first - guest_off), mode);
	if (!err && first < last)
		err = drop_subclusters(head, first, last - first, mode);
	if (!err && last < end)
		err = zero_part(head, last, (size_t)(end - last), mode);
	return err;
}

/* How much from GUEST_OFF on needs nothing done: there is no L2 table, and what lies beneath is zeros or need not be hidden. */
static int skip_len(struct head *head, uint64_t guest_off, uint64_t len, enum zero_mode mode, uint64_t *ret)
{
	pthread_mutex_lock(&head->lock);
	bool has_l2 = tables_has_l2(head, guest_off);
	pthread_mutex_unlock(&head->lock);
	*ret = 0;
	if (has_l2)
		return 0;
	unsigned span_bits = qcow2_l2_span_bits(&head->header.geo);
	uint64_t span = min_u64(len, (((guest_off >> span_bits) + 1) << span_bits) - guest_off);
	if (mode != ZERO_VISIBLY || !head->below) {
		*ret = span;
		return 0;
	}
	struct extent e;
	int err = view_map(head->below, guest_off, span, &e);
	if (!err && e.kind == EXTENT_ZERO)
		*ret = e.len;
	return err;
}

static int zero_range(struct head *head, uint64_t guest_off, uint64_t len, enum zero_mode mode)
{
	while (len) {
		uint64_t n = 0;
		int err = skip_len(head, guest_off, len, mode, &n);
		if (!err && !n) {
			n = min_u64(len, to_cluster_end(head, guest_off));
			err = zero_in_cluster(head, guest_off, n, mode);
		}
		if (err)
			return err;
		guest_off += n;
		len -= n;
	}
	return 0;
}

/* --- size ------------------------------------------------------------------------------------------------------------------------ */

static int check_size(const struct head *head, uint64_t virtual_size)
{
	return virtual_size > (1ull << 62) || qcow2_l1_needed(&head->header.geo, virtual_size) > head->header.l1_size ? -EFBIG : 0;
}

static void put_size(struct head *head, uint64_t virtual_size)
{
	pthread_mutex_lock(&head->lock);
	head->virtual_size = virtual_size;
	head->size_dirty = true;
	pthread_mutex_unlock(&head->lock);
}

/* On disk a disk is whole sectors: the bytes from its end up to there are zeros. (They are filled up from what is seen below
 * the new end: so that is set first.) */
static int set_size(struct head *head, uint64_t virtual_size)
{
	uint64_t old = head_virtual_size(head);
	put_size(head, virtual_size);
	int err = virtual_size % 512 ? zero_range(head, virtual_size, round_up(virtual_size, 512) - virtual_size, ZERO_VISIBLY) : 0;
	if (err)
		put_size(head, old);
	return err;
}

/* Zeros between the end and GUEST_OFF. */
static int grow_to(struct head *head, uint64_t guest_off)
{
	uint64_t end = head_virtual_size(head);
	return guest_off > end ? zero_range(head, end, guest_off - end, ZERO_VISIBLY) : 0;
}

static int write_growing(struct head *head, const void *buf, size_t len, uint64_t guest_off)
{
	pthread_rwlock_wrlock(&head->gate);
	uint64_t end = guest_off + len;
	int err = check_size(head, end);
	if (!err)
		err = grow_to(head, guest_off);
	if (!err)
		err = write_range(head, buf, len, guest_off);
	if (!err && end > head_virtual_size(head))
		err = set_size(head, end);
	pthread_rwlock_unlock(&head->gate);
	return err;
}

static int flush_if_many_dirty(struct head *head)
{
	pthread_mutex_lock(&head->lock);
	bool many = head->nr_dirty > L2_DIRTY_MAX;
	pthread_mutex_unlock(&head->lock);
	return many ? head_flush(head) : 0;
}

int head_write(struct head *head, const void *buf, size_t len, uint64_t guest_off)
{
	if (len > UINT64_MAX - guest_off)
		return -EFBIG;
	pthread_rwlock_rdlock(&head->gate);
	bool inside = guest_off + len <= head_virtual_size(head);
	int err = inside ? write_range(head, buf, len, guest_off) : 0;
	pthread_rwlock_unlock(&head->gate);
	if (!inside)
		err = write_growing(head, buf, len, guest_off);
	return err ? err : flush_if_many_dirty(head);
}

int head_discard(struct head *head, uint64_t guest_off, uint64_t len)
{
	pthread_rwlock_rdlock(&head->gate);
	uint64_t end = head_virtual_size(head);
	len = guest_off < end ? min_u64(len, end - guest_off) : 0;
	if (guest_off + len == end) /* what lies behind the end in its subcluster is zeros */
		len = round_up(end, subcluster_size_of(head)) - guest_off;
	int err = zero_range(head, guest_off, len, ZERO_VISIBLY);
	pthread_rwlock_unlock(&head->gate);
	return err ? err : flush_if_many_dirty(head);
}

int head_resize(struct head *head, uint64_t virtual_size)
{
	pthread_rwlock_wrlock(&head->gate);
	uint64_t end = head_virtual_size(head);
	int err = check_size(head, virtual_size);
	if (!err && !virtual_size && end) {
		err = head_rebuild(head, &(struct overlay_spec){0}, NULL);
	} else if (!err && virtual_size != end) {
		if (virtual_size < end)
			err = zero_range(head, virtual_size, round_up(end, subcluster_size_of(head)) - virtual_size, ZERO_CUT);
		else
			err = grow_to(head, virtual_size);
		if (!err)
			err = set_size(head, virtual_size);
	}
	pthread_rwlock_unlock(&head->gate);
	return err;
}

int head_adopt(struct head *head, struct view *view, const struct overlay_spec *spec)
{
	pthread_rwlock_wrlock(&head->gate);
	uint64_t old_end = head_virtual_size(head);
	int err = head->below || !tables_are_empty(head) ? -EINVAL : head_rebuild(head, spec, view);
	if (!err)
		head->comparing = true;
	if (!err && old_end > spec->virtual_size) {
		err = grow_to(head, old_end);
		if (!err)
			err = set_size(head, old_end);
	}
	pthread_rwlock_unlock(&head->gate);
	return err;
}

int head_share(struct head *head, uint64_t guest_off, uint64_t len)
{
	pthread_rwlock_wrlock(&head->gate);
	uint64_t old_end = head_virtual_size(head), end = guest_off + len;
	int err = check_size(head, end);
	if (!err)
		err = grow_to(head, guest_off);
	if (!err) /* behind the new end nothing is seen */
		err = zero_range(head, guest_off, (end >= old_end ? round_up(end, subcluster_size_of(head)) : end) - guest_off, ZERO_SHARE);
	if (!err && end > old_end)
		err = set_size(head, end);
	pthread_rwlock_unlock(&head->gate);
	return err;
}
