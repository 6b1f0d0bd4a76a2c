#!/usr/bin/env bash
# Hostile names - of files, VMs, disks, snapshots and tags, in SOURCE, in a pool and by mkdir: control characters, newlines, escape
# sequences, marks that turn the direction, .., 255 bytes and more, what isn't UTF-8, dots and dashes in front, and our own names.
# limit: 240
# shellcheck disable=SC2016 source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img xmllint python3

src=$PWD/src
mkdir "$src" pool want
make_vm "$src" good want
img create -f qcow2 template 1M
x200=$(printf 'x%.0s' {1..200})
names=(
	$'new\nline' $'escape\e[2J\e]0;title\a' $'c1\xc2\x9b31mred' $'turned\xe2\x80\xaegpj' $'isolated\xe2\x81\xa6x' $'separated\xe2\x80\xa8line' $'tab\tbed' $'return\rback'
	$'not-utf8-\xff\xfe' $'overlong-\xc0\xaf' $'surrogate-\xed\xa0\x80' -rf --help '-o allow_other' ..hidden '...' ' ' 'a: b' "quote'\"<&>" '%s%n%s' '$(touch pwned)' '`touch pwned`'
	events README.txt domain.xml snapshots disks current jobs "$x200" "$x200${x200:0:49}" 'web@x' 'NUL' '~2' 'Büro 東京 😀' $'\u200d'
)
nr=0
for name in "${names[@]}"; do
	cp template "$src/$name.qcow2"
	cp template "pool/$name.raw"
	# A raw file whose backing name can't be followed says its own name in the events.
	img create -u -f qcow2 -F raw -b "$PWD/outside/$name" "$src/bad-${name:0:200}" 1M 2>/dev/null || true
	nr=$((nr + 1))
done
# As the names of VMs, disks and snapshots, and as tags. XML can't have all of them.
python3 - "$src" "${names[@]}" <<'END'
import re, sys, xml.sax.saxutils as sax
src, names = sys.argv[1], sys.argv[2:]
good = open(src + "/good.xml").read()
extra = ["..", ".", "../../../etc", "/", "/etc/passwd", "a/b", "x" * 5000, "\u202e" * 300, "\n\n\n"]
for i, name in enumerate(names + extra):
    text = "".join(c if c in "\t\n\r" or (c >= " " and not 0xd800 <= ord(c) <= 0xdfff) else "?" for c in name)
    q = sax.escape(text).replace("\n", "&#10;").replace("\r", "&#13;")
    xml = good.replace("<name>good<", "<name>%s<" % q)
    xml = xml.replace("<target dev='vdb'", "<target dev=%s" % sax.quoteattr(text))
    xml = re.sub("<uuid>[^<]*", "<uuid>00000000-0000-4000-8000-%012d" % i, xml)
    open("%s/named%d.xml" % (src, i), "w").write(xml)
    snapshot = open(src + "/good/installed.xml").read()
    open("%s/good/named%d.xml" % (src, i), "w").write(snapshot.replace("<name>installed<", "<name>%s<" % q, 1))
END
cp template "$src/good.qcow2"
for tag in $'tag\e[31m' $'tag\nline' $'tag\xe2\x80\xaex' '../../tag' '-rf' "$x200"; do
	qemu-img snapshot -c "$tag" "$src/good.qcow2"
done
fingerprint "$src" >before

mount_at "$src" mnt -o "pool=p:$PWD/pool"
timeout 100 ls -lR mnt >listing || fail "ls -lR: status $?"
cat mnt/vms/*/disks/* mnt/vms/*/snapshots/*/domain.xml mnt/vms/*/snapshots/*/snapshot.xml mnt/vms/*/status >/dev/null 2>&1 || true

say "what the mount shows"
python3 - mnt "$nr" <<'END'
import os, sys
top, nr = os.fsencode(sys.argv[1]), int(sys.argv[2])
seen = 0
for at, dirs, files in os.walk(top):
    depth = at.count(b"/")
    assert depth < 8, at
    for name in dirs + files:
        seen += 1
        text = name.decode()  # UTF-8, or this fails
        assert 0 < len(name) <= 255 and "/" not in text, name
        assert text not in (".", ".."), name
        assert all(c >= " " and not "\x7f" <= c < "\xa0" for c in text), name
vms = os.listdir(top + b"/vms")
assert len(vms) > nr, (len(vms), nr)
assert all(not n.startswith(b".") for n in vms), vms
print(seen, "names,", len(vms), "VMs")
END
[ -z "$(find . -name pwned)" ] || fail "a name was executed"

say "mkdir, mv, actions"
for name in $'new\nline' $'escape\e[2J' $'c1\xc2\x9b31m' $'not-utf8-\xff' .hidden; do
	refused EINVAL mkdir "mnt/clones/$name"
	refused EINVAL mkdir "mnt/clones/good@installed/$name"
done
refused "EINVAL|ENAMETOOLONG" mkdir "mnt/clones/$x200$x200"
mkdir mnt/clones/good@installed/vm
for name in -rf "quote'\"<&>" $'turned\xe2\x80\xaegpj' '%s%n%s' "$x200${x200:0:55}"; do
	mv -- mnt/clones/vm "mnt/clones/$name" || fail "mv to $name"
	xmllint --noout "mnt/clones/$name/domain.xml"
	equal "$name" "$(xmllint --xpath 'string(/domain/name)' "mnt/clones/$name/domain.xml")" "name in domain.xml"
	mkdir "mnt/clones/$name/snapshots/$name"
	xmllint --noout "mnt/clones/$name/snapshots/$name/snapshot.xml"
	equal "$name" "$(xmllint --xpath 'string(/domainsnapshot/name)' "mnt/clones/$name/snapshots/$name/snapshot.xml")" "name in snapshot.xml"
	rmdir "mnt/clones/$name/snapshots/$name"
	mv -- "mnt/clones/$name" mnt/clones/vm
done
for text in $'na\eme' '../../x' '"a/b"' "\"$x200$x200\"" $'\xff'; do
	refused "EINVAL|ENAMETOOLONG|ENOENT|EPERM" tee mnt/clones/vm/actions/snapshot <<<"$text x y z"
	refused "EINVAL|ENAMETOOLONG|ENOENT|EPERM" tee mnt/clones/vm/actions/delete <<<"$text"
	refused "EINVAL|ENAMETOOLONG|ENOENT|EPERM" tee mnt/vms/good/actions/clone <<<"installed $text"
done
lists mnt/clones/vm/snapshots
lists mnt/clones vm

say "events are lines, and nothing in them moves a cursor or turns a line"
python3 - mnt/events "$src/.vmsnapfs/events.log" <<'END'
import re, sys
for path in sys.argv[1:]:
    data = open(path, "rb").read()
    assert data.count(b"\n") > 20 and data.endswith(b"\n")
    for line in data[:-1].split(b"\n"):
        text = line.decode()
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ .", text), line
        assert all(c >= " " and not "\x7f" <= c < "\xa0" for c in text), line
        assert not re.search("[\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]", text), line
    print(path, data.count(b"\n"), "lines")
END
unmount mnt
fingerprint "$src" >after
same before after "the sources"
