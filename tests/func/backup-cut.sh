#!/bin/bash
# The connection of a `nbdelta backup` over a network is cut in the middle of the
# copy: it is made again, and the point is right; or nobody is there any more,
# and the run ends after --timeout, with no point and nothing left.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img certtool

make_pki pki
mkimg vda.raw $((24 << 20)) 7
serve --tls require --tls-certificates pki vda=vda.raw

begin() {
    rm -f port cut
    /usr/bin/python3 -SE "$SRCDIR/tests/func/backup-cut.py" "$sock" "$@" &
    proxy=$!
    at_exit eval "kill $proxy 2>/dev/null || true"
    wait_until "the proxy listens" test -s port
}
backup() {
    nbdelta backup --tls-certificates pki "$@"
}

begin 3000000 once
backup "nbds://localhost:$(cat port)/vda" dir 2>said || fail "cut: $?, $(cat said)"
[ -e cut ] || fail "it was not cut"
[ ! -s said ] || fail "cut: said $(cat said)"
qemu-img compare -q -f qcow2 -F raw dir/vda/*.qcow2 vda.raw || fail "the point"
nbdelta verify dir
kill "$proxy"

begin 3000000 gone
rc=0
timeout 60 "$nbdelta" backup --tls-certificates pki --timeout=1 \
    "nbds://localhost:$(cat port)/vda" gone 2>said || rc=$?
[ -e cut ] || fail "it was not cut"
[ "$rc" = 1 ] || fail "gone: $rc, $(cat said)"
grep -q "disk 'vda'" said || fail "gone: $(cat said)"
[ -z "$(find gone -name '*Z.json')" ] || fail "gone: a point"
stop_server
