/* What the daemon can't do any more once it has given it up, and what it still can. */
#include "fs/privileges.c"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <syslog.h>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			printf("%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #what, strerror(errno)); \
			exit(1); \
		} \
	} while (0)

#define CHECK_REFUSED(call) CHECK((errno = 0, (call) < 0) && errno == EPERM)

static void *thread(void *arg)
{
	return arg;
}

static void test_capabilities(bool root)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	CHECK(syscall(SYS_capget, &header, data) == 0);
	CHECK((data[0].permitted & ~(uint32_t)CAPS_OF_DAEMON) == 0 && data[1].permitted == 0);
	CHECK(data[0].permitted == data[0].effective && data[0].inheritable == 0);
	CHECK(root || data[0].permitted == 0);
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
	CHECK(!root || prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0);
}

static void test_calls(void)
{
	char *argv[] = {"true", NULL}, *none[] = {NULL};
	CHECK_REFUSED(execve("/bin/true", argv, none));
	CHECK_REFUSED(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
	CHECK_REFUSED(socket(AF_INET, SOCK_STREAM, 0));
	CHECK_REFUSED(socket(AF_INET6, SOCK_DGRAM, 0));
	CHECK_REFUSED(socket(AF_NETLINK, SOCK_RAW, 0));
	CHECK_REFUSED(unshare(CLONE_NEWUSER));
	CHECK_REFUSED(mount("none", "/mnt", "tmpfs", 0, NULL));
	CHECK_REFUSED(umount2("/nowhere", 0));
	CHECK_REFUSED(syscall(SYS_bpf, 0, NULL, 0));
	CHECK_REFUSED(syscall(SYS_keyctl, 0, 0));
	CHECK_REFUSED(syscall(SYS_setuid, geteuid()));
	CHECK_REFUSED(syscall(SYS_io_uring_setup, 1, NULL));
#if defined __x86_64__
	CHECK_REFUSED(syscall(0x40000000 + 39)); /* getpid of x32 */
#endif
}

static void test_still_works(void)
{
	pthread_t id;
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && close(fd) == 0);
	CHECK(pthread_create(&id, NULL, thread, NULL) == 0 && pthread_join(id, NULL) == 0);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	CHECK(fd >= 0 && close(fd) == 0);
	openlog("vmsnapfs-test", LOG_PID, LOG_DAEMON);
	syslog(LOG_DEBUG, "a line");
}

static int in_child(bool root)
{
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		if (!root && geteuid() == 0)
			CHECK(setgid(65534) == 0 && setuid(65534) == 0);
		CHECK(privileges_drop() == 0);
		test_capabilities(root && geteuid() == 0);
		if (FILTERS)
			test_calls();
		test_still_works();
		exit(0);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int main(void)
{
	return in_child(true) || in_child(false);
}
