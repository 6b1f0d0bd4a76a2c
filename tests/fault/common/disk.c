#include "disk.h"

#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "disk_priv.h"

#define SECTOR 512u

const char *const fault_kind_names[NR_FAULT_KINDS] = {"none", "EIO", "EIO, late", "ENOSPC", "ENOSPC, sync", "short", "kill", "kill, half", "read EIO"};
const char *const disk_op_names[NR_DISK_OPS] = {"write", "size", "space", "hole", "clone", "sync", "create", "mkdir", "symlink", "link", "rename", "unlink"};
static const bool needs_space[NR_DISK_OPS] = {
	[OP_WRITE] = true, [OP_SPACE] = true, [OP_CLONE] = true, [OP_CREATE] = true, [OP_MKDIR] = true, [OP_SYMLINK] = true, [OP_LINK] = true};

struct disk_shared *disk_shared;

static char *watched; /* NULL: nothing; without / at its end */
static bool is_leaving;
static bool can_clone;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* one step at a time */
/* protected by lock */
static struct {
	enum fault_kind kind;
	uint64_t nth;
	bool for_good;
} fault;
static struct {
	bool armed;
	uint64_t nth;
	unsigned nr_syncs; /* not 0: at that one after the fault, whatever NTH */
	char *to;
	unsigned seed;
} cut;
static struct {
	void (*again)(void *ctx);
	void *ctx;
} next_life;

