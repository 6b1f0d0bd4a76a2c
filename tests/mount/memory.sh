#!/usr/bin/env bash
# 1,000 VMs of 20 snapshots each, listed in under 256 MiB.       limit: 300
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io

src=$PWD/src
nr_vms=${NR_VMS:-1000}

# One VM with ten internal and ten external snapshots, as a template: its name is VMNAME, its images a directory.
mkdir -p "$src/images" template/images template/snapshots
domain_xml VMNAME "$(uuid_of VMNAME)" "vda=$src/images/VMNAME/layer-0.qcow2" >domain.template
img create -f qcow2 -o cluster_size=512 template/images/layer-0.qcow2 1M
for ((i = 1; i <= 10; i++)); do
	below=layer-$((i - 1)).qcow2
	sed "s/layer-0/layer-$((i - 1))/" domain.template >domain.now
	io template/images/$below qcow2 "write -P $i $((i * 64))k 2k"
	img snapshot -c "inner$i" template/images/$below
	img create -f qcow2 -o cluster_size=512 -b $below -F qcow2 template/images/layer-$i.qcow2
	snapshot_xml "inner$i" time=$((1500000000 + i * 100)) active=0 domain=domain.now -- vda=internal >"template/snapshots/inner$i.xml"
	snapshot_xml "outer$i" time=$((1500000050 + i * 100)) active=$((i == 10)) state=disk-snapshot domain=domain.now \
		-- "vda=external:$src/images/VMNAME/layer-$i.qcow2" >"template/snapshots/outer$i.xml"
done
sed "s/layer-0/layer-10/" domain.template >domain.now

make_vms() { # FIRST STEP
	local n name
	for ((n = $1; n < nr_vms; n += $2)); do
		printf -v name 'vm%04d' "$n"
		cp -r template/images "$src/images/$name"
		cp -r template/snapshots "$src/$name"
		cp domain.now "$src/$name.xml"
		sed -i "s/VMNAME/$name/g; s,<uuid>.\{8\},<uuid>$(printf %08x "$n")," "$src/$name.xml" "$src/$name"/*.xml
	done
}
make_vms 0 2 &
make_vms 1 2
wait $!

mount_at src mnt
equal "$nr_vms" "$(find mnt/vms -mindepth 1 -maxdepth 1 | wc -l)" VMs
ls -lR mnt >listing
equal $((nr_vms * 20)) "$(grep -cE '^d.* (inner|outer)[0-9]+$' listing)" "snapshots listed"
equal $((nr_vms * 21)) "$(grep -cE ' vda\.img$' listing)" "disks listed"
say "peak memory after ls -lR: $(peak_memory mnt) KiB"
memory_limit_holds mnt

say "and some of them read"
printf -v last 'vm%04d' $((nr_vms - 1))
for vm in vm0000 "$last"; do
	oracle "$src/images/$vm/layer-9.qcow2" qcow2 want.img
	same "mnt/vms/$vm/snapshots/outer10/disks/vda.img" want.img
	oracle "$src/images/$vm/layer-4.qcow2" qcow2 want.img inner5
	same "mnt/vms/$vm/snapshots/inner5/disks/vda.img" want.img
done
for ((n = 0; n < nr_vms; n += 7)); do printf 'mnt/vms/vm%04d/snapshots/outer10/disks/vda.img\n' $n; done | xargs cat | wc -c >bytes
equal $((1048576 * ((nr_vms + 6) / 7))) "$(cat bytes)" "bytes read"
memory_limit_holds mnt
say "peak memory: $(peak_memory mnt) KiB"
unmount mnt
