#include "fs/privileges.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BIT(cap) (1ull << (cap))

/* Over files: whose they are and what their modes say. */
#define CAPS_OF_DAEMON (BIT(CAP_DAC_OVERRIDE) | BIT(CAP_DAC_READ_SEARCH) | BIT(CAP_FOWNER) | BIT(CAP_CHOWN))
/* The mount point may lie where root can't go by the modes alone. */
#define CAPS_OF_KEEPER (BIT(CAP_SYS_ADMIN) | BIT(CAP_DAC_READ_SEARCH))

/* --- capabilities ---------------------------------------------------------------------------------------------------------- */

/* Of those that there are, only KEPT. Returns which are left, or a negative errno. */
static int64_t limit_capabilities(uint64_t kept)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	if (syscall(SYS_capget, &header, data) < 0)
		return -errno;
	uint64_t left = kept & (data[0].permitted | (uint64_t)data[1].permitted << 32);
	/* Nobody but root has a say in what executing a program would give: there it doesn't matter, nothing being executed. */
	for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (!(left & BIT(cap)))
			prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (int i = 0; i < 2; i++) {
		uint32_t word = (uint32_t)(left >> 32 * i);
		data[i] = (struct __user_cap_data_struct){.effective = word, .permitted = word};
	}
	return syscall(SYS_capset, &header, data) < 0 ? -errno : (int64_t)left;
}

/* --- system calls ------------------------------------------------------------------------------------------------------------- */

/* Left out where a sanitizer traces its own threads. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define FILTERS 0
#elif defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define FILTERS 0
#endif
#endif
#if defined __x86_64__
#define OWN_ARCH AUDIT_ARCH_X86_64
#define FIRST_FOREIGN 0x40000000u /* x32 */
#elif defined __aarch64__
#define OWN_ARCH AUDIT_ARCH_AARCH64
#define FIRST_FOREIGN UINT32_MAX
#endif
#ifndef FILTERS
#ifdef OWN_ARCH
#define FILTERS 1
#else
#define FILTERS 0
#endif
#endif

#if FILTERS
#define LOAD(field)   BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define REFUSE	      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define REFUSED(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), REFUSE

/* What is refused, not what is allowed: a list of all that the C library and its successors may call would break with one of them. */
static const struct sock_filter filter[] = {
	LOAD(arch),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCH, 1, 0),
	REFUSE,
	LOAD(nr),
	BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FIRST_FOREIGN, 0, 1),
	REFUSE,
	/* Programs and processes. */
	REFUSED(execve), REFUSED(execveat), REFUSED(ptrace), REFUSED(process_vm_readv), REFUSED(process_vm_writev), REFUSED(kcmp),
	REFUSED(pidfd_getfd), REFUSED(userfaultfd), REFUSED(perf_event_open), REFUSED(personality),
	/* Somebody else. */
	REFUSED(setuid), REFUSED(setgid), REFUSED(setreuid), REFUSED(setregid), REFUSED(setresuid), REFUSED(setresgid), REFUSED(setfsuid),
	REFUSED(setfsgid), REFUSED(setgroups),
	/* Other views of the file system, and ways around it. */
	REFUSED(mount), REFUSED(umount2), REFUSED(pivot_root), REFUSED(chroot), REFUSED(unshare), REFUSED(setns), REFUSED(open_tree),
	REFUSED(move_mount), REFUSED(fsopen), REFUSED(fsconfig), REFUSED(fsmount), REFUSED(fspick), REFUSED(mount_setattr),
	REFUSED(open_by_handle_at), REFUSED(io_uring_setup), REFUSED(quotactl), REFUSED(swapon), REFUSED(swapoff),
	/* The kernel and the machine. */
	REFUSED(init_module), REFUSED(finit_module), REFUSED(delete_module), REFUSED(kexec_load), REFUSED(bpf), REFUSED(keyctl),
	REFUSED(add_key), REFUSED(request_key), REFUSED(reboot), REFUSED(acct), REFUSED(settimeofday), REFUSED(clock_settime),
	REFUSED(adjtimex), REFUSED(clock_adjtime), REFUSED(sethostname), REFUSED(setdomainname),
	/* Of sockets, only those to syslog. */
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 3),
	LOAD(args[0]),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 1, 0),
	REFUSE,
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};
#endif

/* A kernel without it is no reason not to mount. */
static void filter_system_calls(void)
{
#if FILTERS
	const struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = (struct sock_filter *)(uintptr_t)filter};
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
#endif
}

int privileges_drop(void)
{
	int64_t left = limit_capabilities(CAPS_OF_DAEMON);
	if (left < 0)
		return (int)left;
	/* Its memory holds what others may not read. An ordinary user's is his own. */
	if (left || geteuid() == 0)
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	filter_system_calls();
	return 0;
}

void privileges_keep_for_mounting(void)
{
	limit_capabilities(CAPS_OF_KEEPER);
	/* An ordinary user's, too: it may execute programs, which the daemon, who is the same user, may not. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}
