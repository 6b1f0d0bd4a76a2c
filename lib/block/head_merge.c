#include "block/merge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/head_priv.h"
#include "block/qcow2_format.h"

#define PIECE_MAX (1u << 20) /* for so long others wait for the clusters of a pull */

/* --- pull ----------------------------------------------------------------------------------------------------------------- */

/* A piece of a pull: what becomes of the subclusters that the head lacks. */
struct pull {
	struct span span;
	size_t nr_layers;
	uint64_t guest_off, len; /* whole subclusters */
	char *data;
	uint32_t to_write[SPAN_MAX], becomes_zero[SPAN_MAX];
};

static void mark(const struct head *head, struct pull *pull, uint64_t guest_off, uint64_t len, bool zero)
{
	while (len) {
		uint64_t n = min_u64(len, to_cluster_end(head, guest_off));
		uint64_t i = (guest_off >> head->header.geo.cluster_bits) - pull->span.first;
		uint32_t whole = zero ? subclusters_covered(head, guest_off, n) : 0;
		pull->becomes_zero[i] |= whole;
		pull->to_write[i] |= subclusters_touched(head, guest_off, n) & ~whole;
		guest_off += n;
		len -= n;
	}
}

/* What the pulled layers have at GUEST_OFF. EXTENT_UNALLOCATED also for zeros over zeros. */
static int map_pulled(struct head *head, size_t nr_layers, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	struct extent beneath;
	int err = view_map_top(head->below, nr_layers, guest_off, len, ret);
	if (err || ret->kind != EXTENT_ZERO)
		return err;
	err = view_map_beneath(head->below, nr_layers, guest_off, ret->len, &beneath);
	if (!err) {
		ret->len = beneath.len;
		ret->kind = beneath.kind == EXTENT_ZERO ? EXTENT_UNALLOCATED : EXTENT_ZERO;
	}
	return err;
}

/* [GUEST_OFF, END) is lacking. */
static int plan_run(struct head *head, struct pull *pull, uint64_t guest_off, uint64_t end)
{
	struct extent e;
	for (; guest_off < end; guest_off += e.len) {
		int err = map_pulled(head, pull->nr_layers, guest_off, end - guest_off, &e);
		if (err)
			return err;
		if (e.kind != EXTENT_UNALLOCATED)
			mark(head, pull, guest_off, e.len, e.kind == EXTENT_ZERO);
	}
	return 0;
}

/* The next run of set bits from FROM on: RET_END of it; its first, or QCOW2_SUBCLUSTERS. */
static unsigned next_run(uint32_t bits, unsigned from, unsigned *ret_end)
{
	while (from < QCOW2_SUBCLUSTERS && !(bits & 1u << from))
		from++;
	*ret_end = from;
	while (*ret_end < QCOW2_SUBCLUSTERS && bits & 1u << *ret_end)
		++*ret_end;
	return from;
}

static uint64_t place(const struct head *head, const struct pull *pull, unsigned i, unsigned sc)
{
	return ((pull->span.first + i) << head->header.geo.cluster_bits) + ((uint64_t)sc << head->header.geo.subcluster_bits);
}

/* The subclusters of cluster I of the piece. */
static uint32_t in_piece(const struct head *head, const struct pull *pull, unsigned i)
{
	uint64_t start = place(head, pull, i, 0), stop = start + cluster_size_of(head);
	if (start < pull->guest_off)
		start = pull->guest_off;
	return subclusters_touched(head, start, min_u64(stop, pull->guest_off + pull->len) - start);
}

static int plan_pull(struct head *head, struct pull *pull)
{
	for (unsigned i = 0; i < pull->span.nr; i++) {
		const struct cluster_state *state = &pull->span.states[i];
		uint32_t lacking = in_piece(head, pull, i) & ~(state->allocated | state->zero);
		for (unsigned sc = 0, end; (sc = next_run(lacking, sc, &end)) < QCOW2_SUBCLUSTERS; sc = end) {
			int err = plan_run(head, pull, place(head, pull, i, sc), place(head, pull, i, end));
			if (err)
				return err;
		}
		pull->becomes_zero[i] &= ~pull->to_write[i];
	}
	return 0;
}

/* What turns out to be zeros isn't written. */
static void drop_zeros(const struct head *head, struct pull *pull, unsigned i, unsigned sc, unsigned end)
{
	size_t size = (size_t)subcluster_size_of(head);
	for (; sc < end; sc++) {
		if (head_is_zeros(pull->data + (place(head, pull, i, sc) - pull->guest_off), size)) {
			pull->to_write[i] &= ~(1u << sc);
			pull->becomes_zero[i] |= pull->nr_layers < view_depth(head->below) ? 1u << sc : 0;
		}
	}
}

