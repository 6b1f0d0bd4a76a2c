/* Makes the images of scripts/bench, fast: qemu-img would take minutes for a chain of 512.
 *
 *	images flat FILE MIB [text]           what the disk holds: noise, or something that compresses to less than half
 *	images chain DIR MIB DEPTH PERCENT    the same bytes as DIR/l000.qcow2 (the base) ... and DIR/top.qcow2, empty, on the last
 *	images giant FILE GIB                 a fully mapped disk with no data below it
 *
 * The layers of a chain have clusters of 64 KiB. Each cluster that the disk holds (PERCENT of them, in runs of 16; the rest was
 * never written) was last written by one layer, thrown for each cluster: so at depth 64 neighbours lie in different files, and QEMU
 * asks half of the layers on average. Layers below it hold it too where they are the base or lose a throw of 1 in 8: overwritten
 * data, that nobody can read, a hole in their files. Within a file clusters lie in the guest's order.
 * The clusters of a giant lie in no order at all, so that no two neighbours are one extent. */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLUSTER_BITS 16
#define CLUSTER (1u << CLUSTER_BITS)
#define L2_ENTRIES (CLUSTER / 8)
#define REFBLOCK_ENTRIES (CLUSTER / 2)
#define COPIED (UINT64_C(1) << 63)
#define RUN 16
#define STALE_ONE_IN 8

