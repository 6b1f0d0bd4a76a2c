/* Random snapshots, deletions, previews, clones, writes, remounts and kills through the mount, against a plain model in memory
 * of what every disk of every VM and snapshot holds.
 *
 * snapmodel VMSNAPFS SOURCE MOUNTPOINT SEED STEPS
 *
 * It mounts, unmounts and kills the daemon itself. An operation that the daemon dies in has happened wholly or not at all: the
 * model has a world for each, and what the next mount shows must be one of them. Where the interface leaves a choice (a state that
 * was written to but equals its snapshot may be kept or not), there are several worlds too. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define NR_SLOTS      3
#define NR_VMS	      4
#define SNAPSHOTS_MAX 14
#define DISK_MIN      (256u << 10)
#define DISK_MAX      (1u << 20)
#define NR_RECENT     6
#define NR_HELD	      8
#define NR_HISTORY    60
#define NR_WORLDS     4
#define WAIT_SECONDS  60
#define FUSE_MAGIC    0x65735546
#define POOL	      "p"

/* --- the model --------------------------------------------------------------------------------------------------------- */

/* What a disk holds. Never changed once others refer to it. */
struct blob {
	unsigned refs;
	uint32_t size;
	unsigned char bytes[];
};

/* Of a VM or a snapshot: its disks (NULL: there is none) and, of its configuration, the memory's size. */
struct state {
	struct blob *disks[NR_SLOTS];
	unsigned memory;
};

struct snapshot {
	unsigned id, parent; /* 0: none */
	char name[80];	     /* "": made by vmsnapfs, not yet looked up */
	char uuid[40];	     /* "": not yet looked up */
	unsigned left_out;   /* bits of the slots that went on */
	struct state state;
};

struct vm {
	char name[32]; /* "": none */
	struct state now;
	/* What the disks held since they were last synced; the sectors of a killed daemon's disk are any of these. */
	struct blob *recent[NR_SLOTS][NR_RECENT];
	unsigned nr_recent[NR_SLOTS];
	struct snapshot snapshots[SNAPSHOTS_MAX + 2];
	unsigned nr_snapshots, current; /* current: id */
	bool touched; /* the state now need not be that of the current snapshot */
	bool preview;
	struct state saved;
	unsigned saved_current;
	bool saved_touched;
};

struct world {
	struct vm vms[NR_VMS];
};

static struct world world;
static const char *const targets[NR_SLOTS] = {"vda", "vdb", "vdc"};
static unsigned nr_named, nr_ids;

/* --- the run ------------------------------------------------------------------------------------------------------------ */

static const char *vmsnapfs, *source, *mnt;
static char pool_dir[4096]; /* SOURCE.pool */
static unsigned long seed;
static pid_t daemon_pid;
static char history[NR_HISTORY][400];
static unsigned long step;
static bool kill_next;	  /* the daemon dies in the next operation */
static bool was_cancelled; /* since the mount: then layers may be left unmerged */
static struct held {
	int fd;
	struct blob *blob;
	char path[400];
	unsigned long since; /* step */
} held[NR_HELD]; /* views that were opened, of snapshots that may be gone */
static int head_fds[NR_VMS][NR_SLOTS];
static unsigned long counts[16];
static const char *const count_names[] = {"writes",  "snapshots", "deletions", "renames", "restores", "previews", "commits",
                                          "undos",   "clones",	  "removals",  "remounts", "kills",   "kills in an operation",
                                          "refusals", "flattens", NULL};
enum count { WRITES, SNAPSHOTS, DELETIONS, RENAMES, RESTORES, PREVIEWS, COMMITS, UNDOS, CLONES, REMOVALS, REMOUNTS, KILLS, KILLS_IN, REFUSALS, FLATTENS };

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void fail(const char *format, ...)
{
	va_list args;
	unsigned long from = step > NR_HISTORY ? step - NR_HISTORY + 1 : 1;

	for (unsigned long s = from; s <= step; s++)
		if (*history[s % NR_HISTORY])
			printf("%s\n", history[s % NR_HISTORY]);
	printf("seed %lu, step %lu: ", seed, step);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	_exit(1); /* the daemon and the mount stay, for the test to look at and clear away */
}

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *format, ...)
{
	va_list args;
	char *line = history[step % NR_HISTORY];
	size_t len = strlen(line);

	if (!len)
		len = (size_t)snprintf(line, sizeof history[0], "%lu:", step);
	if (len + 2 >= sizeof history[0])
		return;
	line[len++] = ' ';
	va_start(args, format);
	vsnprintf(line + len, sizeof history[0] - len, format, args);
	va_end(args);
}

static uint32_t pick(uint32_t below)
{
	return below ? (uint32_t)random() % below : 0;
}

static bool chance(unsigned percent)
{
	return pick(100) < percent;
}

