#!/bin/bash
# Exports that come and go while others are served; what they offer.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo nbdcopy qemu-img qemu-io jq

is() {
    [ "$1" = "$2" ] || fail "got $1, not $2"
}

refused() {
    local text=$1
    shift
    if qmp "$@" >out 2>&1; then
        fail "$*: not refused"
    fi
    grep -qF -e "$text" out || fail "$*: said '$(cat out)', not '$text'"
}

contexts() {
    nbdinfo --json "$(uri_of "$1")" |
        jq -c '.exports[0].contexts | map(sub("qemu:dirty-bitmap:"; "@"))'
}

export_add() {
    qmp block-export-add type=nbd id="$1" name="$1" "${@:2}"
}

start() {
    rm -f "$pidfile"
    nbdelta serve --qmp "$qmp_sock" --pidfile "$pidfile" "$@" &
    server=$!
    wait_until "the server is ready" server_ready
}

unix='{"addr": {"type": "unix", "data": {"path": "'$sock'"}}'

mkimg base.raw 4M
qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2
start
add_nodes() {
    qmp blockdev-add driver=raw node-name=base \
        file.driver=file file.filename=base.raw read-only=true
    qmp blockdev-add driver=qcow2 node-name=top backing=base \
        file.driver=file file.filename=top.qcow2
}
add_nodes
qmp blockdev-add driver=null-co node-name=null size=4194304

# The server runs, or does not.
refused 'NBD server not running' block-export-add type=nbd id=a node-name=top
refused 'NBD server not running' nbd-server-add device=top
refused 'NBD server not running' nbd-server-stop
qmp nbd-server-start "$unix}"
refused 'NBD server already running' nbd-server-start "$unix}"
[ "$(stat -c %a "$sock")" = 600 ]
is "$(nbdinfo --list --json "$uri" | jq -c '.exports // []')" '[]'

# What an export is made of.
refused 'Invalid block export id' block-export-add type=nbd id='#a' \
    node-name=top
refused "Cannot find device='' nor node-name='nosuch'" block-export-add \
    type=nbd id=a node-name=nosuch
refused 'Cannot export read-only node as writable' block-export-add type=nbd \
    id=a node-name=base writable=true
refused 'iothread "x" not found' block-export-add type=nbd id=a \
    node-name=top iothread=x
refused "does not accept value 'fuse'" block-export-add type=fuse id=a \
    node-name=top
export_add a node-name=top
refused "Block export id 'a' is already in use" block-export-add type=nbd \
    id=a node-name=null
refused "NBD server already has export named 'a'" block-export-add type=nbd \
    id=b name=a node-name=null
refused 'export name' block-export-add type=nbd id=b \
    name="$(printf '%05000d' 0)" node-name=null

# Contexts: only what was asked for.
is "$(contexts a)" '["base:allocation"]'
export_add depth node-name=top allocation-depth=true
is "$(contexts depth)" '["base:allocation","qemu:allocation-depth"]'
is "$(nbdinfo --map=qemu:allocation-depth --json "$(uri_of depth)" |
    jq -c 'map(.type) | unique')" '[2]'

# Bitmaps: of the node, of one below, of another; held while they are offered.
qmp block-dirty-bitmap-add node=top name=on
qmp block-dirty-bitmap-add node=top name=off disabled=true
qmp block-dirty-bitmap-add node=base name=below disabled=true
qmp block-dirty-bitmap-add node=null name=far
refused "Bitmap 'nosuch' is not found" block-export-add type=nbd id=b \
    node-name=top bitmaps.0=nosuch
refused "Bitmap 'far' is not found" block-export-add type=nbd id=b \
    node-name=top bitmaps.0=far
refused "Node 'x' not found" block-export-add type=nbd id=b node-name=top \
    bitmaps.0.node=x bitmaps.0.name=on
refused "Enabled bitmap 'on' incompatible with readonly export" \
    block-export-add type=nbd id=b node-name=top bitmaps.0=off bitmaps.1=on
# That has let go of "off".
qmp block-dirty-bitmap-clear node=top name=off
export_add b node-name=top \
    bitmaps.0=off bitmaps.1=below bitmaps.2.node=null bitmaps.2.name=far
is "$(contexts b)" '["base:allocation","@off","@below","@far"]'
export_add c node-name=top writable=true bitmaps.0=on
is "$(contexts c)" '["base:allocation","@on"]'
for name in on off; do
    refused "Bitmap '$name' is currently in use" block-dirty-bitmap-clear \
        node=top name=$name
    refused "Bitmap '$name' is currently in use" block-dirty-bitmap-remove \
        node=top name=$name
done
qemu-io -f raw -c 'write -P 9 64k 64k' "$(uri_of c)" >out
is "$(nbdinfo --map=qemu:dirty-bitmap:on --json "$(uri_of c)" |
    jq -c 'map([.offset, .length, .type])')" \
    '[[0,65536,0],[65536,65536,1],[131072,4063232,0]]'

# Nodes that are in use.
refused 'Node top is in use' blockdev-del node-name=top
refused "Node 'base' is busy: node is used as backing hd of 'top'" \
    blockdev-del node-name=base
refused "Failed to find node with node-name='nosuch'" blockdev-del \
    node-name=nosuch
for id in a depth b c; do
    qmp block-export-del id=$id
