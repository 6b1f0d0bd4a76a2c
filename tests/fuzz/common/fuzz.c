#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sanitizer/allocator_interface.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_bool watching;
static atomic_int_least64_t taken; /* bytes of memory since fuzz_begin() */
static int64_t max_taken;
static atomic_uint_least64_t nr_reads, nr_read_bytes;
static uint64_t max_reads, max_read_bytes;

void fuzz_fail(const char *fmt, ...)
{
	atomic_store(&watching, false);
	va_list ap;
	va_start(ap, fmt);
	fputs("a broken promise: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	abort();
}

/* --- memory ------------------------------------------------------------------------------------------------------ */

static void on_malloc(const volatile void *p, size_t size)
{
	(void)p;
	if (atomic_load(&watching) && atomic_fetch_add(&taken, (int64_t)size) + (int64_t)size > max_taken)
		fuzz_fail("more than %lld bytes of memory, by the last %zu", (long long)max_taken, size);
}

static void on_free(const volatile void *p)
{
	if (p && atomic_load(&watching))
		atomic_fetch_sub(&taken, (int64_t)__sanitizer_get_allocated_size((const void *)(uintptr_t)p));
}

/* --- the directory --------------------------------------------------------------------------------------------------- */

static char dir[PATH_MAX], root[PATH_MAX];
static int dirfd_ = -1;

static void remove_dir(void)
{
	char command[PATH_MAX + 20];
	snprintf(command, sizeof command, "rm -rf '%s'", dir);
	if (system(command) != 0)
		fprintf(stderr, "%s is left\n", dir);
}

const char *fuzz_dir(void)
{
	if (*dir)
		return dir;
	const char *below = getenv("FUZZ_DIR");
	snprintf(dir, sizeof dir, "%s/vmsnapfs-fuzz.XXXXXX", below ? below : "/dev/shm");
	char *real = mkdtemp(dir) ? realpath(dir, NULL) : NULL;
	if (!real)
		fuzz_fail("%s: %s", dir, strerror(errno));
	snprintf(dir, sizeof dir, "%s", real);
	snprintf(root, sizeof root, "%s", real);
	free(real);
	dirfd_ = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	atexit(remove_dir);
	return dir;
}

void fuzz_trust(const char *trusted)
{
	snprintf(root, sizeof root, "%s", trusted);
}

int fuzz_dirfd(void)
{
	fuzz_dir();
	return dirfd_;
}

/* --- files ------------------------------------------------------------------------------------------------------------ */

ssize_t __real_readlink(const char *path, char *buf, size_t size);

static void path_of_fd(int fd, char path[PATH_MAX])
{
	char link[40];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = __real_readlink(link, path, PATH_MAX - 1);
	path[n < 0 ? 0 : n] = '\0';
}

static void check_fd(int fd)
{
	char path[PATH_MAX];
	size_t len = strlen(root);
	path_of_fd(fd, path);
	if (strncmp(path, root, len) != 0 || (path[len] != '/' && path[len] != '\0'))
		fuzz_fail("%s was opened, which lies outside of %s", path, root);
}

static void check_place(const char *what, int fd, size_t len, off_t off)
{
	if (off < 0 || (uint64_t)off + len > INT64_MAX)
		fuzz_fail("%s of %zu bytes at %lld", what, len, (long long)off);
	check_fd(fd);
}

ssize_t __real_pread64(int fd, void *buf, size_t len, off_t off);
ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t off);
ssize_t __real_pwrite64(int fd, const void *buf, size_t len, off_t off);
ssize_t __wrap_pwrite64(int fd, const void *buf, size_t len, off_t off);
long __real_syscall(long nr, ...);
long __wrap_syscall(long nr, long a, long b, long c, long d, long e, long f);

ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t off)
{
	if (atomic_load(&watching)) {
		check_place("a read", fd, len, off);
		if (atomic_fetch_add(&nr_reads, 1) >= max_reads)
			fuzz_fail("more than %llu reads", (unsigned long long)max_reads);
		if (atomic_fetch_add(&nr_read_bytes, len) + len > max_read_bytes)
			fuzz_fail("more than %llu bytes are read", (unsigned long long)max_read_bytes);
	}
	return __real_pread64(fd, buf, len, off);
}

ssize_t __wrap_pwrite64(int fd, const void *buf, size_t len, off_t off)
{
	if (atomic_load(&watching))
		check_place("a write", fd, len, off);
	return __real_pwrite64(fd, buf, len, off);
}

long __wrap_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret = __real_syscall(nr, a, b, c, d, e, f);
	if (nr == SYS_openat2 && ret >= 0 && atomic_load(&watching))
		check_fd((int)ret);
	return ret;
}

int __real_openat64(int at, const char *name, int flags, mode_t mode);
int __wrap_openat64(int at, const char *name, int flags, mode_t mode);
int __real_open64(const char *name, int flags, mode_t mode);
int __wrap_open64(const char *name, int flags, mode_t mode);

int __wrap_openat64(int at, const char *name, int flags, mode_t mode)
{
	int fd = __real_openat64(at, name, flags, mode);
	if (fd >= 0 && atomic_load(&watching))
		check_fd(fd);
	return fd;
}

int __wrap_open64(const char *name, int flags, mode_t mode)
{
	int fd = __real_open64(name, flags, mode);
	if (fd >= 0 && atomic_load(&watching))
		check_fd(fd);
	return fd;
}

ssize_t __wrap_readlink(const char *path, char *buf, size_t size);

/* Nothing outside is even looked at. */
ssize_t __wrap_readlink(const char *path, char *buf, size_t size)
{
	size_t len = strlen(root);
	if (atomic_load(&watching) && (strncmp(path, root, len) != 0 || (path[len] != '/' && path[len] != '\0')))
		fuzz_fail("%s is looked at, which lies outside of %s", path, root);
	return __real_readlink(path, buf, size);
}

ssize_t fuzz_pread(int fd, void *buf, size_t len, uint64_t off)
{
	return __real_pread64(fd, buf, len, (off_t)off);
}

ssize_t fuzz_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
	return __real_pwrite64(fd, buf, len, (off_t)off);
}

/* --- a case ----------------------------------------------------------------------------------------------------------- */

void fuzz_begin(uint64_t bytes, uint64_t reads, uint64_t read_bytes)
{
	static bool hooked;
	fuzz_dir();
	if (!hooked)
		hooked = __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
	atomic_store(&taken, 0);
	max_taken = (int64_t)bytes;
	max_reads = reads;
	max_read_bytes = read_bytes;
	fuzz_count_anew();
	atomic_store(&watching, true);
}

void fuzz_end(void)
{
	atomic_store(&watching, false);
}

void fuzz_count_anew(void)
{
	atomic_store(&nr_reads, 0);
	atomic_store(&nr_read_bytes, 0);
}

char *fuzz_text(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	if (!text)
		abort();
	if (size)
		memcpy(text, data, size);
	text[size] = '\0';
	return text;
}

uint64_t fuzz_take(struct fuzz_bytes *bytes, unsigned nr)
{
	uint64_t n = 0;
	while (nr--)
		n = n << 8 | (bytes->at < bytes->end ? *bytes->at++ : 0);
	return n;
}
