/* Guest reads and writes: steps W1 to W4 of head_priv.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/head_priv.h"
#include "block/qcow2_format.h"
#include "block/qcow2_l2.h"

#define RUNS_MAX 32u /* found under one hold of the lock */

/* --- reading -------------------------------------------------------------------------------------------------------------- */

/* The first run of the overlay alone. */
static int lookup_locked(struct head *head, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	const struct qcow2_geometry *geo = &head->header.geo;
	struct l2_page *page = NULL;
	unsigned word = 0;
	struct extent e = {.kind = EXTENT_UNALLOCATED};
	int err = tables_get_locked(head, guest_off, false, &page, &word);
	if (!err && page)
		err = qcow2_l2_run(geo, page->words + word, (L2_PAGE_WORDS - word) / 2, guest_off & (cluster_size_of(head) - 1), &e);
	else
		e.len = (1ull << qcow2_l2_span_bits(geo)) - (guest_off & ((1ull << qcow2_l2_span_bits(geo)) - 1));
	tables_put_locked(page);
	e.guest_off = guest_off;
	e.len = min_u64(e.len, len);
	*ret = e;
	return err;
}

static bool continues(const struct extent *a, const struct extent *b)
{
	return a->kind == b->kind && (a->kind != EXTENT_DATA || a->host_off + a->len == b->host_off);
}

/* The first runs of the overlay alone, each as long as can be. */
static int lookup_runs(struct head *head, uint64_t guest_off, uint64_t len, struct extent *runs, unsigned *ret_nr)
{
	unsigned nr = 0;
	int err = 0;
	pthread_mutex_lock(&head->lock);
	while (len) {
		struct extent e = {0};
		err = lookup_locked(head, guest_off, len, &e);
		if (err)
			break;
		if (nr && continues(&runs[nr - 1], &e))
			runs[nr - 1].len += e.len;
		else if (nr < RUNS_MAX)
			runs[nr++] = e;
		else
			break;
		guest_off += e.len;
		len -= e.len;
	}
	pthread_mutex_unlock(&head->lock);
	*ret_nr = nr;
	return nr ? 0 : err; /* what was found first is read first */
}

int head_read_below(struct head *head, void *buf, size_t len, uint64_t guest_off)
{
	if (head->below)
		return view_read(head->below, buf, len, guest_off);
	memset(buf, 0, len);
	return 0;
}

static int read_run(struct head *head, const struct extent *run, void *buf)
{
	if (run->kind == EXTENT_DATA)
		return file_read_padded(head->fd, buf, run->len, run->host_off);
	if (run->kind == EXTENT_UNALLOCATED)
		return head_read_below(head, buf, run->len, run->guest_off);
	memset(buf, 0, run->len);
	return 0;
}

int overlay_read(struct head *head, void *buf, size_t len, uint64_t guest_off)
{
	uint64_t end = head_virtual_size(head);
	size_t inside = guest_off < end ? (size_t)min_u64(len, end - guest_off) : 0;
	memset((char *)buf + inside, 0, len - inside);
	char *to = buf;
	while (inside) {
		struct extent runs[RUNS_MAX];
		unsigned nr = 0;
		int err = lookup_runs(head, guest_off, inside, runs, &nr);
		for (unsigned i = 0; i < nr && !err; i++) {
			err = read_run(head, &runs[i], to);
			to += runs[i].len;
			guest_off += runs[i].len;
			inside -= runs[i].len;
		}
		if (err)
			return err;
	}
	return 0;
}

int head_read(struct head *head, void *buf, size_t len, uint64_t guest_off)
{
	pthread_rwlock_rdlock(&head->gate);
	uint64_t end = head_virtual_size(head);
	size_t inside = guest_off < end ? (size_t)min_u64(len, end - guest_off) : 0;
	memset((char *)buf + inside, 0, len - inside);
	int err = inside ? head->kind->read(head, buf, inside, guest_off) : 0;
	pthread_rwlock_unlock(&head->gate);
	return err;
}

int overlay_map(struct head *head, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	pthread_mutex_lock(&head->lock);
	int err = lookup_locked(head, guest_off, len, ret);
	pthread_mutex_unlock(&head->lock);
	return err;
}

int head_map(struct head *head, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	pthread_rwlock_rdlock(&head->gate);
	uint64_t end = head_virtual_size(head);
	struct extent e = {.guest_off = guest_off, .len = len, .kind = EXTENT_ZERO};
	int err = 0;
	if (guest_off < end)
		err = head->kind->map(head, guest_off, min_u64(len, end - guest_off), &e);
	if (!err && e.kind == EXTENT_UNALLOCATED) {
		e.kind = EXTENT_ZERO;
		if (head->below)
			err = view_map(head->below, guest_off, e.len, &e);
	}
	pthread_rwlock_unlock(&head->gate);
	*ret = e;
	return err;
}

/* --- what a write means for each cluster ------------------------------------------------------------------------------- */

