#!/bin/bash
# Images with a broken bitmap that QEMU does not open any more, or not for
# writing.  nbdelta serves and writes them, and says what is wrong.  Once the
# bitmap is removed or repaired, QEMU takes the images again.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io jq

# Break the directory entry of the first bitmap of $1: at byte $2 of it, the
# hexadecimal bytes $3; "table" for the bytes of its table.
break_bitmap() {
    python - "$@" <<'END'
import struct
import sys
path, where, data = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
with open(path, 'r+b') as f:
    head = f.read(4096)
    at, = struct.unpack_from('>L', head, 100)
    while struct.unpack_from('>L', head, at)[0] != 0x23852875:
        at += 8 + (struct.unpack_from('>L', head, at + 4)[0] + 7) // 8 * 8
    entry, = struct.unpack_from('>Q', head, at + 24)
    if where == 'table':
        f.seek(entry)
        f.seek(struct.unpack('>Q', f.read(8))[0])
    else:
        f.seek(entry + int(where))
    f.write(data)
END
}

make() {
    rm -f disk.qcow2
    nbdelta create disk.qcow2 64M
    nbdelta bitmap add disk.qcow2 other
    nbdelta bitmap add disk.qcow2 first
}

# $1: a part of the reason, $2: what QEMU does ("refuses" to open the image,
# "drops" the bitmap from use, "trusts" what we do not), $3...: how it is broken
way() {
    local why=$1 qemu=$2 verb rc
    shift 2
    for verb in remove repair; do
        make
        name=$(nbdelta bitmap list --output json disk.qcow2 | jq -r '.[0].name')
        break_bitmap disk.qcow2 "$@"
        cp disk.qcow2 theirs.qcow2
        rc=0
        qemu-io -f qcow2 -c 'write -q 0 64k' theirs.qcow2 >qemu.out 2>&1 ||
            rc=$?
        case $qemu in
        refuses) [ "$rc" -ne 0 ] || fail "$why: QEMU does open it" ;;
        *) [ "$rc" -eq 0 ] || fail "$why: QEMU says $(cat qemu.out)" ;;
        esac

        serve disk0=disk.qcow2
        qmp query-named-block-nodes | jq -r '.[] |
            select(."node-name" == "disk0") | ."dirty-bitmaps"[] |
            ."inconsistent-reason" // empty' >reason
        grep -qF "$why" reason || fail "$why: we say $(cat reason)"
        qemu-io -f raw -c 'write -q -P 5 1M 64k' "$(uri_of disk0)"
        stop_server
        rc=0
        nbdelta bitmap list disk.qcow2 >listed || rc=$?
        [ "$rc" -eq 4 ] || fail "$why: list ends with $rc"
        nbdelta bitmap $verb disk.qcow2 "$name" >/dev/null
        nbdelta bitmap list disk.qcow2 >listed ||
            fail "$why, after $verb: $(cat listed)"

        rc=0
        qemu-img check -q disk.qcow2 >check.out 2>&1 || rc=$?
        [ "$rc" -eq 0 ] || [ "$rc" -eq 3 ] || fail "$why: $(cat check.out)"
        qemu-io -f qcow2 -c 'read -q -P 5 1M 64k' -c 'write -q 2M 64k' \
            disk.qcow2
        [ "$(qemu-img info --output=json disk.qcow2 | jq -c '
            [."format-specific".data.bitmaps[].flags] | unique')" = \
            '[["auto"]]' ] || fail "$why: QEMU does not use the bitmaps"
    done
}

way 'unknown flags' refuses 12 0000000a
way 'unknown type' refuses 16 02
way 'granularity is out of range' refuses 17 08
way 'granularity is out of range' refuses 17 20
way 'marked as in use' drops 12 00000003
way 'table is of the wrong size' refuses 8 00000000
way 'table is outside of the file' trusts 0 0000010000000000
way 'table is outside of the file' refuses 0 0000000000050200
way 'table has bad entries' refuses table 0000000000000002
way 'table has bad entries' refuses table 0000000000050200
