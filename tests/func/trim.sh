#!/bin/bash
# What clients of NAME=IMAGE trim is freed, also after a snapshot.  Where trims
# are ignored or refused, the log says so once.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-io

fill() {
    head -c 8M /dev/zero | tr '\0' x >"$1"
}
kept() {
    [ "$(stat -c %b "$1")" -ge 16384 ]
}
client() {
    python - "$SRCDIR/tests/func" "$@" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from nbd_raw import *
c = Client("nbd.sock").go(sys.argv[2])
for _ in range(3):
    error = c.error(TRIM, int(sys.argv[3]), 8 << 20)
assert (error != 0) == (sys.argv[4] == "refused"), error
assert c.alive()
END
}

fill disk.raw
fill kept.raw
fill old.raw
serve disk=disk.raw 'kept=json:{"driver": "raw", "discard": "ignore",
    "file": {"driver": "file", "filename": "kept.raw"}}' \
    --blockdev raw,node-name=old,file.driver=file,file.filename=old.raw \
    --export nbd,id=old,node-name=old,writable=on 2>log
client disk 0 'done'
kept disk.raw && fail "a trim has freed nothing"
grep "clients trim" log && fail "without a reason: $(cat log)"
for name in kept old; do
    client $name 0 'done'
    kept $name.raw || fail "a trim was not ignored"
    n=$(grep -c "export '$name': clients trim, and nothing is freed" log) || :
    [ "$n" -eq 1 ] || fail "$n lines of $name: $(cat log)"
done
client disk 4096 refused
n=$(grep -c "export 'disk': a client's discard at 4096 (8388608 bytes) was \
refused: the range is not inside" log) || :
[ "$n" -eq 1 ] || fail "$n lines of a refusal: $(cat log)"

qmp blockdev-snapshot-sync device=disk "snapshot-file=$PWD/over.qcow2" >out
qemu-io -f raw -c 'write -P 2 0 8M' "$(uri_of disk)" >out
client disk 0 'done'
stop_server
kept over.qcow2 && fail "after a snapshot trims are ignored"
grep -q "export 'disk': clients trim" log && fail "$(cat log)"
exit 0