done
is "$(qmp query-block-exports)" '[]'
qmp block-dirty-bitmap-remove node=top name=on
qmp blockdev-del node-name=top
qmp blockdev-del node-name=base
refused "Failed to find node" blockdev-del node-name=base
add_nodes

# The old commands: the name is the id, a read-only node stays so.
qmp nbd-server-add device=base writable=true
qmp nbd-server-add device=top name=old writable=true description=words
is "$(nbdinfo --json "$(uri_of old)" | jq -r '.exports[0].description')" words
nbdinfo --is read-only "$(uri_of base)"
refused "Block export id 'old' is already in use" nbd-server-add device=null \
    name=old
refused "Cannot find device='x' nor node-name='x'" nbd-server-add device=x
refused "Export 'top' is not found" nbd-server-remove name=top
qmp nbd-server-remove name=old mode=safe

# With clients, while another export is copied all the time.
export_add keep node-name=base
nbdcopy "$(uri_of keep)" kept.raw
(
    while [ ! -e enough ]; do
        nbdcopy "$(uri_of keep)" kept.raw
        cmp kept.raw base.raw
    done
) &
copier=$!
at_exit "kill $copier 2>/dev/null"
export_add live node-name=top writable=true
python "$SRCDIR/tests/func/qmp-exports.py" "$sock" "$qmp_sock" \
    "$SRCDIR/tests/func"
: >enough
wait "$copier" || fail "another export was disturbed"
refused "Export 'live' is not found" block-export-del id=live

# No more connections than that; the next waits for one to go.
qmp nbd-server-stop
[ ! -e "$sock" ] || fail "the socket is left"
is "$(qmp query-block-exports)" '[]'
qmp nbd-server-start "$unix, \"max-connections\": 1}"
export_add only node-name=top
[ "$(nbdinfo --json "$(uri_of only)" | jq '.exports[0].can_multi_conn')" = \
    false ] || fail "more connections are advertised than there can be"
python - "$sock" "$SRCDIR/tests/func" <<'END'
import socket, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[2])
from nbd_raw import *
first = Client(sys.argv[1]).go('only')
second = socket.socket(socket.AF_UNIX)
second.connect(sys.argv[1])
second.settimeout(0.3)
try:
    assert not second.recv(1), "a second client was served"
    raise AssertionError("a second client was turned away")
except socket.timeout:
    pass
first.s.close()
second.settimeout(60)
assert second.recv(8) == b'NBDMAGIC'
END
stop_server
[ ! -e "$sock" ]

# Written through: there when the answer is, whatever becomes of us.
for through in on off; do
    qemu-img create -q -f qcow2 w.qcow2 1M
    start --nbd-server addr.type=unix,addr.path="$sock" \
        --blockdev qcow2,node-name=w,file.driver=file,file.filename=w.qcow2 \
        --export nbd,id=w,node-name=w,writable=on,writethrough=$through
    python - "$sock" "$SRCDIR/tests/func" <<'END'
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[2])
from nbd_raw import *
c = Client(sys.argv[1]).go('w')
assert c.error(WRITE, 0, 65536, data=b"w" * 65536) == 0
import os
os._exit(0)
END
    kill -KILL "$server"
    wait "$server" 2>/dev/null || true
    server=
    qemu-io -f qcow2 -c 'read -P 0x77 0 64k' w.qcow2 >w.$through 2>&1 || true
done
if grep -q failed w.on; then
    fail "a write was answered and is gone: $(cat w.on)"
fi
grep -q failed w.off || fail "writethrough=off makes no difference"

# Our short form offers the bitmaps of the disk that it shows at that moment.
qemu-img create -q -f qcow2 under.qcow2 4M
qemu-img create -q -f qcow2 -b under.qcow2 -F qcow2 over.qcow2
start -U "$sock" vda=under.qcow2
qmp block-dirty-bitmap-add node=vda name=one
is "$(contexts vda)" '["base:allocation","qemu:allocation-depth","@one"]'
qmp blockdev-add '{"driver": "qcow2", "node-name": "over", "backing": null,
    "file": {"driver": "file", "filename": "over.qcow2"}}'
qmp blockdev-snapshot node=vda overlay=over
qmp block-dirty-bitmap-add node=over name=two
is "$(contexts vda)" '["base:allocation","qemu:allocation-depth","@two"]'
stop_server

# Exports that go together go from the newest to the oldest, as in QEMU.
add='{"execute": "block-export-add", "arguments": {"type": "nbd", "node-name":
    "n", "id": "ID", "name": "ID"}}'
ids='select(.event == "BLOCK_EXPORT_DELETED").data.id'
printf '%s\n' '{"execute": "qmp_capabilities"}' "${add//ID/a}" "${add//ID/b}" \
    "${add//ID/c}" '{"execute": "nbd-server-stop"}' \
    '{"execute": "query-version", "id": 1}' "{\"execute\": \"nbd-server-start\",
    \"arguments\": $unix}}" "${add//ID/d}" "${add//ID/e}" \
    '{"execute": "quit"}' >commands
nbdelta serve --chardev stdio,id=m --monitor m --blockdev null-co,node-name=n \
    --nbd-server addr.type=unix,addr.path="$sock" <commands >out
is "$(jq -r "$ids" out | tr '\n' ' ')" 'c b a e d '