void disk_init(void)
{
	if (disk_shared)
		return;
	disk_shared = mmap(NULL, sizeof *disk_shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (disk_shared == MAP_FAILED)
		abort();
	void *frame;
	backtrace(&frame, 1); /* what it loads it loads now */
}

void disk_watch(const char *dir)
{
	disk_init();
	watched = realpath(dir, NULL);
	if (!watched)
		abort();
}

void disk_leave(void)
{
	pthread_mutex_lock(&lock);
	is_leaving = true; /* the name stays: other threads may look at it */
	log_is_on = false;
	fault.kind = FAULT_NONE;
	cut.armed = false;
	pthread_mutex_unlock(&lock);
}

void disk_allow_clones(void)
{
	can_clone = true;
}

void disk_arm(enum fault_kind kind, uint64_t nth, bool for_good)
{
	pthread_mutex_lock(&lock);
	fault.kind = kind;
	fault.nth = nth;
	fault.for_good = for_good;
	disk_shared->struck = false;
	disk_shared->struck_stack = NO_STACK;
	disk_shared->nr_steps = disk_shared->nr_reads = 0;
	pthread_mutex_unlock(&lock);
}

void disk_arm_cut(uint64_t nth, unsigned nr_syncs, const char *to, unsigned seed)
{
	pthread_mutex_lock(&lock);
	cut.nr_syncs = nr_syncs;
	cut.armed = true;
	cut.nth = nth;
	cut.to = strdup(to);
	cut.seed = seed;
	pthread_mutex_unlock(&lock);
}

void disk_live_again(void (*again)(void *ctx), void *ctx)
{
	next_life.again = again;
	next_life.ctx = ctx;
}

void disk_disarm(void)
{
	pthread_mutex_lock(&lock);
	fault.kind = FAULT_NONE;
	pthread_mutex_unlock(&lock);
}

uint64_t disk_nr_steps(void)
{
	return disk_shared->nr_steps;
}

uint64_t disk_nr_reads(void)
{
	return disk_shared->nr_reads;
}

bool disk_struck(const char **ret_step_name)
{
	if (disk_shared->struck && ret_step_name)
		*ret_step_name = stack_step_name(disk_shared->struck_stack, disk_shared->struck_op);
	return disk_shared->struck;
}

const char *disk_step_name(uint64_t nr, bool *ret_needs_space)
{
	if (nr >= disk_shared->nr_steps || nr >= STEPS_MAX)
		return NULL;
	enum disk_op op = disk_shared->step_ops[nr];
	*ret_needs_space = needs_space[op];
	return stack_step_name(disk_shared->step_stacks[nr], op);
}

void disk_record(void)
{
	pthread_mutex_lock(&lock);
	log_start(watched);
	pthread_mutex_unlock(&lock);
}

/* --- the real calls ---------------------------------------------------------------------------------------------------- */

#define WRAPPED(ret, name, ...) \
	ret __real_##name(__VA_ARGS__); \
	ret __wrap_##name(__VA_ARGS__); \
	ret __wrap_##name(__VA_ARGS__)

int __real_openat64(int dirfd, const char *path, int flags, ...);
int __real_ioctl(int fd, unsigned long request, ...);

int real_openat(int dirfd, const char *name, int flags, mode_t mode)
{
	return __real_openat64(dirfd, name, flags, mode);
}

/* --- what is watched ----------------------------------------------------------------------------------------------------- */

static bool is_watched(int fd)
{
	char link[40], path[PATH_MAX + 20];
	if (!watched || is_leaving || fd < 0)
		return false;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t len = readlink(link, path, sizeof path - 1);
	if (len < 0)
		return false;
	path[len] = '\0';
	size_t n = strlen(watched);
	return strncmp(path, watched, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

/* Where a name is made or taken away: the directory, opened, and the last part of the path. */
struct at {
	int dirfd;
	char name[NAME_MAX + 1];
	bool exists;
	struct stat st; /* if it exists; of a link itself */
};

static bool at_open(struct at *at, int dirfd, const char *path)
{
	char parent[PATH_MAX] = ".";
	at->dirfd = -1;
	if (!watched || is_leaving || !path)
		return false;
	const char *slash = strrchr(path, '/');
	if (slash)
		snprintf(parent, sizeof parent, "%.*s", slash == path ? 1 : (int)(slash - path), path);
	snprintf(at->name, sizeof at->name, "%s", slash ? slash + 1 : path);
	at->dirfd = __real_openat64(dirfd, parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (at->dirfd >= 0 && is_watched(at->dirfd) && *at->name) {
		at->exists = fstatat(at->dirfd, at->name, &at->st, AT_SYMLINK_NOFOLLOW) == 0;
		return true;
	}
	if (at->dirfd >= 0)
		close(at->dirfd);
	at->dirfd = -1;
	return false;
}

static void at_close(struct at *at)
{
	int saved = errno;
	if (at->dirfd >= 0)
		close(at->dirfd);
	errno = saved;
}

static int node_of_fd(int fd)
{
	struct stat st;
	return fstat(fd, &st) < 0 ? -1 : log_node(&st, fd, "");
}

static int node_at(const struct at *at)
{
	struct stat st;
	return fstatat(at->dirfd, at->name, &st, AT_SYMLINK_NOFOLLOW) < 0 ? -1 : log_node(&st, at->dirfd, at->name);
}

static void *copy_of(const void *data, size_t len)
{
	void *copy = malloc(len + 1);
	if (!copy)
		abort();
	memcpy(copy, data, len);
	return copy;
}

/* --- faults ------------------------------------------------------------------------------------------------------------------ */

/* A step on its way: between step_begin and step_end the lock is held. */
struct step {
	enum disk_op op;
	unsigned stack;
	int err;  /* it isn't done, and says this */
	bool half, late, kill;
};

/* What could be left goes into NR directories. */
__attribute__((noreturn)) static void power_off(unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		char to[PATH_MAX];
		snprintf(to, sizeof to, "%s%u", cut.to, i);
		disk_rebuild(to, disk_nr_recorded(), cut.seed + i * 7919);
	}
	_exit(DISK_KILLED);
}

/* In the fork, whose only thread has the lock: no other one was within a step. */
__attribute__((noreturn)) static void live_again(int killed)
{
	struct pollfd gone = {killed, POLLIN, 0};
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* The files are the killed one's too: its locks are held until both have closed them. */
	while (poll(&gone, 1, -1) < 0 && errno == EINTR)
		;
	log_close_others();
	fault.kind = FAULT_NONE;
	pthread_mutex_init(&lock, NULL);
	next_life.again(next_life.ctx);
	pthread_mutex_lock(&lock);
	power_off(DISK_CUTS / 2);
}

__attribute__((noreturn)) static void be_killed(void)
{
	if (next_life.again) {
		int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
		pid_t pid = self < 0 ? -1 : fork();
		if (pid < 0)
			_exit(2);
		if (!pid)
			live_again(self);
	}
	_exit(DISK_KILLED);
}

static void strike(struct step *step)
{
	if (!disk_shared->struck) {
		disk_shared->struck = true;
		disk_shared->struck_stack = (uint16_t)step->stack;
		disk_shared->struck_op = (uint8_t)step->op;
	}
	switch (fault.kind) {
	case FAULT_EIO: step->err = EIO; break;
	case FAULT_EIO_LATE: step->late = true; break;
	case FAULT_ENOSPC:
	case FAULT_ENOSPC_SYNC: step->err = ENOSPC; break;
	case FAULT_SHORT:
		step->half = step->op == OP_WRITE;
		step->err = step->half ? 0 : EIO;
		break;
	case FAULT_KILL_HALF:
		step->half = step->kill = step->op == OP_WRITE;
		if (step->half)
			break;
		_exit(DISK_KILLED);
	case FAULT_KILL: be_killed();
	case FAULT_NONE:
	case FAULT_READ_EIO:
	case NR_FAULT_KINDS: break;
	}
}

static bool is_cut(uint64_t nr, enum disk_op op)
{
	if (!cut.armed || !cut.nr_syncs)
		return cut.armed && nr >= cut.nth;
	if (cut.nr_syncs == DISK_AFTER_UNLINK) {
		if (op == OP_UNLINK)
			cut.nr_syncs = 1;
		return false;
	}
	return disk_shared->struck && op == OP_SYNC && --cut.nr_syncs == 0;
}

static void step_begin(struct step *step, enum disk_op op)
{
	*step = (struct step){.op = op};
	pthread_mutex_lock(&lock);
	uint64_t nr = disk_shared->nr_steps;
	step->stack = stack_here();
	if (nr < STEPS_MAX) {
		disk_shared->step_stacks[nr] = (uint16_t)step->stack;
		disk_shared->step_ops[nr] = (uint8_t)op;
	}
	if (is_cut(nr, op)) {
		if (!disk_shared->struck) { /* the cut is the fault */
			disk_shared->struck = true;
			disk_shared->struck_stack = (uint16_t)step->stack;
			disk_shared->struck_op = (uint8_t)op;
		}
		power_off(op == OP_SYNC ? DISK_CUTS : 1); /* before a sync the most is at stake */
	}
	disk_shared->nr_steps++;
	bool hit = nr == fault.nth || (fault.for_good && nr > fault.nth);
	bool possible = fault.kind != FAULT_NONE && fault.kind != FAULT_READ_EIO && (fault.kind != FAULT_ENOSPC || needs_space[op]) &&
		(fault.kind != FAULT_ENOSPC_SYNC || op == OP_SYNC);
	if (hit && possible)
		strike(step);
}

/* RET: what the real call has said, with errno. MADE: what is remembered if it was done. */
static int step_end(const struct step *step, int ret, const struct logged *made)
{
	int saved = errno;
	bool done = ret >= 0 || (step->op == OP_SYNC && made->failed);
	if (log_is_on && done) {
		struct logged l = *made;
		l.op = step->op;
		l.stack = step->stack;
		log_add(&l);
	} else {
		free(made->name);
		free(made->from_name);
		free(made->data);
	}
	if (step->kill)
		_exit(DISK_KILLED);
	pthread_mutex_unlock(&lock);
	errno = step->late ? EIO : saved;
	return step->late ? -1 : ret;
}

static int step_fail(const struct step *step)
{
	pthread_mutex_unlock(&lock);
	errno = step->err;
	return -1;
}

/* --- reads ---------------------------------------------------------------------------------------------------------------------- */

WRAPPED(ssize_t, pread64, int fd, void *buf, size_t len, off_t off)
{
	if (!is_watched(fd))
		return __real_pread64(fd, buf, len, off);
	pthread_mutex_lock(&lock);
	uint64_t nr = disk_shared->nr_reads++;
	bool fail = fault.kind == FAULT_READ_EIO && (nr == fault.nth || (fault.for_good && nr > fault.nth));
	if (fail && !disk_shared->struck) {
		disk_shared->struck = true;
		disk_shared->struck_stack = NO_STACK; /* reads have no names */
	}
	pthread_mutex_unlock(&lock);
	if (!fail)
		return __real_pread64(fd, buf, len, off);
	errno = EIO;
	return -1;
}

/* --- bytes ---------------------------------------------------------------------------------------------------------------------- */

/* Of a write that stops half-way whole sectors are there. 0: it has no half. */
static size_t half_of(size_t len, uint64_t off)
{
	uint64_t middle = (off + len / 2) / SECTOR * SECTOR;
	return middle > off ? (size_t)(middle - off) : 0;
}

WRAPPED(ssize_t, pwrite64, int fd, const void *buf, size_t len, off_t off)
{
	if (!is_watched(fd))
		return __real_pwrite64(fd, buf, len, off);
	struct step step;
	step_begin(&step, OP_WRITE);
	if (step.half && !(len = half_of(len, (uint64_t)off))) {
		if (step.kill)
			_exit(DISK_KILLED);
		step.err = EIO;
	}
	if (step.err)
		return step_fail(&step);
	ssize_t n = __real_pwrite64(fd, buf, len, off);
	struct logged l = {.dir = -1, .from_dir = -1};
	if (log_is_on && n >= 0) {
		l.node = node_of_fd(fd);
		l.off = (uint64_t)off;
		l.len = (uint64_t)n;
		l.data = copy_of(buf, (size_t)n);
	}
	return step_end(&step, (int)(n < 0), &l) < 0 ? -1 : n;
}

/* A change of a file's bytes that has none of its own. */
static int plain_end(const struct step *step, int fd, int ret, uint64_t off, uint64_t len)
{
	struct logged l = {.dir = -1, .from_dir = -1, .off = off, .len = len};
	int saved = errno;
	if (log_is_on && ret >= 0)
		l.node = node_of_fd(fd);
	errno = saved;
	return step_end(step, ret, &l);
}

WRAPPED(int, ftruncate64, int fd, off_t len)
{
	if (!is_watched(fd))
		return __real_ftruncate64(fd, len);
	struct step step;
	step_begin(&step, OP_SIZE);
	if (step.err)
		return step_fail(&step);
	return plain_end(&step, fd, __real_ftruncate64(fd, len), (uint64_t)len, 0);
}

WRAPPED(int, fallocate64, int fd, int mode, off_t off, off_t len)
{
	if (!is_watched(fd))
		return __real_fallocate64(fd, mode, off, len);
	struct step step;
	bool zeros = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
	step_begin(&step, zeros ? OP_HOLE : OP_SPACE);
	if (step.err)
		return step_fail(&step);
	/* Space that is there already, and a file no longer than before, is nothing to be remembered. */
	return plain_end(&step, fd, __real_fallocate64(fd, mode, off, len), (uint64_t)off, zeros || !(mode & FALLOC_FL_KEEP_SIZE) ? (uint64_t)len : 0);
}

static int sync_fd(int fd)
{
	struct step step;
	step_begin(&step, OP_SYNC);
	struct logged l = {.dir = -1, .from_dir = -1, .failed = step.err != 0};
	if (log_is_on)
		l.node = node_of_fd(fd);
	errno = step.err;
	/* Nothing is made stable in truth: the disk is what this file says it is. */
	return step_end(&step, step.err ? -1 : 0, &l);
}

WRAPPED(int, fdatasync, int fd)
{
	return is_watched(fd) ? sync_fd(fd) : __real_fdatasync(fd);
}

WRAPPED(int, fsync, int fd)
{
	return is_watched(fd) ? sync_fd(fd) : __real_fsync(fd);
}

WRAPPED(int, sync_file_range, int fd, off_t off, off_t len, unsigned flags)
{
	return is_watched(fd) ? 0 : __real_sync_file_range(fd, off, len, flags);
}

/* What has come into [OFF, +LEN) of FD from another file. */
static int copied_end(const struct step *step, int fd, int ret, uint64_t off, uint64_t len)
{
	struct logged l = {.dir = -1, .from_dir = -1, .off = off, .len = len};
	if (log_is_on && ret >= 0) {
		l.node = node_of_fd(fd);
		l.data = malloc(len + 1);
		/* FD may be for writing only */
		char self[40];
		snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
		int again = __real_openat64(AT_FDCWD, self, O_RDONLY | O_CLOEXEC);
		if (again < 0 || __real_pread64(again, l.data, len, (off_t)off) != (ssize_t)len)
			abort();
		close(again);
	}
	return step_end(step, ret, &l);
}

WRAPPED(ssize_t, copy_file_range, int in, off_t *in_off, int out, off_t *out_off, size_t len, unsigned flags)
{
	if (!is_watched(out))
		return __real_copy_file_range(in, in_off, out, out_off, len, flags);
	struct step step;
	step_begin(&step, OP_CLONE);
	if (step.err)
		return step_fail(&step);
	uint64_t at = (uint64_t)(out_off ? *out_off : lseek(out, 0, SEEK_CUR));
	ssize_t n = __real_copy_file_range(in, in_off, out, out_off, len, flags);
	return copied_end(&step, out, n < 0 ? -1 : 0, at, n < 0 ? 0 : (uint64_t)n) < 0 ? -1 : n;
}

/* As a filesystem that shares blocks would do it, by copying them. */
static int clone_range(int fd, const struct file_clone_range *range)
{
	struct stat from;
	if (fstat((int)range->src_fd, &from) < 0)
		return -1;
	uint64_t len = range->src_length;
	if ((range->src_offset | range->dest_offset) % 4096 || (len % 4096 && range->src_offset + len != (uint64_t)from.st_size) ||
	    range->src_offset + len > (uint64_t)from.st_size) {
		errno = EINVAL;
		return -1;
	}
	char buf[65536];
	for (uint64_t done = 0; done < len;) {
		size_t want = len - done < sizeof buf ? (size_t)(len - done) : sizeof buf;
		ssize_t n = __real_pread64((int)range->src_fd, buf, want, (off_t)(range->src_offset + done));
		if (n <= 0 || __real_pwrite64(fd, buf, (size_t)n, (off_t)(range->dest_offset + done)) != n)
			return -1;
		done += (uint64_t)n;
	}
	return 0;
}

int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	va_start(ap, request);
	void *arg = va_arg(ap, void *);
	va_end(ap);
	if (request != FICLONERANGE || !is_watched(fd))
		return __real_ioctl(fd, request, arg);
	if (!can_clone) {
		errno = EOPNOTSUPP;
		return -1;
	}
	const struct file_clone_range *range = arg;
	struct step step;
	step_begin(&step, OP_CLONE);
	if (step.err)
		return step_fail(&step);
	return copied_end(&step, fd, clone_range(fd, range), range->dest_offset, range->src_length);
}

/* --- time ----------------------------------------------------------------------------------------------------------------------- */

static atomic_uint hurry, nr_looks;

void disk_hurry(unsigned seconds)
{
	atomic_store(&hurry, seconds);
}

WRAPPED(int, clock_gettime, clockid_t clock, struct timespec *ret)
{
	int err = __real_clock_gettime(clock, ret);
	if (!err)
		ret->tv_sec += (time_t)atomic_load(&hurry) * (time_t)atomic_fetch_add(&nr_looks, 1);
	return err;
}

/* --- names ---------------------------------------------------------------------------------------------------------------------- */

/* AT has got a new name, or lost it; NODE is -1 where it must be looked for. */
static int name_end(const struct step *step, struct at *at, int ret, int node, const struct at *from)
{
	struct logged l = {.node = node, .dir = -1, .from_dir = -1};
	if (log_is_on && ret >= 0) {
		if (node < 0)
			l.node = node_at(at);
		l.dir = node_of_fd(at->dirfd);
		l.name = strdup(at->name);
		if (from) {
			l.from_dir = node_of_fd(from->dirfd);
			l.from_name = strdup(from->name);
		}
	}
	ret = step_end(step, ret, &l);
	at_close(at);
	return ret;
}

static int name_fail(const struct step *step, struct at *at)
{
	int ret = step_fail(step);
	at_close(at);
	return ret;
}

/* A new file, with a name or without one. */
static int create(int dirfd, const char *path, int flags, mode_t mode, struct at *at)
{
	struct step step;
	step_begin(&step, OP_CREATE);
	if (step.err)
		return name_fail(&step, at);
	int fd = __real_openat64(dirfd, path, flags, mode), ret = 0;
	if (at->dirfd >= 0) {
		ret = name_end(&step, at, fd < 0 ? -1 : 0, -1, NULL);
	} else {
		struct logged l = {.dir = -1, .from_dir = -1};
		if (log_is_on && fd >= 0)
			l.node = node_of_fd(fd);
		ret = step_end(&step, fd < 0 ? -1 : 0, &l);
	}
	if (ret < 0 && fd >= 0) { /* made, and not known to be */
		close(fd);
		errno = EIO;
	}
	return ret < 0 ? -1 : fd;
}

/* What is there already becomes empty. */
static int open_truncated(int dirfd, const char *path, int flags, mode_t mode, struct at *at)
{
	struct step step;
	step_begin(&step, OP_SIZE);
	if (step.err)
		return name_fail(&step, at);
	int fd = __real_openat64(dirfd, path, flags, mode);
	int ret = plain_end(&step, fd, fd < 0 ? -1 : 0, 0, 0);
	at_close(at);
	if (ret < 0 && fd >= 0) {
		close(fd);
		errno = EIO;
	}
	return ret < 0 ? -1 : fd;
}

static int open_any(int dirfd, const char *path, int flags, mode_t mode)
{
	struct at at = {.dirfd = -1};
	bool unnamed = (flags & O_TMPFILE) == O_TMPFILE;
	if (!watched || is_leaving || !(flags & (O_CREAT | O_TRUNC) || unnamed))
		return __real_openat64(dirfd, path, flags, mode);
	if (unnamed) {
		int parent = __real_openat64(dirfd, path, O_PATH | O_CLOEXEC);
		bool ours = is_watched(parent);
		if (parent >= 0)
			close(parent);
		return ours ? create(dirfd, path, flags, mode, &at) : __real_openat64(dirfd, path, flags, mode);
	}
	if (at_open(&at, dirfd, path)) {
		if (!at.exists && flags & O_CREAT)
			return create(dirfd, path, flags, mode, &at);
		if (at.exists && flags & O_TRUNC && !(flags & O_EXCL) && at.st.st_size)
			return open_truncated(dirfd, path, flags, mode, &at);
	}
	at_close(&at);
	return __real_openat64(dirfd, path, flags, mode);
}

static mode_t mode_arg(int flags, va_list ap)
{
	return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(ap, mode_t) : 0;
}

int __wrap_openat64(int dirfd, const char *path, int flags, ...);
int __wrap_openat64(int dirfd, const char *path, int flags, ...)
{
	va_list ap;
	va_start(ap, flags);
	mode_t mode = mode_arg(flags, ap);
	va_end(ap);
	return open_any(dirfd, path, flags, mode);
}

int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
	va_list ap;
	va_start(ap, flags);
	mode_t mode = mode_arg(flags, ap);
	va_end(ap);
	return open_any(AT_FDCWD, path, flags, mode);
}

WRAPPED(int, mkdirat, int dirfd, const char *path, mode_t mode)
{
	struct at at;
	if (!at_open(&at, dirfd, path))
		return __real_mkdirat(dirfd, path, mode);
	struct step step;
	if (at.exists) {
		at_close(&at);
		errno = EEXIST;
		return -1;
	}
	step_begin(&step, OP_MKDIR);
	if (step.err)
		return name_fail(&step, &at);
	return name_end(&step, &at, __real_mkdirat(dirfd, path, mode), -1, NULL);
}

int __wrap_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode)
{
	return __wrap_mkdirat(AT_FDCWD, path, mode);
}

