#!/usr/bin/env bash
# Disks of clones are files that can be written: what is read back is what was written, in the mount, after a remount, and for
# QEMU after the unmount; the snapshot beneath reads as before.       limit: 300
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io fio

echo "seed $SEED"
src=$PWD/src
make_vm "$src" web want
fingerprint src >before
mount_at src mnt
clones=mnt/clones
for n in fio fsx grown odd direct; do mkdir $clones/web@installed/$n; done
cp -r mnt/vms/web/snapshots/upgraded $clones/copied
cp -r mnt/vms/web/snapshots/upgraded $clones/copied2

say "fio: random sizes and offsets, verified"
fio_on() { # FILE OPTION...
	local file=$1
	shift
	# Two writes to one place that are under way at once may land in either order: fio must not make such.
	fio --serialize_overlap=1 --name=verify --filename="$file" --size="$(stat -c %s "$file")" --rw=randwrite --norandommap=1 --verify=crc32c --verify_fatal=1 \
		--verify_state_save=0 --do_verify=1 --allow_file_create=0 --randseed="$SEED" --output=fio.log "$@" ||
		fail "fio $*: $(cat fio.log)"
}
fio_on $clones/fio/disks/vda.img --io_size=24M --bsrange=512-200k --bs_unaligned=1 --ioengine=psync
fio_on $clones/fio/disks/vdb.img --io_size=8M --bs=4k --ioengine=libaio --iodepth=16 --direct=1
fio_on $clones/direct/disks/vda.img --io_size=12M --bsrange=512-64k --bs_unaligned=0 --blockalign=512 --ioengine=libaio --iodepth=8 --direct=1
fio_on $clones/direct/disks/vdb.img --io_size=4M --bs=512 --ioengine=psync --fsync=32

say "fsx: reads, writes, truncates, holes against a model"
for i in 0 1 2; do "$FSX" -s $((SEED + i)) -n 1500 -r -m "fsx-vda.$i" $clones/fsx/disks/vda.img; done
"$FSX" -s "$SEED" -n 3000 -l 12000256 -b 512 -m grown-vda.model $clones/grown/disks/vda.img
"$FSX" -s "$SEED" -n 1500 -b 512 -m copied-vda.model $clones/copied/disks/vda.img
"$FSX" -s $((SEED + 1)) -n 1500 -b 512 -m copied-vdb.model $clones/copied/disks/vdb.img
cp fsx-vda.2 fsx-vda.model

say "two disks and the snapshot beneath at once"
"$FSX" -s $((SEED + 7)) -n 1000 -r -m fsx-vda.model $clones/fsx/disks/vda.img &
first=$!
"$FSX" -s $((SEED + 8)) -n 1000 -r -m fsx-vdb.model $clones/fsx/disks/vdb.img &
second=$!
for ((i = 0; i < 5; i++)); do same mnt/vms/web/snapshots/installed/disks/vda.img want/installed-vda.img; done
wait $first
wait $second

say "odd sizes"
truncate -s 8000001 $clones/odd/disks/vda.img
printf 'end' | dd of=$clones/odd/disks/vda.img bs=1 seek=9000000 conv=notrunc status=none
cp want/installed-vda.img odd-vda.model
truncate -s 8000001 odd-vda.model
printf 'end' | dd of=odd-vda.model bs=1 seek=9000000 conv=notrunc status=none
# A disk is whole sectors: once nobody has it open, zeros fill up the last.
truncate -s 9000448 odd-vda.model
equal 9000448 "$(stat -c %s $clones/odd/disks/vda.img)" "size after a write behind the end"
same $clones/odd/disks/vda.img odd-vda.model

say "space comes back when it is punched out"
layer=$(domain_source $clones/odd/domain.xml vdb)
dd if=/dev/urandom of=$clones/odd/disks/vdb.img bs=1M count=5 conv=notrunc,fsync status=none
full=$(space_of "$layer")
fallocate -p -o 0 -l 5M $clones/odd/disks/vdb.img
sync -d $clones/odd/disks/vdb.img
[ "$(space_of "$layer")" -lt $((full - 3000000)) ] || fail "punched 5 MiB; the layer took $full bytes, now $(space_of "$layer")"
cmp -n 5242880 $clones/odd/disks/vdb.img /dev/zero

say "4 KiB written cost 4 KiB and not a cluster"
mkdir $clones/web@installed/small
layer=$(domain_source $clones/small/domain.xml vda)
dd if=/dev/urandom of=$clones/small/disks/vda.img bs=4k seek=1 count=1 conv=notrunc,fsync status=none
before=$(space_of "$layer")
for at in 100 300 500 700; do dd if=/dev/urandom of=$clones/small/disks/vda.img bs=4k seek=$at count=1 conv=notrunc,fsync status=none; done
at_most 65536 $(($(space_of "$layer") - before)) "bytes taken by four writes of 4 KiB"

say "the snapshots read as before"
for s in installed upgraded; do
	for disk in vda vdb; do same mnt/vms/web/snapshots/$s/disks/$disk.img want/$s-$disk.img; done
done
same $clones/copied2/disks/vda.img want/upgraded-vda.img

models=(fsx-vda fsx-vdb grown-vda copied-vda copied-vdb odd-vda)
declare -A layers=()
wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
for m in "${models[@]}"; do
	same "$clones/${m%-*}/disks/${m#*-}.img" "$m.model"
	layers[$m]=$(domain_source "$clones/${m%-*}/domain.xml" "${m#*-}")
done
cp --sparse=always $clones/fio/disks/vda.img fio-vda.model
layers[fio-vda]=$(domain_source $clones/fio/domain.xml vda)
unmount mnt
same before <(fingerprint src) "the sources"

say "QEMU reads the same, and finds nothing to repair"
for layer in src/.vmsnapfs/layers/*.qcow2; do check_image "$layer"; done
for m in "${models[@]}" fio-vda; do
	qemu-img compare -q -f qcow2 -F raw "${layers[$m]}" "$m.model" || fail "$m: QEMU reads something else"
done
qemu-io -f qcow2 -c "write -P 77 1M 64k" "${layers[fsx-vda]}" >/dev/null
dd if=/dev/zero bs=64k count=1 status=none | tr '\0' '\115' | dd of=fsx-vda.model bs=64k seek=16 conv=notrunc status=none

say "and the next mount, also what QEMU wrote in between"
mount_at src mnt
for m in "${models[@]}" fio-vda; do
	same "$clones/${m%-*}/disks/${m#*-}.img" "$m.model"
	equal "$(stat -c %s "$m.model")" "$(stat -c %s "$clones/${m%-*}/disks/${m#*-}.img")" "size of $m"
done
"$FSX" -s $((SEED + 9)) -n 500 -b 512 -m fsx-vda.model $clones/fsx/disks/vda.img
layer=${layers[fsx-vda]}
unmount mnt
check_image "$layer"
qemu-img compare -q -f qcow2 -F raw "$layer" fsx-vda.model
