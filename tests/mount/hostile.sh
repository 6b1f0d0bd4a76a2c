#!/usr/bin/env bash
# Hostile images and XML: each gets its errno and an event, all else is served, memory stays bounded, nothing outside is read. limit: 240
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io gzip

src=$PWD/src
mkdir "$src" outside trusted want mnt
echo "a secret" | dd of=outside/secret conv=sync bs=64k status=none
make_vm "$src" good want

# --- the attacks, each an image of its own name or a VM in XML -----------------------------------------------------------

declare -A errno=() # VM -> what opening its disk must say
# VM -> what it stands for: the advisories of QEMU, libvirt and OpenStack that had its like, and what is tried. Each attack has its line.
declare -A about=(
	[outside-relative]="CVE-2015-5163 a backing file outside, by a relative name"
	[outside-absolute]="CVE-2015-5163 the same, by an absolute one"
	[etc-passwd]="CVE-2015-5163 /etc/passwd as the backing file"
	[dots]="CVE-2015-5313 .. in the middle of a name"
	[symlink-out]="a link inside that leads out"
	[symlink-dir]="a directory that is a link out"
	[json]="CVE-2024-4467 a json: backing file"
	[nbd]="nbd:// as the backing file"
	[fat]="fat:/etc as the backing file"
	[file-protocol]="file: before a path outside"
	[own-mount]="a file inside our own mount"
	[proc]="/proc/self/mem"
	[proc-fd]="/proc/self/fd/0"
	[proc-root]="/proc/self/root/etc/passwd"
	[dev-zero]="/dev/zero, which never ends"
	[fifo]="a FIFO, for which QEMU waits"
	[fifo-disk]="a FIFO as a VM's disk"
	[passwd-disk]="/etc/passwd as a VM's disk"
	[link-disk]="a link out as a VM's disk"
	[directory-disk]="a directory as a VM's disk"
	[device-disk]="a character device inside as a VM's disk"
	[vmdk-disk]="a format that isn't read"
	[loop]="three images in a circle, in which QEMU turns for ever"
	[self]="an image that is its own backing file"
	[size-2-60]="CVE-2014-0144 a size of 2^60"
	[size-2-63]="CVE-2014-0144 a size of nearly 2^63"
	[size-odd]="a size that isn't whole sectors"
	[l1-size]="CVE-2014-0143 an L1 table of 2^32 entries"
	[l1-offset-2-60]="CVE-2014-0145 an L1 table at 2^60"
	[l1-unaligned]="an L1 table that isn't aligned"
	[l1-behind-the-end]="an L1 table behind the end"
	[cluster-bits-63]="CVE-2014-0144 clusters of 2^63"
	[cluster-bits-0]="CVE-2014-0144 clusters of a byte"
	[refcount-order]="CVE-2014-0147 refcounts of 2^99 bits"
	[refcount-table]="CVE-2014-0143 a refcount table of 2^32 clusters"
	[header-length]="CVE-2014-0144 a header of 4 GiB"
	[backing-name-length]="CVE-2014-0144 a backing name of 2 GiB"
	[backing-name-behind]="a backing name behind the end"
	[extension-length]="CVE-2014-0144 a header extension of 4 GiB"
	[snapshots-behind-the-end]="CVE-2014-0146 a snapshot table behind the end"
	[snapshots-too-many]="CVE-2014-0143 2^32 snapshots"
	[unknown-incompatible]="an incompatible feature nobody knows"
	[unknown-autoclear]="autoclear bits nobody knows, which don't matter to a reader"
	[dirty]="the dirty bit, which doesn't either"
	[corrupt]="the corrupt bit"
	[version-9]="version 9"
	[aes]="AES, the old way"
	[luks]="LUKS"
	[l2-behind-the-end]="an L2 table behind the end"
	[data-over-2-56]="data at an offset over 2^56"
	[data-in-header]="the guest's data over the header, which only a writer would harm"
	[data-file-passwd]="CVE-2024-32498 a data file outside"
	[data-file-json]="CVE-2024-4467 a json: data file"
	[data-file-fifo]="a FIFO as the data file"
	[data-file-below]="CVE-2024-32498 an image with such a data file, as a backing file"
	[guest-header]="CVE-2008-2004 a raw disk with a guest's qcow2 header"
	[over-guest-header]="CVE-2026-24708 the same below an overlay"
	[undeclared]="CVE-2008-2004 a backing file of no declared format, with such a header"
	[bomb]="512 MiB that compress to one"
	[in-trust]="a backing file below trust=, which is right"
	[deep]="a chain of 3,000, which is right"
)
declare -A came=()

