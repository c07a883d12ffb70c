#!/bin/bash
# Errors name the place of the trouble: the image that wants a file that is not
# there, the side of a backup that failed, the owner of a socket.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need nbdcopy jq

# --- A chain with a gap: the image that names the file, not only the file. ---

nbdelta create base.qcow2 1M
nbdelta create -b base.qcow2 -F qcow2 mid.qcow2
nbdelta create -b mid.qcow2 -F qcow2 top.qcow2
mv base.qcow2 away
serve_refused "image 'mid.qcow2' names the file 'base.qcow2', which cannot be opened: No such file" \
    -U s top.qcow2
mv away base.qcow2

# --- A device that says it is read-only, at once and not with the first write. ---

truncate -s 1M ro.raw
loop=
if [ "$(id -u)" = 0 ] && loop=$(losetup -r -f --show ro.raw 2>/dev/null); then
    at_exit losetup -d "$loop"
    serve_refused "The device is not writable: Permission denied" -U s -f raw "$loop"
    serve -r "ro=$loop"
    [ "$(nbdinfo --json "$uri" | jq '.exports[0].is_read_only')" = true ]
    if qmp blockdev-reopen '{"options": [{"driver": "raw", "node-name": "ro",
        "read-only": false, "file": {"driver": "file", "filename":
        "'"$loop"'"}}]}' >out 2>&1; then
        fail "it has become writable"
    fi
    grep -q 'not writable' out || fail "reopening: $(cat out)"
    stop_server
fi

# --- Sockets. ---

serve base.qcow2
told() {
    if nbdelta qmp "$1" query-name >out 2>&1; then
        fail "$1: answered"
    fi
    grep -q -F "$2" out || fail "$1: $(cat out)"
}
told "$sock" "does not speak QMP (the socket for it is that of --qmp)"
serve_refused "in use (another process listens on it)" -U "$sock" top.qcow2
touch plain
serve_refused "in use (it is something else than a socket)" -U plain top.qcow2
[ -f plain ]

kill -9 "$server"
wait "$server" 2>/dev/null || true
server=
for left in "$sock" "$qmp_sock"; do
    [ -S "$left" ] || fail "'$left' has gone"
done
told "$qmp_sock" "refused (the daemon that made it is gone)"
serve base.qcow2 # on the same sockets, with nothing to clean up
qmp query-name >/dev/null
stop_server

# --- A backup that fails tells which side it was. ---

serve broken=driver=blkdebug,inject-error.0.event=none,inject-error.0.iotype=read,image.driver=null-co,image.size=1M \
    good=driver=null-co,size=1M
qmp blockdev-add driver=null-co node-name=room size=1M >out
qmp blockdev-add driver=blkdebug node-name=full image.driver=null-co image.size=1M \
    inject-error.0.event=none inject-error.0.iotype=write inject-error.0.errno=28 >out
backup_fails() {
    if qmp --wait blockdev-backup job-id=j device="$1" target="$2" sync=full \
        >out 2>err; then
        fail "$1 to $2: copied"
    fi
    [ "$(cat err)" = "nbdelta: qmp: job 'j': $3" ] ||
        fail "$1 to $2: $(cat err)"
}
backup_fails broken room "Input/output error (while reading from the source)"
backup_fails good full "No space left on device (while writing to the target)"
stop_server
