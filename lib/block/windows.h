/* Windows: image files mapped into memory a part at a time, so that the kernel can copy straight from the page cache into a reply.
 *
 * Only what is in the page cache already is given out (cachestat(2): Linux 6.5), and only addresses: who reads them himself would be killed by SIGBUS
 * if the file were cut off meanwhile; a system call gets EFAULT. What is mapped counts as resident memory, so it is bounded, and the window
 * that wasn't used for longest goes first. */
#ifndef BLOCK_WINDOWS_H
#define BLOCK_WINDOWS_H

#include <stddef.h>
#include <stdint.h>

struct windows;
struct window;

int windows_new(size_t max_bytes, struct windows **ret);
void windows_free(struct windows *windows);

/* The address of LEN bytes at OFF of FD, which SERIAL stands for and which end inside the file; NULL: it must be read. RET is given back
 * by windows_put when the bytes are copied. */
const void *windows_get(struct windows *windows, uint64_t serial, int fd, uint64_t off, size_t len, struct window **ret);
void windows_put(struct windows *windows, struct window *window);

/* Lets go of all of SERIAL's: they would keep a deleted file's space. */
void windows_forget(struct windows *windows, uint64_t serial);

#endif
