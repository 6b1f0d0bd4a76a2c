/* A slow reader of qcow2 images, as simple as the specification lets it be: a sector at a time, nothing kept but one decompressed cluster. What the
 * library reads must be what it reads. The header is taken at its word: whether it may be is for the library to say, and it has been asked before. */
#ifndef FUZZ_REF_H
#define FUZZ_REF_H

#include "fuzz.h"

#define REF_SECTOR 512u

enum ref_kind { REF_DATA, REF_ZERO, REF_UNALLOCATED, REF_DAMAGED };

/* An image in one of its states. */
struct ref {
	int fd, data_fd; /* the same but with an external data file */
	bool raw;
	uint64_t file_size;
	unsigned cluster_bits;
	bool extended, zstd, external;
	uint64_t l1_offset, virtual_size;
	uint32_t l1_size;
	/* the last compressed cluster */
	uint64_t made_entry;
	bool made, made_good;
	uint8_t *cluster;
};

/* DATA_FD -1: there is none. */
void ref_init(struct ref *ref, int fd, int data_fd, bool raw);
void ref_done(struct ref *ref);

/* The sector at GUEST_OFF, a multiple of 512, of this image alone. BUF is filled for REF_DATA. */
enum ref_kind ref_sector(struct ref *ref, uint64_t guest_off, uint8_t *buf);

/* The same of a chain, top first: data, zeros or damaged. */
enum ref_kind ref_chain_sector(struct ref *refs, size_t nr, uint64_t guest_off, uint8_t *buf);

/* Whether the clusters of the image are each used once, and WITH_REFCOUNTS say just that. For an image without snapshots, of 16 bit refcounts. WHY: in words,
 * why not. */
bool ref_is_whole(const struct ref *ref, bool with_refcounts, char why[200]);

uint64_t ref_be64(int fd, uint64_t off);
uint32_t ref_be32(int fd, uint64_t off);

/* What zlib and zstd themselves make of a compressed cluster, as QEMU calls them. */
bool ref_inflate(const void *in, size_t in_len, void *out, size_t out_len);
bool ref_zstd(const void *in, size_t in_len, void *out, size_t out_len);

#endif
