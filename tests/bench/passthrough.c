/* The least that a FUSE filesystem can do: one flat file, named `disk` in the root of the mount, served by pread and pwrite. What
 * it reaches in scripts/bench is the limit of FUSE on this machine, with which vmsnapfs is compared.
 *
 *	passthrough [-t THREADS] [-p] FILE MOUNTPOINT
 *
 * -t N  so many threads, each with a /dev/fuse of its own (clone_fd); without it a single one, which has no lock to take
 * -p    replies by splice instead of a copy
 * It stays in the foreground until it is unmounted. */
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DISK_INO 2
#define DISK_NAME "disk"
#define MAX_REQUEST (1u << 20) /* what vmsnapfs asks for, too */
#define MAX_BACKGROUND 64
#define FOR_EVER 3600.0

struct passthrough {
	int fd;
	int splice;
	uint64_t virtual_size;
};

static void fill_attr(const struct passthrough *pt, fuse_ino_t ino, struct stat *st)
{
	memset(st, 0, sizeof *st);
	st->st_ino = ino;
	st->st_nlink = 1;
	st->st_uid = getuid();
	st->st_gid = getgid();
	st->st_mode = ino == DISK_INO ? S_IFREG | 0600 : S_IFDIR | 0700;
	st->st_size = ino == DISK_INO ? (off_t)pt->virtual_size : 0;
	st->st_blocks = st->st_size / 512;
}

static void pt_init(void *userdata, struct fuse_conn_info *conn)
{
	const struct passthrough *pt = userdata;
	conn->max_write = MAX_REQUEST;
	conn->max_background = MAX_BACKGROUND;
	conn->congestion_threshold = MAX_BACKGROUND * 3 / 4;
	conn->want |= conn->capable & (FUSE_CAP_ASYNC_DIO | FUSE_CAP_ASYNC_READ);
	conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_AUTO_INVAL_DATA);
	if (pt->splice)
		conn->want |= conn->capable & (FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
}

static void pt_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param e = {.ino = DISK_INO, .attr_timeout = FOR_EVER, .entry_timeout = FOR_EVER};
	if (parent != FUSE_ROOT_ID || strcmp(name, DISK_NAME)) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	fill_attr(fuse_req_userdata(req), DISK_INO, &e.attr);
	fuse_reply_entry(req, &e);
}

static void pt_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;
	(void)fi;
	fill_attr(fuse_req_userdata(req), ino, &st);
	fuse_reply_attr(req, &st, FOR_EVER);
}

static void pt_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (ino != DISK_INO) {
		fuse_reply_err(req, EISDIR);
		return;
	}
	fi->keep_cache = 1;
	fi->noflush = 1;
	fuse_reply_open(req, fi);
}

static void pt_read(fuse_req_t req, fuse_ino_t ino, size_t len, off_t off, struct fuse_file_info *fi)
{
	static __thread char *buf; /* the same memory for each request: warm in the CPU's cache */
	const struct passthrough *pt = fuse_req_userdata(req);
	(void)ino;
	(void)fi;
	if (pt->splice) {
		struct fuse_bufvec vec = FUSE_BUFVEC_INIT(len);
		vec.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
		vec.buf[0].fd = pt->fd;
		vec.buf[0].pos = off;
		fuse_reply_data(req, &vec, FUSE_BUF_SPLICE_MOVE);
		return;
	}
	if (!buf && posix_memalign((void **)&buf, 4096, MAX_REQUEST)) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	ssize_t n = pread(pt->fd, buf, len < MAX_REQUEST ? len : MAX_REQUEST, off);
	if (n < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_buf(req, buf, (size_t)n);
}

static void pt_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t len, off_t off, struct fuse_file_info *fi)
{
	const struct passthrough *pt = fuse_req_userdata(req);
	(void)ino;
	(void)fi;
	ssize_t n = pwrite(pt->fd, buf, len, off);
	if (n < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_write(req, (size_t)n);
}

static void pt_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	const struct passthrough *pt = fuse_req_userdata(req);
	(void)ino;
	(void)datasync;
	(void)fi;
	fuse_reply_err(req, fdatasync(pt->fd) < 0 ? errno : 0);
}

static const struct fuse_lowlevel_ops pt_ops = {
	.init = pt_init,
	.lookup = pt_lookup,
	.getattr = pt_getattr,
	.open = pt_open,
	.read = pt_read,
	.write = pt_write,
	.fsync = pt_fsync,
};

static int usage(void)
{
	fputs("usage: passthrough [-t THREADS] [-p] FILE MOUNTPOINT\n", stderr);
	return 2;
}

static int serve(struct fuse_session *session, unsigned nr_threads)
{
	if (nr_threads == 0)
		return fuse_session_loop(session);
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	if (!config)
		return -ENOMEM;
	fuse_loop_cfg_set_clone_fd(config, 1);
	fuse_loop_cfg_set_max_threads(config, nr_threads);
	fuse_loop_cfg_set_idle_threads(config, nr_threads);
	int err = fuse_session_loop_mt(session, config);
	fuse_loop_cfg_destroy(config);
	return err;
}

static int mount_and_serve(struct passthrough *pt, const char *mountpoint, unsigned nr_threads)
{
	char *argv[] = {"passthrough", "-o", "fsname=passthrough,subtype=passthrough", NULL};
	struct fuse_args args = FUSE_ARGS_INIT(3, argv);
	int err = -1;
	struct fuse_session *session = fuse_session_new(&args, &pt_ops, sizeof pt_ops, pt);
	if (session && fuse_set_signal_handlers(session) == 0) {
		if (fuse_session_mount(session, mountpoint) == 0) {
			err = serve(session, nr_threads);
			fuse_session_unmount(session);
		}
		fuse_remove_signal_handlers(session);
	}
	if (session)
		fuse_session_destroy(session);
	fuse_opt_free_args(&args);
	return err < 0 ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct passthrough pt = {.fd = -1};
	unsigned nr_threads = 0;
	struct stat st;
	int c;

	while ((c = getopt(argc, argv, "t:p")) != -1) {
		if (c == 't')
			nr_threads = (unsigned)strtoul(optarg, NULL, 10);
		else if (c == 'p')
			pt.splice = 1;
		else
			return usage();
	}
	if (argc - optind != 2)
		return usage();
	pt.fd = open(argv[optind], O_RDWR | O_CLOEXEC);
	if (pt.fd < 0 || fstat(pt.fd, &st) < 0) {
		perror(argv[optind]);
		return 1;
	}
	pt.virtual_size = (uint64_t)st.st_size;
	return mount_and_serve(&pt, argv[optind + 1], nr_threads);
}
