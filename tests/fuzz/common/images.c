#include "images.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE_HEAD 9u
#define PIECE_MAX  65535u

struct piece {
	unsigned file;
	uint64_t off;
	size_t len; /* 0: the file's size is OFF */
	size_t at;  /* in the input, of the data */
};

static size_t pieces_start(const uint8_t *data, size_t size)
{
	size_t start = 2 + (size > 1 ? data[1] % (NR_STEPS + 1) : 0) * STEP_SIZE;
	return start < size ? start : size;
}

static bool next_piece(const uint8_t *data, size_t size, size_t *pos, struct piece *ret)
{
	if (size - *pos < PIECE_HEAD)
		return false;
	struct fuzz_bytes bytes = {data + *pos, data + size};
	ret->file = (unsigned)fuzz_take(&bytes, 1) % NR_FILES;
	ret->off = fuzz_take(&bytes, 6);
	ret->len = (size_t)fuzz_take(&bytes, 2);
	ret->at = *pos + PIECE_HEAD;
	if (ret->len > size - ret->at)
		ret->len = size - ret->at;
	*pos = ret->at + ret->len;
	return true;
}

/* --- files -------------------------------------------------------------------------------------------------------- */

static void make_astray(int dirfd)
{
	if (symlinkat("/etc/hostname", dirfd, "out") < 0 || symlinkat(".", dirfd, "here") < 0 || symlinkat("loop", dirfd, "loop") < 0 ||
	    mkdirat(dirfd, "d", 0700) < 0 || symlinkat("..", dirfd, "d/up") < 0 || mkfifoat(dirfd, "fifo", 0600) < 0)
		fuzz_fail("the directory: %s", strerror(errno));
}

/* Whether FD still is the file of that name: the library may have put another in its place. */
static bool is_named(int fd, const char *name)
{
	struct stat st, named;
	return fd >= 0 && fstat(fd, &st) == 0 && fstatat(fuzz_dirfd(), name, &named, AT_SYMLINK_NOFOLLOW) == 0 && st.st_ino == named.st_ino;
}

int images_fd(unsigned file)
{
	static int fds[NR_FILES] = {-1, -1, -1, -1};
	static bool made;
	char name[2] = {(char)('0' + file), '\0'};
	if (!made)
		make_astray(fuzz_dirfd());
	made = true;
	if (is_named(fds[file], name))
		return fds[file];
	if (fds[file] >= 0)
		close(fds[file]);
	fds[file] = openat(fuzz_dirfd(), name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fds[file] < 0)
		fuzz_fail("%s/%s: %s", fuzz_dir(), name, strerror(errno));
	return fds[file];
}

static void write_piece(int fd, const uint8_t *data, const struct piece *p)
{
	if (!p->len ? ftruncate(fd, (off_t)p->off) < 0 : fuzz_pwrite(fd, data + p->at, p->len, p->off) != (ssize_t)p->len)
		fuzz_fail("writing the files: %s", strerror(errno));
}

void images_make(struct images *images, const uint8_t *data, size_t size)
{
	struct fuzz_bytes bytes = {data, data + size};
	*images = (struct images){.format = (unsigned)fuzz_take(&bytes, 1)};
	images->nr_steps = (unsigned)fuzz_take(&bytes, 1) % (NR_STEPS + 1);
	for (unsigned i = 0; i < images->nr_steps; i++) {
		struct images_step *s = &images->steps[i];
		s->kind = (unsigned)fuzz_take(&bytes, 1);
		s->len = (uint32_t)fuzz_take(&bytes, 2);
		s->off = fuzz_take(&bytes, 5);
	}
	for (unsigned i = 0; i < NR_FILES; i++) {
		images->fds[i] = images_fd(i);
		if (ftruncate(images->fds[i], 0) < 0)
			fuzz_fail("emptying the files: %s", strerror(errno));
	}
	struct piece piece;
	for (size_t pos = pieces_start(data, size); next_piece(data, size, &pos, &piece);)
		write_piece(images->fds[piece.file], data, &piece);
}

void images_copy(const uint8_t *data, size_t size, unsigned file, int fd)
{
	struct piece piece;
	if (ftruncate(fd, 0) < 0)
		fuzz_fail("emptying the copy: %s", strerror(errno));
	for (size_t pos = pieces_start(data, size); next_piece(data, size, &pos, &piece);)
		if (piece.file == file)
			write_piece(fd, data, &piece);
}

/* --- mutations ------------------------------------------------------------------------------------------------------- */

/* Where the header of qcow2 has what: changes there, and of words in tables, keep an image an image. */
static const struct {
	unsigned at, len;
} fields[] = {{4, 4},  {8, 8},	{16, 4}, {20, 4}, {24, 8}, {32, 4}, {36, 4},  {40, 8},	{48, 8},
	      {56, 4}, {60, 4}, {64, 8}, {72, 8}, {80, 8}, {88, 8}, {96, 4}, {100, 4}, {104, 1}};
#define NR_FIELDS (sizeof fields / sizeof *fields)

