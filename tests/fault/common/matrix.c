#include "matrix.h"

#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HANGS_S	     300 /* a process that takes longer */
#define FAILURES_MAX 8
#define STEP_NAMES_MAX 400
#define ALIKE_MAX    40 /* of one scenario's steps of one name: the first ones and the last ones, and some between */

/* --- what can happen to a step --------------------------------------------------------------------------------------------- */

struct cell_kind {
	const char *name; /* on the command line */
	enum fault_kind fault;
	bool for_good;
	bool cut_too; /* the power goes some time after the fault, or without one at it */
	bool only_space, only_writes;
};
static const struct cell_kind cell_kinds[] = {
	{"kill", FAULT_KILL, false, false, false, false},
	{"kill-cut", FAULT_KILL, false, true, false, false}, /* during the next start */
	{"half", FAULT_KILL_HALF, false, false, false, true},
	{"cut", FAULT_NONE, false, true, false, false},
	{"eio", FAULT_EIO, false, false, false, false},
	{"eio-good", FAULT_EIO, true, false, false, false},
	{"eio-late", FAULT_EIO_LATE, false, false, false, false},
	{"eio-cut", FAULT_EIO, false, true, false, false},
	{"enospc", FAULT_ENOSPC, false, false, true, false},
	{"enospc-good", FAULT_ENOSPC, true, false, true, false},
	{"enospc-cut", FAULT_ENOSPC, true, true, true, false},
	{"enospc-sync", FAULT_ENOSPC_SYNC, false, false, false, false},
	{"enospc-sync-good", FAULT_ENOSPC_SYNC, true, false, false, false},
	{"enospc-sync-cut", FAULT_ENOSPC_SYNC, false, true, false, false},
	{"short", FAULT_SHORT, false, false, false, true},
	{"read", FAULT_READ_EIO, false, false, false, false},
	{"read-good", FAULT_READ_EIO, true, false, false, false},
};
#define NR_KINDS (sizeof cell_kinds / sizeof *cell_kinds)

struct cell {
	unsigned scenario, kind;
	uint64_t nth;
	unsigned name;	/* of step_names_seen */
	unsigned order; /* dice */
};

static const struct scenario *scenarios;
static size_t nr_scenarios;
static char base[4096]; /* where the directories are */
static unsigned seed;
static struct cell *cells;
static size_t nr_cells;

/* For each name of a step: how often each kind has struck it. */
static struct {
	char *name;
	unsigned struck[NR_KINDS], nr_begun[NR_KINDS];
} names_seen[STEP_NAMES_MAX];
static unsigned nr_names;
static unsigned nr_failures, nr_done, nr_missed;
static unsigned cell_dice;
static const struct scenario *cell_scenario;

const struct scenario *matrix_scenario(void)
{
	return cell_scenario;
}

unsigned matrix_dice(void)
{
	return cell_dice;
}

static unsigned name_index(const char *name)
{
	unsigned i = 0;
	while (i < nr_names && strcmp(names_seen[i].name, name) != 0)
		i++;
	if (i == nr_names && nr_names < STEP_NAMES_MAX - 1)
		names_seen[nr_names++].name = strdup(name);
	return i;
}

static unsigned mix(uint64_t a, uint64_t b, uint64_t c)
{
	uint64_t x = (a * 0x9e3779b97f4a7c15ull) ^ (b * 0xc2b2ae3d27d4eb4full) ^ (c * 0x165667b19e3779f9ull) ^ ((uint64_t)seed << 17);
	x ^= x >> 31;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 29;
	x *= 0x94d049bb133111ebull;
	return (unsigned)(x >> 32);
}

/* --- promises ----------------------------------------------------------------------------------------------------------------- */

/* In turn, so that who is killed while it promises has promised what it had before. */
struct promises {
	atomic_uint nr;
	struct promise two[2];
};
static struct promises *promises;

void matrix_promised(struct promise *promise)
{
	unsigned nr = atomic_load(&promises->nr) + 1;
	promise->step = disk_nr_steps();
	memcpy(&promises->two[nr % 2], promise, sizeof *promise);
	atomic_store(&promises->nr, nr);
}

