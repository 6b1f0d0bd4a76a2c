#!/usr/bin/env bash
# A VM whose configuration has everything is cloned, by mkdir and actions/clone: all of it comes along but for the identity.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io xmllint virt-xml-validate

src=$PWD/src
mkdir -p "$src/all"
img create -f qcow2 "$src/all-vda.qcow2" 4M
img create -f raw "$src/all-sda.img" 2M
io "$src/all-vda.qcow2" qcow2 "write -P 1 0 1M"
io "$src/all-sda.img" raw "write -P 2 64k 64k"
echo variables >"$src/all_VARS.fd"
with_disks() { # VDA SDA
	sed "1d; \$d; s,/img/all.qcow2,$1,; s,/img/all-data.raw,$2,; s,/var/lib/libvirt/qemu/nvram/all_VARS.fd,$src/all_VARS.fd," \
		"$(dirname "$0")/../unit/everything.xml"
}
with_disks "$src/all-vda.qcow2" "$src/all-sda.img" >then.xml
snapshot_xml s active=1 state=disk-snapshot domain=then.xml -- "vda=external:$src/all-vda.s" "sda=external:$src/all-sda.s" vdc=no vdd=no vde=no \
	>"$src/all/s.xml"
img create -f qcow2 -b "$src/all-vda.qcow2" -F qcow2 "$src/all-vda.s"
img create -f qcow2 -b "$src/all-sda.img" -F raw "$src/all-sda.s"
with_disks "$src/all-vda.s" "$src/all-sda.s" | sed '/device="disk"/,/<\/disk>/s/type="raw"/type="qcow2"/' >"$src/all.xml"
before=$(fingerprint "$src")
mount_at src mnt
all=mnt/vms/all
lists $all/snapshots s

# In canonical form, a line each: what differs between the snapshot's configuration and the clone's.
changes() { # CLONE
	xmllint --c14n $all/snapshots/s/domain.xml | sed 's/^ *//' >old.txt
	xmllint --c14n "mnt/clones/$1/domain.xml" | sed 's/^ *//' >new.txt
	{ diff old.txt new.txt || :; } | sed -n 's/^[<>] //p' | sort
}
# The words by which each of these lines is known; a digit: so many of them (one that goes, one that comes).
cat >identity <<'END'
2 <name>
2 <uuid>
2 <genid>
1 <title>
6 <entry name="(serial|uuid|asset)">(7b9f|UUID)
2 <nvram template="/usr/share/OVMF/OVMF_VARS_4M.ms.fd">
2 <source file=".*(vda|layers)
2 <source file=".*(sda|layers)
8 <mac address="
2 <parameters interfaceid="[^"]*" profileid="menial">
1 <target dev="vnet7">
2 <parameter name="MAC" value="
2 <source mode="server" path="/run/vhost/NAME.sock" type="unix">
4 <source append="on" path="/var/log/NAME.serial">
4 <log append="off" file="/var/log/libvirt/NAME-serial.log">
2 <source path="/var/spool/NAME.parallel">
2 <source mode="bind" path="/var/lib/libvirt/qemu/channel/target/domain-4-NAME/org.qemu.guest_agent.0">
2 <graphics autoport="(no|yes)" listen="127.0.0.1" passwd="12345" port="(5907|-1)" tlsPort="(5908|-1)" type="spice">
2 <graphics socket="/run/NAME.vnc" type="vnc">
2 <listen socket="/run/NAME.vnc" type="socket">
2 <audio id="1" path="/var/tmp/NAME.wav" type="file">
2 <cid (address="3" )?auto="
END

only_identity() { # CLONE [MORE_LINES_ALLOWED_REGEX]
	local nr words uuid
	uuid=$(xmllint --xpath 'string(/domain/uuid)' "mnt/clones/$1/domain.xml")
	changes "$1" | sed "s/$uuid/UUID/; s,\([/-]\)\(all\|$1\)\([./-]\),\1NAME\3," >changed
	while read -r nr words; do
		case $words in '<source file='*) continue ;; esac
		equal "$nr" "$(grep -cE "^$words" changed)" "lines of $1 like $words, in: $(cat changed)"
		grep -vE "^$words" changed >rest || :
		mv rest changed
	done <identity
	# The disks' files, and what is left out: labels of a running instance, and memory that both would write to.
	grep -vE '^<source file="|^<driver name="qemu" type="(raw|qcow2)">|^<domain |^<seclabel model="selinux"|^</seclabel>|^<(image)?label>system_u' changed >rest || :
	grep -vE "^<memory access=\"shared\" model=\"nvdimm\">|^<path>/var/lib/pmem|^</?(memory|source|target)>|^<size unit=\"KiB\">524288|^<node>0" rest >changed || :
	grep -vE "${2:-^\$}" changed >rest || :
	[ ! -s rest ] || fail "$1 differs in more than its identity: $(cat rest)"
	cp "mnt/clones/$1/domain.xml" checked.xml
	virt-xml-validate checked.xml domain >out 2>&1 || fail "$1: $(cat out)"
	same "mnt/clones/$1/disks/vda.img" $all/snapshots/s/disks/vda.img
}
noted() { # CLONE WORDS
	grep -qF -- "$2" "mnt/clones/$1/events" || fail "no event '$2' of $1 but: $(cat "mnt/clones/$1/events")"
}

say "mkdir and actions/clone"
mkdir mnt/clones/all@s/made
echo 's by-action' >$all/actions/clone
for clone in made by-action; do
	only_identity $clone
	same "$(xmllint --xpath 'string(//nvram)' mnt/clones/$clone/domain.xml)" "$src/all_VARS.fd"
	noted $clone "its TPM starts empty"
	noted $clone "its memory device /var/lib/pmem/all is left out"
	noted $clone "its QEMU argument name=opt/org.example/all"
done
[ "$(xmllint --xpath 'string(//interface[1]/mac/@address)' mnt/clones/made/domain.xml)" != \
	"$(xmllint --xpath 'string(//interface[1]/mac/@address)' mnt/clones/by-action/domain.xml)" ] || fail "two clones with one MAC address"

say "a clone of the clone"
mkdir mnt/clones/made/snapshots/t
echo 't again' >mnt/clones/made/actions/clone
cp mnt/clones/again/domain.xml checked.xml
virt-xml-validate checked.xml domain >out 2>&1 || fail "again: $(cat out)"
equal "/run/vhost/again.sock" "$(xmllint --xpath 'string(//interface[3]/source/@path)' mnt/clones/again/domain.xml)"

say "disks on another bus, with new serial numbers"
echo 's moved serial=renew sda.bus=virtio sda.target=vdx vda.serial=keep' >$all/actions/clone
lists mnt/clones/moved/disks vda.img vdx.img
same mnt/clones/moved/disks/vdx.img $all/snapshots/s/disks/sda.img
at() { xmllint --xpath "string(//disk[target/@dev='$1']$2)" mnt/clones/moved/domain.xml; }
equal virtio "$(at vdx /target/@bus)" "bus"
equal "" "$(at vdx /wwn)$(at vdx /vendor)$(at vdx /address/@type)" "what only SCSI disks have"
[ "$(at vdx /serial)" != DATA-7 ] || fail "the serial number is the old one"
equal WD-WMAP9A966149 "$(at vda /serial)" "serial number"
equal 4096 "$(at vdx /blockio/@physical_block_size)" "block size"
only_identity moved '^<(target|serial|wwn|vendor|product|address|blockio)|^</?(serial|wwn|vendor|product)'
equal "$before" "$(fingerprint "$src")"
unmount mnt
