#!/bin/bash
# Typical mistakes are told as tests/messages.tsv says: what is wrong, with which
# object, and what to do where that is known.  Nothing is left by a command that
# was refused.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img

mkdir here
cd here
for disk in d e; do
    qemu-img create -q -f qcow2 $disk.qcow2 1M
done
truncate -s 1M r.raw
sock=$PWD/nbd.sock
qmp_sock=$PWD/qmp.sock
serve --log-level=error vda=d.qcow2
# Another daemon, with keys.
qemu-img create -q -f qcow2 t.qcow2 1M
echo "alice:$(printf '%064d' 1)" >key.psk
echo "alice:$(printf '%064d' 2)" >other.psk
nbdelta serve --log=null --daemonize -U "$PWD/tls.sock" --qmp "$PWD/tls.qmp" \
    --tls-psk key.psk vdt=t.qcow2
at_exit nbdelta qmp --quiet "$PWD/tls.qmp" quit
find . | sort >../before

NOBODY() {
    setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
}

count=0
while IFS=$'\t' read -r command status text <&3; do
    case $command in
    \#* | '') continue ;;
    NOBODY*)
        if [ "$(id -u)" != 0 ] || ! NOBODY test -r "$PWD/e.qcow2" -a -x "$nbdelta"
        then
            continue
        fi ;;
    'ulimit'*) [ -z "${SANITIZE-}" ] || continue ;;
    esac
    rc=0
    (eval "$command") >../out 2>../err </dev/null || rc=$?
    [ "$rc" = "$status" ] || fail "$command: $rc, not $status: $(cat ../err)"
    grep -qF -e "$text" ../err || fail "$command: '$(cat ../err)', not '$text'"
    count=$((count + 1))
done 3<"$SRCDIR/tests/messages.tsv"
[ "$count" -ge 35 ] || fail "only $count mistakes"
find . | sort | diff ../before - || fail "a refused command has left something"
cd ..
stop_server
