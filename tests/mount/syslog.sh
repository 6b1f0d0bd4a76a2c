#!/usr/bin/env bash
# A daemon in the background says its events to syslog, a line each, whatever is in a name; in the foreground on stderr.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need_root
need qemu-img python3 mount
own_mounts # and a /dev of our own, where /dev/log is a socket that writes down what comes
mkdir dev src mnt
mount -t tmpfs dev dev
for node in "fuse 10 229" "null 1 3" "zero 1 5" "urandom 1 9" "random 1 8"; do
	# shellcheck disable=SC2086
	mknod -m 666 dev/${node%% *} c ${node#* }
done
python3 - <<'PY' &
import socket
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("dev/log")
with open("syslog", "w") as out:
    while True:
        print(ascii(log.recv(65536).rstrip(b"\0\n"))[2:-1], file=out, flush=True)
PY
listener=$!
wait_until 20 test -S dev/log
ln -s /proc/self/fd dev/fd
mount --bind dev /dev
logged() { grep -c -- "$1" syslog >/dev/null; }

src=$PWD/src
img create -f qcow2 "$src/base.qcow2" 1M
img create -f qcow2 -F qcow2 -b base.qcow2 "$src/web.qcow2"
"$VMSNAPFS" "$src" "$PWD/mnt" >out 2>&1 || fail "$(cat out)"
equal "" "$(cat out)" "what is said on the terminal"
pid=$(tr -dc 0-9 <src/.vmsnapfs/lock)

say "each event is a line, with the daemon's pid"
refused EROFS mkdir mnt/vms/web/snapshots/x
wait_until 20 logged "vmsnapfs\[$pid\]: web: mkdir snapshots/x: .*Clone it" || fail "not in syslog: $(cat mnt/events)"
lines=$(wc -l <syslog)
equal "$(wc -l <mnt/events)" "$lines" "as many lines as in events: $(cat syslog)"

say "names can't make lines, or colours"
refused EINVAL mkdir "mnt/clones/$(printf 'evil\n<0>kernel: panic \033[31m%%n%%s\177')"
wait_until 20 logged "kernel: panic" || fail "the second event"
equal $((lines + 1)) "$(wc -l <syslog)" "one more line"
line=$(tail -n 1 syslog)
case $line in *'\n'* | *'\x1b'* | *'\x7f'*) fail "control characters in syslog: $line" ;; esac
contains "$line" "%n%s"
contains "$line" "<29>" "facility and priority: daemon, notice"
umount mnt
wait_until 30 gone "$pid" || fail "the daemon is still there"

say "in the foreground: on stderr alone"
lines=$(wc -l <syslog)
mount_at "$src" mnt
refused EROFS mkdir mnt/vms/web/snapshots/y
wait_until 20 grep -q "vmsnapfs: web: mkdir snapshots/y: " mnt.log || fail "not on stderr: $(cat mnt.log)"
unmount mnt
equal "$lines" "$(wc -l <syslog)" "lines in syslog"
kill $listener
