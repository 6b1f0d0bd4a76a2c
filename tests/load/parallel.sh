#!/usr/bin/env bash
# Thousands of clones, and of snapshots of one clone, made and removed by many processes at once, and listed all the time: each listing holds what
# is there, once, and nothing else; and the daemon gives back what it took.       limit: 180  nightly: 1800
# shellcheck source=tests/load/common/leaks.sh
. "$(dirname "$0")/common/leaks.sh"
need qemu-img qemu-io

echo "seed $SEED"
rounds=2 makers=16 turns=4
[ -z "$NIGHTLY" ] || rounds=10 turns=40
# A VM that has gone leaves its number behind, under 400 bytes until the unmount.
KIB_MORE=$((KIB_MORE + rounds * turns * 120 * 400 / 1024))
src=$PWD/src
make_vm "$src" web want
mount_at src mnt
clones=mnt/clones
for i in {1..50}; do mkdir "$clones/web@patched/c-stays-$i"; done
mkdir $clones/web@installed/c-stays-vm
for i in {1..20}; do mkdir "$clones/c-stays-vm/snapshots/s-stays-$i"; done

round() {
	"$BUILD/tools/churn" $clones $clones/web@patched c $makers $turns 3 || fail "clones"
	"$BUILD/tools/churn" $clones/c-stays-vm/snapshots $clones/c-stays-vm/snapshots s 4 "$turns" 2 || fail "snapshots"
	wait_until 120 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
}

leaks_nothing $rounds round
# shellcheck disable=SC2046
lists $clones $(printf 'c-stays-%s ' {1..50}) c-stays-vm
same $clones/c-stays-1/disks/vda.img want/patched-vda.img
same $clones/c-stays-vm/snapshots/s-stays-20/disks/vda.img want/installed-vda.img
same $clones/c-stays-vm/disks/vda.img want/installed-vda.img
layers=$(find src/.vmsnapfs/layers -type f | wc -l)
unmount mnt
mount_at src mnt
equal "$layers" "$(find src/.vmsnapfs/layers -type f | wc -l)" "layers that nobody cleared away before the start"
unmount mnt
for layer in src/.vmsnapfs/layers/*.qcow2; do check_image "$layer"; done
