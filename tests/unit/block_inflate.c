/* Raw deflate streams of every kind, whole, cut off and damaged, against zlib. block_inflate [SEED [STREAMS]] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zlib.h>

#include "block/inflate.h"

#define MAX_LEN (200u << 10)

#define CHECK(cond) \
	do { \
		if (!(cond)) { \
			printf("%s:%d: %s\n", __FILE__, __LINE__, #cond); \
			exit(1); \
		} \
	} while (0)

static unsigned pick(unsigned below)
{
	return (unsigned)random() % below;
}

/* Noise, text, runs, and what repeats at every distance. */
static void fill(unsigned char *p, size_t len)
{
	unsigned kind = pick(5), letters = 1 + pick(256);
	for (size_t i = 0; i < len;) {
		size_t run = 1 + pick(kind == 0 ? 1 : kind == 1 ? 12 : kind == 2 ? 300 : 5000);
		size_t dist = i ? 1 + pick(pick(3) ? (unsigned)(i < 40 ? i : 40) : (unsigned)(i < 32768 ? i : 32768)) : 0;
		bool copy = dist && kind && pick(2);
		for (; run && i < len; run--, i++)
			p[i] = copy ? p[i - dist] : (unsigned char)(pick(letters) * (kind == 3));
		if (kind != 3 && i < len)
			p[i++] = (unsigned char)pick(letters);
	}
}

static size_t deflate_randomly(unsigned char *in, size_t len, unsigned char *out, size_t out_len)
{
	static const int strategies[] = {Z_DEFAULT_STRATEGY, Z_FIXED, Z_HUFFMAN_ONLY, Z_RLE, Z_FILTERED};
	z_stream z = {.next_in = in, .next_out = out, .avail_out = (uInt)out_len};
	CHECK(deflateInit2(&z, (int)pick(10), Z_DEFLATED, -9 - (int)pick(7), 1 + (int)pick(9), strategies[pick(5)]) == Z_OK);
	while (len > (size_t)(z.next_in - in)) { /* in pieces: blocks of all kinds, empty ones too */
		size_t left = len - (size_t)(z.next_in - in), piece = pick(3) ? left : 1 + pick((unsigned)left);
		z.avail_in = (uInt)piece;
		CHECK(deflate(&z, pick(2) ? Z_FULL_FLUSH : Z_NO_FLUSH) == Z_OK);
	}
	CHECK(deflate(&z, Z_FINISH) == Z_STREAM_END);
	deflateEnd(&z);
	return out_len - z.avail_out;
}

/* How many bytes of it zlib makes. */
static size_t inflate_by_zlib(unsigned char *in, size_t in_len, unsigned char *out, size_t out_len)
{
	z_stream z = {.next_in = in, .avail_in = (uInt)in_len, .next_out = out, .avail_out = (uInt)out_len};
	CHECK(inflateInit2(&z, -15) == Z_OK);
	inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return out_len - z.avail_out;
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	int nr_streams = argc > 2 ? atoi(argv[2]) : 300;
	static unsigned char plain[MAX_LEN], packed[2 * MAX_LEN];
	static struct inflate_tables tables;
	unsigned nr_taken = 0;
	printf("seed %u\n", seed);
	srandom(seed);
	for (int i = 0; i < nr_streams; i++) {
		size_t len = 1 + pick(pick(2) ? MAX_LEN : 3000);
		fill(plain, len);
		size_t packed_len = deflate_randomly(plain, len, packed, sizeof packed);
		/* Exactly as large as they may be touched: the sanitizers watch the ends. */
		unsigned char *in = malloc(packed_len), *out = malloc(len), *want = malloc(len);
		CHECK(in && out && want);
		memcpy(in, packed, packed_len);
		CHECK(inflate_whole(&tables, in, packed_len, out, len) && memcmp(out, plain, len) == 0);
		size_t part = 1 + pick((unsigned)len);
		CHECK(inflate_whole(&tables, in, packed_len, out, part) && memcmp(out, plain, part) == 0);
		for (unsigned n = 0; n < 20; n++) {
			unsigned char *damaged = malloc(packed_len);
			size_t damaged_len = pick(4) ? packed_len : 1 + pick((unsigned)packed_len);
			CHECK(damaged);
			memcpy(damaged, in, packed_len);
			for (unsigned hits = pick(4); hits; hits--)
				damaged[pick(pick(2) ? (unsigned)packed_len : packed_len < 60 ? (unsigned)packed_len : 60)] ^= (unsigned char)(1u << pick(8));
			bool taken = inflate_whole(&tables, damaged, damaged_len, out, len);
			nr_taken += taken;
			CHECK(!taken || (inflate_by_zlib(damaged, damaged_len, want, len) == len && memcmp(out, want, len) == 0));
			free(damaged);
		}
		free(in);
		free(out);
		free(want);
	}
	printf("%u damaged streams make a whole\nok\n", nr_taken);
	return 0;
}
