/* Thousands of directories that come and go, from many processes at once, while others list the directory they are in.
 *
 *	churn DIR MAKE-IN PREFIX PROCESSES ROUNDS LISTERS
 *
 * Each process makes MAKE-IN/PREFIX-N-M (with MAKE-IN = DIR: in DIR itself), which then are in DIR, and removes them again; now and then it renames
 * one. The listers read DIR all the time, with buffers of all sizes, and go back to positions that they had: every listing holds each
 * name that was there before it and is afterwards, nothing twice, and nothing that never was. What is called PREFIX-stays-… must be
 * there before the start and is never touched. */
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define AT_ONCE 6 /* of each process */

struct entry64 {
	uint64_t ino;
	int64_t next_off;
	unsigned short len;
	unsigned char type;
	char name[];
};

struct name {
	char text[64];
	int64_t pos; /* behind it */
};

static const char *dir, *make_in, *prefix;
static int *over; /* shared: the makers have ended */
static long *nr_listings, *nr_made;

/* --- makers ------------------------------------------------------------------------------------------------------------- */

static void make(const char *name)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%s", make_in, name);
	if (mkdir(path, 0755) < 0)
		err(1, "mkdir %s", path);
	snprintf(path, sizeof path, "%s/%s", dir, name);
	if (access(path, F_OK) < 0)
		err(1, "%s was made and isn't there", path);
	__atomic_fetch_add(nr_made, 1, __ATOMIC_RELAXED);
}

static void take_away(const char *name)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	if (rmdir(path) < 0)
		err(1, "rmdir %s", path);
	if (access(path, F_OK) == 0 || errno != ENOENT)
		err(1, "%s was removed and is there", path);
}

static void move(const char *name, const char *new_name)
{
	char path[4096], new_path[4096];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	snprintf(new_path, sizeof new_path, "%s/%s", dir, new_name);
	if (rename(path, new_path) < 0)
		err(1, "mv %s %s", path, new_path);
}

static void make_some(int process, int rounds)
{
	for (int round = 0; round < rounds; round++) {
		char name[AT_ONCE][64], moved[64];
		for (int i = 0; i < AT_ONCE; i++) {
			snprintf(name[i], sizeof name[i], "%s-%d-%d", prefix, process, round * AT_ONCE + i);
			make(name[i]);
		}
		snprintf(moved, sizeof moved, "%s-moved-%d-%d", prefix, process, round);
		move(name[0], moved);
		take_away(moved);
		for (int i = 1; i < AT_ONCE; i++)
			take_away(name[i]);
	}
}

/* --- listers ------------------------------------------------------------------------------------------------------------ */

static int by_text(const void *a, const void *b)
{
	return strcmp(((const struct name *)a)->text, ((const struct name *)b)->text);
}

struct names {
	struct name *names;
	size_t nr;
};

static void names_add(struct names *names, const struct entry64 *e)
{
	if (names->nr % 1024 == 0 && !(names->names = realloc(names->names, (names->nr + 1024) * sizeof *names->names)))
		err(1, "realloc");
	struct name *name = &names->names[names->nr++];
	snprintf(name->text, sizeof name->text, "%s", e->name);
	name->pos = e->next_off;
}

/* From the file's position on. */
static struct names list(int fd, size_t buf_len)
{
	static _Alignas(8) char buf[65536];
	struct names names = {0};
	long n;
	while ((n = syscall(SYS_getdents64, fd, buf, buf_len)) > 0)
		for (long at = 0; at < n;) {
			const struct entry64 *e = (const void *)(buf + at);
			names_add(&names, e);
			at += e->len;
		}
	if (n < 0)
		err(1, "getdents64 with %zu bytes", buf_len);
	return names;
}

static bool may_be(const char *name)
{
	size_t len = strlen(prefix);
	return !strcmp(name, ".") || !strcmp(name, "..") || (!strncmp(name, prefix, len) && name[len] == '-');
}

