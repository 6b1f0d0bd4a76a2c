#include "block/chain_ids.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "block/image_priv.h"
#include "block/index.h"

#define NR_BUCKETS 4096u
#define MAX_IDS    16384u /* beyond, those that nobody uses go */

struct chain_ids {
	pthread_mutex_t lock;
	/* protected by lock */
	struct chain_id *buckets[NR_BUCKETS];
	struct chain_id *oldest, *newest; /* the unused ones */
	size_t nr_ids;
	uint64_t last_number;
};

int chain_ids_new(struct chain_ids **ret)
{
	struct chain_ids *ids = calloc(1, sizeof *ids);
	if (!ids)
		return -ENOMEM;
	pthread_mutex_init(&ids->lock, NULL);
	*ret = ids;
	return 0;
}

void chain_ids_free(struct chain_ids *ids)
{
	if (!ids)
		return;
	for (size_t i = 0; i < NR_BUCKETS; i++) {
		for (struct chain_id *id = ids->buckets[i], *next; id; id = next) {
			next = id->next;
			free(id);
		}
	}
	pthread_mutex_destroy(&ids->lock);
	free(ids);
}

static struct chain_id **bucket_of(struct chain_ids *ids, uint64_t serial, uint64_t below)
{
	uint64_t h = serial * 0x9e3779b97f4a7c15ull ^ below * 0xc2b2ae3d27d4eb4full;
	return &ids->buckets[(h >> 32) % NR_BUCKETS];
}

static uint64_t number_of(const struct chain_id *id)
{
	return id ? id->number : 0;
}

static void unused_unlink_locked(struct chain_ids *ids, struct chain_id *id)
{
	*(id->older ? &id->older->newer : &ids->oldest) = id->newer;
	*(id->newer ? &id->newer->older : &ids->newest) = id->older;
	id->older = id->newer = NULL;
}

static void unused_push_locked(struct chain_ids *ids, struct chain_id *id)
{
	id->older = ids->newest;
	id->newer = NULL;
	*(ids->newest ? &ids->newest->newer : &ids->oldest) = id;
	ids->newest = id;
}

static void put_locked(struct chain_ids *ids, struct chain_id *id)
{
	if (id && --id->nr_users == 0)
		unused_push_locked(ids, id);
}

static void forget_locked(struct chain_ids *ids, struct chain_id *id)
{
	struct chain_id **link = bucket_of(ids, id->serial, number_of(id->below));
	while (*link != id)
		link = &(*link)->next;
	*link = id->next;
	unused_unlink_locked(ids, id);
	ids->nr_ids--;
	put_locked(ids, id->below);
	free(id);
}

static bool is_same(const struct chain_id *id, const struct layer *layer, const struct chain_id *below)
{
	return id->serial == layer->image->serial && id->below == below && id->l1_offset == layer->l1_offset &&
	       id->l1_size == layer->l1_size && id->virtual_size == layer->virtual_size;
}

/* Takes over the reference to BELOW, also on failure. */
static struct chain_id *get_locked(struct chain_ids *ids, const struct layer *layer, struct chain_id *below)
{
	struct chain_id **bucket = bucket_of(ids, layer->image->serial, number_of(below));
	for (struct chain_id *id = *bucket; id; id = id->next) {
		if (is_same(id, layer, below)) {
			if (id->nr_users++ == 0)
				unused_unlink_locked(ids, id);
			put_locked(ids, below); /* ID has one of its own */
			return id;
		}
	}
	struct chain_id *id = calloc(1, sizeof *id);
	if (!id) {
		put_locked(ids, below);
		return NULL;
	}
	unsigned span_bits = index_layer_span_bits(layer);
	*id = (struct chain_id){
		.number = ++ids->last_number,
		.below = below,
		.span_bits = below && below->span_bits < span_bits ? below->span_bits : span_bits,
		.serial = layer->image->serial,
		.l1_offset = layer->l1_offset,
		.virtual_size = layer->virtual_size,
		.l1_size = layer->l1_size,
		.nr_users = 1,
		.next = *bucket,
	};
	*bucket = id;
	ids->nr_ids++;
	return id;
}

int chain_id_get(struct chain_ids *ids, const struct layer *layers, size_t nr, struct chain_id **ret)
{
	struct chain_id *id = NULL;
	pthread_mutex_lock(&ids->lock);
	for (size_t i = nr; i-- > 0 && (id || i == nr - 1);)
		id = get_locked(ids, &layers[i], id);
	pthread_mutex_unlock(&ids->lock);
	*ret = id;
	return id || !nr ? 0 : -ENOMEM;
}

int chain_id_get_over(struct chain_ids *ids, const struct layer *layer, struct chain_id *below, struct chain_id **ret)
{
	pthread_mutex_lock(&ids->lock);
	if (below)
		below->nr_users++; /* in use already: its view has it */
	*ret = get_locked(ids, layer, below);
	pthread_mutex_unlock(&ids->lock);
	return *ret ? 0 : -ENOMEM;
}

void chain_id_put(struct chain_ids *ids, struct chain_id *id)
{
	pthread_mutex_lock(&ids->lock);
	put_locked(ids, id);
	while (ids->oldest && ids->nr_ids > MAX_IDS)
		forget_locked(ids, ids->oldest);
	pthread_mutex_unlock(&ids->lock);
}
