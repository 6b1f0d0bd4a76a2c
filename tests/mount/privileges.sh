#!/usr/bin/env bash
# What the daemon may do: nothing as a user, little as root, and no program, network, mount or trace as either; under a
# service manager's restrictions as well; it unmounts itself all the same. limit: 240
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io setpriv fusermount3 unshare xmllint
need_root

alice=$(id -u nobody)
chmod 755 .
cp "$VMSNAPFS" vmsnapfs
VMSNAPFS=$PWD/vmsnapfs
mkdir home home/mnt
src=$PWD/home/src
make_vm "$src" web want
chown -R "$alice" home

field() { # PID NAME
	sed -n "s/^$2:[ \t]*//p" "/proc/$1/status"
}
keeper_of() { # PID
	tr -d ' ' <"/proc/$1/task/$1/children"
}
use() { # MNT PREFIX...: what the daemon does all day
	local mnt=$1
	shift
	"$@" cmp "$mnt/vms/web/snapshots/patched/disks/vda.img" want/patched-vda.img
	"$@" mkdir "$mnt/clones/web@patched/mine"
	"$@" dd if=/dev/zero of="$mnt/clones/mine/disks/vda.img" bs=4k count=1 conv=notrunc,fsync status=none
	"$@" mkdir "$mnt/clones/mine/snapshots/s"
	"$@" chmod 640 "$mnt/clones/mine/disks/vda.img"
	"$@" cp -r "$mnt/vms/web/snapshots/installed" "$mnt/clones/copied"
	"$@" cmp "$mnt/clones/copied/disks/vdb.img" want/installed-vdb.img
	"$@" rm -r "$mnt/clones/copied"
	"$@" rmdir "$mnt/clones/mine/snapshots/s"
	"$@" rmdir "$mnt/clones/mine"
}
ends_by_itself() { # MNT: SIGTERM, and it has unmounted
	local mnt pid keeper status=0
	mnt=$(absolute "$1")
	pid=${daemons[$mnt]}
	keeper=$(keeper_of "$pid")
	kill -TERM "$pid"
	wait_until 60 gone "$pid" || fail "still there after SIGTERM"
	wait "$pid" || status=$?
	equal 0 $status "status after SIGTERM"
	unset "daemons[$mnt]"
	! is_mounted "$mnt" || fail "$mnt is still mounted after SIGTERM"
	# shellcheck disable=SC2086
	wait_until 10 gone $keeper || fail "the keeper has outlived it"
}

say "as a user"
RUN_AS="setpriv --reuid=$alice --regid=$alice --clear-groups --inh-caps=-all" mount_at "$src" "$PWD/home/mnt"
for set in CapPrm CapEff CapInh CapAmb; do equal 0000000000000000 "$(field "$daemon" $set)" "$set of a user's"; done
equal 1 "$(field "$daemon" NoNewPrivs)" "no new privileges"
[ -n "$SAN" ] || equal 2 "$(field "$daemon" Seccomp)" "the filter"
use "$PWD/home/mnt" setpriv --reuid="$alice" --regid="$alice" --clear-groups
# The keeper can start programs: what the daemon is taken over by mustn't write into its memory.
keeper=$(keeper_of "$daemon")
for file in mem environ; do
	refused EACCES setpriv --reuid="$alice" --regid="$alice" --clear-groups cat "/proc/$keeper/$file"
done
ends_by_itself "$PWD/home/mnt"

say "as root"
mount_at "$src" mnt -o allow_other -o "store=$PWD/store"
keeper=$(keeper_of "$daemon")
# CAP_CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER
equal 000000000000000f "$(field "$daemon" CapPrm)" "capabilities of root's"
equal 000000000000000f "$(field "$daemon" CapBnd)" "what could be got"
equal 1 "$(field "$daemon" NoNewPrivs)"
for thread in "/proc/$daemon/task"/*; do
	equal 000000000000000f "$(field "$daemon/task/${thread##*/}" CapEff)" "capabilities of a thread"
	[ -n "$SAN" ] || equal 2 "$(field "$daemon/task/${thread##*/}" Seccomp)" "a thread's filter"
done
# CAP_DAC_READ_SEARCH, SYS_ADMIN
equal 0000000000200004 "$(field "$keeper" CapPrm)" "capabilities of the keeper"
at_most 5 "$(find "/proc/$keeper/fd" -type l | wc -l)" "descriptors of the keeper"
use "$PWD/mnt" env
refused EACCES setpriv --reuid="$alice" --regid="$alice" --clear-groups cat "/proc/$daemon/environ"
refused EACCES setpriv --reuid="$alice" --regid="$alice" --clear-groups ls "/proc/$daemon/fd/"
ends_by_itself mnt

say "the keeper goes with a killed daemon, and leaves the mount to say so"
mount_at "$src" mnt -o "store=$PWD/store"
keeper=$(keeper_of "$daemon")
kill_daemon mnt
wait_until 10 gone "$keeper" || fail "the keeper has outlived the daemon"
is_mounted "$PWD/mnt" || fail "unmounted by a keeper that wasn't asked"
refused ENOTCONN ls mnt
umount mnt

say "a daemon whose keeper was killed goes on, and can be unmounted"
mount_at "$src" mnt -o "store=$PWD/store"
kill -9 "$(keeper_of "$daemon")"
use "$PWD/mnt" env
unmount mnt

say "something else that lies on the mount point by then is left alone"
mount_at "$src" mnt -o "store=$PWD/store"
exec 8<mnt/vms/web/disks/vda.img # or it would end at once
umount -l mnt
mount -t tmpfs other mnt
ends=$daemon
kill -TERM "$ends"
wait_until 60 gone "$ends" || fail "still there after SIGTERM"
wait "$ends" || fail "the daemon ended with status $?"
unset "daemons[$PWD/mnt]"
equal tmpfs "$(findmnt -rno FSTYPE "$PWD/mnt")" "what somebody else has mounted"
exec 8<&-
umount mnt

say "a file that is open at the end keeps nobody waiting, and isn't complained about"
mount_at "$src" mnt -o "store=$PWD/store"
exec 8<mnt/vms/web/disks/vda.img
: >mnt.log
ends_by_itself mnt
equal "" "$(cat "$PWD/mnt.log")" "what was said at the end"
refused ENOTCONN cat <&8
exec 8<&-

say "as a service: no new privileges, few capabilities, few system calls, a read-only system, no network, nothing executable"
# By hand what scripts/vmsnapfs@.service asks systemd for, but for its own filter. The mount must be seen from outside.
mount --bind "$PWD" "$PWD"
mount --make-shared "$PWD"
cd "$PWD"
mkdir served
RUN_AS="unshare --net --ipc --uts setpriv --no-new-privs --bounding-set=-all,+chown,+dac_override,+dac_read_search,+fowner,+sys_admin,+setpcap" \
	mount_at "$src" served -o allow_other -o "store=$PWD/store"
equal 000000000000000f "$(field "$daemon" CapPrm)" "capabilities of the service"
use "$PWD/served" env
ends_by_itself served
