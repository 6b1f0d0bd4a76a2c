/* What has happened on the disk, and what a power cut leaves of it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk_priv.h"

#define SECTOR 512u

/* A file or directory that there is or was. */
struct node {
	dev_t dev;
	ino_t ino;
	mode_t mode;
	int fd;	     /* O_PATH: its number isn't given to another one */
	char *start; /* where its first bytes are; NULL: it was made later */
};

/* A name in a directory. */
struct entry {
	int dir, node;
	char *name;
};

bool log_is_on;
static struct node *nodes;
static int nr_nodes;
static struct entry *start_entries;
static size_t nr_start_entries;
static struct logged *steps;
static size_t nr_steps;

static void die(const char *what)
{
	printf("the disk of the test: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(2);
}

/* Room for one more in an array of NR. */
static void *room(void *array, size_t nr, size_t size)
{
	if (nr & (nr - 1))
		return array;
	array = realloc(array, (nr ? 2 * nr : 1) * size);
	if (!array)
		die("memory");
	return array;
}

static char *join(const char *dir, const char *name)
{
	char *path = NULL;
	if (asprintf(&path, "%s/%s", dir, name) < 0)
		die("memory");
	return path;
}

/* --- copies of trees ------------------------------------------------------------------------------------------------------- */

static void copy_times(const char *path, const struct stat *st)
{
	utimensat(AT_FDCWD, path, (struct timespec[]){st->st_atim, st->st_mtim}, AT_SYMLINK_NOFOLLOW);
}

/* The data of FROM, its holes left holes. */
static void copy_bytes(int from, int to)
{
	static char buf[1 << 20];
	off_t end = lseek(from, 0, SEEK_END), hole;
	for (off_t off = 0; off < end; off = hole) {
		off = lseek(from, off, SEEK_DATA);
		hole = off < 0 ? end : lseek(from, off, SEEK_HOLE);
		while (off >= 0 && off < hole) {
			ssize_t n = pread(from, buf, hole - off < (off_t)sizeof buf ? (size_t)(hole - off) : sizeof buf, off);
			if (n <= 0 || pwrite(to, buf, (size_t)n, off) != n)
				die("copying");
			off += n;
		}
	}
	if (ftruncate(to, end) < 0)
		die("copying");
}

static void copy_file(const char *from, const char *to, const struct stat *st)
{
	int in = real_openat(AT_FDCWD, from, O_RDONLY | O_CLOEXEC, 0);
	int out = real_openat(AT_FDCWD, to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (in < 0 || out < 0)
		die(from);
	copy_bytes(in, out);
	fchmod(out, st->st_mode & 07777);
	close(in);
	close(out);
	copy_times(to, st);
}

/* Files with several names, and the first one in the copy. */
struct links {
	struct {
		dev_t dev;
		ino_t ino;
		char *path;
	} *made;
	size_t nr;
};

/* Whether it was a further name of a file. */
static bool copy_link(struct links *links, const char *to, const struct stat *st)
{
	if (S_ISDIR(st->st_mode) || st->st_nlink < 2)
		return false;
	for (size_t i = 0; i < links->nr; i++)
		if (links->made[i].dev == st->st_dev && links->made[i].ino == st->st_ino) {
			if (linkat(AT_FDCWD, links->made[i].path, AT_FDCWD, to, 0) < 0)
				die(to);
			return true;
		}
	links->made = room(links->made, links->nr, sizeof *links->made);
	links->made[links->nr].dev = st->st_dev;
	links->made[links->nr].ino = st->st_ino;
	links->made[links->nr++].path = strdup(to);
	return false;
}

static void copy_any(struct links *links, const char *from, const char *to);

static void copy_dir(struct links *links, const char *from, const char *to)
{
	DIR *dir = opendir(from);
	if (!dir || mkdirat(AT_FDCWD, to, 0700) < 0)
		die(to);
	for (struct dirent *e; (e = readdir(dir));) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		char *a = join(from, e->d_name), *b = join(to, e->d_name);
		copy_any(links, a, b);
		free(a);
		free(b);
	}
	closedir(dir);
}

static void copy_any(struct links *links, const char *from, const char *to)
{
	struct stat st;
	char target[PATH_MAX] = "";
	if (lstat(from, &st) < 0)
		die(from);
	if (copy_link(links, to, &st))
		return;
	if (S_ISDIR(st.st_mode)) {
		copy_dir(links, from, to);
		chmod(to, st.st_mode & 07777);
		copy_times(to, &st);
	} else if (S_ISLNK(st.st_mode)) {
		if (readlink(from, target, sizeof target - 1) < 0 || symlinkat(target, AT_FDCWD, to) < 0)
			die(to);
	} else if (S_ISREG(st.st_mode)) {
		copy_file(from, to, &st);
	}
}

void disk_copy_tree(const char *from, const char *to)
{
	struct links links = {0};
	copy_any(&links, from, to);
	for (size_t i = 0; i < links.nr; i++)
		free(links.made[i].path);
	free(links.made);
}

/* --- the log ------------------------------------------------------------------------------------------------------------------ */

int log_node(const struct stat *st, int dirfd, const char *name)
{
	for (int i = nr_nodes; i-- > 0;)
		if (nodes[i].dev == st->st_dev && nodes[i].ino == st->st_ino)
			return i;
	char self[40];
	snprintf(self, sizeof self, "/proc/self/fd/%d", dirfd);
	int fd = *name ? real_openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0) : real_openat(AT_FDCWD, self, O_PATH | O_CLOEXEC, 0);
	if (fd < 0)
		die("a descriptor");
	nodes = room(nodes, (size_t)nr_nodes, sizeof *nodes);
	nodes[nr_nodes] = (struct node){st->st_dev, st->st_ino, st->st_mode, fd, NULL};
	return nr_nodes++;
}