static char *text(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* One of a few buffers in turn. */
static char *text(const char *format, ...)
{
	static char buffers[64][4096];
	static unsigned next;
	char *buffer = buffers[next++ % 64];
	va_list args;

	va_start(args, format);
	vsnprintf(buffer, sizeof buffers[0], format, args);
	va_end(args);
	return buffer;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void moment(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

/* --- blobs and worlds ---------------------------------------------------------------------------------------------------- */

static struct blob *blob_new(uint32_t size)
{
	struct blob *blob = calloc(1, sizeof *blob + size);

	if (!blob)
		fail("memory is out");
	blob->refs = 1;
	blob->size = size;
	return blob;
}

static struct blob *blob_ref(struct blob *blob)
{
	if (blob)
		blob->refs++;
	return blob;
}

static void blob_put(struct blob *blob)
{
	if (blob && !--blob->refs)
		free(blob);
}

static void blob_set(struct blob **place, struct blob *blob)
{
	blob_ref(blob);
	blob_put(*place);
	*place = blob;
}

static bool blob_equal(const struct blob *a, const struct blob *b)
{
	return a == b || (a && b && a->size == b->size && !memcmp(a->bytes, b->bytes, a->size));
}

static void state_set(struct state *to, const struct state *from)
{
	for (unsigned slot = 0; slot < NR_SLOTS; slot++)
		blob_set(&to->disks[slot], from->disks[slot]);
	to->memory = from->memory;
}

static void state_done(struct state *state)
{
	state_set(state, &(struct state){0});
}

static void recent_clear(struct vm *vm, unsigned slot)
{
	while (vm->nr_recent[slot])
		blob_put(vm->recent[slot][--vm->nr_recent[slot]]);
}

static void vm_ref_all(struct vm *vm)
{
	for (unsigned slot = 0; slot < NR_SLOTS; slot++) {
		blob_ref(vm->now.disks[slot]);
		blob_ref(vm->saved.disks[slot]);
		for (unsigned i = 0; i < vm->nr_recent[slot]; i++)
			blob_ref(vm->recent[slot][i]);
		for (unsigned i = 0; i < vm->nr_snapshots; i++)
			blob_ref(vm->snapshots[i].state.disks[slot]);
	}
}

static void vm_clear(struct vm *vm)
{
	for (unsigned slot = 0; slot < NR_SLOTS; slot++)
		recent_clear(vm, slot);
	for (unsigned i = 0; i < vm->nr_snapshots; i++)
		state_done(&vm->snapshots[i].state);
	state_done(&vm->now);
	state_done(&vm->saved);
	memset(vm, 0, sizeof *vm);
}

static void world_copy(struct world *to, const struct world *from)
{
	*to = *from;
	for (unsigned v = 0; v < NR_VMS; v++)
		vm_ref_all(&to->vms[v]);
}

static void world_clear(struct world *w)
{
	for (unsigned v = 0; v < NR_VMS; v++)
		vm_clear(&w->vms[v]);
}

static struct snapshot *find(struct vm *vm, unsigned id)
{
	for (unsigned i = 0; i < vm->nr_snapshots; i++)
		if (vm->snapshots[i].id == id)
			return &vm->snapshots[i];
	return NULL;
}

static unsigned nr_children(const struct vm *vm, unsigned id)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < vm->nr_snapshots; i++)
		nr += vm->snapshots[i].parent == id;
	return nr;
}

/* Whether the snapshot is ID, or descends from it. */
static bool is_below(struct vm *vm, const struct snapshot *snapshot, unsigned id)
{
	for (; snapshot; snapshot = find(vm, snapshot->parent))
		if (snapshot->id == id)
			return true;
	return false;
}

/* --- the mount ------------------------------------------------------------------------------------------------------------- */

static bool is_alive(void)
{
	struct statfs fs;

	return statfs(mnt, &fs) == 0 && fs.f_type == FUSE_MAGIC;
}

static void start(void)
{
	double end = now() + WAIT_SECONDS;

	daemon_pid = fork();
	if (daemon_pid == 0) {
		int log = open(text("%s.log", mnt), O_WRONLY | O_CREAT | O_APPEND, 0600);

		dup2(log, 1);
		dup2(log, 2);
		execl(vmsnapfs, vmsnapfs, "-f", "-o", text("pool=%s:%s", POOL, pool_dir), source, mnt, (char *)NULL);
		_exit(127);
	}
	while (!is_alive()) {
		if (waitpid(daemon_pid, NULL, WNOHANG) == daemon_pid)
			fail("the daemon ended instead of mounting");
		if (now() > end)
			fail("the mount isn't there after %d s", WAIT_SECONDS);
		moment();
	}
	was_cancelled = false;
}

static int run(char *const argv[])
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		int null = open("/dev/null", O_RDWR);

		dup2(null, 1);
		dup2(null, 2);
		execvp(argv[0], argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		fail("%s can't be run", argv[0]);
	return WEXITSTATUS(status);
}

static void close_files(void)
{
	for (unsigned i = 0; i < NR_HELD; i++) {
		if (held[i].fd >= 0)
			close(held[i].fd);
		blob_set(&held[i].blob, NULL);
		held[i].fd = -1;
	}
	for (unsigned v = 0; v < NR_VMS; v++)
		for (unsigned slot = 0; slot < NR_SLOTS; slot++) {
			if (head_fds[v][slot] >= 0)
				close(head_fds[v][slot]);
			head_fds[v][slot] = -1;
		}
}

static void stop(void)
{
	double end = now() + WAIT_SECONDS;
	int status;

	close_files();
	while (umount2(mnt, 0) < 0 && run((char *[]){"fusermount3", "-u", (char *)mnt, NULL})) {
		if (now() > end)
			fail("the mount can't be unmounted");
		moment();
	}
	while (waitpid(daemon_pid, &status, WNOHANG) != daemon_pid) {
		if (now() > end)
			fail("the daemon is still there %d s after the unmount", WAIT_SECONDS);
		moment();
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail("the daemon ended with status %x", status);
}

static void kill_daemon(void)
{
	kill(daemon_pid, SIGKILL);
	waitpid(daemon_pid, NULL, 0);
	close_files();
}

/* --- reality against a world -------------------------------------------------------------------------------------------------- */

static char mismatch[1000];

static bool differs(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Says why, and is false: there is no match. */
static bool differs(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(mismatch, sizeof mismatch, format, args);
	va_end(args);
	return false;
}

static unsigned char seen[DISK_MAX + 1];

/* -1: mismatch says why. */
static int load(int fd, const char *path)
{
	size_t len = 0;

	for (ssize_t n = 1; n > 0 && len < sizeof seen; len += (size_t)n) {
		n = pread(fd, seen + len, sizeof seen - len, (off_t)len);
		if (n < 0) {
			differs("%s: %s", path, strerror(errno));
			return -1;
		}
	}
	return (int)len;
}

static int load_path(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), len;

	if (fd < 0) {
		differs("%s: %s", path, strerror(errno));
		return -1;
	}
	len = load(fd, path);
	close(fd);
	return len;
}

static bool bytes_match(const char *path, int len, const struct blob *want)
{
	if (len < 0)
		return false;
	if ((uint32_t)len != want->size)
		return differs("%s has %d bytes, not %u", path, len, want->size);
	for (uint32_t i = 0; memcmp(seen, want->bytes, want->size) && i < want->size; i++)
		if (seen[i] != want->bytes[i])
			return differs("%s: byte %u is %02x, not %02x", path, i, seen[i], want->bytes[i]);
	return true;
}

static bool is_sector_of(const struct blob *blob, uint32_t off, uint32_t len)
{
	return blob->size >= off + len && !memcmp(blob->bytes + off, seen + off, len);
}

/* What a daemon that was killed left of a disk: each sector is as it was at the last sync, or later. */
static bool sectors_match(const char *path, int len, const struct vm *vm, unsigned slot)
{
	const struct blob *want = vm->now.disks[slot];

	if (len < 0)
		return false;
	if ((uint32_t)len != want->size)
		return differs("%s has %d bytes, not %u", path, len, want->size);
	for (uint32_t off = 0; off < want->size; off += 512) {
		bool right = is_sector_of(want, off, 512);

		for (unsigned i = 0; i < vm->nr_recent[slot] && !right; i++)
			right = is_sector_of(vm->recent[slot][i], off, 512);
		if (!right)
			return differs("%s: sector %u is nothing that it held since the last sync", path, off / 512);
	}
	return true;
}

/* -1: there is none. */
static int memory_of(const char *dir)
{
	static char xml[65536];
	char *place;
	int fd = open(text("%s/domain.xml", dir), O_RDONLY | O_CLOEXEC);
	ssize_t len = fd < 0 ? -1 : read(fd, xml, sizeof xml - 1);

	if (fd >= 0)
		close(fd);
	if (len < 0)
		return -1;
	xml[len] = '\0';
	place = strstr(xml, "<memory ");
	place = place ? strchr(place, '>') : NULL;
	return place ? atoi(place + 1) : -1;
}

/* Counts what isn't in WANT, whose "" stands for anything that begins with before-restore-; that name is put into ret_found. */
static bool lists(const char *dir, const char *const *want, unsigned nr, char *ret_found, size_t found_size)
{
	DIR *d = opendir(dir);
	unsigned nr_right = 0;
	bool right = true;

	if (!d)
		return differs("%s: %s", dir, strerror(errno));
	for (struct dirent *entry; right && (entry = readdir(d));) {
		unsigned i = 0;

		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") || strchr(entry->d_name, '@'))
			continue;
		while (i < nr && strcmp(want[i], entry->d_name))
			i++;
		if (i == nr && ret_found && !*ret_found && !strncmp(entry->d_name, "before-restore-", 15)) {
			snprintf(ret_found, found_size, "%s", entry->d_name);
			i = 0;
		}
		nr_right++;
		if (i == nr)
			right = differs("%s has an entry %s", dir, entry->d_name);
	}
	closedir(d);
	if (right && nr_right != nr)
		return differs("%s has %u entries, not %u", dir, nr_right, nr);
	return right;
}

static bool disks_match(const char *dir, const struct state *state, const struct vm *killed)
{
	const char *names[NR_SLOTS];
	unsigned nr = 0;

	for (unsigned slot = 0; slot < NR_SLOTS; slot++)
		if (state->disks[slot])
			names[nr++] = text("%s.img", targets[slot]);
	if (!lists(text("%s/disks", dir), names, nr, NULL, 0))
		return false;
	for (unsigned slot = 0; slot < NR_SLOTS; slot++) {
		const char *path = text("%s/disks/%s.img", dir, targets[slot]);

		if (!state->disks[slot])
			continue;
		if (killed && killed->nr_recent[slot] ? !sectors_match(path, load_path(path), killed, slot) :
							!bytes_match(path, load_path(path), state->disks[slot]))
			return false;
	}
	if (memory_of(dir) != (int)state->memory)
		return differs("%s/domain.xml has memory %d, not %u", dir, memory_of(dir), state->memory);
	return true;
}

static const char *attribute(const char *path, const char *name)
{
	char *value = text(" ");
	ssize_t len = getxattr(path, text("user.vmsnapfs.%s", name), value, 255);

	value[len > 0 ? len : 0] = '\0';
	return value;
}

static bool snapshot_matches(const char *dir, struct vm *vm, struct snapshot *snapshot)
{
	const struct snapshot *parent = find(vm, snapshot->parent);
	const char *path = text("%s/snapshots/%s", dir, snapshot->name), *uuid, *got;

	got = attribute(path, "parent");
	if (strcmp(got, parent ? parent->name : ""))
		return differs("%s: parent is '%s', not '%s'", path, got, parent ? parent->name : "");
	uuid = attribute(path, "uuid");
	if (!*snapshot->uuid)
		snprintf(snapshot->uuid, sizeof snapshot->uuid, "%s", uuid);
	if (!*uuid || strcmp(snapshot->uuid, uuid))
		return differs("%s: UUID is '%s', not '%s'", path, uuid, snapshot->uuid);
	return disks_match(path, &snapshot->state, NULL);
}

/* What the attribute "children" says, in any order. */
static bool children_match(const char *dir, struct vm *vm, const struct snapshot *snapshot)
{
	char value[4096], *rest = value;
	const char *path = text("%s/snapshots/%s", dir, snapshot->name);
	ssize_t len = getxattr(path, "user.vmsnapfs.children", value, sizeof value - 1);
	unsigned nr = 0;

	value[len > 0 ? len : 0] = '\0';
	for (char *name; (name = strsep(&rest, "\n")) != NULL;) {
		bool is_child = !*name;

		nr += !!*name;
		for (unsigned i = 0; i < vm->nr_snapshots && !is_child; i++)
			is_child = vm->snapshots[i].parent == snapshot->id && !strcmp(vm->snapshots[i].name, name);
		if (!is_child)
			return differs("%s: %s is not its child", path, name);
	}
	if (nr != nr_children(vm, snapshot->id))
		return differs("%s: %u children, not %u", path, nr, nr_children(vm, snapshot->id));
	return true;
}

static bool current_matches(const char *dir, struct vm *vm)
{
	const struct snapshot *current = find(vm, vm->current);
	char target[300] = "";
	ssize_t len = readlink(text("%s/current", dir), target, sizeof target - 1);
	const char *want = current ? text("snapshots/%s", current->name) : "";

	target[len > 0 ? len : 0] = '\0';
	return !strcmp(target, want) || differs("%s: current is '%s', not '%s'", dir, target, want);
}

/* Gives the snapshot that vmsnapfs named itself its name. */
static bool vm_matches(struct vm *vm, bool was_killed)
{
	const char *dir = text("%s/clones/%s", mnt, vm->name), *names[SNAPSHOTS_MAX + 2] = {NULL};
	char own_dir[300], found[256] = "x";
	struct snapshot *unnamed = NULL;

	snprintf(own_dir, sizeof own_dir, "%s", dir);
	for (unsigned i = 0; i < vm->nr_snapshots; i++) {
		names[i] = vm->snapshots[i].name;
		if (!*names[i]) {
			unnamed = &vm->snapshots[i];
			*found = '\0';
		}
	}
	if (!lists(text("%s/snapshots", own_dir), names, vm->nr_snapshots, found, sizeof found))
		return false;
	if (unnamed)
		snprintf(unnamed->name, sizeof unnamed->name, "%.79s", found);
	for (unsigned i = 0; i < vm->nr_snapshots; i++)
		if (!snapshot_matches(own_dir, vm, &vm->snapshots[i]) || !children_match(own_dir, vm, &vm->snapshots[i]))
			return false;
	if (!!*attribute(own_dir, "preview") != vm->preview)
		return differs("%s: preview is '%s'", own_dir, attribute(own_dir, "preview"));
	return current_matches(own_dir, vm) && disks_match(own_dir, &vm->now, was_killed ? vm : NULL);
}

static bool world_matches(struct world *w, bool was_killed)
{
	const char *names[NR_VMS];
	unsigned nr = 0;

	for (unsigned v = 0; v < NR_VMS; v++)
		if (*w->vms[v].name)
			names[nr++] = w->vms[v].name;
	if (!lists(text("%s/clones", mnt), names, nr, NULL, 0))
		return false;
	for (unsigned v = 0; v < NR_VMS; v++)
		if (*w->vms[v].name && !vm_matches(&w->vms[v], was_killed))
			return false;
	return true;
}

/* From now on, disks that were not synced hold what was found. Whether nothing was written to a disk need not be known any more. */
static void adopt_disks(void)
{
	for (unsigned v = 0; v < NR_VMS; v++)
		for (unsigned slot = 0; slot < NR_SLOTS; slot++) {
			struct vm *vm = &world.vms[v];
			struct blob *blob;
			int len;

			vm->touched = vm->saved_touched = true;
			if (!vm->nr_recent[slot])
				continue;
			len = load_path(text("%s/clones/%s/disks/%s.img", mnt, vm->name, targets[slot]));
			if (len < 0)
				fail("%s", mismatch);
			blob = blob_new((uint32_t)len);
			memcpy(blob->bytes, seen, (size_t)len);
			blob_set(&vm->now.disks[slot], blob);
			blob_put(blob);
			recent_clear(vm, slot);
		}
}

/* The one of these worlds that is real becomes the world; the others go. */
static void choose(struct world *worlds, unsigned nr, bool was_killed)
{
	char reasons[NR_WORLDS * 300] = "";
	unsigned chosen = 0;

	while (chosen < nr && !world_matches(&worlds[chosen], was_killed)) {
		size_t len = strlen(reasons);

		snprintf(reasons + len, sizeof reasons - len, "%s%s", len ? "; or " : "", mismatch);
		chosen++;
	}
	if (chosen == nr)
		fail("%s", reasons);
	world_clear(&world);
	world = worlds[chosen];
	for (unsigned i = 0; i < nr; i++)
		if (i != chosen)
			world_clear(&worlds[i]);
	if (was_killed)
		adopt_disks();
}

static void check_world(bool was_killed)
{
	struct world copy;

	world_copy(&copy, &world);
	choose(&copy, 1, was_killed);
}

/* --- the store, while it isn't mounted ------------------------------------------------------------------------------------------ */

struct layer {
	char name[300], path[4096];
	char backing[300];
	unsigned nr_children;
	bool is_named, is_reached;
};

static struct layer layers[4096];
static unsigned nr_layers;
static char descriptions[4 << 20]; /* every vm.xml */
static size_t descriptions_len;
static struct checked {
	ino_t ino;
	off_t size;
	struct timespec changed;
} checked[4096];
static unsigned nr_checked;

static uint64_t big_endian(const unsigned char *bytes, unsigned nr)
{
	uint64_t value = 0;

	while (nr--)
		value = value << 8 | *bytes++;
	return value;
}

static bool is_qcow2(const char *path)
{
	const char *dot = strrchr(path, '.');

	return dot && !strcmp(dot, ".qcow2");
}

/* As it is called in descriptions: "UUID.qcow2" in the store, "POOL/FILE". "": the file PATH of DIR names nothing. */
static void read_backing(const char *dir, const char *path, char *ret, size_t size)
{
	unsigned char header[20];
	char name[1024], *real;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t off;
	size_t len;

	*ret = '\0';
	if (fd < 0 || pread(fd, header, sizeof header, 0) != sizeof header)
		fail("%s can't be read", path);
	off = (off_t)big_endian(header + 8, 8);
	len = off && is_qcow2(path) ? (size_t)big_endian(header + 16, 4) : 0;
	if (len >= sizeof name || pread(fd, name, len, off) != (ssize_t)len)
		fail("%s: its backing name can't be read", path);
	name[len] = '\0';
	close(fd);
	if (!len)
		return;
	real = realpath(*name == '/' ? name : text("%s/%s", dir, name), NULL);
	if (!real)
		fail("%s names %s, which isn't there", path, name);
	len = strlen(pool_dir);
	if (!strncmp(real, pool_dir, len) && real[len] == '/')
		snprintf(ret, size, POOL "%s", real + len);
	else
		snprintf(ret, size, "%s", strrchr(real, '/') + 1);
	free(real);
}

/* Whether qemu-img has looked at just this file before. */
static bool was_checked(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0)
		fail("%s: %s", path, strerror(errno));
	for (unsigned i = 0; i < nr_checked; i++)
		if (checked[i].ino == st.st_ino && checked[i].size == st.st_size &&
		    !memcmp(&checked[i].changed, &st.st_ctim, sizeof st.st_ctim))
			return true;
	checked[nr_checked++ % (sizeof checked / sizeof *checked)] =
		(struct checked){.ino = st.st_ino, .size = st.st_size, .changed = st.st_ctim};
	if (nr_checked > sizeof checked / sizeof *checked)
		nr_checked = sizeof checked / sizeof *checked;
	return false;
}

static int see_file(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	const char *name = path + ftw->base;

	(void)st;
	if (kind == FTW_D)
		return 0;
	if (ftw->level == 2 && !strcmp(name, "vm.xml")) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t len = read(fd, descriptions + descriptions_len, sizeof descriptions - descriptions_len - 1);

		close(fd);
		if (len <= 0)
			fail("%s can't be read", path);
		descriptions_len += (size_t)len;
		descriptions[descriptions_len] = '\0';
	} else if (ftw->level != 3 || !strstr(path, "/snapshots/")) {
		fail("%s is nobody's", path);
	}
	return 0;
}

