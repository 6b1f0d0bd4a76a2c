#!/usr/bin/env bash
# The store's filesystem fills up in the midst of everything, and gets space again: who writes is told ENOSPC, what was acknowledged is there,
# reads go on, what gives space back can be done with none left, jobs go on by themselves, and nothing needs a remount.       limit: 600 nightly: 7200
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need_root
need qemu-img qemu-io python3 xmllint mkfs.ext4 mkfs.xfs

echo "seed $SEED"
rng_seed "$SEED"
writer=$TESTS/tools/fullwriter
clones=mnt/clones
full=$PWD/full
rounds=${NIGHTLY:+10}
rounds=${rounds:-1}
sizes=(32 24 8) # MiB: of the disk, of what it holds, of the space that there is for a while
[ -z "${NIGHTLY:-}" ] || sizes=(256 192 64)

filesystem() { # TYPE [OPTION...]
	local type=$1 size=$((300 + 6 * sizes[0]))
	shift
	rm -f disk.img
	truncate -s ${size}M disk.img
	case $type in
	ext4) mkfs.ext4 -q -m 0 "$@" disk.img ;;
	xfs) mkfs.xfs -q -m reflink=1 disk.img ;;
	esac
	mkdir -p full
	mount -o loop disk.img full || skip "no loop device"
}

# Takes all space but MIB, the last block too when it is 0.
fill() { # MIB
	local free
	sync -f full
	free=$(($(stat -f -c '%a*%S' full) - ($1 << 20)))
	[ $free -le 0 ] || fallocate -l $free "full/ballast.$1" 2>/dev/null || true
	[ "$1" != 0 ] || for _ in 1 2 3; do
		(cat /dev/zero >full/ballast.$RANDOM) 2>/dev/null || true
		sync -f full
	done
}

room() {
	rm -f full/ballast.*
	sync -f full
}

# Writes until there is no space; what it was told is in the model.
write_disk() { # HOW VM [WORD]
	rnd 1000000
	"$writer" "$1" "$clones/$2/disks/vda.img" "$2.model" "$REPLY" "${nr_writes:-4000}" >word || fail "$2: $(cat word)"
	[ "${3:-full}" = any ] || equal "${3:-full}" "$(cat word)" "$1 writes to $2"
}

right() { # VM...
	local vm
	for vm; do "$writer" check "$clones/$vm/disks/vda.img" "$vm.model" || fail "$vm holds something else"; done
}

# Everything that was there can be read, and is what it was.
all_right() {
	right g h
	same want.img mnt/vms/box/snapshots/base/disks/vda.img
	same first.img $clones/g/snapshots/first/disks/vda.img
	same second.img $clones/g/snapshots/second/disks/vda.img
}

make_source() { # DIR
	mkdir -p "$1"
	img create -f qcow2 "$1/base.qcow2" "${sizes[0]}M"
	io "$1/base.qcow2" qcow2 "write -P 7 0 ${sizes[1]}M"
	img create -f qcow2 -b base.qcow2 -F qcow2 "$1/box.qcow2"
	oracle "$1/base.qcow2" qcow2 want.img
	fingerprint "$1" >before
}

make_vms() {
	local vm
	for vm in g h spare1 spare2; do mkdir "$clones/box@base/$vm"; done
	for vm in g h; do cp want.img $vm.model; done
	nr_writes=40 write_disk buffered g all
	mkdir $clones/g/snapshots/first
	cp $clones/g/disks/vda.img first.img
	nr_writes=40 write_disk direct g all
	mkdir $clones/g/snapshots/second
	cp $clones/g/disks/vda.img second.img
	mkdir $clones/g/snapshots/third
	nr_writes=40 write_disk mmap g all
	dd if=want.img of=$clones/spare1/disks/vda.img bs=1M seek=2 count=2 conv=notrunc,fsync status=none
}

# Work that makes files is refused wholly; what is there goes on being read.
refuse_all() {
	local entries
	entries=$(ls $clones)
	refused ENOSPC mkdir $clones/g/snapshots/new
	refused ENOSPC mkdir $clones/box@base/new
	refused ENOSPC mkdir $clones/g@first/new
	refused ENOSPC mkdir $clones/new
	refused ENOSPC cp want.img $clones/h/disks/vdb.img
	refused ENOSPC bash -c "echo base new mode=full >mnt/vms/box/actions/clone"
	refused ENOSPC bash -c "echo base new mode=full format=raw >mnt/vms/box/actions/clone"
	refused ENOSPC bash -c "echo first >$clones/g/actions/preview"
	equal "$entries" "$(ls $clones)" "clones"
	lists $clones/g/snapshots first second third
	lists $clones/h/disks vda.img
}

