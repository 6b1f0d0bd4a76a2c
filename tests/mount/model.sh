#!/usr/bin/env bash
# Random snapshots, deletions of every kind, previews, clones, writes, remounts and kills through the mount, against a plain
# model (tests/tools/snapmodel.c).       limit: 900 nightly: 3600
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img

echo "seed $SEED"
nr_steps=4000
[ -z "${NIGHTLY:-}" ] || nr_steps=20000
mkdir src mnt
# What went wrong comes last, after the daemon's many lines.
"$BUILD/tools/snapmodel" "$VMSNAPFS" "$PWD/src" "$PWD/mnt" "$SEED" "${NR_STEPS:-$nr_steps}" > steps || {
	cat steps
	fail "$(tail -n 1 steps)"
}
tail -n 1 steps
findmnt -rn | grep -F "$PWD/mnt " && fail "dead mounts are left below the live one"
true