static int see_snapshot_file(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	char uuid[37];

	(void)st;
	if (kind == FTW_D || ftw->level != 3)
		return 0;
	snprintf(uuid, sizeof uuid, "%s", path + ftw->base);
	if (!strstr(descriptions, uuid))
		fail("%s belongs to no snapshot", path);
	return 0;
}

/* PREFIX: what their names in descriptions begin with. */
static void see_layers(const char *dir, const char *prefix)
{
	DIR *d = opendir(dir);

	if (!d)
		fail("%s: %s", dir, strerror(errno));
	for (struct dirent *entry; (entry = readdir(d));) {
		struct layer *layer = &layers[nr_layers];

		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (nr_layers++ == sizeof layers / sizeof *layers)
			fail("%s has too many layers", dir);
		memset(layer, 0, sizeof *layer);
		snprintf(layer->name, sizeof layer->name, "%s%s", prefix, entry->d_name);
		snprintf(layer->path, sizeof layer->path, "%s/%s", dir, entry->d_name);
		layer->is_named = strstr(descriptions, text("layer='%s'", layer->name));
		read_backing(dir, layer->path, layer->backing, sizeof layer->backing);
	}
	closedir(d);
}

static struct layer *find_layer(const char *name)
{
	for (unsigned i = 0; i < nr_layers; i++)
		if (!strcmp(layers[i].name, name))
			return &layers[i];
	return NULL;
}

