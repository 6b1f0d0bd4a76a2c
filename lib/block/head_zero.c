/* Zeros, and the space that they give back. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "base/mem.h"
#include "block/head_priv.h"
#include "block/qcow2_format.h"

/* Holes where the subclusters SCS lie. Before or after the table knows: a hole in an allocated subcluster is zeros as well. */
static void punch(const struct head *head, uint64_t host_off, uint32_t scs)
{
	unsigned bits = head->header.geo.subcluster_bits;
	for (unsigned sc = 0, end; sc < QCOW2_SUBCLUSTERS; sc = end + 1) {
		for (end = sc; end < QCOW2_SUBCLUSTERS && scs & 1u << end;)
			end++;
		if (end > sc)
			fallocate(head->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(host_off + ((uint64_t)sc << bits)),
				  (off_t)(end - sc) << bits);
	}
}

/* Whole subclusters of one cluster. */
static int drop_subclusters(struct head *head, uint64_t guest_off, uint64_t len, enum zero_mode mode)
{
	uint32_t all = subclusters_covered(head, guest_off, len);
	struct span span;
	int err = head_mark_dirty(head);
	if (err)
		return err;
	pthread_mutex_lock(&head->lock);
	err = span_claim_locked(head, &span, guest_off, len, true);
	pthread_mutex_unlock(&head->lock);
	if (err)
		return err;
	struct cluster_state *state = &span.states[0];
	/* What is shared isn't zeros: a hole would be seen after a crash, as long as the table on disk doesn't know. */
	if (mode != ZERO_SHARE)
		punch(head, state->host_off, all & state->allocated);
	uint32_t hide = mode == ZERO_VISIBLY ? all : mode == ZERO_CUT ? all & state->allocated : 0;
	state->allocated &= ~all;
	state->zero = mode == ZERO_SHARE ? state->zero & ~all : state->zero | (head->below ? hide : 0);
	pthread_mutex_lock(&head->lock);
	err = span_release_locked(head, &span, 0);
	pthread_mutex_unlock(&head->lock);
	return err;
}

/* The state of the cluster of GUEST_OFF, once nobody changes it. */
static int settled_state(struct head *head, uint64_t guest_off, struct cluster_state *ret)
{
	struct span span;
	pthread_mutex_lock(&head->lock);
	int err = span_claim_locked(head, &span, guest_off, 1, false);
	if (!err)
		*ret = span.states[0];
	if (!err && span.held)
		err = span_release_locked(head, &span, 0);
	pthread_mutex_unlock(&head->lock);
	return err;
}

/* Less than a subcluster. */
static int zero_part(struct head *head, uint64_t guest_off, size_t len, enum zero_mode mode)
{
	struct cluster_state state = {0};
	int err = settled_state(head, guest_off, &state);
	uint32_t bit = subclusters_touched(head, guest_off, len);
	bool allocated = state.allocated & bit, zero = state.zero & bit;
	if (err || (zero && mode != ZERO_SHARE) || (!allocated && !zero && (mode != ZERO_VISIBLY || !head->below)))
		return err;
	auto_free char *bytes = calloc(1, len);
	if (!bytes)
		return -ENOMEM;
	if (mode == ZERO_SHARE)
		err = head_read_below(head, bytes, len, guest_off);
	return err ? err : overlay_write(head, bytes, len, guest_off);
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
	size_t nr_pulled = atomic_load(&head->nr_pulled);
	int err = view_map(head->below, guest_off, span, &e);
	if (!err && e.kind == EXTENT_ZERO && nr_pulled) /* also when these are gone */
		err = view_map_beneath(head->below, nr_pulled, guest_off, e.len, &e);
	if (!err && e.kind == EXTENT_ZERO)
		*ret = e.len;
	return err;
}

int overlay_zero(struct head *head, uint64_t guest_off, uint64_t len, enum zero_mode mode)
{
	while (len) {
		uint64_t n = 0;
		int err = skip_len(head, guest_off, len, mode, &n);
		if (!err && !n) {
			n = min_u64(len, to_cluster_end(head, guest_off));
			err = zero_in_cluster(head, guest_off, n, mode);
			/* Dirty pages stay in memory: terabytes would fill it. */
			if (!err && atomic_load(&head->nr_dirty) > L2_DIRTY_MAX)
				err = head_changed(head, 0);
		}
		if (err)
			return err;
		guest_off += n;
		len -= n;
	}
	return 0;
}

int head_discard(struct head *head, uint64_t guest_off, uint64_t len)
{
	pthread_rwlock_rdlock(&head->gate);
	uint64_t end = head_virtual_size(head);
	len = guest_off < end ? min_u64(len, end - guest_off) : 0;
	if (guest_off + len == end) /* what lies behind the end in its subcluster is zeros */
		len = round_up(end, subcluster_size_of(head)) - guest_off;
	int err = len ? head->kind->zero(head, guest_off, len, ZERO_VISIBLY) : 0;
	pthread_rwlock_unlock(&head->gate);
	return head_changed(head, err);
}
