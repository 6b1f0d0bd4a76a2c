/* Spans: who may change the states of which clusters. */
#include <errno.h>

#include "block/head_priv.h"
#include "block/qcow2_format.h"
#include "block/qcow2_l2.h"

static uint32_t bits_between(unsigned first, unsigned end)
{
	return (uint32_t)(((1ull << end) - 1) & ~((1ull << first) - 1));
}

uint32_t subclusters_touched(const struct head *head, uint64_t guest_off, uint64_t len)
{
	uint64_t in = guest_off & (cluster_size_of(head) - 1);
	unsigned bits = head->header.geo.subcluster_bits;
	return bits_between((unsigned)(in >> bits), (unsigned)((min_u64(in + len, cluster_size_of(head)) - 1) >> bits) + 1);
}

uint32_t subclusters_covered(const struct head *head, uint64_t guest_off, uint64_t len)
{
	uint64_t in = guest_off & (cluster_size_of(head) - 1);
	unsigned bits = head->header.geo.subcluster_bits;
	unsigned first = (unsigned)((in + subcluster_size_of(head) - 1) >> bits);
	unsigned end = (unsigned)(min_u64(in + len, cluster_size_of(head)) >> bits);
	return first < end ? bits_between(first, end) : 0;
}

static struct cluster_state state_get(const struct head *head, const struct span *span, unsigned i)
{
	if (!span->page)
		return (struct cluster_state){0};
	struct qcow2_l2_entry l2 = qcow2_l2_get(&head->header.geo, span->page->words + span->word, i);
	return (struct cluster_state){l2.entry & QCOW2_OFFSET_MASK, (uint32_t)l2.bitmap, (uint32_t)(l2.bitmap >> 32)};
}

static bool state_equal(const struct cluster_state *a, const struct cluster_state *b)
{
	return a->host_off == b->host_off && a->allocated == b->allocated && a->zero == b->zero;
}

uint64_t span_fit(const struct head *head, uint64_t guest_off, uint64_t len)
{
	/* All entries of a page, unless they are more than a span holds. */
	uint64_t nr = min_u64(SPAN_MAX, L2_PAGE_WORDS / qcow2_l2_words(&head->header.geo));
	uint64_t bytes = nr << head->header.geo.cluster_bits;
	return min_u64(len, bytes - (guest_off & (bytes - 1)));
}

static bool is_busy(const struct head *head, const struct span *span)
{
	for (const struct list *node = head->busy.next; node != &head->busy; node = node->next) {
		const struct span *other = list_entry(node, struct span, link);
		if (span->first < other->first + other->nr && other->first < span->first + span->nr)
			return true;
	}
	return false;
}

/* Whether all that [GUEST_OFF, +LEN) touches is allocated. */
static bool is_allocated(const struct head *head, const struct span *span, uint64_t guest_off, uint64_t len)
{
	for (unsigned i = 0; i < span->nr; i++) {
		uint32_t wanted = subclusters_touched(head, guest_off, len);
		if ((span->states[i].allocated & wanted) != wanted)
			return false;
		uint64_t n = min_u64(len, to_cluster_end(head, guest_off));
		guest_off += n;
		len -= n;
	}
	return true;
}

int span_claim_locked(struct head *head, struct span *span, uint64_t guest_off, uint64_t len, bool always)
{
	unsigned bits = head->header.geo.cluster_bits;
	span->first = guest_off >> bits;
	span->nr = (unsigned)(((guest_off + len - 1) >> bits) - span->first) + 1;
	span->held = false;
	span->new_hosts = 0;
	for (;;) {
		while (is_busy(head, span))
			tables_wait_locked(head);
		int err = head->failed;
		if (!err)
			err = tables_get_locked(head, guest_off, false, &span->page, &span->word);
		if (err)
			return err;
		if (!is_busy(head, span)) /* the lock may have been dropped to read the table */
			break;
		tables_put_locked(span->page);
	}
	for (unsigned i = 0; i < span->nr; i++)
		span->states[i] = state_get(head, span, i);
	span->held = always || !is_allocated(head, span, guest_off, len);
	if (span->held)
		list_push(&head->busy, &span->link);
	else
		tables_put_locked(span->page);
	return 0;
}

static int make_table_locked(struct head *head, struct span *span)
{
	int err = 0;
	if (!span->page)
		err = tables_get_locked(head, span->first << head->header.geo.cluster_bits, true, &span->page, &span->word);
	return err ? err : tables_claim_locked(head, span->page);
}

int span_alloc_locked(struct head *head, struct span *span, uint64_t wanted)
{
	int err = make_table_locked(head, span);
	for (unsigned i = 0; i < span->nr && !err; i++) {
		if (!(wanted & 1ull << i) || span->states[i].host_off)
			continue;
		bool fresh;
		err = space_alloc(&head->space, &span->states[i].host_off, &fresh);
		if (!err)
			span->new_hosts |= 1ull << i;
	}
	return err;
}

static void put_states_locked(struct head *head, struct span *span)
{
	for (unsigned i = 0; i < span->nr; i++) {
		const struct cluster_state *state = &span->states[i];
		struct cluster_state old = state_get(head, span, i);
		if (state_equal(state, &old))
			continue;
		be64 *words = span->page->words + span->word + 2 * (size_t)i;
		words[0] = be64_make(state->host_off ? state->host_off | QCOW2_COPIED : 0);
		words[1] = be64_make((uint64_t)state->zero << 32 | state->allocated);
		tables_dirty_locked(head, span->page);
	}
}

static void give_back_locked(struct head *head, const struct span *span)
{
	for (unsigned i = 0; i < span->nr; i++)
		if (span->new_hosts & 1ull << i)
			space_release(&head->space, span->states[i].host_off);
}

int span_release_locked(struct head *head, struct span *span, int err)
{
	bool differs = false;
	/* A page that has no space yet is all zeros: none of its clusters is in a state. */
	for (unsigned i = 0; i < span->nr && !differs && !(span->page && span->page->has_space); i++)
		differs = span->states[i].allocated || span->states[i].zero;
	if (!err && differs)
		err = make_table_locked(head, span);
	if (!err && span->page)
		put_states_locked(head, span);
	if (err)
		give_back_locked(head, span);
	tables_put_locked(span->page);
	list_remove(&span->link);
	tables_wake_locked(head);
	return err;
}
