#!/usr/bin/env bash
# A disk that doesn't answer: who waits for it can be killed at once, everything else goes on, and when it answers again all get what they asked
# for. Signals that end nobody disturb no read.       limit: 120
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io python3

# The disk that stops is another mount, of which the daemon is stopped.
mkdir far near
head -c 32M /dev/urandom >far/disk.raw
img create -f qcow2 -F raw -b disk.raw far/vm.qcow2
mount_at "$PWD/far" farmnt -o ro
far=$daemon
make_vm "$PWD/near" web want
mkdir near/far
for i in {1..16}; do
	img create -f qcow2 -F raw -b "$PWD/farmnt/vms/vm/snapshots/disk/disks/vda.img" "near/far/$i.qcow2" 32M
done
mount_at "$PWD/near" mnt -o "trust=$PWD/farmnt"
disk() { echo "mnt/vms/$1/snapshots/vda/disks/vda.img"; }
for i in {1..16}; do head -c 4096 "$(disk "$i")" | cmp -n 4096 - far/disk.raw; done

read_at() { # DISK MIB: past the page cache, here and there
	exec dd if="$(disk "$1")" of=/dev/null bs=64k count=1 skip="$(($2 * 16))" iflag=direct status=none
}

stop_far() { # it isn't at once that each of its threads stands still
	kill -STOP "$far"
	wait_until 30 stands_still || fail "the disk's daemon goes on"
}
stands_still() {
	[ "$(sed 's/.*) \(.\).*/\1/' "/proc/$far/task"/*/stat | sort -u)" = T ]
}

say "each of them can be killed, however many"
stop_far
readers=()
for i in {1..16}; do
	read_at "$i" "$i" &
	readers+=($!)
done
waits() { # all of them
	local pid
	for pid; do grep -q 'request_wait_answer\|fuse' "/proc/$pid/wchan" 2>/dev/null || return 1; done
}
wait_until 20 waits "${readers[@]}" || fail "somebody doesn't wait"
for ((i = 0; i < 16; i++)); do
	kill -"$([ $((i % 2)) = 0 ] && echo KILL || echo TERM)" "${readers[i]}"
done
for pid in "${readers[@]}"; do
	wait_until 20 gone "$pid" || fail "a reader that was killed is still there"
	! wait "$pid" || fail "a reader that was killed has ended well"
done

say "and the others go on"
# One of them looks at SOURCE anew for all, and may find that disk: who comes after that doesn't.
is_served() { timeout -s KILL 15 cmp "want/$1-vda.img" "mnt/vms/web/snapshots/$1/disks/vda.img"; }
for s in installed patched upgraded; do
	wait_until 60 is_served $s 2>/dev/null || fail "$s isn't served while another disk doesn't answer"
done
timeout 60 mkdir mnt/clones/web@installed/clone
timeout 60 dd if=want/installed-vda.img of=mnt/clones/clone/disks/vdb.img conv=notrunc,fsync status=none count=100

say "a signal that ends nobody is no error, and the answer comes in the end"
cat >reader.py <<'PY'
import ctypes, mmap, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, True)
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buf = mmap.mmap(-1, 1 << 16)
print("opened", flush=True)
sys.stdin.readline()
n = libc.pread(fd, ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(buf))), 1 << 16, ctypes.c_int64(27 << 20))
assert n == 1 << 16, os.strerror(ctypes.get_errno())
with open("far/disk.raw", "rb") as f:
    f.seek(27 << 20)
    assert f.read(1 << 16) == buf[:], "other bytes"
PY
kill -CONT "$far"
mkfifo go
exec 7<>go 8<"$(disk 1)" # what is open already: a disk that doesn't answer isn't opened, either
python3 reader.py "$(disk 1)" <&7 >reader.log &
reader=$!
wait_until 20 grep -q opened reader.log
dd if=farmnt/vms/vm/snapshots/disk/disks/vda.img of=/dev/null iflag=nocache count=0 status=none # what was read ahead of others
stop_far
echo >&7
wait_until 20 waits $reader
kill -USR1 $reader
dd of=/dev/null bs=64k count=1 skip=500 iflag=direct status=none <&8 &
victim=$!
wait_until 20 waits $victim
kill -USR1 $reader
kill $victim
wait_until 20 gone $victim || fail "a reader that was killed is still there"
! gone $reader || fail "a signal has ended a read"
kill -CONT "$far"
wait $reader || fail "the read that a signal interrupted"
exec 7<&- 8<&-
for i in {1..16}; do same far/disk.raw "$(disk "$i")"; done
unmount mnt
unmount farmnt
