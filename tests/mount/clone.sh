#!/usr/bin/env bash
# Clones: by mkdir, by cp, composed, of a clone; identity; rename and removal; space; what is left after unmount.       limit: 240
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io xmllint

src=$PWD/src
store=$src/.vmsnapfs
make_vm "$src" web want
make_vm "$src" db want-db
fingerprint src >before

mount_at src mnt
web=mnt/vms/web clones=mnt/clones

# same_disks VM-DIR SNAPSHOT: both disks hold what the snapshot of web holds.
same_disks() {
	same "$1/disks/vda.img" "want/$2-vda.img"
	same "$1/disks/vdb.img" "want/$2-vdb.img"
	equal "$(stat -c %s "want/$2-vda.img")" "$(stat -c %s "$1/disks/vda.img")" "size of $1/disks/vda.img"
}

xpath() { # FILE EXPRESSION
	xmllint --xpath "string($2)" "$1"
}

say "mkdir"
for s in installed patched upgraded; do
	mkdir $clones/web@$s/by-mkdir-$s
	same_disks $clones/by-mkdir-$s $s
	lists $clones/web@$s by-mkdir-$s
	lists $clones/by-mkdir-$s domain.xml status disks snapshots actions events
done
lists $clones by-mkdir-installed by-mkdir-patched by-mkdir-upgraded
contains "$(cat $clones/by-mkdir-patched/status)" web@patched "the origin in status"

say "cp"
for s in installed patched upgraded; do
	cp -r $web/snapshots/$s $clones/by-cp-$s
	same_disks $clones/by-cp-$s $s
