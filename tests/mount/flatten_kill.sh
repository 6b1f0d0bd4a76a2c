#!/usr/bin/env bash
# kill -9 of the daemon at 25 random moments (100 nightly) of jobs that make a VM independent, while a guest writes: each goes on where it was, ends
# with a flat image that equals what the disk was, and nothing that was fsynced is lost.       limit: 420 nightly: 3600
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io python3

echo "seed $SEED"
rng_seed "$SEED"
kills=${NIGHTLY:+100}
kills=${NR_RUNS:-${kills:-25}}
src=$PWD/src
store=$src/.vmsnapfs
writer=$BUILD/tools/crashwriter
make_box "$src" 288 want
fingerprint src >before
clones=mnt/clones
layer_of() { # VM: the file of its vda
	domain_source "$clones/$1/domain.xml" vda
}

begin() { # VM KIND
	case $2 in
	flatten)
		mkdir "$clones/now@box/$1"
		dd if=/dev/urandom of="$clones/$1/disks/vda.img" bs=64k seek=500 count=3 conv=notrunc,fsync status=none
		;;
	chain) # with a snapshot between: both are to lie on nothing of others
		mkdir "$clones/now@box/$1"
		dd if=/dev/urandom of="$clones/$1/disks/vda.img" bs=64k seek=700 count=3 conv=notrunc,fsync status=none
		mkdir "$clones/$1/snapshots/between"
		;;
	*) echo "box $1 mode=full format=$2" >mnt/vms/now/actions/clone ;;
	esac
	case $2 in
	flatten | chain)
		cp "$clones/$1/disks/vda.img" model
		cp model between.img
		echo all >"$clones/$1/actions/flatten"
		;;
	*) cp want/box.img model ;;
	esac
}

# The model gets what is there now wherever the writer was: reading all of the disk would take longer than the job.
note_writes() { # DISK
	python3 -c '
import struct, sys
with open(sys.argv[1], "rb") as disk, open("model", "r+b") as model, open("writes", "rb") as log:
    for kind, sector, count, _ in struct.iter_unpack("=IIII", log.read()):
        if kind < 2:
            disk.seek(sector * 512)
            model.seek(sector * 512)
            model.write(disk.read(count * 512))' "$1"
}

is_flat() { # VM KIND
	local file info
	file=$(layer_of "$1")
	[[ $file == "$store"/layers/* && -f $file ]] || fail "$1's disk is $file"
	if [ "$2" = raw ]; then
		[[ $file == *.raw ]] || fail "a raw clone is $file"
		same "$file" model "$1's raw file"
	else
		info=$(qemu-img info -U --backing-chain "$file")
		[[ $info != *"$src/b"* ]] || fail "$1 still needs its source: $info"
		[[ $2 = chain || $info != *"backing file"* ]] || fail "$1 has a backing file: $info"
		qemu-img compare -U -q -f qcow2 -F raw "$file" model || fail "$1's image isn't what its disk was"
	fi
}

mount_at src mnt
killed=0 nr=0
while [ $killed -lt "$kills" ]; do
	nr=$((nr + 1))
	kinds=(flatten qcow2 raw chain)
	kind=${kinds[nr % 4]}
	vm=vm$nr
	begin $vm "$kind"
	was_killed=0
	while [ -n "$(ls mnt/jobs)" ]; do
		"$writer" write $clones/$vm/disks/vda.img writes $((SEED + nr + killed)) &
		pid=$!
		rnd 250
		sleep "$(printf '0.%03d' "$REPLY")" # not waiting: this is the moment at which the daemon dies
		if [ -n "$(ls mnt/jobs)" ]; then killed=$((killed + 1)) was_killed=$((was_killed + 1)); fi
		kill_daemon mnt
		wait $pid || fail "the writer failed before the daemon died"
		mount_at src mnt
		# Again before it got far.
		while chance 60; do
			rnd 80
			sleep "$(printf '0.%03d' "$REPLY")"
			[ -n "$(ls mnt/jobs)" ] || break
			killed=$((killed + 1)) was_killed=$((was_killed + 1))
			kill_daemon mnt
			mount_at src mnt
		done
		"$writer" verify $clones/$vm/disks/vda.img writes model || fail "kill $killed, $kind: lost"
		note_writes $clones/$vm/disks/vda.img
		rm -f writes
		[ $was_killed -lt 12 ] || wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
	done
	same $clones/$vm/disks/vda.img model "$kind after $was_killed kills"
	[ "$kind" != chain ] || same $clones/$vm/snapshots/between/disks/vda.img between.img "the snapshot of the flattened one"
	is_flat $vm "$kind"
	say "$kind: $was_killed kills"
	file=$(layer_of $vm)
	unmount mnt
	[ "$kind" = raw ] || check_image "$file"
	mount_at src mnt
	same $clones/$vm/disks/vda.img model "after a remount"
	[ "$kind" != chain ] || rmdir $clones/$vm/snapshots/between
	wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
	rm -r ${clones:?}/$vm
done
unmount mnt
equal 0 "$(find "$store"/*/ -type f | wc -l)" "files of nobody left in the store"
same before <(fingerprint src) "the sources"
