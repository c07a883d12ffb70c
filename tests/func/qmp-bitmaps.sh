#!/bin/bash
# Dirty bitmaps through QMP: their life, what they count, QEMU's errors.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

command -v qemu-io >/dev/null || { echo "qemu-io is not here"; exit 77; }

qmp() {
    nbdelta qmp qmp.sock "$@"
}

bitmap() {
    local verb=$1
    shift
    qmp "block-dirty-bitmap-$verb" "$@" >/dev/null
}

# The command fails with the text $1.
refused() {
    local text=$1
    shift
    if qmp "$@" >/dev/null 2>err; then
        echo "$*: not refused"
        exit 1
    fi
    [ "$(cat err)" = "nbdelta: qmp: GenericError: $text" ] ||
        { echo "$*: $(cat err)"; exit 1; }
}

# Member $2 of bitmap $1, by way of query-named-block-nodes.
of() {
    qmp query-named-block-nodes | jq -r --arg n "$1" \
        '.[] | select(."node-name" == "disk0") | ."dirty-bitmaps" // [] |
        .[] | select(.name == $n) | .'"$2"
}

is() {
    local got
    got=$(of "$1" "$2")
    [ "$got" = "$3" ] || { echo "$1: $2 is '$got', not '$3'"; exit 1; }
}

guest() {
    qemu-io -f raw "$@" 'nbd+unix:///?socket=nbd.sock' >/dev/null
}

nbdelta create disk.qcow2 64M
nbdelta serve -U nbd.sock --qmp qmp.sock --pidfile pid disk.qcow2 &
server=$!
until [ -s pid ]; do
    kill -0 "$server"
    sleep 0.05
done

qmp query-block | jq -e '.[0].device == "disk0" and
    .[0].inserted."node-name" == "disk0" and .[0].inserted.drv == "qcow2" and
    .[0].inserted.image."virtual-size" == 67108864' >/dev/null

# The steps of QEMU's own first test of incremental backup.
bitmap add node=disk0 name=b0
is b0 granularity 65536
is b0 count 0
is b0 recording true
is b0 busy false
is b0 persistent false
guest -c 'write -P0xab 0 512' -c 'write -P0xfe 16M 256k' \
    -c 'write -P0x64 32736k 64k'
is b0 count 458752

# Types follow from the command: sizes have suffixes.
bitmap add node=disk0 name=b1 granularity=4k disabled=on
is b1 granularity 4096
is b1 recording false
guest -c 'write 1M 4k'
is b1 count 0
is b0 count 524288
bitmap enable node=disk0 name=b1
guest -c 'write -z 2M 4k' -c 'discard 3M 4k'
is b1 count 8192
bitmap disable node=disk0 name=b1
guest -c 'write 4M 4k'
is b1 count 8192

bitmap clear node=disk0 name=b0
is b0 count 0
bitmap merge node=disk0 target=b0 bitmaps=b1
is b0 count 131072
bitmap merge '{"node": "disk0", "target": "b0", "bitmaps": []}'
bitmap merge '{"node": "disk0", "target": "b0",
    "bitmaps": ["b1", {"node": "disk0", "name": "b1"}]}'
is b0 count 131072

# Nothing is merged when one of the sources is missing.
bitmap clear node=disk0 name=b0
refused "Dirty bitmap 'b9' not found" block-dirty-bitmap-merge \
    '{"node": "disk0", "target": "b0", "bitmaps": ["b1", "b9"]}'
is b0 count 0

refused "Cannot find device='x' nor node-name='x'" \
    block-dirty-bitmap-add node=x name=b
refused "Bitmap name cannot be empty" block-dirty-bitmap-add node=disk0 name=
refused "Granularity must be power of 2 and at least 512" \
    block-dirty-bitmap-add node=disk0 name=b granularity=64000
refused "Granularity must be power of 2 and at least 512" \
    block-dirty-bitmap-add node=disk0 name=b granularity=256
refused "Bitmap already exists: b0" block-dirty-bitmap-add node=disk0 name=b0
refused "Node 'x' not found" block-dirty-bitmap-remove node=x name=b
for verb in remove clear enable disable; do
    refused "Dirty bitmap 'b9' not found" "block-dirty-bitmap-$verb" \
        node=disk0 name=b9
done

bitmap remove node=disk0 name=b0
bitmap remove node=disk0 name=b1
[ -z "$(of b0 name)" ]
refused "Dirty bitmap 'b0' not found" block-dirty-bitmap-remove \
    node=disk0 name=b0

# What has grown is dirty.
bitmap add node=disk0 name=b2
qmp block_resize node-name=disk0 size=65M >/dev/null
is b2 count 1048576
[ "$(nbdinfo --size 'nbd+unix:///?socket=nbd.sock')" = 68157440 ]

qmp quit >/dev/null
wait "$server"
server=
qemu-img check -q disk.qcow2
