/* New overlays. Layout, in clusters: 0 header, 1 refcount table, 2 first refcount block (of a device: all of them), then the L1 table. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/head_priv.h"
#include "block/qcow2_format.h"
#include "block/qcow2_header.h"
#include "block/raw.h"

#define CLUSTER_BITS 17u
#define CLUSTER_SIZE (1u << CLUSTER_BITS)
#define HEADER_BYTES 4096u /* what of the first cluster is written */
#define REFS_PER_BLOCK (CLUSTER_SIZE / 2)

/* Where everything lies, in clusters. Of a device all refcount blocks that it will ever need are there: when it is full there is no place for one. */
struct layout {
	uint64_t nr_refblocks, l1, end;
};

static struct qcow2_header new_header(const struct overlay_spec *spec, uint64_t nr_refblocks, struct layout *ret)
{
	struct qcow2_header h = {
		.version = 3,
		.virtual_size = spec->virtual_size,
		.l1_offset = (2 + nr_refblocks) * CLUSTER_SIZE,
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
	ret->nr_refblocks = nr_refblocks;
	ret->l1 = 2 + nr_refblocks;
	ret->end = ret->l1 + (((uint64_t)h.l1_size * 8 + CLUSTER_SIZE - 1) >> CLUSTER_BITS);
	return h;
}

static int write_refcounts(int fd, const struct layout *layout)
{
	auto_free be16 *refcounts = calloc(layout->end, sizeof *refcounts);
	auto_free be64 *blocks = calloc(layout->nr_refblocks, sizeof *blocks);
	if (!refcounts || !blocks)
		return -ENOMEM;
	for (uint64_t i = 0; i < layout->end; i++)
		refcounts[i] = be16_make(1);
	for (uint64_t i = 0; i < layout->nr_refblocks; i++)
		blocks[i] = be64_make((2 + i) * CLUSTER_SIZE);
	int err = file_write(fd, refcounts, layout->end * sizeof *refcounts, 2 * CLUSTER_SIZE);
	return err ? err : file_write(fd, blocks, layout->nr_refblocks * sizeof *blocks, CLUSTER_SIZE);
}

/* Of a device all that isn't written is zeroed first. */
static int write_tables(int fd, const struct layout *layout, bool is_device)
{
	uint64_t len = layout->end << CLUSTER_BITS;
	int err = is_device ? raw_zero(fd, true, 0, len) : ftruncate(fd, (off_t)len) < 0 ? -errno : 0;
	if (!err)
		err = write_refcounts(fd, layout);
	/* The tables are stable before a header says so: a device isn't unlinked after a crash. */
	return !err && is_device ? file_sync(fd) : err;
}

/* DEVICE_SIZE: 0 for a file. */
static int write_overlay(int fd, const struct overlay_spec *spec, uint64_t device_size)
{
	struct layout layout;
	uint64_t nr_clusters = device_size >> CLUSTER_BITS;
	uint64_t nr_refblocks = device_size ? (nr_clusters + REFS_PER_BLOCK - 1) / REFS_PER_BLOCK : 1;
	struct qcow2_header h = new_header(spec, nr_refblocks, &layout);
	if (!h.l1_size || nr_refblocks > CLUSTER_SIZE / sizeof(be64) || layout.end > REFS_PER_BLOCK)
		return -EFBIG;
	if (device_size && layout.end > nr_clusters)
		return -ENOSPC;
	auto_free char *header = calloc(1, HEADER_BYTES);
	if (!header)
		return -ENOMEM;
	int err = qcow2_header_render(&h, header, HEADER_BYTES);
	if (!err)
		err = write_tables(fd, &layout, device_size != 0);
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
	int err = write_overlay(fd, spec, 0);
	if (err)
		unlinkat(dirfd, name, 0);
	return err;
}

int overlay_create_in_device(int dirfd, const char *name, const char *path, const struct overlay_spec *spec, struct reason *why)
{
	struct head *head = NULL;
	int err = head_open_raw(dirfd, name, path, &head, why); /* with the locks of who writes */
	if (err)
		return err;
	if (!head->is_device)
		err = reason_set(why, -ENOTBLK, "%s isn't a block device", path);
	else if ((err = write_overlay(head->fd, spec, head_virtual_size(head))))
		reason_set(why, err, "%s: %s", path, strerror(-err));
	int close_err = head_close(head);
	return err ? err : close_err;
}