# What gives space back is possible without any, and so is what takes none.
give_back() {
	sed 's/made by a test/changed/' $clones/h/domain.xml >domain.xml
	cp domain.xml $clones/h/domain.xml || refused ENOSPC cp domain.xml $clones/h/domain.xml
	xmllint --noout $clones/h/domain.xml || fail "domain.xml is torn"
	rmdir $clones/g/snapshots/third || fail "a snapshot can't be deleted on a full disk"
	lists $clones/g/snapshots first second
	rmdir $clones/spare1 || fail "a clone can't be removed on a full disk"
	rm $clones/spare2/disks/vda.img || fail "a disk can't be removed on a full disk"
	rmdir $clones/spare2 || fail "a clone can't be removed on a full disk"
}

job_tells() { grep -q "state: failed.*No space" mnt/jobs/* 2>/dev/null; }
end_of_jobs() {
	wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
}

# It is mounted at $source, with a store in full/.
story() { # OPTION...
	local how vm layer whole
	mount_at "$source" mnt "$@"
	make_vms
	end_of_jobs
	for how in buffered direct sync mmap; do
		mkdir $clones/box@base/$how
		cp want.img $how.model
		fill "${sizes[2]}"
		write_disk $how $how
		right $how
		all_right
		say "$how"
		fill 0
		write_disk $how h
		all_right
		room
		for vm in $how h; do
			nr_writes=20 write_disk $how "$vm" all
			right "$vm"
		done
		rmdir $clones/$how
	done

	say "no space at all"
	fill 0
	refuse_all
	all_right
	give_back
	fill 0
	all_right
	say "killed, and mounted again without any"
	kill_daemon mnt
	mount_at "$source" mnt "$@"
	all_right
	room
	nr_writes=20 write_disk buffered g all

	say "jobs that don't fit"
	fill "${sizes[2]}"
	whole=(whole)
	echo "base whole mode=full" >mnt/vms/box/actions/clone
	# The first may have taken all of it before the second is made.
	if bash -c 'echo "base whole-raw mode=full format=raw" >mnt/vms/box/actions/clone' 2>refused; then
		whole+=(whole-raw)
	else
		grep -q "No space left" refused || fail "$(cat refused)"
	fi
	echo all >$clones/h/actions/flatten
	[ $shares = yes ] || wait_until 60 job_tells || fail "no job tells of it: $(cat mnt/jobs/*)"
	all_right
	nr_writes=20 write_disk buffered g any
	for vm in "${whole[@]}"; do same want.img "$clones/$vm/disks/vda.img"; done
	rmdir $clones/g/snapshots/first # a merge that has to wait
	room
	if [ ${#whole[@]} = 1 ]; then
		echo "base whole-raw mode=full format=raw" >mnt/vms/box/actions/clone
		whole+=(whole-raw)
	fi
	end_of_jobs
	right g h
	same second.img $clones/g/snapshots/second/disks/vda.img
	for vm in "${whole[@]}"; do same want.img "$clones/$vm/disks/vda.img"; done
	nr_writes=20 write_disk direct h all
	mkdir $clones/g/snapshots/after
	rmdir $clones/g/snapshots/after
	end_of_jobs
	unmount mnt

	say "as it lies there"
	for layer in "$store"/layers/*.qcow2; do check_image "$layer"; done
	mount_at "$source" mnt "$@"
	grep -q "No space left" mnt/events || fail "the events don't tell of it"
	right g h
	same second.img $clones/g/snapshots/second/disks/vda.img
	for vm in "${whole[@]}"; do same want.img "$clones/$vm/disks/vda.img"; done
	rmdir $clones/g/snapshots/second
	for vm in "$clones"/*; do rm -r "$vm"; done
	end_of_jobs
	unmount mnt
	equal 0 "$(find "$store/layers" "$store/vms" -type f | wc -l)" "files of nobody left in the store"
	same before <(fingerprint "$source") "the sources"
	umount full
}

# A few blocks are left: what is written in them can be made stable, its tables have their space, too.
crumbs() {
	local n vm
	mount_at "$source" mnt -o "store=$store"
	for n in 1 2 3 4 5 6 8 11 16; do
		mkdir $clones/box@base/crumb$n
		head -c $((n * 4096)) /dev/zero >full/crumb.$n
	done
	fill 0
	for n in 1 2 3 4 5 6 8 11 16; do
		rm full/crumb.$n
		sync -f full
		python3 -c '
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
nr = 0
try:
    while nr < 40:
        os.pwrite(fd, bytes([nr + 100]) * 4096, nr * 300 * 1024 // 4096 * 4096)
        nr += 1
except OSError as e:
    if e.errno != errno.ENOSPC:
        sys.exit(f"write {nr}: {e}")
os.fsync(fd)
os.close(fd)
with open(sys.argv[1], "rb") as f:
    for i in range(nr):
        f.seek(i * 300 * 1024 // 4096 * 4096)
        if f.read(4096) != bytes([i + 100]) * 4096:
            sys.exit(f"block {i} of {nr} is lost")' $clones/crumb$n/disks/vda.img >lost 2>&1 || fail "$n blocks: $(tail -n 1 lost)"
	done
	room
	for vm in "$clones"/crumb*; do rm -r "$vm"; done
	end_of_jobs
	unmount mnt
	umount full
}

# The store is elsewhere; a pool fills up.
full_pool() {
	mount_at "$source" mnt -o "pool=p:$full"
	cp want.img mnt/pools/p/gone.img
	cp --sparse=never want.img mnt/pools/p/there.qcow2
	cp want.img pool.model
	fill 4
	refused ENOSPC cp --sparse=never want.img mnt/pools/p/new.img
	rm -f mnt/pools/p/new.img
	echo "base inpool mode=full pool=p" >mnt/vms/box/actions/clone
	wait_until 60 job_tells || fail "no job tells of it: $(cat mnt/jobs/*)"
	fill 0
	refused ENOSPC cp --sparse=never want.img mnt/pools/p/new.img
	same want.img mnt/pools/p/there.qcow2
	same want.img mnt/clones/inpool/disks/vda.img
	rm -f mnt/pools/p/new.img
	rm mnt/pools/p/gone.img || fail "nothing can be removed from a full pool"
	room
	end_of_jobs
	same want.img mnt/clones/inpool/disks/vda.img
	unmount mnt
	check_image full/there.qcow2
	mount_at "$source" mnt -o "pool=p:$full"
	same want.img mnt/clones/inpool/disks/vda.img
	same want.img mnt/pools/p/there.qcow2
	rm -r mnt/clones/inpool mnt/pools/p/there.qcow2
	end_of_jobs
	unmount mnt
	equal 0 "$(find full -maxdepth 1 -type f | wc -l)" "files left in the pool"
	umount full
	rm -r "$source/.vmsnapfs"
}

# There is space, but nothing to name a file by.
few_inodes() {
	local nr=0
	mount_at "$source" mnt -o "store=$store"
	mkdir $clones/box@base/first
	mkdir $clones/first/snapshots/s
	while mkdir $clones/box@base/c$nr 2>refused; do
		nr=$((nr + 1))
		[ $nr -lt 200 ] || fail "there are enough inodes"
	done
	grep -q "No space left" refused || fail "$(cat refused)"
	while : >"full/$RANDOM$RANDOM"; do :; done 2>/dev/null
	refused ENOSPC mkdir $clones/first/snapshots/new
	cp want.img first.model
	nr_writes=50 write_disk buffered first all
	rmdir $clones/first/snapshots/s || fail "a snapshot can't be deleted without inodes"
	rmdir $clones/c0 || fail "a clone can't be removed without inodes"
	mkdir $clones/box@base/again || mkdir $clones/first/snapshots/again || fail "what was given back is of no use"
	right first
	unmount mnt
	printf 2026-01-01T >>"$store/events.log" # a line for which there was no space
	mount_at "$source" mnt -o "store=$store"
	grep -q "No space left" mnt/events || fail "a torn line hides the others: $(cat mnt/events)"
	! mkdir $clones/first || fail "a name twice"
	! grep -v "^[0-9TZ:-]* [^ ]*: " "$store/events.log" || fail "the log is torn"
	[ ! -e mnt/clones/c0 ] || fail "c0 is there again"
	right first
	unmount mnt
	umount full
}

# A limit of the daemon's: an error for who writes, and no end of it.
small_files() {
	RUN_AS="prlimit --fsize=$((8 << 20))" mount_at "$source" mnt -o "store=$PWD/limited"
	mkdir $clones/box@base/long
	! dd if=want.img of=$clones/long/disks/vda.img bs=64k conv=notrunc status=none 2>refused || fail "there is no limit"
	grep -q "File too large\|No space left" refused || fail "$(cat refused)"
	dd if=/dev/zero of=$clones/long/disks/vda.img bs=64k count=2 conv=notrunc,fsync status=none
	is_alive mnt || fail "the daemon has ended"
	unmount mnt
	mount_at "$source" mnt -o "store=$PWD/limited"
	same <(head -c 128k /dev/zero) <(head -c 128k $clones/long/disks/vda.img)
	rmdir $clones/long
	unmount mnt
}

for ((round = 0; round < rounds; round++)); do
	say "ext4, the store on it"
	source=$PWD/src store=$full/store shares=no
	make_source "$source"
	filesystem ext4
	story -o store="$store"

	say "crumbs"
	filesystem ext4
	crumbs

	say "few inodes"
	filesystem ext4 -N 96
	few_inodes

	say "a pool"
	filesystem ext4
	full_pool

	say "a limit to the size of files"
	small_files
	rm -r "$source"

	say "XFS, all on it"
	filesystem xfs
	source=$full/src store=$full/src/.vmsnapfs shares=yes
	make_source "$source"
	story

done
