#!/usr/bin/env bash
# A disk below SOURCE that is slow, or doesn't answer at all: whoever reads from it waits, can be killed, and keeps nobody else waiting;
# the mount can be ended meanwhile, and what was written elsewhere is there.       limit: 240  nightly: 900
# shellcheck source=tests/load/common/leaks.sh disable=SC2034
. "$(dirname "$0")/common/leaks.sh"
need qemu-img qemu-io setsid
need_root # to mount the slow disk where the daemon may look at it

echo "seed $SEED"
rounds=1
KIB_MORE=49152 # while there is no round before that warms up
[ -z "$NIGHTLY" ] || rounds=12
src=$PWD/src
make_vm "$src" web want

# The slow disk: "cold" with four snapshots (its backing files), and "cool", which nobody looks at before.
mkdir disk "$src/slow"
echo "0 0" >control
for vm in cold cool; do
	img create -f qcow2 disk/$vm-0.qcow2 64M
	io disk/$vm-0.qcow2 qcow2 "write -P 9 0 64M"
	for i in 1 2 3 4; do
		img create -f qcow2 -b $vm-$((i - 1)).qcow2 -F qcow2 disk/$vm-$i.qcow2
		io disk/$vm-$i.qcow2 qcow2 "write -P $i $i""M 1M"
	done
done
oracle disk/cold-4.qcow2 qcow2 want/cold.img
"$BUILD/tools/slowfs" disk "$PWD/control" "$src/slow" &
slowfs=$!
wait_until 10 is_mounted "$src/slow"
disk_answers() { echo "${1:-0} ${2:-0}" >control; }
ending() { disk_answers; } # or nothing could be unmounted

cold=mnt/vms/cold-4
clones=mnt/clones

waits() { # PID: in the kernel, for an answer
	[ "$(sed 's/.*) \(.\).*/\1/' "/proc/$1/stat" 2>/dev/null)" = D ] || [ "$(cat "/proc/$1/wchan" 2>/dev/null)" = request_wait_answer ]
}

waits_or_has_ended() { waits "$1" || gone "$1"; }

# More at once than the daemon has threads, and than the kernel sends ahead for one reader.
readers=()
start_readers() { # [waits_or_has_ended]
	local i waits=${1:-waits}
	readers=()
	echo 1 >/proc/sys/vm/drop_caches
	for ((i = 0; i < 12; i++)); do
		setsid dd if=$cold/snapshots/cold-3/disks/vda.img of=/dev/null bs=64k skip=$((i * 64 + 7 + RANDOM % 32)) count=4 iflag=direct status=none 2>/dev/null &
		readers+=($!)
	done
	for i in 0 1 2 3; do
		[ "$i" != 3 ] || i=0
		setsid cat $cold/snapshots/cold-$i/disks/vda.img >/dev/null 2>&1 &
		readers+=($!)
	done
	disown "${readers[@]}"
	for i in "${readers[@]}"; do wait_until 20 "$waits" "$i" || fail "a reader doesn't wait for the disk"; done
}

kill_readers() {
	local pid
	kill -9 "${readers[@]}" 2>/dev/null || true
	for pid in "${readers[@]}"; do
		wait_until 20 gone "$pid" || fail "a reader that was killed still waits: $(cat "/proc/$pid/stack" 2>/dev/null || true)"
	done
}

