#!/usr/bin/env bash
# Whatever copies a disk within the mount: the copy is equal, and takes under 1 % of what the snapshot takes.       limit: 300
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io rsync tar dd busybox python3 cpio gio

src=$PWD/src
mkdir -p "$src/vm" want
img create -f qcow2 "$src/a.qcow2" 64M
for ((i = 0; i < 24; i++)); do writes+=("write -P $((i + 1)) $((i * 2500))k $((i * 37 + 64))k"); done
io "$src/a.qcow2" qcow2 "${writes[@]}"
dd if=/dev/urandom of=random bs=1M count=6 status=none
io "$src/a.qcow2" qcow2 "write -s random 40M 6M"
img create -f qcow2 -b "$src/a.qcow2" -F qcow2 "$src/a.now"
domain_xml vm "$(uuid_of vm)" "vda=$src/a.qcow2" >first.xml
snapshot_xml s active=1 state=disk-snapshot domain=first.xml -- "vda=external:$src/a.now" >"$src/vm/s.xml"
domain_xml vm "$(uuid_of vm)" "vda=$src/a.now" >"$src/vm.xml"
oracle "$src/a.qcow2" qcow2 want/s.img
mount_at src mnt
from=$PWD/mnt/vms/vm/snapshots/s

by_cp() { cp "$from/disks/vda.img" "$1/disks/"; }
by_cp_sparse() { cp --sparse=always "$from/disks/vda.img" "$1/disks/"; }
by_cp_sparse_never() { cp --sparse=never --reflink=never "$from/disks/vda.img" "$1/disks/"; }
by_cp_sparse_auto() { cp --sparse=auto --reflink=never "$from/disks/vda.img" "$1/disks/"; }
by_cp_a() { cp -a "$from/disks/vda.img" "$1/disks/"; }
by_cp_plain() { busybox cp "$from/disks/vda.img" "$1/disks/"; } # reads and writes, as cp did up to coreutils 8
by_install() { install -m 600 "$from/disks/vda.img" "$1/disks/"; }
by_cp_reflink_never() { cp --reflink=never "$from/disks/vda.img" "$1/disks/"; }
by_cat() { cat "$from/disks/vda.img" >"$1/disks/vda.img"; }
by_dd() { dd if="$from/disks/vda.img" of="$1/disks/vda.img" bs=64k status=none; }
by_dd_sparse() { dd if="$from/disks/vda.img" of="$1/disks/vda.img" bs=1M conv=sparse,fsync status=none; }
by_dd_small() { dd if="$from/disks/vda.img" of="$1/disks/vda.img" bs=4k status=none; }
by_dd_direct() { dd if="$from/disks/vda.img" of="$1/disks/vda.img" bs=1M iflag=direct oflag=direct status=none; }
by_dd_pipe() { dd if="$from/disks/vda.img" bs=1M status=none | dd of="$1/disks/vda.img" bs=1M status=none; }
by_rsync() { rsync -a "$from/disks/" "$1/disks/"; }
by_rsync_sparse() { rsync -aS "$from/disks/" "$1/disks/"; }
by_rsync_inplace() { rsync -a --inplace "$from/disks/" "$1/disks/"; }
by_rsync_sparse_inplace() { rsync -a --sparse --inplace "$from/disks/" "$1/disks/"; }
by_rsync_no_whole_file() { rsync -a --no-whole-file "$from/disks/" "$1/disks/"; }
by_rsync_preallocate() { rsync -a --preallocate "$from/disks/" "$1/disks/"; }
by_cpio() { (cd "$from" && echo disks/vda.img | cpio -p --quiet "$OLDPWD/$1"); }
by_gio() { gio copy "$from/disks/vda.img" "$1/disks/vda.img"; }
by_tar_plain() { tar -C "$from" -cf - disks | tar -C "$1" -xf -; }
by_tar() { tar -C "$from" -Scf - disks | tar -C "$1" -xSf -; }
by_python() { python3 -c 'import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])' "$from/disks/vda.img" "$1/disks/vda.img"; }
by_python_plain() {
	python3 -c '
import sys
with open(sys.argv[1], "rb") as a, open(sys.argv[2], "wb") as b:
    while (piece := a.read(65536)):
        b.write(piece)' "$from/disks/vda.img" "$1/disks/vda.img"
}
by_qemu_img() { qemu-img convert -U -f raw -O raw "$from/disks/vda.img" "$1/disks/vda.img"; }

