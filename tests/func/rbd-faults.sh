#!/bin/bash
# Images of Ceph when the cluster fails: an OSD and a monitor that are killed in
# the middle of I/O, a cluster that is paused, a client on the blocklist; and kill -9
# of the daemon.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
# shellcheck source=tests/func/ceph.bash
. "$SRCDIR/tests/func/ceph.bash"
need jq qemu-io
need_ceph

io() {
    qemu-io -f raw "$(uri_of a)" "$@" >io.out 2>&1 ||
        fail "qemu-io $*: $(cat io.out)"
    ! grep -q -e failed -e error io.out || fail "qemu-io $*: $(cat io.out)"
}
later() { # a write that will have to wait
    qemu-io -f raw "$(uri_of a)" "$@" >later.out 2>&1 &
    later=$!
}
comes() {
    wait "$later" || fail "it failed: $(cat later.out)"
    ! grep -q -e failed -e error later.out || fail "$(cat later.out)"
}

nbdelta create -f rbd "$(rbd_of a)" 64M
serve --blockdev "driver=rbd,node-name=a,pool=rbd,image=a,conf=$CEPH_CONF" \
    --export type=nbd,id=a,node-name=a,name=a,writable=on 2>server.log
io -c 'write -q -P 1 0 8M'

# What is written while there is no OSD is written when it is back.
ceph_daemon kill osd
later -c 'write -q -P 2 0 4M' -c 'write -q -f -P 3 8M 4M' -c flush
sleep 0.5
kill -0 "$later" || fail "a write has ended without an OSD"
qmp query-status >out # the daemon goes on
ceph_daemon run osd
comes
io -c 'read -q -P 2 0 4M' -c 'read -q -P 1 4M 4M' -c 'read -q -P 3 8M 4M'

# Without a monitor what is open goes on.
ceph_daemon kill mon
io -c 'write -q -P 4 12M 4M' -c flush -c 'read -q -P 4 12M 4M'
ceph_daemon run mon
wait_until "the monitor answers" ceph --connect-timeout 5 mon stat

# A cluster that is paused, as one that is full is for writes.
ceph osd pause 2>out
later -c 'write -q -P 5 20M 4M' -c flush
sleep 0.5
kill -0 "$later" || fail "a write has ended in a cluster that is paused"
ceph osd unpause 2>out
comes
io -c 'read -q -P 5 20M 4M' -c 'read -q -P 4 12M 4M'

# Shut out: an error, which the log explains; and a node that is opened again
# has the image.
address=$(rbd status --format json a | jq -r '.watchers[0].address')
ceph osd blocklist add "$address" 2>out
shut_out() {
    ! qemu-io -f raw "$(uri_of a)" -c 'write -q -P 6 0 4M' -c flush \
        >io.out 2>&1 || grep -q -i error io.out
}
wait_until "writes fail" shut_out
grep -q "node 'a': the cluster has put this connection on its blocklist" \
    server.log || fail "$(cat server.log)"
qmp block-export-del id=a >out
qmp blockdev-del node-name=a >out
qmp blockdev-add driver=rbd node-name=a pool=rbd image=a conf="$CEPH_CONF" >out
qmp block-export-add type=nbd id=a node-name=a name=a writable=true >out
io -c 'read -q -P 5 20M 4M' -c 'write -q -P 7 0 4M' -c flush

# After kill -9 of the daemon the next one has what was flushed.  Its flush does
# not wait for the lock of the dead client, because it has written nothing.  (A
# write would wait for half a minute, until the cluster knows that the lock's
# owner is dead.)
kill_server
rbd lock ls --format json a >dead.lock
jq -e 'length == 1' dead.lock >out || fail "no lock: $(cat dead.lock)"
serve --blockdev "driver=rbd,node-name=a,pool=rbd,image=a,conf=$CEPH_CONF" \
    --export type=nbd,id=a,node-name=a,name=a,writable=on
io -c 'read -q -P 7 0 4M' -c 'read -q -P 5 20M 4M' -c flush
stop_server
rbd lock ls --format json a | diff dead.lock - || fail "it has taken the lock"