static void die(const char *what)
{
	fprintf(stderr, "images: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *alloc(size_t len)
{
	void *p = calloc(1, len ? len : 1);
	if (!p)
		die("memory");
	return p;
}

static void write_at(int fd, const void *buf, size_t len, uint64_t off)
{
	for (const char *p = buf; len > 0;) {
		ssize_t n = pwrite(fd, p, len, (off_t)off);
		if (n <= 0)
			die("write");
		p += n;
		len -= (size_t)n;
		off += (uint64_t)n;
	}
}

/* Pages that are all zero stay holes: the tables of 512 layers would fill the memory otherwise. */
static void write_sparse(int fd, const void *buf, size_t len, uint64_t off)
{
	static const char zeros[4096];
	for (size_t done = 0; done < len; done += sizeof zeros) {
		size_t piece = len - done < sizeof zeros ? len - done : sizeof zeros;
		if (memcmp((const char *)buf + done, zeros, piece))
			write_at(fd, (const char *)buf + done, piece, off + done);
	}
}

static int create(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		die(path);
	return fd;
}

static uint64_t mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static void fill_noise(uint64_t *buf, uint64_t cluster)
{
	for (unsigned i = 0; i < CLUSTER / 8; i++)
		buf[i] = mix(cluster * (CLUSTER / 8) + i);
}

/* Half of the pieces of 32 bytes are repetitions, the others letters of 4 bits. */
static void fill_text(uint64_t *buf, uint64_t cluster)
{
	for (unsigned piece = 0; piece < CLUSTER / 32; piece++) {
		uint64_t dice = mix(~(cluster * (CLUSTER / 32) + piece));
		if (piece > 0 && (dice & 1)) {
			memcpy(buf + piece * 4, buf + (dice >> 8) % piece * 4, 32);
			continue;
		}
		for (unsigned i = 0; i < 4; i++)
			buf[piece * 4 + i] = (mix(dice + i) & UINT64_C(0x0f0f0f0f0f0f0f0f)) + UINT64_C(0x6161616161616161);
	}
}

static void make_flat(const char *path, uint64_t nr_clusters, bool text)
{
	uint64_t *buf = alloc(CLUSTER);
	int fd = create(path);
	for (uint64_t i = 0; i < nr_clusters; i++) {
		(text ? fill_text : fill_noise)(buf, i);
		write_at(fd, buf, CLUSTER, i * CLUSTER);
	}
	close(fd);
	free(buf);
}

/* --- qcow2 -------------------------------------------------------------------------------------------------------------- */

static uint64_t div_up(uint64_t a, uint64_t b)
{
	return (a + b - 1) / b;
}

/* Where things lie in an image: header, refcount table, refcount blocks, L1, L2 tables, data, with nothing between. */
struct layout {
	uint64_t nr_guest, nr_data, nr_l2, nr_l1_clusters, nr_refblocks, nr_reftable_clusters, nr_all;
	uint64_t reftable, refblocks, l1, l2, data; /* as cluster numbers */
};

static struct layout lay_out(uint64_t nr_guest, uint64_t nr_data)
{
	struct layout lay = {.nr_guest = nr_guest, .nr_data = nr_data};
	lay.nr_l2 = nr_data > 0 ? div_up(nr_guest, L2_ENTRIES) : 0;
	lay.nr_l1_clusters = div_up(div_up(nr_guest, L2_ENTRIES) * 8, CLUSTER);
	uint64_t rest = 1 + lay.nr_l1_clusters + lay.nr_l2 + nr_data;
	for (;;) {
		lay.nr_all = rest + lay.nr_reftable_clusters + lay.nr_refblocks;
		uint64_t blocks = div_up(lay.nr_all, REFBLOCK_ENTRIES), tables = div_up(blocks * 8, CLUSTER);
		if (blocks == lay.nr_refblocks && tables == lay.nr_reftable_clusters)
			break;
		lay.nr_refblocks = blocks;
		lay.nr_reftable_clusters = tables;
	}
	lay.reftable = 1;
	lay.refblocks = lay.reftable + lay.nr_reftable_clusters;
	lay.l1 = lay.refblocks + lay.nr_refblocks;
	lay.l2 = lay.l1 + lay.nr_l1_clusters;
	lay.data = lay.l2 + lay.nr_l2;
	return lay;
}

static void put32(unsigned char *p, uint32_t value)
{
	uint32_t be = htobe32(value);
	memcpy(p, &be, sizeof be);
}

static void put64(unsigned char *p, uint64_t value)
{
	uint64_t be = htobe64(value);
	memcpy(p, &be, sizeof be);
}

static void write_header(int fd, const struct layout *lay, const char *backing)
{
	unsigned char header[4096] = {0};
	memcpy(header, "QFI\xfb", 4);
	put32(header + 4, 3);
	put32(header + 20, CLUSTER_BITS);
	put64(header + 24, lay->nr_guest * CLUSTER);
	put32(header + 36, (uint32_t)div_up(lay->nr_guest, L2_ENTRIES));
	put64(header + 40, lay->l1 * CLUSTER);
	put64(header + 48, lay->reftable * CLUSTER);
	put32(header + 56, (uint32_t)lay->nr_reftable_clusters);
	put32(header + 96, 4);   /* refcounts of 16 bits */
	put32(header + 100, 104); /* the header's length */
	if (backing) {
		put32(header + 104, UINT32_C(0xe2792aca)); /* the backing file's format */
		put32(header + 108, 5);
		memcpy(header + 112, "qcow2", 5);
		put64(header + 8, 256);
		put32(header + 16, (uint32_t)strlen(backing));
		memcpy(header + 256, backing, strlen(backing));
	}
	write_at(fd, header, sizeof header, 0);
}

static void write_tables(int fd, const struct layout *lay, const uint64_t *l2)
{
	uint64_t *reftable = alloc(lay->nr_reftable_clusters * CLUSTER);
	uint16_t *refblocks = alloc(lay->nr_refblocks * CLUSTER);
	uint64_t *l1 = alloc(lay->nr_l1_clusters * CLUSTER);
	for (uint64_t i = 0; i < lay->nr_refblocks; i++)
		reftable[i] = htobe64((lay->refblocks + i) * CLUSTER);
	for (uint64_t i = 0; i < lay->nr_all; i++)
		refblocks[i] = htobe16(1);
	for (uint64_t i = 0; i < lay->nr_l2; i++)
		l1[i] = htobe64(((lay->l2 + i) * CLUSTER) | COPIED);
	write_sparse(fd, reftable, lay->nr_reftable_clusters * CLUSTER, lay->reftable * CLUSTER);
	write_sparse(fd, refblocks, lay->nr_refblocks * CLUSTER, lay->refblocks * CLUSTER);
	write_sparse(fd, l1, lay->nr_l1_clusters * CLUSTER, lay->l1 * CLUSTER);
	write_sparse(fd, l2, lay->nr_l2 * CLUSTER, lay->l2 * CLUSTER);
	if (ftruncate(fd, (off_t)(lay->nr_all * CLUSTER)) < 0)
		die("truncate");
	free(reftable);
	free(refblocks);
	free(l1);
}

/* --- a chain ------------------------------------------------------------------------------------------------------------ */

struct chain {
	const char *dir;
	uint64_t nr_guest;
	unsigned depth, percent;
};

static bool is_written(const struct chain *chain, uint64_t cluster)
{
	return mix(cluster / RUN) % 100 < chain->percent;
}

static unsigned owner_of(const struct chain *chain, uint64_t cluster)
{
	return (unsigned)(mix(cluster * 3 + 1) % chain->depth);
}

static bool holds(const struct chain *chain, unsigned layer, uint64_t cluster)
{
	if (!is_written(chain, cluster))
		return false;
	unsigned owner = owner_of(chain, cluster);
	return layer == owner || (layer < owner && (layer == 0 || mix((cluster << 16) + layer) % STALE_ONE_IN == 0));
}

static void make_layer(const struct chain *chain, unsigned layer)
{
	char path[4096], backing[32];
	uint64_t nr_data = 0, *buf = alloc(CLUSTER);
	snprintf(path, sizeof path, "%s/l%03u.qcow2", chain->dir, layer);
	if (layer > 0)
		snprintf(backing, sizeof backing, "l%03u.qcow2", layer - 1);
	for (uint64_t i = 0; i < chain->nr_guest; i++)
		nr_data += holds(chain, layer, i);
	struct layout lay = lay_out(chain->nr_guest, nr_data);
	uint64_t *l2 = alloc(lay.nr_l2 * CLUSTER), next = lay.data;
	int fd = create(path);
	for (uint64_t i = 0; i < chain->nr_guest; i++) {
		if (!holds(chain, layer, i))
			continue;
		if (owner_of(chain, i) == layer) {
			fill_noise(buf, i);
			write_at(fd, buf, CLUSTER, next * CLUSTER);
		}
		l2[i] = htobe64((next++ * CLUSTER) | COPIED);
	}
	write_header(fd, &lay, layer > 0 ? backing : NULL);
	write_tables(fd, &lay, l2);
	close(fd);
	free(l2);
	free(buf);
}

static void make_top(const struct chain *chain)
{
	char path[4096], backing[32];
	snprintf(path, sizeof path, "%s/top.qcow2", chain->dir);
	snprintf(backing, sizeof backing, "l%03u.qcow2", chain->depth - 1);
	struct layout lay = lay_out(chain->nr_guest, 0);
	int fd = create(path);
	write_header(fd, &lay, backing);
	write_tables(fd, &lay, NULL);
	close(fd);
}

static void make_giant(const char *path, uint64_t nr_guest)
{
	struct layout lay = lay_out(nr_guest, nr_guest);
	uint64_t *l2 = alloc(lay.nr_l2 * CLUSTER);
	int fd = create(path);
	/* An odd factor permutes the numbers below a power of two. */
	for (uint64_t i = 0; i < nr_guest; i++)
		l2[i] = htobe64((lay.data + (i * UINT64_C(0x9e3779b1)) % nr_guest) * CLUSTER | COPIED);
	write_header(fd, &lay, NULL);
	write_tables(fd, &lay, l2);
	close(fd);
	free(l2);
}

static uint64_t number(const char *word)
{
	return strtoull(word, NULL, 10);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	if (!strcmp(what, "flat") && (argc == 4 || argc == 5)) {
		make_flat(argv[2], number(argv[3]) << 20 >> CLUSTER_BITS, argc == 5);
		return 0;
	}
	if (!strcmp(what, "giant") && argc == 4 && !(number(argv[3]) & (number(argv[3]) - 1))) {
		make_giant(argv[2], number(argv[3]) << 30 >> CLUSTER_BITS);
		return 0;
	}
	if (!strcmp(what, "chain") && argc == 6 && number(argv[4]) > 0) {
		struct chain chain = {argv[2], number(argv[3]) << 20 >> CLUSTER_BITS, (unsigned)number(argv[4]), (unsigned)number(argv[5])};
		for (unsigned layer = 0; layer < chain.depth; layer++)
			make_layer(&chain, layer);
		make_top(&chain);
		return 0;
	}
	fputs("usage: images flat FILE MIB [text] | chain DIR MIB DEPTH PERCENT | giant FILE GIB\n", stderr);
	return 2;
}
