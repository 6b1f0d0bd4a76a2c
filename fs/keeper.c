#include "fs/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "fs/kernel.h"
#include "fs/mountpoint.h"
#include "fs/privileges.h"

enum request_kind {
	REQUEST_BACKING_OPEN, /* a descriptor comes with it */
	REQUEST_BACKING_CLOSE,
	REQUEST_UNMOUNT,
};

struct request {
	enum request_kind kind;
	uint32_t id;
};

/* Of the one keeper that a process has. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* a request and its answer */
static int keeper_fd = -1;
static pid_t keeper_pid = -1;

/* What lies on the mount point, and is to be there still when it is unmounted. */
struct mounted {
	const char *dir;
	unsigned device_major, device_minor;
};

/* Nothing is asked of what is mounted. */
static int mounted_look(const char *dir, struct mounted *ret)
{
	struct statx stx;
	if (statx(AT_FDCWD, dir, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, 0, &stx) < 0)
		return -errno;
	*ret = (struct mounted){.dir = dir, .device_major = stx.stx_dev_major, .device_minor = stx.stx_dev_minor};
	return 0;
}

/* --- the keeper ------------------------------------------------------------------------------------------------------------ */

/* The one descriptor of a message. Others, as many as there was room for, are open here by now. */
static int take_descriptor(struct msghdr *message)
{
	int taken = -1;
	unsigned nr = 0;
	for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t off = 0; CMSG_LEN(off + sizeof(int)) <= header->cmsg_len; off += sizeof(int)) {
			if (taken >= 0)
				close(taken);
			memcpy(&taken, CMSG_DATA(header) + off, sizeof taken);
			nr++;
		}
	}
	if (nr == 1 && !(message->msg_flags & MSG_CTRUNC))
		return taken;
	if (taken >= 0)
		close(taken);
	return -1;
}

static int receive(int sock, struct request *request, int *ret_fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {.iov_base = request, .iov_len = sizeof *request};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t n;
	do
		n = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n != sizeof *request)
		return -EPIPE;
	*ret_fd = take_descriptor(&message);
	return 0;
}

/* Whoever waits for an answer is let go: nobody serves any more. Who has mounted may do that, where the kernel's directory is to be seen. */
static void abort_connection(unsigned number)
{
	char path[64];
	snprintf(path, sizeof path, "/sys/fs/fuse/connections/%u/abort", number);
	auto_close int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "1", 1) < 0)
		return;
}

/* Something else may lie on the mount point by now, when ours has gone already, or lies elsewhere (umount -l). */
static int unmount(int session_fd, const struct mounted *ours)
{
	struct mounted now;
	struct pollfd fd = {.fd = session_fd};
	if (poll(&fd, 1, 0) == 1 && (fd.revents & POLLERR))
		return 0;
	abort_connection(ours->device_minor);
	int err = mounted_look(ours->dir, &now);
	if (err)
		return err;
	if (now.device_major != ours->device_major || now.device_minor != ours->device_minor)
		return 0;
	/* Nor does writing out what is mapped hold it up, with MNT_FORCE. */
	if (umount2(ours->dir, MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		return 0;
	return mountpoint_unmount(ours->dir);
}

static int answer(const struct request *request, int fd, int session_fd, const struct mounted *ours)
{
	struct kernel_backing_map map = {.fd = fd};
	uint32_t id = request->id;
	int ret = -EINVAL;
	switch (request->kind) {
	case REQUEST_BACKING_OPEN: ret = ioctl(session_fd, KERNEL_IOC_BACKING_OPEN, &map); break;
	case REQUEST_BACKING_CLOSE: ret = ioctl(session_fd, KERNEL_IOC_BACKING_CLOSE, &id); break;
	case REQUEST_UNMOUNT: return unmount(session_fd, ours);
	}
	return ret < 0 ? -errno : ret;
}

/* Nothing of the daemon's stays open, least of all what somebody waits for the end of. */
static void close_others(int sock, int session_fd)
{
	int low = sock < session_fd ? sock : session_fd, high = sock < session_fd ? session_fd : sock;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int fd = 0; null >= 0 && fd <= 2; fd++)
		dup2(null, fd);
	if (low > 3)
		close_range(3, (unsigned)low - 1, 0);
	if (high > low + 1)
		close_range((unsigned)low + 1, (unsigned)high - 1, 0);
	close_range((unsigned)high + 1, ~0u, 0);
}

_Noreturn static void keep(int sock, int session_fd, const struct mounted *ours, pid_t daemon)
{
	static const int signals[] = {SIGHUP, SIGINT, SIGTERM};
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
		signal(signals[i], SIG_IGN); /* they are the daemon's, who then asks for the unmount */
	prctl(PR_SET_NAME, "vmsnapfs-keeper");
	/* While this process lives the kernel waits for answers that nobody gives any more. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != daemon || chdir("/") < 0)
		_exit(1);
	close_others(sock, session_fd);
	privileges_keep_for_mounting();
	for (;;) {
		struct request request;
		auto_close int fd = -1;
		if (receive(sock, &request, &fd) < 0)
			_exit(0);
		int ret = answer(&request, fd, session_fd, ours);
		if (send(sock, &ret, sizeof ret, MSG_NOSIGNAL) != sizeof ret)
			_exit(1);
		if (request.kind == REQUEST_UNMOUNT)
			_exit(0); /* what is mounted there later is no business of ours */
	}
}

/* --- the daemon ------------------------------------------------------------------------------------------------------------ */

int keeper_start(int session_fd, const char *mount_dir)
{
	int pair[2];
	pid_t daemon = getpid();
	struct mounted ours;
	int err = mounted_look(mount_dir, &ours);
	if (err)
		return err;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	pid_t pid = fork();
	if (pid == 0)
		keep(pair[1], session_fd, &ours, daemon);
	err = pid < 0 ? -errno : 0;
	close(pair[1]);
	if (err) {
		close(pair[0]);
		return err;
	}
	keeper_fd = pair[0];
	keeper_pid = pid;
	return 0;
}

static int post(const struct request *request, int fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {.iov_base = (void *)(uintptr_t)request, .iov_len = sizeof *request};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	if (fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof control;
		control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
	}
	return sendmsg(keeper_fd, &message, MSG_NOSIGNAL) == sizeof *request ? 0 : -EPERM;
}

static int ask(const struct request *request, int fd)
{
	int ret = -EPERM;
	pthread_mutex_lock(&lock);
	int err = keeper_fd < 0 ? -EPERM : post(request, fd);
	ssize_t n = -1;
	if (!err)
		do
			n = recv(keeper_fd, &ret, sizeof ret, 0);
		while (n < 0 && errno == EINTR);
	pthread_mutex_unlock(&lock);
	return n == sizeof ret ? ret : -EPERM;
}

int keeper_backing_open(int fd)
{
	return ask(&(struct request){.kind = REQUEST_BACKING_OPEN}, fd);
}

void keeper_backing_close(int id)
{
	ask(&(struct request){.kind = REQUEST_BACKING_CLOSE, .id = (uint32_t)id}, -1);
}

int keeper_stop(void)
{
	if (keeper_fd < 0)
		return -ESRCH;
	int err = ask(&(struct request){.kind = REQUEST_UNMOUNT}, -1);
	pthread_mutex_lock(&lock);
	close(keeper_fd);
	keeper_fd = -1;
	pthread_mutex_unlock(&lock);
	waitpid(keeper_pid, NULL, 0);
	return err;
}
