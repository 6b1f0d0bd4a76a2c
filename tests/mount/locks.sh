#!/usr/bin/env bash
# QEMU and vmsnapfs mind each other's image locks, and locks work through the mount: who runs a VM isn't disturbed, what it writes isn't taken
# for something at rest, and nobody writes to what is open here.       limit: 180
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io qemu-system-x86_64 python3 flock

src=$PWD/src
mkdir "$src" want
img create -f qcow2 "$src/base.qcow2" 8M
io "$src/base.qcow2" qcow2 "write -P 1 0 8M"
img create -f qcow2 -F qcow2 -b base.qcow2 "$src/web.qcow2"
io "$src/web.qcow2" qcow2 "write -P 2 1M 1M"
img snapshot -c inside "$src/web.qcow2"
io "$src/web.qcow2" qcow2 "write -P 3 2M 1M"
oracle "$src/base.qcow2" qcow2 want/base.img
oracle "$src/web.qcow2" qcow2 want/inside.img inside
oracle "$src/web.qcow2" qcow2 want/web.img
mount_at "$src" mnt
vm=mnt/vms/web
wait_until 30 test -e $vm/snapshots/inside

# A QEMU of which the guest never starts, but which holds its disk, and writes to it when it is told to: run_qemu NAME IMAGE,FORMAT
declare -A qemus=()
run_qemu() {
	local name=$1 image=$2
	rm -f "$name.qmp"
	qemu-system-x86_64 -S -accel tcg -m 16 -nodefaults -display none -qmp "unix:$PWD/$name.qmp,server=on,wait=off" \
		-drive "if=none,id=d0,file=${image%,*},format=${image##*,}" -device virtio-blk-pci,drive=d0 >"$name.log" 2>&1 &
	qemus[$name]=$!
	wait_until 60 qemu_is_up "$name"
	! gone "${qemus[$name]}"
}
qemu_is_up() { gone "${qemus[$1]}" || { [ -S "$1.qmp" ] && qmp "$1" query-status >/dev/null 2>&1; }; }
qmp() { "$TESTS/tools/qmp" "$PWD/$1.qmp" "${@:2}"; }
qemu_io() { # NAME COMMAND
	local out
	out=$(qmp "$1" human-monitor-command "{\"command-line\": \"qemu-io d0 \\\"$2\\\"\"}")
	equal '""' "$out" "$2" # what it says of an error
}
end_qemu() {
	qmp "$1" quit >/dev/null
	wait "${qemus[$1]}"
}
qemu_refuses() { # COMMAND...: it doesn't get its locks
	local status=0 out
	out=$("$@" 2>&1) || status=$?
	[ $status != 0 ] || fail "'$*' got its locks"
	contains "$out" "lock" "'$*' failed, but not for locks"
}

