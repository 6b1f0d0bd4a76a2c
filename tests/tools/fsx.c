/* Random file operations, checked against a model in memory: after fsx, the file system exerciser.
 *
 * fsx [-s SEED] [-n OPERATIONS] [-l MAX-SIZE] [-m MODEL-OUT] [-b UNIT] [-o OTHER] [-r] FILE
 *
 * FILE must exist; what it holds at the start goes into the model. Reads and writes (plain, O_DIRECT, O_APPEND, synchronous, with the flags of
 * preadv2(2), through mmap), truncates up and down, fallocate in all its modes, those that are refused too, copies within the file and, with -o,
 * from and to OTHER, another one of at least 1 MiB, fsync, fdatasync, msync, reopening, and SEEK_DATA/SEEK_HOLE, whose holes must hold zeros. -r:
 * no change of size. -m writes the model at the end, for comparison with what is left after unmount. On a difference: the operations that led
 * there, and exit 1. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define HISTORY 40

struct fsx {
	const char *path;
	int fd;
	const char *other_path; /* NULL: none */
	int other_fd;
	unsigned char *other_model;
	uint64_t other_size;
	unsigned char *model;
	uint64_t model_size, max_size, size_unit;
	unsigned char *buf;
	bool fixed_size;
	char history[HISTORY][80];
	unsigned nr_ops;
};

static void note(struct fsx *f, const char *what, uint64_t off, uint64_t len)
{
	char *line = f->history[f->nr_ops % HISTORY];

	f->nr_ops++;
	snprintf(line, sizeof f->history[0], "%u %s off=%llu len=%llu size=%llu", f->nr_ops, what,
	         (unsigned long long)off, (unsigned long long)len, (unsigned long long)f->model_size);
}

static void give_up(struct fsx *f, const char *what, uint64_t at, int err)
{
	unsigned first = f->nr_ops > HISTORY ? f->nr_ops - HISTORY : 0;

	for (unsigned i = first; i < f->nr_ops; i++)
		printf("%s\n", f->history[i % HISTORY]);
	printf("fsx: %s: %s at %llu%s%s\n", f->path, what, (unsigned long long)at, err ? ": " : "",
	       err ? strerror(err) : "");
	exit(1);
}

static void compare(struct fsx *f, const unsigned char *got, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++) {
		if (got[i] != f->model[off + i]) {
			printf("fsx: got %02x, want %02x\n", got[i], f->model[off + i]);
			give_up(f, "differs", off + i, 0);
		}
	}
}

/* A range that starts within LIMIT and ends at most at MAX; on block boundaries now and then. */
static void choose_range(uint64_t limit, uint64_t max, uint64_t *off, uint64_t *len)
{
	static const uint64_t units[] = {1, 1, 512, 4096, 65536, 131072};
	uint64_t unit = units[(size_t)random() % 6];

	*off = limit ? (uint64_t)random() % limit / unit * unit : 0;
	*len = 1 + (uint64_t)random() % (random() % 8 ? 20000 : 400000);
	*len = (*len + unit - 1) / unit * unit;
	if (*len > max - *off)
		*len = max - *off;
}

static void op_read(struct fsx *f)
{
	uint64_t off, len;

	choose_range(f->model_size, f->model_size, &off, &len);
	note(f, "read", off, len);
	ssize_t got = pread(f->fd, f->buf, len, (off_t)off);
	if (got < 0)
		give_up(f, "read", off, errno);
	if ((uint64_t)got != len)
		give_up(f, "short read", off + (uint64_t)got, 0);
	compare(f, f->buf, off, len);
}

static void op_mapread(struct fsx *f)
{
	uint64_t off, len;

	choose_range(f->model_size, f->model_size, &off, &len);
	if (!len)
		return;
	note(f, "mapread", off, len);
	uint64_t page_off = off & ~(uint64_t)4095;
	unsigned char *map = mmap(NULL, off + len - page_off, PROT_READ, MAP_SHARED, f->fd, (off_t)page_off);
	if (map == MAP_FAILED)
		give_up(f, "mmap", off, errno);
	compare(f, map + (off - page_off), off, len);
	munmap(map, off + len - page_off);
}