/* Guest bytes inside one span that are to be written, and what each cluster makes of them. */
struct write {
	uint64_t guest_off;
	const char *buf;
	size_t len;
	uint32_t zeros[SPAN_MAX];	/* subclusters that it covers with zeros */
	uint32_t to_write[SPAN_MAX];	/* subclusters that are written */
	uint32_t becomes_zero[SPAN_MAX]; /* Z instead */
};

/* The part of WRITE that lies in cluster I of SPAN. */
static void clip(const struct head *head, const struct write *write, const struct span *span, unsigned i, uint64_t *ret_off, size_t *ret_len)
{
	uint64_t start = (span->first + i) << head->header.geo.cluster_bits, end = start + cluster_size_of(head);
	*ret_off = start > write->guest_off ? start : write->guest_off;
	*ret_len = (size_t)(min_u64(end, write->guest_off + write->len) - *ret_off);
}

bool head_is_zeros(const char *p, size_t len)
{
	return !len || (!*p && memcmp(p, p + 1, len - 1) == 0);
}

/* Looked for without the lock, and before it is known whether it matters: data mostly isn't zero at its first byte. */
static void find_zeros(const struct head *head, struct write *write)
{
	size_t sc_size = (size_t)subcluster_size_of(head);
	unsigned bits = head->header.geo.subcluster_bits;
	uint64_t first_cluster = write->guest_off >> head->header.geo.cluster_bits;
	uint64_t last_cluster = (write->guest_off + write->len - 1) >> head->header.geo.cluster_bits;
	memset(write->zeros, 0, (size_t)(last_cluster - first_cluster + 1) * sizeof *write->zeros);
	uint64_t end = (write->guest_off + write->len) & ~(uint64_t)(sc_size - 1);
	for (uint64_t at = round_up(write->guest_off, sc_size); at < end; at += sc_size)
		if (head_is_zeros(write->buf + (at - write->guest_off), sc_size))
			write->zeros[(at >> head->header.geo.cluster_bits) - first_cluster] |= 1u << (at >> bits) % QCOW2_SUBCLUSTERS;
}

/* Subclusters that hold nothing yet don't get zeros. Returns the clusters that need a host cluster, a bit each. */
static uint64_t plan(const struct head *head, struct write *write, const struct span *span)
{
	uint64_t wanted = 0;
	for (unsigned i = 0; i < span->nr; i++) {
		uint64_t off;
		size_t len;
		clip(head, write, span, i, &off, &len);
		const struct cluster_state *state = &span->states[i];
		uint32_t zeros = write->zeros[i] & ~state->allocated;
		write->to_write[i] = subclusters_touched(head, off, len) & ~zeros;
		write->becomes_zero[i] = head->below ? zeros & ~state->zero : 0; /* with nothing beneath U is zeros already */
		if (write->to_write[i])
			wanted |= 1ull << i;
	}
	return wanted;
}

/* Clusters whose bytes are those that lie beneath keep them. */
static void leave_what_equals(struct head *head, struct write *write, const struct span *span, uint64_t *wanted)
{
	auto_free char *below = malloc(min_u64(write->len, cluster_size_of(head)));
	for (unsigned i = 0; i < span->nr && below; i++) {
		uint64_t off;
		size_t len;
		clip(head, write, span, i, &off, &len);
		const struct cluster_state *state = &span->states[i];
		if ((state->allocated | state->zero) & subclusters_touched(head, off, len))
			continue;
		if (head_read_below(head, below, len, off) || memcmp(below, write->buf + (off - write->guest_off), len) != 0)
			continue;
		write->to_write[i] = write->becomes_zero[i] = 0;
		*wanted &= ~(1ull << i);
	}
}

/* --- W3 ------------------------------------------------------------------------------------------------------------------- */

/* Bytes on their way to the file: what continues them goes along. */
struct pending {
	const char *data;
	uint64_t host_off;
	size_t len;
};

static int pending_flush(const struct head *head, struct pending *pending)
{
	int err = pending->len ? file_write(head->fd, pending->data, pending->len, pending->host_off) : 0;
	pending->len = 0;
	return err;
}

static int pending_add(const struct head *head, struct pending *pending, const char *data, size_t len, uint64_t host_off)
{
	if (pending->len && pending->data + pending->len == data && pending->host_off + pending->len == host_off) {
		pending->len += len;
		return 0;
	}
	int err = pending_flush(head, pending);
	*pending = (struct pending){data, host_off, len};
	return err;
}

/* The subclusters [FIRST, END) of cluster I, all of them to be written: with what surrounds the write in the first and last of them,
 * where that isn't in the host cluster yet. */