/* Reads what is to be written: nobody changes it, for the clusters are ours and the layers are frozen. */
static int read_pulled(struct head *head, struct pull *pull, uint64_t *ret_wanted)
{
	*ret_wanted = 0;
	for (unsigned i = 0; i < pull->span.nr; i++) {
		uint32_t bits = pull->to_write[i];
		for (unsigned sc = 0, end; (sc = next_run(bits, sc, &end)) < QCOW2_SUBCLUSTERS; sc = end) {
			uint64_t from = place(head, pull, i, sc);
			int err = overlay_read(head, pull->data + (from - pull->guest_off), (size_t)(place(head, pull, i, end) - from), from);
			if (err)
				return err;
			drop_zeros(head, pull, i, sc, end);
		}
		if (pull->to_write[i])
			*ret_wanted |= 1ull << i;
	}
	return 0;
}

/* W3 and what W4 is to write. */
static int write_pulled(struct head *head, struct pull *pull, uint64_t *ret_stored)
{
	for (unsigned i = 0; i < pull->span.nr; i++) {
		struct cluster_state *state = &pull->span.states[i];
		for (unsigned sc = 0, end; (sc = next_run(pull->to_write[i], sc, &end)) < QCOW2_SUBCLUSTERS; sc = end) {
			uint64_t from = place(head, pull, i, sc), len = place(head, pull, i, end) - from;
			int err = file_write(head->fd, pull->data + (from - pull->guest_off), (size_t)len,
					     state->host_off + ((uint64_t)sc << head->header.geo.subcluster_bits));
			if (err)
				return err;
			*ret_stored += len;
		}
		state->allocated |= pull->to_write[i];
		state->zero |= pull->becomes_zero[i];
	}
	return 0;
}

static bool has_plans(const struct pull *pull)
{
	uint32_t any = 0;
	for (unsigned i = 0; i < pull->span.nr; i++)
		any |= pull->to_write[i] | pull->becomes_zero[i];
	return any != 0;
}

/* What a claimed piece gets. */
static int fill_piece(struct head *head, struct pull *pull, uint64_t *ret_stored)
{
	uint64_t wanted = 0;
	int err = plan_pull(head, pull);
	if (!err && has_plans(pull))
		err = read_pulled(head, pull, &wanted);
	if (err || !has_plans(pull))
		return err;
	err = head_mark_dirty(head); /* W1 */
	pthread_mutex_lock(&head->lock);
	if (!err && wanted)
		err = span_alloc_locked(head, &pull->span, wanted);
	pthread_mutex_unlock(&head->lock);
	return err ? err : write_pulled(head, pull, ret_stored);
}

static int pull_piece(struct head *head, struct pull *pull, uint64_t *ret_stored)
{
	pthread_mutex_lock(&head->lock);
	int err = span_claim_locked(head, &pull->span, pull->guest_off, pull->len, false);
	pthread_mutex_unlock(&head->lock);
	if (err || !pull->span.held)
		return err;
	uint64_t nr_stored = 0;
	err = fill_piece(head, pull, &nr_stored);
	pthread_mutex_lock(&head->lock);
	err = span_release_locked(head, &pull->span, err);
	pthread_mutex_unlock(&head->lock);
	if (!err)
		*ret_stored += nr_stored;
	return err;
}

/* The beginning of [GUEST_OFF, END), both whole subclusters: RET_DONE bytes. */
static int pull_some(struct head *head, size_t nr_layers, uint64_t guest_off, uint64_t end, uint64_t *ret_done, uint64_t *ret_stored)
{
	struct extent e;
	int err = map_pulled(head, nr_layers, guest_off, end - guest_off, &e);
	if (err)
		return err;
	*ret_done = e.len / subcluster_size_of(head) * subcluster_size_of(head);
	if (e.kind == EXTENT_UNALLOCATED && *ret_done)
		return 0;
	struct pull pull = {.nr_layers = nr_layers, .guest_off = guest_off};
	pull.len = min_u64(span_fit(head, guest_off, end - guest_off), PIECE_MAX);
	pull.data = malloc((size_t)pull.len);
	if (!pull.data)
		return -ENOMEM;
	*ret_done = pull.len;
	err = pull_piece(head, &pull, ret_stored);
	free(pull.data);
	return err;
}