/* The model's bytes [OFF, +LEN) are about to be changed: what lies between its end and OFF becomes zeros. */
static void grow_model(struct fsx *f, uint64_t end)
{
	if (end <= f->model_size)
		return;
	memset(f->model + f->model_size, 0, end - f->model_size);
	f->model_size = end;
}

/* A range that may be written, and bytes for it in BUF. LEN may be 0. */
static void choose_bytes(struct fsx *f, uint64_t *off, uint64_t *len)
{
	uint64_t limit = f->fixed_size ? f->model_size : f->max_size;

	choose_range(limit, limit, off, len);
	if (*off + *len > f->model_size)
		*len = (*off + *len + f->size_unit - 1) / f->size_unit * f->size_unit - *off;
	if (*off + *len > limit)
		*len = limit - *off;
	int kind = (int)(random() % 4);
	for (uint64_t i = 0; i < *len; i++)
		f->buf[i] = kind == 0 ? 0 : kind == 1 ? (unsigned char)(f->nr_ops) : (unsigned char)random();
}

static void has_written(struct fsx *f, uint64_t off, uint64_t len)
{
	if (len)
		grow_model(f, off + len);
	memcpy(f->model + off, f->buf, len);
}

static void expect_len(struct fsx *f, const char *what, uint64_t off, ssize_t got, uint64_t want)
{
	if (got < 0)
		give_up(f, what, off, errno);
	if ((uint64_t)got != want)
		give_up(f, what, off + (uint64_t)got, 0);
}

static void op_write(struct fsx *f)
{
	uint64_t off, len;

	choose_bytes(f, &off, &len);
	note(f, "write", off, len);
	expect_len(f, "write", off, pwrite(f->fd, f->buf, len, (off_t)off), len);
	has_written(f, off, len);
}

static void op_write_flags(struct fsx *f)
{
	static const int flags[] = {RWF_DSYNC, RWF_SYNC, RWF_HIPRI, RWF_DSYNC | RWF_HIPRI};
	uint64_t off, len;

	choose_bytes(f, &off, &len);
	struct iovec iov[] = {{f->buf, len / 3}, {f->buf + len / 3, len - len / 3}};
	note(f, "pwritev2", off, len);
	expect_len(f, "pwritev2", off, pwritev2(f->fd, iov, 2, (off_t)off, flags[random() % 4]), len);
	has_written(f, off, len);
}

/* What is there already may be given at once or not. */
static void op_read_flags(struct fsx *f)
{
	uint64_t off, len;

	choose_range(f->model_size, f->model_size, &off, &len);
	struct iovec iov[] = {{f->buf, len / 2}, {f->buf + len / 2, len - len / 2}};
	note(f, "preadv2", off, len);
	ssize_t got = preadv2(f->fd, iov, 2, (off_t)off, RWF_NOWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EOPNOTSUPP))
		return;
	if (got < 0 || (uint64_t)got > len)
		give_up(f, "preadv2", off, got < 0 ? errno : 0);
	compare(f, f->buf, off, (uint64_t)got);
}

static int open_again(struct fsx *f, int flags)
{
	int fd = open(f->path, flags | O_CLOEXEC);

	if (fd < 0)
		give_up(f, "open", (uint64_t)flags, errno);
	return fd;
}

