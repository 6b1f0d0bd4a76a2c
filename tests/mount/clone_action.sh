#!/usr/bin/env bash
# actions/clone: a snapshot of a found or a managed VM becomes a VM, in the words of a line, of libvirt and of oVirt.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io getfattr xmllint virt-xml-validate

src=$PWD/src
make_vm "$src" web want
img create -f qcow2 "$src/box.qcow2" 1M
io "$src/box.qcow2" qcow2 "write -P 9 0 64k"
img snapshot -c tag "$src/box.qcow2"
before=$(fingerprint "$src")
mount_at src mnt
web=mnt/vms/web

write_command() { # FILE COMMAND
	printf '%s\n' "$2" >"$1"
}
clone() { # VM COMMAND
	write_command "$1/actions/clone" "$2"
}
event() { # VM TEXT: the VM's last event holds it
	contains "$(tail -n 1 "$1/events")" "$2"
}
xpath() { # CLONE EXPRESSION
	xmllint --xpath "string($2)" "mnt/clones/$1/domain.xml"
}
is_clone() { # CLONE SNAPSHOT: of web
	local disk
	for disk in "$web/snapshots/$2/disks/"*; do
		same "mnt/clones/$1/disks/$(basename "$disk")" "$disk"
	done
	equal "$1" "$(xpath "$1" /domain/name)"
	cp "mnt/clones/$1/domain.xml" checked.xml
	virt-xml-validate checked.xml domain >out 2>&1 || fail "$1: $(cat out checked.xml)"
}

say "a line, of a found VM"
clone $web "upgraded by-line"
is_clone by-line upgraded

say "what several programs write into one descriptor is one command"
(
	env printf 'upgraded '
	env printf 'by-two\n'
) >"$web/actions/clone"
is_clone by-two upgraded
(env printf 'upgraded never') >"$web/actions/clone" # nobody who opened it ended the line; a subshell is who did
lists mnt/clones by-line by-two never
rm -r mnt/clones/never

say "a disk that went on without being part of the snapshot isn't in its clone, and that is said"
echo 'part vda' >mnt/clones/by-two/actions/snapshot
echo 'part alone' >mnt/clones/by-two/actions/clone
lists mnt/clones/alone/disks vda.img
contains "$(cat mnt/clones/alone/events)" "*disk vdb of by-two@part isn't cloned: it isn't part of the snapshot*"
rm -r mnt/clones/alone
rmdir mnt/clones/by-two/snapshots/part
rm -r mnt/clones/by-two
clone $web "upgraded"
event $web "clones/copy_of_web"
is_clone copy_of_web upgraded
clone $web "upgraded"
event $web "clones/copy_of_web_2"
[ ! -e mnt/clones/less ] || fail "it is there before it is made"
clone $web "upgraded less vdb=none"
lists mnt/clones/less/disks vda.img
clone $web "upgraded other vda.target=sdz vda.bus=scsi"
lists mnt/clones/other/disks sdz.img vdb.img
same mnt/clones/other/disks/sdz.img $web/snapshots/upgraded/disks/vda.img
equal scsi "$(xpath other "//disk[target/@dev='sdz']/target/@bus")" "bus"

clone mnt/vms/box "tag of-an-image mode=thin"
same mnt/clones/of-an-image/disks/vda.img mnt/vms/box/snapshots/tag/disks/vda.img

say "the same name twice, and what there isn't"
refused EEXIST clone $web "upgraded by-line"
refused ENOENT clone $web "nosuch x"
event $web "no snapshot nosuch"
refused ENOENT clone $web "upgraded x vdq=none"
event $web "no disk vdq: it has vda, vdb"
refused EINVAL clone $web "upgraded x format=vmdk"
event $web "expected raw or qcow2"
refused EINVAL clone $web "upgraded x target=vdc"
event $web "vda.target="
refused ENOENT clone $web "upgraded x pool=nosuch"
refused EINVAL clone $web "upgraded a/b"
[ ! -e mnt/clones/x ] || fail "a refused clone is there"

