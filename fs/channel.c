#include "fs/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fs/kernel.h"
#include "fs/readahead.h"

/* The kernel's connection is one for the process, as is what it has agreed to. */
static struct channel_features features;
static const char *mounted_on;
static _Thread_local int own_fd = -1;
static _Thread_local uint32_t offered, offered2; /* by the INIT that this thread is answering */
static _Thread_local bool answering_init;

const struct channel_features *channel_features(void)
{
	return &features;
}

void channel_use(int fd)
{
	own_fd = fd;
}

static void look_for_init(const void *buf, size_t len)
{
	const struct fuse_in_header *in = buf;
	struct kernel_init_in init = {0};
	if (len < sizeof *in || in->opcode != FUSE_INIT)
		return;
	memcpy(&init, in + 1, len - sizeof *in < sizeof init ? len - sizeof *in : sizeof init);
	offered = init.flags;
	offered2 = init.flags & FUSE_INIT_EXT ? init.flags2 : 0;
	answering_init = true;
}

/* HANDLE_KILLPRIV_V2: without it each small write is preceded by a GETXATTR of security.capability. Set-user-id bits aren't kept here anyway. */
static void complete_init(struct kernel_init_out *out)
{
	out->flags |= offered & (FUSE_HANDLE_KILLPRIV_V2 | FUSE_INIT_EXT);
	if (!(out->flags & FUSE_INIT_EXT))
		return;
	out->flags2 |= offered2 & KERNEL_INIT2_DIRECT_IO_ALLOW_MMAP;
	if (geteuid() == 0)
		out->flags2 |= offered2 & KERNEL_INIT2_PASSTHROUGH;
	if (out->flags2 & KERNEL_INIT2_PASSTHROUGH) {
		out->max_stack_depth = 1; /* the files behind lie on a filesystem that isn't stacked itself */
		features.passthrough = true;
	}
}

static ssize_t reply(int fd, struct iovec *iov, int count, void *userdata)
{
	(void)userdata;
	bool is_init = answering_init && count == 2 && iov[1].iov_len == sizeof(struct kernel_init_out);
	if (is_init) {
		answering_init = false;
		complete_init(iov[1].iov_base);
	}
	ssize_t n = writev(own_fd >= 0 ? own_fd : fd, iov, count);
	if (is_init)
		readahead_raise(mounted_on); /* it counts from now on: the reply has set it */
	return n;
}

/* libfuse wants one; our threads call channel_receive() instead. */
static ssize_t read_blocking(int fd, void *buf, size_t len, void *userdata)
{
	(void)userdata;
	return read(fd, buf, len);
}

int channel_attach(struct fuse_session *session, const char *mount_dir)
{
	static const struct fuse_custom_io io = {.writev = reply, .read = read_blocking};
	mounted_on = mount_dir;
	return fuse_session_custom_io(session, &io, fuse_session_fd(session));
}

int channel_clone(struct fuse_session *session)
{
	int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	uint32_t master = (uint32_t)fuse_session_fd(session);
	if (fd < 0)
		return -errno;
	if (ioctl(fd, FUSE_DEV_IOC_CLONE, &master) < 0) {
		int err = -errno;
		close(fd);
		return err;
	}
	return fd;
}

ssize_t channel_receive(int fd, void *buf, size_t cap)
{
	ssize_t n = read(fd, buf, cap);
	if (n > 0) {
		look_for_init(buf, (size_t)n);
		return n;
	}
	/* ENOENT: the request was interrupted before it was read. */
	if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOENT))
		return 0;
	/* ECONNABORTED: the unmount came while a request (nobody waits for it) was on its way here. */
	return n == 0 || errno == ECONNABORTED ? -ENODEV : -errno;
}

/* --- requests that are held up ---------------------------------------------------------------------------------------------- */

static bool only_looks(const struct fuse_in_header *in, size_t len)
{
	struct fuse_open_in open_in = {0};
	switch (in->opcode) {
	case FUSE_LOOKUP:
	case FUSE_GETATTR:
	case FUSE_READLINK:
	case FUSE_READ:
	case FUSE_STATFS:
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_OPENDIR:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_ACCESS:
	case FUSE_LSEEK:
		return true;
	case FUSE_OPEN:
		if (len < sizeof *in + sizeof open_in)
			return false;
		memcpy(&open_in, in + 1, sizeof open_in);
		return (open_in.flags & O_ACCMODE) == O_RDONLY && !(open_in.flags & O_TRUNC);
	}
	return false;
}

struct channel_request channel_look(const void *buf, size_t len)
{
	const struct fuse_in_header *in = buf;
	if (len < sizeof *in)
		return (struct channel_request){0};
	return (struct channel_request){
		.unique = in->unique,
		.caller = (pid_t)in->pid,
		.is_interrupt = in->opcode == FUSE_INTERRUPT,
		.only_looks = only_looks(in, len),
	};
}

void channel_answer_interrupted(int fd, uint64_t unique)
{
	struct fuse_out_header out = {.len = sizeof out, .error = -EINTR, .unique = unique};
	if (write(fd, &out, sizeof out) < 0)
		return; /* it has been answered meanwhile */
}
