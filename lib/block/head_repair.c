#include <errno.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/head_priv.h"
#include "block/qcow2_format.h"
#include "block/raw.h"

/* What lies at [OFF, +LEN); BUF is a cluster long. Holes stay holes: on a full filesystem there is no space for them. */
static int write_again(const struct head *head, void *buf, uint64_t off, uint64_t len)
{
	const uint64_t buf_size = qcow2_cluster_size(&head->header.geo);
	int err = 0;
	for (struct extent e; len && !err; off += e.len, len -= e.len) {
		raw_map(head->fd, off, len < buf_size ? len : buf_size, &e);
		if (e.kind != EXTENT_DATA)
			continue;
		err = file_read_padded(head->fd, buf, (size_t)e.len, off);
		if (!err)
			err = file_write(head->fd, buf, (size_t)e.len, off);
	}
	return err;
}

int repair_tables(const struct head *head)
{
	const struct qcow2_header *h = &head->header;
	const uint64_t cluster_size = qcow2_cluster_size(&h->geo);
	auto_free void *buf = malloc((size_t)cluster_size);
	int err = buf ? 0 : -ENOMEM;
	for (uint32_t i = 0; i < h->l1_size && !err; i++) {
		uint64_t l2_offset = be64_get(head->l1[i]) & QCOW2_OFFSET_MASK;
		if (l2_offset)
			err = write_again(head, buf, l2_offset, cluster_size);
	}
	if (!err)
		err = write_again(head, buf, h->l1_offset, (uint64_t)h->l1_size * sizeof *head->l1);
	return err ? err : write_again(head, buf, 0, cluster_size);
}
