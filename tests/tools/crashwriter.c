/* Writes to a file until it is told that the file system is gone, and afterwards says whether what was fsynced is
 * there.
 *
 * crashwriter write FILE LOG SEED      random writes, holes and fsyncs; each is noted in LOG (which lies elsewhere)
 * crashwriter verify FILE LOG ORIGINAL every sector holds what was there at the last fsync, or a later write to it; one
 * that was never written holds what ORIGINAL has
 * crashwriter verify FILE LOG ORIGINAL FIRST LAST     FILE is a snapshot that was made after the FIRST records and before there were more than LAST
 *
 * LOG gets a record before each write or hole is begun, and one after each fsync that said 0. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define SECTOR      512
#define SECTORS_MAX 300

enum kind { WRITE, HOLE, SYNC };

struct record {
	uint32_t kind, sector, nr_sectors, seq;
};

/* What a sector holds after write SEQ. */
static void fill_sector(unsigned char *buf, uint32_t sector, uint32_t seq)
{
	uint64_t word = (uint64_t)seq << 32 | sector;

	for (size_t i = 0; i < SECTOR / sizeof word; i++)
		memcpy(buf + i * sizeof word, &word, sizeof word);
}

static int open_or_die(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0) {
		perror(path);
		exit(2);
	}
	return fd;
}

/* 0: errno says why. */
static uint32_t nr_sectors_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) < 0 ? 0 : (uint32_t)(st.st_size / SECTOR);
}

static void note(int log, struct record record)
{
	if (write(log, &record, sizeof record) != sizeof record) {
		perror("log");
		exit(2);
	}
}

static int write_one(int fd, const struct record *r)
{
	static unsigned char buf[SECTORS_MAX * SECTOR];

	for (uint32_t i = 0; i < r->nr_sectors; i++)
		fill_sector(buf + i * SECTOR, r->sector + i, r->seq);
	/* A write that the daemon's end cuts short says how far it got; the next one says why. */
	for (size_t len = r->nr_sectors * SECTOR, done = 0; done < len;) {
		ssize_t n = pwrite(fd, buf + done, len - done, (off_t)r->sector * SECTOR + (off_t)done);

		if (n < 0)
			return -1;
		done += (size_t)n;
	}
	return 0;
}

/* The errors of a mount whose daemon is dead. */
static int is_gone(int err)
{
	return err == ENOTCONN || err == ECONNABORTED || err == ENODEV;
}

/* A request that a thread of the daemon was just taking when it was killed fails with EIO; one after it says what has
 * happened, unless another thread, that hasn't noticed yet, answers it. */
static int daemon_is_dying(int fd, int err)
{
	const struct timespec moment = {.tv_nsec = 1000000};
	struct statfs fs;

	for (int tries = 0; err == EIO && tries < 50; tries++) {
		nanosleep(&moment, NULL);
		err = fstatfs(fd, &fs) == 0 ? EIO : errno;
	}
	return is_gone(err);
}

/* Ends when the daemon does, which is success. */
static int write_until_gone(const char *path, const char *log_path, unsigned seed)
{
	int log = open_or_die(log_path, O_WRONLY | O_CREAT | O_APPEND);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint32_t nr_sectors = fd < 0 ? 0 : nr_sectors_of(fd);
	int failed = !nr_sectors, err;

	srandom(seed);
	for (uint32_t seq = 1; !failed; seq++) {
		struct record r = {.kind = random() % 12 ? WRITE : HOLE, .seq = seq};

		r.nr_sectors = 1 + (uint32_t)random() % (random() % 6 ? 16 : SECTORS_MAX);
		r.sector = (uint32_t)random() % (nr_sectors - r.nr_sectors);
		note(log, r);
		if (r.kind == WRITE)
			failed = write_one(fd, &r);
		else
			failed = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)r.sector * SECTOR,
			                   (off_t)r.nr_sectors * SECTOR);
		if (failed || random() % 10)
			continue;
		failed = fsync(fd);
		if (!failed)
			note(log, (struct record){.kind = SYNC, .seq = seq});
	}
	err = errno;
	if (is_gone(err) || daemon_is_dying(fd, err))
		return 0;
	fprintf(stderr, "%s: %s\n", path, strerror(err));
	return 1;
}

