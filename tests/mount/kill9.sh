#!/usr/bin/env bash
# kill -9 of the daemon in the middle of 40 clone and write runs (400 nightly): what was fsynced is there, no VM is half there, the images are
# whole, and the next mount goes over the dead one.       limit: 420 nightly: 3600
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

echo "seed $SEED"
rng_seed "$SEED"
runs=${NIGHTLY:+400}
runs=${NR_RUNS:-${runs:-40}}
src=$PWD/src
store=$src/.vmsnapfs
writer=$BUILD/tools/crashwriter
make_vm "$src" web want
fingerprint src >before
clones=mnt/clones

# Makes, copies, renames and removes clones until the mount is gone. Into the log goes what is about to be tried and what came of it.
churn() { # RUN
	local i n=0 from
	for ((i = 0; ; i++)); do
		from=$((i % 3))
		case $from in 0) from=installed ;; 1) from=patched ;; 2) from=upgraded ;; esac
		n=made-$1-$i
		echo "try mkdir $n $from"
		mkdir "$clones/web@$from/$n" || return 0
		echo "did mkdir $n $from"
		case $((i % 4)) in
		1)
			echo "try mv $n $n-moved $from"
			mv "$clones/$n" "$clones/$n-moved" || return 0
			echo "did mv $n $n-moved $from"
			;;
		2)
			echo "try rmdir $n"
			rmdir "$clones/$n" || return 0
			echo "did rmdir $n"
			;;
		3)
			cp -r "mnt/vms/web/snapshots/$from" "$clones/copied-$1-$i" || return 0
			echo "did mkdir copied-$1-$i $from"
			;;
		esac
	done
}

# A clone is as a whole one is, and its disks hold what its snapshot does.
whole() { # NAME SNAPSHOT
	local vm=$clones/$1
	[ -s "$vm/domain.xml" ] || fail "$1: no domain.xml"
	grep -q "<name>$1</name>" "$vm/domain.xml" || fail "$1: domain.xml names another"
	lists "$vm/disks" vda.img vdb.img
	same "$vm/disks/vda.img" "want/$2-vda.img"
	same "$vm/disks/vdb.img" "want/$2-vdb.img"
}

# Reads the log of a run: what was said to be done is so; what was tried may be so, wholly.
check_churn() { # LOG
	local -A sure=() maybe=()
	local what verb name rest n
	while read -r what verb name rest; do
		case "$what $verb" in
		"try mkdir") maybe[$name]=$rest ;;
		"did mkdir") sure[$name]=$rest ;;
		"try mv") maybe[${rest% *}]=${rest#* } && unset "sure[$name]" && maybe[$name]=${rest#* } ;;
		"did mv") sure[${rest% *}]=${rest#* } && unset "maybe[$name]" ;;
		"try rmdir") unset "sure[$name]" ;;
		"did rmdir") unset "maybe[$name]" ;;
		esac
	done <"$1"
	for n in "${!sure[@]}"; do
		[ -d "$clones/$n" ] || fail "$n has gone"
		whole "$n" "${sure[$n]}"
	done
	for n in "${!maybe[@]}"; do
		[ -d "$clones/$n" ] || continue
		whole "$n" "${maybe[$n]}"
	done
	for n in "$clones"/*; do
		n=${n##*/}
		case $n in made-$run-*) [ -n "${sure[$n]:-}${maybe[$n]:-}" ] || fail "$n is there, which was removed or never made" ;; esac
	done
}

# The layers as they were left: whole, or marked dirty, and then whole after the repair that QEMU does when it opens one.
check_layers() {
	local layer status
	for layer in "$store"/layers/*.qcow2; do
		[ -e "$layer" ] || continue
		status=0
		qemu-img check -q -f qcow2 "$layer" >/dev/null 2>&1 || status=$?
		case $status in 0 | 3) continue ;; esac
		# One that was just being made, and that no VM names, may be anything.
		grep -rqF "${layer##*/}" "$store/vms" || continue
		qemu-img info -U "$layer" | grep -q 'lazy refcounts: true' || fail "qemu-img check $layer: status $status"
		cp --sparse=always "$layer" "$store/layers/.copy"
		# An opening for writing, but without what lies beneath: that may be on its way still.
		qemu-img rebase -u -f qcow2 -b "" "$store/layers/.copy" >/dev/null 2>&1 || fail "$layer can't be opened"
		check_image "$store/layers/.copy" leaks
		rm "$store/layers/.copy"
	done
}

mount_at src mnt
for ((run = 1; run <= runs; run++)); do
	mkdir "$clones/web@upgraded/written-$run"
	churn $run >churn.log 2>/dev/null &
	churner=$!
	writers=()
	rm -f -- *.writes
	for disk in vda vdb; do
		"$writer" write "$clones/written-$run/disks/$disk.img" "$disk.writes" $((SEED + run)) &
		writers+=($!)
	done
	rnd 250
	sleep "$(printf '0.%03d' $((REPLY + 20)))" # not waiting: this is the moment at which the daemon dies
	kill_daemon mnt
	wait $churner || true
	for pid in "${writers[@]}"; do wait "$pid" || fail "run $run: a writer failed before the daemon died"; done
	refused ENOTCONN ls mnt/vms
	check_layers

	mount_at src mnt
	for disk in vda vdb; do
		"$writer" verify "$clones/written-$run/disks/$disk.img" "$disk.writes" "want/upgraded-$disk.img" || fail "run $run: lost"
	done
	check_churn churn.log
	# Every other run begins with what the one before has left.
	if [ $((run % 2)) = 0 ] || [ "$run" = "$runs" ]; then
		wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
		for vm in "$clones"/*; do rm -r "$vm"; done
	fi
done
say "$runs runs"
unmount mnt
equal 0 "$(find "$store/layers" "$store/vms" -type f | wc -l)" "files of nobody left in the store"
findmnt -rn | grep -F "$PWD/mnt " && fail "dead mounts are left below the live one"
same before <(fingerprint src) "the sources"
