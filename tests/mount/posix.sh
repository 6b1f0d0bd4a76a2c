#!/usr/bin/env bash
# The disks of clones and of pools are files as POSIX has them: under random operations of every kind; renamed, removed and unmounted while they are
# open; what is refused is refused as an ordinary filesystem does.       limit: 240
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io python3

echo "seed $SEED"
rounds=1
[ -z "${NIGHTLY:-}" ] || rounds=60
src=$PWD/src
mkdir "$src" pool
img create -f qcow2 "$src/base.qcow2" 4M
io "$src/base.qcow2" qcow2 "write -P 3 0 1M" "write -c -P 4 2M 64k" "write -P 5 3M 1M"
img create -f qcow2 -F qcow2 -b base.qcow2 "$src/web.qcow2"
head -c 3M /dev/urandom >some.raw
mount_at "$src" mnt -o "pool=p:$PWD/pool"
clones=mnt/clones
for n in under other files moved gone; do mkdir $clones/web@base/$n; done
cp some.raw mnt/pools/p/one.raw
cp some.raw mnt/pools/p/two.qcow2

say "random operations: a clone of which snapshots are taken, copies between disks, raw and qcow2 in a pool"
for ((i = 0; i < rounds; i++)); do
	"$FSX" -s $((SEED + i)) -n 1500 -b 512 -o $clones/other/disks/vda.img -m under.model $clones/under/disks/vda.img &
	writer=$!
	nr=0
	while ! gone $writer; do
		mkdir "$clones/under/snapshots/$i-$((nr++))"
		[ $nr -le 3 ] || rmdir "$clones/under/snapshots/$i-$((nr - 3))"
	done
	wait $writer
	"$FSX" -s $((SEED + i)) -n 700 -b 512 -o mnt/pools/p/one.raw -m two.model mnt/pools/p/two.qcow2
	"$FSX" -s $((SEED + i + 1)) -n 700 -b 512 -o mnt/pools/p/two.qcow2 -m one.model mnt/pools/p/one.raw
	same one.model mnt/pools/p/one.raw
	same under.model $clones/under/disks/vda.img
done

say "errors, as the directory beside it has them"
cat >errors.py <<'PY'
import ctypes, errno, fcntl, mmap, os, sys
top, path = sys.argv[1:3] # a directory, and a file in it of 1 MiB or more
libc = ctypes.CDLL(None, use_errno=True)
fds = {"r": os.open(path, os.O_RDONLY), "w": os.open(path, os.O_WRONLY), "rw": os.open(path, os.O_RDWR),
       "append": os.open(path, os.O_WRONLY | os.O_APPEND), "dir": os.open(top, os.O_RDONLY)}
size = os.fstat(fds["r"]).st_size
off = ctypes.c_int64

def fallocate(fd, mode, start, length):
    if libc.fallocate(fds[fd], mode, off(start), off(length)) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")