/* Whole subclusters, up to the one with the disk's end. */
static void clamp(struct head *head, uint64_t *guest_off, uint64_t *end)
{
	uint64_t size = subcluster_size_of(head);
	*guest_off = *guest_off / size * size;
	*end = min_u64(round_up(*end, size), round_up(head_virtual_size(head), size));
}

static int begin_pull(struct head *head, size_t nr_layers, uint64_t guest_off)
{
	if (atomic_load(&head->nr_pulled) == nr_layers)
		return 0;
	if (guest_off)
		return -ESTALE;
	pthread_rwlock_wrlock(&head->gate);
	int err = head->below && nr_layers <= view_depth(head->below) ? 0 : -EINVAL;
	if (!err)
		atomic_store(&head->nr_pulled, nr_layers);
	pthread_rwlock_unlock(&head->gate);
	return err;
}

/* A piece at a time, so that who wants to stop all gets its turn. */
int head_pull(struct head *head, size_t nr_layers, uint64_t guest_off, uint64_t len, uint64_t *ret_stored)
{
	if (head->kind != &head_qcow2)
		return -EOPNOTSUPP;
	uint64_t nr_stored = 0, end = guest_off + min_u64(len, (1ull << 62) - min_u64(guest_off, 1ull << 62));
	int err = nr_layers ? begin_pull(head, nr_layers, guest_off) : 0;
	while (!err && nr_layers && guest_off < end) {
		uint64_t stop = end, done = 0;
		pthread_rwlock_rdlock(&head->gate);
		clamp(head, &guest_off, &stop);
		err = atomic_load(&head->nr_pulled) == nr_layers ? 0 : -ESTALE;
		if (!err && guest_off < stop)
			err = pull_some(head, nr_layers, guest_off, stop, &done, &nr_stored);
		pthread_rwlock_unlock(&head->gate);
		err = head_changed(head, err);
		if (!done)
			break;
		guest_off += done;
	}
	if (!err && ret_stored)
		*ret_stored = nr_stored;
	return err;
}

/* --- absorb ------------------------------------------------------------------------------------------------------------------ */

static bool has_bytes(const struct extent *e)
{
	return e->kind == EXTENT_DATA || e->kind == EXTENT_COMPRESSED;
}

/* How far the bytes go on that begin with E. */
static uint64_t data_len(struct view *above, size_t nr_layers, const struct extent *e, uint64_t max)
{
	uint64_t len = min_u64(e->len, max);
	struct extent next;
	while (len < max && view_map_top(above, nr_layers, e->guest_off + len, max - len, &next) == 0 && has_bytes(&next))
		len += next.len;
	return len;
}

static int absorb_data(struct head *into, struct view *above, uint64_t guest_off, size_t len)
{
	auto_free char *data = malloc(len);
	if (!data)
		return -ENOMEM;
	int err = view_read(above, data, len, guest_off);
	return err ? err : into->kind->write(into, data, len, guest_off);
}

/* The beginning of [GUEST_OFF, END): RET_DONE bytes. */
static int absorb_some(struct head *into, struct view *above, size_t nr_layers, uint64_t guest_off, uint64_t end, uint64_t *ret_done,
		       uint64_t *ret_stored)
{
	struct extent e;
	int err = view_map_top(above, nr_layers, guest_off, end - guest_off, &e);
	if (err)
		return err;
	*ret_done = e.len;
	if (e.kind == EXTENT_UNALLOCATED)
		return 0;
	if (e.kind == EXTENT_ZERO) {
		uint64_t stop = guest_off + e.len;
		if (stop == head_virtual_size(into)) /* what lies behind the end in its subcluster is zeros */
			stop = round_up(stop, subcluster_size_of(into));
		return into->kind->zero(into, guest_off, stop - guest_off, ZERO_VISIBLY);
	}
	*ret_done = data_len(above, nr_layers, &e, min_u64(end - guest_off, PIECE_MAX));
	*ret_stored += *ret_done;
	return absorb_data(into, above, guest_off, (size_t)*ret_done);
}

int head_absorb(struct head *into, struct view *above, size_t nr_layers, uint64_t guest_off, uint64_t len, uint64_t *ret_stored)
{
	uint64_t size = view_virtual_size(above), nr_stored = 0;
	if (size != head_virtual_size(into))
		return -EINVAL;
	uint64_t end = guest_off < size ? guest_off + min_u64(len, size - guest_off) : guest_off, done = 0;
	int err = 0;
	for (; guest_off < end && !err; guest_off += done) {
		pthread_rwlock_rdlock(&into->gate);
		err = absorb_some(into, above, nr_layers, guest_off, end, &done, &nr_stored);
		pthread_rwlock_unlock(&into->gate);
		err = head_changed(into, err);
	}
	if (!err && ret_stored)
		*ret_stored = nr_stored;
	return err;
}

