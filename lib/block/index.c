#include "block/index.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "block/index_priv.h"
#include "block/qcow2_format.h"

#define MAX_RINGS        16u
#define MIN_RING_BYTES   (128u << 10)
#define BYTES_PER_BUCKET 256u
#define MAX_PROMOTED     64u /* spans that are kept, because they were used, before one goes anyway */

/* A span in its ring. */
struct span {
	uint64_t id, span_no;
	uint32_t next; /* in its bucket: see span_at() */
	uint32_t nr : 31;
	uint32_t used : 1; /* since it was put here, or last passed over */
	uint64_t unused;
	struct index_extent extents[];
};
static_assert(sizeof(struct span) == 32, "span");

/* Somebody is building it; lies on their stack. */
struct build {
	uint64_t id, span_no;
	struct build *next;
};

/* Bytes from HEAD on are free: up to the end of the ring when the spans lie in [TAIL, HEAD), up to TAIL when they
 * lie in [TAIL, END) and [0, HEAD). The oldest span is at TAIL. */
struct ring {
	_Alignas(64) pthread_mutex_t lock;
	pthread_cond_t built;
	/* protected by lock */
	char *bytes;
	size_t size, head, tail, end;
	bool wrapped;
	uint32_t *buckets;
	size_t nr_buckets; /* a power of two */
	struct build *builds;
	struct index_stats stats;
};

