#!/usr/bin/env bash
# Every way to delete a snapshot of a managed VM, with one child, several, with clones, while it is current: what stays is the
# same byte for byte, what is refused says why, and the space comes back.       limit: 240
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img getfattr

echo "seed $SEED"
rng_seed "$SEED"
src=$PWD/src
layers=$src/.vmsnapfs/layers
vm=mnt/clones/vm
mkdir "$src"
mount_at src mnt

scribble() { # FILE: what nothing else holds, at a few places, and a hole
	local nr
	for ((nr = 0; nr < 3; nr++)); do
		rnd 60
		dd if=/dev/urandom of="$1" bs=16k seek="$REPLY" count=2 conv=notrunc status=none
	done
	rnd 60
	fallocate -p -o $((REPLY * 16384)) -l 16384 "$1"
}

# The tree that each case begins with, two disks in every snapshot:
#   a -- b -- c -- d        d is a leaf
#         \-- e -- f        the active state goes on from f
plant() {
	local s disk
	mkdir $vm
	rm -rf want
	mkdir want
	truncate -s 1M empty
	for disk in vda vdb; do cp empty $vm/disks/$disk.img; done
	for s in a b c d; do take $s; done
	ln -sfn snapshots/b $vm/current
	for s in e f; do take $s; done
	for disk in vda vdb; do
		scribble $vm/disks/$disk.img
		cp $vm/disks/$disk.img want/now-$disk.img
	done
	all_right a b c d e f
	tree a: b:a c:b d:c e:b f:e
}

take() { # NAME
	local disk
	for disk in vda vdb; do
		scribble $vm/disks/$disk.img
		cp $vm/disks/$disk.img "want/$1-$disk.img"
	done
	mkdir "$vm/snapshots/$1"
}

# These snapshots are there, and no other; each holds what it held, as does the active state.
all_right() { # NAME...
	local s disk
	lists $vm/snapshots "$@"
	for disk in vda vdb; do
		for s; do same "$vm/snapshots/$s/disks/$disk.img" "want/$s-$disk.img"; done
		same $vm/disks/$disk.img want/now-$disk.img "the active state of $disk"
	done
}

attribute() { # NAME FILE
	getfattr --only-values -n "user.vmsnapfs.$1" "$2" 2>/dev/null || true
}

tree() { # NAME:PARENT...
	local pair name
	for pair; do
		name=${pair%%:*}
		equal "${pair#*:}" "$(attribute parent "$vm/snapshots/$name")" "parent of $name"
		equal "$(printf '%s\n' "$@" | sed -n "s/\(.*\):$name\$/\1/p" | sort)" \
			"$(attribute children "$vm/snapshots/$name" | tr '\0' '\n' | sort)" "children of $name"
	done
}

delete() { # WORDS
	echo "$*" >$vm/actions/delete
}

# What a case leaves: right, also when the jobs are done and after a remount; the files are whole, and none is too many.
settle() { # NAME...
	local layer nr
	all_right "$@"
	wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
	all_right "$@"
	unmount mnt
	for layer in "$layers"/*.qcow2; do check_image "$layer"; done
	nr=$(find "$layers" -type f | wc -l)
	at_most $((2 * ($# + 1) + forks)) "$nr" "layers for $# snapshots and the active state of two disks"
	equal $# "$(find "$src"/.vmsnapfs/vms/*/snapshots -type f | wc -l)" "files of snapshots"
	mount_at src mnt
	all_right "$@"
}

