#!/usr/bin/env bash
# A snapshot copied whole, as people do it: pasted in a file manager's window, with mc's F5, by gio, python, tar and cp. Each
# makes a clone that is equal and takes under 1 % of the snapshot on disk. 4 GiB at night, else 1.       limit: 600
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io python3 tar gio mc script pcmanfm Xvfb xdotool

src=$PWD/src
gib=1
[ -z "${NIGHTLY:-}" ] || gib=4
mkdir -p "$src" want home
img create -f qcow2 "$src/box.qcow2" ${gib}G
head -c 3400k /dev/urandom >random
for ((i = 0; i < 100; i++)); do writes+=("write -s random $((i * 10250 * gib))k 3400k"); done
io "$src/box.qcow2" qcow2 "${writes[@]}"
oracle "$src/box.qcow2" qcow2 want/s.img
img create -f qcow2 -b box.qcow2 -F qcow2 "$src/now.qcow2"
mount_at src mnt
snapshots=$PWD/mnt/vms/now/snapshots
clones=$PWD/mnt/clones
lists "$snapshots" box
taken_by_snapshot=$(stat -c '%b * %B' "$snapshots/box/disks/vda.img")
taken_by_snapshot=$((taken_by_snapshot))
say "the snapshot takes $((taken_by_snapshot >> 20)) MiB"

# The files are there, with all their bytes; whoever made them may still be closing them.
is_whole() { # CLONE
	[ "$(stat -c %s "$clones/$1/disks/vda.img" 2>/dev/null)" = $((gib << 30)) ]
}

check_clone() { # CLONE
	local taken
	lists "$clones/$1/disks" vda.img
	same "$clones/$1/disks/vda.img" want/s.img "the copy made by $1"
	sync -f "$clones/$1"
	taken=$(space_of "$src/.vmsnapfs")
	say "$1: $((taken / 1024)) KiB"
	at_most $((taken_by_snapshot / 100)) "$taken" "bytes taken by the copy that $1 made"
	rm -r "${clones:?}/$1"
}

name_is() { # CLONE: the name in its domain.xml
	equal "$1" "$(xmllint --xpath 'string(/domain/name)' "$clones/$1/domain.xml")" "the clone's name"
}

by_cp() { cp -r "$snapshots/box" "$clones/cp"; }
by_cp_a() { cp -a "$snapshots/box" "$clones/cp_a"; }
by_cp_sparse() { cp -r --sparse=always "$snapshots/box" "$clones/cp_sparse"; }
by_python() { python3 -c 'import shutil, sys; shutil.copytree(*sys.argv[1:])' "$snapshots/box" "$clones/python"; }
by_tar() { mkdir "$clones/tar" && tar -C "$snapshots/box" -cf - . | tar -C "$clones/tar" -xf -; }
by_tar_sparse() { mkdir "$clones/tar_sparse" && tar -C "$snapshots/box" -Scf - . | tar -C "$clones/tar_sparse" -xf -; }
by_gio() { # copies no directories
	mkdir "$clones/gio"
	gio copy "$snapshots/box/domain.xml" "$clones/gio/domain.xml"
	gio copy "$snapshots/box/disks/vda.img" "$clones/gio/disks/vda.img"
}
for tool in cp cp_a cp_sparse python tar tar_sparse gio; do
	"by_$tool"
	name_is $tool
	check_clone $tool
done

export HOME=$PWD/home XDG_RUNTIME_DIR=$PWD/home TERM=xterm
unset DISPLAY WAYLAND_DISPLAY

say "mc: F5 on the snapshot, a path typed in"
mkfifo keys
script -qefc "exec mc --nosubshell --nomouse -a '$snapshots' '$clones'" screen <keys >/dev/null &
pid=$!
exec 9>keys
wait_until 20 grep -q Quit screen || fail "mc shows nothing"
for ((try = 0; try < 10; try++)); do
	# Out of any dialog; down, from "..", F5; a key alone may come before mc has made its screen.
	printf '\033\033' >&9 && sleep 0.3
	printf '\033OB' >&9 && sleep 0.3
	printf '\0335' >&9 && sleep 0.3
	printf '%s\r' "$clones/mc" >&9
	if wait_until 5 test -d "$clones/mc"; then break; fi
done
wait_until 120 is_whole mc || fail "mc hasn't copied: $(tail -c 3000 screen | cat -v)"
# A key that came late may have opened a dialog. It needn't end by itself: its copy is what counts.
for ((try = 0; try < 5; try++)); do
	(trap '' PIPE && printf '\033\033' >&9 && sleep 0.3 && printf '\0330\r' >&9) 2>/dev/null || true
	if wait_until 3 gone $pid; then break; fi
done
exec 9>&-
kill $pid 2>/dev/null || true
wait $pid || true
check_clone mc

say "PCManFM: selected, copied, and pasted in a window"
Xvfb -displayfd 3 -screen 0 800x600x24 -nolisten tcp 3>display >Xvfb.log 2>&1 &
server=$!
wait_until 20 test -s display || fail "no X server: $(cat Xvfb.log)"
DISPLAY=:$(cat display)
export DISPLAY
pcmanfm --no-desktop "$snapshots" >pcmanfm.log 2>&1 &
pid=$!
is_open() {
	window=$(xdotool search --onlyvisible --class pcmanfm 2>/dev/null | tail -n 1) && [ -n "$window" ]
}
wait_until 30 is_open || fail "no window: $(cat pcmanfm.log)"

shows() { # NAME: of the folder, which is the window's title
	[ "$(xdotool getwindowname "$window" 2>/dev/null)" = "$1" ]
}

go_to() { # DIR
	xdotool key ctrl+l sleep 0.3 key ctrl+a type "$1"
	xdotool key Return
	wait_until 10 shows "${1##*/}" && sleep 0.5
}

for ((try = 0; try < 10; try++)); do
	xdotool windowfocus --sync "$window"
	# No event tells that the folder's view is filled and has the focus; a try that came too early copied nothing.
	go_to "$snapshots" || continue
	xdotool key ctrl+a sleep 0.3 key ctrl+c sleep 0.3
	go_to "$clones" || continue
	xdotool key ctrl+v
	if wait_until 5 test -d "$clones/box"; then break; fi
done
wait_until 120 is_whole box || fail "not copied: $(cat pcmanfm.log; tail -n 3 mnt/events)"
has_closed() {
	[ -z "$(find "/proc/$pid/fd" -lname "$clones/*")" ]
}
wait_until 30 has_closed || fail "a file is still open"
name_is box
check_clone box
kill $pid $server

unmount mnt
