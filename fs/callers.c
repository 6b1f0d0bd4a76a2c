#include "fs/callers.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "fs/clock.h"
#include "store/intern.h"

#define CALLERS	     64
#define COPYING_MS   10000

struct caller {
	pid_t process;
	int64_t seen_ms;    /* any of the following */
	int64_t copying_ms; /* missed or made a name; 0: never */
	int64_t listing_ms;
	uint64_t missed; /* hash of directory and name last missed */
	unsigned nr_missed; /* how often in a row */
};

struct callers {
	pthread_mutex_t lock;
	/* protected by lock */
	struct caller callers[CALLERS];
	int64_t copying_ms; /* the latest of all */
};

int callers_new(struct callers **ret)
{
	struct callers *callers = calloc(1, sizeof *callers);
	if (!callers)
		return -ENOMEM;
	pthread_mutex_init(&callers->lock, NULL);
	callers->copying_ms = -COPYING_MS;
	*ret = callers;
	return 0;
}

void callers_free(struct callers *callers)
{
	if (!callers)
		return;
	pthread_mutex_destroy(&callers->lock);
	free(callers);
}

/* A file of /proc, cut off where TEXT ends; "": it can't be read. */
static void read_proc(const char *path, char *text, size_t cap)
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len = fd < 0 ? -1 : file_read(fd, text, cap - 1, 0);
	text[len > 0 ? len : 0] = '\0';
}

/* "": not known. */
static void read_status(pid_t thread, char *text, size_t cap)
{
	char path[40];
	*text = '\0';
	snprintf(path, sizeof path, "/proc/%d/status", (int)thread);
	if (thread > 0)
		read_proc(path, text, cap);
}

pid_t callers_process(pid_t thread)
{
	char text[512];
	read_status(thread, text, sizeof text);
	const char *line = strstr(text, "\nTgid:");
	return line ? (pid_t)atoi(line + strlen("\nTgid:")) : 0;
}

/* Whatever kills, the kernel makes a SIGKILL of it. */
static bool has_kill(const char *status, const char *field)
{
	const char *line = strstr(status, field);
	return line && strtoull(line + strlen(field), NULL, 16) >> (SIGKILL - 1) & 1;
}

bool callers_is_killed(pid_t thread)
{
	char text[4096];
	read_status(thread, text, sizeof text);
	return has_kill(text, "\nSigPnd:") || has_kill(text, "\nShdPnd:");
}

/* In a user namespace of its own nobody's capabilities count for what lies outside. */
static bool is_in_our_namespace(pid_t thread)
{
	char path[40], ours[512], theirs[512];
	snprintf(path, sizeof path, "/proc/%d/uid_map", (int)thread);
	read_proc("/proc/self/uid_map", ours, sizeof ours);
	read_proc(path, theirs, sizeof theirs);
	return *ours && strcmp(ours, theirs) == 0;
}

bool callers_overrides_permissions(uid_t uid, pid_t thread)
{
	const uint64_t wanted = 1ull << CAP_DAC_OVERRIDE | 1ull << CAP_DAC_READ_SEARCH;
	char text[4096];
	if (uid != 0 || thread <= 0)
		return uid == 0; /* of a pid namespace that isn't within ours: the host's root, for a daemon in a container */
	read_status(thread, text, sizeof text);
	const char *line = strstr(text, "\nCapEff:");
	return line && (strtoull(line + strlen("\nCapEff:"), NULL, 16) & wanted) && is_in_our_namespace(thread);
}

/* The entry of PROCESS; MAKE: in the place of the one that was seen longest ago, where there is none. */
static struct caller *caller_locked(struct callers *callers, pid_t process, bool make)
{
	struct caller *oldest = &callers->callers[0];
	for (struct caller *c = callers->callers; c < callers->callers + CALLERS; c++) {
		if (c->process == process)
			return c;
		if (c->seen_ms < oldest->seen_ms)
			oldest = c;
	}
	if (!make)
		return NULL;
	*oldest = (struct caller){.process = process};
	return oldest;
}

static uint64_t name_hash(uint64_t parent, const char *name)
{
	return hash_text(hash_bytes(HASH_START, &parent, sizeof parent), name);
}

void callers_note_missing(struct callers *callers, pid_t thread, uint64_t parent, const char *name)
{
	pid_t process = callers_process(thread);
	if (!process)
		return;
	uint64_t hash = name_hash(parent, name);
	int64_t now = clock_ms();
	pthread_mutex_lock(&callers->lock);
	struct caller *caller = caller_locked(callers, process, true);
	caller->nr_missed = caller->missed == hash ? caller->nr_missed + 1 : 1;
	caller->missed = hash;
	callers->copying_ms = caller->seen_ms = caller->copying_ms = now;
	pthread_mutex_unlock(&callers->lock);
}

void callers_note_making(struct callers *callers, pid_t thread)
{
	pid_t process = callers_process(thread);
	if (!process)
		return;
	int64_t now = clock_ms();
	pthread_mutex_lock(&callers->lock);
	struct caller *caller = caller_locked(callers, process, true);
	callers->copying_ms = caller->seen_ms = caller->copying_ms = now;
	pthread_mutex_unlock(&callers->lock);
}

void callers_note_listing(struct callers *callers, pid_t thread)
{
	pid_t process = callers_process(thread);
	if (!process)
		return;
	pthread_mutex_lock(&callers->lock);
	struct caller *caller = caller_locked(callers, process, true);
	caller->seen_ms = caller->listing_ms = clock_ms();
	pthread_mutex_unlock(&callers->lock);
}

bool callers_is_copying(struct callers *callers, pid_t thread)
{
	int64_t since = clock_ms() - COPYING_MS;
	pthread_mutex_lock(&callers->lock);
	bool anybody = callers->copying_ms > since;
	pthread_mutex_unlock(&callers->lock);
	pid_t process = anybody ? callers_process(thread) : 0;
	if (!process)
		return false;
	pthread_mutex_lock(&callers->lock);
	struct caller *caller = caller_locked(callers, process, false);
	bool copying = caller && caller->copying_ms && caller->copying_ms > since;
	pthread_mutex_unlock(&callers->lock);
	return copying;
}

bool callers_is_copying_tree(struct callers *callers, pid_t thread, uint64_t parent, const char *name)
{
	pid_t process = callers_process(thread);
	int64_t since = clock_ms() - COPYING_MS;
	pthread_mutex_lock(&callers->lock);
	struct caller *caller = process ? caller_locked(callers, process, false) : NULL;
	bool listed = caller && caller->listing_ms && caller->listing_ms > since;
	bool looked = caller && caller->missed == name_hash(parent, name) && caller->nr_missed > 1;
	pthread_mutex_unlock(&callers->lock);
	return listed || looked;
}
