#!/usr/bin/env bash
# A mount for all users, as a table of users, images and operations: nobody gets anything through the mount that the files'
# own permissions wouldn't give, and those who may get it. limit: 300
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io setpriv getfattr xmllint
need_root

# alice owns what lies there; bob is in its group, by a supplementary one; carol is anybody; noroot is root without any capability, which
# is no more than the owner of root's files.
alice=$(id -u nobody) carol=$(id -u daemon) bob=$(id -u bin)
staff=7777
as() { # USER COMMAND...
	local user=$1
	shift
	case $user in
	alice) setpriv --reuid="$alice" --regid="$alice" --clear-groups "$@" ;;
	bob) setpriv --reuid="$bob" --regid="$bob" --groups="$staff" "$@" ;;
	carol) setpriv --reuid="$carol" --regid="$carol" --clear-groups "$@" ;;
	noroot) setpriv --bounding-set=-all --inh-caps=-all --clear-groups "$@" ;;
	esac
}
users=(alice bob carol noroot)
chmod 755 .
src=$PWD/src
mkdir "$src" pool

# --- VMs of all sorts ----------------------------------------------------------------------------------------------------------

vms=(open group own base dir xml snapxml memdir rootown ownergap)
for vm in "${vms[@]}"; do
	d=$src/$vm
	mkdir "$d" "$d/images" "$d/ram" "$d/$vm"
	img create -f qcow2 "$d/images/base" 1M
	io "$d/images/base" qcow2 "write -P 1 0 64k"
	img create -f qcow2 -b "$d/images/base" -F qcow2 "$d/images/leaf"
	echo "the RAM of $vm" >"$d/ram/file"
	domain_xml "$vm" "$(uuid_of "$vm")" "vda=$d/images/base" >moment.xml
	sed -i "s,<graphics type='vnc',& passwd='secret-$vm'," moment.xml
	snapshot_xml s memory="$d/ram/file" domain="$PWD/moment.xml" -- "vda=external:$d/images/leaf" >"$d/$vm/s.xml"
	sed "s,images/base,images/leaf," moment.xml >"$d/$vm.xml"
