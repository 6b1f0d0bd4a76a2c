#!/usr/bin/env bash
# Pools: volumes made by copying into pools/NAME hold what qemu-img convert says, in the format of the name's ending, and depend on nothing; block devices as
# source and target; what was in the directory before is shown, and stays as it is, whatever is tried or killed.       limit: 300
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need_root
need qemu-img qemu-io mkfs.xfs rsync filefrag losetup
echo "seed $SEED"

mkdir -p src fast slow want x
img create -f raw src/base.raw 40M
io src/base.raw raw "write -P 1 0 3M" "write -P 2 20M 1M" "write -P 3 41942528 512"
img create -f qcow2 -F raw -b base.raw src/web.qcow2
io src/web.qcow2 qcow2 "write -P 4 1M 64k" "write -c -P 5 30M 64k" "write -z 2M 512k"
img create -f qcow2 -F qcow2 -b web.qcow2 src/leaf.qcow2
oracle src/web.qcow2 qcow2 want/web.img
oracle src/base.raw raw want/base.img
snap=mnt/vms/leaf/snapshots

is_closed() { # FILE: nobody holds QEMU's lock on it
	qemu-img info "$1" >/dev/null 2>&1
}

is_whole() { # FILE FORMAT WANT: an image of its own
	local info
	info=$(qemu-img info -U --output=json "$1")
	contains "$info" "\"format\": \"$2\"" "$1"
	case $info in *backing*) fail "$1 depends on another file: $info" ;; esac
	# The kernel tells the daemon of a close(2) a moment after it has returned: then the file is closed too.
	[ "$2" = raw ] || wait_until 10 is_closed "$1" || fail "$1 is still open"
	[ "$2" = raw ] || check_image "$1"
	equal Identical "$(qemu-img compare -U -f "$2" -F raw "$1" "$3" | sed 's/ .*//; s/Images/Identical/')" "$1"
}

# --- what somebody else has put there ---------------------------------------------------------------------------------
img convert -f qcow2 -O qcow2 src/web.qcow2 fast/theirs.qcow2
cp want/base.img fast/theirs.img
echo "just a text" >fast/notes.txt
printf 'QFI\xfb\0\0\0\3garbage' >fast/damaged.qcow2
img create -f qcow2 -u -F raw -b /etc/passwd fast/hostile.qcow2 4k
touch "fast/two
lines.img" fast/.hidden.img
ln -s /etc/passwd fast/link.img
mkdir fast/folder
mkfifo fast/pipe.img
before=$(fingerprint fast)

mount_at src mnt -o pool=fast:fast -o pool=slow:slow -o store=store

say "what is found is shown"
lists mnt/pools fast slow
lists mnt/pools/fast theirs.qcow2 theirs.img notes.txt damaged.qcow2 hostile.qcow2
lists mnt/pools/slow
same want/web.img mnt/pools/fast/theirs.qcow2
same want/base.img mnt/pools/fast/theirs.img
equal "$(stat -c %s want/base.img)" "$(stat -c %s mnt/pools/fast/theirs.img)"
at_most $((8 << 11)) "$(stat -c %b mnt/pools/fast/theirs.qcow2)" "blocks of a sparse volume"
refused "EUCLEAN|EINVAL|EIO|EOPNOTSUPP" cat mnt/pools/fast/damaged.qcow2
refused EACCES cat mnt/pools/fast/hostile.qcow2
touch slow/late.img
wait_until 20 test -e mnt/pools/slow/late.img || fail "late.img doesn't show"
rm slow/late.img
wait_until 20 test ! -e mnt/pools/slow/late.img || fail "late.img still shows"

say "and never written"
for volume in theirs.qcow2 theirs.img notes.txt damaged.qcow2; do
	refused EROFS cp want/base.img mnt/pools/fast/$volume
	refused EROFS rm -f mnt/pools/fast/$volume
	refused EROFS mv mnt/pools/fast/$volume mnt/pools/fast/mine.img
	refused EROFS truncate -s 0 mnt/pools/fast/$volume
	refused EROFS chmod 777 mnt/pools/fast/$volume