static void check_store(void)
{
	bool is_previewing = false;
	char dir[4096], *argv[] = {"qemu-img", "check", "-q", "-f", "qcow2", NULL, NULL};

	snprintf(dir, sizeof dir, "%s/.vmsnapfs/layers", source);
	descriptions_len = 0;
	*descriptions = '\0';
	if (nftw(text("%s/.vmsnapfs/vms", source), see_file, 16, FTW_PHYS) ||
	    nftw(text("%s/.vmsnapfs/vms", source), see_snapshot_file, 16, FTW_PHYS))
		fail("the store's VMs can't be read");
	for (unsigned v = 0; v < NR_VMS; v++)
		is_previewing |= world.vms[v].preview;
	nr_layers = 0;
	see_layers(dir, "");
	see_layers(pool_dir, POOL "/");
	for (unsigned i = 0; i < nr_layers; i++) {
		struct layer *backing = find_layer(layers[i].backing);

		if (*layers[i].backing && !backing)
			fail("layer %s names %s, which isn't there", layers[i].name, layers[i].backing);
		if (backing)
			backing->nr_children++;
		for (struct layer *layer = layers[i].is_named ? &layers[i] : NULL; layer && !layer->is_reached;
		     layer = find_layer(layer->backing))
			layer->is_reached = true;
	}
	for (unsigned i = 0; i < nr_layers; i++) {
		if (!layers[i].is_reached)
			fail("layer %s is nobody's", layers[i].name);
		/* A raw file stays beneath a snapshot that nothing can be written into; nothing is written into the state before a preview. */
		if (!layers[i].is_named && layers[i].nr_children < 2 && !was_cancelled && is_qcow2(layers[i].path) && !is_previewing)
			fail("layer %s should have been merged: no snapshot names it, and it has %u children", layers[i].name,
			     layers[i].nr_children);
		argv[5] = layers[i].path;
		if (is_qcow2(argv[5]) && !was_checked(argv[5]) && run(argv))
			fail("qemu-img check %s: status %d", argv[5], run(argv));
	}
}

/* --- remounting and killing ------------------------------------------------------------------------------------------------------ */

static bool has_jobs(void)
{
	DIR *d = opendir(text("%s/jobs", mnt));
	bool has = false;

	if (!d)
		fail("jobs can't be read: %s", strerror(errno));
	for (struct dirent *entry; (entry = readdir(d));)
		has |= *entry->d_name != '.';
	closedir(d);
	return has;
}

static void wait_for_jobs(void)
{
	for (double end = now() + WAIT_SECONDS; has_jobs(); moment())
		if (now() > end)
			fail("jobs are still there after %d s", WAIT_SECONDS);
}

/* A disk that a killed daemon left marked dirty is repaired when it is opened for writing. */
static void open_all_disks(void)
{
	for (unsigned v = 0; v < NR_VMS; v++)
		for (unsigned slot = 0; slot < NR_SLOTS; slot++) {
			const char *path = text("%s/clones/%s/disks/%s.img", mnt, world.vms[v].name, targets[slot]);
			int fd;

			if (!*world.vms[v].name || !world.vms[v].now.disks[slot])
				continue;
			fd = open(path, O_RDWR | O_CLOEXEC);
			if (fd < 0)
				fail("%s: %s", path, strerror(errno));
			close(fd);
		}
}

static void remount(bool look)
{
	bool was_cancelled_before = was_cancelled;

	counts[REMOUNTS]++;
	if (look) {
		/* What a view of a deleted snapshot held goes when it is closed, which the daemon hears a moment later: the look takes longer. */
		close_files();
		open_all_disks();
		check_world(false);
		wait_for_jobs();
		check_world(false);
	}
	stop();
	was_cancelled = was_cancelled_before;
	if (look)
		check_store();
	for (unsigned v = 0; v < NR_VMS; v++)
		for (unsigned slot = 0; slot < NR_SLOTS; slot++)
			recent_clear(&world.vms[v], slot);
	start();
	check_world(false);
}

/* --- operations --------------------------------------------------------------------------------------------------------------------- */

