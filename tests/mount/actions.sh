#!/usr/bin/env bash
# The files in actions/: each command carried out once, with its error where it was written, whatever form it has.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io python3 rsync getfattr tar

src=$PWD/src
make_vm "$src" web want
mount_at src mnt
mkdir mnt/clones/web@upgraded/vm
wait_until 60 jobs_done mnt
vm=$PWD/mnt/clones/vm
a=$vm/actions

write_to() { # FILE TEXT: as echo does
	printf '%s\n' "$2" >"$1"
}
fill() { # DISK BYTE: 256 KiB of it
	head -c 256k /dev/zero | tr '\0' "\\$2" | dd of="$vm/disks/$1.img" bs=64k conv=notrunc status=none
}
attribute() { # NAME SNAPSHOT
	getfattr --absolute-names --only-values -n "user.vmsnapfs.$1" "$vm/snapshots/$2"
}
event() { # TEXT: the VM's last event holds it
	tail -n 1 "$vm/events" | grep -qF -- "$1" || fail "the last event isn't '$1' but: $(tail -n 1 "$vm/events")"
}
state_of() { # DIR: all that a VM or snapshot holds, but for the layers' names
	(cd "$1" && find disks -type f | sort | xargs sha256sum && sed "s,<source file=[^>]*>,," domain.xml)
}

