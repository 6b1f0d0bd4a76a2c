#!/usr/bin/env bash
# libvirt takes a managed VM and its snapshots for its own: schema, define, snapshot-create --redefine, the tree.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io virsh virt-xml-validate xmllint

src=$PWD/src
make_vm "$src" web want
mount_at src mnt
mkdir mnt/clones/web@upgraded/first
wait_until 60 jobs_done mnt
vm=mnt/clones/first

say "a tree with a branch, a disk left out, RAM, names that XML has to escape, a running guest"
mkdir $vm/snapshots/installed
exec {guest}<>$vm/disks/vda.img
mkdir "$vm/snapshots/a & <b>"
exec {guest}>&-
printf 'single vdb description=only <one> disk\n' >$vm/actions/snapshot
printf 'installed discard\n' >$vm/actions/restore
head -c 10000 /dev/urandom >"$src/ram"
cat >$vm/actions/snapshot <<END
<domainsnapshot><name>branch</name><memory snapshot='external' file='$src/ram'/></domainsnapshot>
END
printf 'leaf vda\n' >$vm/actions/snapshot
mkdir $vm/snapshots/tip
# What the configuration says when the snapshots are read has changed since they were taken.
mv $vm/snapshots/installed $vm/snapshots/root
mv $vm mnt/clones/web-2
vm=mnt/clones/web-2

xpath() { # FILE XPATH
	xmllint --xpath "string($2)" "$1"
}
snapshots=(root "a & <b>" single branch leaf tip)
cp $vm/domain.xml vm.xml
virt-xml-validate vm.xml domain >out 2>&1 || fail "domain.xml"
equal "$(xpath vm.xml /domain/uuid)" "$(getfattr --only-values -n user.vmsnapfs.uuid $vm)" "UUID"
commands="define vm.xml"
for i in "${!snapshots[@]}"; do
	name=${snapshots[i]}
	cp "$vm/snapshots/$name/snapshot.xml" "$i.xml"
	virt-xml-validate "$i.xml" domainsnapshot >out 2>&1 || fail "$name: $(cat out "$i.xml")"
	equal "$name" "$(xpath "$i.xml" /domainsnapshot/name)"
	equal web-2 "$(xpath "$i.xml" /domainsnapshot/domain/name)"
	commands+="; snapshot-create web-2 $i.xml --redefine"
done
commands+=" --current"

say "what they say"
equal "" "$(xpath 0.xml /domainsnapshot/parent/name)"
equal root "$(xpath 1.xml /domainsnapshot/parent/name)"
equal "a & <b>" "$(xpath 2.xml /domainsnapshot/parent/name)"
equal root "$(xpath 3.xml /domainsnapshot/parent/name)"
equal running "$(xpath 1.xml /domainsnapshot/state)"
equal shutoff "$(xpath 2.xml /domainsnapshot/state)"
equal running "$(xpath 3.xml /domainsnapshot/state)"
equal "only <one> disk" "$(xpath 2.xml /domainsnapshot/description)"
equal no "$(xpath 2.xml "/domainsnapshot/disks/disk[@name='vda']/@snapshot")"
equal external "$(xpath 2.xml "/domainsnapshot/disks/disk[@name='vdb']/@snapshot")"
same "$src/ram" "$(xpath 3.xml /domainsnapshot/memory/@file)"

say "each disk's file holds what the snapshot does, and the file that went on has it below"
for i in "${!snapshots[@]}"; do
	for disk in vda vdb; do
		[ -e "$vm/snapshots/${snapshots[i]}/disks/$disk.img" ] || continue
		layer=$(xpath "$i.xml" "/domainsnapshot/domain/devices/disk[target/@dev='$disk']/source/@file")
		qemu-img compare -U -q -f qcow2 -F raw "$layer" "$vm/snapshots/${snapshots[i]}/disks/$disk.img" || fail "$layer"
		next=$(xpath "$i.xml" "/domainsnapshot/disks/disk[@name='$disk']/source/@file")
		case $i-$disk in
		2-vdb | 1-vda) [ -z "$next" ] || fail "${snapshots[i]}: nothing goes on from it, but $next" ;;
		*) contains "$(qemu-img info -U --backing-chain "$next")" "image: $layer" "what lies below $next" ;;
		esac
	done
done

say "libvirt"
virsh -q -c test:///default "$commands; snapshot-list web-2 --tree; snapshot-current web-2 --name; snapshot-info web-2 branch" \
	>out 2>&1 || fail "virsh: $(cat out)"
! grep -i '^error' out || fail "virsh: $(cat out)"
equal 'root
  |
  +- a & <b>
  |   |
  |   +- single
  |     
  +- branch
      |
      +- leaf
          |
          +- tip' "$(sed -n '/^root$/,/- tip$/p' out)" "libvirt's tree"
grep -q ^tip out || fail "the current one isn't tip: $(cat out)"
grep -q "^Parent: *root$" out || fail "branch's parent isn't root: $(cat out)"

say "what virsh writes is a command, too"
virsh -q -c test:///default snapshot-create-as test by-virsh "described & done" --disk-only --diskspec vdb,snapshot=no --diskspec vda,snapshot=external \
	--print-xml >$vm/actions/snapshot
lists $vm/snapshots/by-virsh/disks vda.img
equal "described & done" "$(getfattr --only-values -n user.vmsnapfs.description $vm/snapshots/by-virsh)"
sed 's,<name>single</name>,<name>again</name>,' 2.xml >$vm/actions/snapshot # a whole snapshot.xml: what is only told, like its parent, isn't looked at
lists $vm/snapshots/again/disks vdb.img
equal by-virsh "$(getfattr --only-values -n user.vmsnapfs.parent $vm/snapshots/again)"
