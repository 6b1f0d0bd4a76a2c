#!/usr/bin/env bash
# A clone in full that is cancelled at its very end is a thin one: what it read and what was written to it is there, and nothing else is left.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

mkdir src pool
img create -f qcow2 src/base.qcow2 48M
io src/base.qcow2 qcow2 "write -P 3 0 24M" "write -P 4 30M 8M"
img create -f qcow2 -b base.qcow2 -F qcow2 src/web.qcow2
oracle src/base.qcow2 qcow2 want.img
printf written | dd of=want.img bs=1 seek=4096 conv=notrunc status=none
mount_at src mnt -o "pool=p:$PWD/pool"

cancelled=0
for ((round = 0; round < 24; round++)); do
	words=format=raw
	[ $((round % 3)) = 0 ] || words="format=raw pool=p"
	[ $((round % 4)) != 3 ] || words=mode=full
	echo "base c$round $words" >mnt/vms/web/actions/clone
	printf written | dd of="mnt/clones/c$round/disks/vda.img" bs=1 seek=4096 conv=notrunc status=none
	job=mnt/jobs/c$round-vda-flatten
	while [ -e "$job" ] && ! grep -qs 'progress.*\(9[0-9]\|100\) %' "$job"; do :; done
	if rm "$job" 2>/dev/null; then cancelled=$((cancelled + 1)); fi # it may have been faster
	same "mnt/clones/c$round/disks/vda.img" want.img "round $round, $words"
	rm -r "mnt/clones/c$round"
done
say "$cancelled of $round were cancelled"
[ $cancelled -gt 0 ] || fail "no job was cancelled"
wait_until 30 jobs_done mnt
unmount mnt
[ -z "$(find src/.vmsnapfs/layers src/.vmsnapfs/jobs src/.vmsnapfs/pools/p pool -mindepth 1)" ] || fail "left: $(find src/.vmsnapfs pool)"
