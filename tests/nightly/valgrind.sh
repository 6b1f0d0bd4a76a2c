#!/usr/bin/env bash
# A short session of everything, and valgrind finds nothing: no byte read that wasn't written, none kept that nobody knows.
# limit: 600
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need valgrind qemu-img qemu-io
[ -z "$SAN" ] || fail "a sanitizer is in the daemon already"

# Older valgrinds don't know openat2(2).
cat >openat2.c <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <sys/syscall.h>
long syscall(long nr, ...)
{
	va_list ap;
	long arg[6];
	va_start(ap, nr);
	for (int i = 0; i < 6; i++)
		arg[i] = va_arg(ap, long);
	va_end(ap);
	const struct open_how *how = (const void *)arg[2];
	if (nr == SYS_openat2)
		return openat((int)arg[0], (const char *)arg[1], (int)how->flags, (mode_t)how->mode);
	long (*real)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	return real(nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
}
END
${CC:-gcc} -shared -fPIC -o openat2.so openat2.c

src=$PWD/src
make_vm "$src" web want
RUN_AS="env LD_PRELOAD=$PWD/openat2.so valgrind -q --leak-check=full --errors-for-leak-kinds=definite,indirect --error-exitcode=99 --log-file=$PWD/valgrind.log" mount_at src mnt
ls -lR mnt >/dev/null
for s in installed patched upgraded; do
	same mnt/vms/web/snapshots/$s/disks/vda.img want/$s-vda.img
	same mnt/vms/web/snapshots/$s/disks/vdb.img want/$s-vdb.img
done
mkdir mnt/clones/web@patched/vm
"$FSX" -s "$SEED" -n 300 -b 512 -m model mnt/clones/vm/disks/vda.img
mkdir mnt/clones/vm/snapshots/s
echo "s description=two words" >mnt/clones/vm/actions/snapshot 2>/dev/null || true # it exists
echo "nonsense" >mnt/clones/vm/actions/delete 2>/dev/null || true
dd if=want/installed-vda.img of=mnt/clones/vm/disks/vda.img conv=notrunc,fsync status=none
ln -sfn snapshots/s mnt/clones/vm/current
same model mnt/clones/vm/disks/vda.img
cat mnt/clones/vm/status mnt/clones/vm/domain.xml mnt/events mnt/vms/web/snapshots/*/snapshot.xml >/dev/null
getfattr -dm- -R mnt/clones/vm >/dev/null 2>&1 || true
cp -r mnt/vms/web/snapshots/installed mnt/clones/copy
rm -r mnt/clones/copy
rmdir mnt/clones/vm/snapshots/*
wait_until 60 jobs_done mnt
pid=$daemon
try_unmount "$PWD/mnt"
wait_until 60 gone "$pid" || fail "it doesn't end"
status=0
wait "$pid" || status=$?
unset "daemons[$PWD/mnt]"
equal 0 "$status" "exit status"
[ ! -s valgrind.log ] || fail "$(head -n 60 valgrind.log)"