/* All that is asked of the mount goes through here: returns 0 or a positive errno. */
struct request {
	enum { MKDIR, RMDIR, RENAME, LINK, ACTION } kind;
	char path[600], other[600]; /* other: RENAME's new name, LINK's target, ACTION's line */
};

static struct request request;

static void ask(int kind, const char *path, const char *other)
{
	request.kind = kind;
	snprintf(request.path, sizeof request.path, "%s", path);
	snprintf(request.other, sizeof request.other, "%s", other ? other : "");
	note("%s %s %s", (const char *[]){"mkdir", "rmdir", "mv", "ln", "echo"}[kind], path + strlen(mnt) + 1,
	     kind == RENAME ? request.other + strlen(mnt) + 1 : request.other);
}

static int write_action(const char *path, const char *line)
{
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC), err = 0;
	char with_end[700];
	int len = snprintf(with_end, sizeof with_end, "%s\n", line);

	if (fd < 0)
		return errno;
	if (write(fd, with_end, (size_t)len) != len)
		err = errno;
	if (close(fd) < 0 && !err)
		err = errno;
	return err;
}

/* As ln -sfn does. */
static int replace_link(const char *path, const char *target)
{
	const char *scratch = text("%s-Cu%06u", path, pick(1000000));
	int err = 0;

	if (symlink(target, path) == 0)
		return 0;
	if (errno != EEXIST)
		return errno;
	if (symlink(target, scratch) < 0)
		return errno;
	if (rename(scratch, path) < 0) {
		err = errno;
		unlink(scratch);
	}
	return err;
}

static int do_request(void)
{
	switch (request.kind) {
	case MKDIR: return mkdir(request.path, 0755) < 0 ? errno : 0;
	case RMDIR: return rmdir(request.path) < 0 ? errno : 0;
	case RENAME: return rename(request.path, request.other) < 0 ? errno : 0;
	case LINK: return replace_link(request.path, request.other);
	case ACTION: return write_action(request.path, request.other);
	}
	return ENOSYS;
}

static void *killer_main(void *arg)
{
	nanosleep(arg, NULL);
	kill(daemon_pid, SIGKILL);
	return NULL;
}

static bool says_gone(int err)
{
	return err == ENOTCONN || err == ECONNABORTED || err == ENODEV || err == EIO || err == EINTR;
}

/* Asks while the daemon is killed. Then the world is the one before, or one of these. */
static void attempt_killed(int want, struct world *after, unsigned nr)
{
	struct timespec delay = {.tv_nsec = (long)pick(pick(2) ? 300000 : 6000000)};
	struct world all[NR_WORLDS + 1];
	pthread_t killer;
	int err;

	counts[KILLS_IN]++;
	if (pthread_create(&killer, NULL, killer_main, &delay))
		fail("no thread");
	err = do_request();
	pthread_join(killer, NULL);
	note("-> %s, killed;", err ? strerror(err) : "done");
	kill_daemon();
	if (err != want && !says_gone(err))
		fail("%s, not %s", strerror(err), strerror(want));
	start();
	memcpy(all, after, nr * sizeof *after);
	if (err)
		world_copy(&all[nr++], &world);
	choose(all, nr, true);
}

/* Asks; it must end with this errno, and the world afterwards is one of these (which are given away). */
static void attempt(int want, struct world *after, unsigned nr)
{
	double end = now() + 5;
	int err;

	if (want)
		nr = 0;
	counts[REFUSALS] += !!want;
	if (kill_next) {
		kill_next = false;
		attempt_killed(want, after, nr);
		return;
	}
	/* What a program had open is closed a moment after its close(). */
	while ((err = do_request()) == EBUSY && want != EBUSY && now() < end)
		moment();
	note("-> %s;", err ? strerror(err) : "done");
	if (err != want)
		fail("%s: %s, not %s", request.path, strerror(err), strerror(want));
	if (nr)
		choose(after, nr, false);
}

static struct vm *pick_vm(unsigned *ret)
{
	do
		*ret = pick(NR_VMS);
	while (!*world.vms[*ret].name);
	return &world.vms[*ret];
}

static struct snapshot *pick_snapshot(struct vm *vm)
{
	return vm->nr_snapshots ? &vm->snapshots[pick(vm->nr_snapshots)] : NULL;
}

/* In a line of an action. */
static const char *reference(const struct snapshot *snapshot)
{
	return *snapshot->uuid && chance(20) ? snapshot->uuid : snapshot->name;
}

static const char *path_of(const struct vm *vm, const char *rest)
{
	return text("%s/clones/%s/%s", mnt, vm->name, rest);
}

static void close_heads(unsigned v)
{
	for (unsigned slot = 0; slot < NR_SLOTS; slot++) {
		if (head_fds[v][slot] >= 0)
			close(head_fds[v][slot]);
		head_fds[v][slot] = -1;
	}
}

static int head_fd(unsigned v, unsigned slot)
{
	const char *path = path_of(&world.vms[v], text("disks/%s.img", targets[slot]));

	if (head_fds[v][slot] < 0)
		head_fds[v][slot] = open(path, O_RDWR | O_CLOEXEC);
	if (head_fds[v][slot] < 0)
		fail("%s: %s", path, strerror(errno));
	return head_fds[v][slot];
}

/* --- writing */

static void sync_head(unsigned v, unsigned slot)
{
	if (fsync(head_fd(v, slot)) < 0)
		fail("fsync: %s", strerror(errno));
	recent_clear(&world.vms[v], slot);
}

/* The disk's content, to be changed; what it was is remembered until the next sync. */
static struct blob *changing(unsigned v, unsigned slot, uint32_t size)
{
	struct vm *vm = &world.vms[v];
	struct blob *old = vm->now.disks[slot], *blob;

	if (vm->nr_recent[slot] == NR_RECENT)
		sync_head(v, slot);
	blob = blob_new(size);
	memcpy(blob->bytes, old->bytes, old->size);
	vm->recent[slot][vm->nr_recent[slot]++] = old;
	vm->now.disks[slot] = blob;
	vm->touched = true;
	return blob;
}

static void write_range(unsigned v, unsigned slot)
{
	uint32_t size = world.vms[v].now.disks[slot]->size, len = 1 + pick(chance(70) ? 9000 : 150000), off = pick(size - 512);
	bool is_hole = chance(12);
	int fd = head_fd(v, slot);
	struct blob *blob;

	len = len > size - off ? size - off : len;
	blob = changing(v, slot, size);
	memset(blob->bytes + off, is_hole ? 0 : (int)(step % 255 + 1), len);
	if (is_hole ? fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len) < 0 :
		      pwrite(fd, blob->bytes + off, len, off) != (ssize_t)len)
		fail("a write: %s", strerror(errno));
	note("%s %s/%s %u+%u;", is_hole ? "punch" : "write", world.vms[v].name, targets[slot], off, len);
}

static void grow(unsigned v, unsigned slot)
{
	uint32_t size = world.vms[v].now.disks[slot]->size + 512 * (1 + pick(200));

	if (size > DISK_MAX)
		return;
	if (ftruncate(head_fd(v, slot), size) < 0)
		fail("truncate: %s", strerror(errno));
	changing(v, slot, size);
	sync_head(v, slot);
	note("grow %s/%s to %u;", world.vms[v].name, targets[slot], size);
}

static void do_write(void)
{
	unsigned v, slot = pick(NR_SLOTS);
	struct vm *vm = pick_vm(&v);

	for (unsigned i = 0; i < NR_SLOTS && !vm->now.disks[slot]; i++)
		slot = (slot + 1) % NR_SLOTS;
	if (!vm->now.disks[slot])
		return;
	counts[WRITES]++;
	for (unsigned nr = 1 + pick(4); nr; nr--)
		write_range(v, slot);
	if (chance(5))
		grow(v, slot);
	if (chance(50))
		sync_head(v, slot);
	if (chance(70))
		close_heads(v);
}

