#!/bin/bash
# Dirty bitmaps as metadata contexts: which bitmaps are offered, what they tell,
# and what happens when a bitmap is removed.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo qemu-io qemu-img jq

nbdelta create -f qcow2 disk.qcow2 64M
serve vda=disk.qcow2
qmp block-dirty-bitmap-add node=vda name=b0 granularity=4k >/dev/null
qmp block-dirty-bitmap-add node=vda name=b1 granularity=64k >/dev/null
qmp block-dirty-bitmap-add node=vda name=off disabled=on >/dev/null

nbdinfo --json "$uri" | jq -c '.exports[0].contexts' >contexts
for context in base:allocation qemu:allocation-depth qemu:dirty-bitmap:b0 \
    qemu:dirty-bitmap:b1 qemu:dirty-bitmap:off; do
    grep -qF "\"$context\"" contexts || fail "$context is not offered"
done

qemu-io -f raw -c 'write 0 512' -c 'write 1028k 4k' -c 'write -z 2M 128k' \
    -c 'write 67104768 4k' "$uri" >/dev/null
runs() {
    nbdinfo --map="qemu:dirty-bitmap:$1" --json "$uri" |
        jq -c '[.[] | select(.type == 1) | [.offset, .length]]'
}
[ "$(runs b0)" = '[[0,4096],[1052672,4096],[2097152,131072],[67104768,4096]]' ]
[ "$(runs b1)" = \
    '[[0,65536],[1048576,65536],[2097152,131072],[67043328,65536]]' ]
[ "$(runs off)" = '[]' ]

# QEMU asks the same server for the same bitmap.
qemu-img map --output json --image-opts \
    "driver=nbd,server.type=unix,server.path=$sock,x-dirty-bitmap=qemu:dirty-bitmap:b0" |
    jq -c '[.[] | select(.data | not) | [.start, .length]]' >qemu
[ "$(cat qemu)" = "$(runs b0)" ] || fail "QEMU sees $(cat qemu)"

# Many small runs (some touch those above), and none is lost.
for ((i = 0; i < 2000; i++)); do
    echo "write $((i * 8))k 512"
done | qemu-io -f raw "$uri" >/dev/null
[ "$(runs b0 | jq length)" = 1984 ] || fail "$(runs b0 | jq length) runs"

# Three contexts in one reply; then one of them goes.
export PYTHONDONTWRITEBYTECODE=1
cat >client.py <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from nbd_raw import *
c = Client(sys.argv[2]).go("vda", contexts=[
    "qemu:dirty-bitmap:b0", "base:allocation", "qemu:dirty-bitmap:b1"])
assert sorted(c.contexts.values()) == [
    "base:allocation", "qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"]
error, chunks = c.call(STATUS, 0, 64 * 2**20)
assert error == 0 and len(chunks) == 3
assert {c.contexts[struct.unpack(">I", p[:4])[0]] for _, p in chunks} == set(
    c.contexts.values())
print("ready", flush=True)
sys.stdin.readline()
assert c.error(STATUS, 0, 4096) == EINVAL
assert c.alive()
print("done", flush=True)
END
coproc client { python client.py "$SRCDIR/tests/func" "$sock"; }
read -r line <&"${client[0]}"
[ "$line" = ready ] || fail "$line"
qmp block-dirty-bitmap-remove node=vda name=b1 >/dev/null
echo >&"${client[1]}"
read -r line <&"${client[0]}"
[ "$line" = "done" ] || fail "$line"

# More runs than a reply may have: it is cut, and going on from there gives the
# rest.
qmp block-dirty-bitmap-add node=vda name=fine granularity=512 >/dev/null
python - "$SRCDIR/tests/func" "$sock" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from nbd_raw import *
END, N = 64 * 2**20, 40000
c = Client(sys.argv[2]).go("vda")
for i in range(0, N, 100):
    c.s.sendall(b"".join(c.request(WRITE, j * 1024, 512, data=bytes(512))
                         for j in range(i, i + 100)))
    for _ in range(100):
        assert c.message()[1] == 0
for extended in (False, True):
    c = Client(sys.argv[2]).go("vda", extended=extended, contexts=[
        "qemu:dirty-bitmap:fine", "base:allocation", "qemu:dirty-bitmap:b0"])
    fine = {v: k for k, v in c.contexts.items()}["qemu:dirty-bitmap:fine"]
    at, replies, runs = 0, 0, []
    while at < END:
        error, chunks = c.call(STATUS, at, END - at)
        assert error == 0 and len(chunks) == 3
        assert sum(len(p) for _, p in chunks) <= 2**20
        for kind, p in chunks:
            if struct.unpack(">I", p[:4])[0] == fine:
                runs += struct.iter_unpack(">QQ" if extended else ">II",
                                           p[8 if extended else 4:])
        at = sum(n for n, _ in runs)
        replies += 1
    assert replies > 1 and at == END
    assert runs[:2 * N] == [(512, 1), (512, 0)] * (N - 1) + [
        (512, 1), (END - N * 1024 + 512, 0)]
END
qmp block-dirty-bitmap-remove node=vda name=fine >/dev/null

# Under another name, as for whom a backup is; each name once.
qmp block-dirty-bitmap-add node=vda name=b2 disabled=on >/dev/null
qmp block-export-add '{"type": "nbd", "id": "e", "node-name": "vda",
    "name": "backup", "bitmaps": [
    {"node": "vda", "name": "b0", "context-name": "backup-vda"},
    {"node": "vda", "name": "b2"}]}' >/dev/null
nbdinfo --json "$(uri_of backup)" | jq -c '.exports[0].contexts' >contexts
[ "$(cat contexts)" = \
    '["base:allocation","qemu:dirty-bitmap:backup-vda","qemu:dirty-bitmap:b2"]' ] ||
    fail "contexts: $(cat contexts)"
nbdinfo --map=qemu:dirty-bitmap:backup-vda --json "$(uri_of backup)" |
    jq -c '[.[] | select(.type == 1) | [.offset, .length]]' >as
runs b0 | cmp - as
qmp block-export-del id=e >/dev/null
refused() {
    if qmp block-export-add "$2" >out 2>&1; then
        fail "not refused: $2"
    fi
    grep -qF "$1" out || fail "$(cat out)"
}
refused "already has a bitmap named 'b2'" '{"type": "nbd", "id": "e",
    "node-name": "vda", "name": "x", "bitmaps": [
    {"node": "vda", "name": "b0", "context-name": "b2"},
    {"node": "vda", "name": "b2"}]}'
refused '1 to 1023 bytes' '{"type": "nbd", "id": "e", "node-name": "vda",
    "name": "x", "bitmaps": [
    {"node": "vda", "name": "b0", "context-name": ""}]}'

# What changes is not for a read-only export, found by its name: as QEMU.
refused "Enabled bitmap 'b0' incompatible with readonly export" \
    '{"type": "nbd", "id": "e", "node-name": "vda", "name": "x",
    "bitmaps": ["b0"]}'
qmp block-export-add '{"type": "nbd", "id": "e", "node-name": "vda",
    "name": "x", "bitmaps": ["b2"]}' >/dev/null

stop_server
qemu-img check -q disk.qcow2