/* At the end, where another may have moved it. */
static void op_append(struct fsx *f)
{
	uint64_t off, len, at = f->model_size;

	choose_bytes(f, &off, &len);
	len = len / f->size_unit * f->size_unit;
	if (f->fixed_size || at % f->size_unit || at + len > f->max_size)
		return;
	bool by_flag = random() % 2;
	int fd = open_again(f, O_RDWR | (by_flag ? 0 : O_APPEND));
	struct iovec iov = {f->buf, len};
	note(f, by_flag ? "append by a flag" : "append", at, len);
	expect_len(f, "append", at, by_flag ? pwritev2(fd, &iov, 1, 0, RWF_APPEND) : write(fd, f->buf, len), len);
	close(fd);
	has_written(f, at, len);
}

/* Of 512 bytes or 4 KiB, past the page cache, where the other descriptor's pages may lie. */
static void op_direct(struct fsx *f)
{
	uint64_t unit = random() % 2 ? 512 : 4096, off, len;
	void *buf = NULL;

	choose_bytes(f, &off, &len);
	off = off / unit * unit;
	len = len / unit * unit;
	if (off + len > f->model_size)
		len = off > f->model_size ? 0 : (f->model_size - off) / unit * unit;
	if (!len || posix_memalign(&buf, 4096, len))
		return;
	bool writes = random() % 2;
	int fd = open_again(f, O_RDWR | O_DIRECT);
	note(f, writes ? "direct write" : "direct read", off, len);
	if (writes) {
		memcpy(buf, f->buf, len);
		expect_len(f, "direct write", off, pwrite(fd, buf, len, (off_t)off), len);
		has_written(f, off, len);
	} else {
		expect_len(f, "direct read", off, pread(fd, buf, len, (off_t)off), len);
		compare(f, buf, off, len);
	}
	close(fd);
	free(buf);
}

static void op_mapwrite(struct fsx *f)
{
	uint64_t off, len;

	choose_bytes(f, &off, &len);
	if (off >= f->model_size)
		return;
	if (off + len > f->model_size)
		len = f->model_size - off;
	if (!len)
		return;
	uint64_t page_off = off & ~(uint64_t)4095;
	int sync = (int)(random() % 3);
	note(f, sync ? "mapwrite, msync" : "mapwrite", off, len);
	unsigned char *map = mmap(NULL, off + len - page_off, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, (off_t)page_off);
	if (map == MAP_FAILED)
		give_up(f, "mmap", off, errno);
	memcpy(map + (off - page_off), f->buf, len);
	if (sync && msync(map, off + len - page_off, sync == 1 ? MS_SYNC : MS_ASYNC) < 0)
		give_up(f, "msync", off, errno);
	munmap(map, off + len - page_off);
	has_written(f, off, len);
}

/* Within the file; ranges that overlap are refused. */
static void op_copy(struct fsx *f)
{
	uint64_t from, len, to;

	choose_range(f->model_size, f->model_size, &from, &len);
	to = f->model_size ? (uint64_t)random() % f->model_size / 512 * 512 : 0;
	if (to + len > f->model_size)
		len = f->model_size - to;
	off_t in = (off_t)from, out = (off_t)to;
	note(f, "copy from", from, len);
	note(f, "copy to", to, len);
	bool overlap = from < to + len && to < from + len;
	for (uint64_t done = 0; done < len;) {
		ssize_t n = copy_file_range(f->fd, &in, f->fd, &out, len - done, 0);
		if (n < 0 && errno == EINVAL && overlap)
			return;
		if (n <= 0 || overlap)
			give_up(f, overlap ? "a copy onto itself" : "copy", from + done, n < 0 ? errno : 0);
		done += (uint64_t)n;
	}
	if (len)
		memcpy(f->model + to, f->model + from, len);
}

