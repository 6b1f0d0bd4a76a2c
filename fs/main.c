/* vmsnapfs: options, and how the parts are put together. */
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "base/mem.h"
#include "fs/channel.h"
#include "fs/keeper.h"
#include "fs/loop.h"
#include "fs/ops.h"
#include "fs/options.h"
#include "fs/privileges.h"
#include "fs/watch.h"
#include "meta/xml.h"

#define MAX_FLUSH_S  60	 /* when a disk is known not to answer */
#define MAX_ENDING_S 240 /* a disk may be slow, and have much to write; less than a service manager waits */

/* A limit to the size of files is an error of the write, not an end. */
static void refuse_signals(void)
{
	signal(SIGXFSZ, SIG_IGN);
}

/* Every layer of an open chain is a descriptor. */
static void raise_file_limit(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static int fs_init(struct fs *fs, const struct options *options)
{
	*fs = (struct fs){.mount_dir = options->mountpoint};
	clock_gettime(CLOCK_REALTIME, &fs->started);
	int err = events_new(options->foreground, &fs->events);
	err = err ? err : callers_new(&fs->callers);
	err = err ? err : veil_new(&fs->veil);
	err = err ? err : scratch_new(&fs->scratch);
	err = err ? err : sources_new(&fs->sources);
	err = err ? err : handles_new(&fs->handles);
	err = err ? err : page_cache_new(&fs->page_cache);
	err = err ? err : passthrough_new(&fs->passthrough);
	return err ? err : job_numbers_new(&fs->job_numbers);
}

static void fs_done(struct fs *fs)
{
	/* A disk that doesn't answer may keep any of this waiting; what is lost then is what a crash would lose. */
	alarm(MAX_ENDING_S);
	if (fs->handles)
		handles_close_all(fs);
	if (fs->store)
		store_close(fs->store);
	job_numbers_free(fs->job_numbers);
	passthrough_free(fs->passthrough);
	page_cache_free(fs->page_cache);
	handles_free(fs->handles);
	sources_free(fs->sources);
	scratch_free(fs->scratch);
	veil_free(fs->veil);
	callers_free(fs->callers);
	events_free(fs->events);
}

static void report_read_only(struct fs *fs, const struct options *options)
{
	static const char text[] = "no store can be written, so nothing can be cloned. Mount with -o store=DIR";
	events_add(fs->events, NULL, "%s", text);
	if (!options->foreground)
		fprintf(stderr, "vmsnapfs: %s\n", text);
}

static int fs_open_store(struct fs *fs, const struct options *options)
{
	struct reason why = {0};
	struct stat st;
	struct store_config config = {.source_dir = options->source,
				      .store_dir = options->store,
				      .snapshots_dir = options->snapshots,
				      .trust_dirs = (const char *const *)options->trust,
				      .nr_trust_dirs = options->nr_trust,
				      .mountpoint = options->mountpoint,
				      .allow_devices = options->allow_devices,
				      .pools = options->pools,
				      .nr_pools = options->nr_pools,
				      .clone_full = options->clone_full,
				      .read_only = options->read_only,
				      .index_bytes = options->index_bytes,
				      .log = events_sink(fs->events)};
	int err = store_open(&config, &fs->store, &why);
	if (err) {
		fprintf(stderr, "vmsnapfs: %s (%s)\n", *why.text ? why.text : options->source, strerror(-err));
		return err;
	}
	bool writable = store_is_writable(fs->store);
	if (!writable && !options->read_only)
		report_read_only(fs, options);
	if (writable)
		events_open_log(fs->events, store_dirfd(fs->store));
	if ((writable ? fstat(store_dirfd(fs->store), &st) : stat(options->source, &st)) == 0) {
		fs->uid = st.st_uid;
		fs->gid = st.st_gid;
	}
	return 0;
}

/* What libfuse has to say, when nobody sees stderr. */
__attribute__((format(printf, 2, 0))) static void log_of_libfuse(enum fuse_log_level level, const char *fmt, va_list ap)
{
	vsyslog(level <= FUSE_LOG_DEBUG ? (int)level : LOG_DEBUG, fmt, ap); /* its levels are syslog's */
}

static int go_into_background(const struct options *options)
{
	if (fuse_daemonize(options->foreground) < 0)
		return -EINVAL;
	if (!options->foreground)
		fuse_set_log_func(log_of_libfuse);
	return 0;
}

/* Nobody serves any more: the kernel is told, and nobody waits for us. What lies in the place of the connection reports an error, from which
 * libfuse sees that there is nothing left for it to unmount, which it may not. */
static void disconnect(struct fs *fs, struct fuse_session *session)
{
	int ends[2];
	struct pollfd fd = {.fd = fuse_session_fd(session)};
	bool gone = poll(&fd, 1, 0) == 1 && (fd.revents & POLLERR);
	int err = keeper_stop();
	if (err == -ESRCH)
		return;
	if (err && !gone)
		events_add(fs->events, NULL, "%s can't be unmounted (%s): do it by umount or fusermount3 -u, or mount again over it", fs->mount_dir, strerror(-err));
	if (pipe2(ends, O_CLOEXEC) < 0)
		return;
	close(ends[0]);
	dup2(ends[1], fuse_session_fd(session));
	close(ends[1]);
}

/* A disk doesn't answer, and there are threads that wait for it: what they use can't be closed. All else is brought to the disk. */
static void end_without_them(struct fs *fs)
{
	alarm(2 * MAX_FLUSH_S); /* whatever else may wait for it */
	unsigned nr = handles_flush_all(fs, MAX_FLUSH_S);
	events_add(fs->events, NULL, "ending, though a disk doesn't answer that is being read. What was written to others is safe%s",
		   nr ? "; what was written to a disk that is open can't be brought there" : "");
	_exit(1);
}

static int serve(struct fs *fs, struct fuse_session *session, const struct options *options)
{
	sigset_t signals;
	unsigned nr_hanging = 0;
	loop_block_signals(&signals);
	struct watch *watch = NULL;
	int err = keeper_start(fuse_session_fd(session), options->mountpoint);
	if (!err)
		err = privileges_drop();
	if (!err)
		err = store_start(fs->store);
	if (!err)
		err = watch_start(fs, session, &watch);
	if (!err)
		err = loop_run(session, options->max_threads, &signals, &nr_hanging);
	store_say_ending(fs->store);
	disconnect(fs, session);
	if (nr_hanging || !watch_stop(watch))
		end_without_them(fs);
	pthread_sigmask(SIG_SETMASK, &signals, NULL);
	if (err)
		events_add(fs->events, NULL, "serving %s ended: %s", options->mountpoint, strerror(-err));
	return err;
}

/* Whatever can fail fails before the daemon goes into the background. */
static int mount_and_serve(struct fs *fs, struct fuse_session *session, const struct options *options)
{
	int err = fs_open_store(fs, options);
	if (err)
		return err;
	if (fuse_set_signal_handlers(session) < 0)
		return -EINVAL;
	err = fuse_session_mount(session, options->mountpoint) < 0 ? -EINVAL : 0;
	if (!err) {
		err = channel_attach(session, options->mountpoint);
		if (!err)
			err = go_into_background(options);
		if (!err)
			err = serve(fs, session, options);
		fuse_session_unmount(session);
	}
	fuse_remove_signal_handlers(session);
	return err;
}

static int run(struct options *options)
{
	struct fs fs;
	struct fuse_session *session = NULL;
	int err = options_check(options);
	if (err)
		return err;
	raise_file_limit();
	refuse_signals();
	umask(0); /* the modes of new files are those that were asked for, less the caller's umask, which the kernel has taken off */
	xml_init();
	err = fs_init(&fs, options);
	if (!err)
		session = fuse_session_new(&options->args, &ops_table, sizeof ops_table, &fs);
	if (!err)
		err = session ? mount_and_serve(&fs, session, options) : -EINVAL;
	if (session)
		fuse_session_destroy(session);
	fs_done(&fs);
	return err;
}

int main(int argc, char **argv)
{
	struct options options = {0};
	int err = options_parse(argc, argv, &options);
	if (!err && options.show_help)
		options_help();
	else if (!err && options.show_version)
		printf("vmsnapfs %s, libfuse %s\n", VMSNAPFS_VERSION, fuse_pkgversion());
	else if (!err)
		err = run(&options);
	options_done(&options);
	return err ? 1 : 0;
}
