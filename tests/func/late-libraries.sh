#!/bin/bash
# libnbd and gnutls are loaded when they are first used.  Where one is missing,
# what needs it fails and names it, and all else works.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

for file in "$nbdelta" "$plugin"; do
    ! readelf -d "$file" | grep NEEDED | grep -E 'libnbd|libgnutls' ||
        fail "$file is linked with it"
done

mkimg disk.raw 1M
cp disk.raw other.raw
make_pki keys
serve --tls=off disk=disk.raw
nbdelta info "$uri" >/dev/null
! grep -E 'libgnutls|libnbd' "/proc/$server/maps" ||
    fail "a server without TLS has loaded it"

# A file that is no library stands for one that is missing.
mkdir missing
: >missing/libnbd.so.0
export LD_LIBRARY_PATH=$PWD/missing
if nbdelta info "$uri" >out 2>&1; then
    fail "info of an export does without libnbd"
fi
grep -q "libnbd.so.0.*Debian's package libnbd0 has it" out ||
    fail "$(cat out)"
nbdelta info other.raw >/dev/null
stop_server
serve disk=disk.raw
if nbdelta qmp "$qmp_sock" blockdev-add \
    driver=nbd node-name=n server.type=unix server.path="$sock" >out 2>&1; then
    fail "an nbd node does without libnbd"
fi
grep -q "libnbd.so.0.*Debian's package libnbd0 has it" out || fail "$(cat out)"
nbdelta qmp "$qmp_sock" query-named-block-nodes >/dev/null
stop_server

mv missing/libnbd.so.0 missing/libgnutls.so.30
serve_refused "libgnutls.so.30: file too short (Debian's package libgnutls30" \
    -U tls.sock --tls-certificates=keys disk.raw
serve_refused "libgnutls.so.30" -U tls.sock --object \
    secret,id=s,data=c2VjcmV0,format=base64 \
    --blockdev luks,node-name=l,key-secret=s,file.driver=file,file.filename=disk.raw
if nbdelta points . >out 2>&1; then
    fail "points does without gnutls"
fi
grep -q "libgnutls.so.30.*Debian's package libgnutls30 has it" out ||
    fail "$(cat out)"
serve disk=disk.raw
LD_LIBRARY_PATH='' nbdelta compare other.raw "$uri"
stop_server