WRAPPED(int, symlinkat, const char *target, int dirfd, const char *path)
{
	struct at at;
	if (!at_open(&at, dirfd, path))
		return __real_symlinkat(target, dirfd, path);
	struct step step;
	step_begin(&step, OP_SYMLINK);
	if (step.err)
		return name_fail(&step, &at);
	return name_end(&step, &at, __real_symlinkat(target, dirfd, path), -1, NULL);
}

WRAPPED(int, linkat, int from_dirfd, const char *from_path, int dirfd, const char *path, int flags)
{
	struct at at, from = {.dirfd = -1};
	if (!at_open(&at, dirfd, path))
		return __real_linkat(from_dirfd, from_path, dirfd, path, flags);
	bool named = !(flags & (AT_SYMLINK_FOLLOW | AT_EMPTY_PATH)) && at_open(&from, from_dirfd, from_path);
	struct step step;
	step_begin(&step, OP_LINK);
	int ret = step.err ? name_fail(&step, &at)
			   : name_end(&step, &at, __real_linkat(from_dirfd, from_path, dirfd, path, flags), -1, named ? &from : NULL);
	at_close(&from);
	return ret;
}

int __real_renameat2(int from_dirfd, const char *from_path, int dirfd, const char *path, unsigned flags);
int __wrap_renameat2(int from_dirfd, const char *from_path, int dirfd, const char *path, unsigned flags);
int __wrap_renameat2(int from_dirfd, const char *from_path, int dirfd, const char *path, unsigned flags)
{
	struct at at, from;
	if (!at_open(&at, dirfd, path))
		return __real_renameat2(from_dirfd, from_path, dirfd, path, flags);
	if (!at_open(&from, from_dirfd, from_path) || !from.exists) {
		at_close(&from);
		at_close(&at);
		return __real_renameat2(from_dirfd, from_path, dirfd, path, flags);
	}
	struct step step;
	step_begin(&step, OP_RENAME);
	int node = log_is_on ? log_node(&from.st, from.dirfd, from.name) : 0;
	int ret = step.err ? name_fail(&step, &at) : name_end(&step, &at, __real_renameat2(from_dirfd, from_path, dirfd, path, flags), node, &from);
	at_close(&from);
	return ret;
}

int __wrap_renameat(int from_dirfd, const char *from_path, int dirfd, const char *path);
int __wrap_renameat(int from_dirfd, const char *from_path, int dirfd, const char *path)
{
	return __wrap_renameat2(from_dirfd, from_path, dirfd, path, 0);
}

WRAPPED(int, unlinkat, int dirfd, const char *path, int flags)
{
	struct at at;
	if (!at_open(&at, dirfd, path))
		return __real_unlinkat(dirfd, path, flags);
	if (!at.exists) {
		at_close(&at);
		errno = ENOENT;
		return -1;
	}
	struct step step;
	step_begin(&step, OP_UNLINK);
	if (step.err)
		return name_fail(&step, &at);
	int node = log_is_on ? log_node(&at.st, at.dirfd, at.name) : 0;
	return name_end(&step, &at, __real_unlinkat(dirfd, path, flags), node, NULL);
}

int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path)
{
	return __wrap_unlinkat(AT_FDCWD, path, 0);
}
