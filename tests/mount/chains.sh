#!/usr/bin/env bash
# Random chains over qcow2's options: each disk of each snapshot in the mount is what qemu-img converts.       limit: 300
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

nr=${NR_CHAINS:-60}
echo "seed $SEED"
"$TESTS/tools/make-chains" "$SEED" "$nr" src want
fingerprint src >before
mount_at src mnt

# A bare image is a VM named after the leaf; the files below it and every internal snapshot are its snapshots.
declare -A snapshots=()
views=0
while read -r _ leaf image snapshot raw; do
	title=${leaf%.*}
	vm=mnt/vms/$title
	if [ "$image" = "$leaf" ] && [ "$snapshot" = - ]; then
		disk=$vm/disks/vda.img
	else
		[ "$snapshot" != - ] || snapshot=${image%.*}
		disk=$vm/snapshots/$snapshot/disks/vda.img
		snapshots[$title]+="$snapshot "
	fi
	[ "$raw" != - ] || continue
	same "$disk" "want/$raw" "$leaf: $disk, want/$raw"
	equal "$(stat -c %s "want/$raw")" "$(stat -c %s "$disk")" "size of $disk"
	views=$((views + 1))
done <want/index
echo "$views views"
for title in "${!snapshots[@]}"; do
	# shellcheck disable=SC2086
	lists "mnt/vms/$title/snapshots" ${snapshots[$title]}
done
# A chain whose base QEMU itself damages isn't there at all.
chains=$(cut -d' ' -f1 want/index | sort -u | wc -l)
[ "$chains" -ge $((nr * 4 / 5)) ] || fail "only $chains chains of $nr"
equal "$chains" "$(find mnt/vms -mindepth 1 -maxdepth 1 | wc -l)" "number of VMs"

unmount mnt
fingerprint src >after
same before after "the sources"