done
chown -R "$alice:$staff" "$src"
chmod -R u=rwX,go=rX "$src"
chmod 640 "$src"/group/images/* "$src/group/group.xml" "$src/group/group/s.xml" "$src/group/ram/file"
chmod 600 "$src"/own/images/* "$src/own/own.xml" "$src/own/own/s.xml" "$src/own/ram/file"
chmod 600 "$src/base/images/base"
chmod 750 "$src/dir"
chmod 600 "$src/xml/xml.xml"
chmod 600 "$src/snapxml/snapxml/s.xml"
chmod 700 "$src/memdir/ram" "$src/memdir/images"
chown -R 0:0 "$src/rootown"
chmod 600 "$src"/rootown/images/* "$src/rootown/rootown.xml" "$src/rootown/rootown/s.xml" "$src/rootown/ram/file"
# A leaf that is alice's and of the group, which she isn't in, over an image that only the group may read.
chown 0 "$src/ownergap/images/base" && chmod 640 "$src/ownergap/images/base"

mkdir store && chown "$alice" store && chmod 700 store
chown "$alice" pool
mount_at "$src" mnt -o allow_other -o "store=$PWD/store" -o "pool=p:$PWD/pool"
as alice mkdir "$PWD/mnt/clones/open@s/hers"
as alice mkdir "$PWD/mnt/clones/hers/snapshots/t"
as alice cp "mnt/vms/open/disks/vda.img" "$PWD/mnt/pools/p/hers.raw"
as alice chmod 600 "$PWD/mnt/pools/p/hers.raw"

# --- reading --------------------------------------------------------------------------------------------------------------------

reads() { # USER FILE...: each of them
	local user=$1
	shift
	as "$user" head -qc 1 "$@" >/dev/null 2>&1
}
files_of() { # VM WHAT: what one must be allowed to read for it
	local d=$src/$1
	case $2 in
	disk | chain) echo "$d/images/leaf $d/images/base" ;;
	snapshot-disk | depth) echo "$d/images/base" ;;
	memory) echo "$d/ram/file" ;;
	domain) echo "$d/$1.xml" ;;
	snapshot-domain | snapshot-xml) echo "$d/$1.xml $d/$1/s.xml" ;;
	esac
}
try() { # USER VM WHAT
	local vm=mnt/vms/$2
	case $3 in
	disk) reads "$1" "$vm/disks/vda.img" ;;
	snapshot-disk) reads "$1" "$vm/snapshots/s/disks/vda.img" ;;
	memory) reads "$1" "$vm/snapshots/s/memory" ;;
	domain) reads "$1" "$vm/domain.xml" ;;
	snapshot-domain) reads "$1" "$vm/snapshots/s/domain.xml" ;;
	snapshot-xml) reads "$1" "$vm/snapshots/s/snapshot.xml" ;;
	chain) as "$1" getfattr -n user.vmsnapfs.chain "$vm/disks/vda.img" >/dev/null 2>&1 ;;
	depth) as "$1" getfattr -n user.vmsnapfs.depth "$vm/snapshots/s/disks/vda.img" >/dev/null 2>&1 ;;
	esac
}
given=0 kept=0 problems=0
say "reading (+: by the files and through the mount; -: by neither; <: less through the mount; >: MORE)"
printf '%-8s' user
for what in disk snapshot-disk memory domain snapshot-domain snapshot-xml chain depth; do printf '%-16s' "$what"; done
echo
for user in "${users[@]}"; do
	for vm in "${vms[@]}"; do
		printf '%-8s' "$user"
		for what in disk snapshot-disk memory domain snapshot-domain snapshot-xml chain depth; do
			read -ra files < <(files_of "$vm" "$what")
			by_files=no through=no mark=-
			! reads "$user" "${files[@]}" || by_files=yes
			! try "$user" "$vm" "$what" || through=yes
			case $by_files$through in
			yesyes) mark=+ given=$((given + 1)) ;;
			nono) kept=$((kept + 1)) ;;
			yesno) mark='<' ;;
			noyes) mark='>' problems=$((problems + 1)) ;;
			esac
			printf '%-16s' "$mark"
		done
		echo "$vm"
	done
done
equal 0 $problems "cells in which the mount gives more than the files"
[ "$given" -gt 150 ] || fail "only $given cells are given: the table shows little"
[ "$kept" -gt 50 ] || fail "only $kept cells are kept back: the table shows little"
for user in "${users[@]}"; do
	for what in disk snapshot-disk memory domain snapshot-xml chain; do
		try "$user" open $what || fail "$user gets no $what of what everybody may read"
	done
done

say "passwords"
! as carol grep -rqs 'secret-own[^e]' mnt || fail "a password of a file that carol may not read"
as carol grep -qs secret-open mnt/vms/open/domain.xml

# --- changing ---------------------------------------------------------------------------------------------------------------------

hers=$PWD/mnt/clones/hers
act() { # USER VM ACTION TEXT
	as "$1" tee "$2/actions/$3" <<<"$4" >/dev/null
}
for user in bob carol noroot; do
	say "what $user can't do"
	refused "EACCES|EPERM" as $user mkdir "$PWD/mnt/clones/open@s/of-$user"
	refused "EACCES|EPERM" as $user mkdir "$PWD/mnt/clones/of-$user"
	refused "EACCES|EPERM" act $user mnt/vms/open clone "s of-$user"
	refused "EACCES|EPERM" as $user cp -r mnt/vms/open/snapshots/s "$PWD/mnt/clones/of-$user"
	refused "EACCES|EPERM" as $user mkdir "$hers/snapshots/of-$user"
	refused "EACCES|EPERM" as $user rmdir "$hers/snapshots/t"
	refused "EACCES|EPERM" as $user mv "$hers/snapshots/t" "$hers/snapshots/of-$user"
	refused "EACCES|EPERM" as $user ln -sfn snapshots/t "$hers/current"
	refused "EACCES|EPERM" as $user mv "$hers" "$PWD/mnt/clones/of-$user"
	refused "EACCES|EPERM" as $user mv "$hers" "$PWD/mnt/vms/of-$user"
	refused "EACCES|EPERM" as $user rmdir "$hers"
	refused "EACCES|EPERM" as $user dd if=/dev/zero "of=$hers/disks/vda.img" bs=512 count=1 conv=notrunc status=none
	refused "EACCES|EPERM" as $user truncate -s 2M "$hers/disks/vda.img"
	refused "EACCES|EPERM" as $user chmod 666 "$hers/disks/vda.img"
	refused "EACCES|EPERM" as $user chmod 644 "$hers/domain.xml"
	refused "EACCES|EPERM" as $user cp moment.xml "$hers/domain.xml"
	refused "EACCES|EPERM" as $user cp moment.xml "$hers/disks/vdz.img"
	refused "EACCES|EPERM" as $user rm -f "$hers/disks/vda.img"
	for action in snapshot preview restore delete commit undo flatten clone; do
		refused "EACCES|EPERM" act $user "$hers" $action "t"
	done
	refused "EACCES|EPERM" as $user cp moment.xml "$PWD/mnt/pools/p/of-$user.raw"
	refused "EACCES|EPERM" as $user rm -f "$PWD/mnt/pools/p/hers.raw"
	refused "EACCES|EPERM" as $user mv "$PWD/mnt/pools/p/hers.raw" "$PWD/mnt/pools/p/of-$user.raw"
	refused "EACCES|EPERM" as $user cat "$PWD/mnt/pools/p/hers.raw"
	refused "EACCES|EPERM" as $user touch "$PWD/mnt/jobs/of-$user"
done
lists mnt/clones hers
lists "$hers/snapshots" t
lists mnt/pools/p hers.raw

say "what alice can, and no more than her files"
refused "EACCES|EPERM" as alice mkdir "$PWD/mnt/clones/rootown@s/stolen"
refused "EACCES|EPERM" act alice mnt/vms/rootown clone "s stolen"
refused "EACCES|EPERM" act alice mnt/vms/ownergap clone "s stolen" # what a group may read that she isn't in
refused "EACCES|EPERM" as alice mkdir "$PWD/mnt/clones/ownergap@s/stolen"
as alice mkdir "$PWD/mnt/clones/own@s/own"
as alice cat mnt/clones/own/domain.xml >hers.xml
grep -q 'secret-own[^e]' hers.xml || fail "a clone's owner doesn't see its configuration"
! as carol grep -qs 'secret-own[^e]' mnt/clones/own/domain.xml || fail "a clone shows the configuration to others than its source does"
! as bob grep -qs 'secret-own[^e]' mnt/clones/own/domain.xml || fail "the same, to the group"
as alice cp -r mnt/vms/own/snapshots/s "$PWD/mnt/clones/copied"
! as carol grep -qs 'secret-own[^e]' mnt/clones/copied/domain.xml || fail "a copy shows the configuration to others"
as alice chmod 644 "$PWD/mnt/clones/copied/domain.xml"
as carol grep -qs 'secret-own[^e]' mnt/clones/copied/domain.xml || fail "chmod of domain.xml"
as alice mv "$hers/snapshots/t" "$hers/snapshots/u"
as alice rmdir "$hers/snapshots/u"
as alice rmdir "$hers"
unmount mnt

say "what can't be read isn't taken for nothing"
mkdir -p "$src/closed/in" && chmod 700 "$src/closed" && chown 0 "$src/closed"
mkdir mine && chown "$alice" mine
own=(-o "store=$PWD/store")
RUN_AS="setpriv --reuid=$alice --regid=$alice --clear-groups"
RUN_AS=$RUN_AS mount_refused "$src/closed: permission denied" "$src/closed" "$PWD/mine" "${own[@]}"
RUN_AS=$RUN_AS mount_at "$src" mine "${own[@]}"
contains "$(as alice cat mine/events)" "*$src/closed can't be read, and what lies in it isn't shown: Permission denied*"
as alice ls mine/vms/open >/dev/null
unmount mine
