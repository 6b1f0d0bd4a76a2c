/* limit: 300 nightly: 1800
 * A compressed cluster: byte 0 says the method and the cluster's size, the rest is the stream, at a place that isn't a sector's start. The bytes, or the damage,
 * must be those that zlib and zstd find by themselves, as QEMU calls them. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "block/cluster_cache.h"
#include "block/codecs.h"
#include "block/qcow2_format.h"
#include "common/fuzz.h"
#include "common/ref.h"

/* The cluster, its stream, and what the decompressors take for themselves. */
#define MEMORY_MAX (1u << 20)
#define PLACE	   777u

static uint8_t *decompress(const struct compressed_cluster *cluster, int *err)
{
	struct codecs *codecs = NULL;
	uint8_t *out = calloc(1, cluster->cluster_size);
	FUZZ_CHECK(out && codecs_new(&codecs) == 0);
	*err = codecs_read(codecs, cluster, out);
	/* With what is kept from the first time. */
	FUZZ_CHECK(codecs_read(codecs, cluster, out) == *err);
	codecs_free(codecs);
	return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	if (!size)
		return -1;
	if (fd < 0)
		fd = openat(fuzz_dirfd(), "cluster", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	bool zstd = data[0] & 1;
	uint32_t cluster_size = 512u << (data[0] / 2 % 8);
	FUZZ_CHECK(ftruncate(fd, 0) == 0 && fuzz_pwrite(fd, data + 1, size - 1, PLACE) == (ssize_t)size - 1);
	/* The length of the entry goes on to a sector's end, the file need not. */
	struct compressed_cluster cluster = {
		.fd = fd,
		.host_off = PLACE,
		.host_len = (uint32_t)((PLACE % 512 + size - 1 + 511) / 512 * 512 - PLACE % 512),
		.compression = zstd ? QCOW2_COMPRESSION_ZSTD : QCOW2_COMPRESSION_ZLIB,
		.cluster_size = cluster_size,
	};
	int err = 0;
	fuzz_begin(MEMORY_MAX, 8, 1u << 20);
	uint8_t *out = decompress(&cluster, &err);
	fuzz_end();
	uint8_t *expected = calloc(1, cluster_size);
	bool good = (zstd ? ref_zstd : ref_inflate)(data + 1, size - 1, expected, cluster_size);
	if (good != (err == 0))
		fuzz_fail("%s: %d, %s by itself says %s", zstd ? "zstd" : "zlib", err, zstd ? "zstd" : "zlib", good ? "fine" : "damaged");
	FUZZ_CHECK(!good || memcmp(out, expected, cluster_size) == 0);
	free(out);
	free(expected);
	return 0;
}

/* Streams of all sorts are hard to find by chance: now and then some are made, and then changed. */
static size_t make_stream(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	static uint8_t plain[1 << 16], made[1 << 17];
	size_t len = 512u << (data[0] / 2 % 8), fill = size - 1 < len ? size - 1 : len, made_len = 0;
	for (size_t i = 0; i < len; i++)
		plain[i] = fill ? data[1 + i % fill] : 0;
	len = seed & 64 ? len - seed / 128 % 3 : seed & 32 ? len + 1 : len;
	len = len < sizeof plain ? len : sizeof plain;
	if (data[0] & 1) {
		made_len = ZSTD_compress(made, sizeof made, plain, len, (int)(seed % 20));
	} else {
		z_stream z = {.next_in = plain, .avail_in = (uInt)len, .next_out = made, .avail_out = sizeof made};
		if (deflateInit2(&z, (int)(seed % 10), Z_DEFLATED, seed & 16 ? -15 : -12, 9, (int)(seed / 16 % 5)) == Z_OK)
			deflate(&z, seed & 1024 ? Z_SYNC_FLUSH : Z_FINISH);
		made_len = z.total_out;
		deflateEnd(&z);
	}
	if (!made_len || made_len > max_size - 1)
		return size;
	memcpy(data + 1, made, made_len);
	return 1 + made_len;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	if (size > 1 && seed % 7 == 0)
		size = make_stream(data, size, max_size, seed / 7);
	return seed % 14 == 0 ? size : LLVMFuzzerMutate(data, size, max_size);
}
