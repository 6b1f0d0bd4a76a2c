#!/usr/bin/env bash
# Snapshots that the kernel reads by itself, from one flat file: the same bytes before, while and after it is made, on XFS, as root. An
# ordinary user, or a kernel without passthrough, reads the same through us.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need_root
need qemu-img qemu-io mkfs.xfs

truncate -s 2G xfs.img
mkfs.xfs -q -m reflink=1 xfs.img
mkdir x
mount -o loop xfs.img x || skip "no loop device"
src=$PWD/x/src
mkdir -p "$src" want

# A chain whose pieces can be shared, and with what can't: compressed clusters, clusters smaller than the filesystem's blocks, a raw file that
# ends inside a block, zero clusters.
head -c 20000000 /dev/urandom >"$src/base.raw"
truncate -s 20000256 "$src/base.raw"
img create -f qcow2 -F raw -b base.raw "$src/one.qcow2" 64M
io "$src/one.qcow2" qcow2 "write -P 1 1M 3M" "write -z 5M 1M" "write -P 2 60M 4M"
img create -f qcow2 -F qcow2 -b one.qcow2 -o cluster_size=512 "$src/two.qcow2"
io "$src/two.qcow2" qcow2 "write -P 3 1050112 512" "write -P 4 2100224 66048" "write -P 5 30000128 4096"
img create -f qcow2 -F qcow2 -b two.qcow2 "$src/three.qcow2"
io "$src/three.qcow2" qcow2 "write -c -P 6 10M 1M" "write -P 7 11M 1M"
img create -f qcow2 -F qcow2 -b three.qcow2 "$src/web.qcow2"
# One that is flat already, and of a whole number of sectors.
head -c 4M /dev/urandom >"$src/flat.raw"
img create -f qcow2 -F raw -b flat.raw "$src/box.qcow2"
for image in one two three; do oracle "$src/$image.qcow2" qcow2 want/$image.img; done
cp "$src/flat.raw" want/flat.img

mount_at "$src" mnt
served() { # VM SNAPSHOT: the line in its status while it is open
	local line
	exec 7<"mnt/vms/$1/snapshots/$2/disks/vda.img"
	line=$(grep "snapshots/$2/" "mnt/vms/$1/status" || true)
	exec 7<&-
	echo "${line#*: }"
}
[ -n "$(served box flat)" ] || skip "this kernel has no passthrough"
by_kernel="read by the kernel from one flat file"
is_by_kernel() { [ "$(served "$1" "$2")" = "$by_kernel" ]; }

say "flat already"
equal "$by_kernel" "$(served box flat)" "a raw snapshot"
same want/flat.img mnt/vms/box/snapshots/flat/disks/vda.img

say "made in the background, and the same all the way"
for image in one two three; do
	disk=mnt/vms/web/snapshots/$image/disks/vda.img
	exec 8<"$disk" # before there is one: goes on as it began
	same want/$image.img "$disk"
	same want/$image.img /dev/fd/8
	exec 8<&-
	wait_until 20 is_by_kernel web $image || fail "$image is $(served web $image)"
	for _ in 1 2 3; do same want/$image.img "$disk"; done
	exec 8<"$disk"
	cp --sparse=never "$disk" copy.img & # several at a time
	same want/$image.img /dev/fd/8
	wait $!
	same want/$image.img copy.img
	exec 8<&-
done
python3 - mnt/vms/web/snapshots/three/disks/vda.img want/three.img <<'PY'
import mmap, sys
files = [open(p, "rb") for p in sys.argv[1:]]
maps = [mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) for f in files]
assert maps[0][:] == maps[1][:], "mmap"
PY

say "a clone of it, and its source gone"
mkdir mnt/clones/web@three/c
same want/three.img mnt/clones/c/disks/vda.img
rm "$src/web.qcow2" "$src/three.qcow2"
wait_until 10 test ! -e mnt/vms/web/snapshots/three

say "nothing stays behind"
unmount mnt
umount x
xfs_repair -n xfs.img >repair.log 2>&1 || fail "$(tail -n 5 repair.log)"
