#!/usr/bin/env bash
# A snapshot is one moment of all disks: under eight writers that stamp two of them in turn, and under an ext4 that is
# written to on a loop device, whose journal every snapshot replays.       limit: 900
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img mke2fs e2fsck xmllint

count=${NR_SNAPSHOTS:-200}
src=$PWD/src
vm=mnt/clones/vm
mkdir "$src"
mount_at src mnt
mkdir $vm
truncate -s 4M empty
cp empty $vm/disks/vda.img
cp empty $vm/disks/vdb.img

say "two disks under eight writers, $count snapshots"
"$BUILD/tools/stamper" $vm/disks/vda.img $vm/disks/vdb.img $vm/snapshots "$count"
# shellcheck disable=SC2046
lists $vm/snapshots $(seq "$count")
for ((i = 1; i <= count; i++)); do
	lists "$vm/snapshots/$i/disks" vda.img vdb.img
	xmllint --noout "$vm/snapshots/$i/snapshot.xml" "$vm/snapshots/$i/domain.xml"
done
equal "snapshots/$count" "$(readlink $vm/current)" current
equal running "$(xmllint --xpath 'string(/domainsnapshot/state)' $vm/snapshots/1/snapshot.xml)" "state of a snapshot under writers"
equal 0 "$(find "$src/.vmsnapfs/vms" -name '*~' -o -name '.*.tmp' | wc -l)" "scratch files left"

say "the same after a remount"
sha256sum $vm/snapshots/*/disks/*.img >sums
unmount mnt
for layer in "$src"/.vmsnapfs/layers/*.qcow2; do check_image "$layer"; done
mount_at src mnt
sha256sum -c --quiet sums
# shellcheck disable=SC2046
lists $vm/snapshots $(seq "$count")

if [ "$(id -u)" != 0 ]; then
	say "the loop-mounted ext4 is left out: not root"
	unmount mnt
	exit 0
fi

# The loop device lets go of its file a moment after the unmount.
try_rmdir() {
	rmdir "$1" 2>/dev/null
}

# --- an ext4 with a journal, busy --------------------------------------------------------------------------------------

# Makes files until told to end. Each is written, synced, given its name, and only then noted: a noted one is in every later
# snapshot, until the 35th after it removes it.
churn() {
	local i dir
	for ((i = 1; ; i++)); do
		[ ! -e end ] || return 0
		dir=mnt-guest/$((i % 7))
		mkdir -p "$dir"
		content "$i" >"$dir/new"
		sync "$dir/new"
		mv "$dir/new" "$dir/file-$i"
		sync "$dir"
		echo "$i" >>noted
		rm -f "$dir/file-$((i - 35))"
		truncate -s $((i % 100 * 1000)) mnt-guest/changing
	done
}

content() { # NUMBER
	seq "$1" $(($1 + $1 * 37 % 3000))
}

last_noted() {
	tail -n 1 noted 2>/dev/null || echo 0
}

has_noted() { # NUMBER
	[ "$(last_noted)" -ge "$1" ]
}

say "an ext4 on a loop device"
mke2fs -q -t ext4 -J size=4 disk.raw 64M
cp disk.raw $vm/disks/vdc.img
same disk.raw $vm/disks/vdc.img
mkdir mnt-guest
mount -o loop $vm/disks/vdc.img mnt-guest
churn &
churner=$!
noted=()
for ((i = 1; i <= 12; i++)); do
	wait_until 60 has_noted $(($(last_noted) + 11)) || fail "the guest writes nothing any more"
	noted[i]=$(last_noted)
	mkdir $vm/snapshots/guest-$i
done
touch end
wait $churner || fail "the guest's writes failed"
umount mnt-guest
e2fsck -fn $vm/disks/vdc.img >e2fsck.log 2>&1 || fail "the active state: $(cat e2fsck.log)"

for ((i = 1; i <= 12; i++)); do
	dumpe2fs -h $vm/snapshots/guest-$i/disks/vdc.img 2>/dev/null | grep -q needs_recovery || fail "guest-$i has no journal to replay"
	mkdir mnt/clones/vm@guest-$i/replay
	disk=mnt/clones/replay/disks/vdc.img
	mount -o loop $disk mnt-guest
	for ((k = noted[i]; k > noted[i] - 9; k--)); do
		same mnt-guest/$((k % 7))/file-$k <(content $k) "guest-$i: file $k of ${noted[i]}"
	done
	umount mnt-guest
	e2fsck -fn $disk >e2fsck.log 2>&1 || fail "guest-$i, replayed: $(cat e2fsck.log)"
	wait_until 60 try_rmdir mnt/clones/replay || fail "the clone of guest-$i can't be removed"
done
unmount mnt
