#!/usr/bin/env bash
# Looking around: the tree, times, attributes, sparse maps; damaged files among the good ones.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io getfattr tar xmllint

src=$PWD/src
make_vm "$src" web want
# A bare image with a chain and an internal snapshot, and one that is nothing but raw.
img create -f qcow2 "$src/box-base.qcow2" 4M
io "$src/box-base.qcow2" qcow2 "write -P 1 0 64k"
img snapshot -c early "$src/box-base.qcow2"
io "$src/box-base.qcow2" qcow2 "write -P 2 64k 64k"
img create -f qcow2 -b box-base.qcow2 -F qcow2 "$src/box.qcow2"
io "$src/box.qcow2" qcow2 "write -P 3 1M 64k"
truncate -s 3M "$src/flat.raw"
# What can't be served: a header cut off, an XML that ends early, an image that is gone.
truncate -s 60 "$src/broken.qcow2"
printf 'QFI\xfb\0\0\0\3' | dd of="$src/broken.qcow2" conv=notrunc status=none
head -c 300 "$src/web.xml" >"$src/cut.xml"
domain_xml lost "$(uuid_of lost)" "vda=$src/images/not-there.qcow2" >"$src/lost.xml"
fingerprint src >before

mount_at src mnt
web=mnt/vms/web

say "the tree"
lists mnt README.txt events vms clones jobs
[ "$(wc -l <mnt/README.txt)" -gt 5 ] || fail "README.txt is short"
lists $web domain.xml status disks current snapshots actions events
lists $web/disks vda.img vdb.img
lists $web/snapshots installed patched upgraded
lists $web/snapshots/patched domain.xml snapshot.xml disks
lists $web/snapshots/patched/disks vda.img vdb.img
equal snapshots/upgraded "$(readlink $web/current)" current
same $web/current/disks/vda.img want/upgraded-vda.img
lists mnt/clones
[ -d mnt/clones/web@patched ] || fail "clones/web@patched isn't there"
lists mnt/clones/web@patched
refused ENOENT ls mnt/clones/web@nothing
refused ENOENT ls mnt/vms/nobody
refused ENOENT ls $web/snapshots/nothing

