#!/bin/bash
# A cluster of Ceph that is full: what needs room fails with cache.direct, waits
# otherwise, and goes on when there is room; what needs none is carried out.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
# shellcheck source=tests/func/ceph.bash
. "$SRCDIR/tests/func/ceph.bash"
need jq qemu-img qemu-io
need_ceph

io() { # EXPORT ARGUMENT...
    local uri
    uri=$(uri_of "$1")
    shift
    qemu-io -f raw "$uri" "$@" >io.out 2>&1 || fail "qemu-io $*: $(cat io.out)"
    ! grep -q -e failed -e error io.out || fail "qemu-io $*: $(cat io.out)"
}
no_room() { # EXPORT COMMAND
    qemu-io -f raw "$(uri_of "$1")" -c "$2" >io.out 2>&1 || :
    grep -q 'No space left on device' io.out || fail "$2: $(cat io.out)"
}
# An OSD looks at its own ratios once a second.
ratios() {
    local kind
    for kind in "${@:2}"; do
        ceph osd "set-$kind-ratio" "$1" 2>out
    done
}
is_full() {
    ceph osd dump --format json >osd.json 2>dump.err &&
        jq -e '.pools[0].flags_names | split(",") | index("full")' osd.json >out
}
has_room() { ! is_full; }
state_is() {
    qmp query-jobs | jq -e --arg s "$1" '.[0].status == $s' >out
}

where="driver=rbd,pool=rbd,conf=$CEPH_CONF"
for image in direct cached target; do
    nbdelta create -f rbd "$(rbd_of $image)" 64M
done
serve --blockdev "$where,node-name=direct,image=direct,cache.direct=on,discard=unmap" \
    --blockdev "$where,node-name=target,image=target,cache.direct=on" \
    --blockdev "$where,node-name=cached,image=cached" \
    --export type=nbd,id=direct,node-name=direct,name=direct,writable=on \
    --export type=nbd,id=cached,node-name=cached,name=cached,writable=on \
    2>server.log
io direct -c 'write -q -P 1 0 12M' -c flush
io cached -c 'write -q -P 1 0 4M' -c flush

ratios 0.0001 nearfull backfillfull full
wait_until "the pool is full" is_full
# The daemon may know a moment later.
full_here() {
    qemu-io -f raw "$(uri_of direct)" -c 'write 20M 64k' >io.out 2>&1 || :
    grep -q 'No space left on device' io.out
}
wait_until "writes fail" full_here

no_room direct 'write 12M 4M'
no_room direct 'write -f 16M 512'
io direct -c 'write -q -P 2 0 4M' -c 'discard 8M 4M' -c flush \
    -c 'read -q -P 2 0 4M' -c 'read -q -P 1 4M 4M' -c 'read -q -P 0 8M 8M'
! nbdelta create -f rbd "$(rbd_of more)" 64M >create.out 2>&1 || fail "made"
grep -q 'error rbd create: No space left on device' create.out ||
    fail "$(cat create.out)"

# A job that is to stop for want of room does.
qmp blockdev-backup job-id=copy device=direct target=target sync=full \
    on-target-error=enospc >out
wait_until "the job has stopped" state_is paused
qmp query-block-jobs | jq -e '.[0]."io-status" == "nospace"' >out ||
    fail "$(qmp query-block-jobs)"

# What the cache has taken waits, and the daemon goes on.
qemu-io -f raw "$(uri_of cached)" -c 'write -q -P 3 4M 48M' -c flush \
    -c 'read -q -P 3 4M 48M' >later.out 2>&1 &
later=$!
io direct -c 'read -q -P 2 0 4M'
qmp query-named-block-nodes >out
kill -0 "$later" || fail "it has found room: $(cat later.out)"

ratios 0.95 full backfillfull nearfull
wait_until "there is room" has_room
wait "$later" || fail "$(cat later.out)"
! grep -q -e failed -e error later.out || fail "$(cat later.out)"
# Its placement groups hear of room one after the other.
goes_on() {
    ! state_is paused || qmp block-job-resume device=copy >out
    qmp query-jobs | jq -e 'length == 0' >out
}
wait_until "the job has ended" goes_on
! grep -q "job 'copy' (backup) failed" server.log || fail "$(cat server.log)"
qemu-io -r -f raw "$(rbd_of target)" -c 'read -q -P 2 0 4M' \
    -c 'read -q -P 1 4M 4M' -c 'read -q -P 0 8M 8M' >io.out ||
    fail "$(cat io.out)"
! grep -q -i fail io.out || fail "$(cat io.out)"
io direct -c 'write -q -P 5 12M 4M' -c flush -c 'read -q -P 5 12M 4M'
stop_server
