#!/usr/bin/env bash
# Very many VMs and snapshots: paging, numbers that stay, what changes, bounded memory.       limit: 600
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img

makehosts=$BUILD/tools/makehosts
dirpage=$BUILD/tools/dirpage

say "10,000 VMs: a directory that is read while VMs come and go"
"$makehosts" -l many 10000 0
mount_at many/qemu mnt -o "snapshots=$PWD/many/qemu/snapshot,trust=$PWD/many/images"
equal 10000 "$(find mnt/vms -mindepth 1 -maxdepth 1 | wc -l)" VMs
cat >change <<'END'
cd "$(dirname "$0")"
for n in 2 3 4; do
	rm many/qemu/vm0${n}1*.xml
	sed "s/vm00000/came$n/" many/qemu/vm00000.xml >many/qemu/came$n.xml
	sed "s/vm00000/aaa$n/" many/qemu/vm00000.xml >many/qemu/aaa$n.xml
done
# A rename of the domain, and of its file.
sed -i "s/<name>vm05000/<name>renamed/" many/qemu/vm05000.xml
mv many/qemu/vm09000.xml many/qemu/moved.xml
end=$((SECONDS + 60))
until [ -e mnt/vms/came4 ] && [ -e mnt/vms/aaa4 ] && [ ! -e mnt/vms/vm02100 ] && [ ! -e mnt/vms/vm04199 ] && [ -e mnt/vms/renamed ]; do
	[ $SECONDS -le $end ] || exit 1
	sleep 0.05
done
END
"$dirpage" mnt/vms "bash $PWD/change"
equal $((10000 - 300 + 6)) "$(find mnt/vms -mindepth 1 -maxdepth 1 | wc -l)" "VMs afterwards"
equal "$(ls mnt/vms)" "$(find mnt/vms -mindepth 1 -maxdepth 1 -printf '%f\n' | sort)"
for vm in mnt/vms/vm0123*; do [ -f "$vm/domain.xml" ] || fail "no $vm/domain.xml"; done
unmount mnt
rm -r many

say "2,000 VMs of 50 snapshots, all looked at, twice"
nr_vms=2000
"$makehosts" -l -i src $nr_vms 50
mount_at src mnt
look() {
	find mnt/vms -mindepth 1 -maxdepth 3 -printf '%i %P\n' | sort -k 2 >"$1"
}
look first
equal $nr_vms "$(grep -c '^[0-9]* vm[0-9]*$' first)" VMs
equal $((nr_vms * 50)) "$(grep -c '/snapshots/snap' first)" snapshots
equal $nr_vms "$(grep -c '/current$' first)" "links to the current one"
look second
same first second "the numbers of what has been looked at before"
equal "$(sort first | uniq | wc -l)" "$(cut -d ' ' -f 1 first | sort -u | wc -l)" "different numbers"
say "peak memory: $(peak_memory mnt) KiB"
[ -n "$SAN" ] || at_most 131072 "$(peak_memory mnt)" "peak memory in KiB"

say "what changes is seen"
vm=mnt/vms/vm00700 meta=src/vm00700
equal 50 "$(find $vm/snapshots -mindepth 1 -maxdepth 1 | wc -l)" snapshots
inode=$(stat -c %i $vm/snapshots/snap049)
sed 's/snap007/new-one/' $meta/snap007.xml >$meta/new-one.xml
wait_until 20 test -d $vm/snapshots/new-one || fail "a snapshot that came isn't noticed"
rm $meta/snap011.xml
wait_until 20 test ! -e $vm/snapshots/snap011 || fail "a snapshot that went is still there"
[ ! -e $vm/snapshots/snap011/domain.xml ] || fail "snap011 is still there"
# In place, and nothing else: not a link any more.
cp $meta/snap020.xml copy && mv copy $meta/snap020.xml
sleep 0.01
printf '%s\n' "$(sed 's,<creationTime>.*</creationTime>,<creationTime>1234567890</creationTime>,' $meta/snap020.xml)" >$meta/snap020.xml
changed() { [ "$(stat -c %Y $vm/snapshots/snap020)" = 1234567890 ]; }
wait_until 20 changed || fail "a change of a snapshot's metadata isn't noticed"
equal "$inode" "$(stat -c %i $vm/snapshots/snap049)" "the number of a snapshot that is the same"
equal 50 "$(find $vm/snapshots -mindepth 1 -maxdepth 1 | wc -l)" "snapshots afterwards"
equal 50 "$(find mnt/vms/vm00701/snapshots -mindepth 1 -maxdepth 1 | wc -l)" "snapshots of another VM"

say "a damaged one is an event when its VM is looked at"
equal 0 "$(events_with mnt broken.xml)" events
echo '<domainsnapshot><name>x' >src/vm00900/broken.xml
event_comes() {
	ls mnt/vms/vm00900/snapshots >names
	[ "$(events_with mnt broken.xml)" = 1 ]
}
wait_until 20 event_comes || fail "no event names broken.xml"
equal 50 "$(wc -l <names)" "snapshots beside the damaged one"
unmount mnt
