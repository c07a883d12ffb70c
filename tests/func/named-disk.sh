#!/bin/bash
# NAME of NAME=IMAGE is the disk that its clients see, wherever a snapshot or a
# commit has moved the clients.  Backups, pulls and bitmaps by that name follow,
# and a backup never silently has the old state.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-io qemu-img nbdcopy jq

guest() {
    qemu-io -f raw -c "write -P$1 $2 64k" -c flush "$uri" >/dev/null
}

# Both ways of a backup have what a client reads, in a raw image each.
uri="nbd+unix:///vda?socket=$sock"
backups_are_true() {
    rm -f now.raw pushed.raw pulled.raw
    nbdcopy "$uri" now.raw
    qmp --wait drive-backup device=vda sync=full format=raw \
        target="$PWD/pushed.raw" >out
    cmp now.raw pushed.raw || fail "$1: the backup is of another disk"
    nbdelta backup-begin "$qmp_sock" --disk vda >out
    grep -q 'vda@b[0-9]*?' out || fail "$1: exported as $(cat out)"
    # A bitmap that comes now is one of the disk, not of the backup's filter.
    qmp block-dirty-bitmap-add node=vda name=during >/dev/null
    nbdcopy "$(sed -n 's/^ *\(nbd.*\)$/\1/p' out)" pulled.raw
    nbdelta backup-end "$qmp_sock" "$(sed -n 's/^\(b[0-9]*\):.*/\1/p' out)"
    cmp now.raw pulled.raw || fail "$1: the pulled backup is of another disk"
    guest "$3" 512k
    qmp query-block | jq -e --arg f "$2" '.[0].inserted |
        (.file | endswith($f)) and ([."dirty-bitmaps"[] |
        select(.name == "during") | .count] == [65536])' >/dev/null ||
        fail "$1: query-block says $(qmp query-block)"
    qmp block-dirty-bitmap-remove node=vda name=during >/dev/null
}

nbdelta create disk.qcow2 1M
serve vda=disk.qcow2
guest 0x11 0
qmp block-dirty-bitmap-add node=vda name=b0 persistent=true >/dev/null
backups_are_true "at first" disk.qcow2 0x12

qmp blockdev-snapshot-sync device=vda snapshot-file="$PWD/over.qcow2" >/dev/null
guest 0x22 64k
backups_are_true "above a snapshot" over.qcow2 0x23

# The bitmap stays with the image that has it: no increment misses a write.
if qmp --wait drive-backup device=vda sync=incremental bitmap=b0 format=qcow2 \
    target="$PWD/inc.qcow2" >out 2>&1; then
    fail "an increment by a bitmap that has not seen the writes"
fi
grep -q "Bitmap 'b0' could not be found" out || fail "said: $(cat out)"

qmp query-named-block-nodes | jq -e '[.[] | select(."node-name" == "vda") |
    ."dirty-bitmaps"[].name] == ["b0"]' >/dev/null || fail "b0 is lost"
qmp block-dirty-bitmap-add node=vda name=b0 >/dev/null # of the overlay
qmp block-dirty-bitmap-remove node=vda name=b0 >/dev/null
if qmp block-dirty-bitmap-clear node=vda name=b0 >out 2>&1; then
    fail "a bitmap in a read-only image was cleared"
fi
grep -q "'b0' is readonly" out || fail "said: $(cat out)"

commit() {
    qmp block-commit device=vda "$@" >/dev/null
    wait_until "ready" ready
    qmp job-complete id=vda >/dev/null
    wait_until "the end of the job" gone
}
ready() { [ "$(qmp query-jobs | jq -r '.[0].status')" = ready ]; }
gone() { [ "$(qmp query-jobs)" = '[]' ]; }
commit base-node=vda
guest 0x33 128k
backups_are_true "merged again" disk.qcow2 0x34
stop_server

# The other way round: the name began above.
nbdelta create -b disk.qcow2 -F qcow2 top.qcow2
serve vda=top.qcow2
guest 0x44 192k
commit
guest 0x55 256k
backups_are_true "merged into the base" disk.qcow2 0x56
stop_server
qemu-img check -q disk.qcow2
