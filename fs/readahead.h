/* How far the kernel reads ahead in files of the mount: 128 KiB unless root says more. */
#ifndef FS_READAHEAD_H
#define FS_READAHEAD_H

/* Raises it for the mount on MOUNT_DIR, where that is allowed. */
void readahead_raise(const char *mount_dir);

#endif
