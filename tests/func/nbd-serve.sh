#!/bin/bash
# The command line of nbdelta serve, its sockets, its pidfile, its end.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo qemu-img qemu-io jq

truncate -s 1M a.raw b.raw c.raw

# What makes no sense: one line, a hint, status 2.
usage() {
    local rc=0 text=$1
    shift
    timeout 60 nbdelta serve "$@" >out 2>err || rc=$?
    [ "$rc" -eq 2 ] || fail "nbdelta serve $*: status $rc, not 2"
    grep -q "^nbdelta: serve: .*$text" err || fail "$*: $(cat err)"
    grep -q 'nbdelta serve --help' err || fail "$*: no hint: $(cat err)"
}
usage 'image' -U s
usage 'no option' --nosuch a.raw
usage 'needs an argument' a.raw -U
usage '-U' -U s -p 10809 a.raw
usage 'port' -p -1 a.raw
usage 'port' -p 65536 a.raw
usage 'port' -p 12x a.raw
nbdelta serve --help >help
grep -q -e --pidfile help

# What cannot work: one line, status 1, nothing left.
refused() {
    serve_refused "$@"
    [ "$(wc -l <refused.out)" = 1 ] || fail "$(cat refused.out)"
    grep -q '^nbdelta: serve: ' refused.out || fail "$(cat refused.out)"
    [ ! -e s ] || fail "a socket was left"
}
refused 'nosuch.raw' -U s nosuch.raw
refused 'nosuch' -U s -f nosuch a.raw
refused 'x/y/s' -U x/y/s -f raw a.raw
refused 'longer than' -U "$(printf '%0200d' 0)" -f raw a.raw
refused 'x' -U s -f raw x=a.raw x=b.raw
refused 'x/y/pid' -U s --pidfile x/y/pid -f raw a.raw
refused 'nosuchdir' -U s --allow-path nosuchdir a.raw
mkdir inner
qemu-img create -q -f qcow2 -b "$PWD/a.raw" -F raw inner/over.qcow2
refused 'a.raw' -U s inner/over.qcow2

# Names: given, by number, and of what looks like a name but is none.
cp a.raw 1=a.raw
serve one=a.raw b.raw ./1=a.raw \
    'json:{"driver": "raw", "file": {"driver": "file", "filename": "c.raw"}}' \
    driver=mem,size=2M
nbdinfo --list --json "$uri" | jq -c '[.exports[] | [."export-name",
    ."export-size"]]' >names
[ "$(cat names)" = '[["one",1048576],["disk1",1048576],["disk2",1048576],["disk3",1048576],["disk4",2097152]]' ] ||
    fail "names: $(cat names)"
qmp query-named-block-nodes | jq -e 'map(."node-name") |
    contains(["one", "disk1", "disk4"])' >out

# Only our user can open the socket; a socket on which a server listens is not
# taken over.
[ "$(stat -c %a "$sock")" = 600 ]
[ "$(cat "$pidfile")" = "$server" ]
serve_refused 'in use' -U "$sock" driver=null-co,size=1M
refused "$server" -U s --pidfile "$pidfile" \
    driver=null-co,size=1M
[ "$(cat "$pidfile")" = "$server" ]
[ "$(nbdinfo --size "$uri")" = 1048576 ]

# The image is locked meanwhile.
refused 'a.raw' -U s -f raw a.raw
if qemu-io -f raw -c 'write 0 512' a.raw >out 2>&1; then
    fail "QEMU could write to an image that is served"
fi

# Killed: what it left is replaced.
kill -KILL "$server"
wait "$server" 2>/dev/null || true
server=
[ -S "$sock" ] && [ -e "$pidfile" ]
serve -r -f raw a.raw
nbdinfo --is read-only "$uri"
# A file in the place of the socket is not removed, a second signal harmless.
rm "$sock"
echo mine >"$sock"
kill -INT "$server"
kill -TERM "$server" 2>/dev/null || true
kill -INT "$server" 2>/dev/null || true
wait "$server" || fail "the server ended with $?"
server=
[ "$(cat "$sock")" = mine ] || fail "a file that was not ours was removed"
[ ! -e "$pidfile" ]
serve_refused 'in use' -U "$sock" -f raw a.raw
rm "$sock"

# Requests that were received are done when it stops.
serve -f raw a.raw
python - "$PWD" "$sock" "$server" "$SRCDIR/tests/func" <<'END'
import os, signal, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[4])
from nbd_raw import *
c = Client(sys.argv[2]).go()
assert c.error(WRITE, 0, 512, data=b"s" * 512) == 0
os.kill(int(sys.argv[3]), signal.SIGTERM)
assert c.ended()
END
wait "$server" || fail "the server ended with $?"
server=
qemu-io -f raw -c 'read -P 0x73 0 512' a.raw >out
if grep -q 'verification failed' out; then
    fail "a write that was answered is not there"
fi
