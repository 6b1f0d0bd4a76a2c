#!/usr/bin/env bash
# Everything at once: readers, writers, cloners, listers. Each gets what it would get alone.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

rounds=${NR_ROUNDS:-12}
src=$PWD/src
make_vm "$src" web want
mount_at src mnt
clones=mnt/clones
mkdir $clones/web@installed/stays $clones/web@patched/written

read_snapshots() {
	local i s
	for ((i = 0; i < rounds; i++)); do
		for s in installed patched upgraded; do
			same mnt/vms/web/snapshots/$s/disks/vda.img "want/$s-vda.img"
			same mnt/vms/web/snapshots/$s/disks/vdb.img "want/$s-vdb.img"
		done
	done
}

clone_and_remove() { # NAME SNAPSHOT
	local i
	for ((i = 0; i < rounds; i++)); do
		mkdir "$clones/web@$2/$1"
		same "$clones/$1/disks/vda.img" "want/$2-vda.img"
		mv "$clones/$1" "$clones/$1-moved"
		same "$clones/$1-moved/disks/vdb.img" "want/$2-vdb.img"
		rmdir "$clones/$1-moved"
		cp -r "mnt/vms/web/snapshots/$2" "$clones/$1"
		same "$clones/$1/disks/vda.img" "want/$2-vda.img"
		rm -r "${clones:?}/$1"
	done
}

look_around() {
	local i
	for ((i = 0; i < rounds; i++)); do
		ls -lR mnt/vms >/dev/null
		# What goes away between the two is no error here.
		ls -lR mnt/clones >/dev/null 2>&1 || true
		cat mnt/vms/*/status mnt/events mnt/README.txt >/dev/null
		cat mnt/clones/*/domain.xml mnt/clones/*/status >/dev/null 2>&1 || true
	done
}

write_disk() { # DISK SEED
	"$FSX" -s "$2" -n $((rounds * 60)) -b 512 -m "$1.model" "$clones/written/disks/$1.img" || fail "fsx on $1"
}

read_snapshots &
pids=($!)
clone_and_remove a patched &
pids+=($!)
clone_and_remove b installed &
pids+=($!)
look_around &
pids+=($!)
write_disk vda "$SEED" &
pids+=($!)
write_disk vdb $((SEED + 1)) &
pids+=($!)
for pid in "${pids[@]}"; do wait "$pid" || fail "one of them failed"; done

wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
lists $clones stays written
same $clones/stays/disks/vda.img want/installed-vda.img
same $clones/written/disks/vda.img vda.model
same $clones/written/disks/vdb.img vdb.model
unmount mnt
for layer in src/.vmsnapfs/layers/*.qcow2; do check_image "$layer"; done
