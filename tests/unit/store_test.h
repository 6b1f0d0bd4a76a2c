/* What the tests of lib/store share: checks, a directory of their own, qemu-img, a store whose events are kept. */
#ifndef STORE_TEST_H
#define STORE_TEST_H

#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "meta/xml.h"
#include "store/store.h"

#define CHECK_ERR(got, want)                                                                                           \
	do {                                                                                                           \
		int got_ = (int)(got), want_ = (want);                                                                 \
		if (got_ != want_) {                                                                                   \
			printf("%s:%d: %s is %d (%s), not %d: %s\n", __FILE__, __LINE__, #got, got_, strerror(-got_),  \
			       want_, why.text);                                                                       \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

#define CHECK_STR(got, want)                                                                                           \
	do {                                                                                                           \
		const char *got_ = (got), *want_ = (want);                                                             \
		if (!got_ || strcmp(got_, want_) != 0) {                                                               \
			printf("%s:%d: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, #got, got_ ? got_ : "(NULL)",  \
			       want_);                                                                                 \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

static _Thread_local struct reason why;
static char dir[200]; /* the test's own; real, without symlinks */

__attribute__((unused, format(printf, 1, 2))) static void run(const char *fmt, ...)
{
	char cmd[2000];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(cmd, sizeof cmd, fmt, ap);
	va_end(ap);
	if (system(cmd) != 0) {
		printf("failed: %s\n", cmd);
		exit(1);
	}
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

__attribute__((unused)) static void dir_done(void)
{
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Makes `dir` and `dir`/src; both go away when the test succeeds. */
__attribute__((unused)) static void dir_init(void)
{
	const char *tmp = getenv("TMPDIR");
	char made[150];
	snprintf(made, sizeof made, "%s/store-test.XXXXXX", tmp ? tmp : "/tmp");
	CHECK(mkdtemp(made));
	char *real = realpath(made, NULL);
	snprintf(dir, sizeof dir, "%s", real);
	free(real);
	run("mkdir %s/src", dir);
	xml_init();
	setlinebuf(stdout);
}

/* A text file below `dir`. */
__attribute__((unused, format(printf, 2, 3))) static void put_file(const char *name, const char *fmt, ...)
{
	char path[600];
	va_list ap;
	snprintf(path, sizeof path, "%s/%s", dir, name);
	FILE *f = fopen(path, "w");
	CHECK(f);
	va_start(ap, fmt);
	vfprintf(f, fmt, ap);
	va_end(ap);
	CHECK(fclose(f) == 0);
}

/* --- the store ------------------------------------------------------------------------------------------------------ */

static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER;
static char events[1 << 20]; /* a line each */

static void keep_event(void *ctx, const char *vm, const char *text)
{
	(void)ctx;
	pthread_mutex_lock(&events_lock);
	size_t used = strlen(events);
	snprintf(events + used, sizeof events - used, "%s: %s\n", vm ? vm : "-", text);
	pthread_mutex_unlock(&events_lock);
}

__attribute__((unused)) static int nr_events(const char *with)
{
	int nr = 0;
	pthread_mutex_lock(&events_lock);
	for (const char *p = events; (p = strstr(p, with)); p++)
		nr++;
	pthread_mutex_unlock(&events_lock);
	return nr;
}

__attribute__((unused)) static struct store *store_at(const char *source, bool start)
{
	char path[500];
	struct store *store = NULL;
	snprintf(path, sizeof path, "%s/%s", dir, source);
	struct store_config config = {.source_dir = path, .log = {keep_event, NULL}};
	CHECK_ERR(store_open(&config, &store, &why), 0);
	if (start)
		CHECK_ERR(store_start(store), 0);
	return store;
}

__attribute__((unused)) static void wait_for_jobs(struct store *store)
{
	for (int i = 0; i < 6000; i++) {
		char *names = NULL;
		CHECK(store_jobs(store, &names) == 0);
		bool none = !*names;
		free(names);
		if (none)
			return;
		usleep(10000);
	}
	printf("jobs don't end\n%s", events);
	exit(1);
}

__attribute__((unused)) static const struct vm_disk *disk_of(const struct vm *vm, const struct vm_snapshot *snapshot,
							      const char *file_name)
{
	return snapshot ? vm_find_disk(snapshot->disks, snapshot->nr_disks, file_name)
			: vm_find_disk(vm->disks, vm->nr_disks, file_name);
}

#endif