static int learn(const char *path, const char *copy);

static void learn_dir(int node, const char *path, const char *copy)
{
	DIR *dir = opendir(path);
	if (!dir)
		die(path);
	for (struct dirent *e; (e = readdir(dir));) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		char *a = join(path, e->d_name), *b = join(copy, e->d_name);
		int child = learn(a, b);
		free(a);
		free(b);
		start_entries = room(start_entries, nr_start_entries, sizeof *start_entries);
		start_entries[nr_start_entries++] = (struct entry){node, child, strdup(e->d_name)};
	}
	closedir(dir);
}

/* What is at PATH, and below, when the log begins. COPY has it as it is now. */
static int learn(const char *path, const char *copy)
{
	struct stat st;
	if (lstat(path, &st) < 0)
		die(path);
	int before = nr_nodes, node = log_node(&st, AT_FDCWD, path);
	if (node < before)
		return node;
	nodes[node].start = strdup(copy);
	if (S_ISDIR(st.st_mode))
		learn_dir(node, path, copy);
	return node;
}

void log_start(const char *dir)
{
	char *copy = NULL;
	struct rlimit limit;
	if (asprintf(&copy, "%s.start", dir) < 0)
		die("memory");
	/* A descriptor for each file that ever is. */
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && (limit.rlim_cur = limit.rlim_max))
		setrlimit(RLIMIT_NOFILE, &limit);
	if (access(copy, F_OK) < 0)
		disk_copy_tree(dir, copy);
	learn(dir, copy);
	free(copy);
	log_is_on = true;
}

static bool is_ours(int fd)
{
	for (int i = 0; i < nr_nodes; i++)
		if (nodes[i].fd == fd)
			return true;
	return false;
}

void log_close_others(void)
{
	DIR *dir = opendir("/proc/self/fd");
	if (!dir)
		die("/proc/self/fd");
	for (struct dirent *e; (e = readdir(dir));) {
		int fd = atoi(e->d_name);
		if (fd > STDERR_FILENO && fd != dirfd(dir) && !is_ours(fd))
			close(fd);
	}
	closedir(dir);
}

void log_add(const struct logged *step)
{
	steps = room(steps, nr_steps, sizeof *steps);
	steps[nr_steps++] = *step;
}

