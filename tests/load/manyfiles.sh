#!/usr/bin/env bash
# Ten thousand files of the mount open at once, by one program; and a daemon that has too few descriptors for it: who comes then gets EMFILE, an
# event says so, and everything goes on as soon as some are closed.       limit: 120  nightly: 600
# shellcheck source=tests/load/common/leaks.sh
. "$(dirname "$0")/common/leaks.sh"
need qemu-img qemu-io python3

rounds=2 files=10000
[ -z "$NIGHTLY" ] || rounds=10
src=$PWD/src
make_vm "$src" web want
mount_at src mnt
for i in {1..40}; do mkdir "mnt/clones/web@patched/c$i"; done

# Opens FILES files, disks of clones and of snapshots, texts and directories, reads from each, and closes them in another order.
cat >opener.py <<'END'
import errno, os, random, resource, sys
files, some = int(sys.argv[1]), sys.argv[2] == "some"
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, files + 100), hard))
paths = []
for i in range(1, 41):
    paths += [f"mnt/clones/c{i}/{name}" for name in ("disks/vda.img", "disks/vdb.img", "domain.xml", "status", "disks")]
for s in ("installed", "patched", "upgraded"):
    paths += [f"mnt/vms/web/snapshots/{s}/{name}" for name in ("disks/vda.img", "disks/vdb.img", "snapshot.xml")]
want = {p: open(p, "rb").read(4096) for p in paths if not os.path.isdir(p)}
fds, refused = [], 0
for i in range(files):
    path = paths[i % len(paths)]
    try:
        fds.append((path, os.open(path, os.O_RDWR if "c" in path and path.endswith(".img") and "clones" in path and i % 3 == 0 else os.O_RDONLY)))
    except OSError as e:
        if not some or e.errno != errno.EMFILE:
            raise
        refused += 1
for path, fd in fds:
    if path in want and not path.endswith("status"):
        assert os.pread(fd, 4096, 0) == want[path], path
random.shuffle(fds)
for path, fd in fds:
    os.close(fd)
print(f"{len(fds)} open, {refused} refused")
END

[ "$(ulimit -Hn)" -gt $((files + 100)) ] || files=$(($(ulimit -Hn) - 200))
leaks_nothing $rounds python3 opener.py "$files" all
unmount mnt

say "a daemon with few descriptors"
# shellcheck disable=SC2016
RUN_AS="prlimit --nofile=100" mount_at src mnt
python3 opener.py 600 some
python3 opener.py 600 some
[ "$(events_with mnt "Too many open files")" -gt 0 ] || fail "no event says why a file was not opened"
for s in installed patched upgraded; do same mnt/vms/web/snapshots/$s/disks/vda.img want/$s-vda.img; done
mkdir mnt/clones/web@installed/after
same mnt/clones/after/disks/vda.img want/installed-vda.img
unmount mnt
for layer in src/.vmsnapfs/layers/*.qcow2; do check_image "$layer"; done