say "reading gives usage, which does nothing when it is written"
lists "$vm" actions disks domain.xml events snapshots status
lists "$a" clone commit delete flatten preview restore snapshot undo
for f in "$a"/*; do
	[ -s "$f" ] || fail "$f is empty"
	! grep -qv '^#' "$f" || fail "$f: $(cat "$f")"
	equal "$(stat -c %s "$f")" "$(wc -c <"$f")" "size of $f"
	cp "$f" usage
	cp usage "$f"
	cat usage >>"$f"
	: >"$f"
	printf '\n\n  \n# x' >"$f"
done
lists "$vm/snapshots"
equal 0 "$(wc -l <"$vm/events")" "events"

say "snapshots: a line"
fill vda 1
write_to "$a/snapshot" all
fill vda 2
fill vdb 2
write_to "$a/snapshot" 'one vdb   description=only "vdb"'
write_to "$a/snapshot" '"two words" vda.img description="in quotes"'
lists "$vm/snapshots" all one "two words"
lists "$vm/snapshots/all/disks" vda.img vdb.img
lists "$vm/snapshots/one/disks" vdb.img
lists "$vm/snapshots/two words/disks" vda.img
equal 'only "vdb"' "$(attribute description "one")"
equal "in quotes" "$(attribute description "two words")"
equal "snapshots/two words" "$(readlink "$vm/current")"
refused EEXIST write_to "$a/snapshot" all
event "a snapshot all already (File exists)"
refused ENOENT write_to "$a/snapshot" "x vdc"
event "no disk vdc"
refused EINVAL write_to "$a/snapshot" ".x"
refused EINVAL write_to "$a/snapshot" "x=y"
event "expected NAME [DISK...]"

say "snapshots: libvirt's XML, in pieces, without a newline at its end"
cat >libvirt.xml <<'END'
<domainsnapshot>
  <name>libvirt</name>
  <description>a &amp; b</description>
  <memory snapshot='no'/>
  <disks>
    <disk name='vdb' snapshot='no'/>
    <disk name='vda' snapshot='external'/>
  </disks>
</domainsnapshot>
END
dd if=libvirt.xml of="$a/snapshot" bs=7 status=none
lists "$vm/snapshots/libvirt/disks" vda.img
equal "a & b" "$(attribute description "libvirt")"
refused EEXIST dd if=libvirt.xml of="$a/snapshot" bs=10 status=none
printf "<domainsnapshot><name>path</name><disks><disk name='%s' snapshot='no'/></disks></domainsnapshot>" \
	"$(domain_source "$vm/domain.xml" vda)" >"$a/snapshot"
lists "$vm/snapshots/path/disks" vdb.img
refused ENOENT write_to "$a/snapshot" "<domainsnapshot><disks><disk name='vdz' snapshot='no'/></disks></domainsnapshot>"
refused EOPNOTSUPP write_to "$a/snapshot" "<domainsnapshot><memory snapshot='internal'/></domainsnapshot>"
refused EINVAL write_to "$a/snapshot" "<domain></domain>"
refused EINVAL write_to "$a/snapshot" "<!DOCTYPE a><domainsnapshot/>"
echo "<domainsnapshot><name>x</name>" >cut.xml # never complete: said by close
refused EINVAL cp cut.xml "$a/snapshot"
event "not well-formed XML"

say "snapshots: oVirt's XML"
cat >"$a/snapshot" <<<"<snapshot><description>My/snapshot</description><persist_memorystate>false</persist_memorystate></snapshot>"
write_to "$a/snapshot" "<snapshot><description>My/snapshot</description><disk_attachments><disk_attachment><disk id='vda'/></disk_attachment></disk_attachments></snapshot>"
lists "$vm/snapshots/My_snapshot/disks" vda.img vdb.img
lists "$vm/snapshots/My_snapshot~2/disks" vda.img
equal "My/snapshot" "$(attribute description "My_snapshot~2")"
refused EOPNOTSUPP write_to "$a/snapshot" "<snapshot><persist_memorystate>true</persist_memorystate></snapshot>"

say "each command once, the rest of what was written with one that failed not at all"
printf '# two of them\nm1\nm2 vda\n\n' >"$a/snapshot"
refused EEXIST write_to "$a/snapshot" $'m3\nm1\nm4'
# The error is the write's: python tells it from the close's.
python3 - "$a" <<'END'
import errno, os, sys
def expect(want, call, *args):
    try:
        call(*args)
    except OSError as error:
        assert error.errno == want, (error, want)
        return
    assert want == 0, "no error"
def file(name, flags=os.O_WRONLY):
    return os.open(sys.argv[1] + "/" + name, flags)
fd = file("snapshot")
expect(0, os.write, fd, b"p1")
expect(0, os.write, fd, b"\n")
expect(errno.EEXIST, os.write, fd, b"p2\np1\np3\n")
expect(0, os.close, fd)
fd = file("snapshot", os.O_WRONLY | os.O_APPEND)
expect(0, os.write, fd, b"p4")
expect(0, os.write, fd, b" vdb")
expect(0, os.close, fd)
fd = file("snapshot", os.O_RDWR | os.O_TRUNC)
assert os.read(fd, 100).startswith(b"#")
expect(0, os.write, fd, b"p1")
expect(errno.EEXIST, os.close, fd)
fd = file("snapshot")
expect(0, os.write, fd, b"p4")
expect(errno.EEXIST, os.fsync, fd)
expect(0, os.close, fd)
os.truncate(sys.argv[1] + "/snapshot", 0)
fd = file("delete")
expect(errno.EFBIG, lambda: [os.write(fd, b"x" * 500000) for _ in range(4)])
expect(0, os.close, fd)
END
lists "$vm/snapshots" all one "two words" libvirt path My_snapshot My_snapshot~2 m1 m2 m3 p1 p2 p4
lists "$vm/snapshots/p4/disks" vdb.img

say "delete"
write_to "$a/delete" "p2"
[ ! -e "$vm/snapshots/p2" ] || fail "p2 is still there"
for s in p1 p4 m1 m3 My_snapshot My_snapshot~2; do write_to "$a/delete" "$s"; done
write_to "$a/delete" "path merge"
refused ENOTEMPTY write_to "$a/delete" "one discard"
refused ENOENT write_to "$a/delete" "nosuch"
event "no snapshot nosuch"
refused EINVAL write_to "$a/delete" "one at once"
event "expected SNAPSHOT [merge | merge-force | discard | discard-force]"
refused EINVAL write_to "$a/delete" "<snapshot/>"
write_to "$a/delete" "$(attribute uuid "m2")"
lists "$vm/snapshots" all one "two words" libvirt

say "restore, seen at once by who has read the disk before"
fill vda 3
cat "$vm/disks/vda.img" >/dev/null
cp "$vm/disks/vda.img" before.img
write_to "$a/restore" all
same "$vm/disks/vda.img" "$vm/snapshots/all/disks/vda.img"
equal snapshots/all "$(readlink "$vm/current")"
kept=$(cd "$vm/snapshots" && echo before-restore-*)
same "$vm/snapshots/$kept/disks/vda.img" before.img
write_to "$a/restore" "$kept discard"
same "$vm/disks/vda.img" before.img
write_to "$a/restore" "<action><snapshot id='$(attribute uuid "all")'/><restore_memory>false</restore_memory></action>"
same "$vm/disks/vda.img" "$vm/snapshots/all/disks/vda.img"
write_to "$a/restore" "$kept discard"
refused ENOENT write_to "$a/restore" nosuch
refused EINVAL write_to "$a/restore" "all now"
exec {reader}<"$vm/disks/vdb.img"
refused EBUSY write_to "$a/restore" all
exec {reader}<&-
write_to "$a/restore" "vda=all discard"
same "$vm/disks/vda.img" "$vm/snapshots/all/disks/vda.img"

say "preview: a mix, to be seen at once; undo to the byte"
fill vdb 5
state_of "$vm" >active
write_to "$a/preview" "vda=$kept vdb=one"
same "$vm/disks/vda.img" "$vm/snapshots/$kept/disks/vda.img"
same "$vm/disks/vdb.img" "$vm/snapshots/one/disks/vdb.img"
grep -q '^preview: ' "$vm/status" || fail "status says nothing of the preview: $(cat "$vm/status")"
fill vda 6
for command in "snapshot x" "restore all" "preview all" "delete all"; do
	refused EBUSY write_to "$a/${command% *}" "${command#* }"
	event "actions/undo"
done
refused EBUSY mkdir "$vm/snapshots/x"
refused EBUSY rmdir "$vm/snapshots/libvirt"
refused EINVAL write_to "$a/undo" commit
write_to "$a/undo" undo
state_of "$vm" >now
same active now "the state after undo"
refused EINVAL write_to "$a/undo" undo
event "nothing is being previewed"
refused EINVAL write_to "$a/commit" commit

say "preview: a disk left out, the configuration of a snapshot; commit"
sed "s,<description>made by a test</description>,<description>changed</description>," "$vm/domain.xml" >edited.xml
cat edited.xml >"$vm/domain.xml"
write_to "$a/preview" "config=all vdb=none"
lists "$vm/disks" vda.img
! grep -q changed "$vm/domain.xml" || fail "the configuration isn't that of the snapshot"
! grep -q "target dev='vdb'" "$vm/domain.xml" || fail "domain.xml still has the disk that was left out"
write_to "$a/commit" commit
lists "$vm/disks" vda.img
write_to "$a/restore" "all discard"
lists "$vm/disks" vda.img vdb.img

say "preview: oVirt's XML"
state_of "$vm" >active
id_of() { attribute uuid "$1"; }
layer_of() { # DISK
	local layer
	layer=$(getfattr --absolute-names --only-values -n user.vmsnapfs.layer "$1")
	layer=${layer##*/}
	echo "${layer%.*}"
}
write_to "$a/preview" "<action>
  <snapshot id='$(id_of "two words")'/><restore_memory>false</restore_memory>
  <disks><disk id='vda'><snapshot id='$(id_of "$kept")'/></disk><disk id='$(layer_of "$vm/disks/vdb.img")'><image_id>$(layer_of "$vm/snapshots/one/disks/vdb.img")</image_id></disk></disks>