uint64_t disk_nr_recorded(void)
{
	return nr_steps;
}

const char *disk_recorded_name(uint64_t nr)
{
	return nr < nr_steps ? stack_step_name(steps[nr].stack, steps[nr].op) : NULL;
}

/* --- what is stable ------------------------------------------------------------------------------------------------------------- */

enum fate {
	FATE_STABLE,
	FATE_LIMBO, /* the sync that should have made it stable failed: nobody knows, and no later one tells */
	FATE_PENDING
};

static bool is_name(enum disk_op op)
{
	return op >= OP_CREATE;
}

static bool touches(const struct logged *s, int dir, const char *name)
{
	return name && ((s->name && s->dir == dir && strcmp(s->name, name) == 0) ||
			(s->from_name && s->from_dir == dir && strcmp(s->from_name, name) == 0));
}

/* A stable name needs what was done to it, and to the one that it had, before. */
static void settle_earlier(enum fate *fates, size_t cut)
{
	for (size_t i = cut; i-- > 0;) {
		if (!is_name(steps[i].op) || fates[i] != FATE_STABLE)
			continue;
		for (size_t k = 0; k < i; k++)
			if (is_name(steps[k].op) && (touches(&steps[k], steps[i].dir, steps[i].name) || touches(&steps[k], steps[i].from_dir, steps[i].from_name)))
				fates[k] = FATE_STABLE;
		/* A directory that has gone was empty. */
		for (size_t k = 0; steps[i].op == OP_UNLINK && S_ISDIR(nodes[steps[i].node].mode) && k < i; k++)
			if (is_name(steps[k].op) && (steps[k].dir == steps[i].node || (steps[k].from_name && steps[k].from_dir == steps[i].node)))
				fates[k] = FATE_STABLE;
	}
}

static enum fate *find_fates(size_t cut)
{
	enum fate *fates = calloc(cut + 1, sizeof *fates);
	/* Of each node, what its next sync in the order of time does: seen from the end. */
	enum fate *next = malloc((size_t)(nr_nodes + 1) * sizeof *next);
	if (!fates || !next)
		die("memory");
	for (int i = 0; i < nr_nodes; i++)
		next[i] = FATE_PENDING;
	for (size_t i = cut; i-- > 0;) {
		const struct logged *s = &steps[i];
		fates[i] = FATE_PENDING;
		if (s->op == OP_SYNC) {
			/* Of names a later one does tell: they stay in the filesystem's journal, and a sync that is said to be done has written that. */
			if (!s->failed)
				next[s->node] = FATE_STABLE;
			else if (!S_ISDIR(nodes[s->node].mode))
				next[s->node] = FATE_LIMBO;
		} else if (!is_name(s->op)) {
			fates[i] = next[s->node];
		} else {
			bool stable = (s->dir >= 0 && next[s->dir] == FATE_STABLE) || (s->from_dir >= 0 && s->op == OP_RENAME && next[s->from_dir] == FATE_STABLE);
			fates[i] = stable ? FATE_STABLE : FATE_PENDING;
		}
	}
	free(next);
	settle_earlier(fates, cut);
	return fates;
}

/* --- dice --------------------------------------------------------------------------------------------------------------------- */

/* How a cut treats what isn't stable. */
struct dice {
	uint64_t state;
	unsigned names, data; /* of 4, that it is there */
	unsigned torn;	      /* of 4, that only some sectors of it are */
	bool in_order;
	bool last_name; /* of the names that aren't stable just the last one is there: what it needs may not be */
};

static unsigned roll(struct dice *dice, unsigned below)
{
	dice->state ^= dice->state << 13;
	dice->state ^= dice->state >> 7;
	dice->state ^= dice->state << 17;
	return (unsigned)(dice->state >> 20) % below;
}

