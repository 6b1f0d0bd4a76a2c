#!/usr/bin/env bash
# The library without FUSE: a small program over lib/ lists the VMs and prints a disk.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

src=$PWD/src
make_vm "$src" web want
img create -f qcow2 "$src/box.qcow2" 1M
img snapshot -c tag "$src/box.qcow2"
fingerprint src >before
[ "$(wc -l <"$TESTS/tools/vmcat.c")" -lt 100 ] || fail "vmcat.c has grown over 100 lines"
"$VMCAT" src >list
contains "$(cat list)" web
contains "$(cat list)" box
contains "$(cat list)" upgraded
for s in installed patched upgraded; do
	for disk in vda vdb; do
		"$VMCAT" src "web@$s" $disk >out
		same out "want/$s-$disk.img"
	done
done
"$VMCAT" src web vda | cmp - want/now-vda.img
"$VMCAT" src box@tag vda | cmp - <(head -c 1M /dev/zero)
"$VMCAT" src web@nothing vda >out 2>err && fail "vmcat read a snapshot that isn't there"
[ -s err ] || fail "vmcat says nothing about it"
[[ $(ldd "$VMCAT") != *fuse* ]] || fail "vmcat is linked with FUSE"
[ ! -e src/.vmsnapfs ] || fail "looking has made a store"
same before <(fingerprint src) "the sources"
