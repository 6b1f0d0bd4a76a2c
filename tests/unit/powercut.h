/* A log of all that is written to one file, and the file as a power cut could have left it: all that was stable, and of the rest any sectors in
 * any order. For tests that are linked with --wrap (Makefile); each is one program. */
#ifndef POWERCUT_H
#define POWERCUT_H

#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

#define SECTOR 512u

static char dir[200], path[300], cmd[1500]; /* path: the file */

enum op_kind { OP_WRITE, OP_PUNCH, OP_TRUNCATE, OP_SYNC };
struct op {
	enum op_kind kind;
	uint64_t off, len;
	char *data;
};
static struct op *ops;
static size_t nr_ops;
static bool logging;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;

static void log_op(enum op_kind kind, uint64_t off, uint64_t len, const void *data)
{
	if (!logging)
		return;
	pthread_mutex_lock(&log_lock);
	ops = realloc(ops, (nr_ops + 1) * sizeof *ops);
	ops[nr_ops] = (struct op){kind, off, len, NULL};
	if (data) {
		ops[nr_ops].data = malloc(len);
		memcpy(ops[nr_ops].data, data, len);
	}
	nr_ops++;
	pthread_mutex_unlock(&log_lock);
}

int __real_file_write(int fd, const void *buf, size_t len, uint64_t off);
int __wrap_file_write(int fd, const void *buf, size_t len, uint64_t off);
int __wrap_file_write(int fd, const void *buf, size_t len, uint64_t off)
{
	log_op(OP_WRITE, off, len, buf);
	return __real_file_write(fd, buf, len, off);
}
int __wrap_file_sync(int fd);
int __wrap_file_sync(int fd)
{
	(void)fd;
	log_op(OP_SYNC, 0, 0, NULL);
	return 0;
}
int __real_fallocate64(int fd, int mode, off_t off, off_t len);
int __wrap_fallocate64(int fd, int mode, off_t off, off_t len);
int __wrap_fallocate64(int fd, int mode, off_t off, off_t len)
{
	if (mode & FALLOC_FL_PUNCH_HOLE)
		log_op(OP_PUNCH, (uint64_t)off, (uint64_t)len, NULL);
	else /* the file gets space, and maybe longer */
		log_op(OP_TRUNCATE, (uint64_t)off + (uint64_t)len, 0, NULL);
	return __real_fallocate64(fd, mode, off, len);
}
int __real_ftruncate64(int fd, off_t len);
int __wrap_ftruncate64(int fd, off_t len);
int __wrap_ftruncate64(int fd, off_t len)
{
	log_op(OP_TRUNCATE, (uint64_t)len, 0, NULL);
	return __real_ftruncate64(fd, len);
}

static void forget_ops(void)
{
	for (size_t i = 0; i < nr_ops; i++)
		free(ops[i].data);
	free(ops);
	ops = NULL;
	nr_ops = 0;
}

/* What the log starts from. */
static void save_start(void)
{
	snprintf(cmd, sizeof cmd, "cp --sparse=always %s %s/start.qcow2", path, dir);
	if (system(cmd) != 0)
		exit(2);
}

static void fail(const char *what, uint64_t n)
{
	printf("%s %llu (left in %s)\n", what, (unsigned long long)n, dir);
	exit(1);
}

static void apply(int fd, const struct op *op, bool torn)
{
	switch (op->kind) {
	case OP_WRITE:
		for (uint64_t at = 0; at < op->len;) {
			uint64_t n = SECTOR - (op->off + at) % SECTOR;
			if (n > op->len - at)
				n = op->len - at;
			if (!torn || random() % 2)
				if (pwrite(fd, op->data + at, n, (off_t)(op->off + at)) != (ssize_t)n)
					exit(2);
			at += n;
		}
		break;
	case OP_PUNCH: __real_fallocate64(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)op->off, (off_t)op->len); break;
	case OP_TRUNCATE:
		if (lseek(fd, 0, SEEK_END) < (off_t)op->off && __real_ftruncate64(fd, (off_t)op->off) < 0)
			exit(2);
		break;
	case OP_SYNC: break;
	}
}

/* The file as a cut before log entry CUT leaves it. */
static void rebuild(size_t cut)
{
	snprintf(cmd, sizeof cmd, "cp --sparse=always %s/start.qcow2 %s", dir, path);
	if (system(cmd) != 0)
		exit(2);
	int fd = open(path, O_RDWR);
	size_t stable = 0;
	for (size_t i = 0; i < cut; i++)
		if (ops[i].kind == OP_SYNC)
			stable = i + 1;
	for (size_t i = 0; i < stable; i++)
		apply(fd, &ops[i], false);
	/* Of what was not stable: any part, the later before the earlier too. */
	for (int round = 0; round < 2; round++)
		for (size_t i = stable; i < cut; i++)
			if (random() % 3 == 0)
				apply(fd, &ops[i], random() % 2);
	close(fd);
}

#endif
