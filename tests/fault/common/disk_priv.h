/* Between the parts of the disk (disk.h): disk.c, where the calls arrive; disk_log.c, what has happened; disk_stack.c, what it is called. */
#ifndef FAULT_DISK_PRIV_H
#define FAULT_DISK_PRIV_H

#include <sys/stat.h>

#include "disk.h"

enum disk_op {
	OP_WRITE, OP_SIZE, OP_SPACE, OP_HOLE, OP_CLONE, OP_SYNC, OP_CREATE, OP_MKDIR, OP_SYMLINK, OP_LINK, OP_RENAME, OP_UNLINK, NR_DISK_OPS
};
extern const char *const disk_op_names[NR_DISK_OPS];

#define STEPS_MAX  (1u << 17) /* whose names are kept */
#define STACKS_MAX 8192u
#define FRAMES_MAX 32u
#define NO_STACK   STACKS_MAX

/* A stack: places in the program, the innermost first. */
struct disk_stack {
	unsigned nr;
	uint32_t frames[FRAMES_MAX];
};

/* Outlives the process: its parent, which has called disk_init(), reads what the fault has struck. */
struct disk_shared {
	uint64_t nr_steps, nr_reads;
	bool struck;
	uint16_t struck_stack;
	uint8_t struck_op;
	uint16_t step_stacks[STEPS_MAX];
	uint8_t step_ops[STEPS_MAX];
	unsigned nr_stacks;
	struct disk_stack stacks[STACKS_MAX];
};
extern struct disk_shared *disk_shared;

/* --- disk_stack.c ------------------------------------------------------------------------------------------------------- */

/* The number of the stack that it is called on. */
unsigned stack_here(void);

/* The name of a step on it, until the process ends. */
const char *stack_step_name(unsigned stack, enum disk_op op);

/* --- disk_log.c: everything under the disk's lock ------------------------------------------------------------------------- */

/* What is remembered of a step. */
struct logged {
	enum disk_op op;
	unsigned stack;
	int node;	     /* of the file or directory that is written, made, linked, ... */
	int dir, from_dir;   /* -1: none; FROM: of a rename, or a link that had a name */
	char *name, *from_name;
	uint64_t off, len;
	void *data;	     /* OP_WRITE, OP_CLONE; OP_SYMLINK: where to */
	bool failed;	     /* OP_SYNC: what was to become stable never will by a later one */
};

extern bool log_is_on;
void log_start(const char *dir);
void log_add(const struct logged *step); /* whose memory becomes the log's */
int log_node(const struct stat *st, int dirfd, const char *name); /* "": DIRFD itself */
/* Closes what isn't the log's, but for stdin, stdout and stderr. */
void log_close_others(void);

/* The real calls, which the disk's own work uses. */
int real_openat(int dirfd, const char *name, int flags, mode_t mode);

#endif
