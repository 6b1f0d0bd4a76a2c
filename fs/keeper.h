/* The process that keeps the privileges which the daemon gives up: it hands files to the kernel to be read without us (passthrough.h, for
 * which the kernel wants CAP_SYS_ADMIN), and unmounts at the end (the same, or fusermount3, which is set-user-id). It looks at nothing that comes
 * from an image, and does nothing else. It ends with the daemon, whose mount it leaves alone unless it is told to unmount: a mount whose daemon
 * was killed says so.
 *
 * Its requests are served one after the other; from any thread. */
#ifndef FS_KEEPER_H
#define FS_KEEPER_H

/* While there is one thread. SESSION_FD is the connection to the kernel of what is mounted on MOUNT_DIR; borrowed, as both are. */
int keeper_start(int session_fd, const char *mount_dir);

/* Registers the file behind FD for passthrough: its number, 1 or more. -EPERM: the kernel doesn't let us. -EOPNOTSUPP, -ELOOP: not on this
 * filesystem. */
int keeper_backing_open(int fd);
void keeper_backing_close(int id);

/* When nobody serves any more: whoever waits for an answer gets an error, what isn't unmounted yet is unmounted (nothing else that lies on the mount
 * point by then), and the process ends. -ESRCH: there is none. */
int keeper_stop(void);

#endif
