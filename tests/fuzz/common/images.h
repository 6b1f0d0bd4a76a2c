/* An input that is some image files and what is done with them.
 *
 * Byte 0: which of the formats the first is opened as. Byte 1: how many steps follow, 8 bytes each. The rest are pieces of files: one byte that says of which
 * (0 to 3, also its name), six of its offset, two of its length, and as many bytes; length 0 cuts or stretches the file to the offset. So a sparse image
 * takes few bytes, and what is a table's word in one input is one in its mutants.
 *
 * A target with images can be called otherwise than libFuzzer does:  TARGET pack OUT FILE...  makes an input of files;  TARGET unpack INPUT DIR  the files of
 * an input, for qemu-img to look at. */
#ifndef FUZZ_IMAGES_H
#define FUZZ_IMAGES_H

#include "fuzz.h"

#define NR_FILES  4u
#define NR_STEPS  24u
#define STEP_SIZE 8u

struct images_step {
	unsigned kind;
	uint32_t len;
	uint64_t off; /* 40 bits */
};

struct images {
	unsigned format;
	struct images_step steps[NR_STEPS];
	unsigned nr_steps;
	int fds[NR_FILES];
};

/* Makes the files, in fuzz_dir(); they are the same ones each time. */
void images_make(struct images *images, const uint8_t *data, size_t size);

/* The file that has that name now. */
int images_fd(unsigned file);

/* Writes FILE of the input once more, into FD. */
void images_copy(const uint8_t *data, size_t size, unsigned file, int fd);

/* Besides the files there are, for names to lead astray: "out", a link to a file outside, "here", a link to the directory itself, "loop", one to
 * itself, "d", a directory with a link "up" to "..", and "fifo". */

#endif
