#!/usr/bin/env bash
# Random chains over qcow2's options: what the library reads is what qemu-img converts.       limit: 240
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

nr=${NR_CHAINS:-60}
echo "seed $SEED"
"$TESTS/tools/make-chains" "$SEED" "$nr" src want
fingerprint src >before
while read -r _ _ image snapshot raw; do
	[ "$raw" = - ] || echo "$PWD/src/$image $snapshot $PWD/want/$raw"
done <want/index >list
"$BUILD/tools/viewcmp" "$PWD/src" "$SEED" <list
fingerprint src >after
same before after "the sources"