/* All and nothing are as probable as something in between: names without bytes, bytes without names. */
static struct dice make_dice(unsigned seed)
{
	struct dice dice = {.state = seed * 0x9e3779b97f4a7c15ull + 0x1234567};
	for (int i = 0; i < 4; i++)
		roll(&dice, 2);
	dice.names = roll(&dice, 5);
	dice.data = roll(&dice, 5);
	dice.torn = roll(&dice, 4);
	dice.in_order = roll(&dice, 2);
	dice.last_name = roll(&dice, 4) == 0;
	return dice;
}

/* With what was done to the name that it had. */
static size_t pick_last_name(const enum fate *fates, size_t cut, size_t *ret)
{
	size_t nr = 0, last = cut;
	while (last-- > 0 && !(fates[last] == FATE_PENDING && is_name(steps[last].op)))
		;
	for (size_t i = 0; last < cut && i < last; i++)
		if (fates[i] == FATE_PENDING && is_name(steps[i].op) && touches(&steps[i], steps[last].from_dir, steps[last].from_name))
			ret[nr++] = i;
	if (last < cut)
		ret[nr++] = last;
	return nr;
}

/* The steps before CUT that aren't stable and that the dice want, in the order that they want. */
static size_t *pick_pending(struct dice *dice, const enum fate *fates, size_t cut, bool names, size_t *ret_nr)
{
	size_t *picked = malloc((cut + 1) * sizeof *picked), nr = 0;
	if (!picked)
		die("memory");
	for (size_t i = 0; i < cut; i++)
		if (fates[i] == FATE_PENDING && steps[i].op != OP_SYNC && is_name(steps[i].op) == names && roll(dice, 4) < (names ? dice->names : dice->data))
			picked[nr++] = i;
	if (names && dice->last_name)
		nr = pick_last_name(fates, cut, picked);
	for (size_t i = nr; !dice->in_order && !(names && dice->last_name) && i > 1; i--) {
		size_t k = roll(dice, (unsigned)i), swap = picked[i - 1];
		picked[i - 1] = picked[k];
		picked[k] = swap;
	}
	*ret_nr = nr;
	return picked;
}

/* --- names after a cut ---------------------------------------------------------------------------------------------------------- */

struct names {
	struct entry *entries; /* their names are the log's */
	size_t nr;
};

static struct entry *find_entry(const struct names *names, int dir, const char *name)
{
	for (size_t i = 0; i < names->nr; i++)
		if (names->entries[i].dir == dir && strcmp(names->entries[i].name, name) == 0)
			return &names->entries[i];
	return NULL;
}

static bool has_any(const struct names *names, int node, bool as_dir)
{
	for (size_t i = 0; i < names->nr; i++)
		if ((as_dir ? names->entries[i].dir : names->entries[i].node) == node)
			return true;
	return false;
}

static void add_entry(struct names *names, int dir, char *name, int node)
{
	names->entries = room(names->entries, names->nr, sizeof *names->entries);
	names->entries[names->nr++] = (struct entry){dir, node, name};
}

static void remove_entry(struct names *names, struct entry *entry)
{
	*entry = names->entries[--names->nr];
}

static void apply_rename(struct names *names, const struct logged *s)
{
	struct entry *from = find_entry(names, s->from_dir, s->from_name), *to = find_entry(names, s->dir, s->name);
	if (!from || from->node != s->node || (to && S_ISDIR(nodes[to->node].mode) && has_any(names, to->node, true)))
		return;
	if (to == from || (to && to->node == s->node)) /* rename(2) of two names of one file does nothing */
		return;
	if (to)
		to->node = s->node;
	else
		add_entry(names, s->dir, s->name, s->node);
	remove_entry(names, find_entry(names, s->from_dir, s->from_name));
}

/* Where it still has a meaning. */
static void apply_name(struct names *names, const struct logged *s)
{
	struct entry *at = s->name ? find_entry(names, s->dir, s->name) : NULL;
	switch (s->op) {
	case OP_CREATE:
	case OP_MKDIR:
	case OP_SYMLINK:
		if (s->name && !at)
			add_entry(names, s->dir, s->name, s->node);
		break;
	case OP_LINK:
		if (!at && (!s->from_name || has_any(names, s->node, false)))
			add_entry(names, s->dir, s->name, s->node);
		break;
	case OP_UNLINK:
		if (at && at->node == s->node && !(S_ISDIR(nodes[s->node].mode) && has_any(names, s->node, true)))
			remove_entry(names, at);
		break;
	case OP_RENAME: apply_rename(names, s); break;
	case OP_WRITE:
	case OP_SIZE:
	case OP_SPACE:
	case OP_HOLE:
	case OP_CLONE:
	case OP_SYNC:
	case NR_DISK_OPS: break;
	}
}