/* Of the names that stay, how many there are. */
static size_t check(struct names *names)
{
	char stays[64];
	size_t nr = 0, len = (size_t)snprintf(stays, sizeof stays, "%s-stays-", prefix);
	qsort(names->names, names->nr, sizeof *names->names, by_text);
	for (size_t i = 0; i < names->nr; i++) {
		if (!may_be(names->names[i].text))
			errx(1, "%s never was in %s", names->names[i].text, dir);
		if (i && !strcmp(names->names[i].text, names->names[i - 1].text))
			errx(1, "%s is listed twice", names->names[i].text);
		nr += !strncmp(names->names[i].text, stays, len);
	}
	return nr;
}

static size_t pick_len(unsigned *dice)
{
	static const size_t lens[] = {280, 300, 512, 1024, 4096, 32768, 65536};
	return lens[(unsigned)rand_r(dice) % (sizeof lens / sizeof *lens)];
}

/* Goes back to a position that it had: what stays and came behind it comes again. */
static void go_back(int fd, const struct names *before, unsigned *dice)
{
	char stays[64];
	int len = snprintf(stays, sizeof stays, "%s-stays-", prefix);
	size_t at = (unsigned)rand_r(dice) % before->nr;
	if (lseek(fd, before->names[at].pos, SEEK_SET) < 0)
		err(1, "lseek");
	struct names after = list(fd, pick_len(dice));
	check(&after);
	for (size_t i = at + 1; i < before->nr; i++)
		if (!strncmp(before->names[i].text, stays, (size_t)len) &&
		    !bsearch(&before->names[i], after.names, after.nr, sizeof *after.names, by_text))
			errx(1, "%s isn't listed behind %s any more", before->names[i].text, before->names[at].text);
	free(after.names);
}

static void list_again(unsigned seed)
{
	unsigned dice = seed;
	size_t nr_staying = 0;
	while (!__atomic_load_n(over, __ATOMIC_ACQUIRE)) {
		int fd = open(dir, O_RDONLY | O_DIRECTORY);
		if (fd < 0)
			err(1, "%s", dir);
		struct names names = list(fd, pick_len(&dice)), sorted = {malloc(names.nr * sizeof *names.names), names.nr};
		memcpy(sorted.names, names.names, names.nr * sizeof *names.names);
		size_t nr = check(&sorted);
		if (nr_staying && nr != nr_staying)
			errx(1, "%zu of the names that stay were listed, and then %zu", nr_staying, nr);
		nr_staying = nr;
		go_back(fd, &names, &dice);
		__atomic_fetch_add(nr_listings, 1, __ATOMIC_RELAXED);
		free(names.names);
		free(sorted.names);
		close(fd);
	}
}

/* --- all ---------------------------------------------------------------------------------------------------------------- */

static bool wait_for(int nr)
{
	int status;
	bool good = true;
	for (; nr && wait(&status) > 0; nr--)
		if (status) {
			good = false;
			__atomic_store_n(over, 1, __ATOMIC_RELEASE);
		}
	return good;
}

int main(int argc, char **argv)
{
	if (argc != 7)
		errx(2, "usage: churn DIR MAKE-IN PREFIX PROCESSES ROUNDS LISTERS");
	dir = argv[1];
	make_in = argv[2];
	prefix = argv[3];
	int makers = atoi(argv[4]), rounds = atoi(argv[5]), listers = atoi(argv[6]);
	long *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		err(1, "mmap");
	nr_made = shared;
	nr_listings = shared + 1;
	over = (int *)(shared + 2);
	for (int i = 0; i < listers; i++)
		if (fork() == 0) {
			list_again((unsigned)i + 1);
			_exit(0);
		}
	/* A child of its own waits for the makers alone. */
	pid_t all = fork();
	if (all == 0) {
		for (int i = 0; i < makers; i++)
			if (fork() == 0) {
				make_some(i, rounds);
				_exit(0);
			}
		bool good = wait_for(makers);
		__atomic_store_n(over, 1, __ATOMIC_RELEASE);
		_exit(!good);
	}
	bool good = wait_for(listers + 1);
	printf("%ld made and removed, %ld listings\n", *nr_made, *nr_listings);
	return !good;
}