static uint64_t dice;

static uint64_t roll(uint64_t below)
{
	dice = dice * 6364136223846793005ull + 1442695040888963407ull;
	return (dice >> 33) % below;
}

static void put(uint8_t *at, unsigned len, uint64_t value)
{
	for (unsigned i = len; i-- > 0; value >>= 8)
		at[i] = (uint8_t)value;
}

static uint64_t get(const uint8_t *at, unsigned len)
{
	struct fuzz_bytes bytes = {at, at + len};
	return fuzz_take(&bytes, len);
}

/* Values at which something is decided. */
static uint64_t edge(void)
{
	uint64_t bit = 1ull << roll(64);
	switch (roll(6)) {
	case 0: return bit;
	case 1: return bit - 1;
	case 2: return bit + 1;
	case 3: return roll(40);
	case 4: return (uint64_t)0 - roll(3);
	default: return roll(1u << 16) << roll(48);
	}
}

/* An entry of L1, L2, or of the refcount table, in an image with 2^BITS bytes a cluster. */
static uint64_t entry(unsigned bits)
{
	static const uint64_t flags[] = {0, 1ull << 63, 1ull << 63, 1ull << 62, 1, 1ull << 63 | 1, 3ull << 62};
	uint64_t flag = flags[roll(sizeof flags / sizeof *flags)], place = roll(24) << bits;
	if (roll(12) == 0)
		place = edge();
	if (flag == 1ull << 62) /* compressed: its place is any, and above that is its length */
		place = (roll(24) << bits) + roll(1u << bits) + (roll(1ull << (bits - 8)) << (62 - (bits - 8)));
	return flag | place;
}

static unsigned cluster_bits(const uint8_t *data, size_t size)
{
	struct piece p;
	for (size_t pos = pieces_start(data, size); next_piece(data, size, &pos, &p);)
		if (p.off == 0 && p.len >= 24 && data[p.at + 23] >= 9 && data[p.at + 23] <= 21)
			return data[p.at + 23];
	return 9;
}

static bool pick_piece(const uint8_t *data, size_t size, struct piece *ret)
{
	struct piece p;
	unsigned nr = 0;
	for (size_t pos = pieces_start(data, size); next_piece(data, size, &pos, &p);)
		if (p.len && roll(++nr) == 0)
			*ret = p;
	return nr;
}

static void change_header(uint8_t *data, size_t size)
{
	struct piece p, header = {0};
	unsigned nr = 0, f = (unsigned)roll(NR_FIELDS);
	for (size_t pos = pieces_start(data, size); next_piece(data, size, &pos, &p);)
		if (p.off == 0 && p.len >= 112 && roll(++nr) == 0)
			header = p;
	if (!nr)
		return;
	uint8_t *at = data + header.at + fields[f].at;
	switch (roll(5)) {
	case 0: put(at, fields[f].len, edge()); break;
	case 1: put(at, fields[f].len, roll(24) << cluster_bits(data, size)); break;
	case 2: put(at, fields[f].len, get(at, fields[f].len) + roll(5) - 2); break;
	case 3: put(at, fields[f].len, get(at, fields[f].len) ^ 1ull << roll(fields[f].len * 8)); break;
	default: put(at, fields[f].len, roll(6)); break;
	}
}

static void change_word(uint8_t *data, size_t size)
{
	struct piece p, other;
	if (!pick_piece(data, size, &p) || p.len < 8)
		return;
	uint8_t *at = data + p.at + roll(p.len / 8) * 8;
	if (roll(6) == 0 && pick_piece(data, size, &other) && other.len >= 8)
		memmove(at, data + other.at + roll(other.len / 8) * 8, 8);
	else if (roll(6) == 0)
		put(at, 8, get(at, 8) ^ 1ull << roll(64));
	else
		put(at, 8, entry(cluster_bits(data, size)));
}

static size_t change_inside(uint8_t *data, size_t size, size_t max_size)
{
	struct piece p;
	if (!pick_piece(data, size, &p))
		return LLVMFuzzerMutate(data, size, max_size);
	size_t behind = size - p.at - p.len, room = max_size - behind - p.at;
	uint8_t *tail = malloc(behind + 1);
	if (!tail)
		return size;
	memcpy(tail, data + p.at + p.len, behind);
	size_t len = LLVMFuzzerMutate(data + p.at, p.len, room < PIECE_MAX ? room : PIECE_MAX);
	memcpy(data + p.at + len, tail, behind);
	put(data + p.at - 2, 2, len);
	free(tail);
	return p.at + len + behind;
}

static size_t add_piece(uint8_t *data, size_t size, size_t max_size)
{
	struct piece p;
	unsigned bits = cluster_bits(data, size);
	size_t len = roll(4) ? (size_t)(1 + roll(8)) * 8 : 0;
	if (max_size - size < PIECE_HEAD + len)
		return size;
	put(data + size, 1, roll(NR_FILES));
	put(data + size + 1, 6, roll(8) ? (roll(24) << bits) + roll(64) * 8 : edge());
	put(data + size + 7, 2, len);
	for (size_t i = 0; i < len; i += 8)
		put(data + size + PIECE_HEAD + i, 8, entry(bits));
	if (len && pick_piece(data, size, &p) && p.len >= len && roll(2))
		memcpy(data + size + PIECE_HEAD, data + p.at, len);
	return size + PIECE_HEAD + len;
}

