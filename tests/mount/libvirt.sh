#!/usr/bin/env bash
# libvirt runs a clone: from its files, as domain.xml says, and from its disk in the mount. A libvirtd of an ordinary user, without KVM; the guest
# has nothing to boot from that does anything.       limit: 180
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need_root # to turn into a user whose libvirtd is nobody else's
need qemu-img qemu-io qemu-system-x86_64 virsh libvirtd setpriv xmllint
chmod 755 . 2>/dev/null
find "$TEST_DIR" -maxdepth 0 -perm -001 | grep -q . || skip "the test's directory can't be entered by others"
cp "$VMSNAPFS" vmsnapfs
VMSNAPFS=$PWD/vmsnapfs
alice=$(id -u nobody)
mkdir -p home/src home/run home/.config/libvirt home/mnt
home=$PWD/home src=$PWD/home/src mnt=$PWD/home/mnt
RUN_AS="setpriv --reuid=$alice --regid=$alice --clear-groups"
as_user="env -i PATH=$PATH HOME=$home XDG_RUNTIME_DIR=$home/run LC_ALL=C.UTF-8 LIBVIRT_AUTOSTART=0 $RUN_AS"
user() { $as_user "$@"; }
virsh() { user virsh -q -c qemu:///session "$@"; }

img create -f qcow2 "$src/web.base" 16M
io "$src/web.base" qcow2 "write -P 1 0 4M"
img create -f qcow2 -F qcow2 -b "$src/web.base" "$src/web.qcow2"
io "$src/web.qcow2" qcow2 "write -P 2 1M 1M"
cat >"$src/web.xml" <<END
<domain type='qemu'>
  <name>web</name>
  <uuid>$(uuid_of web)</uuid>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>$(command -v qemu-system-x86_64)</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='$src/web.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
END
mkdir "$src/web"
domain=$(sed "s,$src/web.qcow2,$src/web.base," "$src/web.xml")
snapshot_xml "then" active=1 time=1600000000 domain=<(echo "$domain") -- "vda=external:$src/web.qcow2" >"$src/web/then.xml"
echo 'stdio_handler = "file"' >home/.config/libvirt/qemu.conf
chown -R "$alice" home
$as_user libvirtd >libvirtd.log 2>&1 &
libvirtd=$!
lives() { virsh list >/dev/null 2>&1; }
ending() {
	local domain
	for domain in $(virsh list --name); do virsh destroy "$domain"; done
	kill $libvirtd
	wait $libvirtd
}
wait_until 60 lives || fail "libvirtd: $(cat libvirtd.log)"

mount_at "$src" "$mnt" # as that user
user mkdir "$mnt/clones/web@then/one"
vm=$mnt/clones/one
field() { sed -n "s/^$1:* *//p"; }

say "from its files, as domain.xml says"
user cat "$vm/domain.xml" >one.xml
virsh define /dev/stdin <one.xml >/dev/null
virsh start one >/dev/null
equal running "$(virsh domstate one)"
equal $((16 << 20)) "$(virsh domblkinfo one vda | field Capacity)" "the disk's size"
refused EBUSY user cat "$vm/disks/vda.img"
refused EBUSY user mkdir "$vm/snapshots/x"
head -c 4M /dev/zero | tr '\0' '\1' >want.img
user cmp -n 4194304 want.img "$mnt/vms/web/snapshots/then/disks/vda.img" || fail "the snapshot that it lies over"
refused EBUSY user rmdir "$vm"
virsh destroy one >/dev/null
wait_until 20 user cat "$vm/disks/vda.img" >/dev/null || fail "the disk is still busy"
user mkdir "$vm/snapshots/first"
user cat "$vm/domain.xml" >one.xml
[ "$(grep -c "source file" one.xml)" = 1 ] || fail "$(cat one.xml)"
virsh define /dev/stdin <one.xml >/dev/null # it has another file now
user cat "$vm/snapshots/first/snapshot.xml" >first.xml
virsh snapshot-create one /dev/stdin --redefine <first.xml >/dev/null
equal first "$(virsh snapshot-list one --name)" "snapshots that libvirt knows"
virsh start one >/dev/null
refused EBUSY user cat "$vm/disks/vda.img"
virsh destroy one >/dev/null
virsh snapshot-delete one first --metadata >/dev/null
virsh undefine one >/dev/null

say "from its disk in the mount: snapshots and clones are made meanwhile"
sed -e "s,type=.qcow2.,type='raw'," -e "s,<source file=[^/]*/[^>]*>,<source file='$vm/disks/vda.img'/>," one.xml >live.xml
grep -q "$vm/disks/vda.img" live.xml || fail "$(cat live.xml)"
virsh define /dev/stdin <live.xml >/dev/null
virsh start one >/dev/null
equal $((16 << 20)) "$(virsh domblkinfo one vda | field Capacity)" "the disk's size in the mount"
user mkdir "$vm/snapshots/live" "$mnt/clones/one@live/two"
user cmp "$vm/snapshots/live/disks/vda.img" "$mnt/clones/two/disks/vda.img" || fail "a clone of a running VM's snapshot"
equal running "$(virsh domstate one)" "the domain after a snapshot"
virsh blockresize one vda 32M >/dev/null
equal $((32 << 20)) "$(user stat -c %s "$vm/disks/vda.img")" "the disk, grown by libvirt"
virsh suspend one >/dev/null
virsh resume one >/dev/null
refused "EBUSY|ENOTEMPTY" user rmdir "$vm"
virsh destroy one >/dev/null
virsh undefine one >/dev/null
no_jobs() { [ -z "$(user ls "$mnt/jobs")" ]; }
wait_until 60 no_jobs
user rmdir "$mnt/clones/two"
unmount "$mnt"
for image in "$src"/.vmsnapfs/layers/*.qcow2; do check_image "$image"; done
