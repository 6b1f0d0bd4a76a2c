#!/usr/bin/env bash
# 64 jobs write 64 files, read them back and know what must be there, while snapshots of them are taken and deleted.       limit: 180  nightly: 1200
# shellcheck source=tests/load/common/leaks.sh
. "$(dirname "$0")/common/leaks.sh"
need fio qemu-img

rounds=1 size=2m
KIB_MORE=65536 # the caches of 64 disks fill up over more than a round
[ -z "$NIGHTLY" ] || rounds=10 size=16m
mkdir src
mount_at src mnt -o index=8M
for vm in a b c d; do
	mkdir mnt/clones/$vm
	for letter in {a..p}; do truncate -s 20M mnt/clones/$vm/disks/vd"$letter".img; done
done

# A file of its own for each job.
{
	printf '[global]\nsize=%s\nrw=randwrite\nbsrange=512-64k\nblockalign=512\nioengine=psync\nfsync=64\nverify=crc32c\nverify_fatal=1\ndo_verify=1\nfallocate=none\n' $size
	for file in mnt/clones/[abcd]/disks/vd?.img; do printf '[%s]\nfilename=%s\n' "${file//\//-}" "$file"; done
} >jobs.fio
equal 64 "$(grep -c filename jobs.fio)" jobs

round() {
	local i vm pid
	fio --minimal jobs.fio >fio.log 2>&1 &
	pid=$!
	for ((i = 0; i < 3; i++)); do
		for vm in a b c d; do mkdir "mnt/clones/$vm/snapshots/$i"; done
		for vm in a b c d; do rmdir "mnt/clones/$vm/snapshots/$i"; done
	done
	wait $pid || fail "fio: $(tail -n 5 fio.log)"
	wait_until 120 jobs_done mnt || fail "jobs don't end"
}

leaks_nothing $rounds round
unmount mnt
for layer in src/.vmsnapfs/layers/*.qcow2; do check_image "$layer"; done