done
cp -a $web/snapshots/installed $clones/by-cp-a
same_disks $clones/by-cp-a installed
mkdir $clones/by-parts
cp $web/snapshots/installed/domain.xml $clones/by-parts/
cp $web/snapshots/installed/disks/*.img $clones/by-parts/disks/
same_disks $clones/by-parts installed
wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
for s in installed patched upgraded; do
	same_disks $clones/by-mkdir-$s $s
	same_disks $clones/by-cp-$s $s
done

say "identity"
a=$clones/by-mkdir-installed/domain.xml b=$clones/by-cp-installed/domain.xml from=$web/snapshots/installed/domain.xml
equal by-mkdir-installed "$(xpath $a /domain/name)" name
equal by-cp-installed "$(xpath $b /domain/name)" name
for expression in /domain/uuid "//interface/mac/@address"; do
	equal 3 "$(for f in $a $b $from; do xpath "$f" "$expression"; done | sort -u | wc -l)" "different $expression"
done
equal "$(xpath $a /domain/uuid)" "$(xpath $a "//sysinfo/system/entry[@name='uuid']")" "UUID in sysinfo"
equal 52:54:00 "$(xpath $a "substring(//interface/mac/@address, 1, 8)")" "vendor of the MAC"
equal "" "$(xpath $a /domain/title)" "title, dropped"
equal "" "$(xpath $a //interface/target/@dev)" "target dev, dropped"
contains "$(xpath $a //channel/source/@path)" by-mkdir-installed "agent channel"
equal 0 "$(xmllint --xpath "count(//channel/source[contains(@path, '/web/')])" $a)" "channels of the old name"
equal "made by a test" "$(xpath $a /domain/description)" description
equal 2 "$(xmllint --xpath "count(//disk[@device='disk'])" $a)" disks
equal 1 "$(xmllint --xpath "count(//disk[@device='cdrom'])" $a)" CD-ROM
first_uuid=$(xpath $a /domain/uuid)

say "composed from two VMs and three snapshots"
mkdir $clones/mixed
cp $web/snapshots/patched/domain.xml $clones/mixed/
cp $web/snapshots/upgraded/disks/vda.img $clones/mixed/disks/vda.img
cp $web/snapshots/installed/disks/vdb.img $clones/mixed/disks/vdb.img
cp mnt/vms/db/snapshots/installed/disks/vda.img $clones/mixed/disks/vdc.img
same $clones/mixed/disks/vda.img want/upgraded-vda.img
same $clones/mixed/disks/vdb.img want/installed-vdb.img
same $clones/mixed/disks/vdc.img want-db/installed-vda.img
equal 3 "$(xmllint --xpath "count(//disk[@device='disk'])" $clones/mixed/domain.xml)" "disks of the composed VM"
equal mixed "$(xpath $clones/mixed/domain.xml /domain/name)" name

say "no space taken"
at_most $((14 * 2097152)) "$(space_of "$store")" "bytes of the store"
fallocated=$(du -c --block-size=1 $clones/by-cp-installed/disks | tail -n 1 | cut -f1)
[ "$fallocated" -gt 0 ] || fail "a clone that holds data shows no blocks"

say "write to one: nobody else changes"
printf 'written' | dd of=$clones/by-mkdir-upgraded/disks/vda.img bs=1 seek=12345 conv=notrunc,fsync status=none
cp want/upgraded-vda.img want/changed-vda.img
printf 'written' | dd of=want/changed-vda.img bs=1 seek=12345 conv=notrunc status=none
cp want/upgraded-vdb.img want/changed-vdb.img
same_disks $clones/by-mkdir-upgraded changed
same_disks $clones/by-cp-upgraded upgraded
same_disks $web/snapshots/upgraded upgraded

say "a clone of a clone, with what was written"
cp -r $clones/by-mkdir-upgraded $clones/again
same_disks $clones/again changed
printf 'later' | dd of=$clones/by-mkdir-upgraded/disks/vda.img bs=1 seek=0 conv=notrunc status=none
same_disks $clones/again changed
[ "$(xpath $clones/again/domain.xml /domain/uuid)" != "$(xpath $clones/by-mkdir-upgraded/domain.xml /domain/uuid)" ] ||
	fail "a clone of a clone has the UUID of the first"

say "names"
refused EEXIST mkdir $clones/web@installed/by-cp-a
refused EEXIST mkdir $clones/mixed
refused EINVAL mkdir $clones/.hidden
refused EINVAL mkdir $clones/web@installed/$'new\nline'
refused EINVAL mkdir $clones/$'\xff\xfe'
refused ENAMETOOLONG mkdir "$clones/$(printf '%0256d' 0)"
refused ENOENT mkdir $clones/web@nothing/x
refused ENOENT mkdir $clones/nobody@installed/x
mkdir "$clones/web@installed/Ünï cödé & <more>"
xmllint --noout "$clones/Ünï cödé & <more>/domain.xml"
rmdir "$clones/Ünï cödé & <more>"

say "rename"
mv $clones/by-mkdir-installed $clones/renamed
[ ! -e $clones/by-mkdir-installed ] || fail "the old name is still there"
same_disks $clones/renamed installed
equal renamed "$(xpath $clones/renamed/domain.xml /domain/name)" "name in domain.xml"
equal "$first_uuid" "$(xpath $clones/renamed/domain.xml /domain/uuid)" "UUID"
mv $clones/by-mkdir-patched mnt/vms/grown-up
same_disks mnt/vms/grown-up patched
[ ! -e $clones/by-mkdir-patched ] || fail "a VM is in clones and in vms"
refused "EEXIST|ENOTEMPTY" mv -T $clones/renamed $clones/mixed
refused "EEXIST|ENOTEMPTY" mv -T $clones/renamed mnt/vms/web

say "the configuration by an editor"
sed 's/262144/524288/g' $clones/mixed/domain.xml >edited.xml
cp edited.xml $clones/mixed/domain.xml
equal 524288 "$(xpath $clones/mixed/domain.xml /domain/memory)" memory
cp edited.xml $clones/mixed/.domain.xml.swp~ && mv $clones/mixed/.domain.xml.swp~ $clones/mixed/domain.xml
equal 524288 "$(xpath $clones/mixed/domain.xml /domain/memory)" memory
bad_edit() { echo "<domain" >$clones/mixed/domain.xml; }
bad_edit 2>/dev/null || true
equal 524288 "$(xpath $clones/mixed/domain.xml /domain/memory)" "memory after a bad edit"

say "disks added, renamed, removed"
cp want/installed-vdb.img $clones/mixed/disks/vdd.img
same $clones/mixed/disks/vdd.img want/installed-vdb.img
equal 4 "$(xmllint --xpath "count(//disk[@device='disk'])" $clones/mixed/domain.xml)" "disks with the new one"
mv $clones/mixed/disks/vdd.img $clones/mixed/disks/vde.img
same $clones/mixed/disks/vde.img want/installed-vdb.img
equal 1 "$(xmllint --xpath "count(//disk/target[@dev='vde'])" $clones/mixed/domain.xml)" "disks named vde"
rm $clones/mixed/disks/vde.img
lists $clones/mixed/disks vda.img vdb.img vdc.img
equal 3 "$(xmllint --xpath "count(//disk[@device='disk'])" $clones/mixed/domain.xml)" "disks without it"

say "removal"
exec 7<$clones/by-cp-a/disks/vda.img
refused EBUSY rmdir $clones/by-cp-a
exec 7<&-
rmdir $clones/by-cp-a
rm -r $clones/by-parts
rm -rf $clones/by-cp-patched
for gone in by-cp-a by-parts by-cp-patched; do [ ! -e $clones/$gone ] || fail "$gone is still there"; done
lists $clones by-cp-installed by-cp-upgraded by-mkdir-upgraded again mixed renamed

say "what a clone came from goes: the clone is whole"
rmdir $clones/by-mkdir-upgraded
same_disks $clones/again changed

say "from SOURCE alone, after the unmount"
wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
vda=$(domain_source $clones/again/domain.xml vda)
vdb=$(domain_source $clones/again/domain.xml vdb)
unmount mnt
same before <(fingerprint src) "the sources"
for layer in "$store"/layers/*.qcow2; do check_image "$layer"; done
qemu-img compare -F raw "$vda" want/changed-vda.img
qemu-img compare -F raw "$vdb" want/changed-vdb.img

say "and in the next mount; the VM that it came from has another name"
mv src/web.xml src/web2.xml
sed -i 's,<name>web</name>,<name>web2</name>,' src/web2.xml
mv src/web src/web2
mount_at src mnt
lists $clones by-cp-installed by-cp-upgraded again mixed renamed
same_disks $clones/again changed
same_disks $clones/renamed installed
same_disks mnt/vms/grown-up patched
same $clones/mixed/disks/vdc.img want-db/installed-vda.img
equal "$first_uuid" "$(xpath $clones/renamed/domain.xml /domain/uuid)" "UUID"
[ -d mnt/vms/web2 ] || fail "the renamed VM isn't there"
rm -r "${clones:?}"/* mnt/vms/grown-up
lists $clones
unmount mnt
equal 0 "$(find "$store/layers" "$store/vms" -type f | wc -l)" "files left when no VM is"