/* From the other file, or to it. */
static void op_copy_other(struct fsx *f)
{
	uint64_t from, len, to;
	bool fetch = random() % 2;

	if (!f->other_path)
		return;
	uint64_t from_size = fetch ? f->other_size : f->model_size, to_size = fetch ? f->model_size : f->other_size;
	choose_range(from_size, from_size, &from, &len);
	to = to_size ? (uint64_t)random() % to_size : 0;
	if (random() % 4)
		to = from < to_size ? from : 0;
	if (to + len > to_size)
		len = to_size - to;
	off_t in = (off_t)from, out = (off_t)to;
	note(f, fetch ? "copy from the other" : "copy to the other", from, len);
	note(f, "... to", to, len);
	for (uint64_t done = 0; done < len;) {
		ssize_t n = copy_file_range(fetch ? f->other_fd : f->fd, &in, fetch ? f->fd : f->other_fd, &out, len - done, 0);
		if (n <= 0)
			give_up(f, "copy", from + done, n < 0 ? errno : 0);
		done += (uint64_t)n;
	}
	if (len)
		memcpy((fetch ? f->model : f->other_model) + to, (fetch ? f->other_model : f->model) + from, len);
}

/* Space is promised: with or without the end. */
static void op_allocate(struct fsx *f)
{
	uint64_t off, len;
	bool keep = f->fixed_size || random() % 2;

	choose_range(f->max_size, f->max_size, &off, &len);
	len = (off + len) / f->size_unit * f->size_unit > off ? (off + len) / f->size_unit * f->size_unit - off : 0;
	if (!len)
		return;
	note(f, keep ? "allocate, size kept" : "allocate", off, len);
	if (fallocate(f->fd, keep ? FALLOC_FL_KEEP_SIZE : 0, (off_t)off, (off_t)len) < 0)
		give_up(f, "allocate", off, errno);
	if (!keep)
		grow_model(f, off + len);
}

/* Modes that move data, and such as don't go together: refused, and nothing has changed. */
static void op_refused(struct fsx *f)
{
	static const int modes[] = {FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_UNSHARE_RANGE, FALLOC_FL_PUNCH_HOLE,
				    FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
	int mode = modes[random() % 5];

	if (f->model_size < 8192)
		return;
	note(f, "a mode that is refused", 4096, (uint64_t)mode);
	if (fallocate(f->fd, mode, 4096, 4096) == 0 || (errno != EOPNOTSUPP && errno != EINVAL))
		give_up(f, "a mode that isn't refused", (uint64_t)mode, errno);
}

static void op_truncate(struct fsx *f)
{
	uint64_t size = (uint64_t)random() % f->max_size;

	if (f->fixed_size)
		return;
	size = size / f->size_unit * f->size_unit;
	if (random() % 2)
		size = size / 512 * 512;
	note(f, "truncate", size, 0);
	if (ftruncate(f->fd, (off_t)size) < 0)
		give_up(f, "truncate", size, errno);
	grow_model(f, size);
	f->model_size = size;
}

static void op_punch(struct fsx *f)
{
	uint64_t off, len;

	choose_range(f->model_size, f->model_size, &off, &len);
	if (!len)
		return;
	note(f, "punch", off, len);
	if (fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) < 0)
		give_up(f, "punch", off, errno);
	memset(f->model + off, 0, len);
}

static void op_zero(struct fsx *f)
{
	uint64_t off, len;

	choose_range(f->model_size, f->model_size, &off, &len);
	if (!len)
		return;
	note(f, "zero", off, len);
	if (fallocate(f->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) < 0)
		give_up(f, "zero range", off, errno);
	memset(f->model + off, 0, len);
}

/* Zeroes up to behind the end, which follows. */
static void op_zero_on(struct fsx *f)
{
	uint64_t off, len;

	choose_range(f->max_size, f->max_size, &off, &len);
	len = (off + len) / f->size_unit * f->size_unit > off ? (off + len) / f->size_unit * f->size_unit - off : 0;
	if (f->fixed_size || !len)
		return;
	note(f, "zero and grow", off, len);
	if (fallocate(f->fd, FALLOC_FL_ZERO_RANGE, (off_t)off, (off_t)len) < 0)
		give_up(f, "zero range", off, errno);
	if (off < f->model_size)
		memset(f->model + off, 0, off + len < f->model_size ? len : f->model_size - off);
	grow_model(f, off + len);
}