struct index {
	char *mapped;
	size_t mapped_len;
	size_t own_bytes; /* beside the rings */
	unsigned nr_rings;
	struct ring rings[];
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* --- making it -------------------------------------------------------------------------------------------------- */

static size_t round_down_pow2(size_t n)
{
	size_t power = 1;
	while (power * 2 <= n)
		power *= 2;
	return power;
}

static int ring_init(struct ring *ring, char *bytes, size_t size)
{
	pthread_mutex_init(&ring->lock, NULL);
	pthread_cond_init(&ring->built, NULL);
	ring->bytes = bytes;
	ring->size = size;
	ring->nr_buckets = round_down_pow2(size / BYTES_PER_BUCKET);
	ring->buckets = mem_new_array(ring->nr_buckets, sizeof *ring->buckets);
	return ring->buckets ? 0 : -ENOMEM;
}

int index_new(size_t max_bytes, struct index **ret)
{
	size_t nr_rings = max_bytes / MIN_RING_BYTES;
	nr_rings = nr_rings < 1 ? 1 : nr_rings > MAX_RINGS ? MAX_RINGS : nr_rings;
	size_t own = sizeof(struct index) + nr_rings * sizeof(struct ring);
	struct index *index = aligned_alloc(_Alignof(struct ring), own);
	if (!index)
		return -ENOMEM;
	memset(index, 0, own);
	/* The buckets are a 64th of what they are for. */
	size_t ring_size = (max_bytes > own ? max_bytes - own : 0) / nr_rings / 65 * 64 & ~(size_t)4095;
	if (ring_size < 4096)
		ring_size = 4096;
	if (ring_size > (size_t)UINT32_MAX * 16)
		ring_size = (size_t)UINT32_MAX * 16 & ~(size_t)4095;
	index->mapped_len = ring_size * nr_rings;
	index->mapped =
	    mmap(NULL, index->mapped_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int err = index->mapped == MAP_FAILED ? -ENOMEM : 0;
	if (err)
		index->mapped = NULL;
	for (; index->nr_rings < nr_rings && !err; index->nr_rings++)
		err = ring_init(&index->rings[index->nr_rings], index->mapped + index->nr_rings * ring_size, ring_size);
	index->own_bytes = own;
	if (err)
		index_free(index);
	else
		*ret = index;
	return err;
}

void index_free(struct index *index)
{
	if (!index)
		return;
	for (unsigned i = 0; i < index->nr_rings; i++) {
		free(index->rings[i].buckets);
		pthread_cond_destroy(&index->rings[i].built);
		pthread_mutex_destroy(&index->rings[i].lock);
	}
	if (index->mapped)
		munmap(index->mapped, index->mapped_len);
	free(index);
}

/* --- a ring --------------------------------------------------------------------------------------------------------- */

static uint64_t hash(uint64_t id, uint64_t span_no)
{
	uint64_t h = (id * 0x9e3779b97f4a7c15ull) ^ (span_no * 0xc2b2ae3d27d4eb4full);
	h ^= h >> 32;
	h *= 0xd6e8feb86659fd93ull;
	return h ^ h >> 32;
}

static struct ring *ring_of(struct index *index, uint64_t h)
{
	return &index->rings[h % index->nr_rings];
}

static uint32_t *bucket_of(struct ring *ring, uint64_t h)
{
	return &ring->buckets[(h >> 8) & (ring->nr_buckets - 1)];
}

/* Links count 16 bytes from the ring's start, and one: 0 is none. */
static struct span *span_at(struct ring *ring, uint32_t link)
{
	return link ? (struct span *)(ring->bytes + (size_t)(link - 1) * 16) : NULL;
}

static uint32_t link_to(const struct ring *ring, size_t off)
{
	(void)ring;
	return (uint32_t)(off / 16) + 1;
}

static size_t span_bytes(size_t nr)
{
	return sizeof(struct span) + nr * sizeof(struct index_extent);
}

static struct span *find_locked(struct ring *ring, uint64_t h, uint64_t id, uint64_t span_no)
{
	struct span *span = span_at(ring, *bucket_of(ring, h));
	while (span && (span->id != id || span->span_no != span_no))
		span = span_at(ring, span->next);
	return span;
}

static uint32_t *find_link_locked(struct ring *ring, const struct span *span)
{
	uint32_t *link = bucket_of(ring, hash(span->id, span->span_no));
	while (span_at(ring, *link) != span)
		link = &span_at(ring, *link)->next;
	return link;
}

/* Takes the oldest span away, or, when KEEP, makes it the newest: then it only slides down, and nothing comes free. */
static void pass_oldest_locked(struct ring *ring, bool keep)
{
	struct span *span = (struct span *)(ring->bytes + ring->tail);
	size_t len = span_bytes(span->nr);
	uint32_t *link = find_link_locked(ring, span);
	if (keep) {
		*link = link_to(ring, ring->head);
		span->used = 0;
		memmove(ring->bytes + ring->head, span, len);
		ring->head += len;
	} else {
		*link = span->next;
		ring->stats.nr_spans--;
	}
	ring->tail += len;
	if (ring->tail == ring->end) {
		ring->tail = 0;
		ring->wrapped = false;
	}
}

/* Makes room for LEN bytes at the head. */
static void make_room_locked(struct ring *ring, size_t len)
{
	unsigned nr_promoted = 0;
	for (;;) {
		if (!ring->wrapped && ring->size - ring->head >= len)
			return;
		if (!ring->wrapped) {
			ring->end = ring->head;
			ring->head = 0;
			ring->wrapped = true;
		}
		if (ring->tail - ring->head >= len)
			return;
		bool used = ((struct span *)(ring->bytes + ring->tail))->used;
		pass_oldest_locked(ring, used && nr_promoted++ < MAX_PROMOTED);
	}
}

static void insert_locked(struct ring *ring, uint64_t h, uint64_t id, uint64_t span_no, const struct index_built *built)
{
	size_t len = span_bytes(built->nr);
	if (len > ring->size / 4)
		return;
	make_room_locked(ring, len);
	struct span *span = (struct span *)(ring->bytes + ring->head);
	uint32_t *bucket = bucket_of(ring, h);
	*span = (struct span){.id = id, .span_no = span_no, .next = *bucket, .nr = built->nr & 0x7fffffff};
	memcpy(span->extents, built->extents, built->nr * sizeof *built->extents);
	*bucket = link_to(ring, ring->head);
	ring->head += len;
	ring->stats.nr_spans++;
}

/* --- looking into a span */

/* The extent with SECTOR in it. Most spans have pieces of about one size: it is looked for where it would lie then. */
static size_t find_extent(const struct index_extent *extents, size_t nr, unsigned span_bits, uint64_t sector)
{
	size_t guess = (size_t)(sector * nr >> (span_bits - 9)), low = 0, high = nr, step = 1;
	if (extents[guess].sector <= sector) {
		for (low = guess; low + step < nr && extents[low + step].sector <= sector; step *= 2)
			low += step;
		high = low + step < nr ? low + step : nr;
	} else {
		for (high = guess; high > step && extents[high - step].sector > sector; step *= 2)
			high -= step;
		low = high > step ? high - step : 0;
	}
	while (high - low > 1) { /* extents[low].sector <= sector, and extents[high] is behind it */
		size_t middle = low + (high - low) / 2;
		if (extents[middle].sector <= sector)
			low = middle;
		else
			high = middle;
	}
	return low;
}

static void copy_piece(const struct index_extent *extents, size_t nr, unsigned span_bits, uint64_t from, uint64_t to,
                       struct index_piece *ret)
{
	size_t low = find_extent(extents, nr, span_bits, from >> 9);
	size_t end = low;
	do {
		ret->extents[end - low] = extents[end];
		end++;
	} while (end < nr && end - low < INDEX_PIECE_MAX && index_sector_off(&extents[end]) < to);
	ret->nr = end - low;
	ret->end = end < nr ? index_sector_off(&extents[end]) : 1ull << span_bits;
}

static bool lookup_locked(struct ring *ring, uint64_t h, uint64_t id, uint64_t span_no, unsigned span_bits,
                          uint64_t from, uint64_t to, struct index_piece *ret)
{
	struct span *span = find_locked(ring, h, id, span_no);
	if (!span)
		return false;
	span->used = 1;
	copy_piece(span->extents, span->nr, span_bits, from, to, ret);
	return true;
}

bool index_lookup(struct index *index, uint64_t id, uint64_t span_no, unsigned span_bits, uint64_t from, uint64_t to,
                  struct index_piece *ret)
{
	uint64_t h = hash(id, span_no);
	struct ring *ring = ring_of(index, h);
	pthread_mutex_lock(&ring->lock);
	bool found = lookup_locked(ring, h, id, span_no, span_bits, from, to, ret);
	ring->stats.nr_hits += found;
	pthread_mutex_unlock(&ring->lock);
	return found;
}

static bool is_being_built_locked(const struct ring *ring, uint64_t id, uint64_t span_no)
{
	const struct build *build = ring->builds;
	while (build && (build->id != id || build->span_no != span_no))
		build = build->next;
	return build;
}

static void build_end_locked(struct ring *ring, const struct build *build)
{
	struct build **link = &ring->builds;
	while (*link != build)
		link = &(*link)->next;
	*link = build->next;
	pthread_cond_broadcast(&ring->built);
}

/* Comes back with the lock. */
static int build_and_insert(struct index *index, struct ring *ring, uint64_t h, const struct chain *chain,
                            uint64_t span_no, struct index_built *ret)
{
	struct chain_id *id = chain->id;
	int err = index_build(index, chain, span_no, ret);
	pthread_mutex_lock(&ring->lock);
	if (!err) {
		insert_locked(ring, h, id->number, span_no, ret);
		ring->stats.nr_built++;
		ring->stats.nr_asked += ret->nr_asked;
	}
	atomic_store_explicit(&id->has_spans, true, memory_order_relaxed);
	return err;
}

/* The piece of a span, which is built when it isn't there. Whoever waited in vain for somebody else's doesn't try
 * again: it may not fit, or there was an error. */
static int get_piece(struct index *index, const struct chain *chain, uint64_t span_no, uint64_t from, uint64_t to,
                     struct index_piece *ret, uint64_t *cost)
{
	uint64_t id = chain->id->number, h = hash(id, span_no);
	unsigned span_bits = chain->id->span_bits;
	struct ring *ring = ring_of(index, h);
	int err = 0;
	pthread_mutex_lock(&ring->lock);
	bool waited = false;
	while (is_being_built_locked(ring, id, span_no)) {
		pthread_cond_wait(&ring->built, &ring->lock);
		waited = true;
	}
	if (lookup_locked(ring, h, id, span_no, span_bits, from, to, ret)) {
		ring->stats.nr_hits++;
	} else if (waited) {
		err = -EAGAIN;
	} else {
		struct build build = {id, span_no, ring->builds};
		struct index_built built = {0};
		ring->builds = &build;
		pthread_mutex_unlock(&ring->lock);
		err = build_and_insert(index, ring, h, chain, span_no, &built);
		build_end_locked(ring, &build);
		if (!err)
			copy_piece(built.extents, built.nr, span_bits, from, to, ret);
		free(built.extents);
		*cost += built.cost;
	}
	pthread_mutex_unlock(&ring->lock);
	return err;
}

/* --- extents */

static struct extent unpack(const struct chain *chain, const struct index_extent *e, uint64_t start, uint64_t guest_off)
{
	struct image *image = chain->layers[e->layer].image;
	struct extent out = {.guest_off = guest_off, .kind = EXTENT_ZERO};
	switch ((enum index_kind)e->kind) {
	case INDEX_ZERO:
	case INDEX_DAMAGED: break;
	case INDEX_DATA:
		out.kind = EXTENT_DATA;
		out.image = image;
		out.host_off = e->host_off + (guest_off - start);
		break;
	case INDEX_COMPRESSED:
		out.kind = EXTENT_COMPRESSED;
		out.image = image;
		out.host_off = e->host_off;
		out.host_len = (uint32_t)((e->sectors + 1u) * 512u - (e->host_off & 511));
		out.cluster_off = (uint32_t)(guest_off & (qcow2_cluster_size(&image->header.geo) - 1));
		break;
	}
	return out;
}

/* What a request means inside its span. */
struct place {
	uint64_t span_no, span_start, from, to;
};

static struct place place_of(const struct chain *chain, uint64_t guest_off, uint64_t len)
{
	unsigned span_bits = chain->id->span_bits;
	uint64_t span_no = guest_off >> span_bits, span_start = span_no << span_bits, from = guest_off - span_start;
	return (struct place){span_no, span_start, from, from + min_u64(len, (1ull << span_bits) - from)};
}

/* As many as there are up to a damaged one. */
static size_t unpack_piece(const struct chain *chain, const struct place *place, const struct index_piece *piece, struct extent *ret, size_t nr)
{
	size_t i = 0;
	for (; i < piece->nr && i < nr; i++) {
		const struct index_extent *e = &piece->extents[i];
		if (e->kind == INDEX_DAMAGED)
			break;
		uint64_t start = index_sector_off(e), end = i + 1 < piece->nr ? index_sector_off(e + 1) : piece->end;
		uint64_t at = start > place->from ? start : place->from;
		ret[i] = unpack(chain, e, place->span_start + start, place->span_start + at);
		ret[i].len = min_u64(end, place->to) - at;
	}
	return i;
}

int index_map(struct index *index, const struct chain *chain, uint64_t guest_off, uint64_t len, struct extent *ret, size_t nr,
	      size_t *ret_nr, uint64_t *cost)
{
	struct place place = place_of(chain, guest_off, len);
	struct index_piece piece;
	int err = get_piece(index, chain, place.span_no, place.from, place.to, &piece, cost);
	if (err)
		return err;
	*ret_nr = unpack_piece(chain, &place, &piece, ret, nr);
	return *ret_nr ? 0 : -EUCLEAN;
}

bool index_peek(struct index *index, const struct chain *chain, uint64_t guest_off, uint64_t len, struct extent *ret)
{
	struct place place = place_of(chain, guest_off, len);
	struct index_piece piece;
	return index_lookup(index, chain->id->number, place.span_no, chain->id->span_bits, place.from, place.to, &piece) &&
	       unpack_piece(chain, &place, &piece, ret, 1);
}

void index_get_stats(struct index *index, struct index_stats *ret)
{
	*ret = (struct index_stats){.bytes = index->own_bytes};
	for (unsigned i = 0; i < index->nr_rings; i++) {
		struct ring *ring = &index->rings[i];
		pthread_mutex_lock(&ring->lock);
		ret->nr_hits += ring->stats.nr_hits;
		ret->nr_built += ring->stats.nr_built;
		ret->nr_asked += ring->stats.nr_asked;
		ret->nr_spans += ring->stats.nr_spans;
		ret->bytes += ring->size + ring->nr_buckets * sizeof *ring->buckets;
		pthread_mutex_unlock(&ring->lock);
	}
}
