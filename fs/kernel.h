/* What the kernel's FUSE protocol has and libfuse 3.14 doesn't (include/uapi/linux/fuse.h of Linux 6.9, minor version 40). Older kernels
 * don't offer it, and then it isn't used. */
#ifndef FS_KERNEL_H
#define FS_KERNEL_H

#include <linux/fuse.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* INIT flags from bit 32 on, as they stand in flags2. */
#define KERNEL_INIT2_DIRECT_IO_ALLOW_MMAP (1u << 4)
#define KERNEL_INIT2_PASSTHROUGH	  (1u << 5)

/* OPEN reply flag: reads and writes go to the file behind backing_id. */
#define KERNEL_FOPEN_PASSTHROUGH (1u << 7)

struct kernel_init_in {
	uint32_t major, minor, max_readahead, flags, flags2, unused[11];
};

struct kernel_init_out {
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran;
	uint16_t max_pages, map_alignment;
	uint32_t flags2, max_stack_depth;
	uint16_t request_timeout, unused[11];
};
_Static_assert(sizeof(struct kernel_init_out) == 64, "as the protocol has it");

struct kernel_open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

struct kernel_backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};

#define KERNEL_IOC_BACKING_OPEN	 _IOW(FUSE_DEV_IOC_MAGIC, 1, struct kernel_backing_map)
#define KERNEL_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)

#endif