</action>"
same "$vm/disks/vda.img" "$vm/snapshots/$kept/disks/vda.img"
same "$vm/disks/vdb.img" "$vm/snapshots/one/disks/vdb.img"
write_to "$a/undo" "<action/>"
state_of "$vm" >now
same active now "the state after undo"
refused ENOENT write_to "$a/preview" "<action><snapshot id='$(id_of all)'/><disks><disk id='vda'><image_id>x</image_id></disk></disks></action>"
refused ENOENT write_to "$a/preview" "<action><snapshot id='$(id_of all)'/><restore_memory>true</restore_memory></action>"
refused EINVAL write_to "$a/preview" "vda=all config=one memory=all"

say "the RAM that came in a file of its own"
head -c 100000 /dev/urandom >"$src/ram"
write_to "$a/snapshot" "<domainsnapshot><name>ram</name><memory snapshot='external' file='$src/ram'/></domainsnapshot>"
same "$src/ram" "$vm/snapshots/ram/memory"
[ ! -e "$vm/memory" ] || fail "the VM has RAM that nobody asked for"
refused ENOENT write_to "$a/snapshot" "<domainsnapshot><memory snapshot='external' file='$src/nosuch'/></domainsnapshot>"
write_to "$a/preview" "ram memory=ram"
same "$src/ram" "$vm/memory"
write_to "$a/undo" undo
[ ! -e "$vm/memory" ] || fail "the RAM is still there"