done
[ "$(events_with mnt "found in the directory of pool fast")" -ge 4 ] || fail "events don't say why"
equal "$before" "$(fingerprint fast)" "the files of others"

# --- made here -------------------------------------------------------------------------------------------------------------
say "copies of snapshots' disks"
cp $snap/web/disks/vda.img mnt/pools/fast/golden.qcow2
cp $snap/web/disks/vda.img mnt/pools/fast/golden.img
cp --sparse=always --reflink=auto $snap/base/disks/vda.img mnt/pools/fast/base.qcow2
cat $snap/web/disks/vda.img >mnt/pools/fast/cat.raw
dd if=$snap/web/disks/vda.img of=mnt/pools/slow/dd.img bs=1M conv=sparse status=none
rsync -S $snap/web/disks/vda.img mnt/pools/slow/rsync.qcow2
python3 -c "import shutil; shutil.copyfile('$snap/web/disks/vda.img', 'mnt/pools/slow/python.qcow2')"
sync -f mnt
is_made() {
	is_whole fast/golden.qcow2 qcow2 want/web.img
	is_whole fast/golden.img raw want/web.img
	is_whole fast/base.qcow2 qcow2 want/base.img
	is_whole fast/cat.raw raw want/web.img
	is_whole slow/dd.img raw want/web.img
	is_whole slow/rsync.qcow2 qcow2 want/web.img
	is_whole slow/python.qcow2 qcow2 want/web.img
	[ -d mnt/pools/fast ] || return 0
	for volume in fast/golden.qcow2 fast/golden.img slow/dd.img slow/rsync.qcow2; do same want/web.img mnt/pools/$volume; done
}
is_made
at_most $((8 << 20)) "$(space_of fast/golden.img)" "space of a sparse raw volume"
at_most $((8 << 20)) "$(space_of fast/golden.qcow2)" "space of a qcow2 volume"
lists slow dd.img rsync.qcow2 python.qcow2

say "between pools, and into a clone"
cp mnt/pools/fast/golden.qcow2 mnt/pools/slow/again.img
cp mnt/pools/fast/theirs.img mnt/pools/slow/theirs.qcow2
is_whole slow/again.img raw want/web.img
is_whole slow/theirs.qcow2 qcow2 want/base.img
mkdir mnt/clones/new
cp mnt/pools/fast/golden.qcow2 mnt/clones/new/disks/vda.img
cp mnt/clones/new/disks/vda.img mnt/pools/slow/back.qcow2
same want/web.img mnt/clones/new/disks/vda.img
is_whole slow/back.qcow2 qcow2 want/web.img
equal 1 "$(getfattr --only-values -n user.vmsnapfs.chain mnt/clones/new/disks/vda.img | grep -c .)" "files of a disk copied from a pool"

say "names, sizes, rights"
mv mnt/pools/fast/golden.img mnt/pools/fast/other.img
[ ! -e fast/golden.img ] && is_whole fast/other.img raw want/web.img
mv -f mnt/pools/fast/other.img mnt/pools/fast/cat.raw
[ ! -e fast/other.img ] && is_whole fast/cat.raw raw want/web.img
mv mnt/pools/fast/cat.raw mnt/pools/fast/golden2.qcow2 # another format: mv copies it
is_whole fast/golden2.qcow2 qcow2 want/web.img
[ ! -e fast/cat.raw ] || fail "cat.raw is still there"
mv mnt/pools/slow/back.qcow2 mnt/pools/fast/
[ ! -e slow/back.qcow2 ] && is_whole fast/back.qcow2 qcow2 want/web.img
truncate -s 50M mnt/pools/fast/back.qcow2
contains "$(qemu-img info -U fast/back.qcow2)" "(52428800 bytes)"
truncate -s 0 mnt/pools/fast/back.qcow2
cp $snap/base/disks/vda.img mnt/pools/fast/back.qcow2
is_whole fast/back.qcow2 qcow2 want/base.img
printf x | dd of=mnt/pools/fast/odd.qcow2 bs=1 seek=1000 status=none
wait_until 10 is_closed fast/odd.qcow2 || fail "odd.qcow2 is still open"
equal 1024 "$(stat -c %s mnt/pools/fast/odd.qcow2)" "size in whole sectors"
chmod 640 mnt/pools/fast/back.qcow2
equal 640 "$(stat -c %a fast/back.qcow2)"
rm mnt/pools/fast/back.qcow2 mnt/pools/fast/odd.qcow2
if [ -e fast/back.qcow2 ] || [ -e fast/odd.qcow2 ]; then fail "removed volumes still have files"; fi
refused EPERM mkdir mnt/pools/fast/folder2
refused "EROFS|EPERM" rmdir mnt/pools/fast
refused EINVAL touch "mnt/pools/fast/two
lines.raw"
refused ENAMETOOLONG touch "mnt/pools/fast/$(printf 'x%.0s' {1..230}).img"

