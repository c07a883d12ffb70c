#!/bin/bash
# Backups that clients pull of disks in Ceph while the cluster hangs, has shut us
# out, or loses its OSD; and a daemon that is killed when some snapshots have become
# checkpoints.  Nobody else waits, and no snapshot is left.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
# shellcheck source=tests/func/ceph.bash
. "$SRCDIR/tests/func/ceph.bash"
need jq qemu-io
need_ceph

refused() {
    local text=$1
    shift
    ! "$@" >refused.out 2>&1 || fail "$*: not refused"
    grep -qF -e "$text" refused.out || fail "$*: said $(cat refused.out)"
}
begin() { # OPTION...: sets id
    nbdelta backup-begin "$qmp_sock" --output json "$@" >begun 2>begin.err ||
        fail "backup-begin $*: $(cat begin.err)"
    id=$(jq -r .id begun)
}
end() { nbdelta backup-end "$qmp_sock" "$@" >end.out; }
mode_of() { jq -r --arg d "$1" '.disks[] | select(.node == $d).mode' begun; }
snapshots_are() { # IMAGE NAME...
    local image=$1
    shift
    rbd snap ls --format json "$image" | jq -r '.[].name' >snaps
    printf '%s\n' "$@" | sed '/^$/d' | diff - snaps >diff.out
}
has_pending() { # IMAGE
    rbd snap ls --format json "$1" | jq -r '.[].name' >snaps
    grep '^nbdelta\.backup\.' snaps
}
# An OSD that was stopped for long may never go on (its leases are over).
hang_cluster() {
    kill -STOP "$(cat ceph/mon.pid)"
    ceph_daemon kill osd
}
wake_cluster() {
    kill -CONT "$(cat ceph/mon.pid)"
    ceph_daemon run osd
}

for disk in a b c d; do
    rbd create --size 16M $disk
done
serve_all() {
    serve a="$(rbd_of a)" b="$(rbd_of b)" c="$(rbd_of c)" d="$(rbd_of d)" \
        2>>server.log
}
serve_all

# --- A cluster that hangs ---

begin --disk a --checkpoint retried
retried=$id
begin --disk b --checkpoint given-up
given_up=$id
begin --disk c --checkpoint failed
failed=$id
hang_cluster
# All at once, because each of them waits until it has been too long.
pids=()
refused "does not answer" end "$retried" &
pids+=($!)
refused "does not answer" end "$given_up" &
pids+=($!)
end "$failed" --failed &
pids+=($!)
(refused "does not answer" nbdelta backup-begin "$qmp_sock" --disk d) &
pids+=($!)
# Meanwhile others can do things, and those that have not ended are there.
qmp query-backups >query
for pid in "${pids[@]}"; do
    kill -0 "$pid" || fail "a command has not waited for the cluster"
done
jq -e --arg a "$retried" --arg b "$given_up" \
    'map(.id) | index($a) != null and index($b) != null' query >out ||
    fail "$(cat query)"
for pid in "${pids[@]}"; do
    wait "$pid" || fail "$(cat refused.out server.log)"
done
wake_cluster
# What came too late was done all the same.
wait_until "a's is renamed" snapshots_are a nbdelta.checkpoint.retried
wait_until "b's is renamed" snapshots_are b nbdelta.checkpoint.given-up
wait_until "c's is removed" snapshots_are c ""
end "$retried"
snapshots_are a nbdelta.checkpoint.retried
end "$given_up" --failed
snapshots_are b ""
snapshots_are d ""
qmp query-backups >query
[ "$(cat query)" = "[]" ] || fail "$(cat query)"

# --- No OSD: the snapshot would come too late ---

ceph_daemon kill osd
refused "does not answer" nbdelta backup-begin "$qmp_sock" --disk a \
    --checkpoint late
ceph_daemon run osd
qemu-io -f raw -c 'write -q -P 1 0 1M' -c flush "$(uri_of a)" >io.out 2>&1 ||
    fail "$(cat io.out)"
wait_until "what came too late is removed" snapshots_are a \
    nbdelta.checkpoint.retried

# --- Killed when some have become checkpoints ---

quick_locks
stop_server
serve_all
begin --disk a --disk b --checkpoint half
rbd snap rename "a@$(has_pending a)" a@nbdelta.checkpoint.half
kill_server
slow_locks
serve_all
rc=0
nbdelta backup-begin "$qmp_sock" --output json --disk a,since=half \
    --disk b,since=half --disk c >begun 2>begin.err || rc=$?
[ "$rc" = 3 ] || fail "$rc: $(cat begin.err)"
id=$(jq -r .id begun)
[ "$(mode_of a)" = incremental ]
[ "$(mode_of b)" = full ]
[ "$(has_pending b | wc -l)" = 1 ] || fail "left: $(cat snaps)"
end "$id" --failed
snapshots_are b ""
qmp checkpoint-delete name=half

# --- Shut out ---

begin --disk d --checkpoint out
ceph osd blocklist add "$(rbd status --format json d |
    jq -r '.watchers[0].address')" 2>out
shut_out() {
    ! qemu-io -f raw "$(uri_of d)" -c 'write -q 0 64k' -c flush \
        >io.out 2>&1 || grep -q -i error io.out
}
wait_until "writes fail" shut_out
refused "blocklist" end "$id"
end "$id" --failed
has_pending d >out || fail "who has removed it?"
kill -TERM "$server"
wait "$server" || [ $? -eq 1 ] # it may tell of what it could not flush
server=
serve_all
begin --disk d --checkpoint out
[ "$(has_pending d | wc -l)" = 1 ] || fail "left: $(cat snaps)"
end "$id"
snapshots_are d nbdelta.checkpoint.out
stop_server
