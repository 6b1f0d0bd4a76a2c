#!/usr/bin/env bash
# Clones of every kind: {thin, full} x {raw, qcow2} x {sparse, preallocated} x {same, larger capacity} x {the store, a pool on the same filesystem, on
# another one, on one that shares extents, a block device} x {source: external chain, internal snapshot, mixed, compressed, managed head}. Each equals
# what qemu-img says the source holds, is sound, and is what was asked for.
# limit: 420
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need_root
need qemu-img qemu-io mkfs.xfs mkfs.ext4

size=9 # MiB
larger=11
device=13

say "five kinds of source"
mkdir -p src/images want
p=$PWD/src/images
img create -f qcow2 "$p/root" ${size}M
io "$p/root" qcow2 "write -P 1 0 5M" "write -P 2 8M 1M"
img convert -c -O qcow2 "$p/root" "$p/squeezed"
found_vm() { # KIND ROW TOP
	local then=$PWD/then.xml
	mkdir "src/$1"
	domain_xml "$1" "$(uuid_of "$1")" "vda=$p/$1.base" >"$then"
	snapshot_xml s time=1500000000 active=1 domain="$then" -- "$2" >"src/$1/s.xml"
	oracle "$p/$1.base" qcow2 "want/$1"
	domain_xml "$1" "$(uuid_of "$1")" "vda=$3" >"src/$1.xml"
}
for kind in external internal mixed compressed head; do
	case $kind in
	compressed) img create -f qcow2 -b "$p/squeezed" -F qcow2 "$p/$kind.base" ;;
	internal) cp "$p/root" "$p/$kind.base" ;;
	*) img create -f qcow2 -b "$p/root" -F qcow2 "$p/$kind.base" ;;
	esac
	io "$p/$kind.base" qcow2 "write -P 3 1M 300k" "write -z 2M 128k" "write -P 4 6M 4k"
	case $kind in
	internal | mixed)
		img snapshot -c s "$p/$kind.base"
		found_vm $kind vda=internal "$p/$kind.base"
		io "$p/$kind.base" qcow2 "write -P 5 0 1M"
		;;
	*)
		img create -f qcow2 -b "$p/$kind.base" -F qcow2 "$p/$kind.top"
		found_vm $kind "vda=external:$p/$kind.top" "$p/$kind.top"
		;;
	esac
done

say "and five places"
mkdir same other xfs dev
truncate -s 1200M other.img xfs.img
mkfs.ext4 -q other.img
mkfs.xfs -q -m reflink=1 xfs.img
mount -o loop other.img other || skip "no loop device"
mount -o loop xfs.img xfs || skip "no loop device"
for name in lv0 lv1 qv0.qcow2 qv1.qcow2; do
	truncate -s ${device}M $name.img
	head -c ${device}M /dev/urandom >$name.img
	loop=$(losetup --find --show $name.img)
	mknod dev/$name b 7 "${loop#/dev/loop}"
	# shellcheck disable=SC2034 # it is only held open
	exec {fd}<"$loop"
	losetup -d "$loop" # with the last descriptor
done
mount_at src mnt -o "pool=same:$PWD/same" -o "pool=other:$PWD/other" -o "pool=xfs:$PWD/xfs" -o "pool=dev:$PWD/dev" -o block_devices

clone() { # KIND NAME WORDS...
	local kind=$1 name=$2
	shift 2
	if [ "$kind" = head ]; then
		printf '%s <action><vm><name>%s</name></vm></action>' "$*" "$name" >mnt/clones/live/actions/clone
	else
		echo "s $name $*" >"mnt/vms/$kind/actions/clone"
	fi
}
# A managed VM whose disk now is the same, and not frozen.
echo "s live" >mnt/vms/head/actions/clone

check_image() { # IMAGE KIND MIB FORMAT thin|full sparse|full
	local info
	cp --sparse=always "want/$2" wanted.img
	truncate -s "$3M" wanted.img
	info=$(qemu-img info -U "$1")
	contains "$info" "*file format: $4*" "$1"
	contains "$info" "*virtual size:*($(($3 * 1048576)) bytes)*" "$1"
	out=$(qemu-img compare -U -f "$4" -F raw "$1" wanted.img) || fail "$1 isn't what $2 holds: $out"
	[ "$4" = raw ] || qemu-img check -U -q "$1" || fail "$1: qemu-img check"
	case $5,$info in
	full,*backing\ file:*) fail "$1: $info" ;;
	full,* | thin,*backing\ file:*) ;;
	*) fail "$1 lies over nothing" ;;
	esac
	if [ "$6" = full ] && [ ! -b "$1" ]; then
		[ "$(du -B1 "$1" | cut -f1)" -ge $(($3 * 1048576)) ] || fail "$1: $(du -B1 "$1") bytes aren't all of its $3 MiB"
	fi
}
check_clone() { # NAME KIND MIB FORMAT MODE ALLOCATION
	local name=$1 image
	shift
	image=$(xmllint --xpath "string(//disk[target/@dev='vda']/source/@*[name()='file' or name()='dev'])" "mnt/clones/$name/domain.xml")
	[ -n "$image" ] || fail "$name: no image in its domain"
	check_image "$image" "$@"
	same "mnt/clones/$name/disks/vda.img" wanted.img
}

