#!/usr/bin/env bash
# Names are exchanged while the daemon, root's, follows them: files for links that lead out, for FIFOs and devices, directories for
# links, and private directories for open ones. Nothing outside is ever read, nobody sees what he may not, and nothing waits.
# limit: 240     nightly: 1200
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io setpriv
need_root

swapper=$BUILD/tools/swapper
seconds=${NIGHTLY:+60}
seconds=${seconds:-3}
carol=$(id -u daemon)
chmod 755 .
src=$PWD/src
mkdir "$src" outside
printf 'a secret outside' | dd of=outside/secret bs=64k conv=sync status=none
chmod 600 outside/secret

swappers=()
swap() {
	"$swapper" "$@" >>swaps &
	swappers+=($!)
}
stop_swapping() {
	local pid
	for pid in "${swappers[@]}"; do
		kill "$pid"
		wait "$pid" || fail "swapper has failed"
	done
	swappers=()
	local nr
	nr=$(awk '{ n += $1 } END { print n }' swaps)
	say "$nr exchanges"
	[ "$nr" -gt 1000 ] || fail "only $nr exchanges"
	rm swaps
}
# During that time, and until it has succeeded once: COMMAND again and again; how often it has succeeded is in $worked, how often not in $failed.
hammer() { # COMMAND...
	local end=$((SECONDS + seconds)) out
	worked=0 failed=0
	while [ $SECONDS -le $end ] || [ $worked = 0 ]; do
		[ $SECONDS -le $((end + 60)) ] || fail "'$*' never succeeds"
		if timeout 30 "$@" >got 2>err; then worked=$((worked + 1)); else
			[ $? != 124 ] || fail "'$*' waits for ever"
			failed=$((failed + 1))
		fi
		! grep -qa 'a secret' got || fail "the secret was read by '$*'"
	done
}

say "an image and a link that leads out, a FIFO, a device; a directory and a link to one"
mkdir "$src/d" "$src/evil"
for kind in link fifo device dir; do
	img create -f raw "$src/d/$kind" 64k
	io "$src/d/$kind" raw "write -P 1 0 64k"
	img create -u -f qcow2 -b "$src/d/$kind" -F raw "$src/$kind.qcow2" 64k
done
ln -s "$PWD/outside/secret" "$src/evil/link"
mkfifo "$src/evil/fifo"
mknod "$src/evil/device" c 1 5
mkdir "$src/sub" && cp "$src/d/dir" "$src/sub/secret"
ln -s "$PWD/outside" "$src/evil/sub"
img create -u -f qcow2 -b "$src/sub/secret" -F raw "$src/subdir.qcow2" 64k
cp "$src/d/dir" want
mount_at "$src" mnt
swap "$src/d/link" "$src/evil/link" "$src/d/fifo" "$src/evil/fifo" "$src/d/device" "$src/evil/device" "$src/sub" "$src/evil/sub"
for name in link fifo device subdir; do
	seconds_all=$seconds
	seconds=$((seconds_all / 3))
	hammer cat mnt/vms/$name/disks/vda.img
	seconds=$seconds_all
	say "$name: read $worked times, refused $failed times"
done
timeout 60 ls -lR mnt >/dev/null || [ $? != 124 ] || fail "ls -lR waits for ever"
stop_swapping
unmount mnt

say "XML and a link, a FIFO; RAM that is copied and a link"
for i in 1 2; do
	domain_xml "xml$i" "$(uuid_of "xml$i")" "vda=$src/d/dir,raw" >"$src/xml$i.xml"
done
echo "<domain type='qemu'><name>a secret</name></domain>" >outside/secret.xml
ln -s "$PWD/outside/secret.xml" "$src/evil/xml1"
mkfifo "$src/evil/xml2"
echo ram >"$src/ram"
ln -s "$PWD/outside/secret" "$src/evil/ram"
mount_at "$src" mnt
mkdir mnt/clones/vm
cp "$src/d/dir" mnt/clones/vm/disks/vda.img
ram_snapshot() {
	echo "<domainsnapshot><name>ram</name><memory snapshot='external' file='$src/ram'/></domainsnapshot>" >mnt/clones/vm/actions/snapshot || return 1
	cat mnt/clones/vm/snapshots/ram/memory && rmdir mnt/clones/vm/snapshots/ram
}
export -f ram_snapshot
export src
swap "$src/xml1.xml" "$src/evil/xml1" "$src/xml2.xml" "$src/evil/xml2" "$src/ram" "$src/evil/ram"
hammer cat mnt/vms/xml1/domain.xml mnt/vms/xml2/domain.xml
say "domain.xml: read $worked times, refused $failed times"
hammer bash -c ram_snapshot
say "RAM: taken $worked times, refused $failed times"
stop_swapping
! grep -rqa 'a secret' mnt/vms/*/domain.xml mnt/events 2>/dev/null || fail "a secret in the mount"
unmount mnt
! grep -rqa 'a secret' "$src/.vmsnapfs" || fail "a secret in the store"

say "a directory that carol can't enter and one that she can, while root's daemon looks whether she can"
mkdir "$src/private" "$src/open"
printf 'a secret inside' | dd of="$src/private/image" bs=64k conv=sync status=none
cp want "$src/open/image"
chmod 644 "$src/private/image" "$src/open/image"
chmod 700 "$src/private"
domain_xml private "$(uuid_of private)" "vda=$src/private/image,raw" >"$src/private.xml"
mount_at "$src" mnt -o allow_other
refused EACCES setpriv --reuid="$carol" --regid="$carol" --clear-groups cat mnt/vms/private/disks/vda.img
swap "$src/private" "$src/open"
hammer setpriv --reuid="$carol" --regid="$carol" --clear-groups cat mnt/vms/private/disks/vda.img
say "what lies in the open one: read $worked times, refused $failed times"
stop_swapping
unmount mnt
