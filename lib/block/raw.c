#include "block/raw.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"

#define ZEROS_BYTES (256u << 10)
#define BLOCK	    4096u /* of devices and of the page cache: what is zeroed without being written is whole ones */

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

void raw_map(int fd, uint64_t off, uint64_t len, struct extent *ret)
{
	struct extent e = {.kind = EXTENT_DATA, .guest_off = off, .host_off = off, .len = len};
	off_t data = lseek(fd, (off_t)off, SEEK_DATA);
	if (data < 0 && errno == ENXIO) {
		e.kind = EXTENT_ZERO;
	} else if (data > (off_t)off) {
		e.kind = EXTENT_ZERO;
		e.len = min_u64(len, (uint64_t)data - off);
	} else if (data == (off_t)off) {
		off_t hole = lseek(fd, (off_t)off, SEEK_HOLE);
		if (hole > (off_t)off)
			e.len = min_u64(len, (uint64_t)hole - off);
	}
	*ret = e;
}

int raw_write_zeros(int fd, uint64_t off, uint64_t len)
{
	auto_free char *zeros = calloc(1, (size_t)min_u64(len, ZEROS_BYTES));
	if (!zeros)
		return -ENOMEM;
	int err = 0;
	for (size_t n; len && !err; off += n, len -= n) {
		n = (size_t)min_u64(len, ZEROS_BYTES);
		err = file_write(fd, zeros, n, off);
	}
	return err;
}

/* False where it can't be done. Of a device a hole is zeros that it needn't keep; one that can't promise them writes them by itself. */
static bool drop(int fd, bool is_device, uint64_t off, uint64_t len)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) == 0 ||
	       (is_device && fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) == 0);
}

int raw_zero(int fd, bool is_device, uint64_t off, uint64_t len)
{
	if (!is_device && drop(fd, is_device, off, len))
		return 0;
	uint64_t end = off + len, first = (off + BLOCK - 1) / BLOCK * BLOCK, last = end / BLOCK * BLOCK;
	if (first >= last || !drop(fd, is_device, first, last - first))
		return raw_write_zeros(fd, off, len);
	int err = off < first ? raw_write_zeros(fd, off, first - off) : 0;
	return !err && last < end ? raw_write_zeros(fd, last, end - last) : err;
}
