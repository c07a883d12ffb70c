#!/bin/bash
# The NBD protocol rule by rule, broken ones first, by a client of our own; in
# the clear and over TLS.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io certtool

for f in rw ro; do
    truncate -s $((4 * 1024 * 1024 + 512)) $f.raw
    qemu-io -f raw -c 'write -P 1 0 100k' -c 'write -P 2 1M 1M' \
        -c 'write -P 3 4M 512' $f.raw >/dev/null
done
cp ro.raw ro.copy
make_pki pki
for tls in '' pki; do
    qemu-img create -q -f qcow2 big.qcow2 16T
    serve ${tls:+--tls on --tls-certificates pki --tls-verify-peer} \
        rw=json:'{"driver": "raw", "file": {"driver": "file",
            "filename": "rw.raw"}}' \
        ro=json:'{"driver": "raw", "read-only": true,
            "file": {"driver": "file", "filename": "ro.raw"}}' big=big.qcow2 \
    --export nbd,id=told,node-name=ro,name=told,description='for a human'
    # shellcheck disable=SC2086  # a word, or none
    python "$SRCDIR/tests/func/nbd-protocol.py" "$sock" $tls
    kill -0 "$server"
    stop_server
done
cmp ro.raw ro.copy || fail "a read-only export has changed"
