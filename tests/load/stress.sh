#!/usr/bin/env bash
# stress-ng's stressors for files and directories, on a filesystem that lies on a disk of a clone, while snapshots of it are taken.       limit: 120  nightly: 900
# shellcheck source=tests/load/common/leaks.sh
. "$(dirname "$0")/common/leaks.sh"
need stress-ng mkfs.ext4 e2fsck
need_root

seconds=8
[ -z "$NIGHTLY" ] || seconds=300
mkdir src fs
mount_at src mnt -o index=8M
mkdir mnt/clones/vm
truncate -s 512M mnt/clones/vm/disks/vda.img
mkfs.ext4 -q -F mnt/clones/vm/disks/vda.img
mount -o loop mnt/clones/vm/disks/vda.img fs
start_usage
stress-ng --temp-path "$PWD/fs" --timeout ${seconds}s --verify --hdd 1 --hdd-bytes 32M --iomix 1 --iomix-bytes 32M --seek 1 --seek-size 16M \
	--sync-file 1 --sync-file-bytes 16M --fallocate 1 --fallocate-bytes 32M --rename 1 --dentry 1 --dentries 200 --copy-file 1 --copy-file-bytes 128M >stress.log 2>&1 &
stress=$!
i=0
until gone $stress; do
	mkdir mnt/clones/vm/snapshots/$i
	[ $i -lt 3 ] || rmdir mnt/clones/vm/snapshots/$((i - 3))
	i=$((i + 1))
	sleep 0.5
done
wait $stress || fail "stress-ng: $(tail -n 20 stress.log)"
umount fs
e2fsck -fn mnt/clones/vm/disks/vda.img >/dev/null || fail "the filesystem is damaged"
wait_until 120 jobs_done mnt || fail "jobs don't end"
KIB_MORE=65536 # the threads' buffers, 2 MiB each, the disk's tables, the index: after five minutes it grows no more
usage_is_back
unmount mnt
for layer in src/.vmsnapfs/layers/*.qcow2; do check_image "$layer"; done
