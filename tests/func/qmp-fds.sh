#!/bin/bash
# Descriptors that clients of a monitor pass: names, sets, who closes them, and
# whose the locks are.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img

truncate -s 1M raw
qemu-img create -q -f qcow2 disk.qcow2 4M
qemu-img create -q -f qcow2 -u -b /dev/fdset/0 -F raw names.qcow2 1M
python "$SRCDIR/tests/func/qmp-fds.py" "$nbdelta"

# On the command line, where something stands in for QEMU.
serve_refused 'fd is not valid' --vm-compat --add-fd fd=77,set=1
serve_refused 'standard I/O' --vm-compat --add-fd fd=1,set=1
serve_refused 'need --vm-compat' --add-fd fd=7,set=1
serve_refused 'Failed to find fdset /dev/fdset/4' --vm-compat \
    --drive file=/dev/fdset/4,format=raw,id=d,if=none
exec 7<>raw
nbdelta serve --vm-compat --drive file=/dev/fdset/3,format=raw,id=d,if=none \
    --add-fd fd=7,set=3,opaque=rw --qmp "$qmp_sock" --pidfile "$pidfile" \
    >/dev/null &
server=$!
exec 7<&-
wait_until "the server is ready" server_ready
qmp query-fdsets >out
grep -q '"opaque": "rw"' out || fail "$(cat out)"
qmp human-monitor-command 'command-line=qemu-io d "write -P 7 4k 4k"'
qmp quit
wait "$server"
server=
[ "$(tail -c +4097 raw | head -c 4096 | tr -d '\7' | wc -c)" = 0 ] ||
    fail "nothing was written through the descriptor"
