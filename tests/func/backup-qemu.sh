#!/bin/bash
# `nbdelta backup` of a running QEMU and of our own daemon: the second point has
# what has changed, each is equal to the disk at its instant, and the source is
# as it was.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-system-x86_64 qemu-img qemu-io jq

# One command of HMP to QEMU, which says nothing when it works.
hmp() {
    nbdelta qmp qemu.sock human-monitor-command command-line="$1" >said
    [ "$(cat said)" = '""' ] || fail "$1: $(cat said)"
}

latest() {
    find "$1" -maxdepth 1 -name '*Z.json' | sort | tail -n 1 |
        sed 's,.*/\(.*\).json,\1,'
}

kind_of() {
    jq -r '.disks[0] | "\(.kind) \(.reason)"' "$1"
}

# --- QEMU ---

qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-system-x86_64 -M pc -m 32 -S -display none -qmp unix:qemu.sock,server,nowait \
    -blockdev driver=qcow2,node-name=vda,file.driver=file,file.filename=disk.qcow2 \
    -device virtio-blk-pci,drive=vda,id=vda,share-rw=on -nodefaults &
qemu=$!
end_qemu() {
    kill "$qemu" 2>/dev/null || true
}
at_exit end_qemu
wait_until "QEMU answers" nbdelta qmp qemu.sock query-status
hmp 'qemu-io vda "write -P 1 0 3M"'
nbdelta backup --output=json qemu.sock dir >report || fail "full: $?"
[ "$(kind_of report)" = 'full new-disk' ] || fail "$(cat report)"
first=$(latest dir)
hmp 'qemu-io vda "write -P 2 10M 1M"'
nbdelta backup --output=json qemu.sock dir >report || fail "increment: $?"
[ "$(kind_of report)" = 'increment null' ] || fail "$(cat report)"
jq -e '.disks[0].written == 1048576' report >/dev/null || fail "$(cat report)"
second=$(latest dir)
# Nothing of ours is left there, except for one checkpoint.
nbdelta qmp qemu.sock query-named-block-nodes >nodes
jq -e '[.[] | select(.["node-name"] == "vda") | .["dirty-bitmaps"][]] |
    length == 1' nodes >/dev/null || fail "$(cat nodes)"
nbdelta qmp qemu.sock query-block-jobs | jq -e 'length == 0' >/dev/null
nbdelta qmp qemu.sock query-block-exports | jq -e 'length == 0' >/dev/null
nbdelta qmp qemu.sock quit >/dev/null
wait "$qemu" || true
qemu-img compare -q "dir/vda/$second.qcow2" disk.qcow2 || fail "second point"
qemu-io -r -f qcow2 "dir/vda/$first.qcow2" -c 'read -P 1 0 3M' \
    -c 'read -P 0 3M 61M' | grep -q 'verification failed' && fail "first point"

# --- Our daemon, on the same image: its checkpoint goes on there. ---

serve vda=disk.qcow2
qemu-io -f raw "$(uri_of vda)" -c 'write -P 3 20M 64k' >/dev/null
nbdelta backup --output=json "$qmp_sock" dir >report || fail "our daemon: $?"
[ "$(kind_of report)" = 'increment null' ] || fail "$(cat report)"
jq -e '.disks[0].written == 65536' report >/dev/null || fail "$(cat report)"
stop_server
qemu-img compare -q "dir/vda/$(latest dir).qcow2" disk.qcow2 || fail "third"
nbdelta verify dir || fail "verify: $?"

# --- Two disks change their names: bitmaps of one name are about the other. ---

qemu-img create -q -f qcow2 other.qcow2 64M
serve vda=disk.qcow2 vdb=other.qcow2
nbdelta backup "$qmp_sock" two || fail "two disks: $?"
qemu-io -f raw "$(uri_of vdb)" -c 'write -P 5 30M 64k' >/dev/null
stop_server
serve vda=other.qcow2 vdb=disk.qcow2
nbdelta backup --output=json "$qmp_sock" two >report || fail "changed: $?"
jq -e '[.disks[].reason] == ["moved", "moved"]' report >/dev/null ||
    fail "$(cat report)"
stop_server
qemu-img compare -q "two/vda/$(latest two).qcow2" other.qcow2 || fail "new vda"
qemu-img compare -q "two/vdb/$(latest two).qcow2" disk.qcow2 || fail "new vdb"
