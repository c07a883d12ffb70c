#!/bin/bash
# Inactive nodes: an image goes from one process to another and back, with its
# locks and its bitmaps; clients of an export read meanwhile; what fails leaves
# the node as it was.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io jq

refused() {
    local text=$1
    shift
    if qmp "$@" 2>err; then
        fail "not refused: $*"
    fi
    [ "$(cat err)" = "nbdelta: qmp: GenericError: $text" ] ||
        fail "$* says: $(cat err)"
}

set_active() {
    qmp blockdev-set-active "{\"node-name\": \"$1\", \"active\": $2}"
}

# node NAME: [active, ro, size, names of bitmaps]
node() {
    qmp query-named-block-nodes | jq -c --arg n "$1" '.[] |
        select(."node-name" == $n) | [.active, .ro, .image."virtual-size",
            ([."dirty-bitmaps"[]?.name] | sort | join(" "))]'
}

is() {
    [ "$(node "$1")" = "$2" ] || fail "$1 is $(node "$1"), not $2"
}

# io_fails TEXT URI COMMAND: a client gets the error TEXT
io_fails() {
    qemu-io -f raw -c "$3" "$2" >io.out 2>&1 || true
    grep -q "$1" io.out || fail "$3: $(cat io.out)"
}

reads() {
    qemu-io -r -f raw -c "read -P $2 $3 64k" "$1" >io.out 2>&1 || true
    ! grep -q 'failed\|error' io.out || fail "$3 of $1: $(cat io.out)"
}

add() {
    qmp blockdev-add "$1"
}

size=$((8 << 20))
larger=$((16 << 20))
nbdelta create disk.qcow2 8M
nbdelta bitmap add disk.qcow2 kept
serve --blockdev "driver=file,node-name=file,filename=$PWD/disk.qcow2" \
    --blockdev driver=qcow2,node-name=disk,file=file \
    --export type=nbd,id=all,node-name=disk,name=disk,writable=on,allow-inactive=on
uri="nbd+unix:///disk?socket=$sock"

# It is ours: others may not write.
qemu-io -f raw -c "write -P 1 0 64k" "$uri" >/dev/null
is disk "[true,false,$size,\"kept\"]"
io_fails 'Failed to get' disk.qcow2 'write 0 64k'

# It is nobody's: clients can read, and nothing else; what they have written is
# in the image, and in its bitmap.
set_active disk false
is disk "[false,false,$size,\"\"]"
is file "$(node file | sed 's/^\[true/[false/')"
reads "$uri" 1 0
for command in 'write 0 64k' 'write -z 0 64k' 'discard 0 64k'; do
    io_fails 'Operation not permitted' "$uri" "$command"
done
io_fails 'Operation not permitted' "$uri" map
[ "$(nbdelta bitmap list --output json disk.qcow2 |
    jq -c '.[0] | [.name, .inconsistent // false]')" = \
    '["kept",false]' ] || fail "$(nbdelta bitmap list --output json disk.qcow2)"
refused "Permission 'resize' unavailable on inactive node" \
    block_resize '{"node-name": "disk", "size": 16777216}'
refused "Inactive 'disk' can't be a file child of active 'top'" \
    blockdev-add '{"driver": "raw", "node-name": "top", "file": "disk"}'
# A reopen leaves it as it is.
reopen() {
    qmp blockdev-reopen "{\"options\": [{\"driver\": \"qcow2\",
        \"node-name\": \"disk\", \"file\": \"file\"$1}]}"
}
reopen ''
reopen ', "active": true'
if reopen ', "active": false' 2>err; then
    fail "a reopen that says active=false is not refused"
fi
grep -q "Cannot change the option 'active'" err || fail "$(cat err)"
is disk "[false,false,$size,\"\"]"
io_fails 'Operation not permitted' "$uri" 'write 0 64k'
refused "Block node is read-only: 'disk'" block-dirty-bitmap-add \
    '{"node": "disk", "name": "new", "persistent": true}'

# While another has it, it cannot be had again.
mkfifo commands
qemu-io -f raw disk.qcow2 <commands >holder.out 2>&1 &
holder=$!
exec 9>commands
echo 'read 0 512' >&9
wait_until "another process has the image" grep -q 'read 512' holder.out
if set_active disk true 2>err; then
    fail "two processes have the image"
