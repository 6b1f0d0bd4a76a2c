#!/usr/bin/env bash
# A thousand snapshots of one VM: the first and the last, and those between, hold what they held; all but two go, and the space
# comes back.       limit: 900
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img

count=${NR_SNAPSHOTS:-1000}
src=$PWD/src
store=$src/.vmsnapfs
vm=mnt/clones/vm
disk=$vm/disks/vda.img
mkdir "$src"
mount_at src mnt
mkdir $vm

# Half of the disk is data, so that what the space is compared with is data, not tables.
dd if=/dev/urandom of=data bs=1M count=24 status=none
truncate -s 48M data
cp --sparse=always data $disk

say "$count snapshots"
kept=(1 10 $((count / 2)) "$count")
for ((i = 1; i <= count; i++)); do
	# 4 KiB at a place of its own, and 4 KiB that each one writes anew.
	head -c 4096 /dev/urandom >block
	dd if=block of=$disk bs=4k seek=$((i * 7)) conv=notrunc status=none
	dd if=block of=$disk bs=4k seek=3 conv=notrunc status=none
	case " ${kept[*]} " in *" $i "*) cp --sparse=always $disk "want-$i" ;; esac
	mkdir "$vm/snapshots/$i"
done

kept_are_right() { # NUMBER...
	local i
	for i; do same "$vm/snapshots/$i/disks/vda.img" "want-$i"; done
	same $disk "want-$count" "the active state"
}
kept_are_right "${kept[@]}"
# shellcheck disable=SC2046
lists $vm/snapshots $(seq "$count")
equal "snapshots/$count" "$(readlink $vm/current)" current
memory_limit_holds mnt
unmount mnt
mount_at src mnt
kept_are_right "${kept[@]}"

say "all but the first and the last go"
seq 3 2 $((count - 1)) | sed "s|^|$vm/snapshots/|" | xargs rmdir
kept_are_right 1 10 "$count"
seq $((count - 2 + count % 2)) -2 2 | sed "s|^|$vm/snapshots/|" | xargs rmdir
lists $vm/snapshots 1 "$count"
kept_are_right 1 "$count"
wait_until 180 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
kept_are_right 1 "$count"
unmount mnt
for layer in "$store"/layers/*.qcow2; do check_image "$layer"; done
at_most 3 "$(find "$store/layers" -type f | wc -l)" "layers left"

# What flat copies of both hold, the common data once: that of the first, and a block from each snapshot after it.
at_most $((($(space_of want-1) + 4096 * count) * 11 / 10)) "$(space_of "$store")" "bytes of the store"

mount_at src mnt
kept_are_right 1 "$count"
unmount mnt
