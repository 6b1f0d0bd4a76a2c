#!/usr/bin/env bash
# What a clone does with sources that aren't as they should be, each with its event: held by QEMU, being deleted, gone, shared, a LUN;
# and that an independent clone has nothing of its template.       limit: 240
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

src=$PWD/src
mkdir -p "$src/vm" want
for disk in template shared gone; do
	img create -f qcow2 "$src/$disk.qcow2" 16M
	io "$src/$disk.qcow2" qcow2 "write -P 1 0 4M"
done
img create -f qcow2 -b template.qcow2 -F qcow2 "$src/a.qcow2"
io "$src/a.qcow2" qcow2 "write -P 2 1M 1M"
img create -f qcow2 -b a.qcow2 -F qcow2 "$src/a.now"
img create -f qcow2 "$src/b.qcow2" 16M
io "$src/b.qcow2" qcow2 "write -P 3 2M 1M"
img snapshot -c s "$src/b.qcow2"
oracle "$src/a.qcow2" qcow2 want/vda.img
oracle "$src/b.qcow2" qcow2 want/vdb.img s
img create -f qcow2 -b gone.qcow2 -F qcow2 "$src/gone.now"
img create -f qcow2 -b shared.qcow2 -F qcow2 "$src/shared.now"
domain_of() { # DISK...
	domain_xml vm "$(uuid_of vm)" "$@" "vdb=$src/b.qcow2" |
		sed "/<target dev='vdd'/s,^,      <shareable/>\n," |
		awk '{ print } /<memballoon/ {
			print "    <disk type=\"block\" device=\"lun\">\n      <driver name=\"qemu\" type=\"raw\"/>\n      <source dev=\"/dev/sdz\"/>"
			print "      <target dev=\"sdx\" bus=\"scsi\"/>\n    </disk>"
		}'
}
domain_of "vda=$src/a.now" "vdc=$src/gone.now" "vdd=$src/shared.now" >"$src/vm.xml"
domain_of "vda=$src/a.qcow2" "vdc=$src/gone.qcow2" "vdd=$src/shared.qcow2" >then.xml
snapshot_xml s active=1 domain=then.xml -- "vda=external:$src/a.now" vdb=internal "vdc=external:$src/gone.now" "vdd=external:$src/shared.now" \
	>"$src/vm/s.xml"
mount_at src mnt
clones=$PWD/mnt/clones

# The last event that holds all these words.
event() { # WORD...
	local word lines
	lines=$(cat mnt/events)
	for word; do
		lines=$(grep -F -- "$word" <<<"$lines") || fail "no event with '$word': $(cat mnt/events)"
	done
}

xpath() { # VM XPATH
	xmllint --xpath "string($2)" "$clones/$1/domain.xml"
}

# A QEMU that has this image open for writing, until let_go.
hold() { # IMAGE
	rm -f orders held
	mkfifo orders
	qemu-io -f qcow2 "$1" <orders >held 2>&1 &
	holder=$!
	exec 9>orders
	echo "read 0 512" >&9
	wait_until 20 grep -q "512/512" held || fail "qemu-io doesn't open $1: $(cat held)"
}

let_go() {
	exec 9>&-
	wait "$holder" || true
}

check_clone() { # NAME
	lists "$clones/$1/disks" vda.img vdb.img vdc.img
	same "$clones/$1/disks/vda.img" want/vda.img
	same "$clones/$1/disks/vdb.img" want/vdb.img
}

say "a shared disk is left out, a LUN stays a device"
mkdir mnt/clones/vm@s/one
check_clone one
event "one: disk vdd.img of vm@s isn't cloned" "shared"
equal "" "$(xpath one "//disk[target/@dev='vdd']/target/@dev")" "the shared disk in the clone's configuration"
equal /dev/sdz "$(xpath one "//disk[@device='lun' and target/@dev='sdx']/source/@dev")" "the LUN"
rmdir mnt/clones/one

say "up: QEMU writes to the images that the VM has now"
hold "$src/a.now"
mkdir mnt/clones/vm@s/up
check_clone up
let_go

say "an image of the source chain is being written"
hold "$src/a.qcow2"
refused EBUSY mkdir mnt/clones/vm@s/busy
event "busy" "vda.img" "$src/a.qcow2"
refused EBUSY bash -c "echo s busy mode=full >mnt/vms/vm/actions/clone"
let_go
lists mnt/clones up
check_clone up
hold "$src/b.qcow2"
mkdir mnt/clones/vm@s/internal # an internal snapshot doesn't change, whoever writes to its image
echo "write -P 9 2M 1M" >&9
wait_until 20 grep -q "wrote" held || fail "qemu-io: $(cat held)"
check_clone internal
let_go
wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
check_clone internal
rm -r mnt/clones/up mnt/clones/internal

