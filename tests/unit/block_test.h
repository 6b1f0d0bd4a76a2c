/* What the tests of the block layer share: where they work, dice, commands. For one source file each. */
#ifndef BLOCK_TEST_H
#define BLOCK_TEST_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static char dir[200]; /* where the images are */

/* WHAT is 0. */
#define CHECK(what) \
	do { \
		int e_ = (what); \
		if (e_) { \
			printf("%s:%d: %s = %d (left in %s)\n", __FILE__, __LINE__, #what, e_, dir); \
			exit(1); \
		} \
	} while (0)

__attribute__((unused)) static uint64_t pick(uint64_t below)
{
	return below ? (uint64_t)random() % below : 0;
}

/* The status of a shell command. */
__attribute__((unused, format(printf, 1, 2))) static int run(const char *fmt, ...)
{
	char cmd[4000];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(cmd, sizeof cmd, fmt, ap);
	va_end(ap);
	int status = system(cmd);
	if (status != 0)
		printf("failed: %s\n", cmd);
	return status;
}

__attribute__((unused)) static const char *path_of(const char *name)
{
	static _Thread_local char path[400];
	snprintf(path, sizeof path, "%s/%.150s", dir, name);
	return path;
}

#endif
