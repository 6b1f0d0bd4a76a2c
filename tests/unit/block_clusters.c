/* Compressed clusters through the cache: many threads, whole clusters and parts, wishes ahead, a cache too small for all of them,
 * streams of all kinds and damaged ones. Meant for ThreadSanitizer as well. block_clusters [SEED [STEPS]] */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/image_priv.h"
#include "block/qcow2_format.h"
#include "check.h"

#define NR_CLUSTERS 60u
#define NR_THREADS  5u
#define SLOT	    (1u << 18) /* in the file, for each */
#define CACHE_BYTES (400u << 10)

static struct image_cache *images;
static struct cluster_cache *cache;
static struct image *image;
static int nr_steps = 400;
static struct {
	struct compressed_cluster cluster;
	unsigned char *bytes; /* NULL: damaged */
} clusters[NR_CLUSTERS];

static unsigned pick(unsigned below)
{
	return (unsigned)random() % below;
}

static void fill(unsigned char *p, size_t len)
{
	unsigned kind = pick(4);
	for (size_t i = 0; i < len;) {
		size_t run = 1 + pick(kind == 0 ? 1 : kind == 1 ? 20 : 3000), from = i ? pick((unsigned)i) : 0;
		bool copy = i && kind && pick(2);
		int byte = (int)random();
		for (; run && i < len; run--, i++)
			p[i] = copy ? p[from++] : (unsigned char)(kind == 2 ? byte : random());
	}
}

static size_t compress_zlib(const void *in, size_t len, void *out, size_t out_len)
{
	static const int strategies[] = {Z_DEFAULT_STRATEGY, Z_FIXED, Z_HUFFMAN_ONLY, Z_RLE, Z_FILTERED};
	z_stream z = {.next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)len, .next_out = out, .avail_out = (uInt)out_len};
	CHECK(deflateInit2(&z, (int)pick(10), Z_DEFLATED, -12, 9, strategies[pick(5)]) == Z_OK);
	CHECK(deflate(&z, Z_FINISH) == Z_STREAM_END);
	deflateEnd(&z);
	return out_len - z.avail_out;
}

static void make_cluster(unsigned i, int fd)
{
	static unsigned char packed[SLOT];
	uint32_t len = 512u << pick(8);
	unsigned char *bytes = malloc(len);
	CHECK(bytes);
	fill(bytes, len);
	bool zstd = pick(3) == 0;
	memset(packed, 0xee, sizeof packed); /* what follows in the last sector is somebody else's */
	size_t packed_len = zstd ? ZSTD_compress(packed, sizeof packed, bytes, len, 3) : compress_zlib(bytes, len, packed, sizeof packed);
	CHECK(packed_len < sizeof packed);
	uint64_t off = (uint64_t)i * SLOT + pick(512);
	uint32_t host_len = (uint32_t)(((off & 511) + packed_len + 511) / 512 * 512 - (off & 511));
	clusters[i].cluster = (struct compressed_cluster){.serial = image ? image->serial : 1, .fd = fd, .host_off = off, .host_len = host_len,
							  .compression = zstd ? QCOW2_COMPRESSION_ZSTD : QCOW2_COMPRESSION_ZLIB, .cluster_size = len};
	if (pick(8) == 0) { /* the stream ends before the cluster does */
		clusters[i].cluster.cluster_size *= 2;
		free(bytes);
		bytes = NULL;
	}
	clusters[i].bytes = bytes;
	CHECK(file_write(fd, packed, packed_len, off) == 0);
}

static void *work(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	auto_free char *buf = malloc(SLOT);
	for (int step = 0; step < nr_steps; step++) {
		unsigned i = (unsigned)rand_r(&seed) % NR_CLUSTERS;
		for (unsigned n = (unsigned)rand_r(&seed) % 4; n; n--)
			cluster_cache_want(cache, &clusters[(i + n) % NR_CLUSTERS].cluster, image);
		uint32_t size = clusters[i].cluster.cluster_size, off = 0, len = size;
		if (rand_r(&seed) % 2) {
			off = (uint32_t)rand_r(&seed) % size;
			len = 1 + (uint32_t)rand_r(&seed) % (size - off);
		}
		int err = cluster_cache_read(cache, &clusters[i].cluster, off, buf, len);
		CHECK(err == (clusters[i].bytes ? 0 : -EUCLEAN));
		CHECK(err || memcmp(buf, clusters[i].bytes + off, len) == 0);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	if (argc > 2)
		nr_steps = atoi(argv[2]);
	printf("seed %u\n", seed);
	srandom(seed);
	char dir[200], path[300], cmd[300];
	struct trust *trust;
	struct reason why = {""};
	snprintf(dir, sizeof dir, "%s/block_clusters.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	CHECK(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/clusters", dir);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, (off_t)NR_CLUSTERS * SLOT) == 0);
	CHECK(trust_new(&trust) == 0 && trust_add(trust, dir, &why) == 0 && image_cache_new(trust, 0, &images) == 0);
	CHECK(image_open(images, NULL, path, IMAGE_RAW, &image, &why) == 0);
	for (unsigned i = 0; i < NR_CLUSTERS; i++)
		make_cluster(i, fd);
	CHECK(cluster_cache_new(CACHE_BYTES, &cache) == 0);
	pthread_t threads[NR_THREADS];
	for (unsigned i = 0; i < NR_THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(seed * 31 + i)) == 0);
	for (unsigned i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i], NULL);
	for (unsigned i = 0; i < 20; i++)
		cluster_cache_want(cache, &clusters[i].cluster, image);
	cluster_cache_stop(cache);
	cluster_cache_free(cache);
	image_put(image);
	image_cache_free(images);
	trust_free(trust);
	close(fd);
	for (unsigned i = 0; i < NR_CLUSTERS; i++)
		free(clusters[i].bytes);
	snprintf(cmd, sizeof cmd, "rm -r %s", dir);
	CHECK(system(cmd) == 0);
	puts("ok");
	return 0;
}