say "copied, too: a disk that QEMU writes to can't be read as it is now"
hold "$src/a.now"
mkdir mnt/clones/copied
refused EBUSY cp mnt/vms/vm/disks/vda.img mnt/clones/copied/disks/
event "vda.img" "$src/a.now" "in use"
let_go
rm -r mnt/clones/copied

say "an image has gone since"
mv "$src/gone.qcow2" elsewhere
mkdir mnt/clones/vm@s/others
lists mnt/clones/others/disks vda.img vdb.img
same mnt/clones/others/disks/vda.img want/vda.img
event "others: disk vdc.img of vm@s isn't cloned" "$src/gone.qcow2" "No such file"
equal "" "$(xpath others "//disk[target/@dev='vdc']/target/@dev")" "the disk in the clone's configuration"
echo "s full-others mode=full" >mnt/vms/vm/actions/clone
wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
lists mnt/clones/full-others/disks vda.img vdb.img
event "full-others: disk vdc.img of vm@s isn't cloned" "$src/gone.qcow2"
mv elsewhere "$src/gone.qcow2"
rm -r mnt/clones/others

say "the template isn't inherited by an independent clone"
layer=$(domain_source mnt/clones/full-others/domain.xml vda)
info=$(qemu-img info -U --backing-chain "$layer")
[[ $info != *"backing file"* ]] || fail "it has a backing file: $info"
grep -rqF template "$clones/full-others/domain.xml" && fail "its configuration names the template"
mv "$src/template.qcow2" "$src/a.qcow2" .
same mnt/clones/full-others/disks/vda.img want/vda.img
unmount mnt
mount_at src mnt
same mnt/clones/full-others/disks/vda.img want/vda.img
mv template.qcow2 a.qcow2 "$src/"
rm -r mnt/clones/full-others

say "our own deletes: a clone made while its snapshot is deleted is whole, or isn't there"
mkdir mnt/clones/vm@s/m
for ((i = 0; i < 20; i++)); do
	dd if=/dev/urandom of=mnt/clones/m/disks/vda.img bs=64k count=20 seek=$((i * 7)) conv=notrunc status=none
	cp mnt/clones/m/disks/vda.img model
	mkdir mnt/clones/m/snapshots/x
	case $((i % 3)) in
	0) mkdir mnt/clones/m@x/y 2>err & ;;
	1) { echo "x y mode=full" >mnt/clones/m/actions/clone || exit 1; } 2>err & ;;
	2) { echo "x y mode=full format=raw" >mnt/clones/m/actions/clone || exit 1; } 2>err & ;;
	esac
	pid=$!
	# First the one, then the other, then both at once.
	[ $((i % 4)) != 0 ] || wait $pid
	rmdir mnt/clones/m/snapshots/x
	if wait $pid; then
		same mnt/clones/y/disks/vda.img model "clone $i"
		wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"
		same mnt/clones/y/disks/vda.img model "clone $i, when all is done"
		same mnt/clones/m/disks/vda.img model "the source"
		rm -r mnt/clones/y
	else
		# The directory m@x was found and has gone: ESTALE.
		grep -qE "${errno_text[ENOENT]}|Stale file handle" err || fail "clone $i: $(cat err)"
		[ ! -e mnt/clones/y ] || fail "half a clone is left"
	fi
done

say "and a copy that reads a snapshot while it is deleted"
mkdir mnt/clones/m/snapshots/x
exec 8<mnt/clones/m/snapshots/x/disks/vda.img
head -c 1M <&8 >part
rmdir mnt/clones/m/snapshots/x || say "in use"
cat <&8 >>part
exec 8<&-
same part model "what was open"
wait_until 60 jobs_done mnt || fail "jobs don't end: $(cat mnt/jobs/*)"

say "a shared disk of a managed VM is left out as well"
sed "/<target dev=.vdb./s,^,<shareable/>," mnt/clones/m/domain.xml >new.xml
cat new.xml >mnt/clones/m/domain.xml
mkdir mnt/clones/m/snapshots/x
lists mnt/clones/m/snapshots/x/disks vda.img vdc.img
event "m: disk vdb.img isn't part of the snapshot x" "shared"
mkdir mnt/clones/m@x/y
lists mnt/clones/y/disks vda.img vdc.img
mkdir mnt/clones/m@/z
lists mnt/clones/z/disks vda.img vdc.img
event "z: disk vdb.img of m isn't cloned" "shared"
equal "" "$(xpath z "//disk[target/@dev='vdb']/target/@dev")" "the shared disk in the clone's configuration"

say "a snapshot of the same name as one that was deleted is the one that is cloned"
for ((i = 0; i < 5; i++)); do
	dd if=/dev/urandom of=mnt/clones/m/disks/vda.img bs=64k count=2 seek=$i conv=notrunc status=none
	mkdir mnt/clones/m/snapshots/again mnt/clones/m@again/w
	same mnt/clones/w/disks/vda.img mnt/clones/m/disks/vda.img
	rmdir mnt/clones/w mnt/clones/m/snapshots/again
done
unmount mnt
