/* Raw files and block devices: where they have bytes, and zeros without writing them. */
#ifndef BLOCK_RAW_H
#define BLOCK_RAW_H

#include <stdbool.h>
#include <stdint.h>

#include "block/view.h"

/* The first extent at OFF: holes read as zeros, and so does what lies behind the end. RET's image is NULL. */
void raw_map(int fd, uint64_t off, uint64_t len, struct extent *ret);

/* Makes [OFF, +LEN) zeros: holes in a file, and in a device what it calls zeros without keeping them, or else zeros as any data. */
int raw_zero(int fd, bool is_device, uint64_t off, uint64_t len);

/* Writes zeros as any data. */
int raw_write_zeros(int fd, uint64_t off, uint64_t len);

#endif
