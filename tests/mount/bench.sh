#!/usr/bin/env bash
# scripts/bench runs, and writes down what it measured. How much that was is no test's business.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
need qemu-img qemu-storage-daemon fio python3

"$TOP/scripts/bench" --no-build --quick --pairs 1 --depths "1 8" --vmsnapfs "$VMSNAPFS" --dir "$PWD/kept" --tmpfs "$PWD" \
	--json bench.json --svg bench.svg open clone snapshot full

python3 - <<'PY'
import json
bench = json.load(open("bench.json", encoding="utf-8"))
measured = {(line["line"], line["depth"]): line["systems"] for line in bench["lines"]}
for line in "open", "start", "clone":
    for depth in 1, 8:
        for system in "us", "qemu":
            assert measured[line, depth][system]["median"] > 0, (line, depth, system)
for kind in "qcow2", "raw":
    for depth in 1, 64:
        for system in "us", "qemu":
            assert measured["full-" + kind, depth][system]["median"] > 0, (kind, depth, system)
for depth in 10, 50:
    for system in "us", "internal", "external":
        assert measured["snapshot", depth][system]["median"] > 0, (depth, system)
assert measured["snapshot-stall", 0]["us"]["median"] > 0
assert all(row["against"] for row in bench["table"] if row["ratio"])
PY
[ -z "$(ls -d vmsnapfs-bench.* 2>/dev/null)" ] || fail "it leaves its images"