static int write_run(struct head *head, const struct write *write, const struct span *span, unsigned i, unsigned first, unsigned end,
		     struct pending *pending)
{
	const struct cluster_state *state = &span->states[i];
	unsigned bits = head->header.geo.subcluster_bits;
	uint64_t base = (span->first + i) << head->header.geo.cluster_bits;
	uint64_t run_start = base + ((uint64_t)first << bits), run_end = base + ((uint64_t)end << bits);
	uint64_t start = run_start > write->guest_off ? run_start : write->guest_off;
	uint64_t stop = min_u64(run_end, write->guest_off + write->len);
	const char *data = write->buf + (start - write->guest_off);
	bool fill_front = start > run_start && !(state->allocated & 1u << first);
	bool fill_back = stop < run_end && !(state->allocated & 1u << (end - 1));
	if (!fill_front && !fill_back)
		return pending_add(head, pending, data, (size_t)(stop - start), state->host_off + (start - base));
	uint64_t from = fill_front ? run_start : start, to = fill_back ? run_end : stop;
	auto_free char *filled = malloc((size_t)(to - from));
	if (!filled)
		return -ENOMEM;
	int err = fill_front ? overlay_read(head, filled, (size_t)(start - from), from) : 0;
	if (!err && fill_back)
		err = overlay_read(head, filled + (stop - from), (size_t)(to - stop), stop);
	memcpy(filled + (start - from), data, (size_t)(stop - start));
	return err ? err : file_write(head->fd, filled, (size_t)(to - from), state->host_off + (from - base));
}

static int write_data(struct head *head, const struct write *write, const struct span *span)
{
	struct pending pending = {0};
	int err = 0;
	for (unsigned i = 0; i < span->nr; i++) {
		uint32_t left = write->to_write[i];
		while (left && !err) {
			unsigned first = (unsigned)__builtin_ctz(left);
			uint32_t rest = ~(left >> first);
			unsigned end = first + (rest ? (unsigned)__builtin_ctz(rest) : QCOW2_SUBCLUSTERS);
			err = write_run(head, write, span, i, first, end, &pending);
			left &= end < QCOW2_SUBCLUSTERS ? ~0u << end : 0;
		}
	}
	return err ? err : pending_flush(head, &pending);
}

/* --- writing ---------------------------------------------------------------------------------------------------------------- */

/* Whether an entry changes, or might. */
static bool changes_anything(const struct write *write, const struct span *span)
{
	uint32_t any = 0;
	for (unsigned i = 0; i < span->nr; i++)
		any |= write->to_write[i] | write->becomes_zero[i];
	return any != 0;
}

/* W1 and what else is done without the lock before clusters are allocated. */
static int prepare_locked(struct head *head, struct write *write, const struct span *span, uint64_t *wanted)
{
	if (!head->comparing && atomic_load(&head->is_dirty))
		return 0;
	pthread_mutex_unlock(&head->lock);
	if (head->comparing)
		leave_what_equals(head, write, span, wanted);
	int err = changes_anything(write, span) ? head_mark_dirty(head) : 0;
	pthread_mutex_lock(&head->lock);
	return err;
}

static void settle(const struct write *write, struct span *span)
{
	for (unsigned i = 0; i < span->nr; i++) {
		struct cluster_state *state = &span->states[i];
		state->allocated |= write->to_write[i];
		state->zero = (state->zero & ~write->to_write[i]) | write->becomes_zero[i];
	}
}

/* W1 and W2; lets go of the span if that fails. */
static int allocate_locked(struct head *head, struct write *write, struct span *span)
{
	uint64_t wanted = plan(head, write, span);
	if (!span->held)
		return 0;
	int err = prepare_locked(head, write, span, &wanted);
	if (!err && wanted)
		err = span_alloc_locked(head, span, wanted);
	return err ? span_release_locked(head, span, err) : 0;
}

static int write_span(struct head *head, struct write *write)
{
	struct span span;
	find_zeros(head, write);
	pthread_mutex_lock(&head->lock);
	int err = span_claim_locked(head, &span, write->guest_off, write->len, false);
	if (!err)
		err = allocate_locked(head, write, &span);
	pthread_mutex_unlock(&head->lock);
	if (err)
		return err;
	err = write_data(head, write, &span);
	if (!span.held)
		return err;
	settle(write, &span);
	pthread_mutex_lock(&head->lock);
	err = span_release_locked(head, &span, err);
	pthread_mutex_unlock(&head->lock);
	return err;
}

int overlay_write(struct head *head, const void *buf, size_t len, uint64_t guest_off)
{
	int err = 0;
	for (size_t done = 0; done < len && !err;) {
		struct write write;
		write.guest_off = guest_off + done;
		write.buf = (const char *)buf + done;
		write.len = (size_t)span_fit(head, write.guest_off, len - done);
		err = write_span(head, &write);
		done += write.len;
	}
	return err;
}

int head_changed(struct head *head, int err)
{
	atomic_fetch_add(&head->nr_changes, 1);
	return !err && atomic_load(&head->nr_dirty) > L2_DIRTY_MAX ? head_flush(head) : err;
}

int head_write(struct head *head, const void *buf, size_t len, uint64_t guest_off)
{
	if (len > UINT64_MAX - guest_off)
		return -EFBIG;
	pthread_rwlock_rdlock(&head->gate);
	bool inside = guest_off + len <= head_virtual_size(head);
	int err = inside ? head->kind->write(head, buf, len, guest_off) : 0;
	pthread_rwlock_unlock(&head->gate);
	if (!inside) {
		pthread_rwlock_wrlock(&head->gate);
		err = head->kind->write_growing(head, buf, len, guest_off);
		pthread_rwlock_unlock(&head->gate);
	}
	return head_changed(head, err);
}
