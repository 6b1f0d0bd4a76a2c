#!/usr/bin/env bash
# Copies out of the mount are as sparse as qemu-img's. Copies into it that are killed half-way leave what a half copy leaves: a part of
# the bytes, no layer that nobody owns, no job; the same after a remount; and rm -r takes all of it away.       limit: 300
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io rsync tar busybox python3 setsid

echo "seed $SEED"
rng_seed "$SEED"
src=$PWD/src
store=$src/.vmsnapfs
mkdir -p "$src/vm" want out
head -c 24M /dev/urandom >random
img create -f qcow2 "$src/a.qcow2" 128M
io "$src/a.qcow2" qcow2 "write -s random 1M 24M" "write -P 7 40M 8M" "write -s random 100M 20M" "write -z 104M 4M"
img create -f raw "$src/b.img" 48M
io "$src/b.img" raw "write -s random 4k 20M" "write -P 9 30M 1M"
img create -f qcow2 -b "$src/a.qcow2" -F qcow2 "$src/a.now"
img create -f qcow2 -b "$src/b.img" -F raw "$src/b.now"
io "$src/b.now" qcow2 "write -P 3 10M 3M"
domain_xml vm "$(uuid_of vm)" "vda=$src/a.now" "vdb=$src/b.now" >now.xml
domain_xml vm "$(uuid_of vm)" "vda=$src/a.qcow2" "vdb=$src/b.now" >first.xml
img snapshot -c s "$src/b.now"
oracle "$src/a.qcow2" qcow2 want/vda.img
oracle "$src/b.now" qcow2 want/vdb.img
snapshot_xml s active=1 domain=first.xml -- "vda=external:$src/a.now" vdb=internal >"$src/vm/s.xml"
cp now.xml "$src/vm.xml"
mount_at src mnt
from=$PWD/mnt/vms/vm/snapshots/s
clones=$PWD/mnt/clones

say "out of the mount"
blocks() {
	stat -c %b "$1"
}
for tool in "cp -r" "cp -r --sparse=always" "rsync -aS" "tar"; do
	case $tool in
	tar) mkdir out/s && tar -C "$from" -Scf - . | tar -C out/s -xf - ;;
	*) $tool "$from" out/ ;;
	esac
	for disk in vda vdb; do
		same "out/s/disks/$disk.img" "want/$disk.img" "$disk by $tool"
		at_most $(($(blocks "want/$disk.img") + 128)) "$(blocks "out/s/disks/$disk.img")" "blocks of $disk by $tool"
	done
	chmod -R u+w out
	rm -r out/s
done

# Every block of FILE is zeros, or what ORIGINAL has there.
is_part_of() { # FILE ORIGINAL
	python3 -c '
import sys
with open(sys.argv[1], "rb") as part, open(sys.argv[2], "rb") as whole:
    at = 0
    while (a := part.read(512)):
        b = whole.read(512)
        if a != b[:len(a)] and any(a):
            sys.exit(f"{sys.argv[1]}: other bytes at {at}")
        at += len(a)' "$1" "$2" || fail "more than a part"
}

shown() { # what is there, and what it holds
	(cd "$clones" && find half ! -name events -type f -printf '%p %s\n' | sort &&
		find half/disks -type f -print0 | sort -z | xargs -0r sha256sum)
}

# No layer that no VM names, and no layer's header.
no_orphans() {
	local layer name
	for layer in "$store"/layers/*; do
		[ -e "$layer" ] || continue
		name=${layer##*/}
		grep -rqF "${name%.part}" "$store/vms" || grep -qF "$name" "$store"/layers/*.qcow2 || fail "nobody owns $layer"
	done
}

say "killed half-way"
before=$(space_of "$store/layers")
halves=0
for ((run = 0; run < ${NR_RUNS:-48}; run++)); do
	case $((run % 8)) in
	0) command="cp -r '$from' '$clones/half'" ;;
	1) command="cp -r --reflink=never --sparse=never '$from' '$clones/half'" ;;
	2) command="cp -r --sparse=always '$from' '$clones/half'" ;;
	3) command="rsync -a '$from/' '$clones/half/'" ;;
	4) command="rsync -aS --inplace '$from/' '$clones/half/'" ;;
	5) command="mkdir '$clones/half'; tar -C '$from' -cf - . | tar -C '$clones/half' -xf -" ;;
	6) command="busybox cp -r '$from' '$clones/half'" ;;
	7) command="mkdir '$clones/half'; cat '$from/disks/vdb.img' >'$clones/half/disks/vdb.img'; dd bs=64k if='$from/disks/vda.img' of='$clones/half/disks/vda.img'" ;;
	esac
	setsid bash -c "$command" >/dev/null 2>&1 &
	pid=$!
	rnd $((run % 8 == 0 ? 30 : 400))
	sleep "$(printf '0.%03d' "$REPLY")" # not waiting: this is the moment at which it dies
	kill -9 -- -$pid 2>/dev/null && halves=$((halves + 1))
	wait $pid 2>/dev/null || true
	no_copier() { ! pgrep -g "$pid" >/dev/null; }
	wait_until 20 no_copier
	[ -d "$clones/half" ] || continue
	sync -f "$clones/half"
	for file in "$clones"/half/disks/* "$clones"/half/disks/.[!.]*; do
		[ -e "$file" ] || continue
		case $file in *vda.img*) disk=vda ;; *vdb.img*) disk=vdb ;; *) fail "a file that nobody copied: $file" ;; esac
		is_part_of "$file" want/$disk.img
	done
	if chance 40; then
		shown >first
		unmount mnt
		no_orphans
		mount_at src mnt
		same first <(shown) "what is there after a remount"
	fi
	rm -r "$clones/half"
	wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
	lists "$clones"
	equal 0 "$(find "$store/layers" "$store/vms" -type f | wc -l)" "files of nobody left by '$command'"
done
say "$halves of $run were killed"
at_most $((before + 4096)) "$(space_of "$store/layers")" "bytes of the layers"
unmount mnt