# Whose size is that of the device, whatever it has allocated.
check_in_device() { # DEVICE KIND MIB [thin]
	cp --sparse=always "want/$2" wanted.img
	truncate -s "$3M" wanted.img
	qemu-img check -q -f qcow2 "$1" || fail "$1: qemu-img check"
	[ "${4:-}" = thin ] || [[ $(qemu-img info -f qcow2 "$1") != *"backing file"* ]] || fail "$1 has a backing file"
	[ "$(qemu-img compare -f qcow2 -F raw "$1" wanted.img)" = "Images are identical." ] || fail "$1 differs"
}

made=()
begin() { # KIND MIB FORMAT MODE ALLOCATION POOL [VOLUME]
	local name=$1-$2-$3-$4-$5-${6:-store}${7:-}
	clone "$1" "$name" "mode=$4 format=$3 allocation=$5 capacity=$2M${6:+ pool=$6}${7:+ volume=$7}"
	made+=("$name $1 $2 $3 $4 $5")
}
finish() {
	local row
	wait_until 120 jobs_done mnt
	for row in "${made[@]}"; do
		# shellcheck disable=SC2086
		check_clone $row
		rm -r "mnt/clones/${row%% *}"
	done
	made=()
}

for kind in external internal mixed compressed head; do
	say "clones of $kind"
	for mib in $size $larger; do
		for pool in "" same other xfs; do
			begin $kind "$mib" qcow2 thin sparse "$pool"
			for format in qcow2 raw; do
				for allocation in sparse full; do
					begin $kind "$mib" $format full $allocation "$pool"
				done
			done
		done
	done
	finish
	begin $kind $size qcow2 thin sparse dev qv0.qcow2
	wait_until 60 jobs_done mnt
	[[ $(qemu-img info -f qcow2 dev/qv0.qcow2) == *"backing file"* ]] || fail "a thin clone of $kind in a device lies over nothing"
	check_in_device dev/qv0.qcow2 $kind $size thin
	rm -r "mnt/clones/${made[0]%% *}"
	made=()
	for allocation in sparse full; do
		begin $kind $size raw full $allocation dev lv0
		begin $kind $larger raw full $allocation dev lv1
		wait_until 60 jobs_done mnt
		for volume in lv0 lv1; do check_image dev/$volume $kind $device raw full full; done
		begin $kind $size qcow2 full $allocation dev qv0.qcow2
		begin $kind $larger qcow2 full $allocation dev qv1.qcow2
		wait_until 60 jobs_done mnt
		check_in_device dev/qv0.qcow2 $kind $size
		check_in_device dev/qv1.qcow2 $kind $larger
		for row in "${made[@]}"; do rm -r "mnt/clones/${row%% *}"; done
		made=()
	done
	for pool in same other xfs; do
		[ -z "$(find $pool -mindepth 1 -maxdepth 1 ! -name lost+found)" ] || fail "left in $pool: $(ls -A $pool)"
	done
done

say "snapshots of a device, and of a raw file"
clone external onlv "format=raw mode=full pool=dev volume=lv0"
clone external onfile "format=raw mode=full pool=xfs"
wait_until 60 jobs_done mnt
cp --sparse=always want/external changed.img
for name in onlv onfile; do
	mkdir "mnt/clones/$name/snapshots/one"
	printf changed | dd of="mnt/clones/$name/disks/vda.img" bs=1 seek=4096 conv=notrunc status=none
	[ "$(dd if="mnt/clones/$name/disks/vda.img" bs=1 skip=4096 count=7 status=none)" = changed ] || fail "$name: what was written isn't there"
	cmp -n ${size}M "mnt/clones/$name/snapshots/one/disks/vda.img" want/external || fail "$name: its snapshot changed"
done
lists dev lv0 lv1 qv0.qcow2 qv1.qcow2
echo one >mnt/clones/onfile/actions/restore
cmp -n ${size}M mnt/clones/onfile/disks/vda.img want/external || fail "it isn't what it was gone back to"
for name in onlv onfile; do
	rmdir mnt/clones/$name/snapshots/*
	wait_until 60 jobs_done mnt
	rm -r "mnt/clones/$name"
done
[ -z "$(ls xfs)" ] || fail "left in xfs: $(ls xfs)"

say "and those that can't be"
for words in "mode=thin format=raw" "mode=thin allocation=full" "mode=thin pool=dev volume=lv0" "capacity=1M" "pool=same volume=x.raw format=qcow2"; do
	refused EINVAL clone external refused "$words"
	refused EINVAL clone head refused "$words"
done
refused ENOSPC clone external refused "format=raw pool=dev volume=lv0 capacity=$((device + 1))M"
[ ! -e mnt/clones/refused ] || fail "a refused clone is there"
contains "$(tail -n 20 mnt/vms/external/events)" "*shrink='yes'*"

say "volumes"
for kind in external internal compressed; do
	for row in "qcow2 full sparse" "qcow2 full full" "raw full sparse" "raw full full" "qcow2 thin sparse"; do
		read -r format mode allocation <<<"$row"
		name=$kind-$mode-$allocation.$format
		for pool in same xfs; do
			printf 's mode=%s allocation=%s pool=%s <volume><name>%s</name></volume>' "$mode" "$allocation" $pool "$name" >mnt/vms/$kind/actions/clone
		done
		for pool in same xfs; do same "mnt/pools/$pool/$name" "want/$kind"; done
		wait_until 60 jobs_done mnt
		for pool in same xfs; do
			same "mnt/pools/$pool/$name" "want/$kind"
			check_image "$pool/$name" $kind $size "$format" "$mode" "$allocation"
			rm "mnt/pools/$pool/$name"
			[ ! -e "$pool/$name" ] || fail "$pool/$name is still there"
		done
	done
done
unmount mnt
