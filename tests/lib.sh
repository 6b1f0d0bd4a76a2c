# What the shell tests share. A test begins with
#
#	# What it shows, in a sentence.       limit: 300      (seconds, if 120 are too few)
#	. "$(dirname "$0")/../lib.sh"
#
# and then is in an empty directory of its own, which goes away afterwards together with everything it mounted and
# started. Nothing here sleeps for a guessed time: what has to be waited for is asked for until it is there.
# shellcheck shell=bash disable=SC2034
set -euo pipefail
shopt -s inherit_errexit

TESTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOP=$(dirname "$TESTS")
THIS_TEST=$(realpath "$0")
BUILD=${BUILD:-$TOP/build}
VMSNAPFS=${VMSNAPFS:-$BUILD/vmsnapfs}
VMCAT=$BUILD/tools/vmcat
FSX=$BUILD/tools/fsx
SEED=${SEED:-$RANDOM}
SAN=${SAN:-}
export LC_ALL=C.UTF-8
if [ -z "${TEST_DIR:-}" ]; then
	TEST_DIR=$(mktemp -d "${TMPDIR:-/tmp}/vmsnapfs-test.XXXXXX")
	chmod 755 "$TEST_DIR"
	own_test_dir=yes
fi
cd "$TEST_DIR"
export PATH=$PATH:/usr/sbin:/sbin

# --- ending ----------------------------------------------------------------------------------------------------------

declare -A daemons=() # mount point -> pid of its daemon

# A test that has more to end than mounts and jobs defines `ending` anew, which is run first, however the test ends.
ending() { :; }

cleanup() {
	local status=$? mnt pid m log
	set +e
	trap - EXIT ERR
	ending >/dev/null 2>&1
	for m in $(findmnt -rno TARGET | grep "^$TEST_DIR/" | sort -r); do
		umount -l "$m" 2>/dev/null || fusermount3 -uz "$m" 2>/dev/null
	done
	for mnt in "${!daemons[@]}"; do
		pid=${daemons[$mnt]}
		kill "$pid" 2>/dev/null
		wait_until 10 gone "$pid" || kill -9 "$pid" 2>/dev/null
	done
	for pid in $(jobs -rp); do # what a test that failed hasn't ended: it may keep a mount
		kill "$pid"
		wait_until 5 gone "$pid" || kill -9 "$pid"
	done 2>/dev/null
	if [ $status != 0 ] && [ $status != 77 ]; then
		for log in "$TEST_DIR"/mnt*.log; do
			[ -s "$log" ] || continue
			echo "--- what the daemon of ${log%.log} said last:"
			tail -n 12 "$log"
		done
	fi
	if [ "${own_test_dir:-no}" = yes ] && [ $status = 0 ]; then
		cd /
		rm -rf --one-file-system "$TEST_DIR"
	fi
	exit $status
}
trap cleanup EXIT
trap 'exit 1' INT TERM
trap 'echo "failed: ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND"' ERR
set -o errtrace

fail() {
	trap - ERR
	echo "failed: $*  (${BASH_SOURCE[-1]##*/}:${BASH_LINENO[*]:0:${#BASH_LINENO[@]}-1})"
	exit 1
}

skip() {
	trap - ERR
	echo "skip: $*"
	exit 77
}

need() {
	local command
	for command; do
		command -v "$command" >/dev/null || skip "$command is missing"
	done
}

need_root() {
	[ "$(id -u)" = 0 ] || skip "needs root"
}

say() {
	echo "--- $*"
}

# --- asserting -------------------------------------------------------------------------------------------------------

equal() { # WANT GOT [WHAT]
	[ "$1" = "$2" ] || fail "${3:-value}: want '$1', got '$2'"
}

same() { # FILE FILE [WHAT]: byte for byte
	cmp "$1" "$2" || fail "${3:-$1 and $2 differ}"
}

at_most() { # LIMIT GOT WHAT
	[ "$2" -le "$1" ] || fail "$3: $2, at most $1 wanted"
}

