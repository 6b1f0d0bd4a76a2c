#include "block/cluster_cache.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/qcow2_format.h"

struct entry {
	uint64_t serial, host_off;
	size_t len;
	struct entry *older, *newer;
	unsigned nr_users;
	char data[];
};

struct cluster_cache {
	size_t max_bytes;
	pthread_mutex_t lock;
	/* protected by lock */
	struct entry *oldest, *newest;
	size_t bytes;
};

int cluster_cache_new(size_t max_bytes, struct cluster_cache **ret)
{
	struct cluster_cache *cache = calloc(1, sizeof *cache);
	if (!cache)
		return -ENOMEM;
	cache->max_bytes = max_bytes;
	pthread_mutex_init(&cache->lock, NULL);
	*ret = cache;
	return 0;
}

void cluster_cache_free(struct cluster_cache *cache)
{
	if (!cache)
		return;
	for (struct entry *e = cache->oldest, *newer; e; e = newer) {
		newer = e->newer;
		free(e);
	}
	pthread_mutex_destroy(&cache->lock);
	free(cache);
}

/* Raw deflate, window of 4 KiB, as the format has it. The stream may end early where the last sector is shared. */
static int inflate_zlib(const void *in, size_t in_len, void *out, size_t out_len)
{
	z_stream z = {.next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)in_len, .next_out = out, .avail_out = (uInt)out_len};
	if (inflateInit2(&z, -12) != Z_OK)
		return -ENOMEM;
	int ret = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return (ret == Z_STREAM_END || ret == Z_BUF_ERROR || ret == Z_OK) && z.avail_out == 0 ? 0 : -EUCLEAN;
}

static int inflate_zstd(const void *in, size_t in_len, void *out, size_t out_len)
{
	ZSTD_DStream *z = ZSTD_createDStream();
	if (!z)
		return -ENOMEM;
	ZSTD_inBuffer src = {in, in_len, 0};
	ZSTD_outBuffer dst = {out, out_len, 0};
	size_t ret = 0;
	while (dst.pos < dst.size && src.pos < src.size) {
		size_t in_before = src.pos, out_before = dst.pos;
		ret = ZSTD_decompressStream(z, &dst, &src);
		if (ZSTD_isError(ret) || (src.pos == in_before && dst.pos == out_before))
			break;
	}
	ZSTD_freeDStream(z);
	return !ZSTD_isError(ret) && dst.pos == dst.size ? 0 : -EUCLEAN;
}

static int decompress(const struct compressed_cluster *cluster, void *out)
{
	auto_free void *in = malloc(cluster->host_len);
	if (!in)
		return -ENOMEM;
	ssize_t n = file_read(cluster->fd, in, cluster->host_len, cluster->host_off);
	if (n < 0)
		return (int)n;
	if (cluster->compression == QCOW2_COMPRESSION_ZSTD)
		return inflate_zstd(in, (size_t)n, out, cluster->cluster_size);
	return inflate_zlib(in, (size_t)n, out, cluster->cluster_size);
}

static void lru_unlink(struct cluster_cache *cache, struct entry *e)
{
	*(e->older ? &e->older->newer : &cache->oldest) = e->newer;
	*(e->newer ? &e->newer->older : &cache->newest) = e->older;
}

static void lru_push(struct cluster_cache *cache, struct entry *e)
{
	e->older = cache->newest;
	e->newer = NULL;
	*(cache->newest ? &cache->newest->newer : &cache->oldest) = e;
	cache->newest = e;
}

static struct entry *get(struct cluster_cache *cache, const struct compressed_cluster *cluster)
{
	pthread_mutex_lock(&cache->lock);
	struct entry *e = cache->newest;
	while (e && (e->serial != cluster->serial || e->host_off != cluster->host_off || e->len != cluster->cluster_size))
		e = e->older;
	if (e) {
		lru_unlink(cache, e);
		lru_push(cache, e);
		e->nr_users++;
	}
	pthread_mutex_unlock(&cache->lock);
	return e;
}

static void put(struct cluster_cache *cache, struct entry *e)
{
	pthread_mutex_lock(&cache->lock);
	e->nr_users--;
	pthread_mutex_unlock(&cache->lock);
}

/* Two threads may have made the same cluster: both entries live, the older one ages out. */
static void insert(struct cluster_cache *cache, struct entry *made)
{
	pthread_mutex_lock(&cache->lock);
	for (struct entry *e = cache->oldest, *newer; e && cache->bytes + made->len > cache->max_bytes; e = newer) {
		newer = e->newer;
		if (e->nr_users)
			continue;
		lru_unlink(cache, e);
		cache->bytes -= e->len;
		free(e);
	}
	lru_push(cache, made);
	cache->bytes += made->len;
	pthread_mutex_unlock(&cache->lock);
}

int cluster_cache_read(struct cluster_cache *cache, const struct compressed_cluster *cluster, uint32_t off, void *buf,
		       size_t len)
{
	struct entry *e = get(cache, cluster);
	if (!e) {
		auto_free struct entry *made = malloc(sizeof *made + cluster->cluster_size);
		if (!made)
			return -ENOMEM;
		*made = (struct entry){.serial = cluster->serial, .host_off = cluster->host_off, .len = cluster->cluster_size, .nr_users = 1};
		int err = decompress(cluster, made->data);
		if (err)
			return err;
		e = take_ptr(made);
		insert(cache, e);
	}
	memcpy(buf, e->data + off, len);
	put(cache, e);
	return 0;
}
