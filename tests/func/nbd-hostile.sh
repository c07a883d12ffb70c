#!/bin/bash
# Clients that stall, flood and die delay nobody, leave nothing behind, and do
# not keep the server from stopping.  With OVER_TLS=yes they speak TLS.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

head -c 64M /dev/urandom >disk.raw
tls=
if [ "${OVER_TLS-}" ]; then
    need certtool
    tls=pki
    make_pki pki
fi
serve ${tls:+--tls-certificates pki --tls-verify-peer} -f raw disk=disk.raw
qmp block-export-add type=nbd id=again node-name=disk name=again \
    writable=true >/dev/null
export PYTHONDONTWRITEBYTECODE=1
mkfifo go
# shellcheck disable=SC2086  # a word, or none
python "$SRCDIR/tests/func/nbd-hostile.py" "$sock" "$server" $tls <go >said &
client=$!
exec 3>go
stuck_or_ended() {
    [ -s said ] || ! kill -0 "$client" 2>/dev/null
}
tries=0
until stuck_or_ended; do
    tries=$((tries + 1))
    [ "$tries" -lt 2400 ] || fail "the clients hang"
    sleep 0.1
done
[ "$(cat said)" = stuck ] || fail "the clients have failed"

# Two dozen clients have asked for a gigabyte and read nothing.
since=$SECONDS
stop_server
[ $((SECONDS - since)) -lt 30 ] || fail "it took $((SECONDS - since)) s to stop"
exec 3>&-
wait "$client"
