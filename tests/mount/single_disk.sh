#!/usr/bin/env bash
# What oVirt's tests of single-disk snapshots list, each as a case: some disks of a VM are snapshotted, the ordinary ways still
# work, what is previewed is composed from different moments, undone, committed; and what is refused.       limit: 240
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img getfattr xmllint

src=$PWD/src
vm=mnt/clones/vm
actions=$vm/actions
mkdir "$src" want
make_vm "$src" web want-web
mount_at src mnt

put() { # TARGET TEXT: the disk begins with it
	printf '%-512s' "$2" | dd of="$vm/disks/$1.img" conv=notrunc status=none
}

got() { # DIR TARGET
	head -c 512 "$1/disks/$2.img" | sed 's/ *$//'
}

holds() { # DIR TARGET=TEXT...: exactly these disks, with these texts
	local dir=$1 pair names=()
	shift
	for pair; do
		names+=("${pair%%=*}.img")
		equal "${pair#*=}" "$(got "$dir" "${pair%%=*}")" "$dir/disks/${pair%%=*}.img"
	done
	lists "$dir/disks" "${names[@]}"
}

memory_of() { # DIR
	xmllint --xpath "string(/domain/memory)" "$1/domain.xml"
}

set_memory() { # KIB
	sed "s|<memory[^>]*>[^<]*|<memory unit='KiB'>$1|" $vm/domain.xml >edited.xml
	cp edited.xml $vm/domain.xml
}

disks_of_domain() { # DIR
	xmllint --xpath "/domain/devices/disk[@device='disk']/target/@dev" "$1/domain.xml" | tr -d '" ' | sed 's/dev=//' | sort | xargs
}

tell() { # ACTION WORDS
	echo "${*:2}" >"$actions/$1"
}

last_event() {
	tail -n 1 "$1/events"
}

attribute() { # NAME FILE
	getfattr --only-values -n "user.vmsnapfs.$1" "$2" 2>/dev/null || true
}

# A VM with three disks and two whole snapshots, the active state ahead of both.
begin() {
	local disk
	say "$1"
	mkdir $vm
	truncate -s 1M empty
	for disk in vda vdb vdc; do
		cp empty $vm/disks/$disk.img
		put $disk "$disk one"
	done
	set_memory 1000
	mkdir $vm/snapshots/one
	for disk in vda vdb vdc; do put $disk "$disk two"; done
	set_memory 2000
	mkdir $vm/snapshots/two
	for disk in vda vdb vdc; do put $disk "$disk now"; done
	set_memory 3000
}