static void do_configure(void)
{
	unsigned v, memory = 1024 + pick(100000);
	struct vm *vm = pick_vm(&v);
	int len = load_path(path_of(vm, "domain.xml"));
	char *xml = (char *)seen, *place, *rest, *out = NULL;
	FILE *file;
	int fd;

	if (len < 0)
		fail("%s", mismatch);
	xml[len] = '\0';
	place = strchr(strstr(xml, "<memory "), '>') + 1;
	rest = strchr(place, '<');
	if (asprintf(&out, "%.*s%u%s", (int)(place - xml), xml, memory, rest) < 0)
		fail("memory is out");
	fd = open(path_of(vm, "domain.xml"), O_WRONLY | O_TRUNC | O_CLOEXEC);
	file = fd < 0 ? NULL : fdopen(fd, "w");
	if (!file || fputs(out, file) < 0 || fclose(file))
		fail("%s/domain.xml: %s", vm->name, strerror(errno));
	free(out);
	vm->now.memory = memory;
	vm->touched = true;
	note("memory of %s: %u;", vm->name, memory);
}

/* --- snapshots */

static struct snapshot *add_snapshot(struct vm *vm, const char *name, const struct state *state, unsigned parent)
{
	struct snapshot *snapshot = &vm->snapshots[vm->nr_snapshots++];

	memset(snapshot, 0, sizeof *snapshot);
	snapshot->id = ++nr_ids;
	snapshot->parent = parent;
	snprintf(snapshot->name, sizeof snapshot->name, "%s", name);
	state_set(&snapshot->state, state);
	return snapshot;
}

static void do_snapshot(void)
{
	unsigned v, chosen = 0;
	struct vm *vm = pick_vm(&v);
	const char *name = text("s%u", ++nr_named);
	struct world after;
	struct snapshot *snapshot;
	bool whole = chance(60);
	char line[300];

	if (vm->nr_snapshots >= SNAPSHOTS_MAX)
		return;
	counts[SNAPSHOTS]++;
	snprintf(line, sizeof line, "%s", name);
	for (unsigned slot = 0; slot < NR_SLOTS && !whole; slot++)
		if (vm->now.disks[slot] && chance(50)) {
			chosen |= 1u << slot;
			snprintf(line + strlen(line), sizeof line - strlen(line), " %s", targets[slot]);
		}
	if (!chosen)
		chosen = (1u << NR_SLOTS) - 1;
	if (whole)
		ask(MKDIR, path_of(vm, text("snapshots/%s", name)), NULL);
	else
		ask(ACTION, path_of(vm, "actions/snapshot"), chance(50) ? line : text("%s description=d%u", line, nr_named));
	world_copy(&after, &world);
	vm = &after.vms[v];
	snapshot = add_snapshot(vm, name, &vm->now, vm->current);
	vm->touched = false;
	for (unsigned slot = 0; slot < NR_SLOTS; slot++) {
		if (chosen & 1u << slot || !vm->now.disks[slot]) {
			recent_clear(vm, slot);
			continue;
		}
		snapshot->left_out |= 1u << slot;
		blob_set(&snapshot->state.disks[slot], NULL);
		vm->touched = true;
	}
	vm->current = snapshot->id;
	attempt(world.vms[v].preview ? EBUSY : 0, &after, 1);
	if (world.vms[v].preview)
		world_clear(&after);
}

static void do_rename(void)
{
	unsigned v;
	struct vm *vm = pick_vm(&v);
	struct snapshot *snapshot = pick_snapshot(vm);
	const char *name = text("r%u", ++nr_named);
	struct world after;

	if (!snapshot || vm->preview)
		return;
	counts[RENAMES]++;
	ask(RENAME, path_of(vm, text("snapshots/%s", snapshot->name)), path_of(vm, text("snapshots/%s", name)));
	world_copy(&after, &world);
	snapshot = find(&after.vms[v], snapshot->id);
	snprintf(snapshot->name, sizeof snapshot->name, "%s", name);
	attempt(0, &after, 1);
}

/* Its name goes; its children become its parent's. */
static void drop_snapshot(struct vm *vm, unsigned id)
{
	struct snapshot *snapshot = find(vm, id);
	unsigned parent = snapshot->parent;

	if (vm->current == id) {
		vm->current = parent;
		vm->touched = true;
	}
	for (unsigned i = 0; i < vm->nr_snapshots; i++)
		if (vm->snapshots[i].parent == id)
			vm->snapshots[i].parent = parent;
	state_done(&snapshot->state);
	memmove(snapshot, snapshot + 1, (size_t)(vm->snapshots + --vm->nr_snapshots - snapshot) * sizeof *snapshot);
}

/* It takes its parent's place and name: the parent's state is its own from then on. */
static void fold_into_parent(struct vm *vm, unsigned id)
{
	struct snapshot *snapshot = find(vm, id), *parent = find(vm, snapshot->parent);
	bool was_current = vm->current == parent->id;

	memcpy(snapshot->name, parent->name, sizeof snapshot->name);
	drop_snapshot(vm, parent->id);
	if (was_current)
		vm->current = id;
}

static void drop_below(struct vm *vm, unsigned id)
{
	for (unsigned i = vm->nr_snapshots; i-- > 0;)
		if (vm->snapshots[i].id != id && is_below(vm, &vm->snapshots[i], id)) {
			unsigned below = vm->snapshots[i].id;

			/* From the leaves up, so that nothing gets another parent on the way. */
			if (nr_children(vm, below))
				continue;
			drop_snapshot(vm, below);
			i = vm->nr_snapshots;
		}
	drop_snapshot(vm, id);
}

static void do_delete(void)
{
	static const char *const modes[] = {"", " merge", " merge-force", " discard", " discard-force"};
	unsigned v, mode = chance(45) ? 0 : pick(5), id;
	struct vm *vm = pick_vm(&v);
	struct snapshot *snapshot = pick_snapshot(vm);
	struct world after;
	bool goes_on;
	int want = 0;

	if (!snapshot || (mode == 4 && chance(60)))
		return;
	counts[DELETIONS]++;
	id = snapshot->id;
	if (mode == 0 && chance(70))
		ask(RMDIR, path_of(vm, text("snapshots/%s", snapshot->name)), NULL);
	else
		ask(ACTION, path_of(vm, "actions/delete"), text("%s%s", reference(snapshot), modes[mode]));
	goes_on = nr_children(vm, id) || vm->current == id;
	if (vm->preview)
		want = EBUSY;
	else if ((mode == 1 && !goes_on) || (mode == 2 && !goes_on && !snapshot->parent))
		want = EPERM;
	else if (mode == 3 && nr_children(vm, id))
		want = ENOTEMPTY;
	if (want) {
		attempt(want, NULL, 0);
		return;
	}
	world_copy(&after, &world);
	if (mode == 2 && !goes_on)
		fold_into_parent(&after.vms[v], id);
	else if (mode == 4)
		drop_below(&after.vms[v], id);
	else
		drop_snapshot(&after.vms[v], id);
	attempt(0, &after, 1);
}

/* --- going back */

struct composition {
	unsigned whole, config, disks[NR_SLOTS]; /* ids; 0: as it is */
	bool left_out[NR_SLOTS];
};