say "links and names that mean something else"
mkdir mnt/clones/web@patched/other
mkdir mnt/clones/other/snapshots/all
refused EPERM ln -sfn ../other/snapshots/all "$vm/current"
ln -sfn "../vm/snapshots/all" "$vm/current"
ln -sfn "$vm/snapshots/all" "$vm/current"
refused EINVAL write_to "$a/preview" "vda=all vda.img=all"
refused EINVAL write_to "$a/preview" "vda=none vda.img=all"
write_to mnt/clones/other/actions/preview all
rmdir mnt/clones/other/snapshots/all 2>/dev/null && fail "a snapshot of a VM with a preview was deleted"
refused EBUSY rmdir mnt/clones/other
truncate -s 1M mnt/clones/other/disks/vdz.img
write_to mnt/clones/other/actions/undo undo
grep -q "disk vdz.img, which came with the preview, goes with it" mnt/clones/other/events
exec {open}<>mnt/clones/other/disks/vdb.img
rm mnt/clones/other/disks/vdb.img # it is open still, but no disk of the VM
write_to mnt/clones/other/actions/restore all
exec {open}>&-
rmdir mnt/clones/other/snapshots/*
rmdir mnt/clones/other

say "a found VM's"
before=$(fingerprint "$src")
for f in snapshot preview commit undo restore delete flatten; do
	refused EROFS write_to "mnt/vms/web/actions/$f" installed
	contains "$(tail -n 1 mnt/vms/web/events)" "Clone it"
	[ -s "mnt/vms/web/actions/$f" ] || fail "$f is empty"
done
equal "$before" "$(fingerprint "$src")"
refused EPERM write_to "$a/nosuch" x

say "a copied or removed directory of a VM"
mkdir mnt/clones/web@patched/plain
wait_until 60 jobs_done mnt
cp -r mnt/clones/plain mnt/clones/by-cp
cp -a mnt/clones/plain mnt/clones/by-cp-a
rsync -a mnt/clones/plain/ mnt/clones/by-rsync/
tar -C mnt/clones/plain -cf - . | (mkdir mnt/clones/by-tar && tar -C mnt/clones/by-tar -xf -)
for clone in by-cp by-cp-a by-rsync by-tar; do
	same mnt/clones/$clone/disks/vda.img mnt/clones/plain/disks/vda.img
	lists mnt/clones/$clone/actions clone commit delete flatten preview restore snapshot undo
	lists mnt/clones/$clone/snapshots
	rm -r mnt/clones/$clone
done
rmdir "$vm/snapshots/"*
rm -r "$vm"
lists mnt/clones plain
