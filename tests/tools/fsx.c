/* Random file operations, checked against a model in memory: after fsx, the file system exerciser.
 *
 * fsx [-s SEED] [-n OPERATIONS] [-l MAX-SIZE] [-m MODEL-OUT] [-b UNIT] [-r] FILE
 *
 * FILE must exist; what it holds at the start goes into the model. Reads, writes, truncates up and down, punched holes,
 * zeroed ranges, mmap reads, fsync, reopening, and SEEK_DATA/SEEK_HOLE, whose holes must hold zeros. -r: no change of
 * size. -m writes the model at the end, for comparison with what is left after unmount. On a difference: the operations
 * that led there, and exit 1. */
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
#include <unistd.h>

#define HISTORY 40

struct fsx {
	const char *path;
	int fd;
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

static void op_write(struct fsx *f)
{
	uint64_t off, len, limit = f->fixed_size ? f->model_size : f->max_size;

	choose_range(limit, limit, &off, &len);
	if (off + len > f->model_size)
		len = (off + len + f->size_unit - 1) / f->size_unit * f->size_unit - off;
	if (off + len > limit)
		len = limit - off;
	note(f, "write", off, len);
	int kind = (int)(random() % 4);
	for (uint64_t i = 0; i < len; i++)
		f->buf[i] = kind == 0 ? 0 : kind == 1 ? (unsigned char)(f->nr_ops) : (unsigned char)random();
	ssize_t put = pwrite(f->fd, f->buf, len, (off_t)off);
	if (put < 0 || (uint64_t)put != len)
		give_up(f, "write", off, put < 0 ? errno : 0);
	if (len)
		grow_model(f, off + len);
	memcpy(f->model + off, f->buf, len);
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
	if (fallocate(f->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) < 0) {
		if (errno == EOPNOTSUPP)
			return;
		give_up(f, "zero range", off, errno);
	}
	memset(f->model + off, 0, len);
}

static void op_sync(struct fsx *f)
{
	note(f, "fsync", 0, 0);
	if (fsync(f->fd) < 0)
		give_up(f, "fsync", 0, errno);
}

static void op_reopen(struct fsx *f)
{
	note(f, "reopen", 0, 0);
	if (close(f->fd) < 0)
		give_up(f, "close", 0, errno);
	f->fd = open(f->path, O_RDWR | O_CLOEXEC);
	if (f->fd < 0)
		give_up(f, "open", 0, errno);
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

/* What SEEK_HOLE calls a hole must be zeros. Through a descriptor for reading, as a copying program has. */
static void op_seek(struct fsx *f)
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
    {op_read, 30},   {op_write, 30}, {op_punch, 8},  {op_zero, 4}, {op_truncate, 5},
    {op_mapread, 6}, {op_sync, 3},   {op_reopen, 2}, {op_stat, 4}, {op_seek, 2},
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

	while ((option = getopt(argc, argv, "s:n:l:m:b:r")) >= 0) {
		switch (option) {
		case 's': seed = (unsigned)strtoul(optarg, NULL, 10); break;
		case 'n': nr = (unsigned)strtoul(optarg, NULL, 10); break;
		case 'l': f.max_size = strtoull(optarg, NULL, 10); break;
		case 'm': model_path = optarg; break;
		case 'b': f.size_unit = strtoull(optarg, NULL, 10); break;
		case 'r': f.fixed_size = true; break;
		default: return 2;
		}
	}
	if (optind != argc - 1) {
		fprintf(stderr,
		        "usage: fsx [-s SEED] [-n OPERATIONS] [-l MAX-SIZE] [-m MODEL-OUT] [-b UNIT] [-r] FILE\n");
		return 2;
	}
	f.path = argv[optind];
	load(&f);
	srandom(seed);
	for (unsigned i = 0; i < nr; i++)
		run_one(&f);
	compare_all(&f);
	if (fsync(f.fd) < 0 || close(f.fd) < 0)
		give_up(&f, "closing", 0, errno);
	if (model_path)
		save_model(&f, model_path);
	printf("fsx: %u operations, %llu bytes at the end\n", f.nr_ops, (unsigned long long)f.model_size);
	free(f.model);
	free(f.buf);
	return 0;
}
