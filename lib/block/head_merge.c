#include "block/merge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "block/head_priv.h"
#include "block/qcow2_format.h"
#include "block/share.h"

#define PIECE_MAX (1u << 20) /* absorbed at a time */
#define PULL_MAX  (256u << 10) /* read and written at a time, from a processor's cache; for so long others wait for its clusters */
#define NR_PULLS  64u	       /* collected, and then done by all processors */
#define MAPS_MAX  1024u	       /* for so long who stops all waits for the collecting */

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

/* Whether E's bytes may become the head's by sharing them. Behind the disk's end a subcluster has zeros, which they needn't be. */
static bool can_share(struct head *head, const struct extent *e)
{
	uint64_t block = atomic_load(&head->share_block), sc_size = subcluster_size_of(head);
	return e->kind == EXTENT_DATA && block && sc_size % block == 0 && e->guest_off % sc_size == 0 && e->host_off % block == 0 &&
	       e->image != atomic_load(&head->unshared) && e->guest_off + e->len <= head_virtual_size(head);
}

/* What the pulled layers have at GUEST_OFF. EXTENT_UNALLOCATED also for zeros over zeros. */
static int map_pulled(struct head *head, size_t nr_layers, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	struct extent beneath;
	bool all = nr_layers == view_depth(head->below);
	int err = all ? view_map(head->below, guest_off, len, ret) : view_map_top(head->below, nr_layers, guest_off, len, ret);
	if (!err && all && ret->kind == EXTENT_ZERO)
		ret->kind = EXTENT_UNALLOCATED;
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

/* Of the piece, which is one run of bytes in a file of a layer, everything that is lacking. */
static int plan_share(struct head *head, struct pull *pull)
{
	uint64_t wanted = 0;
	for (unsigned i = 0; i < pull->span.nr; i++) {
		pull->to_write[i] = in_piece(head, pull, i) & ~(pull->span.states[i].allocated | pull->span.states[i].zero);
		if (pull->to_write[i])
			wanted |= 1ull << i;
	}
	if (!wanted)
		return 0;
	int err = head_mark_dirty(head); /* W1 */
	pthread_mutex_lock(&head->lock);
	if (!err)
		err = span_alloc_locked(head, &pull->span, wanted);
	pthread_mutex_unlock(&head->lock);
	return err;
}

/* Where neighbours in the disk are neighbours in the file as well they are shared as one. */
struct share_run {
	uint64_t guest_off, host_off, len;
};

static int share_run(struct head *head, const struct extent *e, const struct share_run *run)
{
	return run->len ? share_blocks(head->fd, e, run->guest_off - e->guest_off, run->len, run->host_off) : 0;
}

/* W3 and what W4 is to write. SHARE_COPY: it must be copied; nothing is to be written. */
static int share_pulled(struct head *head, struct pull *pull, const struct extent *e)
{
	struct share_run run = {0};
	int err = 0;
	for (unsigned i = 0; i < pull->span.nr && !err; i++) {
		uint64_t host_off = pull->span.states[i].host_off;
		for (unsigned sc = 0, end; !err && (sc = next_run(pull->to_write[i], sc, &end)) < QCOW2_SUBCLUSTERS; sc = end) {
			struct share_run next = {place(head, pull, i, sc), host_off + ((uint64_t)sc << head->header.geo.subcluster_bits),
						 (uint64_t)(end - sc) << head->header.geo.subcluster_bits};
			if (run.guest_off + run.len == next.guest_off && run.host_off + run.len == next.host_off) {
				run.len += next.len;
				continue;
			}
			err = share_run(head, e, &run);
			run = next;
		}
	}
	return err ? err : share_run(head, e, &run);
}

static int share_piece(struct head *head, struct pull *pull, uint64_t *ret_stored)
{
	struct extent e;
	/* Asked again: what lies beneath may have become another view since. */
	int err = map_pulled(head, pull->nr_layers, pull->guest_off, pull->len, &e);
	if (!err && (!can_share(head, &e) || e.len < pull->len))
		return SHARE_COPY;
	if (!err)
		err = plan_share(head, pull);
	if (!err)
		err = share_pulled(head, pull, &e);
	if (err == -EOPNOTSUPP)
		atomic_store(&head->share_block, 0);
	if (err == -EXDEV)
		atomic_store(&head->unshared, e.image);
	if (err)
		return err == -EOPNOTSUPP || err == -EXDEV ? SHARE_COPY : err;
	for (unsigned i = 0; i < pull->span.nr; i++) {
		pull->span.states[i].allocated |= pull->to_write[i];
		*ret_stored += (uint64_t)__builtin_popcount(pull->to_write[i]) << head->header.geo.subcluster_bits;
	}
	return 0;
}

/* SHARE_COPY: PULL was to be shared, and that can't be. */
static int pull_piece(struct head *head, struct pull *pull, bool share, uint64_t *ret_stored)
{
	pthread_mutex_lock(&head->lock);
	int err = span_claim_locked(head, &pull->span, pull->guest_off, pull->len, false);
	pthread_mutex_unlock(&head->lock);
	if (err || !pull->span.held)
		return err;
	uint64_t nr_stored = 0;
	err = (share ? share_piece : fill_piece)(head, pull, &nr_stored);
	pthread_mutex_lock(&head->lock);
	err = span_release_locked(head, &pull->span, err);
	pthread_mutex_unlock(&head->lock);
	if (!err)
		*ret_stored += nr_stored;
	return err;
}

/* Whole subclusters, up to the one with the disk's end. */
static void clamp(struct head *head, uint64_t *guest_off, uint64_t *end)
{
	uint64_t size = subcluster_size_of(head);
	*guest_off = *guest_off / size * size;
	*end = min_u64(round_up(*end, size), round_up(head_virtual_size(head), size));
}

/* What is pulled at a time. */
struct pull_piece {
	uint64_t guest_off, len;
	bool share;
};

struct pulling {
	struct head *head;
	size_t nr_layers;
	struct pull_piece pieces[NR_PULLS];
	size_t nr_pieces;
	_Atomic uint64_t nr_stored;
	atomic_int err;
};

static int begin_pull(struct head *head, size_t nr_layers, uint64_t guest_off)
{
	struct statvfs vfs;
	if (atomic_load(&head->nr_pulled) == nr_layers)
		return 0;
	if (guest_off)
		return -ESTALE;
	pthread_rwlock_wrlock(&head->gate);
	int err = head->below && nr_layers <= view_depth(head->below) ? 0 : -EINVAL;
	if (!err) {
		atomic_store(&head->share_block, head->is_device || fstatvfs(head->fd, &vfs) < 0 ? 0 : vfs.f_bsize);
		atomic_store(&head->unshared, NULL);
		atomic_store(&head->nr_pulled, nr_layers);
	}
	pthread_rwlock_unlock(&head->gate);
	return err;
}

/* The next piece at GUEST_OFF, or else bytes to go past. */
static int next_piece(struct pulling *p, uint64_t guest_off, uint64_t end, uint64_t *ret_len)
{
	struct head *head = p->head;
	uint64_t sc_size = subcluster_size_of(head);
	struct extent e;
	int err = map_pulled(head, p->nr_layers, guest_off, end - guest_off, &e);
	if (err)
		return err;
	e.len = e.len / sc_size * sc_size;
	*ret_len = e.len;
	if (e.kind == EXTENT_UNALLOCATED && e.len)
		return 0;
	bool share = e.len && can_share(head, &e);
	uint64_t len = share ? e.len : min_u64(end - guest_off, PULL_MAX - guest_off % PULL_MAX);
	*ret_len = span_fit(head, guest_off, len);
	p->pieces[p->nr_pieces++] = (struct pull_piece){guest_off, *ret_len, share};
	return 0;
}

/* Pieces from *GUEST_OFF on, which goes on to where they end. */
static int collect_pieces(struct pulling *p, uint64_t *guest_off, uint64_t *end)
{
	struct head *head = p->head;
	pthread_rwlock_rdlock(&head->gate);
	clamp(head, guest_off, end);
	int err = atomic_load(&head->nr_pulled) == p->nr_layers ? 0 : -ESTALE;
	p->nr_pieces = 0;
	for (unsigned nr_maps = 0; !err && *guest_off < *end && p->nr_pieces < NR_PULLS && nr_maps < MAPS_MAX; nr_maps++) {
		uint64_t len = 0;
		err = next_piece(p, *guest_off, *end, &len);
		*guest_off += len;
	}
	pthread_rwlock_unlock(&head->gate);
	return err;
}

/* The beginning of [GUEST_OFF, END) that is copied, or all of it shared, or nothing and SHARE_COPY. */
static int pull_some(struct pulling *p, uint64_t guest_off, uint64_t end, bool share, uint64_t *ret_len)
{
	struct pull pull = {.nr_layers = p->nr_layers, .guest_off = guest_off};
	uint64_t nr_stored = 0;
	clamp(p->head, &guest_off, &end);
	*ret_len = pull.len = guest_off < end ? share ? end - guest_off : min_u64(end - guest_off, PULL_MAX) : 0;
	if (atomic_load(&p->head->nr_pulled) != p->nr_layers)
		return -ESTALE;
	if (!pull.len)
		return 0;
	auto_free char *data = share ? NULL : malloc((size_t)pull.len);
	if (!share && !data)
		return -ENOMEM;
	pull.data = data;
	int err = pull_piece(p->head, &pull, share, &nr_stored);
	if (!err)
		atomic_fetch_add(&p->nr_stored, nr_stored);
	return err;
}

/* Who wants to stop all gets its turn after each of them. */
static void pull_nth(void *ctx, size_t i)
{
	struct pulling *p = ctx;
	uint64_t guest_off = p->pieces[i].guest_off, end = guest_off + p->pieces[i].len, len = 0;
	bool share = p->pieces[i].share;
	int err = 0, none = 0;
	do {
		pthread_rwlock_rdlock(&p->head->gate);
		err = atomic_load(&p->err) ? 0 : pull_some(p, guest_off, end, share, &len);
		pthread_rwlock_unlock(&p->head->gate);
		if (err == SHARE_COPY) {
			share = false;
			err = 0;
			continue;
		}
		err = head_changed(p->head, err);
		guest_off += len;
	} while (!err && len && guest_off < end && !atomic_load(&p->err));
	if (err)
		atomic_compare_exchange_strong(&p->err, &none, err);
}

int head_pull(struct head *head, size_t nr_layers, uint64_t guest_off, uint64_t len, uint64_t *ret_stored)
{
	if (head->kind != &head_qcow2)
		return -EOPNOTSUPP;
	auto_free struct pulling *p = calloc(1, sizeof *p);
	if (!p)
		return -ENOMEM;
	p->head = head;
	p->nr_layers = nr_layers;
	uint64_t end = guest_off + min_u64(len, (1ull << 62) - min_u64(guest_off, 1ull << 62));
	int err = nr_layers ? begin_pull(head, nr_layers, guest_off) : 0;
	for (uint64_t stop = end; !err && nr_layers && guest_off < stop; stop = end) {
		uint64_t from = guest_off;
		err = collect_pieces(p, &guest_off, &stop);
		if (!err)
			parallel_for_large(p->nr_pieces, pull_nth, p);
		if (!err)
			err = atomic_load(&p->err);
		if (guest_off == from) /* the disk ends here */
			break;
	}
	if (!err && ret_stored)
		*ret_stored = atomic_load(&p->nr_stored);
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

/* What is to take the place of what. */
struct rebase {
	bool exchange; /* VIEW reads what BENEATH reads; else what it lacks was pulled */
	const struct view *beneath;
	struct view *view;
	const char *name;
	enum image_format format;
};

/* The gate is held. */
static int check_rebase(struct head *head, const struct rebase *rebase)
{
	size_t nr_pulled = atomic_load(&head->nr_pulled);
	if (rebase->exchange)
		return head->below == rebase->beneath ? 0 : -ESTALE;
	if (!nr_pulled)
		return -ESTALE;
	return (view_depth(head->below) == nr_pulled) == !rebase->view ? 0 : -EINVAL;
}

/* B1 to B5. The gate is held, so that it doesn't become another file, nor another view comes beneath it, before the name is written. */
static int rebase_on_disk(struct head *head, const struct rebase *rebase)
{
	int err = check_rebase(head, rebase);
	if (err)
		return err;
	pthread_mutex_lock(&head->flush_lock);
	err = tables_write(head); /* B1 */
	if (!err)
		err = write_name(head, rebase->name, rebase->format);
	pthread_mutex_unlock(&head->flush_lock);
	return err;
}

static int rebase_head(struct head *head, const struct rebase *rebase)
{
	if (head->kind != &head_qcow2)
		return -EOPNOTSUPP;
	if (!rebase->name != !rebase->view)
		return -EINVAL;
	if (rebase->name && strlen(rebase->name) > QCOW2_MAX_BACKING_NAME)
		return -ENAMETOOLONG;
	pthread_rwlock_rdlock(&head->gate);
	int err = rebase_on_disk(head, rebase);
	pthread_rwlock_unlock(&head->gate);
	if (err)
		return err;
	pthread_rwlock_wrlock(&head->gate);
	err = check_rebase(head, rebase);
	struct view *old = err ? NULL : head->below;
	if (!err) {
		head->below = view_ref(rebase->view); /* B6 */
		atomic_store(&head->nr_pulled, 0);
	}
	pthread_rwlock_unlock(&head->gate);
	view_put(old);
	return err;
}

int head_rebase(struct head *head, struct view *view, const char *backing_name, enum image_format format)
{
	return rebase_head(head, &(struct rebase){.view = view, .name = backing_name, .format = format});
}

int head_exchange_base(struct head *head, const struct view *beneath, struct view *view, const char *backing_name, enum image_format format)
{
	return rebase_head(head, &(struct rebase){.exchange = true, .beneath = beneath, .view = view, .name = backing_name, .format = format});
}