static void compose(struct vm *vm, const struct composition *c)
{
	const struct snapshot *whole = find(vm, c->whole), *config = find(vm, c->config);

	state_set(&vm->saved, &vm->now);
	vm->saved_current = vm->current;
	vm->saved_touched = vm->touched;
	vm->preview = true;
	for (unsigned slot = 0; slot < NR_SLOTS; slot++) {
		const struct snapshot *from = find(vm, c->disks[slot]);

		recent_clear(vm, slot);
		if (whole && !(whole->left_out & 1u << slot))
			blob_set(&vm->now.disks[slot], whole->state.disks[slot]);
		if (from)
			blob_set(&vm->now.disks[slot], from->state.disks[slot]);
		if (c->left_out[slot])
			blob_set(&vm->now.disks[slot], NULL);
	}
	if (whole)
		vm->now.memory = whole->state.memory;
	if (config)
		vm->now.memory = config->state.memory;
	if (whole || config)
		vm->current = whole ? whole->id : config->id;
	vm->touched = !whole || whole->left_out;
}

/* Whether the state that is left would be lost if it weren't kept, and whether it may be kept. */
static void judge_saved(struct vm *vm, bool *ret_must, bool *ret_may)
{
	const struct snapshot *current = find(vm, vm->saved_current);

	*ret_must = !current || current->state.memory != vm->saved.memory;
	*ret_may = vm->saved_touched || *ret_must;
	for (unsigned slot = 0; slot < NR_SLOTS && current; slot++) {
		const struct blob *saved = vm->saved.disks[slot], *known = current->state.disks[slot];

		if (!saved)
			continue;
		*ret_may |= !known;
		*ret_must |= !blob_equal(saved, known ? known : vm->now.disks[slot]);
	}
	*ret_may |= *ret_must;
}

/* Ends a preview by keeping it. Returns how many worlds there may be then. */
static unsigned settle(struct world *after, unsigned v, bool discard)
{
	struct vm *vm = &after[0].vms[v];
	bool must, may;
	unsigned nr = 0;

	judge_saved(vm, &must, &may);
	if (may && !discard) {
		if (!must)
			world_copy(&after[1], &after[0]);
		nr = must ? 1 : 2;
		add_snapshot(vm, "", &vm->saved, vm->saved_current)->left_out = 0;
	}
	for (unsigned i = 0; i < (nr ? nr : 1); i++) {
		vm = &after[i].vms[v];
		state_done(&vm->saved);
		vm->preview = false;
	}
	return nr ? nr : 1;
}

static void do_restore(void)
{
	unsigned v, nr;
	struct vm *vm = pick_vm(&v);
	struct snapshot *snapshot = pick_snapshot(vm);
	bool discard = chance(30);
	struct world after[2];
	int want = vm->preview ? EBUSY : 0;

	if (!snapshot || vm->nr_snapshots >= SNAPSHOTS_MAX)
		return;
	counts[RESTORES]++;
	close_heads(v);
	if (chance(50)) {
		discard = false;
		ask(LINK, path_of(vm, "current"), text("snapshots/%s", snapshot->name));
	} else {
		ask(ACTION, path_of(vm, "actions/restore"), text("%s%s", reference(snapshot), discard ? " discard" : ""));
	}
	if (want) {
		attempt(want, NULL, 0);
		return;
	}
	world_copy(&after[0], &world);
	compose(&after[0].vms[v], &(struct composition){.whole = snapshot->id});
	nr = settle(after, v, discard);
	attempt(0, after, nr);
}

static void do_preview(void)
{
	unsigned v;
	struct vm *vm = pick_vm(&v);
	struct snapshot *snapshot = pick_snapshot(vm);
	struct composition c = {0};
	struct world after;
	char line[600] = "";

	if (!snapshot)
		return;
	counts[PREVIEWS]++;
	close_heads(v);
	if (chance(40)) {
		c.whole = snapshot->id;
		snprintf(line, sizeof line, "%s ", reference(snapshot));
	} else if (chance(50)) {
		c.config = snapshot->id;
		snprintf(line, sizeof line, "config=%s ", reference(snapshot));
	}
	for (unsigned slot = 0; slot < NR_SLOTS && !c.whole; slot++) {
		const struct snapshot *from = pick_snapshot(vm);
		unsigned others = 0;

		for (unsigned i = 0; i < NR_SLOTS; i++)
			others += i != slot && vm->now.disks[i] && !c.left_out[i];
		if (chance(6) && vm->now.disks[slot] && others) {
			c.left_out[slot] = true;
			snprintf(line + strlen(line), sizeof line - strlen(line), "%s=none ", targets[slot]);
		} else if (chance(50) && from->state.disks[slot]) {
			c.disks[slot] = from->id;
			snprintf(line + strlen(line), sizeof line - strlen(line), "%s=%s ", targets[slot], reference(from));
		}
	}
	if (!*line)
		return;
	line[strlen(line) - 1] = '\0';
	ask(ACTION, path_of(vm, "actions/preview"), line);
	if (vm->preview) {
		attempt(EBUSY, NULL, 0);
		return;
	}
	world_copy(&after, &world);
	compose(&after.vms[v], &c);
	attempt(0, &after, 1);
}

static void do_commit(unsigned v)
{
	struct vm *vm = &world.vms[v];
	struct world after[2];
	bool discard = chance(30);
	unsigned nr;

	counts[COMMITS]++;
	close_heads(v);
	ask(ACTION, path_of(vm, "actions/commit"), discard ? "commit discard" : "commit");
	if (!vm->preview) {
		attempt(EINVAL, NULL, 0);
		return;
	}
	world_copy(&after[0], &world);
	nr = settle(after, v, discard);
	attempt(0, after, nr);
}

static void do_undo(unsigned v)
{
	struct vm *vm = &world.vms[v];
	struct world after;

	counts[UNDOS]++;
	close_heads(v);
	ask(ACTION, path_of(vm, "actions/undo"), "undo");
	if (!vm->preview) {
		attempt(EINVAL, NULL, 0);
		return;
	}
	world_copy(&after, &world);
	vm = &after.vms[v];
	for (unsigned slot = 0; slot < NR_SLOTS; slot++)
		recent_clear(vm, slot);
	state_set(&vm->now, &vm->saved);
	state_done(&vm->saved);
	vm->current = vm->saved_current;
	vm->touched = vm->saved_touched;
	vm->preview = false;
	attempt(0, &after, 1);
}

static void do_end_preview(void)
{
	unsigned v;
	struct vm *vm = pick_vm(&v);

	if (!vm->preview && chance(90))
		return;
	if (chance(50) && vm->nr_snapshots < SNAPSHOTS_MAX)
		do_commit(v);
	else
		do_undo(v);
}

/* --- VMs */

static const char *const clone_options[] = {
	"", " mode=full", " mode=full format=raw", " mode=full allocation=full", " format=raw allocation=full", " pool=" POOL, " mode=full pool=" POOL,
	" format=raw pool=" POOL, " vda.mode=full vdb.pool=" POOL " vdb.format=raw",
};
#define NR_CLONE_OPTIONS (sizeof clone_options / sizeof *clone_options)

static void do_clone(void)
{
	unsigned from, to = pick(NR_VMS);
	struct vm *vm = pick_vm(&from);
	struct snapshot *snapshot = pick_snapshot(vm);
	const char *name = text("vm%u", ++nr_named);
	unsigned option = pick(NR_CLONE_OPTIONS);
	struct world after;

	if (!snapshot || *world.vms[to].name)
		return;
	if (!snapshot->state.disks[0] || !snapshot->state.disks[1])
		option = 0;
	counts[CLONES]++;
	if (chance(50))
		ask(MKDIR, text("%s/clones/%s@%s/%s", mnt, vm->name, snapshot->name, name), NULL);
	else
		ask(ACTION, path_of(vm, "actions/clone"), text("%s %s%s", reference(snapshot), name, clone_options[option]));
	world_copy(&after, &world);
	vm = &after.vms[to];
	snprintf(vm->name, sizeof vm->name, "%s", name);
	state_set(&vm->now, &snapshot->state);
	vm->touched = true;
	attempt(0, &after, 1);
}

