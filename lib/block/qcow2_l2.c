#include "block/qcow2_l2.h"

#include <errno.h>

#include "block/qcow2_format.h"

struct qcow2_l2_entry qcow2_l2_get(const struct qcow2_geometry *geo, const be64 *words, size_t index)
{
	if (!geo->extended_l2)
		return (struct qcow2_l2_entry){.entry = be64_get(words[index])};
	return (struct qcow2_l2_entry){.entry = be64_get(words[2 * index]), .bitmap = be64_get(words[2 * index + 1])};
}

/* Specification, "Compressed Clusters Descriptor": the bits below X are the offset, those above it count further sectors. */
static int compressed_extent(const struct qcow2_geometry *geo, uint64_t entry, struct extent *e)
{
	if (geo->has_data_file)
		return -EUCLEAN;
	unsigned x = 62 - (geo->cluster_bits - 8);
	uint64_t sectors = (entry & (QCOW2_COMPRESSED - 1)) >> x;
	e->kind = EXTENT_COMPRESSED;
	e->host_off = entry & ((1ull << x) - 1);
	e->host_len = (uint32_t)((sectors + 1) * 512 - (e->host_off & 511));
	return e->host_off < QCOW2_MAX_OFFSET ? 0 : -EUCLEAN;
}

/* Specification, "Standard Cluster Descriptor": with an external data file, offset 0 is a valid place, told by COPIED. */
static bool has_host_cluster(const struct qcow2_geometry *geo, uint64_t entry)
{
	return (entry & QCOW2_OFFSET_MASK) || (geo->has_data_file && (entry & QCOW2_COPIED));
}

static int check_host_off(const struct qcow2_geometry *geo, uint64_t entry)
{
	return (entry & QCOW2_OFFSET_MASK) & (qcow2_cluster_size(geo) - 1) ? -EUCLEAN : 0;
}

static int plain_kind(const struct qcow2_geometry *geo, uint64_t entry, struct extent *e)
{
	if (entry & QCOW2_ZERO) {
		e->kind = EXTENT_ZERO;
	} else if (has_host_cluster(geo, entry)) {
		e->kind = EXTENT_DATA;
		e->host_off = entry & QCOW2_OFFSET_MASK;
	} else {
		e->kind = EXTENT_UNALLOCATED;
	}
	return check_host_off(geo, entry);
}

/* The kind of subcluster SC and how many from it on (up to the cluster's end) are alike. */
static int subcluster_kind(const struct qcow2_geometry *geo, struct qcow2_l2_entry l2, unsigned sc, struct extent *e,
			   unsigned *ret_nr)
{
	uint32_t allocated = (uint32_t)l2.bitmap, zero = (uint32_t)(l2.bitmap >> 32);
	bool hosted = has_host_cluster(geo, l2.entry);
	if ((allocated & zero) || (allocated && !hosted))
		return -EUCLEAN;
	uint32_t bit = 1u << sc;
	uint32_t same = allocated & bit ? allocated : zero & bit ? zero : ~(allocated | zero);
	e->kind = allocated & bit ? EXTENT_DATA : zero & bit ? EXTENT_ZERO : EXTENT_UNALLOCATED;
	uint32_t differ = ~same >> sc;
	unsigned run = differ ? (unsigned)__builtin_ctz(differ) : QCOW2_SUBCLUSTERS;
	*ret_nr = run < QCOW2_SUBCLUSTERS - sc ? run : QCOW2_SUBCLUSTERS - sc;
	e->host_off = l2.entry & QCOW2_OFFSET_MASK;
	return check_host_off(geo, l2.entry);
}

/* The run inside one cluster from OFF_IN on; data: host_off is the cluster's. */
static int cluster_run(const struct qcow2_geometry *geo, struct qcow2_l2_entry l2, uint64_t off_in, struct extent *e)
{
	uint64_t cluster_size = qcow2_cluster_size(geo);
	if (l2.entry & QCOW2_COMPRESSED) {
		e->len = cluster_size - off_in;
		return compressed_extent(geo, l2.entry, e);
	}
	if (!geo->extended_l2) {
		e->len = cluster_size - off_in;
		return plain_kind(geo, l2.entry, e);
	}
	unsigned sc = (unsigned)(off_in >> geo->subcluster_bits);
	unsigned nr = 0;
	int err = subcluster_kind(geo, l2, sc, e, &nr);
	e->len = ((uint64_t)(sc + nr) << geo->subcluster_bits) - off_in;
	return err;
}

int qcow2_l2_run(const struct qcow2_geometry *geo, const be64 *words, size_t nr, uint64_t off_in, struct extent *ret)
{
	uint64_t cluster_size = qcow2_cluster_size(geo);
	struct extent run = {0};
	int err = cluster_run(geo, qcow2_l2_get(geo, words, 0), off_in, &run);
	if (err)
		return err;
	if (run.kind == EXTENT_COMPRESSED) {
		run.cluster_off = (uint32_t)off_in;
		*ret = run;
		return 0;
	}
	uint64_t host_cluster = run.host_off;
	bool whole = off_in + run.len == cluster_size;
	for (size_t i = 1; i < nr && whole; i++) {
		struct extent next = {0};
		/* A damaged entry ends the run; whoever reads on meets it. */
		if (cluster_run(geo, qcow2_l2_get(geo, words, i), 0, &next) < 0 || next.kind != run.kind)
			break;
		if (run.kind == EXTENT_DATA && next.host_off != host_cluster + i * cluster_size)
			break;
		run.len += next.len;
		whole = next.len == cluster_size;
	}
	run.host_off = run.kind == EXTENT_DATA ? host_cluster + off_in : 0;
	*ret = run;
	return 0;
}