cases = {
    "open a directory to write": lambda: os.open(top, os.O_WRONLY),
    "open a file as a directory": lambda: os.open(path, os.O_RDONLY | os.O_DIRECTORY),
    "create what is there": lambda: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open what isn't there": lambda: os.open(top + "/nothing.img", os.O_RDWR),
    "look below a file": lambda: os.stat(path + "/x"),
    "a name that is too long": lambda: os.stat(top + "/" + "x" * 256),
    "make one that is too long": lambda: os.open(top + "/" + "x" * 256, os.O_WRONLY | os.O_CREAT),
    "mkdir what is a file": lambda: os.mkdir(path),
    "rmdir a file": lambda: os.rmdir(path),
    "unlink a directory": lambda: os.unlink(top),
    "rename onto a directory": lambda: os.rename(path, top),
    "rename a directory onto a file": lambda: os.rename(top, path),
    "rename what isn't there": lambda: os.rename(top + "/nothing.img", path),
    "readlink of a file": lambda: os.readlink(path),
    "read what is open to write": lambda: os.read(fds["w"], 10),
    "write what is open to read": lambda: os.write(fds["r"], b"x"),
    "read a directory": lambda: os.read(fds["dir"], 10),
    "read before the beginning": lambda: os.pread(fds["rw"], 10, -1),
    "write before the beginning": lambda: os.pwrite(fds["rw"], b"x", -5),
    "seek before the beginning": lambda: os.lseek(fds["rw"], -1, os.SEEK_SET),
    "seek data at the end": lambda: os.lseek(fds["r"], size, os.SEEK_DATA),
    "seek a hole behind the end": lambda: os.lseek(fds["r"], size + 10, os.SEEK_HOLE),
    "seek data before the beginning": lambda: os.lseek(fds["r"], -1, os.SEEK_DATA),
    "seek a hole in it": lambda: os.lseek(fds["r"], 0, os.SEEK_HOLE) > size,
    "truncate what is open to read": lambda: os.ftruncate(fds["r"], 512),
    "truncate to less than nothing": lambda: os.ftruncate(fds["rw"], -1),
    "truncate a directory": lambda: os.truncate(top, 0),
    "allocate nothing": lambda: fallocate("rw", 0, 0, 0),
    "allocate before the beginning": lambda: fallocate("rw", 0, -1, 10),
    "allocate in what is open to read": lambda: fallocate("r", 0, 0, 512),
    "punch without keeping the size": lambda: fallocate("rw", 2, 0, 512),
    "punch and zero": lambda: fallocate("rw", 1 | 2 | 16, 0, 512),
    "punch nothing": lambda: fallocate("rw", 3, 0, 0),
    "punch behind the end": lambda: fallocate("rw", 3, size + 4096, 4096),
    "punch across the end": lambda: fallocate("rw", 3, size - 512, 4096),
    "a mode that there isn't": lambda: fallocate("rw", 0x4000, 0, 512),
    "map to write what is open to read": lambda: mmap.mmap(fds["r"], 4096, mmap.MAP_SHARED, mmap.PROT_WRITE),
    "map what is open to write": lambda: mmap.mmap(fds["w"], 4096, mmap.MAP_SHARED, mmap.PROT_READ),
    "copy to what is open to read": lambda: os.copy_file_range(fds["rw"], fds["r"], 512, 0, 4096),
    "copy to what is appended to": lambda: os.copy_file_range(fds["rw"], fds["append"], 512, 0, 4096),
    "copy onto itself": lambda: os.copy_file_range(fds["rw"], fds["rw"], 4096, 0, 1000),
    "copy from behind the end": lambda: os.copy_file_range(fds["rw"], fds["rw"], 512, size, 0) and None,
    "copy a directory": lambda: os.copy_file_range(fds["dir"], fds["rw"], 512, 0, 0),
    "sync what is open to read": lambda: os.fsync(fds["r"]),
    "sync a directory": lambda: os.fsync(fds["dir"]),
    "read ahead": lambda: os.posix_fadvise(fds["r"], 0, 0, os.POSIX_FADV_WILLNEED),
    "read nothing": lambda: os.read(fds["r"], 0) and None,
    "write nothing": lambda: os.pwrite(fds["rw"], b"", 100) and None,
    "read at the end": lambda: os.pread(fds["r"], 10, size) and None,
    "set the times": lambda: os.utime(path, (1, 1)),
    "an unknown attribute": lambda: os.getxattr(path, "user.nothing"),
    "an unknown ioctl": lambda: fcntl.ioctl(fds["rw"], 0x1234, 0),
}
for name, case in cases.items():
    try:
        case()
        print(name, "works", sep=": ")
    except OSError as e:
        print(name, errno.errorcode[e.errno], sep=": ")
    except PermissionError:
        print(name, "EACCES", sep=": ")
assert os.fstat(fds["rw"]).st_size == size
PY
mkdir beside
head -c 4M /dev/urandom >beside/vda.img
python3 errors.py beside beside/vda.img >want.errors
python3 errors.py $clones/files/disks $clones/files/disks/vda.img >got.errors
diff want.errors got.errors || fail "errors differ from those of the directory beside it"
for refusal in "ln $clones/files/disks/vda.img $clones/files/disks/vdx.img" "mkfifo $clones/files/disks/vdx.img" \
	"mknod $clones/files/disks/vdx.img c 1 3"; do
	# shellcheck disable=SC2086
	refused "EPERM|EOPNOTSUPP" $refusal
done
lists $clones/files/disks vda.img

say "statfs, times"
equal "$(stat -f -c %b src)" "$(stat -f -c %b mnt/clones)" "blocks of the store's filesystem"
equal 255 "$(stat -f -c %l mnt)" "the longest name"
mtime() { stat -c %.9Y $clones/files/disks/vda.img; }
was=$(mtime)
echo x | dd of=$clones/files/disks/vda.img conv=notrunc status=none
[ "$(mtime)" != "$was" ] || fail "a write didn't change the time"
equal "$(stat -c %Y mnt/vms/web/snapshots/base)" "$(stat -c %Y mnt/vms/web/snapshots/base/disks/vda.img)" "a snapshot's time"

