#!/bin/bash
# The plugin in a real nbdkit: content and extents of images are what
# qemu-img says; nbdkit -r refuses writes, and leaves others to read.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_plugin
need nbdinfo nbdcopy qemu-io qemu-img jq

# Ranges with their NBD type, neighbours joined.
# shellcheck disable=SC2016  # $e is jq's
join='reduce .[] as $e ([]; if length > 0 and .[-1].type == $e.type
    then .[-1].length += $e.length else . + [$e] end) | .[]
    | "\(.offset) \(.length) \(.type)"'
qemu_map() {
    qemu-img map --output json "$@" | jq -r "map({offset: .start, length,
        type: ((if .data then 0 else 1 end) + (if .zero then 2 else 0 end))})
        | $join"
}
our_map() {
    nbdinfo --map --json "$uri" | jq -r "$join"
}

compare() {
    rm -f out.img
    nbdcopy "$uri" out.img
    qemu-img compare "$@" -F raw "${image:?}" out.img
}

qemu-img create -q -f qcow2 base.qcow2 48M
qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 20M 3M' \
    -c 'write -P 3 47M 1M' base.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 64M
qemu-io -f qcow2 -c 'write -P 4 512k 1M' -c 'write -z 21M 1M' \
    -c 'write -P 5 63M 4k' -c 'write -P 6 10000001 77' top.qcow2 >/dev/null

image=top.qcow2
nbdkit_options=(-r)
serve_plugin "$image"
[ "$(nbdinfo --size "$uri")" = $((64 << 20)) ]
diff <(qemu_map top.qcow2) <(our_map)
compare -f qcow2
nbdinfo --can multi-conn "$uri"
nbdinfo --is read-only "$uri"
nbdinfo --can cache "$uri"
if qemu-io -f raw -c 'write 0 4k' "$uri"; then
    fail "a write was not refused"
fi
# Locked for writers only.
qemu-img map top.qcow2 >/dev/null
if qemu-io -f qcow2 -c 'write 0 4k' top.qcow2 >out 2>&1; then
    fail "QEMU writes into what we read"
fi
grep -q 'Failed to get "write" lock' out
stop_plugin

# Compressed clusters, and a raw image with holes that is not probed.
image=packed.qcow2
qemu-img convert -c -O qcow2 top.qcow2 packed.qcow2
serve_plugin file=packed.qcow2 format=qcow2
compare -f qcow2
stop_plugin

image=disk.img
truncate -s 8M disk.img
qemu-io -f raw -c 'write -P 7 1M 64k' disk.img >/dev/null
serve_plugin disk.img format=raw
compare -f raw
stop_plugin
serve_plugin "json:{\"driver\": \"raw\", \"file\": {\"driver\": \"file\",
    \"filename\": \"$PWD/disk.img\"}}"
compare -f raw
stop_plugin

# Backing files: files beside the image, files that are allowed, or none.
mkdir elsewhere
qemu-img create -q -f qcow2 -b "$PWD/disk.img" -F raw elsewhere/over.qcow2
plugin_refused "$PWD/disk.img" elsewhere/over.qcow2
image=elsewhere/over.qcow2
serve_plugin elsewhere/over.qcow2 allow-path="$PWD"
compare -f qcow2
stop_plugin
serve_plugin elsewhere/over.qcow2 backing=off
[ "$(our_map)" = "0 $((8 << 20)) 3" ]
stop_plugin

# An image that is marked as corrupt is read, and not written to.
qemu-img create -q -f qcow2 bad.qcow2 1M
printf '\002' | dd of=bad.qcow2 bs=1 seek=79 conv=notrunc status=none
nbdkit_options=()
serve_plugin bad.qcow2
nbdinfo --is read-only "$uri"
stop_plugin
