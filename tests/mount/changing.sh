#!/usr/bin/env bash
# Images that change under the mount, by programs that ask nobody: replaced, rewritten, grown, cut off, deleted, unmounted. What is opened
# afterwards is what lies there now, and who has the file open gets that or an error, never what was there before, whatever is cached.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io python3

echo "seed $SEED"
src=$PWD/src
mkdir "$src" new

# base.raw <- low.qcow2 (some of it compressed) <- mid.qcow2 <- web.qcow2: base, low and mid are snapshots.
fill=$((SEED % 200))
contents() { # DIR: another content with every call, the files' sizes the same
	local dir=$1
	fill=$((fill % 250 + 1))
	head -c 4M /dev/urandom >"$dir/base.raw"
	img create -f qcow2 -F raw -b base.raw "$dir/low.qcow2"
	io "$dir/low.qcow2" qcow2 "write -P $fill 1M 512k" "write -c -P $((fill + 1)) 2M 64k"
	img create -f qcow2 -F qcow2 -b low.qcow2 "$dir/mid.qcow2"
	io "$dir/mid.qcow2" qcow2 "write -P $((fill + 2)) 3M 256k"
	truncate -s 8M "$dir/low.qcow2" "$dir/mid.qcow2"
}
contents "$src"
img create -f qcow2 -F qcow2 -b mid.qcow2 "$src/web.qcow2"
mount_at "$src" mnt
shots=mnt/vms/web/snapshots
declare -A file=([base]=base.raw [low]=low.qcow2 [mid]=mid.qcow2) fd=([base]=7 [low]=8 [mid]=9)

# What is behind a descriptor: the digest of all bytes, or "error".
digest() { # FD
	local all
	if all=$("$BUILD/tools/fdcat" "$1" 2>errors | sha256sum); then
		echo "${all% *}"
	elif grep -q "${errno_text[ESTALE]}\|${errno_text[EIO]}" errors; then
		echo error
	else
		fail "descriptor $1: $(cat errors)"
	fi
}

declare -A before=()
warm() {
	local s
	for s in base low mid; do
		eval "exec ${fd[$s]}<$shots/$s/disks/vda.img"
		before[$s]=$(digest "${fd[$s]}")
		equal "${before[$s]}" "$(digest 6 6<"$shots/$s/disks/vda.img")" "$s before"
	done
}
close_all() { exec 7<&- 8<&- 9<&-; }

# WHAT CHANGED-SNAPSHOTS: who opens it now gets what QEMU reads now; who had it open (kept: that is another file) not what was there.
check_now() { # WHAT [kept]
	local s now got
	for s in base low mid; do
		oracle "$src/${file[$s]}" "$(case $s in base) echo raw ;; *) echo qcow2 ;; esac)" want.img
		now=$(digest 6 6<want.img)
		got=
		# A file that the kernel reads by itself (as root) stays the one that it is until all have closed it.
		if ! cat "$shots/$s/disks/vda.img" >got.img 2>errors; then
			contains "$(cat errors)" "${errno_text[ESTALE]}" "$1: $s"
			got=$(digest "${fd[$s]}")
			eval "exec ${fd[$s]}<&-"
		fi
		same want.img "$shots/$s/disks/vda.img" "$1: $s"
		got=${got:-$(digest "${fd[$s]}")}
		case $got:${2:-} in
		"$now:"* | error:* | "${before[$s]}:kept") ;;
		*) fail "$1: who has $s open reads what isn't there any more" ;;
		esac
	done
	close_all
}

say "replaced, with the same sizes and times"
warm
contents new
for f in base.raw low.qcow2 mid.qcow2; do
	touch -r "$src/$f" "new/$f"
	mv "new/$f" "$src/$f"
done
check_now replaced kept

say "rewritten in place"
for f in base.raw low.qcow2 mid.qcow2; do
	warm
	contents new
	dd if=new/$f of="$src/$f" bs=1M conv=notrunc status=none
	check_now "rewriting $f"
done

say "rewritten in place, and the time put back"
warm
contents new
cp -p "$src/base.raw" stamp
for f in base.raw low.qcow2 mid.qcow2; do
	touch -r "$src/$f" stamp
	close_all
	dd if=new/$f of="$src/$f" bs=1M conv=notrunc status=none
	touch -r stamp "$src/$f"
done
warm # what is open now was opened before the last change was noticed, or after it
check_now "the time put back"

say "written, grown and cut off by QEMU's tools, while nobody has it open"
for change in "io mid.qcow2 qcow2 'write -P 77 0 64k'" "img resize mid.qcow2 6M" "io low.qcow2 qcow2 'write -P 78 64k 64k'" \
	"img resize -f raw base.raw 5M" "img resize --shrink -f raw base.raw 3M" "img snapshot -c x low.qcow2"; do
	warm
	close_all
	(cd "$src" && eval "$change")
	exec 7<"$shots/base/disks/vda.img" 8<"$shots/low/disks/vda.img" 9<"$shots/mid/disks/vda.img"
	check_now "$change"
done

say "cut off while it is read; who has it mapped gets SIGBUS, and nobody opens it anew"
contents "$src"
unmount mnt # or the event below, being one that there was already, isn't said again
mount_at "$src" mnt
warm
python3 - $shots/low/disks/vda.img >mapped <<-'PY' &
	import mmap, os, sys
	fd = os.open(sys.argv[1], os.O_RDONLY)
	mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
	sum(mapped[::4096])
	print("mapped", flush=True)
	while True:
	    sum(mapped[::4096])
