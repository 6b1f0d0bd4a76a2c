/* Eight writers stamp a rising counter on two disks, A first and then B, each write synced, while snapshots of both are
 * taken; then every snapshot is looked at: B is never ahead of A, and what had been written before is there.
 *
 * stamper DISK-A DISK-B SNAPSHOTS COUNT     makes COUNT snapshots, SNAPSHOTS/1 and on, which hold disks of these names
 * stamper -t DISK-A DISK-B SNAPSHOTS COUNT  the same, and prints the longest that a write took, in milliseconds; SNAPSHOTS
 * may be "-" then: none are taken */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SECTOR	   512
#define NR_WRITERS 8
#define NR_DISKS   2

/* How far a writer was on each disk. */
struct moment {
	uint64_t count[NR_WRITERS][NR_DISKS];
};

static int disks[NR_DISKS];
static atomic_uint_fast64_t begun[NR_WRITERS][NR_DISKS], acked[NR_WRITERS][NR_DISKS], longest_ns;
static atomic_bool ended;

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Half of the writers have neighbouring sectors of one cluster, the others clusters of their own. */
static off_t sector_of(unsigned writer)
{
	return writer < NR_WRITERS / 2 ? (off_t)writer * SECTOR : (off_t)writer * 262144 + 3 * SECTOR;
}

static void stamp(unsigned writer, unsigned disk, uint64_t count)
{
	uint64_t sector[SECTOR / sizeof(uint64_t)], from = now_ns(), took;

	for (size_t i = 0; i < sizeof sector / sizeof sector[0]; i++)
		sector[i] = count;
	atomic_store(&begun[writer][disk], count);
	if (pwrite(disks[disk], sector, sizeof sector, sector_of(writer)) != sizeof sector)
		die("a stamp");
	atomic_store(&acked[writer][disk], count);
	took = now_ns() - from;
	for (uint64_t longest = atomic_load(&longest_ns); took > longest;)
		if (atomic_compare_exchange_weak(&longest_ns, &longest, took))
			break;
}

static void *writer_main(void *arg)
{
	unsigned writer = (unsigned)(uintptr_t)arg;

	for (uint64_t count = 1; !atomic_load(&ended); count++)
		for (unsigned disk = 0; disk < NR_DISKS; disk++)
			stamp(writer, disk, count);
	return NULL;
}

static void take(struct moment *moment, atomic_uint_fast64_t (*counts)[NR_DISKS])
{
	for (unsigned writer = 0; writer < NR_WRITERS; writer++)
		for (unsigned disk = 0; disk < NR_DISKS; disk++)
			moment->count[writer][disk] = atomic_load(&counts[writer][disk]);
}

static int is_everywhere_stamped(void)
{
	struct moment moment;

	take(&moment, acked);
	for (unsigned writer = 0; writer < NR_WRITERS; writer++)
		if (!moment.count[writer][NR_DISKS - 1])
			return 0;
	return 1;
}

/* -1: torn, or unreadable. */
static int64_t read_stamp(int fd, unsigned writer)
{
	uint64_t sector[SECTOR / sizeof(uint64_t)];

	if (pread(fd, sector, sizeof sector, sector_of(writer)) != sizeof sector)
		return -1;
	for (size_t i = 1; i < sizeof sector / sizeof sector[0]; i++)
		if (sector[i] != sector[0])
			return -1;
	return (int64_t)sector[0];
}

static unsigned check(const char *snapshots, unsigned nr, char *const *names, const struct moment *before,
                      const struct moment *after)
{
	int64_t got[NR_WRITERS][NR_DISKS];
	unsigned nr_bad = 0;
	char path[4096];

	for (unsigned disk = 0; disk < NR_DISKS; disk++) {
		const char *slash = strrchr(names[disk], '/');
		int fd;

		snprintf(path, sizeof path, "%s/%u/disks/%s", snapshots, nr, slash ? slash + 1 : names[disk]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			die(path);
		for (unsigned writer = 0; writer < NR_WRITERS; writer++)
			got[writer][disk] = read_stamp(fd, writer);
		close(fd);
	}
	for (unsigned writer = 0; writer < NR_WRITERS; writer++) {
		int64_t a = got[writer][0], b = got[writer][1];
		int bad = a < 0 || b < 0 || b > a || a > b + 1;

		for (unsigned disk = 0; disk < NR_DISKS; disk++)
			bad |= got[writer][disk] < (int64_t)before->count[writer][disk] ||
			       got[writer][disk] > (int64_t)after->count[writer][disk];
		if (!bad)
			continue;
		printf("snapshot %u, writer %u: A %lld (of %llu to %llu), B %lld (of %llu to %llu)\n", nr, writer, (long long)a,
		       (unsigned long long)before->count[writer][0], (unsigned long long)after->count[writer][0], (long long)b,
		       (unsigned long long)before->count[writer][1], (unsigned long long)after->count[writer][1]);
		nr_bad++;
	}
	return nr_bad;
}

static void run(const char *snapshots, unsigned count, struct moment *before, struct moment *after)
{
	const struct timespec pause = {.tv_nsec = 2000000};
	pthread_t threads[NR_WRITERS];
	char path[4096];

	for (unsigned i = 0; i < NR_WRITERS; i++)
		if (pthread_create(&threads[i], NULL, writer_main, (void *)(uintptr_t)i))
			die("a thread");
	while (!is_everywhere_stamped())
		nanosleep(&pause, NULL);
	for (unsigned i = 0; i < count; i++) {
		snprintf(path, sizeof path, "%s/%u", snapshots ? snapshots : "", i + 1);
		take(&before[i], acked);
		if (snapshots && mkdir(path, 0755) < 0)
			die(path);
		take(&after[i], begun);
		nanosleep(&pause, NULL);
	}
	atomic_store(&ended, true);
	for (unsigned i = 0; i < NR_WRITERS; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	int timed = argc == 6 && !strcmp(argv[1], "-t");
	unsigned count, nr_bad = 0;
	struct moment *before, *after;
	const char *snapshots;

	argv += timed;
	if (argc - timed != 5 || !(count = (unsigned)strtoul(argv[4], NULL, 10))) {
		fprintf(stderr, "usage: stamper [-t] DISK-A DISK-B SNAPSHOTS COUNT\n");
		return 2;
	}
	for (unsigned disk = 0; disk < NR_DISKS; disk++)
		if ((disks[disk] = open(argv[1 + disk], O_RDWR | O_DSYNC | O_CLOEXEC)) < 0)
			die(argv[1 + disk]);
	before = calloc(count, sizeof *before);
	after = calloc(count, sizeof *after);
	if (!before || !after)
		die("memory");
	snapshots = timed && !strcmp(argv[3], "-") ? NULL : argv[3];
	run(snapshots, count, before, after);
	for (unsigned i = 0; snapshots && i < count; i++)
		nr_bad += check(snapshots, i + 1, argv + 1, &before[i], &after[i]);
	free(before);
	free(after);
	if (timed)
		printf("%.2f\n", (double)atomic_load(&longest_ns) / 1e6);
	return nr_bad ? 1 : 0;
}