# backing NAME BACKING ERRNO: an image that names this backing file, as it is written in the header.
backing() {
	img create -u -f qcow2 -F "${4:-raw}" -b "$2" "$src/$1.qcow2" 1M
	errno[$1]=$3
}

# Overwrites bytes of a file: \x escapes at an offset.
patch() { # FILE OFFSET BYTES
	printf '%b' "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# damaged NAME ERRNO OFFSET BYTES [OFFSET BYTES...]: a good image with other bytes in its header.
damaged() {
	local name=$1
	errno[$name]=$2
	shift 2
	img create -f qcow2 "$src/$name.qcow2" 1M
	io "$src/$name.qcow2" qcow2 "write -P 1 0 64k"
	while [ $# -gt 0 ]; do
		patch "$src/$name.qcow2" "$1" "$2"
		shift 2
	done
}

# A VM whose XML names this image.
vm() { # NAME ERRNO PATH[,FORMAT]
	domain_xml "$1" "$(uuid_of "$1")" "vda=$3" >"$src/$1.xml"
	errno[$1]=$2
}

backing outside-relative ../outside/secret EACCES
backing outside-absolute "$PWD/outside/secret" EACCES
backing etc-passwd /etc/passwd EACCES
mkdir "$src/sub"
backing dots "sub/../../outside/secret" EACCES
ln -s ../outside/secret "$src/link"
backing symlink-out link EACCES
ln -s ../outside "$src/dirlink"
backing symlink-dir dirlink/secret EACCES
backing json 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}' EACCES
backing nbd nbd://localhost:10809/x EACCES
backing fat fat:/etc EACCES
backing file-protocol "file:$PWD/outside/secret" EACCES
backing own-mount "$PWD/mnt/vms/good/disks/vda.img" EACCES
backing proc /proc/self/mem EACCES
backing proc-fd /proc/self/fd/0 EACCES
backing proc-root /proc/self/root/etc/passwd EACCES
backing dev-zero /dev/zero EACCES
mkfifo "$src/fifo"
backing fifo fifo EACCES
vm fifo-disk EACCES "$src/fifo,raw"
vm passwd-disk EACCES /etc/passwd,raw
vm link-disk EACCES "$src/link,raw"
vm directory-disk "EACCES|EINVAL|EIO" "$src,raw"
mknod "$src/device" c 1 5 2>/dev/null || mkfifo "$src/device" # not as a user
vm device-disk EACCES "$src/device,raw"
vm vmdk-disk EOPNOTSUPP "$src/fifo,vmdk"

# Chains that come back to themselves.
for i in 1 2 3; do img create -u -f qcow2 -F qcow2 -b loop$((i % 3 + 1)).qcow2 "$src/loop$i.qcow2" 1M; done
vm loop "EUCLEAN" "$src/loop1.qcow2"
backing self self.qcow2 EUCLEAN qcow2
vm self EUCLEAN "$src/self.qcow2"

# Sizes, counts and offsets (the header's fields by their offsets in the specification).
damaged size-2-60 "EUCLEAN" 24 '\x10\0\0\0\0\0\0\0'
damaged size-2-63 "EUCLEAN" 24 '\x7f\xff\xff\xff\xff\xff\xfe\0'
damaged size-odd "EUCLEAN|none" 24 '\0\0\0\0\0\x0f\xff\xff'
damaged l1-size "EUCLEAN" 36 '\xff\xff\xff\xff'
damaged l1-offset-2-60 "EUCLEAN" 40 '\x10\0\0\0\0\0\0\0'
damaged l1-unaligned "EUCLEAN" 40 '\0\0\0\0\0\x03\0\x01'
damaged l1-behind-the-end "EUCLEAN|EIO" 40 '\0\0\0\x7f\0\0\0\0'
damaged cluster-bits-63 "EUCLEAN|EOPNOTSUPP" 20 '\0\0\0\x3f'
damaged cluster-bits-0 "EUCLEAN|EOPNOTSUPP" 20 '\0\0\0\0'
damaged refcount-order "EUCLEAN|EOPNOTSUPP" 96 '\0\0\0\x63'
damaged refcount-table "EUCLEAN|none" 56 '\xff\xff\xff\xff'
damaged header-length "EUCLEAN" 100 '\xff\xff\xff\xf8'
damaged backing-name-length "EUCLEAN" 8 '\0\0\0\0\0\0\x01\0' 16 '\x7f\xff\xff\xff'
damaged backing-name-behind "EUCLEAN" 8 '\0\0\0\x01\0\0\0\0' 16 '\0\0\0\x10'
damaged extension-length "EUCLEAN" 112 '\x12\x34\x56\x78\xff\xff\xff\xff'
damaged snapshots-behind-the-end "EUCLEAN" 60 '\0\0\0\x05' 64 '\0\x04\0\0\0\0\0\0'
damaged snapshots-too-many "EUCLEAN" 60 '\xff\xff\xff\xff' 64 '\0\0\0\0\0\x05\0\0'
damaged unknown-incompatible EOPNOTSUPP 72 '\x40\0\0\0\0\0\0\0'
damaged unknown-autoclear none 88 '\xff\xff\xff\xff\xff\xff\xff\0'
damaged dirty none 72 '\0\0\0\0\0\0\0\x01'
damaged corrupt "EUCLEAN|none" 72 '\0\0\0\0\0\0\0\x02'
damaged version-9 EOPNOTSUPP 4 '\0\0\0\x09'
damaged aes EOPNOTSUPP 32 '\0\0\0\x01'
damaged l2-behind-the-end "EUCLEAN|EIO|zeros" 196608 '\x80\0\0\x7f\0\0\0\0'
damaged data-over-2-56 "EUCLEAN|EIO" 262144 '\xff\xff\xff\xff\xff\xff\0\0'
damaged data-in-header "EUCLEAN|EIO|none" 262144 '\x80\0\0\0\0\0\0\0'
qemu-img create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 \
	"$src/luks.qcow2" 1M
errno[luks]=EOPNOTSUPP

# An external data file anywhere (CVE-2024-32498), and by a protocol name (CVE-2024-4467).
data_file() { # NAME FILE-NAME-OF-THE-SAME-LENGTH
	local at
	(cd "$src" && img create -f qcow2 -o "data_file=$(printf '%0*d' ${#2} 0)" "$1.qcow2" 1M && rm "$(printf '%0*d' ${#2} 0)")
	at=$(LC_ALL=C grep -obUa "$(printf '%0*d' ${#2} 0)" "$src/$1.qcow2" | cut -d: -f1)
	patch "$src/$1.qcow2" "$at" "$2"
	errno[$1]=EACCES
}
data_file data-file-passwd ../../../../../../../../../../../../../../etc/passwd
data_file data-file-json 'json:{"file.filename":"/etc/passwd"}'

data_file data-file-fifo fifo
cp "$src/data-file-passwd.qcow2" "$src/data-file.base"
backing data-file-below data-file.base EACCES qcow2

# A raw disk whose guest wrote a qcow2 header into it (CVE-2008-2004, CVE-2026-24708): raw it stays.
img create -u -f qcow2 -F raw -b /etc/passwd "$src/guest-header.raw" 1M
truncate -s 1M "$src/guest-header.raw"
vm guest-header none "$src/guest-header.raw,raw"
(cd "$src" && img create -f qcow2 -b guest-header.raw -F raw over-guest-header.qcow2)
vm over-guest-header none "$src/over-guest-header.qcow2"
cp "$src/guest-header.raw" "$src/undeclared-base"
backing undeclared undeclared-base EACCES
at=$(LC_ALL=C grep -obUaP '\xe2\x79\x2a\xca' "$src/undeclared.qcow2" | head -n 1 | cut -d: -f1)
patch "$src/undeclared.qcow2" "$at" '\x76\x6d\x73\x6e'

# XML.
cat >"$src/laughs.xml" <<'END'
<?xml version="1.0"?>
<!DOCTYPE domain [<!ENTITY a "hahahahaha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
<!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;"><!ENTITY e "&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;"><!ENTITY f "&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;">]>
<domain type='qemu'><name>laughs</name><title>&f;&f;&f;&f;&f;&f;&f;&f;</title></domain>
END
sed "s,<title>.*</title>,<title>\&x;</title>,; s,<domain ,<!DOCTYPE domain [<!ENTITY x SYSTEM \"file:///etc/passwd\">]>\n&," "$src/good.xml" |
	sed 's,<name>good<,<name>xxe<,' >"$src/xxe.xml"
{
	echo '<!DOCTYPE domain SYSTEM "http://192.0.2.1/domain.dtd">'
	sed 's,<name>good<,<name>dtd<,' "$src/good.xml"
} >"$src/dtd.xml"
{
	sed 's,<name>good<,<name>vast<,' "$src/good.xml"
	head -c 6M /dev/zero | tr '\0' ' '
} >"$src/vast.xml"
{
	for ((i = 0; i < 5000; i++)); do printf '<domain>'; done
} >"$src/nested.xml"
xml_of() { # NAME: good.xml under another name, through sed's script
	sed "s,<name>good<,<name>$1<,; $2" "$src/good.xml"
}
# XInclude isn't a part of XML: elements that nobody knows, which stay what they are.
xml_of xinclude "s,<title>.*</title>,<title><xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='file:///etc/passwd' parse='text'/></title>," >"$src/xinclude.xml"
xml_of stylesheet "1s,^,<?xml-stylesheet href='file:///etc/passwd' type='text/xsl'?>," >"$src/stylesheet.xml"
{
	echo '<!DOCTYPE domain [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]>'
	xml_of parameter ''
} >"$src/parameter.xml"
{
	printf '<domain type="qemu"><name>attribute</name><title a="'
	head -c 11M /dev/zero | tr '\0' a
	echo '"/></domain>'
} >"$src/attribute.xml"
{
	printf '<domain type="qemu"><name>many</name><title'
	for ((i = 0; i < 100000; i++)); do printf ' a%d=""' $i; done
	echo '/></domain>'
} >"$src/many.xml"
xml_of nul "s,<title>.*,<title>a\x00b</title>," >"$src/nul.xml"
xml_of utf7 "1s,^,<?xml version='1.0' encoding='UTF-7'?>," >"$src/utf7.xml"
xml_of ebcdic "1s,^,<?xml version='1.0' encoding='EBCDIC-CP-US'?>," | iconv -t IBM037 >"$src/ebcdic.xml"
xml_of overlong-utf8 "s,<title>.*,<title>\xc0\xaf</title>," >"$src/overlong-utf8.xml"
# Entities in UTF-16, where no filter for bytes would see them.
{
	echo '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
	xml_of utf16 's,<title>.*,<title>\&x;</title>,'
} | iconv -t UTF-16 >"$src/utf16.xml"
bad_xml=(laughs xxe dtd vast nested parameter nul overlong-utf8 utf16 many utf7 ebcdic)
odd_xml=(xinclude stylesheet attribute) # shown or not: nothing outside is read, and nothing waits
make_vm "$src" snapped want-snapped
sed "s,<description>.*</description>,<description>\&x;</description>,; s,<domainsnapshot>,<!DOCTYPE d [<!ENTITY x SYSTEM \"file:///etc/passwd\">]>\n&," \
	"$src/snapped/installed.xml" >"$src/snapped/installed.tmp"
mv "$src/snapped/installed.tmp" "$src/snapped/installed.xml"
sed 's,<name>patched</name>,<name>../../patched</name>,' "$src/snapped/patched.xml" >"$src/snapped/evil.xml"
domain_xml "../../up" "$(uuid_of up)" "vda=$src/flat.raw,raw" >"$src/up.xml"
domain_xml ".hidden" "$(uuid_of hidden)" "vda=$src/flat.raw,raw" >"$src/hidden.xml"
truncate -s 1M "$src/flat.raw"

# Bombs: 512 MiB of one byte in 2 MiB clusters; a stream that would unpack to far more than its cluster.
head -c 512M /dev/zero | tr '\0' A >bomb.raw
img convert -c -f raw -O qcow2 -o cluster_size=2M bomb.raw "$src/bomb.qcow2"
errno[bomb]=none
head -c 48k /dev/urandom | base64 -w0 >text.raw
img convert -c -f raw -O qcow2 text.raw "$src/overlong.qcow2"
# The only cluster of data lies behind header, refcount table and block, L1 and L2.
head -c 40M /dev/zero | gzip -9n | tail -c +11 >stream
dd if=stream of="$src/overlong.qcow2" bs=64k seek=5 conv=notrunc count=1 status=none
cp "$src/bomb.qcow2" "$src/bad-stream.qcow2"
dd if=/dev/urandom of="$src/bad-stream.qcow2" bs=64k oflag=seek_bytes seek=10485760 count=4 conv=notrunc status=none

# The right way: a backing file below trust=.
truncate -s 1M trusted/base.raw
printf trusted | dd of=trusted/base.raw conv=notrunc status=none
backing in-trust "$PWD/trusted/base.raw" none

# A chain of 3,000 layers, which must work.
mkdir "$src/deep"
img create -u -f qcow2 -o cluster_size=512 -F qcow2 -b l0000 "$src/deep/template" 64k
for ((i = 1; i < 3000; i++)); do
	printf -v name 'l%04d' $i
	printf -v below 'l%04d' $((i - 1))
	LC_ALL=C sed "s/l0000/$below/" "$src/deep/template" >"$src/deep/$name"
done
rm "$src/deep/template"
img create -f qcow2 -o cluster_size=512 "$src/deep/l0000" 64k
io "$src/deep/l0000" qcow2 "write -P 1 0 32k"
for i in 0001 0700 1500 2999; do
	qemu-io --image-opts -c "write -P $((10#$i % 250 + 2)) $((10#$i * 512 % 65536)) 1024" \
		"driver=qcow2,file.filename=$src/deep/l$i,backing=" >/dev/null 2>&1
done
truncate -s 64k want/deep.img
io want/deep.img raw "write -P 1 0 32k"
for i in 0001 0700 1500 2999; do
	io want/deep.img raw "write -P $((10#$i % 250 + 2)) $((10#$i * 512 % 65536)) 1024"
done
vm deep none "$src/deep/l2999"

fingerprint "$src" >before

# --- and what becomes of them ----------------------------------------------------------------------------------------------

mount_at "$src" mnt -o "trust=$PWD/trusted"
timeout 60 ls -lR mnt >listing || fail "ls -lR hangs or fails"
[ ! -e mnt/vms/.hidden ] || fail "a hidden VM"

for name in "${!errno[@]}"; do
	want=${errno[$name]}
	disk=mnt/vms/$name/disks/vda.img
	[ -n "${about[$name]:-}" ] || fail "$name: nothing says what it is about"
	[ -d "mnt/vms/$name" ] || fail "$name isn't shown at all"
	if [[ $want == *zeros ]] && timeout 20 cmp -s -n 65536 "$disk" /dev/zero; then # as QEMU has it
		came[$name]=zeros
		continue
	fi
	if [[ $want == *none ]] && timeout 60 cat "$disk" >out 2>/dev/null; then
		[ "$(stat -c %s out)" -gt 0 ] || fail "$name is empty"
		! grep -qaE 'a secret|root:' out || [ "$name" = guest-header ] || fail "$name: something outside was read"
		came[$name]="read"
		continue
	fi
	[ "$want" != none ] || fail "$name can't be read"
	want=${want%|none}
	refused "${want%|zeros}" timeout 20 cat "$disk"
	came[$name]=$(timeout 20 cat "$disk" 2>&1 >/dev/null | sed 's/.*: //') || true
	events=$(wc -l <"mnt/vms/$name/events")
	[ "$events" -gt 0 ] || fail "$name: no event"
	at_most 2 "$events" "$name: event lines"
	[ "$(events_with mnt "$name")" -gt 0 ] || fail "$name: not in the mount's events"
done
for name in "${!about[@]}"; do
	[ -n "${came[$name]:-}" ] || fail "$name wasn't tried"
done
say "${#came[@]} attacks, and what came of each"
for name in "${!came[@]}"; do printf '%-26s %-72s %s\n' "$name" "${about[$name]}" "${came[$name]}"; done | sort

say "what must work"
same mnt/vms/guest-header/disks/vda.img "$src/guest-header.raw" "a raw disk is raw"
same mnt/vms/over-guest-header/disks/vda.img "$src/guest-header.raw" "raw below an overlay is raw"
same mnt/vms/bomb/disks/vda.img bomb.raw
cmp -n 7 mnt/vms/in-trust/disks/vda.img <(printf trusted)
same mnt/vms/deep/disks/vda.img want/deep.img "3,000 layers"
mkdir mnt/clones/deep@l2998/deeper 2>/dev/null || true
same mnt/vms/good/disks/vda.img want/now-vda.img
for s in installed patched upgraded; do same mnt/vms/good/snapshots/$s/disks/vda.img want/$s-vda.img; done
timeout 60 cat mnt/vms/overlong/disks/vda.img >out || [ $? != 124 ] || fail "overlong: waits for ever"
[ ! -s out ] || equal 65536 "$(stat -c %s out)" "size of overlong"
refused "EIO|EUCLEAN" timeout 60 cat mnt/vms/bad-stream/disks/vda.img

say "XML"
for name in "${bad_xml[@]}"; do
	[ "$(events_with mnt "$name.xml")" -gt 0 ] || fail "$name.xml: no event"
	if [ -e "mnt/vms/$name/domain.xml" ]; then refused "EINVAL|EIO|EUCLEAN" cat "mnt/vms/$name/domain.xml"; fi
done
for name in "${odd_xml[@]}"; do
	[ ! -d "mnt/vms/$name" ] || timeout 20 ls -lR "mnt/vms/$name" >/dev/null || fail "$name.xml: can't be listed"
done

say "XML in actions"
mkdir mnt/clones/good@patched/acted 2>/dev/null || mkdir mnt/clones/acted
laughs=$(sed -n '2,3p' "$src/laughs.xml")
deep=$(printf '<domainsnapshot>%.0s' {1..4000})
tried=0
for action in mnt/clones/acted/actions/* mnt/vms/good/actions/clone; do
	for text in "$laughs<domainsnapshot><name>&f;</name></domainsnapshot>" "${laughs/domain/snapshot}<snapshot><description>&f;</description></snapshot>" \
		'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><domainsnapshot><name>a</name><description>&x;</description></domainsnapshot>' \
		'<!DOCTYPE d SYSTEM "http://192.0.2.1/x.dtd"><action/>' "$deep"; do
		refused "EINVAL|EROFS|EPERM|ENOENT" timeout 20 tee "$action" <<<"$text"
		tried=$((tried + 1))
	done
done
say "$tried of them refused"
[ "$tried" -ge 40 ] || fail "only $tried were tried"
[ "$(events_with mnt installed.xml)" -gt 0 ] || fail "snapped/installed.xml: no event"
same mnt/vms/snapped/snapshots/upgraded/disks/vda.img want-snapped/upgraded-vda.img
[ ! -e mnt/vms/snapped/patched ] || fail "a snapshot name got out of its directory"
find mnt/vms -name domain.xml -o -name snapshot.xml | while read -r file; do cat "$file" 2>/dev/null || true; done >all.xml
grep -q '<domainsnapshot' all.xml || fail "no XML is shown"
! grep -q 'root:' all.xml || fail "/etc/passwd in an XML"
! grep -rqa "a secret" mnt/vms/*/events mnt/events || fail "a secret in the events"

# A write through a clone of what is hostile doesn't help either.
for name in json loop symlink-out l1-size data-file-passwd data-file-below fifo proc-root; do
	mkdir "mnt/clones/$name@x" 2>/dev/null && fail "clones/$name@x could be made"
done

memory_limit_holds mnt
say "peak memory: $(peak_memory mnt) KiB"
unmount mnt
fingerprint "$src" >after
same before after "the sources"