say "the bytes, whichever way a snapshot keeps them"
for f in want/*.img; do
	name=${f#want/}
	case $name in
	now-*) disk=$web/disks/${name#now-} ;;
	*) disk=$web/snapshots/${name%-*}/disks/${name##*-} ;;
	esac
	same "$disk" "$f"
	equal "$(stat -c %s "$f")" "$(stat -c %s "$disk")" "size of $disk"
done

say "two readers at once, at all offsets"
for i in 1 2 3; do
	dd if=$web/snapshots/installed/disks/vda.img bs=7777 iflag=fullblock status=none | cmp - want/installed-vda.img &
	readers[i]=$!
done
for pid in "${readers[@]}"; do wait "$pid"; done

say "configuration"
xmllint --noout mnt/vms/*/domain.xml $web/snapshots/*/*.xml
equal web "$(xmllint --xpath 'string(/domain/name)' $web/domain.xml)"
equal patched "$(xmllint --xpath 'string(/domainsnapshot/name)' $web/snapshots/patched/snapshot.xml)"
equal installed "$(xmllint --xpath 'string(/domainsnapshot/parent/name)' $web/snapshots/patched/snapshot.xml)"
equal 0 "$(xmllint --xpath 'count(/domainsnapshot/active)' $web/snapshots/upgraded/snapshot.xml)" "<active> is libvirt's own"
equal "fresh from the installer" "$(xmllint --xpath 'string(//description)' $web/snapshots/installed/snapshot.xml)"

say "times"
equal 1500000000 "$(stat -c %Y $web/snapshots/installed)"
equal 1550000000 "$(stat -c %Y $web/snapshots/patched/disks/vda.img)"
# shellcheck disable=SC2012
equal "upgraded patched installed" "$(ls -t $web/snapshots | paste -sd ' ')" "ls -t"

say "status"
status=$(cat $web/status)
contains "$status" "kind: "
contains "$status" "current: upgraded"
! grep -qvE '^[a-z][a-z ._~0-9-]*: ' $web/status || fail "status isn't key: value lines: $status"

say "extended attributes"
attr() {
	getfattr --only-values -n "user.vmsnapfs.$1" "$2"
}
equal "$(uuid_of web)" "$(attr uuid $web)"
equal installed "$(attr parent $web/snapshots/patched)"
equal shutoff "$(attr state $web/snapshots/patched)"
equal "fresh from the installer" "$(attr description $web/snapshots/installed)"
contains "$(attr created $web/snapshots/installed)" 2017-07-14
equal "$(printf '%s\n' "$src/images/web-vda.upgraded" "$src/images/web-vda.installed" "$src/images/web-vda.qcow2")" \
	"$(attr chain $web/disks/vda.img)" chain
equal 2 "$(attr depth $web/snapshots/upgraded/disks/vda.img)" depth
equal "$src/images/web-vda.qcow2" "$(attr layer $web/snapshots/installed/disks/vda.img)" layer
getfattr -d $web/snapshots/installed/disks/vda.img >/dev/null

say "bare images"
lists mnt/vms/box/snapshots box-base early
oracle "$src/box.qcow2" qcow2 want/box.img
oracle "$src/box-base.qcow2" qcow2 want/box-base.img
oracle "$src/box-base.qcow2" qcow2 want/box-early.img early
same mnt/vms/box/disks/vda.img want/box.img
same mnt/vms/box/snapshots/box-base/disks/vda.img want/box-base.img
same mnt/vms/box/snapshots/early/disks/vda.img want/box-early.img
same mnt/vms/flat/disks/vda.img "$src/flat.raw"
[ ! -e mnt/vms/box-base ] || fail "a backing file is no VM of its own"
[ ! -e mnt/vms/web-vda ] || fail "an image that an XML names is no VM of its own"

say "sparse maps"
disk=$web/snapshots/upgraded/disks/vda.img
size=$(stat -c %s $disk)
used=$(($(stat -c %b $disk) * 512))
[ $used -lt "$size" ] || fail "$disk: $used bytes of $size allocated, it is sparse"
[ $used -ge 2000000 ] || fail "$disk: only $used bytes allocated"
cp --sparse=always --reflink=never $disk copy.img
same copy.img want/upgraded-vda.img "cp --sparse"
[ "$(space_of copy.img)" -lt "$size" ] || fail "the copy isn't sparse"
tar -C $web/snapshots/upgraded/disks -Scf disk.tar vda.img
[ "$(stat -c %s disk.tar)" -lt 4000000 ] || fail "tar -S stored holes: $(stat -c %s disk.tar) bytes"
mkdir untar
tar -C untar -xSf disk.tar
same untar/vda.img want/upgraded-vda.img "tar -S"

say "nothing here can be changed"
touch_disk() { dd if=/dev/zero of="$1" bs=512 count=1 conv=notrunc status=none; }
refused "EROFS" touch_disk $web/snapshots/patched/disks/vda.img
refused "EROFS" touch_disk $web/disks/vda.img
refused "EROFS" truncate -s 1 $web/snapshots/patched/disks/vda.img
refused "EROFS" rm $web/snapshots/patched/disks/vda.img
refused "EROFS" rm -f $web/snapshots/patched/domain.xml
refused "EROFS" rmdir $web/snapshots/patched
refused "EROFS" mkdir $web/snapshots/new
refused "EROFS" touch $web/snapshots/patched/disks/vdz.img
refused "EROFS" chmod 777 $web/snapshots/patched/disks/vda.img
refused "EROFS" mv $web/snapshots/patched $web/snapshots/other
refused "EROFS|EPERM" mv $web/snapshots/patched mnt/clones/stolen
refused "EROFS" rmdir $web
refused "EROFS" mv $web mnt/vms/other
refused "EROFS" mkdir mnt/vms/new
refused "EROFS" ln -sfn snapshots/patched $web/current
refused "EROFS|EPERM|EACCES" rm mnt/README.txt
refused "EROFS|EPERM|EACCES" touch mnt/new
contains "$(cat mnt/events)" web "a refusal is an event"
same $web/snapshots/patched/disks/vda.img want/patched-vda.img

say "what can't be served says why, and hurts nothing else"
ls -lR mnt >/dev/null
refused "EUCLEAN|EIO" cat mnt/vms/broken/disks/vda.img
refused EIO cat mnt/vms/lost/disks/vda.img
[ "$(events_with mnt broken)" -gt 0 ] || fail "no event names the broken image"
[ "$(events_with mnt cut.xml)" -gt 0 ] || fail "no event names cut.xml"
refused EIO cat mnt/vms/lost/disks/vda.img
contains "$(cat mnt/vms/lost/events)" not-there.qcow2
# A file that an open has shown to be gone may come back.
img create -f qcow2 "$src/images/not-there.qcow2" 1M
wait_until 10 cmp -s mnt/vms/lost/disks/vda.img <(head -c 1M /dev/zero) || fail "an image that came isn't noticed"
rm "$src/images/not-there.qcow2"

say "what changes in SOURCE is seen"
make_vm "$src" late want2
wait_until 10 test -d mnt/vms/late/snapshots/patched || fail "a VM that came isn't noticed"
same mnt/vms/late/snapshots/patched/disks/vda.img want2/patched-vda.img
rm -r "$src"/late* "$src"/images/late*
wait_until 10 test ! -e mnt/vms/late || fail "a VM that went is still there"

stat -f mnt >/dev/null
df mnt >/dev/null
unmount mnt
fingerprint src >after
same before after "the sources"