say "libvirt's <domain>, in pieces"
sed 's,<name>.*</name>,<name>given</name>,; s,<memory .*</memory>,<memory unit="KiB">131072</memory>,' $web/snapshots/upgraded/domain.xml >domain.xml
{
	printf 'upgraded '
	cat domain.xml
} >"$web/actions/clone"
is_clone given upgraded
equal 131072 "$(xpath given /domain/memory)" "memory"
{
	printf 'patched mine '
	cat domain.xml
} | dd of="$web/actions/clone" bs=100 status=none
is_clone mine patched
[ "$(xpath given /domain/uuid)" != "$(xpath mine /domain/uuid)" ] || fail "two VMs with one UUID"
refused EINVAL clone $web 'upgraded <domain type="kvm">
  <name>x</nome></domain>'
event $web "line 2, column "

say "oVirt's <vm>"
clone $web "<vm><name>thin</name><clone>false</clone><snapshots><snapshot id='upgraded'/></snapshots><disk_attachments><disk_attachment>
  <disk id='vda'><format>cow</format><sparse>true</sparse></disk></disk_attachment></disk_attachments></vm>"
is_clone thin upgraded
refused EINVAL clone $web "<vm><name>x</name>
<clone>perhaps</clone></vm>"
event $web "line 2: <clone>"
refused EROFS clone $web "<action><vm><name>x</name><clone>false</clone></vm></action>"

say "a managed VM: now, and a snapshot by UUID"
mkdir mnt/clones/by-line/snapshots/s1
uuid=$(getfattr --absolute-names --only-values -n user.vmsnapfs.uuid mnt/clones/by-line/snapshots/s1)
clone mnt/clones/by-line "$uuid again mode=thin"
is_clone again upgraded
clone mnt/clones/by-line "<action><vm><name>now</name><clone>false</clone></vm></action>"
is_clone now upgraded

say "oVirt's disks, by the image that they were in the snapshot"
layer=$(getfattr --absolute-names --only-values -n user.vmsnapfs.chain mnt/clones/by-line/snapshots/s1/disks/vda.img | head -n 1)
layer=$(basename "$layer" .qcow2)
clone mnt/clones/by-line "<vm><name>by-image</name><snapshots><snapshot id='$uuid'/></snapshots><disk_attachments><disk_attachment><disk>
  <image_id>$layer</image_id><format>raw</format><sparse>true</sparse></disk></disk_attachment></disk_attachments></vm>"
wait_until 60 jobs_done mnt
is_clone by-image upgraded
equal raw "$(xpath by-image "//disk[target/@dev='vda']/driver/@type")" "format of vda"
equal qcow2 "$(xpath by-image "//disk[target/@dev='vdb']/driver/@type")" "format of vdb"
refused ENOENT clone mnt/clones/by-line "<vm><name>x</name><snapshots><snapshot id='s1'/></snapshots><disks><disk>
  <image_id>2f3c0b5e-1d58-4c8e-9a53-0a7f2f1f7c11</image_id></disk></disks></vm>"

say "in full, and made full"
depends_on_nothing() { # CLONE
	wait_until 60 jobs_done mnt
	local image
	image=$(xpath "$1" "//disk[target/@dev='vda']/source/@file")
	if qemu-img info -U "$image" | grep "backing file"; then
		fail "$1 depends on another image"
	fi
}
clone $web "upgraded copy mode=full"
is_clone copy upgraded
depends_on_nothing copy
is_clone copy upgraded
refused ENOENT write_command mnt/clones/thin/actions/flatten vdq
refused EROFS write_command $web/actions/flatten all
write_command mnt/clones/thin/actions/flatten all
depends_on_nothing thin
is_clone thin upgraded

say "a volume where there are no pools"
refused EINVAL clone $web "<volume><name>v.qcow2</name></volume>"
event $web "which"
equal "$before" "$(fingerprint "$src")"
unmount mnt

say "without a store"
mkdir -p other/web
cp "$src/web.xml" other
mount_at other mnt -o ro
refused EROFS write_command mnt/vms/web/actions/clone "upgraded x"
unmount mnt
