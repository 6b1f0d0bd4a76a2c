#include "block/share.h"

#include <errno.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

void share_part(const struct extent *e, uint64_t off, uint64_t block_size, uint64_t *ret_skip, uint64_t *ret_len)
{
	uint64_t mask = block_size - 1;
	*ret_skip = -off & mask;
	*ret_len = ((off ^ e->host_off) & mask) || *ret_skip >= e->len ? 0 : (e->len - *ret_skip) & ~mask;
}

int share_blocks(int fd, const struct extent *e, uint64_t skip, uint64_t len, uint64_t off)
{
	struct file_clone_range range = {
		.src_fd = extent_fd(e), .src_offset = e->host_off + skip, .src_length = len, .dest_offset = off};
	if (ioctl(fd, FICLONERANGE, &range) == 0)
		return 0;
	switch (errno) {
	case EOPNOTSUPP:
	case ENOTTY:
	case ENOSYS: return -EOPNOTSUPP;
	case EXDEV:
	case EIO:
	case ENOSPC:
	case EDQUOT:
	case ENOMEM:
	case EFBIG: return -errno;
	}
	return SHARE_COPY; /* the cluster ends beyond the file's end, say */
}
