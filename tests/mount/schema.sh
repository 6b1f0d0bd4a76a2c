#!/usr/bin/env bash
# libvirt's own schemas accept each domain.xml and snapshot.xml that is served or made.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io virt-xml-validate

src=$PWD/src
make_vm "$src" web want
# Bare images, and a domain with devices of all sorts.
img create -f qcow2 "$src/box.qcow2" 1M
img snapshot -c tag "$src/box.qcow2"
truncate -s 1M "$src/iso-like.raw"
touch "$src/rich_VARS.fd"
uuid=$(uuid_of rich)
domain_xml rich "$uuid" "vda=$src/box2.qcow2" "sdb=$src/box3.raw,raw" |
	sed "s,<boot dev='hd'/>,<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram>$src/rich_VARS.fd</nvram>&,
		s,<title>,<genid>$(uuid_of genid)</genid>&," |
	awk -v more="
    <serial type='file'><source path='/var/log/rich-serial.log'/><target port='0'/></serial>
    <console type='pty'/>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/><source protocol='rbd' name='pool/image'><host name='ceph'/></source><target dev='vdx' bus='virtio'/>
    </disk>
    <disk type='block' device='lun'>
      <driver name='qemu' type='raw'/><source dev='/dev/sdz'/><target dev='sdx' bus='scsi'/>
    </disk>" '{ print } /<memballoon/ { print more }' >"$src/rich.xml"
img create -f qcow2 "$src/box2.qcow2" 1M
truncate -s 1M "$src/box3.raw"
virt-xml-validate "$src/rich.xml" domain >/dev/null || fail "the test's own XML isn't valid"
mkdir "$src/rich"
snapshot_xml 'a <b> & "c"' active=1 description='ü & <tag>' domain="$src/rich.xml" -- vda=internal sdb=no |
	sed 's,a <b> & "c",a \&lt;b\&gt; \&amp; "c",; s,ü & <tag>,ü \&amp; \&lt;tag\&gt;,' >"$src/rich/a.xml"
img snapshot -c 'a <b> & "c"' "$src/box2.qcow2"

mount_at src mnt
mkdir mnt/clones/web@patched/made mnt/clones/box@tag/from-bare mnt/clones/empty
mkdir 'mnt/clones/rich@a <b> & "c"/rich-made'
cp -r mnt/vms/web/snapshots/upgraded mnt/clones/copied
# The network disk is no file that could be copied.
refused EOPNOTSUPP cp -r 'mnt/vms/rich/snapshots/a <b> & "c"' 'mnt/clones/R & D'
mkdir mnt/clones/composed
cp mnt/vms/web/snapshots/patched/disks/vda.img mnt/clones/composed/disks/hda.img
cp mnt/vms/web/snapshots/patched/disks/vdb.img mnt/clones/composed/disks/sdb.img
cp mnt/vms/web/snapshots/patched/disks/vdb.img mnt/clones/composed/disks/xvdb.img

validate_all() {
	local nr=0 file
	while IFS= read -r -d '' file; do
		cp "$file" checked.xml
		case $file in
		*/snapshot.xml) virt-xml-validate checked.xml domainsnapshot >out 2>&1 || fail "$file: $(cat out checked.xml)" ;;
		*) virt-xml-validate checked.xml domain >out 2>&1 || fail "$file: $(cat out checked.xml)" ;;
		esac
		nr=$((nr + 1))
	done < <(find mnt/vms mnt/clones \( -name domain.xml -o -name snapshot.xml \) -print0)
	say "$nr files"
	[ $nr -ge 15 ] || fail "only $nr files found"
}

validate_all
wait_until 60 jobs_done mnt
validate_all

say "virt-clone's rules on a rich domain"
xpath() { xmllint --xpath "string($1)" mnt/clones/rich-made/domain.xml; }
[ "$(xpath //genid)" != "$(uuid_of genid)" ] || fail "genid is the old one"
equal network "$(xpath "//disk[target/@dev='vdx']/@type")" "the network disk"
equal lun "$(xpath "//disk[target/@dev='sdx']/@device")" "the LUN"
contains "$(xpath "//serial/source/@path")" rich-made "serial path"
[ "$(xpath //nvram)" != "$src/rich_VARS.fd" ] || fail "two VMs on one NVRAM"
unmount mnt
