/* What libFuzzer's targets share: the promises that hold whatever the input is.
 *
 * A target calls fuzz_begin() before the library is asked for anything and fuzz_end() when all of it was given back. In between no more memory is
 * taken than was said, nothing is opened outside the directory of the case, no file is read that isn't one of it, and no offset lies
 * outside what a file can have; what breaks a promise ends the process by abort(), with a line that says which.
 * The calls are wrapped at the link: FUZZ_WRAPS in the Makefile. */
#ifndef FUZZ_FUZZ_H
#define FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

/* A promise is broken. */
_Noreturn void fuzz_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
#define FUZZ_CHECK(what) \
	do { \
		if (!(what)) \
			fuzz_fail("%s:%d: %s", __FILE__, __LINE__, #what); \
	} while (0)

/* A directory in memory for the files of a case, made at the first call: below FUZZ_DIR if the environment has it. */
const char *fuzz_dir(void);
int fuzz_dirfd(void);
/* What may be opened and looked at, if that isn't all of the directory. */
void fuzz_trust(const char *trusted);

/* From now on at most MAX_BYTES of memory are taken, at most MAX_READS calls read files and MAX_READ_BYTES are asked of them. */
void fuzz_begin(uint64_t max_bytes, uint64_t max_reads, uint64_t max_read_bytes);
void fuzz_end(void);
/* Begins to count reads again. */
void fuzz_count_anew(void);

/* Not watched. */
ssize_t fuzz_pread(int fd, void *buf, size_t len, uint64_t off);
ssize_t fuzz_pwrite(int fd, const void *buf, size_t len, uint64_t off);

/* A text with a NUL behind it, as long as it is in memory of its own: what reads too far is seen. The caller frees. */
char *fuzz_text(const uint8_t *data, size_t size);

/* Bytes taken one after the other; behind the end: zeros. */
struct fuzz_bytes {
	const uint8_t *at, *end;
};
uint64_t fuzz_take(struct fuzz_bytes *bytes, unsigned nr);

#endif