static void op_sync(struct fsx *f)
{
	bool data = random() % 2;

	note(f, data ? "fdatasync" : "fsync", 0, 0);
	if ((data ? fdatasync(f->fd) : fsync(f->fd)) < 0)
		give_up(f, "fsync", 0, errno);
}

static void op_reopen(struct fsx *f)
{
	static const int flags[] = {0, 0, O_SYNC, O_DSYNC};
	int flag = flags[random() % 4];

	note(f, "reopen", (uint64_t)flag, 0);
	if (close(f->fd) < 0)
		give_up(f, "close", 0, errno);
	f->fd = open_again(f, O_RDWR | flag);
}

static void op_stat(struct fsx *f)
{
	struct stat st;

	note(f, "stat", 0, 0);
	if (fstat(f->fd, &st) < 0)
		give_up(f, "fstat", 0, errno);
	if ((uint64_t)st.st_size != f->model_size)
		give_up(f, "another size", (uint64_t)st.st_size, 0);
}

static void seek_all(struct fsx *f);

/* Also when nobody has it open to write, and holes are told of. */
static void op_seek(struct fsx *f)
{
	bool reader = random() % 2;

	if (reader) {
		close(f->fd);
		f->fd = open_again(f, O_RDONLY);
	}
	seek_all(f);
	if (reader) {
		close(f->fd);
		f->fd = open_again(f, O_RDWR);
	}
}

/* What SEEK_HOLE calls a hole must be zeros. Through a descriptor for reading, as a copying program has. */
static void seek_all(struct fsx *f)
{
	off_t hole = 0, data;
	off_t end = (off_t)f->model_size;

	note(f, "seek", 0, 0);
	while (hole < end) {
		hole = lseek(f->fd, hole, SEEK_HOLE);
		if (hole < 0)
			give_up(f, "SEEK_HOLE", 0, errno);
		if (hole >= end)
			return;
		data = lseek(f->fd, hole, SEEK_DATA);
		if (data < 0 && errno != ENXIO)
			give_up(f, "SEEK_DATA", (uint64_t)hole, errno);
		if (data < 0 || data > end)
			data = end;
		for (off_t i = hole; i < data; i++) {
			if (f->model[i])
				give_up(f, "a hole over data", (uint64_t)i, 0);
		}
		hole = data;
	}
}

static void compare_all(struct fsx *f)
{
	unsigned char *got = malloc(f->max_size + 1);
	ssize_t len = pread(f->fd, got, f->max_size + 1, 0);

	if (len < 0)
		give_up(f, "the last read", 0, errno);
	if ((uint64_t)len != f->model_size)
		give_up(f, "another size at the end", (uint64_t)len, 0);
	compare(f, got, 0, f->model_size);
	free(got);
}

static void load_other(struct fsx *f)
{
	struct stat st;

	f->other_fd = open(f->other_path, O_RDWR | O_CLOEXEC);
	if (f->other_fd < 0 || fstat(f->other_fd, &st) < 0)
		give_up(f, f->other_path, 0, errno);
	f->other_size = (uint64_t)st.st_size;
	f->other_model = malloc(f->other_size + 1);
	if (!f->other_model || pread(f->other_fd, f->other_model, f->other_size, 0) != (ssize_t)f->other_size)
		give_up(f, f->other_path, 0, errno);
}

static void compare_other(struct fsx *f)
{
	unsigned char *got = malloc(f->other_size + 1);

	if (!got || pread(f->other_fd, got, f->other_size, 0) != (ssize_t)f->other_size)
		give_up(f, f->other_path, 0, errno);
	for (uint64_t i = 0; i < f->other_size; i++)
		if (got[i] != f->other_model[i])
			give_up(f, "the other differs", i, 0);
	free(got);
	free(f->other_model);
	if (fsync(f->other_fd) < 0 || close(f->other_fd) < 0)
		give_up(f, f->other_path, 0, errno);
}

