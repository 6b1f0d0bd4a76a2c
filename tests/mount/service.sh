#!/usr/bin/env bash
# scripts/vmsnapfs@.service is installed, understood by systemd and strict; and the daemon does its work with no system call that
# the unit refuses.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io strace systemd-analyze make
need_root

say "installed"
sed "s,@BINDIR@,$PWD/inst/bin,; s,^EnvironmentFile=.*,EnvironmentFile=$PWD/web.conf," "$TOP/scripts/vmsnapfs@.service" >vmsnapfs@.service
contains "$(make -s -n -C "$TOP" BUILD="$BUILD" PREFIX=/usr install)" 'vmsnapfs@.service' "make install"
mkdir -p inst/bin
cp "$VMSNAPFS" inst/bin/vmsnapfs
systemd-analyze verify --man=no "$PWD/vmsnapfs@.service" >out 2>&1 || fail "systemd-analyze verify: $(cat out)"
[ ! -s out ] || fail "systemd-analyze verify: $(cat out)"
systemd-analyze security --no-pager --offline=true --threshold=45 "$PWD/vmsnapfs@.service" >out || fail "too exposed: $(tail -n 1 out)"
say "$(tail -n 1 out)"

say "what it mounts is seen outside: nothing in it asks for file systems of its own"
hidden='^(Protect(System|Home|Proc|Kernel.*|ControlGroups)|Private(Tmp|Devices|Network|Users|IPC)|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|NoExecPaths|ExecPaths|TemporaryFileSystem|BindPaths|BindReadOnlyPaths|RootDirectory|RootImage|MountFlags|DynamicUser|ProcSubset|LogNamespace)='
! grep -E "$hidden" vmsnapfs@.service || fail "a mount in there is seen by nobody else"
grep -qx PrivateMounts=no vmsnapfs@.service || fail "PrivateMounts"

say "which system calls it refuses"
declare -A allowed=()
calls_of() { # NAME or @GROUP: the system calls that it stands for
	local line
	case $1 in
	@*)
		while read -r line; do
			case $line in '#'* | '') ;; *) calls_of "$line" ;; esac
		done < <(systemd-analyze syscall-filter "$1" --no-pager | tail -n +2)
		;;
	*) echo "$1" ;;
	esac
}
while read -r words; do
	for word in ${words#\~}; do for call in $(calls_of "$word"); do
		case $words in '~'*) unset "allowed[$call]" ;; *) allowed[$call]=yes ;; esac
	done; done
done < <(echo @default && sed -n 's/^SystemCallFilter=//p' vmsnapfs@.service)
[ "${#allowed[@]}" -gt 100 ] || fail "only ${#allowed[@]} system calls: systemd-analyze has changed its output"
for refused in ptrace bpf init_module setuid keyctl reboot open_tree io_uring_setup; do
	[ -z "${allowed[$refused]:-}" ] || fail "$refused isn't refused"
done

say "none of which it makes"
src=$PWD/src
make_vm "$src" web want
mkdir pool
RUN_AS="strace -f -qq -o trace" mount_at "$src" mnt -o allow_other -o "pool=p:$PWD/pool"
pid=$(cat "$src/.vmsnapfs/lock")
cat mnt/vms/web/snapshots/patched/disks/vda.img >out # perhaps by passthrough
mkdir mnt/clones/web@patched/mine
dd if=/dev/zero of=mnt/clones/mine/disks/vda.img bs=4k count=1 conv=notrunc,fsync status=none
mkdir mnt/clones/mine/snapshots/s
fallocate -p -o 0 -l 65536 mnt/clones/mine/disks/vda.img
echo all >mnt/clones/mine/actions/flatten
wait_until 60 jobs_done mnt
cp mnt/vms/web/snapshots/installed/disks/vda.img mnt/pools/p/copy.qcow2
cp -r mnt/vms/web/snapshots/installed mnt/clones/copied
mv mnt/clones/copied mnt/clones/moved
rm -r mnt/clones/moved mnt/pools/p/copy.qcow2
kill -TERM "$pid"
wait_until 60 gone "$daemon"
wait "$daemon"
unset "daemons[$PWD/mnt]"
# Those before its main program runs are the shell's and strace's.
sed -nE 's/^[0-9]+ +([a-z0-9_]+)\(.*/\1/p' trace | sort | uniq -c | sort -rn >calls
[ "$(wc -l <calls)" -gt 40 ] || fail "only $(wc -l <calls) system calls seen: $(cat calls)"
while read -r _ call; do
	[ -n "${allowed[$call]:-}" ] || fail "the unit refuses $call: $(grep -m 1 "$call(" trace)"
done <calls
