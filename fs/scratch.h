/* Files in the top directory of a managed VM that are none of ours: an editor's temporary file, a backup, a swap file.
 *
 * They live in memory until they are removed or the mount ends, SCRATCH_FILE_MAX bytes each at most. A *sink* is such a file whose content
 * nobody wants (the snapshot.xml, status, … that a copying program brings along): it forgets what is written, is never
 * listed, and is soon gone. Safe from any thread. */
#ifndef FS_SCRATCH_H
#define FS_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#define SCRATCH_FILE_MAX (4u << 20)

struct scratch;

int scratch_new(struct scratch **ret);
void scratch_free(struct scratch *scratch);

/* Makes NAME and opens it. -EEXIST; -ENOSPC: too many. */
int scratch_create(struct scratch *scratch, uint32_t vm, const char *name, const struct stat *owner_and_mode, bool is_sink,
		   uint32_t *ret_number);

/* The number of NAME; 0: there is none. */
uint32_t scratch_find(struct scratch *scratch, uint32_t vm, const char *name);

/* The I-th file of VM to be listed; the caller frees. NULL: no more. */
char *scratch_list(struct scratch *scratch, uint32_t vm, size_t i, uint32_t *ret_number);
char *scratch_name(struct scratch *scratch, uint32_t number);

/* Size, mode, owner and mtime. -ENOENT: gone, and not open any more. */
int scratch_stat(struct scratch *scratch, uint32_t number, struct stat *ret);
int scratch_chmod(struct scratch *scratch, uint32_t number, mode_t mode);

/* An open file stays while it is removed. Each open has its close. */
int scratch_open(struct scratch *scratch, uint32_t number);
void scratch_close(struct scratch *scratch, uint32_t number);
ssize_t scratch_read(struct scratch *scratch, uint32_t number, void *buf, size_t len, uint64_t off);
int scratch_write(struct scratch *scratch, uint32_t number, const void *buf, size_t len, uint64_t off); /* -EFBIG */
int scratch_resize(struct scratch *scratch, uint32_t number, uint64_t file_size);
/* A sink takes LEN bytes from anywhere. -EOPNOTSUPP: it isn't one. */
int scratch_sink(struct scratch *scratch, uint32_t number, uint64_t off, uint64_t len);

int scratch_unlink(struct scratch *scratch, uint32_t vm, const char *name);
/* As rename(2), replacing what has NEW_NAME. */
int scratch_rename(struct scratch *scratch, uint32_t vm, const char *old_name, const char *new_name);
/* The whole content, which the caller frees. */
int scratch_text(struct scratch *scratch, uint32_t number, char **ret_text, size_t *ret_len);
bool scratch_is_sink(struct scratch *scratch, uint32_t number);

/* The VM is gone. */
void scratch_forget(struct scratch *scratch, uint32_t vm);

#endif
