#!/bin/bash
# blockdev-snapshot, blockdev-snapshot-sync and change-backing-file: chains
# that real tools accept, while an export is in use, and also after a kill.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io jq

io() {
    qemu-io -f raw "$@" "$(uri_of disk)" >io.out || fail "$* : $(cat io.out)"
    ! grep -q 'verification failed' io.out || fail "$* : $(cat io.out)"
}

refused() {
    local text=$1
    shift
    if qmp "$@" 2>err; then
        fail "not refused: $*"
    fi
    [ "$(cat err)" = "nbdelta: qmp: GenericError: $text" ] ||
        fail "$* says: $(cat err)"
}

nodes() {
    qmp query-named-block-nodes | jq -c \
        '[.[] | select(.drv == "qcow2") | [."node-name", .ro]] | sort'
}

content() {
    qemu-io -r "$1" -c 'read -P 1 0 64k' -c 'read -P 2 64k 64k' \
        -c 'read -P 3 128k 64k' -c 'read -P 0 192k 64k' >content.out
    ! grep -q 'verification failed' content.out ||
        fail "$1: $(cat content.out)"
}

nbdelta create base.qcow2 8M
nbdelta create free.qcow2 8M
truncate -s 8M plain.raw

serve "disk=$PWD/base.qcow2" \
    "other=driver=qcow2,read-only=on,file.filename=$PWD/free.qcow2"
io -c 'write -P 1 0 256k'
qmp block-dirty-bitmap-add node=disk name=b0 persistent=true
io -c 'write -P 1 64k 64k'

# --- What is refused changes nothing. ---

refused "Cannot find device='' nor node-name=''" \
    blockdev-snapshot-sync snapshot-file=o.qcow2
refused "Cannot find device='no' nor node-name=''" \
    blockdev-snapshot-sync device=no snapshot-file=o.qcow2
refused "New overlay node-name missing" \
    blockdev-snapshot-sync node-name=disk snapshot-file="$PWD/o.qcow2"
refused "New overlay node-name already in use" \
    blockdev-snapshot-sync node-name=disk snapshot-file="$PWD/o.qcow2" \
    snapshot-node-name=other
refused "Unknown file format 'nope'" \
    blockdev-snapshot-sync device=disk snapshot-file="$PWD/o.qcow2" format=nope
refused "Backing file not supported for file format 'raw'" \
    blockdev-snapshot-sync device=disk snapshot-file="$PWD/o.raw" format=raw
refused "The overlay does not support backing images" \
    blockdev-snapshot-sync device=disk snapshot-file="$PWD/plain.raw" \
    format=raw mode=existing snapshot-node-name=x
refused "Cannot find device='no' nor node-name='no'" \
    blockdev-snapshot node=disk overlay=no
refused "The overlay is already in use" blockdev-snapshot node=disk overlay=other
refused "The overlay is already in use" blockdev-snapshot node=disk overlay=disk
[ "$(nodes)" = '[["disk",false],["other",true]]' ] || fail "nodes: $(nodes)"
[ ! -e o.qcow2 ] || fail "a refused snapshot has made a file"
io -c 'read -P 1 0 256k'

# --- Overlays, while a client stays connected. ---

mkfifo commands
qemu-io -f raw "$(uri_of disk)" <commands >client.out 2>&1 &
client=$!
exec 3>commands
qmp blockdev-snapshot-sync device=disk snapshot-file="$PWD/o1.qcow2" \
    snapshot-node-name=o1
echo 'write -P 2 64k 64k' >&3
echo 'flush' >&3
wait_until "the client has written" grep -q '^.*wrote 65536' client.out
qmp blockdev-snapshot-sync device=disk snapshot-file=o2.qcow2 \
    snapshot-node-name=o2
echo 'write -P 3 128k 64k' >&3
echo 'write -z 192k 64k' >&3
echo 'read -P 2 64k 64k' >&3
echo 'read -P 1 0 64k' >&3
echo 'quit' >&3
exec 3>&-
wait "$client" || fail "the client: $(cat client.out)"
! grep -qE 'failed|error' client.out || fail "the client: $(cat client.out)"

[ "$(nodes)" = '[["disk",true],["o1",true],["o2",false],["other",true]]' ] ||
    fail "nodes: $(nodes)"
refused "Node 'o1' is busy: node is used as backing hd of 'o2'" \
    blockdev-snapshot-sync node-name=o1 snapshot-node-name=x snapshot-file=x
