#!/bin/bash
# Block status of random images and bitmaps: what NBD tells, in each way to ask,
# is what qemu-img map says of the file, and what was written.  Then the same
# while guests write, and the disk is drained and grows.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io

status() {
    PYTHONDONTWRITEBYTECODE=1 python "$SRCDIR/tests/func/nbd-status.py" "$@"
}

status make
disks=()
while read -r name of_export of_node; do
    disks+=(--blockdev "driver=file,node-name=$name-file,filename=$name.qcow2,read-only=on"
        --blockdev "driver=qcow2,node-name=$name,file=$name-file,read-only=on$of_node"
        --export "nbd,id=$name,node-name=$name,name=$name,$of_export")
done <disks
nbdelta create -f qcow2 busy.qcow2 256M
serve "${disks[@]}" busy=busy.qcow2
status compare "$sock"

qmp block-dirty-bitmap-add node=busy name=b granularity=64k >/dev/null
status busy "$sock" &
watcher=$!
for size in 257 258 259 260; do
    qmp block_resize node-name=busy size=$((size << 20)) >/dev/null
    qmp block-dirty-bitmap-add node=busy name=other >/dev/null
    qmp block-dirty-bitmap-remove node=busy name=other >/dev/null
done
touch drained
wait "$watcher" || fail "the status of a busy disk is wrong"
stop_server
nbdelta check -q busy.qcow2
