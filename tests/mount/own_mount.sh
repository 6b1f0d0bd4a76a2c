#!/usr/bin/env bash
# Names and directories in SOURCE that lead into the mount itself, by a bind mount, or into another mount of ours, and both ways at
# once: they aren't gone into, nothing waits for itself, and no VM is shown twice.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io
need_root

src=$PWD/src other=$PWD/other
mkdir "$src" "$other" "$src/bind" "$src/of-other" "$other/of-src"
make_vm "$src" web want
make_vm "$other" db want-db
backing() { # IMAGE BACKING
	img create -u -f qcow2 -F raw -b "$2" "$1" 8M
}
backing "$src/into-itself.qcow2" "$src/bind/vms/web/disks/vda.img"
backing "$src/loop.qcow2" "$src/bind/vms/loop/disks/vda.img"
backing "$src/into-other.qcow2" "$src/of-other/vms/into-src/disks/vda.img"
backing "$other/into-src.qcow2" "$other/of-src/vms/into-other/disks/vda.img"
touch "$src/file.raw"
domain_xml named "$(uuid_of named)" "vda=$src/bind/vms/web/disks/vda.img,raw" >"$src/named.xml"

mount_at "$src" mnt -o max_threads=2
mount_at "$other" mnt2 -o max_threads=2
lists mnt/vms file into-itself into-other loop named web
lists mnt2/vms db into-src
mount --bind mnt "$src/bind"
mount --bind mnt "$other/of-src"
mount --bind mnt2 "$src/of-other"
mount --bind mnt/vms/web/disks/vda.img "$src/file.raw"
for name in into-itself loop into-other named; do
	refused "EACCES|EIO" timeout 20 cat mnt/vms/$name/disks/vda.img
done
refused "EACCES|EIO" timeout 20 cat mnt2/vms/into-src/disks/vda.img
# Looked at anew, as it is after a change.
touch "$src/web.xml" "$other/db.xml"
domain_xml late "$(uuid_of late)" "vda=$src/images/web-vda.qcow2" >"$src/late.xml"
has_late() {
	[ -d mnt/vms/late ]
}
wait_until 20 has_late || fail "a new VM isn't seen"
timeout 60 ls -lR mnt mnt2 >listing || fail "ls -lR hangs"
lists mnt/vms into-itself into-other late loop named web
lists mnt2/vms db into-src
for name in into-itself loop into-other named; do
	refused EACCES timeout 20 cat mnt/vms/$name/disks/vda.img
done
same mnt/vms/web/disks/vda.img want/now-vda.img
umount "$src/file.raw" "$src/bind" "$src/of-other" "$other/of-src"
unmount mnt
unmount mnt2
