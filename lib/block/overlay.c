/* New overlay files. Layout, in clusters: 0 header, 1 refcount table, 2 first refcount block, 3 L1 table. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/head.h"
#include "block/qcow2_format.h"
#include "block/qcow2_header.h"

#define CLUSTER_BITS 17u
#define CLUSTER_SIZE (1u << CLUSTER_BITS)
#define HEADER_BYTES 4096u /* what of the first cluster is written */

static struct qcow2_header new_header(const struct overlay_spec *spec)
{
	struct qcow2_header h = {
		.version = 3,
		.virtual_size = spec->virtual_size,
		.l1_offset = 3 * CLUSTER_SIZE,
		.reftable_offset = CLUSTER_SIZE,
		.reftable_clusters = 1,
		.refcount_order = 4,
		.incompatible = QCOW2_INCOMPAT_EXTENDED_L2,
		.compatible = QCOW2_COMPAT_LAZY_REFCOUNTS,
		.geo = {.cluster_bits = CLUSTER_BITS, .l2_bits = CLUSTER_BITS - 4, .subcluster_bits = CLUSTER_BITS - 5, .extended_l2 = true},
		.backing_name = (char *)(uintptr_t)spec->backing_name,
		.backing_format = spec->backing_name ? (char *)(uintptr_t)image_format_name(spec->backing_format) : NULL,
	};
	/* A whole cluster of L1 maps 16 TiB: a disk rarely outgrows it, and what isn't used is a hole. */
	h.l1_size = (uint32_t)qcow2_l1_roomy(&h.geo, qcow2_l1_needed(&h.geo, spec->virtual_size));
	return h;
}

static int write_overlay(int fd, const struct overlay_spec *spec)
{
	struct qcow2_header h = new_header(spec);
	if (!h.l1_size)
		return -EFBIG;
	auto_free char *header = calloc(1, HEADER_BYTES);
	if (!header)
		return -ENOMEM;
	int err = qcow2_header_render(&h, header, HEADER_BYTES);
	uint64_t nr_clusters = 3 + (((uint64_t)h.l1_size * 8 + CLUSTER_SIZE - 1) >> CLUSTER_BITS);
	auto_free be16 *refcounts = calloc(nr_clusters, sizeof *refcounts);
	if (!refcounts)
		return -ENOMEM;
	for (uint64_t i = 0; i < nr_clusters; i++)
		refcounts[i] = be16_make(1);
	be64 first_block = be64_make(2 * CLUSTER_SIZE);
	if (!err && ftruncate(fd, (off_t)(nr_clusters << CLUSTER_BITS)) < 0)
		err = -errno;
	if (!err)
		err = file_write(fd, refcounts, nr_clusters * sizeof *refcounts, 2 * CLUSTER_SIZE);
	if (!err)
		err = file_write(fd, &first_block, sizeof first_block, CLUSTER_SIZE);
	if (!err)
		err = file_write(fd, header, HEADER_BYTES, 0);
	if (!err && fsync(fd) < 0)
		err = -errno;
	return err;
}

int overlay_create(int dirfd, const char *name, const struct overlay_spec *spec, mode_t mode)
{
	auto_close int fd = openat(dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
	if (fd < 0)
		return -errno;
	int err = write_overlay(fd, spec);
	if (err)
		unlinkat(dirfd, name, 0);
	return err;
}