contains() { # TEXT PATTERN(glob) [WHAT]
	# shellcheck disable=SC2053
	[[ $1 == *$2* ]] || fail "${3:-text}: no '$2' in: $1"
}

lists() { # DIR NAME...: exactly these entries, hidden ones not counted
	local dir=$1
	shift
	equal "$(printf '%s\n' "$@" | sort)" "$(find "$dir" -mindepth 1 -maxdepth 1 ! -name '.*' -printf '%f\n' | sort)" "entries of $dir"
}

# The errno's message, as programs print it.
declare -A errno_text=(
	[ENOENT]="No such file or directory" [EEXIST]="File exists" [EINVAL]="Invalid argument" [EROFS]="Read-only file system"
	[EBUSY]="Device or resource busy" [EUCLEAN]="Structure needs cleaning" [EIO]="Input/output error"
	[EOPNOTSUPP]="Operation not supported" [EACCES]="Permission denied" [ENOSPC]="No space left on device"
	[ENOTEMPTY]="Directory not empty" [ENAMETOOLONG]="File name too long" [EPERM]="Operation not permitted"
	[ELOOP]="Too many levels of symbolic links" [ESTALE]="Stale file handle" [ENOTCONN]="Transport endpoint is not connected"
)

refused() { # ERRNO[|ERRNO...] COMMAND...: it fails, and says so
	local want=$1 out name status=0
	shift
	out=$("$@" 2>&1 >/dev/null) || status=$?
	[ $status != 0 ] || fail "'$*' succeeded, $want wanted"
	for name in ${want//|/ }; do
		[[ $out != *"${errno_text[$name]}"* ]] || return 0
	done
	fail "'$*': want $want, got: $out"
}

# --- waiting ---------------------------------------------------------------------------------------------------------

wait_until() { # SECONDS COMMAND...
	local end=$((SECONDS + $1 + 1))
	shift
	until "$@"; do
		[ $SECONDS -le $end ] || return 1
		sleep 0.02
	done
}

gone() { # PID: not there, or dead and only waiting to be reaped
	local state
	state=$(sed 's/.*) \(.\).*/\1/' "/proc/$1/stat" 2>/dev/null) || return 0
	[ "$state" = Z ] || [ -z "$state" ]
}

# --- a mount namespace of one's own ------------------------------------------------------------------------------------

# The rest of the test has mounts that nobody else sees. It mustn't keep those of the tests beside it: their daemons and
# loop devices would go on for as long as it lasts, however often they unmount them.
own_mounts() {
	local mounts m
	need unshare findmnt
	if [ -z "${IN_NAMESPACE:-}" ]; then
		unshare -m true 2>/dev/null || skip "unshare -m isn't allowed here"
		trap - ERR # it has said so already
		export TEST_DIR BUILD SEED
		IN_NAMESPACE=yes unshare -m "$THIS_TEST"
		exit
	fi
	mapfile -t mounts < <(findmnt -rno TARGET,FSTYPE | others_mounts)
	for m in "${mounts[@]}"; do
		timeout 20 umount -l "$(printf %b "$m")" 2>/dev/null || true # it has gone with the one that it lay in
	done
	mapfile -t mounts < <(findmnt -rno TARGET,FSTYPE | others_mounts)
	[ ${#mounts[@]} = 0 ] || fail "mounts of others are kept: ${mounts[*]}"
}

# Of lines "TARGET TYPE": what lies in the directory of a run (scripts/test's, or of a test alone), or is ours, and isn't this test's.
others_mounts() {
	local target type
	while read -r target type; do
		case $target in "$TEST_DIR" | "$TEST_DIR"/*) continue ;; esac
		case $TEST_DIR/:$TOP/:$BUILD/ in "$target"/* | *:"$target"/*) continue ;; esac
		case $target:$type in
		"$(dirname "$TEST_DIR")"/*:* | */vmsnapfs-test.*:* | *:fuse.vmsnapfs) echo "$target" ;;
		esac
	done
}

# --- mounting --------------------------------------------------------------------------------------------------------

is_mounted() { # DIR (absolute)
	grep -qF " $1 " /proc/self/mountinfo
}

absolute() {
	case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac
}

# A daemon answers behind the mount. Not asked by stat(2): the kernel remembers a dead one's attributes for a while.
is_alive() { # MNT
	[ "$(stat -f -c %t "$1" 2>/dev/null)" = 65735546 ]
}

alive_or_gone() { # MNT PID
	is_alive "$1" || gone "$2"
}

# mount_at SOURCE MNT [OPTION...]: starts the daemon in the foreground, waits for the mount. Its messages go to MNT.log,
# its pid to $daemon. A prefix for the command line (setpriv …) is taken from $RUN_AS.
mount_at() {
	local source=$1 mnt
	mnt=$(absolute "$2")
	shift 2
	mkdir -p "$mnt" 2>/dev/null || true # it may be a dead mount
	# shellcheck disable=SC2086
	${RUN_AS:-} "$VMSNAPFS" -f "$@" "$source" "$mnt" >>"$mnt.log" 2>&1 &
	daemon=$!
	daemons[$mnt]=$daemon
	wait_until 30 alive_or_gone "$mnt" "$daemon" || fail "$mnt isn't mounted after 30 s"
	is_alive "$mnt" || fail "the daemon ended instead of mounting: $(cat "$mnt.log")"
}

# The daemon ends at once, in the foreground, and says these words (in capitals or not) instead of mounting.
mount_refused() { # WORDS ARGUMENT...
	local words=$1 out status=0
	shift
	# shellcheck disable=SC2086
	out=$(timeout 20 ${RUN_AS:-} "$VMSNAPFS" -f "$@" 2>&1) || status=$?
	equal 1 $status "status of vmsnapfs $*, which said '$out'"
	contains "${out,,}" "${words,,}" "vmsnapfs $*"
	[[ $out != *Sanitizer* ]] || fail "$out"
}

# Unmounts and waits until the daemon has put everything on disk and ended, which it must do with status 0.
unmount() { # MNT
	local mnt status=0
	mnt=$(absolute "$1")
	wait_until 10 try_unmount "$mnt" || fail "$mnt can't be unmounted"
	wait_until 60 gone "${daemons[$mnt]}" || fail "the daemon of $mnt is still there a minute after the unmount"
	wait "${daemons[$mnt]}" || status=$?
	unset "daemons[$mnt]"
	[ $status = 0 ] || fail "the daemon of $mnt ended with status $status: $(tail -n 5 "$mnt.log")"
}

try_unmount() {
	umount "$1" 2>/dev/null || ${RUN_AS:-} fusermount3 -u "$1" 2>/dev/null || ! is_mounted "$1"
}

# kill -9; the dead mount stays in place.
kill_daemon() { # MNT
	local mnt
	mnt=$(absolute "$1")
	kill -9 "${daemons[$mnt]}" 2>/dev/null || true
	wait "${daemons[$mnt]}" 2>/dev/null || true
	unset "daemons[$mnt]"
}

# The most memory that the daemon has had resident, KiB.
peak_memory() { # MNT
	local mnt
	mnt=$(absolute "$1")
	sed -n 's/^VmHWM:[ \t]*\([0-9]*\) kB/\1/p' "/proc/${daemons[$mnt]}/status"
}

memory_limit_holds() { # MNT: 256 MiB, which says nothing where a sanitizer's shadow is counted
	[ -z "$SAN" ] || return 0
	at_most 262144 "$(peak_memory "$1")" "resident memory of the daemon, KiB"
}

# How often a line of the mount's events holds this text.
events_with() { # MNT TEXT
	grep -cF -- "$2" "$1/events" || true
}

# No work goes on in the background any more.
jobs_done() { # MNT
	[ -z "$(ls "$1/jobs")" ]
}

# --- images ----------------------------------------------------------------------------------------------------------

img() {
	qemu-img "$@" >/dev/null
}

io() { # IMAGE FORMAT COMMAND...: qemu-io commands, which must all succeed
	local image=$1 format=$2 args=() c out
	shift 2
	for c; do args+=(-c "$c"); done
	out=$(qemu-io -t unsafe -f "$format" "${args[@]}" "$image" 2>&1) || fail "qemu-io $image: $out"
	case $out in *[Ff]ailed* | *rror*) fail "qemu-io $image: $out" ;; esac
}

# What an image holds, as a raw file: qemu-img's word for it. The internal snapshot is applied to a copy, because only
# that gives the disk the size it had (convert -l keeps today's).
oracle() { # IMAGE FORMAT OUT [SNAPSHOT]
	local image=$1 format=$2 out=$3 snapshot=${4:-} copy
	if [ -z "$snapshot" ]; then
		qemu-img convert -U -f "$format" -O raw "$image" "$out"
		return
	fi
	copy=$(dirname "$image")/.oracle.$BASHPID
	cp --sparse=always "$image" "$copy"
	if ! qemu-img snapshot -a "$snapshot" "$copy"; then
		rm "$copy"
		return 1
	fi
	qemu-img convert -U -f "$format" -O raw "$copy" "$out"
	rm -f "$copy"
}

# qemu-img check finds no fault: clean, or (with "leaks") leaked clusters at most.
check_image() { # IMAGE [leaks]
	local status=0 out
	out=$(qemu-img check -f qcow2 "$1" 2>&1) || status=$?
	if [ $status = 0 ] || { [ $status = 3 ] && [ "${2:-}" = leaks ]; }; then return 0; fi
	fail "qemu-img check $1 (status $status): $out"
}

# Content, size and time of every file below DIR that vmsnapfs found there; its own store is not looked at.
fingerprint() { # DIR
	(cd "$1" && find . -path ./.vmsnapfs -prune -o -type f -printf '%p %s %T@\n' | sort &&
		find . -path ./.vmsnapfs -prune -o -type f -print0 | sort -z | xargs -0r sha256sum)
}

# Bytes on disk below DIR.
space_of() {
	du -s --block-size=1 "$1" | cut -f1
}

# The store's files of a clone's disk: what its domain.xml names, top first.
domain_source() { # DOMAIN-XML TARGET
	xmllint --xpath "string(/domain/devices/disk[target/@dev='$2']/source/@file)" "$1"
}

# --- libvirt's files ---------------------------------------------------------------------------------------------------

# domain_xml NAME UUID DISK...: a domain as a libvirt host would have it. DISK is TARGET=PATH or TARGET=PATH,FORMAT (qcow2).
domain_xml() {
	local name=$1 uuid=$2 disk target path format mac
	shift 2
	mac=52:54:00:${uuid:0:2}:${uuid:2:2}:${uuid:4:2}
	cat <<END
<domain type='qemu'>
  <name>$name</name>
  <uuid>$uuid</uuid>
  <title>The $name server</title>
  <description>made by a test</description>
  <memory unit='KiB'>262144</memory>
  <currentMemory unit='KiB'>262144</currentMemory>
  <vcpu placement='static'>1</vcpu>
  <sysinfo type='smbios'>
    <system>
      <entry name='uuid'>$uuid</entry>
    </system>
  </sysinfo>
  <os>
    <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>
    <boot dev='hd'/>
    <smbios mode='sysinfo'/>
  </os>
  <features>
    <acpi/>
  </features>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
END
	for disk; do
		target=${disk%%=*}
		path=${disk#*=}
		format=qcow2
		case $path in *,*) format=${path##*,} path=${path%,*} ;; esac
		cat <<END
    <disk type='file' device='disk'>
      <driver name='qemu' type='$format' discard='unmap'/>
      <source file='$path'/>
      <target dev='$target' bus='virtio'/>
      <serial>$name-$target</serial>
    </disk>
END
	done
	cat <<END
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <controller type='sata' index='0'/>
    <interface type='network'>
      <mac address='$mac'/>
      <source network='default'/>
      <target dev='vnet0'/>
      <model type='virtio'/>
    </interface>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/$name/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <graphics type='vnc' port='5901' autoport='no'/>
    <memballoon model='virtio'/>
  </devices>
</domain>
END
}

# snapshot_xml NAME KEY=VALUE... -- DISK...: libvirt's metadata of a snapshot. Keys: parent, state (shutoff), time (seconds),
# active (0 or 1: then it is libvirt's private form), description, memory (no, internal, or a path), domain (a file with
# the <domain> of that moment). DISK is TARGET=internal, TARGET=no or TARGET=external:NEW-OVERLAY.
snapshot_xml() {
	local name=$1 parent="" state=shutoff time=1600000000 active="" description="" memory=no domain="" disk target how
	shift
	while [ "$1" != -- ]; do
		local "${1?}"
		shift
	done
	shift
	echo "<domainsnapshot>"
	echo "  <name>$name</name>"
	[ -z "$description" ] || echo "  <description>$description</description>"
	echo "  <state>$state</state>"
	[ -z "$parent" ] || printf '  <parent>\n    <name>%s</name>\n  </parent>\n' "$parent"
	echo "  <creationTime>$time</creationTime>"
	case $memory in
	/*) echo "  <memory snapshot='external' file='$memory'/>" ;;
	*) echo "  <memory snapshot='$memory'/>" ;;
	esac
	echo "  <disks>"
	for disk; do
		target=${disk%%=*}
		how=${disk#*=}
		case $how in
		external:*)
			echo "    <disk name='$target' snapshot='external' type='file'>"
			echo "      <driver type='qcow2'/>"
			echo "      <source file='${how#external:}'/>"
			echo "    </disk>"
			;;
		*) echo "    <disk name='$target' snapshot='$how'/>" ;;
		esac
	done
	echo "  </disks>"
	[ -z "$domain" ] || sed 's/^/  /' "$domain"
	[ -z "$active" ] || echo "  <active>$active</active>"
	echo "</domainsnapshot>"
}

# A VM as a libvirt host would have it after years: two disks, below DIR, and the snapshots
#   installed  external on both disks
#   patched    internal on both
#   upgraded   vda external, vdb internal (mixed): the current one
# Each snapshot holds patterns of its own; the raw form of every disk is in WANT/SNAPSHOT-TARGET.img, that of the active
# state in WANT/now-TARGET.img.
make_vm() { # DIR NAME WANT
	local dir=$1 name=$2 want=$3 uuid vda vdb p=$1/images
	uuid=$(uuid_of "$name")
	mkdir -p "$dir/images" "$dir/$name" "$want"
	vda=$p/$name-vda vdb=$p/$name-vdb
	img create -f qcow2 "$vda.qcow2" 8M
	img create -f raw "$vdb.img" 5M
	io "$vda.qcow2" qcow2 "write -P 1 0 1M" "write -P 2 3M 64k" "write -P 3 7M 1M"
	io "$vdb.img" raw "write -P 11 0 512k" "write -P 12 4M 4k"

	domain_xml "$name" "$uuid" "vda=$vda.qcow2" "vdb=$vdb.img,raw" >"$dir/$name.then"
	snapshot_xml installed time=1500000000 active=0 state=disk-snapshot domain="$dir/$name.then" \
		description="fresh from the installer" -- "vda=external:$vda.installed" "vdb=external:$vdb.installed" \
		>"$dir/$name/installed.xml"
	oracle "$vda.qcow2" qcow2 "$want/installed-vda.img"
	oracle "$vdb.img" raw "$want/installed-vdb.img"
	img create -f qcow2 -b "$vda.qcow2" -F qcow2 "$vda.installed"
	img create -f qcow2 -b "$vdb.img" -F raw "$vdb.installed"
	io "$vda.installed" qcow2 "write -P 4 512k 1M" "write -z 3M 64k"
	io "$vdb.installed" qcow2 "write -P 13 1M 64k"

	domain_xml "$name" "$uuid" "vda=$vda.installed" "vdb=$vdb.installed" >"$dir/$name.then"
	img snapshot -c patched "$vda.installed"
	img snapshot -c patched "$vdb.installed"
	snapshot_xml patched parent=installed time=1550000000 active=0 domain="$dir/$name.then" -- vda=internal vdb=internal \
		>"$dir/$name/patched.xml"
	oracle "$vda.installed" qcow2 "$want/patched-vda.img"
	oracle "$vdb.installed" qcow2 "$want/patched-vdb.img"
	io "$vda.installed" qcow2 "write -P 5 2M 300k"
	io "$vdb.installed" qcow2 "write -P 14 1M 4k"

	img snapshot -c upgraded "$vdb.installed"
	snapshot_xml upgraded parent=patched time=1600000000 active=1 domain="$dir/$name.then" \
		-- "vda=external:$vda.upgraded" vdb=internal >"$dir/$name/upgraded.xml"
	oracle "$vda.installed" qcow2 "$want/upgraded-vda.img"
	oracle "$vdb.installed" qcow2 "$want/upgraded-vdb.img"
	img create -f qcow2 -b "$vda.installed" -F qcow2 "$vda.upgraded"
	io "$vda.upgraded" qcow2 "write -P 6 0 100k" "discard 7M 1M"
	io "$vdb.installed" qcow2 "write -P 15 0 4k" "write -P 16 5100k 20k"

	domain_xml "$name" "$uuid" "vda=$vda.upgraded" "vdb=$vdb.installed" >"$dir/$name.xml"
	rm "$dir/$name.then"
	oracle "$vda.upgraded" qcow2 "$want/now-vda.img"
	oracle "$vdb.installed" qcow2 "$want/now-vdb.img"
}

# A chain base <- box <- now below DIR, of which the base is compressed, so that jobs take their time; MIB is a multiple of 6, at least 48.
# What box holds is in WANT/box.img.
make_box() { # DIR MIB WANT
	local dir=$1 mib=$2 want=$3
	mkdir -p "$dir" "$want"
	head -c $((mib / 2))M /dev/urandom | base64 -w 0 >"$want/text"
	qemu-img convert -f raw -O qcow2 -c "$want/text" "$dir/base.qcow2"
	rm "$want/text"
	img resize -f qcow2 "$dir/base.qcow2" "${mib}M"
	img create -f qcow2 -b base.qcow2 -F qcow2 "$dir/box.qcow2"
	io "$dir/box.qcow2" qcow2 "write -P 1 1M 3M" "write -P 2 $((mib * 5 / 6))M 4M" "write -z 8M 2M"
	oracle "$dir/box.qcow2" qcow2 "$want/box.img"
	img create -f qcow2 -b box.qcow2 -F qcow2 "$dir/now.qcow2"
}

# A UUID that depends on the name alone.
uuid_of() {
	local h
	h=$(sha256sum <<<"$1")
	echo "${h:0:8}-${h:8:4}-4${h:13:3}-8${h:17:3}-${h:20:12}"
}

# --- chance ------------------------------------------------------------------------------------------------------------

rng=0
rng_seed() {
	rng=$(($1 * 2654435761 + 12345))
	rnd 2 && rnd 2 && rnd 2
}

# Sets $REPLY to one of 0…N-1. Not a subshell, so that the state is kept.
rnd() { # N
	rng=$((rng * 6364136223846793005 + 1442695040888963407))
	REPLY=$((((rng >> 33) & 0x7fffffff) % $1))
}

pick() { # WORD...: one of them into $REPLY
	rnd $#
	shift "$REPLY"
	REPLY=$1
}

chance() { # PERCENT
	rnd 100
	[ "$REPLY" -lt "$1" ]
}
