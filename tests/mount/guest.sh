#!/usr/bin/env bash
# A guest boots on a clone: once from the disk in the mount, as raw, and once, with the mount gone, from the overlay that domain.xml
# names. What the one writes the other reads.       limit: 300
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-system-x86_64 cpio debugfs mke2fs xmllint
busybox=$(command -v busybox) || skip "busybox is missing"
cache=${VMSNAPFS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmsnapfs}/kernel
kernel=$(compgen -G "$cache/boot/vmlinuz-*" | tail -n 1) || skip "no kernel in $cache: run scripts/setup --tests"
modules=$(compgen -G "$cache/lib/modules/*" | tail -n 1)

# --- an initramfs: busybox, the drivers of a virtio disk and ext4, and a script ---------------------------------------------

declare -A added=()

# Adds a module after those it depends on; the names in their order go to initramfs/modules. One that isn't there is built in.
add_module() {
	local name=$1 file dependency depends
	[ -z "${added[$name]:-}" ] || return 0
	added[$name]=yes
	file=$(find "$modules" -name "${name//_/[-_]}.ko*" | head -n 1)
	[ -n "$file" ] || return 0
	case $file in
	*.xz) xz -dc "$file" >"initramfs/$name.ko" ;;
	*.zst) zstd -qdc "$file" >"initramfs/$name.ko" ;;
	*) cp "$file" "initramfs/$name.ko" ;;
	esac
	depends=$(tr '\0' '\n' <"initramfs/$name.ko" | sed -n 's/^depends=//p' | head -n 1)
	for dependency in ${depends//,/ }; do add_module "$dependency"; done
	echo "$name" >>initramfs/modules
}

mkdir -p initramfs/bin initramfs/proc initramfs/dev initramfs/mnt
cp "$busybox" initramfs/bin/busybox
for name in virtio_pci virtio_blk crc32c_generic crc32c ext4; do add_module $name; done
cat >initramfs/init <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for m in $(cat /modules); do insmod /$m.ko || echo "GUEST: insmod $m failed"; done
for word in $(cat /proc/cmdline); do
	case $word in run=*) run=${word#run=} ;; esac
done
i=0
while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do usleep 100000; i=$((i + 1)); done
if mount -t ext4 /dev/vda /mnt; then
	cat /mnt/base.txt
	(cd /mnt && for f in *.sum; do [ -e $f ] && sha256sum -c $f | sed 's/^/GUEST: /'; done)
	head -c 3000000 /dev/urandom >/mnt/$run.data
	(cd /mnt && sha256sum $run.data >$run.sum)
	rm -f /mnt/victim-$run
	umount /mnt && echo "GUEST: $run is done"
fi
poweroff -f
END
chmod +x initramfs/init
(cd initramfs && find . | cpio -o -H newc --quiet | gzip -1) >initramfs.gz

boot() { # RUN DRIVE
	timeout 120 qemu-system-x86_64 -accel tcg -cpu max -m 256 -nodefaults -no-user-config -nographic -serial stdio -monitor none \
		-kernel "$kernel" -initrd initramfs.gz -append "console=ttyS0 quiet panic=-1 run=$1" -no-reboot \
		-drive "$2" >"$1.console" 2>&1 || fail "QEMU: $(tail -n 30 "$1.console")"
	grep -q "GUEST: $1 is done" "$1.console" || fail "the guest didn't get through: $(tail -n 30 "$1.console")"
	grep -q "written on the host" "$1.console" || fail "the guest didn't see what the image holds"
	! grep -E 'I/O error|EXT4-fs error|FAILED|insmod.*failed' "$1.console" || fail "the guest saw errors"
}

# --- a VM with a snapshot, and a clone of it ---------------------------------------------------------------------------------

src=$PWD/src
mkdir -p "$src/vm" root
echo "written on the host" >root/base.txt
touch root/victim-first root/victim-second
mke2fs -q -t ext4 -d root fs.raw 64M
img convert -f raw -O qcow2 fs.raw "$src/vm.qcow2"
domain_xml vm "$(uuid_of vm)" "vda=$src/vm.qcow2" >snapshot.domain
snapshot_xml fresh active=1 state=disk-snapshot domain=snapshot.domain -- "vda=external:$src/vm.now" >"$src/vm/fresh.xml"
img create -f qcow2 -b "$src/vm.qcow2" -F qcow2 "$src/vm.now"
domain_xml vm "$(uuid_of vm)" "vda=$src/vm.now" >"$src/vm.xml"

mount_at src mnt
mkdir mnt/clones/vm@fresh/x
disk=$PWD/mnt/clones/x/disks/vda.img

say "booted on the disk in the mount"
boot first "if=virtio,format=raw,file=$disk,cache=none,aio=native,discard=unmap"
debugfs -R "cat first.sum" "$disk" 2>/dev/null >sum
debugfs -R "dump first.data first.data" "$disk" 2>/dev/null
sha256sum -c --quiet sum
e2fsck -fn "$disk" >/dev/null
layer=$(domain_source mnt/clones/x/domain.xml vda)
unmount mnt

say "booted on what domain.xml names, the mount gone"
check_image "$layer"
boot second "if=virtio,format=qcow2,file=$layer,discard=unmap"
grep -q "GUEST: first.data: OK" second.console || fail "the second run doesn't see what the first wrote"
check_image "$layer"

say "and seen in the mount again"
mount_at src mnt
e2fsck -fn "$disk" >/dev/null
debugfs -R "cat second.sum" "$disk" 2>/dev/null >sum
debugfs -R "dump second.data second.data" "$disk" 2>/dev/null
sha256sum -c --quiet sum
equal "" "$(debugfs -R "ls -p /" "$disk" 2>/dev/null | grep victim || true)" "files the guest removed"
same mnt/vms/vm/snapshots/fresh/disks/vda.img fs.raw "the snapshot"
boot third "if=virtio,format=raw,file=$disk,cache=writeback"
grep -q "GUEST: second.data: OK" third.console || fail "the third run doesn't see what the second wrote"
unmount mnt
check_image "$layer"
