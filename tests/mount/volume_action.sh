#!/usr/bin/env bash
# actions/clone with libvirt's <volume>: a volume in a pool, of one disk of a snapshot.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io getfattr

src=$PWD/src
make_vm "$src" web want
img create -f qcow2 "$src/box.qcow2" 3M
io "$src/box.qcow2" qcow2 "write -P 9 0 1M"
img snapshot -c tag "$src/box.qcow2"
before=$(fingerprint "$src")
mkdir fast slow
mount_at src mnt -o "pool=fast:$PWD/fast,pool=slow:$PWD/slow"
web=mnt/vms/web

clone() { # VM COMMAND
	printf '%s\n' "$2" >"$1/actions/clone"
}
event() { # VM TEXT: the VM's last event holds it
	contains "$(tail -n 1 "$1/events")" "$2"
}
volume() { # NAME MORE...
	echo "<volume><name>$1</name>${*:2}</volume>"
}
info() { # FILE KEY: of qemu-img info
	qemu-img info -U "$1" | sed -n "s/^$2: //p"
}
is_volume() { # FILE FORMAT WANT
	wait_until 60 jobs_done mnt
	same "mnt/pools/$1" "$3"
	equal "$2" "$(info "$1" "file format")" "format of $1"
	oracle "$1" "$2" got.img
	same got.img "$3"
}
format() { echo "<target><format type='$1'/></target>"; }

say "which snapshot, which disk, which pool"
refused EINVAL clone $web "$(volume a.qcow2)"
event $web "which disk? Snapshot upgraded has vda, vdb"
refused EINVAL clone $web "patched vda $(volume a.qcow2)"
event $web "which pool? There is fast, slow"
refused ENOENT clone $web "patched vdq pool=fast $(volume a.qcow2)"
refused ENOENT clone $web "patched vda pool=none $(volume a.qcow2)"
refused ENOENT clone mnt/vms/box "vda pool=fast $(volume a.qcow2)"
refused EINVAL clone $web "patched vda pool=fast $(volume a.qcow2 '<backingStore><path>/etc/passwd</path></backingStore>')"
event $web "/etc/passwd isn't in the chain of web@patched"
lists mnt/pools/fast
lists fast

say "copies, raw and qcow2"
clone $web "patched vda pool=fast $(volume a.qcow2 '<allocation>0</allocation>' "$(format qcow2)")"
is_volume fast/a.qcow2 qcow2 want/patched-vda.img
equal "" "$(info fast/a.qcow2 "backing file")" "backing file"
clone $web "patched vdb pool=slow $(volume b.img '<allocation>0</allocation>' "$(format raw)")"
is_volume slow/b.img raw want/patched-vdb.img
refused EINVAL clone $web "pool=slow vda=none $(volume x.img)"
clone mnt/vms/box "tag pool=slow $(volume box.qcow2 '<capacity unit="M">5</capacity>')"
wait_until 60 jobs_done mnt
equal 5242880 "$(stat -c %s mnt/pools/slow/box.qcow2)" "size"
cmp -n 3145728 mnt/pools/slow/box.qcow2 mnt/vms/box/snapshots/tag/disks/vda.img

say "libvirt's own example, allocated in full"
clone $web "installed vdb pool=slow <volume>
  <name>sparse.img</name>
  <capacity unit='MiB'>8</capacity>
  <target>
    <path>/var/lib/virt/images/sparse.img</path>
    <permissions>
      <owner>107</owner>
      <group>107</group>
      <mode>0744</mode>
      <label>virt_image_t</label>
    </permissions>
  </target>
</volume>"
wait_until 60 jobs_done mnt
cmp -n 5242880 mnt/pools/slow/sparse.img want/installed-vdb.img
equal raw "$(info slow/sparse.img "file format")" "format"
equal 8388608 "$(stat -c %s slow/sparse.img)" "size"
[ $(($(stat -c %b slow/sparse.img) * 512)) -ge 8388608 ] || fail "sparse.img is sparse: $(stat slow/sparse.img)"
equal 744 "$(stat -c %a slow/sparse.img)" "mode"
[ "$(id -u)" != 0 ] || equal 107:107 "$(stat -c %u:%g slow/sparse.img)" "owner"

say "thin"
chain=$(getfattr --absolute-names --only-values -n user.vmsnapfs.chain $web/snapshots/upgraded/disks/vda.img | head -n 1)
refused ENOENT clone $web "vda pool=fast $(volume thin.qcow2 "$(format qcow2)<backingStore><path>$chain</path></backingStore>")"
clone $web "upgraded vda pool=fast $(volume thin.qcow2 "$(format qcow2)<backingStore><path>$chain</path></backingStore>")"
is_volume fast/thin.qcow2 qcow2 want/upgraded-vda.img
[ -n "$(info fast/thin.qcow2 "backing file")" ] || fail "thin.qcow2 is a copy"

say "what is there, and what can't be"
refused EEXIST clone $web "patched vda pool=fast $(volume a.qcow2)"
refused EINVAL clone $web "patched vda pool=fast $(volume c.qcow2 '<capacity unit="M">1</capacity>')"
refused EINVAL clone $web "patched vda pool=fast $(volume c.raw "$(format qcow2)")"
lists mnt/pools/fast a.qcow2 thin.qcow2
# A name that says nothing of the format gets its ending.
clone $web "patched vda pool=fast $(volume c.img "$(format qcow2)")"
wait_until 30 jobs_done mnt
contains "$(qemu-img info fast/c.img.qcow2)" "*file format: qcow2*"
say "a clone's disk in the pool keeps its name"
clone $web "patched owner format=qcow2 mode=full pool=fast"
wait_until 30 jobs_done mnt
refused EEXIST cp mnt/pools/fast/a.qcow2 mnt/pools/fast/owner-vda.qcow2
rm -r mnt/clones/owner

say "a volume whose job is cancelled is none"
for ((try = 0; try < 20; try++)); do
	clone $web "patched vda pool=fast $(volume never.raw)"
	rm mnt/jobs/* 2>/dev/null || true
	wait_until 30 jobs_done mnt
	[ -e mnt/pools/fast/never.raw ] || break
	rm mnt/pools/fast/never.raw # it was faster
done
[ ! -e fast/never.raw ] || fail "what a cancelled job made is there"

equal "$before" "$(fingerprint "$src")"
unmount mnt

say "with a pool missing nothing is made independent, and that is said"
mount_at src mnt -o "pool=slow:$PWD/slow"
clone $web "patched waiting mode=full"
contains "$(cat mnt/clones/waiting/events)" "*goes on depending on its source for now*"
unmount mnt
