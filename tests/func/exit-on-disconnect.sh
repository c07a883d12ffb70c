#!/bin/bash
# --exit-on-disconnect: the daemon ends in order when its last client has
# gone, not before, in the foreground and in the background.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-io qemu-img timeout

qemu-img create -q -f qcow2 disk.qcow2 4M

# Two clients: the daemon stays while one is there.
mkfifo commands
nbdelta serve --exit-on-disconnect -U "$sock" --pidfile "$pidfile" \
    --qmp "$qmp_sock" disk.qcow2 &
server=$!
wait_until "the server is ready" server_ready
qemu-io -f raw "$uri" <commands >first.out &
first=$!
exec 7>commands
echo 'write -q -P 1 0 64k' >&7
has_written() {
    qmp query-block-exports >/dev/null 2>&1 &&
        qemu-img map -f raw --output=json "$(uri_of disk0)" 2>/dev/null |
            grep -q '"data": true'
}
wait_until "the first client has written" has_written
qemu-io -f raw -c 'write -q -P 2 1M 64k' "$uri"
kill -0 "$server" || fail "it ended while a client was there"
echo 'write -q -P 3 2M 64k' >&7
exec 7>&-
wait "$first" || fail "the first client: $(cat first.out)"
timeout 60 tail --pid="$server" -f /dev/null || fail "it does not end"
rc=0
wait "$server" || rc=$?
server=
[ "$rc" -eq 0 ] || fail "it ended with $rc"
[ ! -e "$sock" ] || fail "it has left its socket"
[ ! -e "$pidfile" ] || fail "it has left its pidfile"
qemu-io -f qcow2 -r -c 'read -P 1 0 64k' -c 'read -P 2 1M 64k' \
    -c 'read -P 3 2M 64k' disk.qcow2 >read.out
! grep -q failed read.out || fail "$(cat read.out)"

nbdelta serve --exit-on-disconnect --daemonize -U "$sock" \
    --pidfile "$pidfile" disk.qcow2
pid=$(cat "$pidfile")
qemu-io -f raw -c 'read -q -P 1 0 64k' "$uri"
timeout 60 tail --pid="$pid" -f /dev/null || {
    kill -KILL "$pid"
    fail "in the background it does not end"
}
qemu-img check -q disk.qcow2