static void do_flatten(void)
{
	unsigned v, slot = pick(NR_SLOTS);
	struct vm *vm = pick_vm(&v);
	struct world after;

	counts[FLATTENS]++;
	ask(ACTION, path_of(vm, "actions/flatten"), chance(50) || !vm->now.disks[slot] ? "all" : targets[slot]);
	world_copy(&after, &world);
	attempt(0, &after, 1);
}

static void remove_snapshots(unsigned v)
{
	struct world after;

	while (world.vms[v].nr_snapshots) {
		struct snapshot *snapshot = pick_snapshot(&world.vms[v]);

		ask(RMDIR, path_of(&world.vms[v], text("snapshots/%s", snapshot->name)), NULL);
		world_copy(&after, &world);
		drop_snapshot(&after.vms[v], snapshot->id);
		attempt(0, &after, 1);
	}
}

static void do_remove(void)
{
	unsigned v, nr_vms = 0;
	struct vm *vm = pick_vm(&v);
	struct world after;

	for (unsigned i = 0; i < NR_VMS; i++)
		nr_vms += !!*world.vms[i].name;
	if (nr_vms < 2 || vm->preview)
		return;
	counts[REMOVALS]++;
	close_heads(v);
	if (chance(40))
		remove_snapshots(v);
	ask(RMDIR, text("%s/clones/%s", mnt, vm->name), NULL);
	if (vm->nr_snapshots) {
		attempt(ENOTEMPTY, NULL, 0);
		return;
	}
	world_copy(&after, &world);
	vm_clear(&after.vms[v]);
	attempt(0, &after, 1);
}

static void do_rename_vm(void)
{
	unsigned v;
	struct vm *vm = pick_vm(&v);
	const char *name = text("vm%u", ++nr_named);
	struct world after;

	counts[RENAMES]++;
	close_heads(v);
	ask(RENAME, text("%s/clones/%s", mnt, vm->name), text("%s/clones/%s", mnt, name));
	world_copy(&after, &world);
	snprintf(after.vms[v].name, sizeof after.vms[v].name, "%s", name);
	attempt(0, &after, 1);
}

/* --- looking */

/* A view that stays open, and what it must go on showing. */
static void do_hold(void)
{
	struct held *h = &held[pick(NR_HELD)];
	unsigned v, slot = pick(NR_SLOTS);
	struct vm *vm = pick_vm(&v);
	struct snapshot *snapshot = pick_snapshot(vm);
	const char *path;

	if (h->fd >= 0) {
		/* Not from the page cache. */
		posix_fadvise(h->fd, 0, 0, POSIX_FADV_DONTNEED);
		const char *what = text("%s, opened at step %lu", h->path, h->since);
		if (!bytes_match(what, load(h->fd, what), h->blob))
			fail("%s", mismatch);
		if (chance(50))
			return;
		close(h->fd);
		h->fd = -1;
	}
	if (!snapshot || !snapshot->state.disks[slot])
		return;
	path = path_of(vm, text("snapshots/%s/disks/%s.img", snapshot->name, targets[slot]));
	h->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (h->fd < 0)
		fail("%s: %s", path, strerror(errno));
	blob_set(&h->blob, snapshot->state.disks[slot]);
	snprintf(h->path, sizeof h->path, "%s@%s/%s", vm->name, snapshot->name, targets[slot]);
	h->since = step;
	note("open %s;", h->path);
}

static void do_look(void)
{
	unsigned v;
	struct vm *vm = pick_vm(&v);

	if (!vm_matches(vm, false))
		fail("%s", mismatch);
}

static void do_cancel(void)
{
	DIR *d = opendir(text("%s/jobs", mnt));

	if (!d)
		fail("jobs can't be read: %s", strerror(errno));
	for (struct dirent *entry; (entry = readdir(d));) {
		if (*entry->d_name == '.')
			continue;
		if (unlink(text("%s/jobs/%s", mnt, entry->d_name)) == 0)
			was_cancelled = true;
		else if (errno != ENOENT && errno != EPERM)
			fail("a job can't be cancelled: %s", strerror(errno));
	}
	closedir(d);
}

static void do_kill(void)
{
	counts[KILLS]++;
	note("kill;");
	kill_daemon();
	start();
	check_world(true);
}

/* --- all of it --------------------------------------------------------------------------------------------------------------------- */

static const struct {
	unsigned share;
	void (*run)(void);
} operations[] = {
	{300, do_write},  {150, do_snapshot}, {120, do_delete}, {30, do_rename},    {70, do_restore}, {60, do_preview}, {120, do_end_preview},
	{70, do_clone},	  {35, do_remove},    {10, do_rename_vm}, {25, do_configure}, {150, do_hold},	{15, do_look},	  {4, do_cancel},
	{12, do_kill},	  {20, do_flatten},
};

static void do_step(void)
{
	unsigned sum = 0, at;

	for (unsigned i = 0; i < sizeof operations / sizeof *operations; i++)
		sum += operations[i].share;
	at = pick(sum);
	kill_next = chance(3);
	for (unsigned i = 0; i < sizeof operations / sizeof *operations; i++) {
		if (at < operations[i].share) {
			operations[i].run();
			return;
		}
		at -= operations[i].share;
	}
}

static void make_first_vm(void)
{
	struct vm *vm = &world.vms[0];

	snprintf(vm->name, sizeof vm->name, "vm");
	if (mkdir(text("%s/clones/vm", mnt), 0755) < 0)
		fail("the first VM: %s", strerror(errno));
	for (unsigned slot = 0; slot < NR_SLOTS; slot++) {
		uint32_t size = DISK_MIN + 512 * pick((DISK_MAX - DISK_MIN) / 1024);
		struct blob *blob = blob_new(size);
		int fd = open(path_of(vm, text("disks/%s.img", targets[slot])), O_RDWR | O_CREAT | O_CLOEXEC, 0644);

		memset(blob->bytes, (int)slot + 1, size / 2);
		if (fd < 0 || pwrite(fd, blob->bytes, size, 0) != (ssize_t)size || fsync(fd) < 0 || close(fd) < 0)
			fail("the first disks: %s", strerror(errno));
		vm->now.disks[slot] = blob;
	}
	vm->touched = true;
	vm->now.memory = (unsigned)memory_of(text("%s/clones/vm", mnt));
}

int main(int argc, char **argv)
{
	unsigned long nr_steps;

	if (argc != 6) {
		fprintf(stderr, "usage: snapmodel VMSNAPFS SOURCE MOUNTPOINT SEED STEPS\n");
		return 2;
	}
	vmsnapfs = argv[1];
	source = argv[2];
	mnt = argv[3];
	if (snprintf(pool_dir, sizeof pool_dir, "%s.pool", source) >= (int)sizeof pool_dir || (mkdir(pool_dir, 0755) < 0 && errno != EEXIST))
		fail("%s: %s", pool_dir, strerror(errno));
	seed = strtoul(argv[4], NULL, 10);
	nr_steps = strtoul(argv[5], NULL, 10);
	srandom((unsigned)seed);
	for (unsigned i = 0; i < NR_HELD; i++)
		held[i].fd = -1;
	memset(head_fds, -1, sizeof head_fds);
	setvbuf(stdout, NULL, _IOLBF, 0);
	start();
	make_first_vm();
	check_world(false);
	for (step = 1; step <= nr_steps; step++) {
		*history[step % NR_HISTORY] = '\0';
		if (step % 100 == 0)
			remount(step % 200 == 0 || step == nr_steps);
		else
			do_step();
	}
	step = nr_steps;
	remount(true);
	stop();
	for (unsigned i = 0; count_names[i]; i++)
		printf("%s%lu %s", i ? ", " : "", counts[i], count_names[i]);
	printf("\n");
	world_clear(&world);
	return 0;
}