# The case ends: whatever was done, the whole snapshots are what they were, the layers are whole and no work is left.
end() {
	local layer
	holds $vm/snapshots/one "vda=vda one" "vdb=vdb one" "vdc=vdc one"
	holds $vm/snapshots/two "vda=vda two" "vdb=vdb two" "vdc=vdc two"
	equal 1000 "$(memory_of $vm/snapshots/one)" "memory of one"
	equal 2000 "$(memory_of $vm/snapshots/two)" "memory of two"
	wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
	unmount mnt
	for layer in "$src"/.vmsnapfs/layers/*.qcow2; do check_image "$layer"; done
	mount_at src mnt
	holds $vm/snapshots/one "vda=vda one" "vdb=vdb one" "vdc=vdc one"
	holds $vm/snapshots/two "vda=vda two" "vdb=vdb two" "vdc=vdc two"
	rmdir $vm/snapshots/* $vm
	wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
	equal 0 "$(find "$src/.vmsnapfs/layers" "$src/.vmsnapfs/vms" -type f | wc -l)" "files of nobody left in the store"
}

now_is_unchanged() {
	holds $vm "vda=vda now" "vdb=vdb now" "vdc=vdc now"
	equal 3000 "$(memory_of $vm)" "memory of the active state"
}

# --- snapshots of a subset ---------------------------------------------------------------------------------------------------

begin "a snapshot of one disk"
tell snapshot part vdb description=only the second
holds $vm/snapshots/part "vdb=vdb now"
equal "only the second" "$(attribute description $vm/snapshots/part)" description
equal two "$(attribute parent $vm/snapshots/part)" parent
equal snapshots/part "$(readlink $vm/current)" current
equal vdb "$(disks_of_domain $vm/snapshots/part)" "disks in the snapshot's domain.xml"
now_is_unchanged
put vda later && put vdb later
holds $vm/snapshots/part "vdb=vdb now"
holds $vm vda=later vdb=later "vdc=vdc now"
end

begin "a snapshot of two disks, as libvirt says it"
cat >$actions/snapshot <<'XML'
<domainsnapshot>
  <name>two of three</name>
  <description>by libvirt's XML</description>
  <disks>
    <disk name='vda'/>
    <disk name='vdb' snapshot='no'/>
    <disk name='vdc' snapshot='external'/>
  </disks>
</domainsnapshot>
XML
holds "$vm/snapshots/two of three" "vda=vda now" "vdc=vdc now"
equal "by libvirt's XML" "$(attribute description "$vm/snapshots/two of three")" description
now_is_unchanged
end

begin "a snapshot of one disk, as oVirt says it"
uuid=$(basename "$(domain_source $vm/domain.xml vdc)" .qcow2)
cat >$actions/snapshot <<XML
<snapshot>
  <description>nightly</description>
  <disk_attachments>
    <disk_attachment><disk id="$uuid"/></disk_attachment>
  </disk_attachments>
</snapshot>
XML
holds $vm/snapshots/nightly "vdc=vdc now"
now_is_unchanged
end

begin "a disk that isn't there, a name that is, nothing at all"
refused ENOENT tell snapshot x vda vdz
refused EEXIST tell snapshot one vda
refused EINVAL tell snapshot /bad vda
lists $vm/snapshots one two
contains "$(last_event $vm)" bad "the event of a bad name"
now_is_unchanged
end

begin "a snapshot while its disks are being written"
exec 8<>$vm/disks/vda.img
printf 'while open' >&8
tell snapshot part vda
equal running "$(xmllint --xpath 'string(/domainsnapshot/state)' $vm/snapshots/part/snapshot.xml)" "its state"
printf ', and later' >&8
exec 8>&-
contains "$(got $vm/snapshots/part vda)" "while open" "the snapshot"
contains "$(got $vm vda)" "while open, and later" "the active state"
end

# --- the ordinary flows ------------------------------------------------------------------------------------------------------

begin "the ordinary flows, with a partial snapshot among the whole ones"
tell snapshot part vda
mkdir $vm/snapshots/three
rmdir $vm/snapshots/part
equal two "$(attribute parent $vm/snapshots/three)" "parent of three"
mv $vm/snapshots/three $vm/snapshots/third
holds $vm/snapshots/third "vda=vda now" "vdb=vdb now" "vdc=vdc now"
ln -sfn snapshots/one $vm/current
holds $vm "vda=vda one" "vdb=vdb one" "vdc=vdc one"
equal 1000 "$(memory_of $vm)" "memory, back at one"
equal snapshots/one "$(readlink $vm/current)" current
lists $vm/snapshots one two third
put vda "vda branch"
mkdir $vm/snapshots/branch
equal one "$(attribute parent $vm/snapshots/branch)" "parent of the branch"
ln -sfn snapshots/third $vm/current
now_is_unchanged
holds $vm/snapshots/branch "vda=vda branch" "vdb=vdb one" "vdc=vdc one"
lists $vm/snapshots one two third branch
mkdir mnt/clones/vm@branch/copy
holds mnt/clones/copy "vda=vda branch" "vdb=vdb one" "vdc=vdc one"
rm -r mnt/clones/copy
end

begin "going back to a partial snapshot: the other disks go on"
tell snapshot part vdb
for disk in vda vdb vdc; do put $disk "$disk later"; done
set_memory 4000
tell restore part
holds $vm "vda=vda later" "vdb=vdb now" "vdc=vdc later"
equal 3000 "$(memory_of $vm)" memory
kept=$(cd $vm/snapshots && ls -d before-restore-*)
holds "$vm/snapshots/$kept" "vda=vda later" "vdb=vdb later" "vdc=vdc later"
equal part "$(attribute parent "$vm/snapshots/$kept")" "parent of what was kept"
end

begin "what is left behind is kept, unless it equals its snapshot, or shall not be"
tell restore one discard
lists $vm/snapshots one two
holds $vm "vda=vda one" "vdb=vdb one" "vdc=vdc one"
tell restore two
lists $vm/snapshots one two
holds $vm "vda=vda two" "vdb=vdb two" "vdc=vdc two"
put vdc changed
ln -sfn snapshots/one $vm/current
kept=$(cd $vm/snapshots && ls -d before-restore-*)
holds "$vm/snapshots/$kept" "vda=vda two" "vdb=vdb two" vdc=changed
equal two "$(attribute parent "$vm/snapshots/$kept")" "parent of what was kept"
end

begin "a clone of a partial snapshot has its disks alone"
tell snapshot part vda vdc
mkdir mnt/clones/vm@part/copy
holds mnt/clones/copy "vda=vda now" "vdc=vdc now"
equal "vda vdc" "$(disks_of_domain mnt/clones/copy)" "disks in its domain.xml"
rm -r mnt/clones/copy
end

# --- custom previews ---------------------------------------------------------------------------------------------------------

begin "a preview of one moment"
tell preview one
holds $vm "vda=vda one" "vdb=vdb one" "vdc=vdc one"
equal 1000 "$(memory_of $vm)" "memory in the preview"
contains "$(cat $vm/status)" one "what is previewed, in status"
put vda "tried out"
equal "tried out" "$(got $vm vda)" "a write to the preview"
tell undo undo
now_is_unchanged
lists $vm/snapshots one two
equal snapshots/two "$(readlink $vm/current)" current
end

begin "a custom preview from different moments"
tell preview config=one vda=one vdb=two vdc=none
holds $vm "vda=vda one" "vdb=vdb two"
equal "vda vdb" "$(disks_of_domain $vm)" "disks in domain.xml"
equal 1000 "$(memory_of $vm)" memory
contains "$(cat $vm/status)" preview "the preview in status"
unmount mnt
mount_at src mnt
holds $vm "vda=vda one" "vdb=vdb two"
tell undo undo
now_is_unchanged
end

begin "a custom preview of one disk: all else stays"
tell preview vdb=one
holds $vm "vda=vda now" "vdb=vdb one" "vdc=vdc now"
equal 3000 "$(memory_of $vm)" memory
tell undo undo
now_is_unchanged
end

begin "a custom preview of the configuration alone"
tell preview config=one
holds $vm "vda=vda now" "vdb=vdb now" "vdc=vdc now"
equal 1000 "$(memory_of $vm)" memory
tell undo undo
now_is_unchanged
end

begin "a custom preview, as oVirt says it"
one=$(attribute uuid $vm/snapshots/one) two=$(attribute uuid $vm/snapshots/two)
image=$(basename "$(attribute layer $vm/snapshots/two/disks/vdb.img)" .qcow2)
disk=$(basename "$(domain_source $vm/domain.xml vdb)" .qcow2)
cat >$actions/preview <<XML
<action>
  <snapshot id="$one"/>
  <restore_memory>false</restore_memory>
  <disks>
    <disk id="$disk">
      <image_id>$image</image_id>
      <snapshot id="$two"/>
    </disk>
  </disks>
</action>
XML
equal "vdb two" "$(got $vm vdb)" "the disk of the other moment"
equal 1000 "$(memory_of $vm)" memory
tell undo undo
now_is_unchanged
end

begin "undo of a custom preview, after writes to it and a remount"
cp --sparse=always $vm/disks/vda.img want/vda
cp --sparse=always $vm/disks/vdb.img want/vdb
grep -v '<source file' $vm/domain.xml >want/domain.xml # the layers on top are new ones
tell preview vda=one vdb=one
put vda "tried out" && put vdb "tried out"
set_memory 5000
unmount mnt
mount_at src mnt
holds $vm "vda=tried out" "vdb=tried out" "vdc=vdc now"
tell undo undo
now_is_unchanged
same want/vda $vm/disks/vda.img
same want/vdb $vm/disks/vdb.img
same want/domain.xml <(grep -v '<source file' $vm/domain.xml)
lists $vm/snapshots one two
end

begin "commit of a custom preview"
tell preview config=one vda=one vdb=two vdc=none
put vdb "tried out"
tell commit commit
holds $vm "vda=vda one" "vdb=tried out"
equal 1000 "$(memory_of $vm)" memory
kept=$(cd $vm/snapshots && ls -d before-restore-*)
lists $vm/snapshots one two "$kept"
holds "$vm/snapshots/$kept" "vda=vda now" "vdb=vdb now" "vdc=vdc now"
equal 3000 "$(memory_of "$vm/snapshots/$kept")" "memory of what was kept"
refused EINVAL tell undo undo
refused EINVAL tell commit commit
mkdir $vm/snapshots/after
holds $vm/snapshots/after "vda=vda one" "vdb=tried out"
end

begin "commit of a custom preview, with discard"
tell preview vda=one vdb=two vdc=two
tell commit commit discard
holds $vm "vda=vda one" "vdb=vdb two" "vdc=vdc two"
lists $vm/snapshots one two
end

begin "a preview of a partial snapshot"
tell snapshot part vdb
for disk in vda vdb vdc; do put $disk "$disk later"; done
tell preview part
holds $vm "vda=vda later" "vdb=vdb now" "vdc=vdc later"
tell undo undo
holds $vm "vda=vda later" "vdb=vdb later" "vdc=vdc later"
refused ENOENT tell preview vda=part
holds $vm "vda=vda later" "vdb=vdb later" "vdc=vdc later"
end

# --- memory --------------------------------------------------------------------------------------------------------------------

begin "memory only with its own configuration"
head -c 300000 /dev/urandom >"$src/ram"
cat >$actions/snapshot <<XML
<domainsnapshot>
  <name>live</name>
  <memory snapshot='external' file='$src/ram'/>
</domainsnapshot>
XML
same "$src/ram" $vm/snapshots/live/memory "the snapshot's RAM"
rm "$src/ram"
refused EINVAL tell preview config=one memory=live
contains "$(last_event $vm)" RAM "the event"
refused EINVAL tell preview memory=live vda=one
refused EINVAL tell preview one memory=live
refused "EINVAL|ENOENT" tell preview config=one memory=one
now_is_unchanged
[ ! -e $vm/memory ] || fail "memory in the active state"
tell preview config=live memory=live vda=one
holds $vm "vda=vda one" "vdb=vdb now" "vdc=vdc now"
tell undo undo
now_is_unchanged
mv $vm/snapshots/live $vm/snapshots/alive
cksum $vm/snapshots/alive/memory >/dev/null
rmdir $vm/snapshots/alive
end

# --- refusals ------------------------------------------------------------------------------------------------------------------

begin "what a preview excludes"
tell preview one
refused EBUSY mkdir $vm/snapshots/x
contains "$(last_event $vm)" commit "the event says what to do"
refused EBUSY tell snapshot x vda
refused EBUSY rmdir $vm/snapshots/two
refused EBUSY tell delete two merge-force
refused EBUSY ln -sfn snapshots/two $vm/current
refused EBUSY tell restore two
refused EBUSY tell preview two
contains "$(last_event $vm)" undo "the event says what to do"
holds $vm "vda=vda one" "vdb=vdb one" "vdc=vdc one"
tell undo undo
now_is_unchanged
lists $vm/snapshots one two
end

begin "what an open disk excludes"
exec 8<>$vm/disks/vda.img
refused EBUSY tell preview one
refused EBUSY tell restore one
refused EBUSY ln -sfn snapshots/one $vm/current
contains "$(last_event $vm)" "is open" "the event"
exec 8>&-
wait_until 10 tell preview one 2>/dev/null || fail "no preview with the disk closed"
tell undo undo
now_is_unchanged
end

begin "what isn't understood"
refused "EINVAL|ENOENT" tell preview what=one
refused ENOENT tell preview nothing
refused ENOENT tell preview vda=nothing
refused ENOENT tell restore nothing
refused "EINVAL|ENOENT" tell preview vdz=one
refused EINVAL tell undo undo
refused EINVAL tell undo again
refused EINVAL tell commit commit
refused EINVAL tell restore one two
refused "ENOENT|EINVAL|EPERM" ln -sfn snapshots/nothing $vm/current
refused "ENOENT|EINVAL|EPERM" ln -sfn /etc/passwd $vm/current
for action in "$actions"/*; do
	[ -s "$action" ] || fail "$action doesn't say how it is used"
	grep -vq '^#' "$action" && fail "$action: what it says could be taken for a command"
done
now_is_unchanged
end

say "found VMs: nothing of it, and the event names the remedy"
fingerprint src >before
web=mnt/vms/web
refuses_found() {
	refused "EROFS|EPERM" "$@"
	contains "$(last_event $web)" clone "the event of '$*'"
}
refuses_found mkdir $web/snapshots/x
refuses_found rmdir $web/snapshots/patched
refuses_found mv $web/snapshots/patched $web/snapshots/x
refuses_found ln -sfn snapshots/patched $web/current
for action in snapshot preview commit undo restore delete; do
	[ -e "$web/actions/$action" ] || continue
	actions=$web/actions
	refuses_found tell $action patched
done
lists $web/snapshots installed patched upgraded
same before <(fingerprint src) "the sources"
unmount mnt