uproot() {
	local vm_dir
	for vm_dir in mnt/clones/*; do
		find "$vm_dir/snapshots" -mindepth 1 -maxdepth 1 -exec rmdir {} +
		rmdir "$vm_dir"
	done
	wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
	equal 0 "$(find "$src/.vmsnapfs/layers" "$src/.vmsnapfs/vms" -type f | wc -l)" "files of nobody left in the store"
}

last_event() {
	tail -n 1 $vm/events
}

# How many layers of the store two branches may share although no snapshot has them as its own.
forks=0

say "rmdir: one child"
plant
rmdir $vm/snapshots/c
tree a: b:a d:b e:b f:e
settle a b d e f
uproot

say "rmdir: several children"
plant
rmdir $vm/snapshots/b
tree a: c:a d:c e:a f:e
forks=2
settle a c d e f
forks=0
uproot

say "rmdir: the root"
plant
rmdir $vm/snapshots/a
tree b: c:b d:c e:b f:e
settle b c d e f
uproot

say "rmdir: a leaf"
plant
rmdir $vm/snapshots/d
settle a b c e f
uproot

say "rmdir: the current one"
plant
equal snapshots/f "$(readlink $vm/current)" current
rmdir $vm/snapshots/f
equal snapshots/e "$(readlink $vm/current)" "current, when it was deleted"
settle a b c d e
mkdir $vm/snapshots/after
equal e "$(attribute parent $vm/snapshots/after)" "parent of what was made then"
uproot

say "rmdir: one with clones"
plant
mkdir mnt/clones/vm@c/first mnt/clones/vm@c/second
scribble mnt/clones/first/disks/vda.img
cp mnt/clones/first/disks/vda.img want/first-vda.img
rmdir $vm/snapshots/c
[ ! -e $vm/snapshots/c ] || fail "c is still there"
clones_right() {
	same mnt/clones/first/disks/vda.img want/first-vda.img
	same mnt/clones/first/disks/vdb.img want/c-vdb.img
	same mnt/clones/second/disks/vda.img want/c-vda.img
	same mnt/clones/second/disks/vdb.img want/c-vdb.img
}
clones_right
forks=6
settle a b d e f
forks=0
clones_right
rmdir mnt/clones/first mnt/clones/second
settle a b d e f
uproot

say "rmdir: all of them, in any order"
plant
for s in b e a f d c; do
	rmdir $vm/snapshots/$s
	for disk in vda vdb; do same $vm/disks/$disk.img want/now-$disk.img "the active state of $disk without $s"; done
done
[ ! -L $vm/current ] || fail "current without a snapshot: $(readlink $vm/current)"
settle
equal 2 "$(find "$layers" -type f | wc -l)" "layers of a VM of two disks without snapshots"
uproot

say "rmdir: one that is being read"
plant
exec 9<$vm/snapshots/c/disks/vda.img
rmdir $vm/snapshots/c
cmp - want/c-vda.img <&9 || fail "what was opened before the snapshot was deleted has changed"
exec 9<&-
settle a b d e f
uproot

say "merge"
plant
delete c merge
tree a: b:a d:b e:b f:e
all_right a b d e f
delete f merge
equal snapshots/e "$(readlink $vm/current)" current
refused EPERM delete d merge
contains "$(last_event)" d "the event of the refused merge"
all_right a b d e
settle a b d e
uproot

say "merge-force"
plant
delete d merge-force
for disk in vda vdb; do cp want/d-$disk.img want/c-$disk.img; done
tree a: b:a c:b e:b f:e
all_right a b c e f
delete b merge-force
tree a: c:a e:a f:e
forks=2
settle a c e f
forks=0
ln -sfn snapshots/c $vm/current
rmdir $vm/snapshots/before-restore-*
for disk in vda vdb; do cp want/c-$disk.img want/now-$disk.img; done
delete f merge-force
for disk in vda vdb; do cp want/f-$disk.img want/e-$disk.img; done
all_right a c e
delete e merge-force
for disk in vda vdb; do cp want/e-$disk.img want/a-$disk.img; done
tree a: c:
refused EPERM delete a merge
refused EPERM delete a merge-force
contains "$(last_event)" a "the event of the refused merge"
forks=2
settle a c
forks=0
uproot

say "discard"
plant
delete d discard
refused ENOTEMPTY delete b discard
contains "$(last_event)" discard-force "the event of the refused discard"
all_right a b c e f
delete f discard
equal snapshots/e "$(readlink $vm/current)" current
settle a b c e
uproot

say "discard-force"
plant
delete c discard-force
all_right a b e f
delete b discard-force
equal snapshots/a "$(readlink $vm/current)" current
settle a
delete a discard-force
settle
uproot

say "by UUID, with quotes, and what isn't understood"
plant
mv $vm/snapshots/c "$vm/snapshots/c and more"
delete "\"c and more\""
delete "$(attribute uuid $vm/snapshots/d)" discard
refused ENOENT delete nothing
refused ENOENT delete nothing merge
refused ENOENT rmdir $vm/snapshots/nothing
refused EINVAL delete e vanish
refused EINVAL delete e merge discard
all_right a b e f
refused "EROFS|EPERM|ENOTEMPTY" rm $vm/snapshots/a/disks/vda.img
refused "EROFS|EPERM|ENOTEMPTY|ENOTDIR" rmdir $vm/snapshots/a/disks

say "while a preview is open"
echo b >$vm/actions/preview
refused EBUSY rmdir $vm/snapshots/a
for how in "" merge merge-force discard discard-force; do refused EBUSY delete a $how; done
contains "$(last_event)" undo "the event of what was refused during the preview"
echo undo >$vm/actions/undo
settle a b e f

say "a merge that is cancelled, and goes on when it is asked for again"
dd if=/dev/urandom of=$vm/disks/vda.img bs=1M count=1 conv=notrunc status=none
cp $vm/disks/vda.img want/now-vda.img
rmdir $vm/snapshots/e
for job in mnt/jobs/*; do rm -f "$job" 2>/dev/null || true; done
all_right a b f
wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
rmdir $vm/snapshots/b
all_right a f
unmount mnt
mount_at src mnt
settle a f
uproot
unmount mnt