by_python_tree() { python3 -c 'import shutil, sys; shutil.copytree(*sys.argv[1:], dirs_exist_ok=True)' "$from/disks" "$1/disks"; }

tools=(cp cp_a cp_sparse cp_sparse_never cp_sparse_auto cp_reflink_never cp_plain install cat dd dd_small dd_direct dd_pipe dd_sparse rsync rsync_sparse
	rsync_inplace rsync_sparse_inplace rsync_no_whole_file rsync_preallocate tar tar_plain cpio gio python python_plain python_tree
	qemu_img)
snapshot_takes=$(stat -c '%b * %B' "$from/disks/vda.img")
snapshot_takes=$((snapshot_takes))
for tool in "${tools[@]}"; do
	clone=mnt/clones/$tool
	mkdir "$clone"
	before=$(space_of src/.vmsnapfs)
	"by_$tool" "$clone"
	sync -f "$clone"
	same "$clone/disks/vda.img" want/s.img "copy by $tool"
	lists "$clone/disks" vda.img
	# qemu-img opens its target anew before it writes and has no source open that its thread was seen with: a copy, and right as well.
	taken=$(($(space_of src/.vmsnapfs) - before))
	say "$tool: $((taken / 1024)) KiB"
	[ "$tool" = qemu_img ] || at_most $((snapshot_takes / 100)) $taken "bytes taken by a copy with $tool"
done

say "cp --reflink=always: the kernel asks no FUSE file system for that, so it fails, as it does on ext4"
mkdir mnt/clones/reflink
refused EOPNOTSUPP cp --reflink=always "$from/disks/vda.img" mnt/clones/reflink/disks/
rm -r mnt/clones/reflink

say "a whole VM by rsync and by tar"
rsync -a "$from/" mnt/clones/whole/
tar -C "$from" -cf - . | (mkdir mnt/clones/whole2 && tar -C mnt/clones/whole2 -xf -)
for n in whole whole2; do
	same mnt/clones/$n/disks/vda.img want/s.img
	equal $n "$(xmllint --xpath 'string(/domain/name)' mnt/clones/$n/domain.xml)"
done

say "copies to elsewhere"
cp "$from/disks/vda.img" plain.img && same plain.img want/s.img
cp -r "$from" elsewhere && same elsewhere/disks/vda.img want/s.img
rsync -aS "$from/" rsynced/ && same rsynced/disks/vda.img want/s.img
at_most 40000000 "$(space_of elsewhere)" "bytes of a copy elsewhere, which is sparse"

say "a disk of another content over the mount, and over a copy"
cp random mnt/clones/cp/disks/vdb.img
same mnt/clones/cp/disks/vdb.img random
cp random mnt/clones/cp/disks/vda.img
same mnt/clones/cp/disks/vda.img random
cp "$from/disks/vda.img" mnt/clones/cp/disks/vda.img
same mnt/clones/cp/disks/vda.img want/s.img
rsync -a "$from/disks/vda.img" mnt/clones/dd/disks/vda.img
same mnt/clones/dd/disks/vda.img want/s.img

for n in "${tools[@]}"; do names+=("$(domain_source "mnt/clones/$n/domain.xml" vda)"); done
unmount mnt
for layer in src/.vmsnapfs/layers/*.qcow2; do check_image "$layer"; done
for file in "${names[@]}"; do qemu-img compare -q -f qcow2 -F raw "$file" want/s.img || fail "$file"; done
