/* Whole reads and writes on files, and the one way in which small files are replaced. EINTR and short transfers
 * are handled here and nowhere else. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Reads up to LEN bytes; returns how many there were (fewer only at the end of the file) or a negative errno. */
ssize_t file_read(int fd, void *buf, size_t len, uint64_t off);

/* Reads exactly LEN bytes; what lies beyond the end of the file reads as zeros, as QEMU has it. */
int file_read_padded(int fd, void *buf, size_t len, uint64_t off);

/* Writes all of BUF; 0 or a negative errno. */
int file_write(int fd, const void *buf, size_t len, uint64_t off);

/* fdatasync(2); 0 or a negative errno. */
int file_sync(int fd);

/* fsync of the directory behind DIRFD. */
int dir_sync(int dirfd);

/* Opens the directory NAME in AT for readdir(3), not through a symbolic link; NULL with errno. Its dirfd is a new one. */
DIR *dir_open_at(int at, const char *name);

/* The whole of a regular file of at most MAX bytes, NUL-terminated; the caller frees. -EFBIG when it is larger. */
int file_load(int fd, size_t max, char **ret_text, size_t *ret_len);

/* Whether NAME is one under which file_replace() writes: left only by who was killed in it. */
bool file_is_temporary(const char *name);

/* renameat(2) within DIRFD, but for a failure that is only the answer's (a server was asked twice, say): where TO is what FROM was it was done. */
int file_rename(int dirfd, const char *from, const char *to);

/* Makes NAME in DIRFD hold DATA, atomically and durably: temporary file, sync, rename, directory sync. *RET_UNSURE (may be NULL), set on failure: whether the
 * old or the new data is there, now or after a power cut, nobody knows. */
int file_replace(int dirfd, const char *name, const void *data, size_t len, mode_t mode, bool *ret_unsure);

#endif