struct log {
	struct record *records;
	size_t nr;
};

static struct log log_load(const char *path)
{
	struct log log = {NULL, 0};
	struct stat st;
	int fd = open_or_die(path, O_RDONLY | O_CREAT);

	if (fstat(fd, &st) < 0 || !(log.records = malloc((size_t)st.st_size + 1)) ||
	    read(fd, log.records, (size_t)st.st_size) != st.st_size) {
		perror(path);
		exit(2);
	}
	log.nr = (size_t)st.st_size / sizeof log.records[0];
	close(fd);
	return log;
}

/* Whether BUF is what SECTOR may hold: what the last write before the last fsync left there, or any later write. */
static int sector_is_right(const struct log *log, size_t nr_synced, uint32_t sector, const unsigned char *buf,
                           const unsigned char *original)
{
	unsigned char want[SECTOR];

	for (size_t i = log->nr; i-- > 0;) {
		const struct record *r = &log->records[i];

		if (r->kind == SYNC || sector < r->sector || sector - r->sector >= r->nr_sectors)
			continue;
		if (r->kind == WRITE)
			fill_sector(want, sector, r->seq);
		else
			memset(want, 0, sizeof want);
		if (!memcmp(buf, want, sizeof want))
			return 1;
		if (i < nr_synced)
			return 0;
	}
	return !memcmp(buf, original, SECTOR);
}

/* Of the records, the first NR_BEFORE had come when the state of FILE was taken, and no more than NR_MAX. */
static int verify(const char *path, const char *log_path, const char *original_path, size_t nr_before, size_t nr_max)
{
	int fd = open_or_die(path, O_RDONLY), original_fd = open_or_die(original_path, O_RDONLY);
	struct log log = log_load(log_path);
	uint32_t nr_sectors = nr_sectors_of(fd), nr_bad = 0;

	if (log.nr > nr_max)
		log.nr = nr_max;
	size_t nr_synced = nr_before < log.nr ? nr_before : log.nr;
	unsigned char got[SECTOR], original[SECTOR];

	while (nr_synced > 0 && log.records[nr_synced - 1].kind != SYNC)
		nr_synced--;
	if (!nr_sectors || nr_sectors != nr_sectors_of(original_fd)) {
		printf("%s: another size\n", path);
		return 1;
	}
	for (uint32_t s = 0; s < nr_sectors; s++) {
		if (pread(fd, got, SECTOR, (off_t)s * SECTOR) != SECTOR ||
		    pread(original_fd, original, SECTOR, (off_t)s * SECTOR) != SECTOR) {
			perror(path);
			return 1;
		}
		if (sector_is_right(&log, nr_synced, s, got, original))
			continue;
		if (nr_bad++ < 5)
			printf("%s: sector %u is wrong: it begins %02x %02x %02x %02x %02x %02x %02x %02x\n", path, s,
			       got[0], got[1], got[2], got[3], got[4], got[5], got[6], got[7]);
	}
	if (nr_bad)
		printf("%s: %u sectors are wrong (%zu of %zu records synced)\n", path, nr_bad, nr_synced, log.nr);
	free(log.records);
	return nr_bad ? 1 : 0;
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "write"))
		return write_until_gone(argv[2], argv[3], (unsigned)strtoul(argv[4], NULL, 10));
	if (argc == 5 && !strcmp(argv[1], "verify"))
		return verify(argv[2], argv[3], argv[4], SIZE_MAX, SIZE_MAX);
	if (argc == 7 && !strcmp(argv[1], "verify"))
		return verify(argv[2], argv[3], argv[4], strtoul(argv[5], NULL, 10), strtoul(argv[6], NULL, 10));
	fprintf(stderr, "usage: crashwriter write FILE LOG SEED | verify FILE LOG ORIGINAL [FIRST LAST]\n");
	return 2;
}