say "idle: nobody is locked out"
ls -lR mnt >/dev/null
cat $vm/status mnt/vms/web/snapshots/*/snapshot.xml >/dev/null
du -a mnt/vms >/dev/null
img check "$src/web.qcow2"
img snapshot -c more "$src/web.qcow2" && img snapshot -d more "$src/web.qcow2"
io "$src/base.qcow2" qcow2 "write -P 1 0 64k"

say "a copy waits for who writes to its source, and goes on by itself (looked at in the end)"
cp "$src/base.qcow2" "$src/held.qcow2"
img create -f qcow2 -F qcow2 -b held.qcow2 "$src/over.qcow2"
wait_until 30 test -e mnt/clones/over@held
mkdir mnt/clones/over@held/waits
mkfifo hold
qemu-io -f qcow2 "$src/held.qcow2" <hold >hold.log 2>&1 &
holder=$!
exec 6>hold
echo "read 0 512" >&6
wait_until 20 grep -q "read 512" hold.log
echo all >mnt/clones/waits/actions/flatten
waits() { [ "$(events_with mnt "in use by another program (a running VM?)")" -gt 0 ]; }
wait_until 30 waits || fail "a job didn't mind a writer: $(cat mnt/events)"
[ -n "$(find mnt/jobs -name "*waits*")" ] || fail "the job isn't there any more: $(ls mnt/jobs)"
exec 6>&-
wait $holder

say "a VM runs: its disk is busy, what lies beneath and its internal snapshots are served"
run_qemu one "$src/web.qcow2,qcow2" || fail "$(cat one.log)"
refused EBUSY cat $vm/disks/vda.img
contains "$(tail -n 1 mnt/events)" "in use by another program"
same want/base.img $vm/snapshots/base/disks/vda.img
same want/inside.img $vm/snapshots/inside/disks/vda.img
qemu_io one "write -P 9 0 512k"
same want/base.img $vm/snapshots/base/disks/vda.img
same want/inside.img $vm/snapshots/inside/disks/vda.img
exec 7<$vm/snapshots/inside/disks/vda.img 8<$vm/snapshots/base/disks/vda.img
mkdir mnt/clones/web@inside/from-inside mnt/clones/web@base/from-base
same want/inside.img mnt/clones/from-inside/disks/vda.img
same want/base.img mnt/clones/from-base/disks/vda.img

say "it takes snapshots meanwhile"
others_done() { [ "$(find mnt/jobs -type f ! -name "*waits*" | wc -l)" = 0 ]; }
wait_until 60 others_done
qmp one blockdev-snapshot-internal-sync '{"device": "d0", "name": "live"}' >/dev/null
qemu_io one "write -P 10 0 512k"
oracle "$src/web.qcow2" qcow2 want/live.img live
wait_until 30 test -e $vm/snapshots/live
same want/live.img $vm/snapshots/live/disks/vda.img
same want/inside.img $vm/snapshots/inside/disks/vda.img
qmp one blockdev-snapshot-sync "{\"device\": \"d0\", \"snapshot-file\": \"$src/next.qcow2\", \"format\": \"qcow2\"}" >/dev/null
qemu_io one "write -P 11 4M 512k"
wait_until 30 test -e mnt/vms/next/snapshots/web/disks/vda.img
oracle "$src/web.qcow2" qcow2 want/web.img
same want/web.img mnt/vms/next/snapshots/web/disks/vda.img
refused EBUSY cat mnt/vms/next/disks/vda.img

say "what is open here can't be opened to write"
exec 9<mnt/vms/next/snapshots/web/disks/vda.img
end_qemu one
qemu_refuses qemu-io -f qcow2 -c "write 0 64k" "$src/web.qcow2"
qemu_refuses qemu-img check -r all "$src/web.qcow2"
qemu_refuses qemu-img rebase -u -b "" "$src/web.qcow2"
qemu_refuses qemu-img resize "$src/base.qcow2" 16M
qemu_refuses qemu-img commit "$src/next.qcow2"
qemu_refuses qemu-img snapshot -d inside "$src/web.qcow2"
! run_qemu refused "$src/web.qcow2,qcow2" || fail "QEMU runs a disk that is open here"
contains "$(cat refused.log)" lock
run_qemu two "$src/next.qcow2,qcow2" || fail "what lies over it can't be run: $(cat two.log)"
end_qemu two
exec 7<&- 8<&- 9<&-
qemu-img check "$src/web.qcow2" >/dev/null
img snapshot -d inside "$src/web.qcow2"
img commit "$src/next.qcow2" # once nobody has it open

say "the disk of a clone: two QEMUs through the mount, and one past it"
disk=mnt/clones/from-base/disks/vda.img
own=$(domain_source mnt/clones/from-base/domain.xml vda)
run_qemu first "$PWD/$disk,raw" || fail "$(cat first.log)"
qemu_io first "write -P 12 0 1M"
! run_qemu second "$PWD/$disk,raw" || fail "a second QEMU writes to the same disk"
contains "$(cat second.log)" lock
qemu_refuses qemu-io -f qcow2 -c "write 0 64k" "$own"
qemu_refuses qemu-io -f raw -c "write 0 64k" $disk
end_qemu first
run_qemu past "$own,qcow2" || fail "$(cat past.log)"
refused EBUSY cat $disk
refused EBUSY dd if=/dev/zero of=$disk bs=4k count=1 conv=notrunc
refused EBUSY mkdir mnt/clones/from-base/snapshots/x
refused EBUSY rm $disk
refused EBUSY rmdir mnt/clones/from-base
cp want/base.img mnt/clones/from-base/disks/vdb.img
refused EBUSY mv mnt/clones/from-base/disks/vdb.img $disk
rm mnt/clones/from-base/disks/vdb.img
qemu_io past "write -P 13 1M 1M"
end_qemu past
equal 12 "$(od -An -N1 -tu1 $disk | tr -d ' ')" "what QEMU wrote through the mount"
equal 13 "$(od -An -j1M -N1 -tu1 $disk | tr -d ' ')" "what QEMU wrote past it"

mkdir mnt/clones/from-base/snapshots/before
run_qemu past "$(domain_source mnt/clones/from-base/domain.xml vda),qcow2" || fail "$(cat past.log)"
refused EBUSY ln -sfn snapshots/before mnt/clones/from-base/current
for action in "restore before" "restore before discard" "preview before"; do
	refused EBUSY bash -c "echo ${action#* } >mnt/clones/from-base/actions/${action%% *}"
done
end_qemu past

say "flock, POSIX and OFD locks between processes"
flock -n $disk -c true
exec 7<>$disk
flock -x 7
! flock -n $disk true || fail "a file that is locked was locked by another process"
flock -u 7
flock -n $disk true
python3 - $disk <<-'PY'
	import fcntl, os, struct, sys
	OFD_SETLK, OFD_GETLK = 37, 36
	def lock(kind, start, length):
	    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
	def refused(fd, cmd, arg):
	    try:
	        fcntl.fcntl(fd, cmd, arg)
	    except OSError as e:
	        return e.errno in (11, 13)
	    return False
	a, b = (os.open(sys.argv[1], os.O_RDWR) for _ in range(2))
	fcntl.fcntl(a, OFD_SETLK, lock(fcntl.F_WRLCK, 0, 100))
	assert refused(b, OFD_SETLK, lock(fcntl.F_RDLCK, 50, 10)), "OFD"
	fcntl.fcntl(b, OFD_SETLK, lock(fcntl.F_WRLCK, 100, 100))
	assert struct.unpack_from("h", fcntl.fcntl(a, OFD_GETLK, lock(fcntl.F_WRLCK, 150, 1)))[0] == fcntl.F_WRLCK, "OFD_GETLK"
	os.close(a)
	fcntl.fcntl(b, OFD_SETLK, lock(fcntl.F_RDLCK, 50, 10))
	c = os.open(sys.argv[1], os.O_RDWR)
	fcntl.lockf(c, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 1000)
	if os.fork() == 0:
	    d = os.open(sys.argv[1], os.O_RDWR)
	    assert refused(d, fcntl.F_SETLK, lock(fcntl.F_WRLCK, 1005, 1)), "POSIX"
	    fcntl.lockf(d, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 2000)
	    os._exit(0)
	assert os.wait()[1] == 0
PY
exec 7<&-

say "the copy that waited"
wait_until 60 jobs_done mnt || fail "still there: $(cat mnt/jobs/*)"
rm "$src/held.qcow2" "$src/over.qcow2"
same want/base.img mnt/clones/waits/disks/vda.img "a clone that depends on nothing"

say "two daemons on one store"
mkdir other
mount_refused "process $daemon" "$src" other
"$VMSNAPFS" -o ro "$src" other || fail "a read-only mount beside it"
fusermount3 -u other
kill_daemon mnt
fusermount3 -u mnt
mount_at "$src" mnt # the lock went with the process
unmount mnt
