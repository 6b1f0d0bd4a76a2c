#!/usr/bin/env bash
# The daemon killed at 50 random moments (500 nightly) while guests write, snapshots and clones come and go, states are gone back to and jobs
# copy: what was acknowledged is there, what wasn't is there wholly or not at all, and nothing of nobody stays.       limit: 600 nightly: 14400
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io python3 fio

echo "seed $SEED"
kills=${NIGHTLY:+500}
kills=${NR_RUNS:-${kills:-50}}
src=$PWD/src
make_vm "$src" web want
make_box "$src" 48 want
fingerprint "$src" >before
mkdir mnt
"$TESTS/tools/killstorm" "$VMSNAPFS" "$BUILD/tools/crashwriter" "$src" "$PWD/mnt" "$PWD/want" "$SEED" "$kills" >story || {
	cat story
	fail "$(tail -n 1 story)"
}
cat story
equal 0 "$(find "$src"/.vmsnapfs/*/ -type f | wc -l)" "files of nobody left in the store"
findmnt -rn | grep -F "$PWD/mnt " && fail "dead mounts are left below the live one"
same before <(fingerprint "$src") "the sources"