/* --- rebase -------------------------------------------------------------------------------------------------------------------- */

/* Nothing else lies there in a header's cluster, which has 16 KiB at least: extensions and the name that it was made with come first. */
static const uint64_t name_places[] = {8192, 12288};

static uint64_t free_place(const struct qcow2_header_disk *disk)
{
	uint64_t off = be64_get(disk->backing_file_offset), end = off + be32_get(disk->backing_file_size);
	return off < name_places[0] + QCOW2_MAX_BACKING_NAME && end > name_places[0] ? name_places[1] : name_places[0];
}

/* B2 to B5; flush_lock is held. */
static int write_name(struct head *head, const char *name, enum image_format format)
{
	char sector[QCOW2_SECTOR];
	int err = file_read_padded(head->fd, sector, sizeof sector, 0);
	if (err)
		return err;
	struct qcow2_header_disk disk;
	memcpy(&disk, sector, sizeof disk);
	uint64_t name_off = name ? free_place(&disk) : 0;
	err = qcow2_header_rename(sector, name_off, name ? (uint32_t)strlen(name) : 0, name ? image_format_name(format) : NULL);
	if (!err && name) {
		err = file_write(head->fd, name, strlen(name), name_off);
		if (!err)
			err = tables_barrier(head); /* B3: the name is stable before anything refers to it */
	}
	if (!err)
		err = file_write(head->fd, sector, sizeof sector, 0);
	return err ? err : tables_barrier(head); /* B5: the layers in between aren't needed any longer once it is stable */
}

/* Whether VIEW can be what is left when the pulled layers are gone. */
static int check_pulled(struct head *head, const struct view *view)
{
	size_t nr_pulled = atomic_load(&head->nr_pulled);
	if (!nr_pulled)
		return -ESTALE;
	return (view_depth(head->below) == nr_pulled) == !view ? 0 : -EINVAL;
}

static int rebase_on_disk(struct head *head, const struct view *view, const char *name, enum image_format format)
{
	pthread_rwlock_rdlock(&head->gate);
	int err = check_pulled(head, view);
	pthread_rwlock_unlock(&head->gate);
	if (err)
		return err;
	pthread_mutex_lock(&head->flush_lock);
	/* It may have become another file meanwhile, which takes flush_lock. */
	if (!atomic_load(&head->nr_pulled))
		err = -ESTALE;
	if (!err)
		err = tables_write(head); /* B1 */
	if (!err)
		err = write_name(head, name, format);
	pthread_mutex_unlock(&head->flush_lock);
	return err;
}

int head_rebase(struct head *head, struct view *view, const char *backing_name, enum image_format format)
{
	if (head->kind != &head_qcow2)
		return -EOPNOTSUPP;
	if (!backing_name != !view)
		return -EINVAL;
	if (backing_name && strlen(backing_name) > QCOW2_MAX_BACKING_NAME)
		return -ENAMETOOLONG;
	int err = rebase_on_disk(head, view, backing_name, format);
	if (err)
		return err;
	pthread_rwlock_wrlock(&head->gate);
	err = check_pulled(head, view);
	struct view *old = err ? NULL : head->below;
	if (!err) {
		head->below = view_ref(view);
		atomic_store(&head->nr_pulled, 0);
	}
	pthread_rwlock_unlock(&head->gate);
	view_put(old);
	return err;
}

int head_exchange_base(struct head *head, const struct view *beneath, struct view *view, const char *backing_name, enum image_format format)
{
	if (strlen(backing_name) > QCOW2_MAX_BACKING_NAME)
		return -ENAMETOOLONG;
	pthread_mutex_lock(&head->flush_lock);
	int err = head->below == beneath ? tables_write(head) : -ESTALE; /* B1 */
	if (!err)
		err = write_name(head, backing_name, format);
	pthread_mutex_unlock(&head->flush_lock);
	if (err)
		return err;
	pthread_rwlock_wrlock(&head->gate);
	struct view *old = head->below;
	head->below = view_ref(view);
	atomic_store(&head->nr_pulled, 0);
	pthread_rwlock_unlock(&head->gate);
	view_put(old);
	return 0;
}