# What has nothing to do with the slow disk.
go_on() { # COMMAND...
	timeout 30 "$@" >/dev/null || fail "'$*' didn't end while the disk doesn't answer"
}
the_rest_goes_on() {
	local snapshot
	go_on ls -lR mnt/vms/web
	go_on ls mnt mnt/vms mnt/clones mnt/jobs
	go_on cat mnt/events mnt/vms/web/status mnt/vms/web/domain.xml
	echo 1 >/proc/sys/vm/drop_caches
	for snapshot in installed patched upgraded; do
		go_on cmp mnt/vms/web/snapshots/$snapshot/disks/vda.img want/$snapshot-vda.img
		go_on cmp mnt/vms/web/snapshots/$snapshot/disks/vdb.img want/$snapshot-vdb.img
	done
	go_on mkdir $clones/web@patched/new
	go_on cp -r mnt/vms/web/snapshots/installed $clones/copied
	go_on dd if=want/cold.img of=$clones/new/disks/vda.img bs=64k count=64 conv=notrunc,fsync status=none
	go_on dd if=want/installed-vda.img of=$clones/kept/disks/vda.img conv=notrunc status=none
	go_on mkdir $clones/new/snapshots/s
	go_on cmp -n $((64 * 65536)) $clones/new/snapshots/s/disks/vda.img want/cold.img
	go_on mv $clones/new $clones/newer
	go_on rmdir $clones/newer/snapshots/s
	go_on rmdir $clones/newer
	go_on rm -r $clones/copied
}

few_threads() { # those that were added go when there is something to do
	stat -f mnt >/dev/null
	[ "$(find "/proc/$daemon/task" -mindepth 1 -maxdepth 1 | wc -l)" -lt 20 ]
}

mount_at src mnt
mkdir $clones/web@installed/kept
ls -lR mnt/vms/cold-4 >/dev/null
the_rest_goes_on
start_usage

for ((round = 0; round < rounds; round++)); do
	say "round $round: slow"
	disk_answers 100
	start_readers waits_or_has_ended
	the_rest_goes_on
	kill_readers

	say "reads aren't answered"
	disk_answers -1
	start_readers
	the_rest_goes_on
	go_on ls $cold $cold/snapshots $cold/disks
	kill_readers
	the_rest_goes_on

	say "nothing is answered"
	start_readers
	disk_answers -1 -1
	setsid ls -lR mnt/vms/cool-4 >/dev/null 2>&1 &
	readers+=($!)
	wait_until 20 waits "${readers[-1]}"
	sleep 1.5 # SOURCE is looked at again, which isn't answered either
	setsid ls mnt/vms >/dev/null 2>&1 &
	disown
	the_rest_goes_on
	the_rest_goes_on
	kill_readers

	disk_answers
	go_on cmp $cold/disks/vda.img want/cold.img
	wait_until 60 jobs_done mnt
	wait_until 60 few_threads || fail "the threads that were added stay"
	usage_is_back
	if [ "$round" = 0 ]; then
		KIB_MORE=16384
		start_usage
	fi
done

a_thread_waits() { # of the daemon: the one that looks whether images have changed
	local task
	for task in "/proc/$daemon/task"/*; do
		! waits "${task##*/}" || return 0
	done
	return 1
}

say "the mount is ended while reads aren't answered, or nothing is, though nobody reads"
for how in signal umount idle; do
	if [ $how = idle ]; then
		readers=()
		exec 8<$cold/snapshots/cold-3/disks/vda.img
		disk_answers -1 -1
		wait_until 30 a_thread_waits || fail "nobody looks at the open image"
	else
		disk_answers -1
		start_readers
	fi
	dd if=want/upgraded-vda.img of=$clones/kept/disks/vda.img conv=notrunc status=none
	pid=$daemon
	case $how in
	signal | idle) kill "$pid" ;;
	umount)
		umount -l mnt
		kill -9 "${readers[@]}"
		;;
	esac
	not_mounted() { ! is_mounted "$PWD/mnt"; }
	wait_until 60 not_mounted || fail "$how: the mount is still there"
	wait_until 60 gone "$pid" || fail "$how: the daemon is still there"
	[ $how = idle ] || kill_readers
	exec 8<&-
	disk_answers
	wait "$pid" && fail "$how: nobody was told that the daemon ended with requests unanswered"
	unset "daemons[$PWD/mnt]"
	mount_at src mnt
	same $clones/kept/disks/vda.img want/upgraded-vda.img "what was written"
	same $cold/disks/vda.img want/cold.img
done
unmount mnt
for layer in src/.vmsnapfs/layers/*.qcow2; do check_image "$layer" leaks; done
umount "$src/slow"
wait "$slowfs"
