#!/bin/bash
# nbdelta-formats(5) tells of the files that a run, a verification and a prune
# write: all of them, all members of each, and no others; and its rules for
# hashes are the ones that nbdelta keeps to.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

page=$SRCDIR/man/nbdelta-formats.5
make_point=$BUILD/tests/func/make-point

# The names that the page describes in a section, as tags.
tags() {
    awk -v section="$1" '/^\.SS / { on = $0 == ".SS " section; next }
        /^\.SH / { on = 0 }
        on && tag { print; tag = 0; next }
        on && /^\.TP/ { tag = 1 }' "$page" |
        sed -e 's/^\.BR* //' -e 's/" *, *"/\n/g' -e 's/\\-/-/g' | tr -d ' ' |
        sort
}

keys() {
    jq -r 'keys[]' "$@" | sort -u
}

same() {
    diff <(tags "$1") "$2" || fail "$1: the page <, what is written >"
}

# Files of all kinds.
export TZ=UTC
truncate -s 3M one.raw
cp one.raw two.raw
qemu-io -f raw -c 'write -P 1 0 1M' one.raw >out
qemu-io -f raw -c 'write -P 2 64k 64k' -c 'write -P 3 2M 64k' two.raw >out
cp one.raw zero.raw
"$make_point" dir 20261101T023000Z one.raw
"$make_point" dir 20261102T023000Z two.raw one.raw
"$make_point" dir 20261103T023000Z zero.raw two.raw
chmod 600 dir/vda/* # as only nbdelta itself makes them
qemu-img create -q -f qcow2 disk.qcow2 1M
nbdelta backup disk.qcow2 dir
cp dir/vda/20261101T023000Z.sums saved
printf x | dd of=dir/vda/20261101T023000Z.sums bs=1 seek=30 conv=notrunc \
    status=none
nbdelta verify --quick dir >out 2>&1 && fail 'no damage was found'
cp saved dir/vda/20261101T023000Z.sums
cp dir/20261101T023000Z.verified verified.json
nbdelta verify dir
FAULTY=step:12:0 "$BUILD/tests/func/faulty" prune --keep-last 2 dir \
    >out 2>&1 && fail 'the prune was not killed'
[ -e dir/prune.json ] || fail 'there is no journal'

# Members.
keys dir/nbdelta.json >found
same nbdelta.json found
{
    keys dir/*Z.json
    jq -r '.disks[] | keys[]' dir/*Z.json
} | sort -u >found
# Both have a name.
same 'The manifest: POINT.json' <(sort found <(echo name))
{
    keys verified.json
} >found
same POINT.verified found
for word in $(jq -r '.damage[0] | keys[]' verified.json); do
    grep -qE "^\.BR? .*\b$word\b" "$page" || fail "no '$word' in the page"
done
keys dir/prune.json >found
same prune.json found

# Words.
for word in full increment compared $(
    sed -n 's/^ *\[REASON_[A-Z_]*\] = "\([a-z-]*\)".*/\1/p' \
        "$SRCDIR/server/store/manifest.c"); do
    grep -qE "^\.BR? ${word//-/\\\\-}( |$)" "$page" ||
        fail "no '$word' in the page"
done

# Files, and their modes.
find dir -mindepth 1 -printf '%y%m %P\n' |
    sed -e 's/[0-9]\{8\}T[0-9]\{6\}Z/POINT/' -e 's/ [^/]*\// DISK\//' |
    sort -u >found
sed -e 's/\\f[IP]//g' "$page" >plain
while read -r what file; do
    case $what:$file in
    d700:[a-z]*) continue ;;
    f600:tmp.*) continue ;;
    f600:*) ;;
    *) fail "$what $file" ;;
    esac
    grep -q "^DIR/${file//./\\.} " plain ||
        fail "no '$file' in the page"
done <found
grep -q 'DISK/POINT.sums' found || fail "$(cat found)"

# Hashes, by the page.
nbdelta prune --keep-last 9 dir
python - dir <<'END'
import glob, hashlib, json, os, re, struct, subprocess, sys
for path in glob.glob(sys.argv[1] + "/*Z.json"):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    m = json.loads(text)
    own = m.pop("sha256")
    plain = json.dumps(m, indent=2, ensure_ascii=False)
    assert hashlib.sha256(plain.encode()).hexdigest() == own, path
    assert json.dumps({**m, "sha256": own}, indent=2,
                      ensure_ascii=False) + "\n" == text, path
    for d in m["disks"]:
        base = f"{sys.argv[1]}/{d['name']}/{m['name']}"
        with open(base + ".sums", "rb") as f:
            sums = f.read()
        assert hashlib.sha256(sums).hexdigest() == d["sums"]
        assert sums.startswith(b"nbdelta-sums 1\n")
        size, count = struct.unpack(">QQ", sums[15:31])
        assert size == d["size"] and len(sums) == 31 + 40 * count
        entries = {struct.unpack(">Q", sums[i:i + 8])[0]: sums[i + 8:i + 40]
                   for i in range(31, len(sums), 40)}
        assert sorted(entries) == list(entries)
        # What the image itself decides, and the bytes of the disk.
        image = json.loads(subprocess.run(
            ["qemu-img", "map", "--output", "json", base + ".qcow2"],
            check=True, capture_output=True).stdout)
        subprocess.run(["qemu-img", "convert", "-O", "raw", base + ".qcow2",
                        "whole.raw"], check=True)
        with open("whole.raw", "rb") as f:
            disk = f.read(size)
        own_chunks = {c for e in image if e["depth"] == 0 and
                      (e["present"] or not d["parent"])
                      for c in range(e["start"] >> 16,
                                     -(-(e["start"] + e["length"]) >> 16))}
        for unit in range(-(-size >> 20)):
            records, data = b"", False
            for i in range(16):
                c = unit * 16 + i
                chunk = disk[c << 16:(c + 1) << 16]
                if not chunk or not (c in own_chunks or not d["parent"]):
                    continue
                if any(chunk):
                    data = True
                    records += struct.pack(">II", i, 1)
                    records += hashlib.sha256(chunk).digest()
                else:
                    records += struct.pack(">II", i, 2) + bytes(32)
            if records and (data or d["parent"]):
                assert entries.pop(unit, None) == hashlib.sha256(
                    records).digest(), (base, unit)
        assert not entries, (base, entries)
END
