/* The map is walked by one thread: what can be shared is shared at once, the rest is collected, in pieces for all processors. What they write is whole blocks,
 * so that no two of them meet in one. */
#include "block/fill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "block/raw.h"
#include "block/share.h"

#define BLOCK	     4096u	   /* zeros of this size and place become holes */
#define PIECE	     (256u << 10)  /* stays in a processor's cache from reading to writing */
#define NR_PIECES    512u	   /* collected before they are copied */
#define NR_BUFS	     64u	   /* more threads than ever come wait */
#define STEP	     (1ull << 30)  /* shared or zeroed between two looks at `stop` */
#define CHECKPOINT_S 3

enum zeros { ZEROS_HOLES /* they are there */, ZEROS_DEVICE, ZEROS_WRITTEN };

struct piece {
	uint64_t off;
	uint32_t len;
};

struct fill {
	struct view *view;
	int fd;
	const struct fill_spec *spec;
	uint64_t size;
	enum zeros zeros;
	uint64_t block_size; /* of the filesystem; 0: nothing is shared */
	const struct image *unshared; /* the last one that lies elsewhere */
	time_t checkpoint_at;
	/* to be copied */
	struct piece pieces[NR_PIECES];
	size_t nr_pieces;
	atomic_int err;
	char *_Atomic bufs[NR_BUFS]; /* NULL: somebody has it, or it wasn't made yet */
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static int check_stop(const struct fill *fill)
{
	return fill->spec->stop && atomic_load(fill->spec->stop) ? -ECANCELED : 0;
}

static void add_done(const struct fill *fill, uint64_t len)
{
	if (fill->spec->done)
		atomic_fetch_add(fill->spec->done, len);
}

/* --- copying --------------------------------------------------------------------------------------------------------- */

static char *take_buf(struct fill *fill)
{
	for (size_t i = 0; i < NR_BUFS; i++) {
		char *buf = atomic_exchange(&fill->bufs[i], NULL);
		if (buf)
			return buf;
	}
	return malloc(PIECE);
}

static void give_buf(struct fill *fill, char *buf)
{
	for (size_t i = 0; i < NR_BUFS; i++) {
		char *none = NULL;
		if (atomic_compare_exchange_strong(&fill->bufs[i], &none, buf))
			return;
	}
	free(buf);
}

static bool is_zeros(const char *p, size_t len)
{
	return !*p && memcmp(p, p + 1, len - 1) == 0;
}

/* Of BUF, which begins with a block, the blocks from DONE on that are alike: their bytes. */
static size_t alike_len(const char *buf, size_t len, size_t done, bool *ret_zeros)
{
	size_t end = done;
	do {
		size_t n = (size_t)min_u64(BLOCK, len - end);
		bool zeros = is_zeros(buf + end, n);
		if (end == done)
			*ret_zeros = zeros;
		else if (zeros != *ret_zeros)
			break;
		end += n;
	} while (end < len);
	return end - done;
}

static int write_sparse(int fd, const char *buf, size_t len, uint64_t off)
{
	int err = 0;
	for (size_t done = 0, n; done < len && !err; done += n) {
		bool zeros = false;
		n = alike_len(buf, len, done, &zeros);
		err = zeros ? 0 : file_write(fd, buf + done, n, off + done);
	}
	return err;
}

static void copy_piece(void *ctx, size_t i)
{
	struct fill *fill = ctx;
	const struct piece *piece = &fill->pieces[i];
	int err = check_stop(fill), none = 0;
	if (atomic_load(&fill->err))
		return;
	char *buf = err ? NULL : take_buf(fill);
	if (!err && !buf)
		err = -ENOMEM;
	if (!err)
		err = view_read(fill->view, buf, piece->len, piece->off);
	if (!err)
		err = fill->zeros == ZEROS_HOLES ? write_sparse(fill->fd, buf, piece->len, piece->off)
						 : file_write(fill->fd, buf, piece->len, piece->off);
	if (buf)
		give_buf(fill, buf);
	if (err)
		atomic_compare_exchange_strong(&fill->err, &none, err);
	else
		add_done(fill, piece->len);
}

/* They are on their way to the disk while the next ones are copied: what is to be stable in the end is then mostly there. */
static int copy_pieces(struct fill *fill)
{
	if (!fill->nr_pieces)
		return 0;
	uint64_t off = fill->pieces[0].off, end = fill->pieces[fill->nr_pieces - 1].off + fill->pieces[fill->nr_pieces - 1].len;
	parallel_for(fill->nr_pieces, copy_piece, fill);
	fill->nr_pieces = 0;
	sync_file_range(fill->fd, (off_t)off, (off_t)(end - off), SYNC_FILE_RANGE_WRITE);
	return atomic_load(&fill->err);
}

/* [OFF, END) is to be copied, with the blocks that it touches. */
static int add_pieces(struct fill *fill, uint64_t off, uint64_t end)
{
	off = off / BLOCK * BLOCK;
	end = min_u64((end + BLOCK - 1) / BLOCK * BLOCK, fill->size);
	int err = 0;
	while (off < end && !err) {
		struct piece *last = fill->nr_pieces ? &fill->pieces[fill->nr_pieces - 1] : NULL;
		uint64_t stop = min_u64(end, (off / PIECE + 1) * PIECE);
		if (last && last->off + last->len > off) { /* its last block, again */
			off = last->off + last->len;
			continue;
		}
		if (last && last->off + last->len == off && off % PIECE)
			last->len += (uint32_t)(stop - off);
		else
			fill->pieces[fill->nr_pieces++] = (struct piece){off, (uint32_t)(stop - off)};
		if (fill->nr_pieces == NR_PIECES)
			err = copy_pieces(fill);
		off = stop;
	}
	return err;
}

/* --- sharing ----------------------------------------------------------------------------------------------------------- */

/* The blocks of [SKIP, +LEN) of RUN: what is shared of them ends at *RET_END of the disk. */
static int share_steps(struct fill *fill, const struct extent *run, uint64_t skip, uint64_t len, uint64_t *ret_end)
{
	int err = 0;
	*ret_end = run->guest_off + skip;
	while (len && !err) {
		uint64_t n = min_u64(len, STEP);
		err = check_stop(fill);
		if (!err)
			err = share_blocks(fill->fd, run, skip, n, run->guest_off + skip);
		if (err)
			break;
		add_done(fill, n);
		*ret_end += n;
		skip += n;
		len -= n;
	}
	if (err == -EOPNOTSUPP)
		fill->block_size = 0;
	if (err == -EXDEV)
		fill->unshared = run->image;
	return err == SHARE_COPY || err == -EOPNOTSUPP || err == -EXDEV ? 0 : err;
}

static int add_data(struct fill *fill, const struct extent *run)
{
	uint64_t skip = 0, len = 0, end = run->guest_off + run->len, shared_end = 0;
	if (run->kind == EXTENT_DATA && fill->block_size && run->image != fill->unshared)
		share_part(run, run->guest_off, fill->block_size, &skip, &len);
	if (!len)
		return add_pieces(fill, run->guest_off, end);
	int err = share_steps(fill, run, skip, len, &shared_end);
	if (!err && skip)
		err = add_pieces(fill, run->guest_off, run->guest_off + skip);
	return !err && shared_end < end ? add_pieces(fill, shared_end, end) : err;
}

/* --- the whole ----------------------------------------------------------------------------------------------------------- */

static int add_zeros(struct fill *fill, uint64_t off, uint64_t len)
{
	int err = 0;
	for (uint64_t n; len && !err; off += n, len -= n) {
		n = min_u64(len, STEP);
		err = check_stop(fill);
		if (!err && fill->zeros == ZEROS_DEVICE)
			err = raw_zero(fill->fd, true, off, n);
		else if (!err && fill->zeros == ZEROS_WRITTEN)
			err = raw_write_zeros(fill->fd, off, n);
	}
	return err;
}

static int add_run(struct fill *fill, const struct extent *run)
{
	return run->kind == EXTENT_ZERO ? add_zeros(fill, run->guest_off, run->len) : add_data(fill, run);
}

static time_t now_s(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

/* All before OFF was looked at. */
static int checkpoint(struct fill *fill, uint64_t off)
{
	if (!fill->spec->checkpoint || now_s() < fill->checkpoint_at)
		return 0;
	int err = copy_pieces(fill);
	if (!err)
		err = file_sync(fill->fd);
	if (!err)
		err = fill->spec->checkpoint(fill->spec->ctx, off);
	fill->checkpoint_at = now_s() + CHECKPOINT_S;
	return err;
}

static int fill_from(struct fill *fill, uint64_t off)
{
	struct extent run = {.kind = EXTENT_ZERO, .guest_off = off};
	int err = 0;
	while (off < fill->size && !err) {
		struct extent e = {0};
		err = check_stop(fill);
		if (!err)
			err = view_map(fill->view, off, fill->size - off, &e);
		if (!err && run.len < STEP && extent_continues(&run, &e)) {
			run.len += e.len;
		} else if (!err) {
			err = add_run(fill, &run);
			run = e;
			if (!err)
				err = checkpoint(fill, off);
		}
		off += e.len;
	}
	if (!err)
		err = add_run(fill, &run);
	return err ? err : copy_pieces(fill);
}

/* Data before FROM, which is there. */
static int count_done(struct fill *fill, uint64_t from)
{
	struct extent e;
	for (uint64_t off = 0; off < from && fill->spec->done; off += e.len) {
		int err = view_map(fill->view, off, from - off, &e);
		if (err)
			return err;
		add_done(fill, e.kind == EXTENT_ZERO ? 0 : e.len);
	}
	return 0;
}

static int start_progress(struct fill *fill, uint64_t from)
{
	uint64_t total = 0;
	if (fill->spec->done)
		atomic_store(fill->spec->done, 0);
	if (fill->spec->total && view_allocated(fill->view, &total) == 0)
		atomic_store(fill->spec->total, min_u64(total, fill->size));
	return count_done(fill, from);
}

/* Of what is to come nothing is left but zeros. */
static int prepare_file(struct fill *fill, uint64_t from)
{
	struct statvfs vfs;
	if (fstatvfs(fill->fd, &vfs) < 0 || ftruncate(fill->fd, (off_t)from) < 0 || ftruncate(fill->fd, (off_t)fill->size) < 0)
		return -errno;
	if (!fill->spec->preallocate) {
		fill->block_size = vfs.f_bsize;
		return 0;
	}
	/* Shared space isn't the file's own: what was written there would need more. */
	if (fill->size == 0 || fallocate(fill->fd, 0, 0, (off_t)fill->size) == 0)
		return 0;
	fill->zeros = ZEROS_WRITTEN;
	return errno == EOPNOTSUPP || errno == ENOSYS ? 0 : -errno;
}

static int prepare_device(struct fill *fill)
{
	off_t end = lseek(fill->fd, 0, SEEK_END);
	fill->zeros = ZEROS_DEVICE;
	return end < 0 ? -errno : (uint64_t)end < fill->size ? -ENOSPC : 0;
}

static int prepare(struct fill *fill, uint64_t from)
{
	struct stat st;
	if (fstat(fill->fd, &st) < 0)
		return -errno;
	return S_ISBLK(st.st_mode) ? prepare_device(fill) : prepare_file(fill, from);
}

static int fill_all(struct fill *fill)
{
	uint64_t from = min_u64(fill->spec->from, fill->size) / BLOCK * BLOCK;
	int err = prepare(fill, from);
	if (!err)
		err = start_progress(fill, from);
	if (!err)
		err = fill_from(fill, from);
	if (!err)
		err = view_check(fill->view);
	/* The length as well. */
	if (!err && fsync(fill->fd) < 0)
		err = -errno;
	if (!err && fill->spec->done && fill->spec->total)
		atomic_store(fill->spec->total, atomic_load(fill->spec->done));
	return err;
}

int view_fill_raw(struct view *view, int fd, const struct fill_spec *spec, struct reason *why)
{
	auto_free struct fill *fill = calloc(1, sizeof *fill);
	if (!fill)
		return -ENOMEM;
	fill->view = view;
	fill->fd = fd;
	fill->spec = spec;
	fill->size = spec->virtual_size ? spec->virtual_size : view_virtual_size(view);
	fill->checkpoint_at = now_s(); /* the first one soon: that it has begun */
	int err = fill_all(fill);
	for (size_t i = 0; i < NR_BUFS; i++)
		free(fill->bufs[i]);
	return err ? reason_set(why, err, "copying %s: %s", image_path(view_layer(view, 0)), strerror(-err)) : 0;
}
