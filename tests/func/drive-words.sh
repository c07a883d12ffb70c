#!/bin/bash
# Words of --drive that only it has: file=NAME beside file.KEY, old names of
# limits; and discard=ignore, which keeps the space of zeroes, too.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

# start OPTIONS: serve a drive of these options
start() {
    rm -f "$pidfile"
    nbdelta serve --vm-compat --qmp "$qmp_sock" --pidfile "$pidfile" \
        --drive "$1" &
    server=$!
    wait_until "the server is ready" server_ready
}

is() {
    [ "$1" = "$2" ] || fail "got $1, not $2"
}

hmp() {
    is "$(qmp human-monitor-command command-line="qemu-io d \"$1\"")" '""'
}

# A driver in file.driver is between the outer one and the file.
qemu-img create -q -f qcow2 a,b.qcow2 1M
start 'id=d,if=none,file=a,,b.qcow2,driver=raw,file.driver=qcow2,iops_wr=16,iops_wr_max=20'
hmp 'write -qP 7 0 64k'
is "$(qmp query-block | jq -c '.[0].inserted | [.drv, .iops_wr, .iops_wr_max,
    .iops]')" '["raw",16,20,0]'
stop_server
qemu-io -f qcow2 -c 'read -P 7 0 64k' a,b.qcow2 >out
if grep -q failed out; then
    fail "the file is no qcow2 image any more"
fi

# Options go to the file itself where its driver is the same, or not said.
mkimg disk.raw 1M
start 'disk.raw,id=d,format=raw,file.locking=off'
is "$(qmp query-block | jq -r '.[0].inserted.file')" disk.raw
stop_server
serve_refused "can't be used at the same time" --vm-compat \
    --drive file=disk.raw,format=raw,iops=5,throttling.iops-total=5
serve_refused "conflicts with 'id'" --vm-compat \
    --drive file=disk.raw,format=raw,id=d,id.x=5

# Blocks of 512 bytes that disk.raw has.
blocks() {
    stat -c %b disk.raw
}

start 'disk.raw,id=d,format=raw'
hmp 'write -qP 1 0 1M'
hmp 'write -qzu 0 1M'
[ "$(blocks)" -ge 2048 ] || fail "a disk that ignores discards gave up space"
stop_server
start 'disk.raw,id=d,format=raw,discard=unmap'
hmp 'write -qP 1 0 1M'
hmp 'write -qz 0 1M'
[ "$(blocks)" -ge 2048 ] || fail "zeroes that may not unmap gave up space"
hmp 'write -qzu 0 1M'
[ "$(blocks)" -lt 64 ] || fail "$(blocks) blocks are left"
stop_server
