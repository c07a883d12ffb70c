#!/bin/bash
# Block devices: QEMU's name for them, a new size without a restart, and images
# on them, which have no directory that they could name files in.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need losetup qemu-img qemu-io jq
[ "$(id -u)" -eq 0 ] || skip "loop devices need root"

# loop FILE: sets $loop.
loop() {
    loop=$(losetup -f --show "$1" 2>/dev/null) || skip "no loop device"
    at_exit losetup -d "$loop"
}

size_of() {
    qmp query-named-block-nodes |
        jq --arg n "$1" '.[] | select(."node-name" == $n).image."virtual-size"'
}

# --- host_device ---

truncate -s 16M file
loop file
dev=$loop
refused() {
    local text=$1
    shift
    serve_refused "$text" -U s "$@"
}
refused 'to be either a character or block device' driver=host_device,filename="$PWD/file"
refused 'nosuch' driver=host_device,filename="$PWD/nosuch"
refused 'no block device' driver=host_device,filename=/dev/null
serve "vda=driver=raw,file.driver=host_device,file.filename=$dev"
qemu-io -f raw -c 'write -q -P 7 0 64k' "$(uri_of vda)"
qmp query-named-block-nodes |
    jq -e 'map(.drv) | contains(["host_device", "raw"])' >out

# --- A new size ---

truncate -s 32M file
losetup -c "$dev"
if qmp block_resize node-name=vda size=24M 2>err; then
    fail "a device got a size that it has not"
fi
grep -q "has 33554432 bytes" err || fail "$(cat err)"
[ "$(size_of vda)" = 16777216 ]
qmp block_resize node-name=vda size=33554432 >out
[ "$(size_of vda)" = 33554432 ]
qemu-io -f raw -c 'read -q -P 7 0 64k' -c 'write -q -P 8 31M 1M' \
    "$(uri_of vda)"
# And back.
truncate -s 16M file
losetup -c "$dev"
qmp block_resize node-name=vda size=16777216 >out
[ "$(size_of vda)" = 16777216 ]
stop_server

# Bitmaps of a tracked disk follow, below and above.
nbdelta create --track "$dev" --bitmap b0 tracked.qcow2
serve --allow-path "$dev" vda=tracked.qcow2
truncate -s 32M file
losetup -c "$dev"
qmp block_resize node-name=vda size=33554432 >out
qemu-io -f raw -c 'write -q -P 9 30M 64k' "$(uri_of vda)"
stop_server
nbdelta map --allow-path "$dev" --bitmap b0 --output json tracked.qcow2 |
    jq -e 'any(.dirty and .start <= 31457280 and
        .start + .length >= 31457280 + 65536)' \
        >out || fail "the bitmap has $(nbdelta map --allow-path "$dev" \
        --bitmap b0 tracked.qcow2)"

# An image finds the room of a grown device at once.
truncate -s 4M thin
loop thin
thin=$loop
nbdelta create "$thin" 64M
serve "vda=$thin"
if qemu-io -f raw -c 'write -q -P 5 0 8M' "$(uri_of vda)" >out 2>&1; then
    fail "8 MiB on a device of 4 MiB"
fi
truncate -s 32M thin
losetup -c "$thin"
qemu-io -f raw -c 'write -q -P 5 0 8M' -c 'read -q -P 5 0 8M' "$(uri_of vda)"
stop_server
qemu-img check -q -f qcow2 "$thin"

# --- What an image on a device names ---

truncate -s 8M volume
loop volume
volume=$loop
cp file secret
for name in "$dev" "${dev#/dev/}" "$PWD/secret"; do
    nbdelta create -f raw base.raw 4M
    qemu-img create -q -f qcow2 -u -b "$name" -F raw "$volume" 4M
    refused '--allow-path' "vda=$volume"
    refused '--allow-path' -r "vda=$volume"
    refused '--allow-path' --follow=data "vda=$volume"
done
qemu-img create -q -f qcow2 -u -b "$dev" -F raw "$volume" 4M
refused '--follow=none' --follow=none "vda=$volume"
serve --follow=none --allow-path "$dev" "vda=$volume"
stop_server
serve --allow-path /dev "vda=$volume"
stop_server