static const struct promise *promised(void)
{
	return &promises->two[atomic_load(&promises->nr) % 2];
}

/* --- processes ----------------------------------------------------------------------------------------------------------------- */

__attribute__((noreturn)) static void die(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(2);
}

static pid_t fork_one(void)
{
	fflush(stdout);
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid)
		alarm(HANGS_S);
	return pid;
}

/* Its status, or 128 and the signal that ended it. */
static int wait_one(pid_t pid)
{
	int status = 0;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The processes that are children now since those that had made them have ended: the status of one of them that isn't DISK_KILLED, if there is one, or
 * that; 0: there was none. */
static int wait_orphans(void)
{
	int status = 0, ret = 0;
	for (pid_t pid; (pid = waitpid(-1, &status, 0)) > 0 || errno == EINTR;) {
		if (pid > 0 && (!ret || ret == DISK_KILLED))
			ret = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	}
	return ret;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

static void remove_tree(const char *path)
{
	if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT)
		die(path);
}

static char *place(const struct scenario *s, const char *suffix)
{
	static char paths[4][4300];
	static unsigned turn;
	char *path = paths[turn++ % 4];
	snprintf(path, sizeof paths[0], "%s/%s%s", base, s->name, suffix);
	return path;
}

/* What is the matter, or 0. In a process of its own: nothing is left of what the run has in memory. */
static int check(const struct scenario *s, bool after_cut)
{
	pid_t pid = fork_one();
	if (!pid) {
		disk_leave();
		s->check(place(s, ""), promised(), after_cut);
		exit(0);
	}
	return wait_one(pid);
}

/* As a cut at the end, or before, would have left it. In the process that has run. */
static int check_cut_after(const struct scenario *s, unsigned dice)
{
	char *dir = place(s, ""), *left = place(s, ".left"), *to = place(s, ".cut");
	disk_rebuild(to, disk_nr_recorded(), dice);
	if (rename(dir, left) < 0 || rename(to, dir) < 0)
		die(dir);
	int status = check(s, true);
	if (status)
		return status;
	remove_tree(dir);
	return rename(left, dir) < 0 ? 2 : 0;
}

/* When something was cleared away, at one of the first syncs, at one of the first steps, or when all is done. */
static void live_again(void *ctx)
{
	const struct scenario *s = ctx;
	unsigned dice = cell_dice, way = dice % 6;
	alarm(HANGS_S);
	disk_arm_cut(way < 5 ? disk_nr_steps() + dice / 8 % 16 * (dice / 128 % 8) : UINT64_MAX, way < 2 ? DISK_AFTER_UNLINK : way < 4 ? 1 + dice / 8 % 8 : 0,
		     place(s, ".cut"), dice);
	s->restart(place(s, ""), promised());
}

/* A sanitizer's own locks and threads don't outlive the fork of a process with several threads. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define CAN_LIVE_AGAIN false
#elif defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define CAN_LIVE_AGAIN false
#endif
#endif
#ifndef CAN_LIVE_AGAIN
#define CAN_LIVE_AGAIN true
#endif

static bool is_restarted(const struct scenario *s, const struct cell_kind *kind)
{
	return CAN_LIVE_AGAIN && s->restart && kind->fault == FAULT_KILL && kind->cut_too;
}

/* The run, and the check after a cut behind its end if it comes to that. */
__attribute__((noreturn)) static void run_cell(const struct scenario *s, const struct cell_kind *kind, uint64_t nth, unsigned dice)
{
	struct promise *mine = calloc(1, sizeof *mine);
	if (!mine)
		die("memory");
	disk_watch(place(s, ""));
	if (kind->cut_too)
		disk_record();
	disk_arm(kind->fault, nth, kind->for_good);
	if (is_restarted(s, kind))
		disk_live_again(live_again, (void *)(uintptr_t)s);
	else if (kind->cut_too)
		disk_arm_cut(kind->fault == FAULT_NONE ? nth : nth + 1 + dice % 24 * (dice % 5), kind->fault == FAULT_NONE ? 0 : (dice / 32 % 4 + 1) / 2, place(s, ".cut"), dice);
	s->run(place(s, ""), mine);
	disk_disarm();
	free(mine);
	if (kind->cut_too && kind->fault != FAULT_NONE)
		exit(check_cut_after(s, dice) ? 3 : 0);
	exit(0);
}

/* A scenario's directory as it is at the beginning. */
static void lay_out(const struct scenario *s)
{
	remove_tree(place(s, ""));
	remove_tree(place(s, ".cut"));
	remove_tree(place(s, ".left"));
	for (unsigned i = 0; i < DISK_CUTS; i++) {
		char suffix[20];
		snprintf(suffix, sizeof suffix, ".cut%u", i);
		remove_tree(place(s, suffix));
	}
	disk_copy_tree(place(s, ".start"), place(s, ""));
	atomic_store(&promises->nr, 0);
	promises->two[0].step = 0;
	memset(promises->two[0].told, 0, sizeof promises->two[0].told);
}

/* Each of the directories that a cut could have left. */
static int check_cuts(const struct scenario *s)
{
	char suffix[30] = ".cut0", numbers[40];
	int status = 0;
	unsigned i = 0;
	for (; !status && access(place(s, suffix), F_OK) == 0; snprintf(suffix, sizeof suffix, ".cut%u", ++i)) {
		remove_tree(place(s, ""));
		snprintf(numbers, sizeof numbers, "%s.numbers", suffix);
		if (rename(place(s, suffix), place(s, "")) < 0 || rename(place(s, numbers), place(s, ".cut.numbers")) < 0)
			die("after a cut");
		status = check(s, true);
		cell_dice += 7; /* another way of checking */
	}
	if (!i)
		printf("%s: the cut has left nothing to look at\n", s->name);
	return i ? status : 2;
}

static const char *try_cell(const struct scenario *s, const struct cell_kind *kind, uint64_t nth, unsigned dice)
{
	static char what[100];
	cell_dice = dice;
	cell_scenario = s;
	lay_out(s);
	pid_t pid = fork_one();
	if (!pid)
		run_cell(s, kind, nth, dice);
	int status = wait_one(pid), restarted = wait_orphans();
	bool was_cut = kind->cut_too && status == DISK_KILLED;
	if (was_cut && is_restarted(s, kind) && restarted != DISK_KILLED) {
		snprintf(what, sizeof what, "the next start ended with status %d", restarted);
		return what;
	}
	if (status == 3)
		return "a promise is broken after a power cut at the end";
	if (status && status != DISK_KILLED) {
		snprintf(what, sizeof what, "the run itself ended with status %d", status);
		return what;
	}
	if (was_cut)
		status = check_cuts(s);
	else
		status = check(s, false);
	snprintf(what, sizeof what, "a promise is broken (status %d)", status);
	return status ? what : NULL;
}

/* --- all cells ----------------------------------------------------------------------------------------------------------------- */

static void add_cell(unsigned scenario, unsigned kind, uint64_t nth, const char *name)
{
	if (!(nr_cells & (nr_cells - 1))) {
		cells = realloc(cells, (nr_cells ? 2 * nr_cells : 1) * sizeof *cells);
		if (!cells)
			die("memory");
	}
	cells[nr_cells++] = (struct cell){scenario, kind, nth, name_index(name), mix(scenario + 1, kind + 1, nth + 1)};
}

static bool ends_with(const char *name, const char *end)
{
	size_t len = strlen(name), n = strlen(end);
	return len > n && strcmp(name + len - n, end) == 0;
}

/* Syncs that say ENOSPC for good: from a repair on, which may go on without space for its refcounts. */
static bool can_strike(const struct scenario *s, const struct cell_kind *kind, const char *name, bool needs_space)
{
	if (kind->fault == FAULT_KILL && kind->cut_too && !is_restarted(s, kind))
		return false;
	return kind->fault != FAULT_READ_EIO && (needs_space || !kind->only_space) && (ends_with(name, ": write") || !kind->only_writes) &&
		(kind->fault != FAULT_ENOSPC_SYNC || (ends_with(name, ": sync") && (!kind->for_good || strncmp(name, "repair/", 7) == 0)));
}

/* Whether the Ith of NR alike is one of those that are tried. */
static bool is_tried(uint64_t i, uint64_t nr)
{
	return i < ALIKE_MAX / 4 || i + ALIKE_MAX / 4 >= nr || i % (nr / (ALIKE_MAX / 2) + 1) == 0;
}

static void add_cells(unsigned scenario)
{
	static uint64_t nr_alike[STEP_NAMES_MAX], nr_before[STEP_NAMES_MAX];
	memset(nr_alike, 0, sizeof nr_alike);
	memset(nr_before, 0, sizeof nr_before);
	bool needs_space = false;
	for (uint64_t n = 0; disk_step_name(n, &needs_space); n++)
		nr_alike[name_index(disk_step_name(n, &needs_space))]++;
	for (uint64_t n = 0; disk_step_name(n, &needs_space); n++) {
		const char *name = disk_step_name(n, &needs_space);
		unsigned i = name_index(name);
		for (unsigned k = 0; is_tried(nr_before[i], nr_alike[i]) && k < NR_KINDS; k++)
			if (can_strike(&scenarios[scenario], &cell_kinds[k], name, needs_space))
				add_cell(scenario, k, n, name);
		nr_before[i]++;
	}
	for (uint64_t n = 0; n < disk_nr_reads(); n++)
		for (unsigned k = 0; is_tried(n, disk_nr_reads()) && k < NR_KINDS; k++)
			if (cell_kinds[k].fault == FAULT_READ_EIO)
				add_cell(scenario, k, n, "(reads)");
}

static void prepare(const struct scenario *s)
{
	cell_scenario = s;
	if (mkdir(place(s, ""), 0700) < 0)
		die(place(s, ""));
	pid_t pid = fork_one();
	if (!pid) {
		s->prepare(place(s, ""));
		exit(0);
	}
	if (wait_one(pid) != 0) {
		printf("%s: its files can't be made\n", s->name);
		exit(1);
	}
	disk_copy_tree(place(s, ""), place(s, ".start"));
}

/* Without a fault: it must be well, and tells which steps there are. */
static void run_once(unsigned i)
{
	const struct cell_kind none = {.name = "none"};
	prepare(&scenarios[i]);
	const char *what = try_cell(&scenarios[i], &none, 0, 0);
	if (what) {
		printf("%s, without any fault: %s (left in %s)\n", scenarios[i].name, what, place(&scenarios[i], ""));
		exit(1);
	}
	uint64_t before = nr_cells;
	add_cells(i);
	printf("%-20s %5llu steps %5llu reads %6llu cells\n", scenarios[i].name, (unsigned long long)disk_nr_steps(), (unsigned long long)disk_nr_reads(),
	       (unsigned long long)(nr_cells - before));
}

/* First each name of a step once, then each name in each way, and so on. */
static int compare_orders(const void *a, const void *b)
{
	const struct cell *x = a, *y = b;
	return x->order < y->order ? -1 : x->order > y->order;
}

static void order_cells(void)
{
	qsort(cells, nr_cells, sizeof *cells, compare_orders);
	static bool begun[STEP_NAMES_MAX];
	for (size_t i = 0; i < nr_cells; i++) {
		unsigned round = names_seen[cells[i].name].nr_begun[cells[i].kind]++ + 1;
		cells[i].order = (begun[cells[i].name] ? round << 16 : 0) | cells[i].order >> 16;
		begun[cells[i].name] = true;
	}
	qsort(cells, nr_cells, sizeof *cells, compare_orders);
}

static void do_cell(const struct cell *cell, const char *program)
{
	const struct scenario *s = &scenarios[cell->scenario];
	const struct cell_kind *kind = &cell_kinds[cell->kind];
	const char *what = try_cell(s, kind, cell->nth, mix(cell->scenario + 1, cell->kind + 1, cell->nth + 1)), *name = NULL;
	bool struck = disk_struck(&name);
	bool read = kind->fault == FAULT_READ_EIO;
	nr_done++;
	if (struck)
		names_seen[name_index(read ? "(reads)" : name)].struck[cell->kind]++;
	else
		nr_missed++;
	if (!what)
		return;
	nr_failures++;
	printf("FAILED: %s, %s at %s %llu (%s): %s\n        again: SEED=%u %s %s %s %llu\n", s->name, kind->name, read ? "read" : "step",
	       (unsigned long long)cell->nth, struck && name ? name : "?", what, seed, program, s->name, kind->name, (unsigned long long)cell->nth);
}

static double now_s(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void print_table(void)
{
	printf("\n%-44s", "step");
	for (unsigned k = 0; k < NR_KINDS; k++)
		printf(" %11s", cell_kinds[k].name);
	printf("\n");
	for (unsigned i = 0; i < nr_names; i++) {
		printf("%-44s", names_seen[i].name);
		for (unsigned k = 0; k < NR_KINDS; k++)
			printf(" %11u", names_seen[i].struck[k]);
		printf("\n");
	}
}

static bool was_struck(const char *name)
{
	size_t len = strlen(name);
	for (unsigned i = 0; i < nr_names; i++)
		for (unsigned k = 0; k < NR_KINDS; k++)
			if (strncmp(names_seen[i].name, name, len) == 0 && strchr(":", names_seen[i].name[len]) && names_seen[i].struck[k])
				return true;
	return false;
}

static void judge_names(const char *const *must)
{
	for (unsigned i = 0; i < nr_names; i++)
		if (strcmp(names_seen[i].name, "unnamed") == 0 && ++nr_failures)
			printf("a step has no name\n");
	for (; must && *must; must++)
		if (!was_struck(*must) && ++nr_failures)
			printf("no fault has struck the step \"%s\"\n", *must);
}

static int run_all(const char *program, unsigned budget, const char *const *must)
{
	double end = now_s() + (getenv("NIGHTLY") && *getenv("NIGHTLY") ? 1e9 : budget);
	for (unsigned i = 0; i < nr_scenarios; i++)
		run_once(i);
	order_cells();
	/* Each name once, whatever time that takes. */
	for (size_t i = 0; i < nr_cells && nr_failures < FAILURES_MAX && (now_s() < end || cells[i].order < 1 << 16); i++)
		do_cell(&cells[i], program);
	print_table();
	printf("%u of %zu cells, %u of which nothing struck\n", nr_done, nr_cells, nr_missed);
	if (!nr_failures)
		judge_names(must);
	return nr_failures != 0;
}

/* --- one of them ------------------------------------------------------------------------------------------------------------------ */

static int run_named(int argc, char **argv)
{
	for (unsigned i = 0; i < nr_scenarios; i++) {
		if (strcmp(scenarios[i].name, argv[1]) != 0)
			continue;
		run_once(i);
		if (argc == 2)
			for (uint64_t n = 0; n < disk_nr_steps(); n++) {
				bool needs_space;
				printf("%5llu %s\n", (unsigned long long)n, disk_step_name(n, &needs_space));
			}
		for (size_t c = 0; c < nr_cells && nr_failures < FAILURES_MAX; c++)
			if (argc > 2 && (strcmp(argv[2], "all") == 0 || strcmp(cell_kinds[cells[c].kind].name, argv[2]) == 0) && (argc == 3 || strtoull(argv[3], NULL, 10) == cells[c].nth)) {
				cells[c].scenario = i;
				do_cell(&cells[c], argv[0]);
			}
		printf("%u cells, left in %s\n", nr_done, base);
		if (argc > 2 && !nr_done)
			return 2; /* there is no such cell */
		return nr_failures != 0;
	}
	printf("there is no scenario %s\n", argv[1]);
	return 2;
}

int matrix_main(int argc, char **argv, const struct scenario *all, size_t nr, unsigned budget, const char *const *must)
{
	scenarios = all;
	nr_scenarios = nr;
	seed = getenv("SEED") ? (unsigned)strtoul(getenv("SEED"), NULL, 10) : (unsigned)time(NULL);
	printf("seed %u\n", seed);
	if (!realpath(".", base) || strlen(base) > 3000 || !mkdtemp(strcat(base, "/fault.XXXXXX")))
		die("a directory");
	disk_init();
	promises = mmap(NULL, sizeof *promises, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (promises == MAP_FAILED)
		die("memory");
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		die("a subreaper");
	if (argc > 1)
		return run_named(argc, argv);
	int status = run_all(argv[0], budget, must);
	if (!status)
		remove_tree(base);
	return status;
}
