#!/usr/bin/env bash
# CVE-2008-2004, CVE-2026-24708: a guest writes a qcow2 header, which names a file of the host's, to the start of its raw disk,
# through the mount. Whatever is done with the disk then, it stays the bytes that it is. limit: 240
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io xmllint

src=$PWD/src
mkdir "$src" "$src/images" pool
printf 'a secret' | dd of="$src/secret" bs=64k conv=sync status=none # where names may lead, and yet nobody's
img create -f raw "$src/images/base" 2M
io "$src/images/base" raw "write -P 1 0 2M"
domain_xml web "$(uuid_of web)" "vda=$src/images/base,raw" >"$src/web.xml"
img create -u -f qcow2 -b "$src/secret" -F raw evil.qcow2 64M
truncate -s 256k evil.qcow2
cp "$src/images/base" want.img
dd if=evil.qcow2 of=want.img conv=notrunc status=none

# DISK: it is want.img, of its size, however it is looked at.
is_raw() { # DISK WHAT
	equal "$(stat -c %s want.img)" "$(stat -c %s "$1")" "$2: size"
	same "$1" want.img "$2"
	! grep -qa 'a secret' "$1" || fail "$2: the secret"
}
infect() { # DISK
	dd if=evil.qcow2 of="$1" conv=notrunc,fsync status=none
	is_raw "$1" "just written"
}
# Each file of the disk's chain: an overlay of ours says that what it lies on is raw, and the lowest one is called raw by domain.xml.
declared() { # VM
	local file format
	file=$(domain_source "$1/domain.xml" vda)
	format=$(xmllint --xpath "string(//disk[target/@dev='vda']/driver/@type)" "$1/domain.xml")
	case $file in *.raw) equal raw "$format" "format in domain.xml of $1" ;; esac
	[ "$format" = qcow2 ] || return 0
	qemu-img info -U --backing-chain --output=json -f qcow2 "$file" >chain.json
	! grep -q '"backing-filename-format": null' chain.json || fail "$1: an undeclared format"
	! grep -q "$src/secret" chain.json || fail "$1: the secret is part of the chain: $(cat chain.json)"
	qemu-img convert -U -f qcow2 -O raw "$file" converted
	same converted want.img "$1 as QEMU reads it from domain.xml"
}

mount_at "$src" mnt -o "pool=p:$PWD/pool"
mkdir mnt/clones/template
cp mnt/vms/web/disks/vda.img mnt/clones/template/disks/vda.img
mkdir mnt/clones/template/snapshots/s
echo "s g format=raw" >mnt/clones/template/actions/clone
wait_until 60 jobs_done mnt
g=mnt/clones/g
infect $g/disks/vda.img
declared $g

say "again after a restart"
unmount mnt
mount_at "$src" mnt -o "pool=p:$PWD/pool"
is_raw $g/disks/vda.img "remounted"

say "snapshots, clones, merges"
mkdir $g/snapshots/one
infect $g/disks/vda.img
mkdir $g/snapshots/two
is_raw $g/snapshots/one/disks/vda.img "snapshot"
mkdir mnt/clones/g@one/thin
is_raw mnt/clones/thin/disks/vda.img "thin clone"
declared mnt/clones/thin
rmdir $g/snapshots/two
wait_until 60 jobs_done mnt
ln -sfn snapshots/one $g/current
is_raw $g/disks/vda.img "gone back to"
for kept in "$g"/snapshots/before-restore*; do [ ! -e "$kept" ] || rmdir "$kept"; done
rmdir $g/snapshots/one
wait_until 60 jobs_done mnt
is_raw $g/disks/vda.img "merged"
is_raw mnt/clones/thin/disks/vda.img "thin clone of what was merged"

say "independent and full copies"
echo all >mnt/clones/thin/actions/flatten
wait_until 60 jobs_done mnt
is_raw mnt/clones/thin/disks/vda.img flattened
declared mnt/clones/thin
mkdir $g/snapshots/three
for format in raw qcow2; do
	echo "three full-$format mode=full format=$format" >$g/actions/clone
	wait_until 60 jobs_done mnt
	is_raw mnt/clones/full-$format/disks/vda.img "full clone, $format"
	infect mnt/clones/full-$format/disks/vda.img
	declared mnt/clones/full-$format
done
cp -r $g/snapshots/three mnt/clones/pasted
is_raw mnt/clones/pasted/disks/vda.img pasted

contains "$(domain_source mnt/clones/full-raw/domain.xml vda)" .raw "the file of a raw clone"

say "in a pool, under names of all sorts"
for name in plain golden.raw golden.img golden.qcow2 golden.qcow2.raw; do
	cp $g/disks/vda.img mnt/pools/p/$name
	is_raw mnt/pools/p/$name "pool $name"
	infect mnt/pools/p/$name
done
echo "three in-pool format=raw pool=p volume=of-vm.raw" >$g/actions/clone
wait_until 60 jobs_done mnt
infect mnt/clones/in-pool/disks/vda.img
mv mnt/pools/p/plain mnt/pools/p/moved.raw
mv mnt/pools/p/moved.raw mnt/pools/p/moved.qcow2

say "grown, and shrunk to its size again"
for disk in $g/disks/vda.img mnt/clones/full-raw/disks/vda.img mnt/pools/p/golden.raw; do
	truncate -s 3M "$disk"
	cmp -n 2097152 "$disk" want.img
	equal 3145728 "$(stat -c %s "$disk")"
	truncate -s 2M "$disk"
	is_raw "$disk" "grown and shrunk"
done

say "all of it, after a restart"
unmount mnt
mount_at "$src" mnt -o "pool=p:$PWD/pool"
for vm in g thin full-raw full-qcow2 pasted in-pool; do
	is_raw mnt/clones/$vm/disks/vda.img "$vm at the end"
	declared mnt/clones/$vm
done
for name in golden.raw golden.img golden.qcow2 golden.qcow2.raw moved.qcow2; do is_raw mnt/pools/p/$name "pool $name at the end"; done
unmount mnt
