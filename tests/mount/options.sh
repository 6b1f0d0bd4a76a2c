#!/usr/bin/env bash
# Wrong input is refused with words, and quickly; the options do what the man page says.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

src=$PWD/src
make_vm "$src" web want
mkdir mnt

say "refused"
mount_refused usage
mount_refused usage src
mount_refused usage src mnt more
mount_refused "no such file" nowhere mnt
mount_refused "no such file" src nowhere
mount_refused "not a directory" src/web.xml mnt
mount_refused "not a directory" src src/web.xml
mount_refused "unknown option" -o nonsense=1 src mnt
for size in 0 1K 1023K -1 64Q M 1MM 99999999999999999999 99999999T; do mount_refused "index=$size" -o "index=$size" src mnt; done
mount_refused "no such file" -o trust=/nowhere src mnt
mount_refused "no such file" -o snapshots=/nowhere src mnt
mkdir src/inside
mount_refused inside src src/inside
mount_refused "" src "$PWD"
mount_refused "" src src
mount_refused inside -o "store=$PWD/store" src src/inside
mkdir -p store/inside
mount_refused inside -o "store=$PWD/store" src store/inside
ln -s src/inside link
mount_refused inside src link
rmdir src/inside store/inside
[ -z "$(find src -name .vmsnapfs)" ] || fail "a refused mount has made a store"

say "help and version"
"$VMSNAPFS" --help >help
contains "$(cat help)" SOURCE
contains "$(cat help)" store=DIR
contains "$("$VMSNAPFS" --version)" vmsnapfs

say "store="
mount_at src mnt -o "store=$PWD/store"
mkdir mnt/clones/web@installed/here
unmount mnt
[ ! -e src/.vmsnapfs ] || fail "a store in SOURCE as well"
[ -n "$(find store/vms -name vm.xml)" ] || fail "no VM in the store"

say "a store has one daemon"
mkdir mnt2
mount_at src mnt -o "store=$PWD/store"
mount_refused "" -o "store=$PWD/store" src mnt2
is_mounted "$PWD/mnt2" && fail "two daemons on one store"
unmount mnt

say "ro"
mount_at src mnt -o "ro,index=1M,store=$PWD/store"
refused EROFS mkdir mnt/clones/web@installed/more
refused EROFS dd if=/dev/zero of=mnt/clones/here/disks/vda.img bs=512 count=1 conv=notrunc
same mnt/clones/here/disks/vda.img want/installed-vda.img
unmount mnt

say "no store can be made: read-only, and it says so"
echo file >not-a-directory
if [ "$(id -u)" != 0 ]; then
	chmod a-w src
	mount_at src mnt
	refused EROFS mkdir mnt/clones/web@installed/x
	[ -s mnt/events ] || fail "no event"
	unmount mnt
	chmod u+w src
fi

say "snapshots=, as on a libvirt host"
mkdir -p etc meta
mv src/web.xml etc/
mv src/web meta/web
mount_at etc mnt -o "snapshots=$PWD/meta,trust=$PWD/src"
lists mnt/vms/web/snapshots installed patched upgraded
same mnt/vms/web/snapshots/upgraded/disks/vdb.img want/upgraded-vdb.img
mkdir mnt/clones/web@installed/there
same mnt/clones/there/disks/vda.img want/installed-vda.img
unmount mnt
mount_at etc mnt -o "snapshots=$PWD/meta"
refused EACCES cat mnt/vms/web/disks/vda.img
unmount mnt

say "in the background, as without -f"
"$VMSNAPFS" src mnt
is_mounted "$PWD/mnt" || fail "back at the prompt, and not mounted"
ls mnt/vms >/dev/null
pid=$(tr -dc 0-9 <src/.vmsnapfs/lock)
[ -d "/proc/$pid" ] || fail "the store's lock names no process"
fusermount3 -u mnt || umount mnt
wait_until 30 gone "$pid" || fail "the daemon is still there"

say "over a dead mount"
mount_at src mnt
kill_daemon mnt
refused ENOTCONN ls mnt
mount_at src mnt
ls mnt/vms >/dev/null
unmount mnt