static void save_model(const struct fsx *f, const char *path)
{
	FILE *out = fopen(path, "w");

	if (!out || fwrite(f->model, 1, f->model_size, out) != f->model_size || fclose(out)) {
		perror(path);
		exit(2);
	}
}

static const struct {
	void (*run)(struct fsx *f);
	int weight;
} operations[] = {
    {op_read, 30},     {op_write, 26},      {op_write_flags, 4}, {op_read_flags, 3}, {op_append, 2},   {op_direct, 8},
    {op_mapwrite, 8},  {op_mapread, 6},     {op_punch, 8},       {op_zero, 4},       {op_zero_on, 2},  {op_allocate, 3},
    {op_refused, 1},   {op_truncate, 5},    {op_copy, 5},        {op_copy_other, 5}, {op_sync, 3},     {op_reopen, 2},
    {op_stat, 4},      {op_seek, 3},
};

static void run_one(struct fsx *f)
{
	int total = 0;

	for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++)
		total += operations[i].weight;
	int dice = (int)(random() % total);
	for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++) {
		dice -= operations[i].weight;
		if (dice < 0) {
			operations[i].run(f);
			return;
		}
	}
}

static void load(struct fsx *f)
{
	struct stat st;

	f->fd = open(f->path, O_RDWR | O_CLOEXEC);
	if (f->fd < 0)
		give_up(f, "open", 0, errno);
	if (fstat(f->fd, &st) < 0)
		give_up(f, "fstat", 0, errno);
	f->model_size = (uint64_t)st.st_size;
	if (f->max_size < f->model_size)
		f->max_size = f->model_size;
	f->model = malloc(f->max_size + 1);
	f->buf = malloc(f->max_size + 1);
	if (!f->model || !f->buf)
		give_up(f, "malloc", 0, errno);
	ssize_t len = pread(f->fd, f->model, f->model_size, 0);
	if (len != (ssize_t)f->model_size)
		give_up(f, "the first read", (uint64_t)len, len < 0 ? errno : 0);
}

int main(int argc, char **argv)
{
	struct fsx f = {.max_size = 8 << 20, .size_unit = 1};
	const char *model_path = NULL;
	unsigned seed = 1, nr = 1000;
	int option;

	while ((option = getopt(argc, argv, "s:n:l:m:b:o:r")) >= 0) {
		switch (option) {
		case 's': seed = (unsigned)strtoul(optarg, NULL, 10); break;
		case 'n': nr = (unsigned)strtoul(optarg, NULL, 10); break;
		case 'l': f.max_size = strtoull(optarg, NULL, 10); break;
		case 'm': model_path = optarg; break;
		case 'b': f.size_unit = strtoull(optarg, NULL, 10); break;
		case 'o': f.other_path = optarg; break;
		case 'r': f.fixed_size = true; break;
		default: return 2;
		}
	}
	if (optind != argc - 1) {
		fprintf(stderr,
		        "usage: fsx [-s SEED] [-n OPERATIONS] [-l MAX-SIZE] [-m MODEL-OUT] [-b UNIT] [-o OTHER] [-r] FILE\n");
		return 2;
	}
	f.path = argv[optind];
	load(&f);
	if (f.other_path)
		load_other(&f);
	srandom(seed);
	for (unsigned i = 0; i < nr; i++)
		run_one(&f);
	compare_all(&f);
	if (f.other_path)
		compare_other(&f);
	if (fsync(f.fd) < 0 || close(f.fd) < 0)
		give_up(&f, "closing", 0, errno);
	if (model_path)
		save_model(&f, model_path);
	printf("fsx: %u operations, %llu bytes at the end\n", f.nr_ops, (unsigned long long)f.model_size);
	free(f.model);
	free(f.buf);
	return 0;
}
