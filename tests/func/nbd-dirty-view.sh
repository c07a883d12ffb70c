#!/bin/bash
# The export NAME@dirty=BITMAP: what is dirty in the bitmap is data, everything
# else is a hole.  nbdcopy, which knows nothing of bitmaps, makes an increment
# from it.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo nbdcopy qemu-io qemu-img qemu-nbd jq

guest() {
    qemu-io -f raw "$@" "$(uri_of vda)" >/dev/null
}
runs() {
    nbdinfo --map --json "$(uri_of "$1")" |
        jq -c '[.[] | select(.type == 0) | [.offset, .length]]'
}
absent() {
    if nbdcopy "$(uri_of "$1")" null: 2>err; then
        fail "$1 is there"
    fi
    grep -qF "server has no export named '$1'" err || fail "$(cat err)"
}

qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-io -f qcow2 -c 'write -P 1 0 32M' disk.qcow2 >/dev/null
serve vda=disk.qcow2
qmp block-dirty-bitmap-add node=vda name=b0 persistent=true >/dev/null
qmp drive-backup device=vda sync=full format=qcow2 target="$PWD/full.qcow2" \
    --wait >/dev/null
qmp block-dirty-bitmap-clear node=vda name=b0 >/dev/null
guest -c 'write -P 2 1M 64k' -c 'write -P 3 10000001 77' -c 'write -z 20M 1M' \
    -c 'discard 30M 64k' -c 'write -P 4 63M 1M'

# In no list, with a context of its own, read-only, and for one connection.
[ "$(nbdinfo --list --json "$uri" | jq -c '[.exports[]."export-name"]')" = \
    '["vda"]' ]
want='[[1048576,65536],[9961472,65536],[20971520,1048576],[31457280,65536],[66060288,1048576]]'
[ "$(runs vda@dirty=b0)" = "$want" ] || fail "$(runs vda@dirty=b0)"
[ "$(runs @dirty=b0)" = "$want" ] || fail "not for the default export"
nbdinfo --json "$(uri_of vda@dirty=b0)" | jq -e '.exports[0] |
    .contexts == ["base:allocation"] and .is_read_only and
    (.can_multi_conn | not) and ."export-size" == 67108864' >/dev/null
absent vda@dirty=b1
absent vdb@dirty=b0
absent vda@dirty=

# An increment: an overlay on the last backup that gets just the data.
qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 inc.qcow2
qemu-nbd -t -k "$PWD/inc.sock" --pid-file="$PWD/inc.pid" -f qcow2 inc.qcow2 &
target=$!
wait_until "qemu-nbd is ready" test -s inc.pid
nbdcopy --destination-is-zero -S 0 "$(uri_of vda@dirty=b0)" \
    "nbd+unix:///?socket=$PWD/inc.sock"
kill "$target"
wait "$target" || true
qemu-img check -q inc.qcow2
# nbdcopy reads 256 KiB at once, and so copies a little more than is dirty.
[ "$(qemu-img map --output=json inc.qcow2 |
    jq 'map(select(.depth == 0) | .length) | add')" -le $((3 << 20)) ]

# Two clients, and bits that change meanwhile: each keeps what it has opened.
cat >client.py <<'END'
import sys, nbd
def view():
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.connect_uri(sys.argv[1])
    return h
def dirty(h):
    found = []
    def extent(context, offset, entries, error):
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags == 0:
                found.append(offset)
            offset += length
    at = 0
    h.block_status(h.get_size(), 0, extent)
    return found
first = view()
before = dirty(first)
assert len(before) == 5, before
print("opened", flush=True)
sys.stdin.readline()
second = view()
assert dirty(first) == before
assert dirty(second) == [40 << 20], dirty(second)
assert first.pread(65536, 1 << 20) == b"\2" * 65536
# Bytes are the disk's, also in holes, and in a read that has both.
assert first.pread(1 << 20, 0) == b"\1" * (1 << 20)
assert first.pread(1 << 20, 40 << 20) == b"\5" * 65536 + bytes(15 * 65536)
print("looked", flush=True)
sys.stdin.readline()
try:
    first.pread(512, 0)
    sys.exit("it is still there")
except nbd.Error:
    pass