fi
grep -q 'Failed to get .* lock' err || fail "$(cat err)"
is disk "[false,false,$size,\"\"]"
reads "$uri" 1 0
exec 9>&-
wait "$holder"

# What the other has made of it is there: data, size, bitmaps.  A bitmap that
# only memory has covers the disk as it is now.
qmp block-dirty-bitmap-add '{"node": "disk", "name": "here"}'
qemu-io -f qcow2 -c "write -P 2 1M 64k" disk.qcow2 >/dev/null
nbdelta resize disk.qcow2 16M >/dev/null
nbdelta bitmap add disk.qcow2 theirs
set_active disk true
is disk "[true,false,$larger,\"here kept theirs\"]"
reads "$uri" 2 1M
qemu-io -f raw -c "write -P 3 12M 64k" "$uri" >/dev/null
for name in here theirs; do
    [ "$(qmp query-named-block-nodes | jq --arg n $name '.[] |
        select(."node-name" == "disk")."dirty-bitmaps"[] |
        select(.name == $n).count')" -ge 65536 ] || fail "$name lacks a write"
done
io_fails 'Failed to get' disk.qcow2 'write 0 64k'

# A parent that is active keeps its children so, and so does a user that has
# not agreed to anything else.
refused "Node has active parent node" \
    blockdev-set-active '{"node-name": "file", "active": false}'
qmp block-export-add '{"type": "nbd", "id": "stays", "node-name": "disk",
    "name": "stays", "writable": true}'
refused "Failed to inactivate node: Operation not permitted" \
    blockdev-set-active '{"node-name": "disk", "active": false}'
refused "Failed to inactivate all nodes: Operation not permitted" \
    blockdev-set-active '{"active": false}'
is disk "[true,false,$larger,\"here kept theirs\"]"
qmp block-export-del '{"id": "stays"}'
qmp block-dirty-bitmap-remove '{"node": "disk", "name": "here"}'

# A bitmap that a job or an export uses stays with the node.
qmp block-export-add '{"type": "nbd", "id": "bits", "node-name": "disk",
    "name": "bits", "allow-inactive": true, "bitmaps": ["kept"]}' 2>/dev/null ||
    qmp block-export-add '{"type": "nbd", "id": "bits", "node-name": "disk",
        "name": "bits", "writable": true, "allow-inactive": true,
        "bitmaps": ["kept"]}'
if set_active disk false 2>err; then
    fail "a bitmap in use has gone"
fi
grep -q "Bitmap 'kept' is currently in use" err || fail "$(cat err)"
is disk "[true,false,$larger,\"kept theirs\"]"
qmp block-export-del '{"id": "bits"}'

# All of them, and what is begun for an inactive disk.
qmp blockdev-set-active '{"active": false}'
is disk "[false,false,$larger,\"\"]"
refused "Could not create node: Inactive 'disk' can't be a file child of active 'f'" \
    block-stream '{"job-id": "j", "device": "disk", "filter-node-name": "f"}'
qmp block-export-add '{"type": "nbd", "id": "wakes", "node-name": "disk",
    "name": "wakes"}'
is disk "[true,false,$larger,\"kept theirs\"]"
qmp block-export-del '{"id": "wakes"}'
qmp blockdev-set-active '{"active": false}'
stop_server
nbdelta check disk.qcow2 >/dev/null

# A node can begin inactive, while another process has the image.
serve disk2=disk.qcow2
qmp2=$qmp_sock sock2=$sock server2=$server
server='' sock=$PWD/other.sock qmp_sock=$PWD/other.qmp pidfile=$PWD/other.pid
serve --blockdev "driver=qcow2,node-name=disk,active=off,file.driver=file,file.filename=$PWD/disk.qcow2"
is disk "[false,false,$larger,\"\"]"
if set_active disk true 2>err; then
    fail "two processes have the image"
fi
nbdelta qmp "unix:$qmp2" quit >/dev/null 2>&1 || kill "$server2"
wait "$server2" || true
[ ! -e "$sock2" ] || fail "the first server is there"
set_active disk true
is disk "[true,false,$larger,\"kept theirs\"]"
stop_server
