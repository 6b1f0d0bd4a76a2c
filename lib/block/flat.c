#include "block/flat.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "block/image_priv.h"
#include "block/share.h"

#define COPY_BYTES (1u << 20)

struct making {
	struct view *view;
	int fd;
	uint64_t block_size;
	uint64_t copy_left; /* bytes */
	bool has_shared;
	char *buf;
};

int flat_find(const struct view *view)
{
	if (view_depth(view) != 1 || view_snapshot(view))
		return -1;
	const struct image *image = view_layer(view, 0);
	bool whole = image_format(image) == IMAGE_RAW && S_ISREG(image->st.st_mode) &&
		     (uint64_t)image->st.st_size == view_virtual_size(view);
	return whole ? image->fd : -1;
}

static int copy(struct making *m, uint64_t off, uint64_t len)
{
	if (len > m->copy_left)
		return -EOPNOTSUPP;
	m->copy_left -= len;
	while (len) {
		size_t n = len < COPY_BYTES ? (size_t)len : COPY_BYTES;
		int err = view_read(m->view, m->buf, n, off);
		if (!err)
			err = file_write(m->fd, m->buf, n, off);
		if (err)
			return err;
		off += n;
		len -= n;
	}
	return 0;
}

/* Where one image lies elsewhere its bytes are copied; where the first one does, it's of no use. */
static int share(struct making *m, const struct extent *e, uint64_t skip, uint64_t len)
{
	int err = share_blocks(m->fd, e, skip, len, e->guest_off + skip);
	if (!err)
		m->has_shared = true;
	if (err == -EXDEV || err == -EOPNOTSUPP)
		err = m->has_shared ? SHARE_COPY : -EOPNOTSUPP;
	return err;
}

static int add_data(struct making *m, const struct extent *e)
{
	uint64_t skip = 0, len = 0;
	share_part(e, e->guest_off, m->block_size, &skip, &len);
	int err = len ? share(m, e, skip, len) : SHARE_COPY;
	if (err == SHARE_COPY)
		return copy(m, e->guest_off, e->len);
	if (!err && skip)
		err = copy(m, e->guest_off, skip);
	if (!err && skip + len < e->len)
		err = copy(m, e->guest_off + skip + len, e->len - skip - len);
	return err;
}

static int add_extent(struct making *m, const struct extent *e)
{
	switch (e->kind) {
	case EXTENT_DATA: return add_data(m, e);
	case EXTENT_COMPRESSED: return copy(m, e->guest_off, e->len);
	case EXTENT_ZERO:
	case EXTENT_UNALLOCATED: return 0;
	}
	return -EINVAL;
}

static int add_all(struct making *m, const atomic_bool *stop)
{
	struct extent run = {.kind = EXTENT_ZERO};
	uint64_t end = view_virtual_size(m->view);
	for (uint64_t off = 0; off < end;) {
		struct extent e = {0};
		int err = atomic_load(stop) ? -EINTR : view_map(m->view, off, end - off, &e);
		if (!err && extent_continues(&run, &e)) {
			run.len += e.len;
		} else if (!err) {
			err = add_extent(m, &run);
			run = e;
		}
		if (err)
			return err;
		off += e.len;
	}
	return add_extent(m, &run);
}

int flat_make(struct view *view, int dirfd, uint64_t max_copy_bytes, const atomic_bool *stop, int *ret_fd)
{
	struct statvfs vfs;
	auto_close int fd = openat(dirfd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return errno == EISDIR || errno == ENOENT ? -EOPNOTSUPP : -errno; /* a filesystem without unnamed files */
	if (fstatvfs(fd, &vfs) < 0 || ftruncate(fd, (off_t)view_virtual_size(view)) < 0)
		return -errno;
	auto_free char *buf = malloc(COPY_BYTES);
	if (!buf)
		return -ENOMEM;
	struct making m = {.view = view, .fd = fd, .block_size = vfs.f_bsize, .copy_left = max_copy_bytes, .buf = buf};
	int err = add_all(&m, stop);
	if (!err)
		err = view_check(view);
	if (!err)
		*ret_fd = take_fd(&fd);
	return err;
}