say "renamed and removed while it is open"
exec 7<>$clones/moved/disks/vda.img
mv $clones/moved/disks/vda.img $clones/moved/disks/vdb.img
echo under another name >&7
equal "under another name" "$(head -n 1 $clones/moved/disks/vdb.img)" "a renamed disk"
mv $clones/moved $clones/elsewhere
echo in another VM >&7
equal "in another VM" "$(sed -n 2p $clones/elsewhere/disks/vdb.img | tr -d '\0' | cut -c-13)" "a disk of a renamed VM"
refused EBUSY rmdir $clones/elsewhere
rm $clones/elsewhere/disks/vdb.img
lists $clones/elsewhere/disks
echo without a name >&7
python3 - <<'PY'
import os
assert os.pread(7, 50, 0).split(b"\n")[:3] == [b"under another name", b"in another VM", b"without a name"], os.pread(7, 50, 0)
assert os.fstat(7).st_size == 4 << 20, os.fstat(7)
os.ftruncate(7, 8 << 20)
os.pwrite(7, b"end", (8 << 20) - 3)
os.fsync(7)
assert os.pread(7, 10, (8 << 20) - 3) == b"end"
PY
exec 7<&-
rmdir $clones/elsewhere
exec 7<>$clones/gone/disks/vda.img
cp some.raw $clones/gone/disks/.vda.img.new
mv $clones/gone/disks/.vda.img.new $clones/gone/disks/vda.img # as rsync does
same some.raw $clones/gone/disks/vda.img "what replaced an open disk"
equal 3 "$(od -An -N1 -tu1 <&7 | tr -d ' ')" "the disk that was replaced"
exec 7<&-

say "what is written synchronously is there after kill -9"
head -c 256k /dev/urandom >data
disk=$clones/files/disks/vda.img
dd if=data of=$disk bs=64k conv=notrunc oflag=dsync status=none
dd if=data of=$disk bs=64k seek=8 conv=notrunc oflag=sync,direct status=none
python3 - $disk <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwritev(fd, [open("data", "rb").read()], 2 << 20, os.RWF_DSYNC)
PY
kill_daemon mnt
refused ENOTCONN ls mnt
refused ENOTCONN cat $disk
mount_at "$src" mnt -o "pool=p:$PWD/pool" # over the dead mount
for at in 0 512k 2M; do cmp -n 262144 data <(tail -c +$(($(numfmt --from=iec $at) + 1)) $disk) || fail "what was written at $at isn't there"; done

say "unmounted under load, and lazily, with files open"
was=$(mtime)
"$FSX" -s "$SEED" -n 100000 -b 512 $disk >load.log 2>&1 &
load=$!
is_written() { [ "$(mtime)" != "$was" ]; }
wait_until 20 is_written
status=0
fusermount3 -u mnt 2>busy.log || status=$?
[ $status != 0 ] || fail "a mount that is in use was unmounted"
kill $load
wait $load 2>/dev/null || true
exec 7<>$disk 8<mnt/vms/web/snapshots/base/disks/vda.img
was=$daemon
fusermount3 -uz mnt
! is_mounted "$PWD/mnt" || fail "still mounted"
echo "after the unmount" >&7
python3 -c 'import os; os.pwrite(7, b"synced", 1 << 20); os.fsync(7); assert os.pread(7, 6, 1 << 20) == b"synced"'
equal 3 "$(od -An -N1 -tu1 <&8 | tr -d ' ')" "a snapshot that is open, after the unmount"
mount_refused "process $was" "$src" mnt
exec 7<&- 8<&-
wait_until 60 gone "$was" || fail "the daemon is still there when the last file was closed"
status=0
wait "$was" || status=$?
equal 0 $status "the daemon's status"
unset "daemons[$PWD/mnt]"
mount_at "$src" mnt -o "pool=p:$PWD/pool"
equal "after the unmount" "$(head -n 1 $disk)" "what was written after the unmount"
unmount mnt
for image in "$src"/.vmsnapfs/layers/*.qcow2 pool/*.qcow2; do check_image "$image"; done