static struct names find_names(struct dice *dice, const enum fate *fates, size_t cut)
{
	struct names names = {0};
	size_t nr = 0, *pending = pick_pending(dice, fates, cut, true, &nr);
	for (size_t i = 0; i < nr_start_entries; i++)
		add_entry(&names, start_entries[i].dir, start_entries[i].name, start_entries[i].node);
	for (size_t i = 0; i < cut; i++)
		if (is_name(steps[i].op) && fates[i] == FATE_STABLE)
			apply_name(&names, &steps[i]);
	for (size_t i = 0; i < nr; i++)
		apply_name(&names, &steps[pending[i]]);
	free(pending);
	return names;
}

/* --- bytes after a cut ------------------------------------------------------------------------------------------------------------ */

static void put(int fd, const void *data, uint64_t len, uint64_t off)
{
	if (pwrite(fd, data, (size_t)len, (off_t)off) != (ssize_t)len)
		die("making a file again");
}

static void grow(int fd, uint64_t size)
{
	if (lseek(fd, 0, SEEK_END) < (off_t)size && ftruncate(fd, (off_t)size) < 0)
		die("making a file again");
}

static void put_zeros(int fd, uint64_t off, uint64_t len)
{
	static const char zeros[SECTOR];
	uint64_t end = (uint64_t)lseek(fd, 0, SEEK_END);
	for (uint64_t n; len && off < end; off += n, len -= n) {
		n = len < SECTOR ? len : SECTOR;
		if (n > end - off)
			n = end - off;
		put(fd, zeros, n, off);
	}
}

/* A file may have become longer without the bytes. */
static void apply_torn(struct dice *dice, int fd, const struct logged *s)
{
	if (s->data && roll(dice, 2))
		grow(fd, s->off + s->len);
	for (uint64_t at = 0, n; at < s->len; at += n) {
		n = SECTOR - (s->off + at) % SECTOR;
		if (n > s->len - at)
			n = s->len - at;
		if (roll(dice, 2))
			continue;
		if (s->data)
			put(fd, (char *)s->data + at, n, s->off + at);
		else
			put_zeros(fd, s->off + at, n);
	}
}

static void apply_bytes(struct dice *dice, int fd, const struct logged *s, bool torn)
{
	switch (s->op) {
	case OP_WRITE:
	case OP_CLONE:
		if (torn)
			apply_torn(dice, fd, s);
		else
			put(fd, s->data, s->len, s->off);
		break;
	case OP_HOLE:
		if (torn && s->len <= 1 << 20)
			apply_torn(dice, fd, s);
		else if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)s->off, (off_t)s->len) < 0)
			put_zeros(fd, s->off, s->len);
		break;
	case OP_SIZE:
		if (ftruncate(fd, (off_t)s->off) < 0)
			die("making a file again");
		break;
	case OP_SPACE:
		if (s->len)
			grow(fd, s->off + s->len);
		break;
	case OP_SYNC:
	case OP_CREATE:
	case OP_MKDIR:
	case OP_SYMLINK:
	case OP_LINK:
	case OP_RENAME:
	case OP_UNLINK:
	case NR_DISK_OPS: break;
	}
}

/* What a cut is made of. */
struct rebuilding {
	struct dice dice;
	const enum fate *fates;
	size_t cut;
	size_t *pending, nr_pending; /* bytes */
	struct names names;
	struct links links;
	FILE *numbers; /* which inode is which: a line each, new and old */
};

