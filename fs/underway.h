/* The requests that are being served, one for each thread of the loop, so that one of which the process is killed can be answered by another
 * thread: the kernel lets a process die only with the answer to its request, and the request may wait for a disk that doesn't answer.
 *
 * Only what changes nothing is answered that way (read, look up, open to read, …); its thread finishes it for nobody. And only for a process
 * that ends: of other signals reads take no notice, as on any disk. */
#ifndef FS_UNDERWAY_H
#define FS_UNDERWAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UNDERWAY_MAX 128 /* threads */

struct underway; /* of one thread */

/* FD: where this thread reads and answers. NULL: there are too many, and its requests are just served. */
struct underway *underway_new(int fd);
void underway_free(struct underway *underway);

/* This thread has read the request in BUF. */
void underway_begin(struct underway *underway, const void *buf, size_t len);

/* Before the answer to UNIQUE goes out. False: somebody else has given it. */
bool underway_claim(struct underway *underway, uint64_t unique);

/* The kernel says INTERRUPT for UNIQUE: a signal has come to its process. */
void underway_interrupt(uint64_t unique);

/* The same for those that came with another signal first, or too early: to be called by one thread, each second or so. */
void underway_look_again(void);

#endif