# The bitmap stays with its node, to which nobody writes any more.
[ "$(qmp query-named-block-nodes | jq -c '.[] |
    select(."node-name" == "disk") | ."dirty-bitmaps" | map(.count)')" = '[65536]' ] ||
    fail "the bitmap has moved, or not kept its bits"
refused "Bitmap 'b0' is readonly and cannot be modified" \
    block-dirty-bitmap-remove node=disk name=b0
# The images below are locked for reading only.
qemu-img info -U o1.qcow2 >/dev/null
qemu-io -r -f qcow2 -c 'read -P 1 0 64k' base.qcow2 >/dev/null ||
    fail "base.qcow2 is still locked for writing"

# --- Another name for what is below. ---

refused "Cannot find device='' nor node-name='no'" \
    change-backing-file device=disk image-node-name=no backing-file=x
refused "not allowing backing file change on an image without a backing file" \
    change-backing-file device=disk image-node-name=disk backing-file=x
refused "'other' and image file are not in the same chain" \
    change-backing-file device=other image-node-name=o1 backing-file=x
[ "$(qemu-img info -U --output json o2.qcow2 | jq -r '."backing-filename"')" = \
    "$PWD/o1.qcow2" ] || fail "o2.qcow2 does not name o1.qcow2"
qmp change-backing-file device=disk image-node-name=o1 backing-file=base.qcow2
qmp change-backing-file device=disk image-node-name=o2 backing-file=./o1.qcow2
[ "$(nodes)" = '[["disk",true],["o1",true],["o2",false],["other",true]]' ] ||
    fail "nodes after change-backing-file: $(nodes)"

# --- All of it survives a kill. ---

kill -KILL "$server"
wait "$server" 2>/dev/null || true
server=
rm -f "$sock" "$qmp_sock"
content o2.qcow2
for file in base o1 o2; do
    rc=0
    qemu-img check -q $file.qcow2 >check.out || rc=$?
    # A kill may leak clusters (3), nothing else.
    [ "$rc" -eq 0 ] || [ "$rc" -eq 3 ] ||
        fail "$file.qcow2: $(cat check.out)"
done
# The bitmap was stored when its node became read-only.
[ "$(qemu-img info --output json base.qcow2 |
    jq -c '."format-specific".data.bitmaps | map([.name, .flags])')" = \
    '[["b0",["auto"]]]' ] || fail "base.qcow2 has lost its bitmap"
[ "$(qemu-img info --backing-chain --output json o2.qcow2 |
    jq -c 'map(."backing-filename" // "")')" = \
    '["./o1.qcow2","base.qcow2",""]' ] ||
    fail "the chain: $(qemu-img info --backing-chain o2.qcow2)"

# --- Two disks at one instant, or none. ---

mkdir moved
mv ./*.qcow2 moved/
serve "disk=$PWD/moved/o2.qcow2" "with=$PWD/moved/free.qcow2"
if qmp transaction "$(jq -cn --arg dir "$PWD" '{actions: [
    {type: "blockdev-snapshot-sync", data: {device: "disk",
     "snapshot-file": ($dir + "/t1.qcow2"), "snapshot-node-name": "t1"}},
    {type: "abort", data: {}}]}')" 2>err; then
    fail "an aborted transaction succeeded"
fi
[ "$(nodes | jq -c 'map(.[0])')" = \
    "$(nodes | jq -c 'map(.[0] | select(. != "t1"))')" ] ||
    fail "an aborted transaction has left its overlay"
io -c 'write -P 3 128k 64k'
qmp transaction "$(jq -cn --arg dir "$PWD" '{actions: [
    {type: "blockdev-snapshot-sync", data: {device: "disk",
     "snapshot-file": ($dir + "/t1.qcow2"), "snapshot-node-name": "t1"}},
    {type: "blockdev-snapshot-sync", data: {"node-name": "with",
     "snapshot-file": ($dir + "/t2.qcow2"), "snapshot-node-name": "t2"}}]}')"
io -c 'write -P 4 1M 64k' -c 'read -P 3 128k 64k'

# --- An overlay that is open already: then the chain is as it names it. ---

nbdelta create -b "$PWD/t1.qcow2" -F qcow2 t3.qcow2
add() {
    qmp blockdev-add "$(jq -cn --arg n "$1" --arg f "$PWD/$1.qcow2" \
        '{driver: "qcow2", "node-name": $n, backing: null,
          file: {driver: "file", filename: $f}}' | jq -c ". + $2")"
}
add t3 '{"read-only": true}'
refused "Block node is read-only" blockdev-snapshot node=t1 overlay=t3
qmp blockdev-del node-name=t3
add t3 '{}'
qmp blockdev-snapshot node=t1 overlay=t3
refused "Node 't1' is busy: node is used as backing hd of 't3'" \
    blockdev-snapshot node=t1 overlay=t3
io -c 'read -P 4 1M 64k' -c 'write -P 5 2M 64k' -c 'read -P 3 128k 64k'
refused "Node t3 is in use" blockdev-del node-name=t3
stop_server
content t3.qcow2
qemu-io -r t3.qcow2 -c 'read -P 4 1M 64k' -c 'read -P 5 2M 64k' >content.out
! grep -q 'verification failed' content.out || fail "t3: $(cat content.out)"
qemu-img check -q t3.qcow2
content t1.qcow2
qemu-img check -q t1.qcow2
qemu-img check -q moved/o2.qcow2
[ "$(qemu-img info --output json t2.qcow2 | jq -r '."backing-filename"')" = \
    "$PWD/moved/free.qcow2" ] || fail "t2.qcow2 names something else"
