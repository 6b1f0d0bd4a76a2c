#!/usr/bin/env bash
# As an ordinary user: mounting, cloning, and never more of an image than its owner lets one read.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io fusermount3 setpriv

if [ "$(id -u)" != 0 ]; then
	# Everything else here runs as such a user already.
	skip "needs root to turn into two users"
fi
chmod 755 . 2>/dev/null
find "$TEST_DIR" -maxdepth 0 -perm -001 | grep -q . || skip "the test's directory can't be entered by others"
as() { # USER-ID COMMAND...
	local uid=$1
	shift
	setpriv --reuid="$uid" --regid="$uid" --clear-groups "$@"
}
# Where the build lies they may not get to.
cp "$VMSNAPFS" vmsnapfs
VMSNAPFS=$PWD/vmsnapfs
# fusermount3 wants users with a name.
alice=$(id -u nobody) bob=$(id -u daemon)
mkdir home && chown "$alice" home

src=$PWD/home/src
make_vm "$src" web want
make_vm "$src" private want-private
chown -R "$alice" "$src"
mkdir home/mnt && chown "$alice" home/mnt
chmod 600 "$src/images/private-vda.qcow2"

say "a user's own mount"
RUN_AS="setpriv --reuid=$alice --regid=$alice --clear-groups" mount_at "$src" "$PWD/home/mnt"
mnt=$PWD/home/mnt
as "$alice" cmp "$mnt/vms/web/snapshots/patched/disks/vda.img" want/patched-vda.img
as "$alice" mkdir "$mnt/clones/web@patched/mine"
as "$alice" cp -r "$mnt/vms/web/snapshots/installed" "$mnt/clones/copied"
as "$alice" dd if=/dev/zero of="$mnt/clones/mine/disks/vda.img" bs=4k count=1 conv=notrunc,fsync status=none
as "$alice" cmp "$mnt/clones/copied/disks/vda.img" want/installed-vda.img
equal "$alice" "$(as "$alice" stat -c %u "$mnt/clones/mine/disks/vda.img")" "owner of the clone"
refused EACCES as "$bob" ls "$mnt"
refused EACCES ls "$mnt" # not even root, without allow_other
as "$alice" fusermount3 -u "$mnt"
wait_until 30 gone "${daemons[$mnt]}"
wait "${daemons[$mnt]}"
unset "daemons[$mnt]"

say "root's mount for everybody: who may not read every image of a chain may not read its view"
mkdir shared roots
mount_at "$src" shared -o allow_other -o "pool=roots:$PWD/roots"
[ "$(events_with shared "belongs to user $alice")" -gt 0 ] || fail "a store that alice has put there is used with root's rights"
refused EROFS mkdir "$PWD/shared/clones/web@patched/another"
unmount shared
# Who names it says that its owner may.
mount_at "$src" shared -o allow_other -o "pool=roots:$PWD/roots" -o "store=$src/.vmsnapfs"
as "$bob" cmp shared/vms/web/snapshots/patched/disks/vda.img want/patched-vda.img
refused EACCES as "$bob" cat shared/vms/private/snapshots/installed/disks/vda.img
refused EACCES as "$bob" cat shared/vms/private/disks/vda.img
as "$bob" cmp shared/vms/private/snapshots/patched/disks/vdb.img want-private/patched-vdb.img
as "$alice" cmp shared/vms/private/disks/vda.img want-private/now-vda.img
equal "$alice" "$(stat -c %u shared/vms/private/disks/vda.img)" "owner of a view"
equal 400 "$(stat -c %a shared/vms/private/disks/vda.img)" "mode of a view over a private image"
refused "EACCES|EROFS|EPERM" as "$bob" dd if=/dev/zero of=shared/clones/mine/disks/vda.img bs=512 count=1 conv=notrunc
refused "EACCES|EPERM" as "$bob" rmdir shared/clones/mine

say "the same, snapshots and actions: only of one's own VMs, and RAM only out of files that one may read"
echo secret >"$src/secret" && chmod 600 "$src/secret"
echo mine >"$src/mine" && chmod 600 "$src/mine" && chown "$alice" "$src/mine"
act() { # USER-ID ACTION COMMAND
	as "$1" tee "shared/clones/mine/actions/$2" <<<"$3" >/dev/null
}
as "$alice" mkdir shared/clones/mine/snapshots/by-mkdir
act "$alice" snapshot "by-action vda"
with_ram() {
	echo "<domainsnapshot><name>ram</name><memory snapshot='external' file='$src/$1'/></domainsnapshot>"
}
refused EACCES act "$alice" snapshot "$(with_ram secret)"
mkdir -m 700 "$src/closed"
echo closed >"$src/closed/ram" # which only who may go through its directory can read
refused EACCES act "$alice" snapshot "$(with_ram closed/ram)"
act "$alice" snapshot "$(with_ram mine)"
equal mine "$(as "$alice" cat shared/clones/mine/snapshots/ram/memory)"
refused EACCES as "$bob" cat shared/clones/mine/snapshots/ram/memory
refused EACCES act "$bob" delete ram
refused EACCES act "$bob" snapshot x
refused EACCES as "$bob" mkdir shared/clones/mine/snapshots/x
refused EACCES as "$bob" rmdir shared/clones/mine/snapshots/ram
refused EACCES as "$bob" ln -sfn snapshots/ram shared/clones/mine/current
lists shared/clones/mine/snapshots by-mkdir by-action ram

say "actions/clone: who may make a clone with mkdir, and of what"
clone() { # USER-ID VM COMMAND
	as "$1" tee "shared/vms/$2/actions/clone" <<<"$3" >/dev/null
}
clone "$alice" web "patched by-alice"
equal "$alice" "$(stat -c %u shared/clones/by-alice/disks/vda.img)" "owner of the clone"
refused EACCES clone "$bob" web "patched by-bob"
refused EACCES as "$bob" mkdir shared/clones/web@patched/by-bob
chown root "$src/images/private-vda.qcow2"
not_alices() {
	[ "$(stat -c %u shared/vms/private/snapshots/installed/disks/vda.img)" = 0 ]
}
wait_until 10 not_alices
refused EACCES as "$alice" mkdir shared/clones/private@installed/stolen
refused EACCES clone "$alice" private "installed stolen"
[ ! -e shared/clones/stolen ] || fail "a clone of what alice may not read"
clone "$alice" private "installed without vda=none"
lists shared/clones/without/disks vdb.img
refused EACCES clone "$alice" web "patched intruder pool=roots"
refused EACCES clone "$alice" web "patched vda pool=roots <volume><name>intruder.raw</name></volume>"
[ -z "$(ls roots)" ] || fail "made in root's directory: $(ls roots)"

say "who is shut out from an image beneath doesn't go on reading"
beneath=$src/images/web-vda.installed
as "$bob" cmp shared/vms/web/snapshots/patched/disks/vda.img want/patched-vda.img
mode=$(stat -c %a "$beneath")
chmod 600 "$beneath"
bob_is_out() {
	! as "$bob" cat shared/vms/web/snapshots/patched/disks/vda.img >/dev/null 2>&1
}
wait_until 15 bob_is_out
chmod "$mode" "$beneath"
wait_until 15 as "$bob" cmp -s shared/vms/web/snapshots/patched/disks/vda.img want/patched-vda.img
unmount shared
