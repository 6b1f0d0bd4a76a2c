#!/usr/bin/env bash
# scripts/watch-jobs: lines, bars on a terminal, its end, and how it finds the mount.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-io script findmnt

watch=$TOP/scripts/watch-jobs

# The details with jobs that stand still: a directory that looks like a mount.
job() { # NAME PERCENT
	cat >still/tmp <<-END
		kind: copy into the clone
		vm: $1
		disk: vda.img
		progress: $2/100 bytes ($2 %)
		rate: 210.3 MiB/s
		time left: $((100 - $2)) s
	END
	mv still/tmp "still/jobs/$1"
}

waits() { # NAME SECONDS
	printf 'kind: copy into the clone\nvm: %s\ndisk: vda.img\nstate: failed (No space left on device), next attempt in %d s\n' "$1" "$2" >still/tmp
	mv still/tmp "still/jobs/$1"
}

said() { # FILE TEXT
	grep -qF -- "$2" "$1"
}

expect() { # FILE TEXT
	wait_until 20 said "$1" "$2" || fail "'$2' isn't said: $(cat -v "$1")"
}

say "lines"
mkdir -p still/jobs
equal "" "$("$watch" still)" "what is said without a job"
job web 20
waits db 30
"$watch" -n 0.02 still >lines &
pid=$!
expect lines "web vda.img: copy into the clone: 20 %, 210.3 MiB/s, 1:20 min left"
expect lines "db vda.img: copy into the clone: failed (No space left on device), next attempt in 30 s"
waits db 29
job web 22
job web 58
expect lines "web vda.img: copy into the clone: 58 %, 210.3 MiB/s, 42 s left"
rm still/jobs/web
expect lines "web vda.img: copy into the clone: ended after"
job db 99
expect lines "db vda.img: copy into the clone: 99 %"
rm still/jobs/db
wait $pid || fail "ended with $?"
equal 6 "$(wc -l <lines)" "lines said"

say "bars"
job web 50
waits db 30
job "a	tab and $(printf '\033')[31m colour" 0
script -qefc "stty rows 24 cols 80; exec '$watch' -n 0.02 still" /dev/null </dev/null >bars &
pid=$!
expect bars "web vda.img  [############------------]  50 %, 210.3 MiB/s, 50 s left"
expect bars "db vda.img  failed (No space left on device)"
expect bars "a?tab and ?[31m colour vda.img"
job web 100
expect bars "web vda.img  [########################] 100 %"
rm still/jobs/*
wait $pid || fail "ended with $?"
expect bars "web vda.img: copy into the clone: ended after"
for i in {10..40}; do job "vm$i" 50; done
script -qefc "stty rows 10 cols 30; exec '$watch' -n 0.02 still" /dev/null </dev/null >bars &
pid=$!
expect bars "... and 23 more"
rm still/jobs/*
wait $pid || fail "ended with $?"
tr '\r' '\n' <bars | grep -v ended | sed 's,\x1b\[[0-9]*[A-Z],,g' | awk 'length > 29 {exit 1}' || fail "lines that are wider than the terminal"

say "a mount that goes away, none, two; bad arguments"
job web 20
"$watch" -f -n 0.02 still >lines 2>err &
pid=$!
expect lines "web vda.img"
rm -r still/jobs
wait $pid && fail "it didn't notice"
contains "$(cat err)" "still is mounted no more"
for bad in "-n x" "-s 1000" "-x" "a b"; do
	# shellcheck disable=SC2086
	"$watch" $bad >/dev/null 2>err && fail "$bad is accepted"
	contains "$(cat err)" "usage: "
done
"$watch" still 2>err && fail "a directory that is no mount is accepted"
contains "$(cat err)" "isn't a mount point"
# Other tests have mounts, too.
mkdir bin
cat >bin/findmnt <<END
#!/bin/sh
$(command -v findmnt) "\$@" | grep -F '$PWD'
END
chmod +x bin/findmnt
PATH=$PWD/bin:$PATH "$watch" 2>err && fail "a mount is found where none is"
contains "$(cat err)" "isn't mounted anywhere"

say "a real one"
mkdir src
img create -f qcow2 src/box.qcow2 256M
io src/box.qcow2 qcow2 "write -P 1 0 40M" "write -P 2 100M 100M"
img snapshot -c one src/box.qcow2
mount_at src "mnt with a space"
mkdir "mnt with a space/clones/box@one/clone"
PATH=$PWD/bin:$PATH "$watch" -s 0 >lines
jobs_done "mnt with a space" || fail "it ended before the job"
while read -r line; do
	[[ $line =~ ^clone\ vda\.img:\ copy\ of\ .*:\ ([0-9]+\ %|waiting|ended\ after) ]] || fail "a line: $line"
done <lines
mkdir src2
mount_at src2 mnt2
PATH=$PWD/bin:$PATH "$watch" 2>err && fail "one of two is taken"
contains "$(cat err)" "more than once"
unmount mnt2
unmount "mnt with a space"