rsync -S --ignore-times $snap/base/disks/vda.img mnt/pools/slow/rsync.qcow2
is_whole slow/rsync.qcow2 qcow2 want/base.img
rsync -S --ignore-times $snap/web/disks/vda.img mnt/pools/slow/rsync.qcow2
rsync --inplace --ignore-times $snap/base/disks/vda.img mnt/pools/slow/dd.img
rsync --inplace --ignore-times $snap/web/disks/vda.img mnt/pools/slow/dd.img
lists slow dd.img rsync.qcow2 python.qcow2 again.img theirs.qcow2

say "a name is free at once, whoever has the old file open"
cp $snap/web/disks/vda.img mnt/pools/fast/reused.img
exec 7<mnt/pools/fast/reused.img
rm mnt/pools/fast/reused.img
cp $snap/base/disks/vda.img mnt/pools/fast/reused.img
same want/base.img mnt/pools/fast/reused.img
same want/web.img - <&7
exec 7<&-
has_its_name() { # looking is what makes it so
	ls mnt/pools/fast >/dev/null
	cmp -s want/base.img fast/reused.img
}
wait_until 10 has_its_name || fail "the file doesn't get its name: $(ls fast)"
rm mnt/pools/fast/reused.img
[ ! -e fast/reused.img ] || fail "reused.img is still there"

say "somebody else's file that takes the name of ours is theirs"
cp $snap/web/disks/vda.img mnt/pools/fast/taken.img
cp want/base.img fast/tmp && mv fast/tmp fast/taken.img
same want/base.img mnt/pools/fast/taken.img
refused EROFS cp $snap/web/disks/vda.img mnt/pools/fast/taken.img
refused EROFS truncate -s 1M mnt/pools/fast/taken.img
rm mnt/pools/fast/taken.img
wait_until 20 test -e mnt/pools/fast/taken.img || fail "it doesn't show as found"
same want/base.img fast/taken.img
rm fast/taken.img

say "after a remount, and without a pool"
cp $snap/web/disks/vda.img mnt/pools/fast/golden.img
rm mnt/pools/slow/again.img mnt/pools/slow/theirs.qcow2
mv mnt/pools/fast/golden2.qcow2 mnt/pools/fast/cat.raw
unmount mnt
is_made
mount_at src mnt -o pool=slow:slow -o store=store
lists mnt/pools slow
same want/web.img mnt/pools/slow/rsync.qcow2
cp $snap/web/disks/vda.img mnt/pools/slow/now.img
rm mnt/pools/slow/now.img
unmount mnt
mount_at src mnt -o pool=fast:fast -o pool=slow:slow -o store=store
is_made
rm mnt/pools/fast/base.qcow2
[ ! -e fast/base.qcow2 ] || fail "a volume made before isn't ours any more"
cp $snap/base/disks/vda.img mnt/pools/fast/base.qcow2

