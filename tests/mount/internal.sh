#!/usr/bin/env bash
# A clone of an internal snapshot: usable at once, made an ordinary image in the background, through kill -9 and a restart, and never
# wrong when its source changes under it.       limit: 180
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

src=$PWD/src
store=$src/.vmsnapfs
mkdir -p "$src" want
img create -f qcow2 "$src/base.qcow2" 256M
# Enough that the job takes a while.
head -c 64M /dev/urandom >random
qemu-img convert -f raw -O qcow2 -o cluster_size=4k random "$src/base.qcow2"
qemu-img resize -q -f qcow2 "$src/base.qcow2" 200M
img create -f qcow2 -b base.qcow2 -F qcow2 "$src/box.qcow2"
io "$src/box.qcow2" qcow2 "write -P 1 1M 3M" "write -P 2 100M 40M" "write -z 8M 2M"
img snapshot -c one "$src/box.qcow2"
io "$src/box.qcow2" qcow2 "write -P 3 0 2M" "discard 100M 20M"
img snapshot -c two "$src/box.qcow2"
io "$src/box.qcow2" qcow2 "write -P 4 150M 2M"
for s in one two; do oracle "$src/box.qcow2" qcow2 want/$s.img $s; done
fingerprint src >before

say "usable at once, written to while the job runs"
mount_at src mnt
clones=mnt/clones
mkdir $clones/box@one/a
named=$(domain_source $clones/a/domain.xml vda)
case $named in "$PWD/mnt/clones/a/disks/vda.img" | "$store"/layers/*) ;; *) fail "domain.xml names $named" ;; esac
dd if=random of=$clones/a/disks/vda.img bs=1M count=2 seek=50 conv=notrunc,fsync status=none
cp want/one.img a.model
dd if=random of=a.model bs=1M count=2 seek=50 conv=notrunc status=none
same $clones/a/disks/vda.img a.model
cp -r mnt/vms/box/snapshots/two $clones/b
same $clones/b/disks/vda.img want/two.img

say "becomes a standalone image"
wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
same $clones/a/disks/vda.img a.model
same $clones/b/disks/vda.img want/two.img
a=$(domain_source $clones/a/domain.xml vda)
b=$(domain_source $clones/b/domain.xml vda)
[[ $a == $store/layers/* && -f $a ]] || fail "domain.xml names $a"
unmount mnt
check_image "$a"
check_image "$b"
qemu-img compare -q -f qcow2 -F raw "$a" a.model
qemu-img compare -q -f qcow2 -F raw "$b" want/two.img
same before <(fingerprint src) "the sources"

say "kill -9 in the middle, several times"
mount_at src mnt
mkdir $clones/box@one/c
"$BUILD/tools/crashwriter" write $clones/c/disks/vda.img c.writes "$SEED" &
writer=$!
for i in 1 2 3 4 5; do
	wait_until 10 test -s c.writes
	kill_daemon mnt
	wait $writer
	mount_at src mnt
	"$BUILD/tools/crashwriter" verify $clones/c/disks/vda.img c.writes want/one.img || fail "kill $i: lost"
	mkdir $clones/box@two/d$i
	"$BUILD/tools/crashwriter" write $clones/d$i/disks/vda.img d$i.writes "$i" &
	writer=$!
done
kill_daemon mnt
wait $writer
mount_at src mnt
wait_until 100 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
"$BUILD/tools/crashwriter" verify $clones/c/disks/vda.img c.writes want/one.img
for i in 1 2 3 4 5; do "$BUILD/tools/crashwriter" verify $clones/d$i/disks/vda.img d$i.writes want/two.img; done
c=$(domain_source $clones/c/domain.xml vda)
qemu-img convert -U -f raw -O raw $clones/c/disks/vda.img c.img
unmount mnt
check_image "$c" leaks
qemu-img compare -q -f qcow2 -F raw "$c" c.img

say "its snapshot goes before the job is done: an error, never something else"
mount_at src mnt
mkdir $clones/box@one/e
kill_daemon mnt
cp src/box.qcow2 box.saved
img snapshot -d one "$src/box.qcow2"
io "$src/box.qcow2" qcow2 "write -P 99 0 200M"
mount_at src mnt
if cp $clones/e/disks/vda.img e.img 2>/dev/null; then
	# The job was done before the daemon died: then it is the right one.
	same e.img want/one.img
else
	refused EIO cat $clones/e/disks/vda.img
	[ "$(events_with mnt one)" -gt 0 ] || fail "no event says what happened"
fi
rm -r $clones/e
same $clones/c/disks/vda.img c.img "a clone that was done already"
unmount mnt
