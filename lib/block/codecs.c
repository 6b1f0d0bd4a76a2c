#include "block/codecs.h"

#include <errno.h>
#include <libdeflate.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "base/file.h"
#include "block/qcow2_format.h"

#define MAX_IDLE      16u
#define INPUT_KEPT    (256u << 10) /* a larger buffer isn't kept: images decide how large it must be */

/* What one thread decompresses with. */
struct codec {
	z_stream zlib;
	bool zlib_ready;
	ZSTD_DCtx *zstd;
	struct libdeflate_decompressor *deflate;
	void *in;
	size_t in_cap;
	struct codec *next; /* among the idle ones */
};

struct codecs {
	pthread_mutex_t lock;
	/* protected by lock */
	struct codec *idle;
	unsigned nr_idle;
};

int codecs_new(struct codecs **ret)
{
	struct codecs *codecs = calloc(1, sizeof *codecs);
	if (!codecs)
		return -ENOMEM;
	pthread_mutex_init(&codecs->lock, NULL);
	*ret = codecs;
	return 0;
}

static void codec_free(struct codec *codec)
{
	if (!codec)
		return;
	if (codec->zlib_ready)
		inflateEnd(&codec->zlib);
	ZSTD_freeDCtx(codec->zstd);
	libdeflate_free_decompressor(codec->deflate);
	free(codec->in);
	free(codec);
}

void codecs_free(struct codecs *codecs)
{
	if (!codecs)
		return;
	for (struct codec *codec = codecs->idle, *next; codec; codec = next) {
		next = codec->next;
		codec_free(codec);
	}
	pthread_mutex_destroy(&codecs->lock);
	free(codecs);
}

static struct codec *codec_get(struct codecs *codecs)
{
	pthread_mutex_lock(&codecs->lock);
	struct codec *codec = codecs->idle;
	if (codec) {
		codecs->idle = codec->next;
		codecs->nr_idle--;
	}
	pthread_mutex_unlock(&codecs->lock);
	return codec ? codec : calloc(1, sizeof *codec);
}

static void codec_put(struct codecs *codecs, struct codec *codec)
{
	if (codec->in_cap > INPUT_KEPT) {
		free(codec->in);
		codec->in = NULL;
		codec->in_cap = 0;
	}
	pthread_mutex_lock(&codecs->lock);
	bool keep = codecs->nr_idle < MAX_IDLE;
	if (keep) {
		codec->next = codecs->idle;
		codecs->idle = codec;
		codecs->nr_idle++;
	}
	pthread_mutex_unlock(&codecs->lock);
	if (!keep)
		codec_free(codec);
}

/* Raw deflate, window of 4 KiB, as the format has it. libdeflate is twice as fast, and knows whole streams alone; what it refuses zlib decides, as
 * QEMU does: the stream may end early where the last sector is shared, or go on behind the cluster. (Of damaged streams it takes some that zlib refuses:
 * unused symbols, incomplete codes. There is no checksum in them anyway.) */
static int read_zlib(struct codec *codec, size_t in_len, void *out, size_t out_len)
{
	z_stream *z = &codec->zlib;
	size_t in_used = 0, out_used = 0;
	if (!codec->deflate)
		codec->deflate = libdeflate_alloc_decompressor();
	if (codec->deflate &&
	    libdeflate_deflate_decompress_ex(codec->deflate, codec->in, in_len, out, out_len, &in_used, &out_used) == LIBDEFLATE_SUCCESS &&
	    out_used == out_len)
		return 0;
	if (!codec->zlib_ready && inflateInit2(z, -12) != Z_OK)
		return -ENOMEM;
	codec->zlib_ready = true;
	inflateReset(z);
	z->next_in = codec->in;
	z->avail_in = (uInt)in_len;
	z->next_out = out;
	z->avail_out = (uInt)out_len;
	int ret = inflate(z, Z_FINISH);
	return (ret == Z_STREAM_END || ret == Z_BUF_ERROR || ret == Z_OK) && z->avail_out == 0 ? 0 : -EUCLEAN;
}

/* One frame for the cluster is what everybody writes; several, or empty ones in between, are read as well. Each at once, without a window of its own, which
 * could take as much memory as the stream says; none may go on behind the cluster, as QEMU has it. */
static int read_zstd(struct codec *codec, size_t in_len, void *out, size_t out_len)
{
	if (!codec->zstd)
		codec->zstd = ZSTD_createDCtx();
	if (!codec->zstd)
		return -ENOMEM;
	for (size_t in = 0, done = 0; done < out_len;) {
		size_t frame_len = ZSTD_findFrameCompressedSize((char *)codec->in + in, in_len - in);
		size_t n = ZSTD_isError(frame_len)
			       ? frame_len
			       : ZSTD_decompressDCtx(codec->zstd, (char *)out + done, out_len - done, (char *)codec->in + in, frame_len);
		if (ZSTD_isError(n))
			return -EUCLEAN;
		in += frame_len;
		done += n;
	}
	return 0;
}

static int load_input(struct codec *codec, const struct compressed_cluster *cluster, size_t *ret_len)
{
	if (codec->in_cap < cluster->host_len) {
		free(codec->in);
		codec->in = malloc(cluster->host_len);
		codec->in_cap = codec->in ? cluster->host_len : 0;
		if (!codec->in)
			return -ENOMEM;
	}
	ssize_t n = file_read(cluster->fd, codec->in, cluster->host_len, cluster->host_off);
	if (n < 0)
		return (int)n;
	*ret_len = (size_t)n;
	return 0;
}

int codecs_read(struct codecs *codecs, const struct compressed_cluster *cluster, void *out)
{
	struct codec *codec = codec_get(codecs);
	size_t in_len = 0;
	int err = codec ? load_input(codec, cluster, &in_len) : -ENOMEM;
	if (!err && cluster->compression == QCOW2_COMPRESSION_ZSTD)
		err = read_zstd(codec, in_len, out, cluster->cluster_size);
	else if (!err)
		err = read_zlib(codec, in_len, out, cluster->cluster_size);
	if (codec)
		codec_put(codecs, codec);
	return err;
}