say "to look at"
unmount mnt
mount_at src mnt -o ro -o pool=fast:fast -o pool=slow:slow -o store=store
is_made
refused EROFS cp want/base.img mnt/pools/fast/new.img
refused EROFS cp want/base.img mnt/pools/fast/golden.img
refused EROFS rm -f mnt/pools/fast/golden.img
unmount mnt

say "each user with their rights"
mount_at src mnt -o allow_other -o pool=fast:fast -o pool=slow:slow -o store=store
as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
chmod 600 mnt/pools/fast/golden.img
chmod 644 mnt/pools/fast/golden.qcow2
refused EACCES as_nobody cat mnt/pools/fast/golden.img
as_nobody cmp want/web.img mnt/pools/fast/golden.qcow2
refused EACCES as_nobody touch mnt/pools/fast/theirs.raw
refused EACCES as_nobody rm -f mnt/pools/fast/golden.qcow2
chmod 600 fast/theirs.img
refused EACCES as_nobody cat mnt/pools/fast/theirs.img
chmod 644 fast/theirs.img
chmod 700 fast
has_mode() { [ "$(stat -c %a "$1")" = "$2" ]; }
wait_until 10 has_mode mnt/pools/fast 700 || fail "the pool's directory is $(stat -c %a mnt/pools/fast)"
refused EACCES as_nobody ls mnt/pools/fast
chmod 755 fast
unmount mnt

say "a pool in the source directory"
mkdir src/pool
mount_at src mnt -o pool=in:src/pool -o store=store3
cp $snap/web/disks/vda.img mnt/pools/in/inner.qcow2
img create -f qcow2 src/pool/box.qcow2 1M
wait_until 10 test -e mnt/vms/box || fail "box doesn't show"
[ ! -e mnt/vms/inner ] || fail "a volume shows as a VM"
rm mnt/pools/in/inner.qcow2
unmount mnt
rm -r src/pool
mount_at src mnt -o pool=fast:fast -o pool=slow:slow -o store=store

say "killed in the middle of copies"
for i in 1 2 3 4 5 6; do
	format=$([ $((i % 2)) = 0 ] && echo qcow2 || echo img)
	(for n in 1 2 3 4 5 6 7 8 9; do cp $snap/web/disks/vda.img mnt/pools/fast/half$n."$format" || exit 0; mv mnt/pools/fast/half$n."$format" mnt/pools/fast/moved$n."$format" || exit 0; done) 2>/dev/null &
	copier=$!
	wait_until 10 compgen -G "fast/half$(((SEED + i) % 8 + 1)).$format" >/dev/null || true
	kill_daemon mnt
	wait $copier || true
	mount_at src mnt -o pool=fast:fast -o pool=slow:slow -o store=store
	equal "$(find fast -maxdepth 1 -type f \( -name 'half*' -o -name 'moved*' \) | wc -l)" \
		"$(find mnt/pools/fast -name 'half*' -o -name 'moved*' | wc -l)" "volumes after kill -9"
	equal "" "$(find fast -name '.vmsnapfs*')" "temporary files after kill -9"
	for volume in mnt/pools/fast/moved*; do [ ! -e "$volume" ] || [ ! -s "$volume" ] || cat "$volume" >/dev/null; done
	rm -f mnt/pools/fast/half* mnt/pools/fast/moved*
	equal "" "$(find fast -maxdepth 1 -name 'half*' -o -name 'moved*')" "half copies are taken away"
