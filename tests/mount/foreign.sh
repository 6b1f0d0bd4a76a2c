#!/usr/bin/env bash
# root mounts a directory that another user owns, with a store in it that that user has made up: nothing outside is read for
# him or written, and nothing waits for ever.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io setpriv xmllint
need_root

alice=$(id -u nobody)
as_alice() {
	setpriv --reuid="$alice" --regid="$alice" --clear-groups "$@"
}
chmod 755 .
mkdir home victims pool
cp "$VMSNAPFS" vmsnapfs
VMSNAPFS=$PWD/vmsnapfs
src=$PWD/home/src store=$PWD/home/src/.vmsnapfs
make_vm "$src" web want
for name in secret log tmp layer pooled; do
	img create -f raw "victims/$name" 1M
	io "victims/$name" raw "write -P 7 0 1M"
	chmod 600 "victims/$name"
done
cp victims/pooled pool/pooled.raw
chown -R "$alice" home
mkdir home/mnt && chown "$alice" home/mnt

say "a store that alice has made"
RUN_AS="setpriv --reuid=$alice --regid=$alice --clear-groups" mount_at "$src" "$PWD/home/mnt"
for vm in good fifo link hard; do as_alice mkdir "home/mnt/clones/web@installed/$vm"; done
as_alice mkdir home/mnt/clones/good/snapshots/s
declare -A dir=() layer=()
for vm in good fifo link hard; do
	as_alice cat "home/mnt/clones/$vm/domain.xml" >xml
	layer[$vm]=$(domain_source xml vda)
	dir[$vm]=$store/vms/$(xmllint --xpath 'string(/domain/uuid)' xml)
done
as_alice fusermount3 -u "$PWD/home/mnt"
wait_until 30 gone "${daemons[$PWD/home/mnt]}"
wait "${daemons[$PWD/home/mnt]}"
unset "daemons[$PWD/home/mnt]"

state() { # of the victims and the store: names, content, times
	find victims pool "$store" -printf '%p %y %u %m %s %n %T@ %l\n' | sort
	find victims pool "$store" -type f -print0 | sort -z | xargs -0r sha256sum
}
at_once() { # nothing of this waits for somebody to open a FIFO
	timeout 60 "$@" || fail "'$*' doesn't end, or fails"
}

say "it isn't taken for root's: shown, and not written to"
rm "${dir[fifo]}/vm.xml" "${layer[link]}" "${layer[hard]}"
mkfifo "${dir[fifo]}/vm.xml"
ln -s "$PWD/victims/secret" "${layer[link]}"
ln victims/layer "${layer[hard]}"
chown -h "$alice" "${layer[link]}" "${dir[fifo]}/vm.xml"
state >before
mount_at "$src" mnt -o allow_other -o "pool=p:$PWD/pool"
at_once ls -lR mnt >listing
[ "$(events_with mnt "$store belongs to user $alice")" -gt 0 ] || fail "no event says why"
[ "$(events_with mnt "the mount is read-only")" -gt 0 ] || fail "no event says so"
refused EROFS mkdir mnt/clones/web@installed/more
refused "EROFS|EACCES|EPERM" rmdir mnt/clones/good
same mnt/vms/web/disks/vda.img want/now-vda.img
same mnt/clones/good/disks/vda.img want/installed-vda.img
[ ! -e mnt/clones/fifo ] || fail "a VM out of a FIFO"
refused "EACCES|EUCLEAN" timeout 20 cat mnt/clones/link/disks/vda.img
! as_alice cat mnt/clones/hard/disks/vda.img >out 2>/dev/null || fail "alice reads root's file by a second name of it"
! cmp -s out victims/layer || fail "alice has got root's file"
unmount mnt
state | diff before - || fail "something was changed"

say "nor is one that others may write to, or a link to somewhere else"
chown 0 "$store"
chmod 775 "$store"
mount_at "$src" mnt
[ "$(events_with mnt "written by others")" -gt 0 ] || fail "no event: writable"
refused EROFS mkdir mnt/clones/web@installed/more
unmount mnt
chown "$alice" "$store"
chmod 700 "$store"
mv "$store" home/moved
mkdir elsewhere
as_alice ln -s "$PWD/elsewhere" "$store"
mount_at "$src" mnt
[ "$(events_with mnt "is a link")" -gt 0 ] || fail "no event: link"
refused EROFS mkdir mnt/clones/web@installed/more
unmount mnt
[ -z "$(ls elsewhere)" ] || fail "a link was followed: $(ls elsewhere)"
rm "$store" && mv home/moved "$store"

say "one that root names is used: even then nothing outside it is written or waited for"
rm -f "$store/events.log" "$store/events.log.old"
ln victims/log "$store/events.log"
ln victims/tmp "${dir[good]}/.vm.xml.tmp"
mkdir -p "$store/jobs" "$store/pools/p"
mkfifo "$store/jobs/00000000-0000-4000-8000-000000000000.xml" "$store/pools/p/pooled.raw" "$store/jobs/${layer[good]##*/}"
ln -s "$PWD/victims/secret" "$store/pools/p/other.raw"
find victims pool -printf '%p %y %u %m %s %T@\n' | sort >before
sha256sum victims/* pool/* >>before
mount_at "$src" mnt -o allow_other -o "store=$store" -o "pool=p:$PWD/pool"
at_once ls -lR mnt >listing
[ ! -e mnt/clones/fifo ] || fail "a VM out of a FIFO"
at_once mv mnt/clones/good mnt/clones/better
at_once mkdir mnt/clones/better/snapshots/t
refused "EROFS|EPERM|EACCES" timeout 20 rm -f mnt/pools/p/pooled.raw
refused "EROFS|EPERM|EACCES" timeout 20 dd if=/dev/zero of=mnt/pools/p/pooled.raw bs=512 count=1 conv=notrunc status=none
refused "EACCES|EUCLEAN|ELOOP" timeout 20 dd if=/dev/zero of=mnt/clones/link/disks/vda.img bs=512 count=1 conv=notrunc status=none
refused "EACCES|EUCLEAN|EIO" timeout 20 dd if=/dev/zero of=mnt/clones/hard/disks/vda.img bs=512 count=1 conv=notrunc status=none
unmount mnt
{
	find victims pool -printf '%p %y %u %m %s %T@\n' | sort
	sha256sum victims/* pool/*
} | diff before - || fail "something outside the store was changed"

say "a spare file that is something else"
for kind in pipe second-name link; do
	mkdir -m 700 "spare-$kind"
	spare=$PWD/spare-$kind/spare
	case $kind in
	pipe) mkfifo "$spare" ;;
	second-name) ln victims/log "$spare" ;;
	link) ln -s "$PWD/victims/log" "$spare" ;;
	esac
	mount_at "$src" mnt -o "store=$PWD/spare-$kind"
	at_once mkdir "mnt/clones/web@installed/$kind"
	unmount mnt
	equal "regular file 1" "$(stat -c '%F %h' "$spare")" "the spare file that was a $kind"
	equal 1048576 "$(stat -c %s victims/log)" "the file that had the name, too"
done

say "a lock that leads elsewhere"
rm "$store/lock" && ln -s "$PWD/victims/secret" "$store/lock"
mount_refused "$store" -o "store=$store" "$src" mnt # somebody else's file
equal 1048576 "$(stat -c %s victims/secret)" "the file behind the lock"
rm "$store/lock" && mkfifo "$store/lock"
mount_refused "$store" -o "store=$store" "$src" mnt # nobody opens the other end
