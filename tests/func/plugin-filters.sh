#!/bin/bash
# nbdkit's filters over the plugin: each filter does its work with a qcow2
# image, and bitmaps have what went through the filter.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_plugin
need nbdinfo nbdcopy qemu-io qemu-img jq
for filter in cow partition readahead delay error stats protect; do
    [ -e "$(pkg-config nbdkit --variable=filterdir)/nbdkit-$filter-filter.so" ] ||
        skip "nbdkit has no filter $filter"
done

filtered() {
    nbdkit_options=("--filter=$1")
    shift
    serve_plugin "$@"
}
guest() {
    qemu-io -f raw "$@" "$uri" >io.out 2>&1 &&
        ! grep -q 'verification failed' io.out
}
dirty() {
    nbdinfo --map --json "nbd+unix:///@dirty=b0?socket=$sock" |
        jq -c '[.[] | select(.type == 0) | [.offset, .length]]'
}

mkimg disk.raw 16M
qemu-img convert -O qcow2 disk.raw disk.qcow2
sum=$(sha256sum <disk.qcow2)

# cow: a fresh layer; the image is opened for reading only.
filtered cow disk.qcow2
guest -c 'write -P 200 1M 1M' -c 'read -P 200 1M 1M' || fail "cow: $(cat io.out)"
stop_plugin
[ "$(sha256sum <disk.qcow2)" = "$sum" ] || fail "cow: the image has changed"

# readahead asks for what comes next; delay only takes its time.
for filter in readahead delay; do
    if [ "$filter" = delay ]; then
        filtered delay disk.qcow2 delay-read=20ms
    else
        filtered readahead disk.qcow2
    fi
    rm -f out.raw
    nbdcopy -C 1 "$uri" out.raw
    cmp disk.raw out.raw
    stop_plugin
done

# stats counts.
filtered stats disk.qcow2 statsfile=stats.txt
guest -c 'write -P 1 0 64k' -c 'read -P 1 0 64k' -c 'discard 64k 64k' -c flush ||
    fail "stats: $(cat io.out)"
stop_plugin
for op in read write trim flush; do
    grep -q "^$op: " stats.txt || fail "stats has no $op: $(cat stats.txt)"
done

# error: its own errors come through, and nothing of such a write is there.
filtered error disk.qcow2 bitmap=b0 error=ENOSPC error-pwrite-rate=100%
if guest -c 'write -P 9 2M 64k'; then
    fail "error: the write succeeded"
fi
grep -q 'No space left on device' io.out
[ "$(dirty)" = '[]' ] || fail "a write that failed above left bits: $(dirty)"
stop_plugin

# protect: what is protected stays, the rest is written and dirty.
filtered protect disk.qcow2 bitmap=b0 protect=0-1048575
if guest -c 'write -P 9 64k 64k'; then
    fail "protect: the write succeeded"
fi
grep -q 'Operation not permitted' io.out
guest -c 'write -P 9 2M 64k' || fail "protect: $(cat io.out)"
[ "$(dirty)" = '[[2097152,65536]]' ] || fail "dirty: $(dirty)"
stop_plugin

# partition: the second 4 MiB of the disk; bits are those of the whole disk.
python - <<'END'
import struct
entry = struct.pack("<B3sB3sII", 0, b"\0" * 3, 0x83, b"\0" * 3, 8192, 8192)
open("table", "wb").write(b"\0" * 446 + entry + b"\0" * 48 + b"\x55\xaa")
END
qemu-img bitmap --clear disk.qcow2 b0
nbdkit_options=()
serve_plugin disk.qcow2
guest -c 'write -s table 0 512' || fail "a partition table: $(cat io.out)"
stop_plugin
qemu-img bitmap --clear disk.qcow2 b0
filtered partition disk.qcow2 bitmap=b0 partition=1
[ "$(nbdinfo --size "$uri")" = 4194304 ]
guest -c 'write -P 77 1M 64k' || fail "partition: $(cat io.out)"
stop_plugin
nbdkit_options=(-r)
serve_plugin disk.qcow2
[ "$(dirty)" = '[[5242880,65536]]' ] || fail "dirty: $(dirty)"
guest -r -c 'read -P 77 5M 64k' || fail "partition: $(cat io.out)"
stop_plugin
qemu-img check -q disk.qcow2
