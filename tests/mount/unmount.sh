#!/usr/bin/env bash
# An unmount that comes while requests are on their way ends the daemon as any other does.       limit: 240
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need_root

mkdir src mnt
mount_at src mnt
mkdir mnt/clones/vm
for letter in {a..z}; do truncate -s 64K "mnt/clones/vm/disks/vd$letter.img"; done
unmount mnt

for ((round = 0; round < 200; round++)); do
	"$VMSNAPFS" -f src mnt 2>log &
	daemon=$!
	until mountpoint -q mnt; do sleep 0.005; done
	"$BUILD/tools/quickumount" mnt mnt/clones/vm/disks/*
	wait "$daemon" || fail "round $round: the daemon ended with status $?: $(cat log)"
done

# Who mounts again at once waits for the daemon that is ending; who doesn't unmount is told whose the store is.
say mounting again
mkdir other
for round in 1 2 3; do
	mount_at src mnt
	first=$daemon
	mount_refused "process $first" src other
	dd if=/dev/urandom of=mnt/clones/vm/disks/vda.img bs=64K count=1 conv=notrunc status=none
	kill -STOP "$first"
	umount mnt
	(sleep 0.2 && kill -CONT "$first") &
	mount_at src mnt
	unmount mnt
	wait_until 10 gone "$first"
done