PY
reader=$!
wait_until 20 grep -q mapped mapped
told() { events_with mnt "was changed by another program while it was open here"; }
is_told() { [ "$(told)" -gt "$events" ]; }
events=$(told)
truncate -s 1M "$src/base.raw"
status=0
wait $reader || status=$?
equal 135 $status "status of who reads a mapped file that was cut off"
wait_until 20 is_told || fail "no event says that it was cut off: $(tail -n 3 mnt/events)"
for s in low mid; do equal error "$(digest "${fd[$s]}")" "$s, of which the base was cut off"; done
# The kernel may read this one by itself (as root): then it ends where the file does.
[ "$(digest 7)" != "${before[base]}" ] || fail "base reads as if it hadn't been cut off"
check_now "cut off"

say "owner, mode and name aren't content"
warm
chmod 640 "$src/base.raw"
ln "$src/base.raw" "$src/other.raw"
rm "$src/other.raw"
for s in base low mid; do equal "${before[$s]}" "$(digest "${fd[$s]}")" "$s after a chmod"; done
close_all
chmod 644 "$src/base.raw"

say "deleted, and back"
warm
mv "$src/low.qcow2" away
refused "ESTALE|EIO" cat $shots/mid/disks/vda.img
for s in base low mid; do equal "${before[$s]}" "$(digest "${fd[$s]}")" "$s, open when its file lost its name"; done
# Who looks at the name meanwhile doesn't make it shorter for who reads.
for ((i = 0; i < 40; i++)); do
	equal 4194304 "$(stat -c %s $shots/mid/disks/vda.img)" "size of mid, while it is open"
	sleep 0.2
done
for s in base low mid; do equal "${before[$s]}" "$(digest "${fd[$s]}")" "$s, open when its file lost its name, and looked at since"; done
exec 9<&-
# It isn't an empty file: tar wouldn't open that, and say nothing.
shows_nothing() { [ "$(stat -c %s $shots/mid/disks/vda.img)" = 512 ]; }
wait_until 30 shows_nothing || fail "a disk that can't be read has $(stat -c %s $shots/mid/disks/vda.img) bytes"
if tar -cf mid.tar $shots/mid/disks 2>errors; then fail "tar stores a disk that can't be read"; fi
contains "$(cat errors)" "*vda.img: Cannot open*"
# What was remembered of the failure isn't what there is to who comes when it is there again.
mv away "$src/low.qcow2"
wait_until 30 cp $shots/mid/disks/vda.img got.img 2>/dev/null || fail "mid isn't back"
equal "$(stat -c %s got.img)" "$(stat -c %s $shots/mid/disks/vda.img)" "size of mid, once it could be opened"
[ -s got.img ] || fail "mid is an empty file"
are_back() { cat $shots/{base,low,mid}/disks/vda.img; }
wait_until 30 are_back >/dev/null 2>&1 || fail "$(ls $shots) alone are back"
exec 9<$shots/mid/disks/vda.img
check_now "its name back"

say "a clone whose base is cut off, and an internal snapshot that is deleted: an error, and nothing else"
mkdir mnt/clones/web@mid/clone
head -c 100k /dev/urandom >data
dd if=data of=mnt/clones/clone/disks/vda.img conv=notrunc,fsync status=none
img create -f qcow2 "$src/box.qcow2" 4M
io "$src/box.qcow2" qcow2 "write -P 5 0 4M"
img snapshot -c early "$src/box.qcow2"
io "$src/box.qcow2" qcow2 "write -P 6 0 4M"
wait_until 30 test -e mnt/vms/box/snapshots/early
exec 7<mnt/vms/box/snapshots/early/disks/vda.img
exec 8<mnt/clones/clone/disks/vda.img
was=$(digest 7)
equal "$(head -c 4M /dev/zero | tr '\0' '\5' | sha256sum)" "$was -" "the internal snapshot"
io "$src/box.qcow2" qcow2 "write -P 7 0 1M"
equal "$was" "$(digest 7)" "the internal snapshot, while its image is written to"
img snapshot -d early "$src/box.qcow2"
io "$src/box.qcow2" qcow2 "write -P 8 0 4M"
reads_nothing() { [ "$(digest 7)" = error ]; }
wait_until 30 reads_nothing || fail "a snapshot that was deleted is still read"
cp "$src/base.raw" saved
truncate -s 1M "$src/base.raw"
reads_nothing8() { [ "$(digest 8)" = error ]; }
wait_until 30 reads_nothing8 || fail "a clone reads on from a base that was cut off"
exec 7<&- 8<&-
cp saved "$src/base.raw"
head -c 100k mnt/clones/clone/disks/vda.img | cmp - data || fail "the clone's own data"

say "SOURCE's directory under another name, and back"
mv "$src" moved
refused "ESTALE|EIO" cat mnt/vms/web/snapshots/mid/disks/vda.img
mv moved "$src"
wait_until 30 are_back >/dev/null 2>&1 || fail "$(ls $shots) alone came back with their directory"
unmount mnt

[ "$(id -u)" = 0 ] || exit 0
say "SOURCE's filesystem is unmounted, lazily"
mkdir lazy
mount -t tmpfs lazy lazy
cp "$src/base.raw" "$src"/{low,mid,web}.qcow2 lazy
mount_at "$PWD/lazy" lazymnt
mkdir lazymnt/clones/web@mid/clone
exec 7<lazymnt/vms/web/snapshots/mid/disks/vda.img 8<>lazymnt/clones/clone/disks/vda.img
was=$(digest 7)
umount -l lazy
cat data >&8
sync /dev/fd/8
equal "$was" "$(digest 7)" "who has it open"
refused "ESTALE|EIO" cat lazymnt/vms/web/snapshots/low/disks/vda.img
"$BUILD/tools/fdcat" 8 >got.img
cmp -n "$(stat -c %s data)" data got.img || fail "what was written then"
exec 7<&- 8<&-
unmount lazymnt
