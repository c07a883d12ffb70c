#!/bin/bash
# `nbdelta backup` where nobody can tell what has changed: all is read, compared
# with the point before, and what differs is written over it.  Each point is
# equal to the disk as it was, read by qemu-img alone.  What the point before
# has is not believed where its hashes say otherwise.
set -eu -o pipefail
. "$SRCDIR/tests/func/lib.sh"

latest() {
    find dir -maxdepth 1 -name '*Z.json' | sort | tail -n 1 |
        sed 's,dir/\(.*\).json,\1,'
}

# The latest point is $1, and equal to the disk; it was made so, with exit $2.
made() {
    local point
    point=$(latest)
    jq -e --arg k "$1" '.disks[0] | "\(.kind) \(.reason // "-")" == $k' \
        "dir/$point.json" >/dev/null ||
        fail "not $1: $(jq -c '.disks[0]' "dir/$point.json")"
    qemu-img compare -q "dir/disk/$point.qcow2" disk.raw ||
        fail "point $point is not the disk"
    qemu-img check -q "dir/disk/$point.qcow2"
}

# Guest bytes that the latest point alone decides.
decides() {
    qemu-img map --output=json "dir/disk/$(latest).qcow2" |
        jq '[.[] | select(.depth == 0 and .present) | .length] | add // 0'
}

change() {
    qemu-io -f raw disk.raw "$@" >/dev/null
}

# A raw image keeps no bitmaps.
truncate -s $((64 * 1024 * 1024 + 512)) disk.raw
change -c 'write -P 1 0 5M' -c 'write -P 2 20M 3M' -c 'write -P 3 64M 512'
nbdelta backup disk.raw dir
made 'full new-disk'

# Nothing has changed.
nbdelta backup --no-fallback disk.raw dir 2>said || fail "exit $?"
[ ! -s said ] || fail "it says: $(cat said)"
made 'compared no-bitmaps'
[ "$(decides)" = 0 ] || fail "nothing has changed, and $(decides) are written"

# Parts of units, whole ones, zeroes over data, data over zeroes, the last one;
# then over that once more, so that units come of three files.
change -c 'write -P 4 1M 64k' -c 'write -P 5 2176k 64k' -c 'write -z 20M 1M' \
    -c 'write -P 6 40M 2M' -c 'write -P 7 64M 512' -c 'write -z 4M 64k'
nbdelta backup disk.raw dir
made 'compared no-bitmaps'
[ "$(decides)" = $(((64 + 64 + 1024 + 2048 + 64) * 1024 + 512)) ] ||
    fail "$(decides) bytes are decided"
change -c 'write -P 8 1088k 64k' -c 'write -P 9 2240k 64k' \
    -c 'write -P 4 20M 64k' -c 'write -z 41M 64k'
nbdelta backup --progress=json --compress=zstd disk.raw dir 2>progress
made 'compared no-bitmaps'
[ "$(decides)" = $((256 * 1024)) ] || fail "$(decides) bytes are decided"
change -c 'write -P 10 1M 64k' # as it was, below
nbdelta backup disk.raw dir
made 'compared no-bitmaps'
[ "$(decides)" = 65536 ] || fail "$(decides) bytes are decided"
nbdelta verify dir >/dev/null
nbdelta restore dir disk=restored.raw
cmp disk.raw restored.raw

# An NBD export without a bitmap, read by several connections, in slow motion.
serve -r disk=disk.raw
nbdelta backup --new-source --progress=json --rate=100M \
    "nbd+unix:///disk?socket=$(pwd)/nbd.sock" dir 2>progress
stop_server
made 'compared no-checkpoint'
[ "$(decides)" = 0 ] || fail "an export has $(decides) more bytes"
jq -es 'map(.done <= .total) | all' progress >/dev/null || fail "$(cat progress)"

# --full is one.
nbdelta backup --full --new-source disk.raw dir
made 'full asked'

# The point before has other bytes than were written.  Where it is held against
# the disk, that is found: nothing is put over it.
change -c 'write -P 11 3M 1M' -c 'write -P 12 30M 64k'
nbdelta backup disk.raw dir
made 'compared no-bitmaps'
base=$(find dir/disk -name '*.qcow2' | sort | tail -n 2 | head -n 1)
at=$(qemu-img map --output=json "$base" |
    jq '.[] | select(.start <= 2097152 and .start + .length > 2097152) |
        .offset + 2097152 - .start')
printf x | dd of="$base" bs=1 seek="$at" conv=notrunc status=none
change -c 'write -P 13 2112k 64k'
before=$(latest)
rc=0
nbdelta backup --no-fallback disk.raw dir 2>said || rc=$?
[ "$rc" = 4 ] || fail "--no-fallback over damage: $rc"
[ "$(latest)" = "$before" ] || fail "--no-fallback has made a point"
rc=0
nbdelta backup disk.raw dir 2>said || rc=$?
[ "$rc" = 3 ] || fail "over damage: $rc"
grep -q parent-damaged said || fail "$(cat said)"
made 'full parent-damaged'
nbdelta points dir | grep -q damage || fail "the damage is not noted"

# A daemon is asked for all of a disk whose point before cannot be used.
qemu-img create -q -f qcow2 vm.qcow2 8M
qemu-io -f qcow2 vm.qcow2 -c 'write -P 1 0 4M' >/dev/null
serve vm=vm.qcow2
nbdelta backup "$qmp_sock" vmdir
rm vmdir/vm/*.sums
qemu-io -f raw -c 'write -P 2 1M 64k' \
    "nbd+unix:///vm?socket=$(pwd)/nbd.sock" >/dev/null
rc=0
nbdelta backup "$qmp_sock" vmdir 2>said || rc=$?
[ "$rc" = 3 ] || fail "a daemon's disk as a whole: $rc, $(cat said)"
stop_server
qemu-img compare -q vm.qcow2 \
    "$(find vmdir/vm -name '*.qcow2' | sort | tail -n 1)"
