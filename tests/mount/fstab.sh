#!/usr/bin/env bash
# Mounted by mount(8) as type fuse.vmsnapfs, as a line of /etc/fstab is.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need_root
need qemu-img qemu-io mount
own_mounts # mount(8) looks for the program where programs are installed: it is put there
mkdir bin mnt
cp "$VMSNAPFS" bin/vmsnapfs
mount --bind bin /usr/local/bin

src=$PWD/src
make_vm "$src" web want
echo "$src $PWD/mnt fuse.vmsnapfs noauto,nodev,nosuid,allow_other,default_permissions,trust=/tmp 0 0" >fstab
mount -T "$PWD/fstab" "$PWD/mnt"
is_alive "$PWD/mnt" || fail "mount said 0 and nothing is mounted"
equal fuse.vmsnapfs "$(findmnt -no FSTYPE mnt)" type
equal "$src" "$(findmnt -no SOURCE mnt)" source
same mnt/vms/web/snapshots/patched/disks/vda.img want/patched-vda.img
mkdir mnt/clones/web@patched/made
same mnt/clones/made/disks/vdb.img want/patched-vdb.img
pid=$(tr -dc 0-9 <src/.vmsnapfs/lock)
umount mnt
wait_until 30 gone "$pid" || fail "the daemon is still there after umount"

say "read-only, by the same line"
mount -T "$PWD/fstab" -o ro "$PWD/mnt"
refused EROFS mkdir mnt/clones/x
same mnt/clones/made/disks/vda.img want/patched-vda.img
umount mnt
