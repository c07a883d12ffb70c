#!/bin/bash
# drive-backup with compress: zlib and zstd, small and large clusters, also
# over a target that has data; QEMU reads what we packed, and it is smaller.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io jq

size_of() {
    stat -c %s "$1"
}

nbdelta create disk.qcow2 32M
yes 'something that can be packed' | head -c 9M >text || true
head -c 3M /dev/urandom >noise
qemu-io -f qcow2 -c 'write -q -s text 1M 9M' -c 'write -q -s noise 20M 3M' \
    -c 'write -q -P 7 31M 1M' disk.qcow2
serve disk0=disk.qcow2
for shape in zlib:64k zstd:64k zlib:512 zlib:4k zlib:2M zstd:2M; do
    target=${shape/:/-}.qcow2
    qemu-img create -q -f qcow2 \
        -o "compression_type=${shape%:*},cluster_size=${shape#*:}" \
        "$target" 32M
    # What is replaced may be packed as well as not.
    qemu-io -f qcow2 -c 'write -q -P 1 0 2M' -c 'write -q -c -P 2 4M 2M' \
        "$target"
    qmp --wait drive-backup job-id=j device=disk0 sync=full mode=existing \
        format=qcow2 compress=true target="$target" >/dev/null
    qemu-img check -q "$target"
    qemu-img compare -U -q "$target" disk.qcow2
    if [ "${shape#*:}" != 512 ]; then
        qemu-img map --output=json "$target" |
            jq -e '[.[] | select(.data) | has("offset")] | any and (all | not)' \
                >/dev/null || fail "$shape: nothing is packed, or the noise is"
    fi
done
[ "$(size_of zlib-64k.qcow2)" -lt $((8 << 20)) ] ||
    fail "9 MiB of text and 3 MiB of noise take $(size_of zlib-64k.qcow2)"

# Only qcow2 can.
if qmp drive-backup job-id=j device=disk0 sync=full format=raw \
    compress=true target=t.raw 2>err; then
    fail "a raw image cannot be compressed"
fi
grep -q 'Compression is not supported for this drive' err

# An increment, packed into an overlay.
qmp block-dirty-bitmap-add node=disk0 name=b >/dev/null
qemu-io -f raw -c 'write -q -P 3 5M 3M' -c 'write -q -P 4 21M 100k' \
    "$(uri_of disk0)"
qemu-img create -q -f qcow2 -b zlib-64k.qcow2 -F qcow2 inc.qcow2
qmp --wait drive-backup job-id=j device=disk0 sync=incremental bitmap=b \
    mode=existing format=qcow2 compress=true target=inc.qcow2 >/dev/null
stop_server
qemu-img check -q inc.qcow2
qemu-img compare -q inc.qcow2 disk.qcow2
[ "$(size_of inc.qcow2)" -lt $((1 << 20)) ]