static bool changed(const struct rebuilding *r, int node)
{
	for (size_t i = 0; i < r->cut; i++)
		if (steps[i].node == node && !is_name(steps[i].op) && steps[i].op != OP_SYNC)
			return true;
	return false;
}

static void make_bytes(struct rebuilding *r, int node, int fd)
{
	for (size_t i = 0; i < r->cut; i++) {
		const struct logged *s = &steps[i];
		if (s->node != node || is_name(s->op) || s->op == OP_SYNC || r->fates[i] == FATE_PENDING)
			continue;
		if (r->fates[i] == FATE_STABLE)
			apply_bytes(&r->dice, fd, s, false);
		else if (roll(&r->dice, 4) < r->dice.data)
			apply_bytes(&r->dice, fd, s, roll(&r->dice, 4) < r->dice.torn);
	}
	for (size_t i = 0; i < r->nr_pending; i++) {
		const struct logged *s = &steps[r->pending[i]];
		if (s->node == node)
			apply_bytes(&r->dice, fd, s, roll(&r->dice, 4) < r->dice.torn);
	}
}

static void make_file(struct rebuilding *r, int node, const char *to)
{
	struct stat st;
	if (nodes[node].start && lstat(nodes[node].start, &st) == 0)
		copy_file(nodes[node].start, to, &st);
	if (!changed(r, node) && nodes[node].start)
		return;
	int fd = openat(AT_FDCWD, to, O_RDWR | O_CREAT | O_CLOEXEC, nodes[node].mode & 07777);
	if (fd < 0)
		die(to);
	make_bytes(r, node, fd);
	close(fd);
}

static const char *symlink_target(int node)
{
	static char target[PATH_MAX];
	ssize_t len = readlinkat(nodes[node].fd, "", target, sizeof target - 1);
	if (len < 0)
		die("a symbolic link");
	target[len] = '\0';
	return target;
}

static void make_any(struct rebuilding *r, int node, const char *to);

static void make_dir(struct rebuilding *r, int node, const char *to)
{
	if (mkdirat(AT_FDCWD, to, 0700) < 0)
		die(to);
	for (size_t i = 0; i < r->names.nr; i++) {
		if (r->names.entries[i].dir != node)
			continue;
		char *path = join(to, r->names.entries[i].name);
		make_any(r, r->names.entries[i].node, path);
		free(path);
	}
	chmod(to, nodes[node].mode & 07777);
}

static void make_any(struct rebuilding *r, int node, const char *to)
{
	struct stat st = {.st_dev = nodes[node].dev, .st_ino = nodes[node].ino, .st_mode = nodes[node].mode, .st_nlink = 2};
	if (copy_link(&r->links, to, &st))
		return;
	if (S_ISDIR(st.st_mode))
		make_dir(r, node, to);
	else if (!S_ISLNK(st.st_mode)) {
		make_file(r, node, to);
		if (r->numbers && lstat(to, &st) == 0)
			fprintf(r->numbers, "%llu %llu\n", (unsigned long long)st.st_ino, (unsigned long long)nodes[node].ino);
	} else if (symlinkat(symlink_target(node), AT_FDCWD, to) < 0)
		die(to);
}

void disk_rebuild(const char *to, uint64_t cut, unsigned seed)
{
	size_t end = cut < nr_steps ? (size_t)cut : nr_steps;
	struct rebuilding r = {.dice = make_dice(seed), .cut = end};
	enum fate *fates = find_fates(end);
	r.fates = fates;
	r.names = find_names(&r.dice, fates, end);
	r.pending = pick_pending(&r.dice, fates, end, false, &r.nr_pending);
	char *numbers = NULL;
	if (asprintf(&numbers, "%s.numbers", to) < 0)
		die("memory");
	r.numbers = fopen(numbers, "w");
	free(numbers);
	make_any(&r, 0, to);
	if (!r.numbers || fclose(r.numbers) != 0)
		die("the files' numbers");
	for (size_t i = 0; i < r.links.nr; i++)
		free(r.links.made[i].path);
	free(r.links.made);
	free(r.names.entries);
	free(r.pending);
	free(fates);
}