END
coproc CLIENT { python client.py "$(uri_of vda@dirty=b0)"; }
client=$CLIENT_PID
read -r line <&"${CLIENT[0]}"
[ "$line" = opened ]
qmp block-dirty-bitmap-clear node=vda name=b0 >/dev/null
guest -c 'write -P 5 40M 64k'
echo >&"${CLIENT[1]}"
read -r line <&"${CLIENT[0]}"
[ "$line" = looked ]

# A view counts as a client of its export, and goes with it.
if qmp block-export-del id=vda 2>err; then
    fail "an export in use was deleted"
fi
grep -q "export 'vda' still in use" err
qmp block-export-del id=vda mode=hard >/dev/null
echo >&"${CLIENT[1]}"
wait "$client" || fail "the client of the view did not see the end"
absent vda@dirty=b0
gone() {
    [ "$(qmp query-named-block-nodes | jq -c '[.[].drv] | sort')" = \
        '["file","qcow2"]' ]
}
wait_until "the views are closed" gone

# A client that only asks about a view holds nothing, however long it stays.
qmp block-export-add '{"type": "nbd", "id": "asked", "node-name": "vda",
    "name": "asked", "writable": true, "bitmaps": ["b0"]}' >/dev/null
python - "$SRCDIR/tests/func" "$nbdelta" <<'END'
import subprocess
import sys
sys.path.insert(0, sys.argv[1])
from nbd_raw import *
asks = Client("nbd.sock")
name = "asked@dirty=b0"
assert asks.option(STRUCTURED)[0] == ACK
for _ in range(3):
    assert asks.option(INFO, info_data(name))[0] == ACK
    kind, contexts = asks.option(SET_META, meta_data(name, "base:allocation"))
    assert kind == ACK and len(contexts) == 1
user = Client("nbd.sock").go(name, contexts=["base:allocation"])
assert user.error(STATUS, 0, 512) == 0
delete = [sys.argv[2], "qmp", "qmp.sock", "block-export-del", "id=asked"]
assert subprocess.run(delete, stderr=subprocess.DEVNULL).returncode != 0
user.send(DISC)
assert user.ended()
subprocess.run(delete, check=True)
assert asks.option(GO, info_data(name))[0] == UNKNOWN
END

# Only bitmaps that the export offers; and a name with the mark in it is one.
qmp block-export-add type=nbd id=plain node-name=vda name=plain >/dev/null
qmp block-export-add '{"type": "nbd", "id": "some", "node-name": "vda",
    "writable": true, "name": "odd@dirty=b0", "bitmaps": ["b0"]}' >/dev/null
absent plain@dirty=b0
[ "$(nbdinfo --json "$(uri_of odd@dirty=b0)" |
    jq '.exports[0].is_read_only')" = false ]
[ "$(runs odd@dirty=b0@dirty=b0)" = '[[41943040,65536]]' ]
stop_server

# The increment is what the disk was before the last write.
qemu-io -f qcow2 -c 'write -P 5 40M 64k' inc.qcow2 >/dev/null
qemu-img compare disk.qcow2 inc.qcow2

# A point in time while the guest writes on: only what is dirty is kept, so
# that a client which reads more is refused, and never gets anything else.
qemu-img create -q -f qcow2 live.qcow2 16M
serve vda=live.qcow2
guest -c 'write -P 1 0 16M'
nbdelta backup-begin "$qmp_sock" --disk vda --checkpoint c1 >/dev/null
nbdcopy "$(uri_of vda@b1)" full.raw
nbdelta backup-end "$qmp_sock" b1
guest -c 'write -P 2 1M 64k' -c 'write -z 3M 64k'
nbdelta backup-begin "$qmp_sock" --disk vda,since=c1 --scratch . >/dev/null
guest -c 'write -P 7 1M 128k' -c 'write -P 7 3M 1M' -c 'write -P 7 8M 1M'
qemu-img create -q -f qcow2 -b full.raw -F raw kept.qcow2
pull() {
    nbdcopy --destination-is-zero -S 0 "$@" "$(uri_of vda@b2@dirty=backup-vda)" \
        -- [ qemu-nbd -f qcow2 kept.qcow2 ]
}
if pull 2>err; then
    fail "more was read than what is kept"
fi
grep -q 'read at offset .* failed' err
pull --request-size=65536
nbdelta backup-end "$qmp_sock" b2
stop_server
cp full.raw then.raw
qemu-io -f raw -c 'write -P 2 1M 64k' -c 'write -z 3M 64k' then.raw >/dev/null
qemu-img compare -f raw -F qcow2 then.raw kept.qcow2