done
is_made
rm mnt/pools/fast/{golden.qcow2,golden.img,base.qcow2,cat.raw} mnt/pools/slow/*
unmount mnt
lists slow
equal "$before" "$(fingerprint fast)" "the files of others, at the end"

# --- block devices ------------------------------------------------------------------------------------------------------------
say "a block device as source and target"
head -c 48M /dev/zero | tr '\0' '\377' >device.img
loop=$(losetup -f --show device.img)
ending() {
	umount -l x
	losetup -d "$loop"
}
mkdir devs
ln -s "$loop" devs/lun
mount_at src mnt -o pool=devs:devs -o store=store2
lists mnt/pools/devs
unmount mnt
mount_at src mnt -o pool=devs:devs -o store=store2 -o block_devices,trust=/dev
lists mnt/pools/devs lun
equal 50331648 "$(stat -c %s mnt/pools/devs/lun)"
cp $snap/web/disks/vda.img mnt/pools/devs/lun
sync -f mnt
equal 50331648 "$(stat -c %s mnt/pools/devs/lun)"
cmp -n 41943040 want/web.img "$loop"
cmp -n 8388608 -i 41943040:0 "$loop" /dev/zero || fail "old bytes behind the copy"
cp mnt/pools/devs/lun lun.img
same lun.img device.img
refused EROFS rm -f mnt/pools/devs/lun
echo "web onlun mode=full format=raw pool=devs volume=lun" >mnt/vms/leaf/actions/clone
refused "EBUSY|EEXIST" cp $snap/web/disks/vda.img mnt/pools/devs/lun
wait_until 60 jobs_done mnt || fail "jobs go on: $(cat mnt/jobs/*; tail -n 5 mnt/events)"
wait_until 20 test ! -e mnt/pools/devs/lun || fail "a device in use shows as free"
unmount mnt
mount_at src mnt -o pool=devs:devs -o store=store2 -o block_devices,trust=/dev
lists mnt/pools/devs
refused EBUSY tee mnt/vms/leaf/actions/clone <<<"web other mode=full format=raw pool=devs volume=lun"
contains "$(tail -n 1 mnt/events)" "*lun: a disk of a clone lies on this device*"
cmp -n 41943040 want/web.img mnt/clones/onlun/disks/vda.img
rm -r mnt/clones/onlun
wait_until 20 test -e mnt/pools/devs/lun || fail "the device isn't free again"
truncate -s 64M src/big.raw
wait_until 20 test -e mnt/vms/big || fail "big doesn't show"
refused ENOSPC dd if=mnt/vms/big/disks/vda.img of=mnt/pools/devs/lun bs=1M status=none conv=notrunc
wait_until 20 mke2fs -q -F "$loop" 2>/dev/null || fail "the device is still held, seconds after the last use"
mount "$loop" x
refused EBUSY cp $snap/web/disks/vda.img mnt/pools/devs/lun
umount x
unmount mnt
equal "$loop" "$(readlink devs/lun)"

# --- shared extents --------------------------------------------------------------------------------------------------------------
say "a filesystem that shares extents does"
truncate -s 1G xfs.img
mkfs.xfs -q -m reflink=1 xfs.img
mount -o loop xfs.img x
mkdir x/src x/pool
head -c 150M /dev/urandom >x/src/base.raw
img create -f qcow2 -F raw -b base.raw x/src/web.qcow2
io x/src/web.qcow2 qcow2 "write -P 9 1M 20M"
img create -f qcow2 -F qcow2 -b web.qcow2 x/src/leaf.qcow2
oracle x/src/web.qcow2 qcow2 want/x.img
mount_at x/src mnt -o pool=p:x/pool
sync -f x
used=$(df --output=used -B1 x | tail -1)
cp mnt/vms/leaf/snapshots/web/disks/vda.img mnt/pools/p/shared.img
sync -f x
at_most $((used + (8 << 20))) "$(df --output=used -B1 x | tail -1)" "bytes used after a copy of 150 MiB"
contains "$(filefrag -v x/pool/shared.img)" shared
is_whole x/pool/shared.img raw want/x.img
equal "$(stat -f -c %b x)" "$(stat -f -c %b mnt/pools/p)" "statfs of a pool"
unmount mnt
umount x

say "what can't be a pool"
mkdir -p mnt/inside
mount_refused nowhere -o pool=a:nowhere src mnt
mount_refused "pool=fast:" -o pool=a src mnt
mount_refused pool -o pool=a:mnt/inside src mnt
mount_refused "called a" -o pool=a:fast -o pool=a:slow src mnt
mount_refused "one directory" -o pool=a:fast -o pool=b:fast src mnt
mount_refused "clone=half" -o clone=half src mnt
