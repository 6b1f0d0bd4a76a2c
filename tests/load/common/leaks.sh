# What the tests under load share: whether the daemon keeps what it should have given back. Sourced instead of lib.sh.
# shellcheck shell=bash disable=SC2034,SC2154
# shellcheck source=tests/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../lib.sh"

NIGHTLY=${NIGHTLY:-}
# Each of glibc's arenas fills by itself, whatever thread comes to it: for many rounds that looks like a leak.
export MALLOC_ARENA_MAX=1

# What the daemon of mnt holds: descriptors, threads, mappings, KiB resident.
usage() {
	local proc=/proc/$daemon
	echo "$(find "$proc/fd" -mindepth 1 | wc -l)" "$(find "$proc/task" -mindepth 1 -maxdepth 1 | wc -l)" "$(wc -l <"$proc/maps")" \
		"$(sed -n 's/^VmRSS:[ \t]*\([0-9]*\) kB/\1/p' "$proc/status")"
}

# Caches fill up and threads come and go: so much more is no leak yet. A test whose rounds are small or large says otherwise.
FDS_MORE=8
THREADS_MORE=4
MAPS_MORE=64
KIB_MORE=16384

# Taken after a round or two, when the caches are warm.
start_usage() {
	read -r fds_then threads_then maps_then kib_then < <(usage)
	say "descriptors $fds_then, threads $threads_then, mappings $maps_then, KiB $kib_then"
}

is_back() {
	read -r fds threads maps kib < <(usage)
	# Threads that have come for a while go when there is something to do.
	stat -f "$PWD/mnt" >/dev/null
	[ "$fds" -le $((fds_then + FDS_MORE)) ] && [ "$threads" -le $((threads_then + THREADS_MORE)) ] &&
		{ [ -n "$SAN" ] || { [ "$maps" -le $((maps_then + MAPS_MORE)) ] && [ "$kib" -le $((kib_then + KIB_MORE)) ]; }; }
}

# COMMAND again and again, after once to warm up: the daemon doesn't hold more and more.
leaks_nothing() { # ROUNDS COMMAND...
	local i rounds=$1
	shift
	"$@"
	start_usage
	for ((i = 0; i < rounds; i++)); do
		"$@"
		usage_is_back
	done
}

# Within a minute the daemon holds about what it held at start_usage.
usage_is_back() {
	local fds=0 threads=0 maps=0 kib=0
	if ! wait_until 60 is_back; then
		fail "a leak? descriptors $fds_then, threads $threads_then, mappings $maps_then, KiB $kib_then became $fds, $threads, $maps, $kib"
	fi
	say "descriptors $fds, threads $threads, mappings $maps, KiB $kib"
}
