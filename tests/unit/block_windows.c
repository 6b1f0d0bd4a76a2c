/* Windows on a file: what system calls copy out of them is what the file holds, while others come and go; a file that is cut off is an error, not a
 * signal. Meant for ThreadSanitizer as well. block_windows [SEED] */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "block/windows.h"

#define FILE_BYTES  (200ull << 20) /* some windows */
#define LEN_MAX	    (300u << 10)
#define MAX_BYTES   (2u << 20) /* so little that windows come and go */
#define NR_THREADS  4u
#define NR_ROUNDS   2000u

#define CHECK(cond)                                                       \
	do {                                                              \
		if (!(cond)) {                                            \
			printf("%s:%d: %s\n", __FILE__, __LINE__, #cond); \
			exit(1);                                          \
		}                                                         \
	} while (0)

static struct windows *windows;
static int fd;

static void fill(uint64_t *words, size_t nr, uint64_t off)
{
	for (size_t i = 0; i < nr; i++)
		words[i] = (off + i * 8) * 0x9e3779b97f4a7c15ull;
}

static bool same(const char *bytes, size_t len, uint64_t off)
{
	static _Thread_local uint64_t want[LEN_MAX / 8 + 2];
	uint64_t start = off & ~7ull;
	fill(want, LEN_MAX / 8 + 2, start);
	return memcmp(bytes, (char *)want + (off - start), len) == 0;
}

static void *look(void *arg)
{
	unsigned seed = *(unsigned *)arg;
	static _Thread_local char got[LEN_MAX];
	int out = memfd_create("out", MFD_CLOEXEC);
	size_t nr_given = 0;
	CHECK(out >= 0);
	for (unsigned i = 0; i < NR_ROUNDS; i++) {
		struct window *window = NULL;
		size_t len = 1 + (size_t)rand_r(&seed) % LEN_MAX;
		uint64_t off = ((uint64_t)rand_r(&seed) << 20 ^ (uint64_t)rand_r(&seed)) % (FILE_BYTES - len);
		uint64_t serial = 1 + (uint64_t)rand_r(&seed) % 3;
		const void *bytes = windows_get(windows, serial, fd, off, len, &window);
		if (!bytes)
			continue; /* across two windows, or not in the page cache */
		nr_given++;
		CHECK(file_write(out, bytes, len, 0) == 0);
		windows_put(windows, window);
		CHECK(file_read(out, got, len, 0) == (ssize_t)len && same(got, len, off));
	}
	close(out);
	CHECK(nr_given > NR_ROUNDS / 2);
	return NULL;
}

static void cut_off(void)
{
	struct window *window = NULL;
	int out = memfd_create("out", MFD_CLOEXEC);
	CHECK(out >= 0 && file_write(fd, "there", 5, 0) == 0);
	const void *bytes = windows_get(windows, 9, fd, 0, 65536, &window);
	CHECK(bytes && file_write(out, bytes, 65536, 0) == 0);
	CHECK(ftruncate(fd, 0) == 0);
	CHECK(file_write(out, bytes, 65536, 0) == -EFAULT);
	windows_put(windows, window);
	windows_forget(windows, 9);
	CHECK(!windows_get(windows, 9, fd, 0, 65536, &window));
	close(out);
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	printf("seed %u\n", seed);
	static uint64_t words[1 << 17];
	fd = memfd_create("file", MFD_CLOEXEC);
	for (uint64_t off = 0; off < FILE_BYTES; off += sizeof words) {
		fill(words, sizeof words / 8, off);
		CHECK(file_write(fd, words, sizeof words, off) == 0);
	}
	CHECK(windows_new(MAX_BYTES, &windows) == 0);
	struct window *window = NULL;
	if (!windows_get(windows, 1, fd, 0, 65536, &window)) {
		printf("skip: this kernel has no cachestat\n");
		return 77;
	}
	windows_put(windows, window);
	pthread_t threads[NR_THREADS];
	unsigned seeds[NR_THREADS];
	for (unsigned i = 0; i < NR_THREADS; i++) {
		seeds[i] = seed + i;
		CHECK(pthread_create(&threads[i], NULL, look, &seeds[i]) == 0);
	}
	for (unsigned i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i], NULL);
	cut_off();
	windows_free(windows);
	close(fd);
	printf("ok\n");
	return 0;
}
