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