static void change_step(uint8_t *data, size_t size)
{
	size_t nr = (pieces_start(data, size) - (size < 2 ? size : 2)) / STEP_SIZE;
	if (!nr)
		return;
	uint8_t *at = data + 2 + roll(nr) * STEP_SIZE;
	switch (roll(4)) {
	case 0: *at = (uint8_t)roll(256); break;
	case 1: put(at + 1, 2, roll(2) ? roll(65536) : roll(9) * 512); break;
	case 2: put(at + 3, 5, roll(2) ? roll(1u << 17) : roll(64) * 512); break;
	default: put(at + 3, 5, edge()); break;
	}
}

static size_t add_step(uint8_t *data, size_t size, size_t max_size)
{
	if (size < 2 || data[1] % (NR_STEPS + 1) == NR_STEPS || max_size - size < STEP_SIZE)
		return size;
	size_t at = pieces_start(data, size);
	if (at != 2 + (size_t)(data[1] % (NR_STEPS + 1)) * STEP_SIZE)
		return size;
	memmove(data + at + STEP_SIZE, data + at, size - at);
	for (unsigned i = 0; i < STEP_SIZE; i++)
		data[at + i] = (uint8_t)roll(256);
	put(data + at + 3, 5, roll(2) ? roll(1u << 17) : roll(64) * 512);
	data[1] = (uint8_t)(data[1] % (NR_STEPS + 1) + 1);
	return size + STEP_SIZE;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	dice = seed * 0x9e3779b97f4a7c15ull + 1;
	for (uint64_t i = 1 + roll(3); i > 0; i--) {
		switch (roll(12)) {
		case 0:
		case 1:
		case 2: change_header(data, size); break;
		case 3:
		case 4:
		case 5:
		case 6: change_word(data, size); break;
		case 7: change_step(data, size); break;
		case 8: size = add_step(data, size, max_size); break;
		case 9: size = add_piece(data, size, max_size); break;
		case 10: size = change_inside(data, size, max_size); break;
		default: size = LLVMFuzzerMutate(data, size, max_size); break;
		}
	}
	return size;
}

/* --- from files and to files --------------------------------------------------------------------------------------------- */

static void write_run(FILE *out, unsigned file, uint64_t off, const uint8_t *data, size_t len)
{
	uint8_t head[PIECE_HEAD];
	put(head, 1, file);
	put(head + 1, 6, off);
	put(head + 7, 2, len);
	fwrite(head, 1, sizeof head, out);
	fwrite(data, 1, len, out);
}

#define GRAIN 64u

static size_t used_len(const uint8_t *data, size_t len)
{
	while (len && !data[len - 1])
		len--;
	return len;
}

static void pack_file(FILE *out, unsigned file, const char *path)
{
	static uint8_t run[PIECE_MAX / GRAIN * GRAIN];
	FILE *in = fopen(path, "r");
	if (!in)
		fuzz_fail("%s: %s", path, strerror(errno));
	size_t len = 0, n;
	uint64_t off = 0;
	for (; (n = fread(run + len, 1, GRAIN, in)) > 0; off += n) {
		bool used = used_len(run + len, n);
		if (used)
			len += n;
		if (len && (!used || len + GRAIN > sizeof run)) {
			write_run(out, file, off + (used ? n : 0) - len, run, len);
			len = 0;
		}
	}
	if (len)
		write_run(out, file, off - len, run, len);
	write_run(out, file, off, run, 0);
	fclose(in);
}

static void pack(char **args)
{
	static const uint8_t head[2] = {1, 0};
	FILE *out = fopen(args[0], "w");
	if (!out)
		fuzz_fail("%s: %s", args[0], strerror(errno));
	fwrite(head, 1, sizeof head, out);
	for (unsigned i = 0; i < NR_FILES && args[1 + i]; i++)
		pack_file(out, i, args[1 + i]);
	exit(fclose(out) == 0 ? 0 : 1);
}

static void unpack(char **args)
{
	static uint8_t data[1 << 20];
	struct images images;
	FILE *in = fopen(args[0], "r");
	size_t size = in ? fread(data, 1, sizeof data, in) : 0;
	images_make(&images, data, size);
	char command[2 * PATH_MAX];
	snprintf(command, sizeof command, "cp -a --sparse=always '%s' '%s'", fuzz_dir(), args[1]);
	exit(system(command));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	if (*argc > 3 && strcmp((*argv)[1], "pack") == 0)
		pack(*argv + 2);
	if (*argc > 3 && strcmp((*argv)[1], "unpack") == 0)
		unpack(*argv + 2);
	return 0;
}
