#!/usr/bin/env bash
# Two disks of 1 TiB, sparse: what clones of them take on disk. (How long they take is a benchmark's business, not a test's.)
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

src=$PWD/src
mkdir -p "$src/big"
for disk in vda vdb; do
	img create -f qcow2 "$src/$disk.qcow2" 1T
	writes=()
	first_pattern=1
	[ $disk = vda ] || first_pattern=2
	for ((i = 0; i < 200; i++)); do writes+=("write -P $((i + first_pattern)) $((i * 5368709120 + 65536)) 64k"); done
	io "$src/$disk.qcow2" qcow2 "${writes[@]}" "write -P 9 1099511562240 64k"
	img create -f qcow2 -b "$src/$disk.qcow2" -F qcow2 "$src/$disk.now"
done
domain_xml big "$(uuid_of big)" "vda=$src/vda.qcow2" "vdb=$src/vdb.qcow2" >"$src/then"
snapshot_xml first active=1 state=disk-snapshot domain="$src/then" -- "vda=external:$src/vda.now" "vdb=external:$src/vdb.now" \
	>"$src/big/first.xml"
domain_xml big "$(uuid_of big)" "vda=$src/vda.now" "vdb=$src/vdb.now" >"$src/big.xml"
rm "$src/then"

mount_at src mnt
first=mnt/vms/big/snapshots/first
equal 1099511627776 "$(stat -c %s $first/disks/vda.img)"

time_of() {
	local started=${EPOCHREALTIME/./}
	"$@"
	say "$*: $(((${EPOCHREALTIME/./} - started) / 1000)) ms, store $(($(space_of src/.vmsnapfs) / 1024)) KiB"
}

before=$(space_of src/.vmsnapfs)
time_of mkdir mnt/clones/big@first/made
at_most $((2 * 1048576)) $(($(space_of src/.vmsnapfs) - before)) "bytes taken by mkdir"
before=$(space_of src/.vmsnapfs)
time_of cp -r $first mnt/clones/copied
at_most $((4 * 1048576)) $(($(space_of src/.vmsnapfs) - before)) "bytes taken by cp -r"

say "what was copied, where there is data"
equal 1099511627776 "$(stat -c %s mnt/clones/copied/disks/vdb.img)"
for clone in made copied; do
	for disk in vda vdb; do
		for at in 0 65536 5368774656 1068373180416 1099511562240; do
			cmp -n 131072 "$first/disks/$disk.img" "mnt/clones/$clone/disks/$disk.img" "$at" "$at" || fail "$clone/$disk differs at $at"
		done
	done
	[ $(($(stat -c %b "mnt/clones/$clone/disks/vda.img") * 512)) -lt 100000000 ] || fail "$clone doesn't look sparse"
done
declare -A file=()
for clone in made copied; do
	for disk in vda vdb; do file[$clone-$disk]=$(domain_source mnt/clones/$clone/domain.xml $disk); done
done
unmount mnt
equal 4 "$(find src/.vmsnapfs/layers -type f | wc -l)" layers
for disk in vda vdb; do
	for clone in made copied; do
		check_image "${file[$clone-$disk]}"
		qemu-img compare -q -f qcow2 -F qcow2 "${file[$clone-$disk]}" "src/$disk.qcow2" || fail "$clone/$disk isn't what it came from"
	done
done
