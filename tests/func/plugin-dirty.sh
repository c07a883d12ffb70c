#!/bin/bash
# Dirty views in nbdkit: the man page's increment, word for word; a chain of
# increments with bitmaps of several granularities equals the disk each time.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_plugin
need nbdinfo nbdcopy qemu-io qemu-img qemu-nbd jq

view() {
    echo "nbd+unix:///disk0@dirty=$1?socket=$sock"
}
runs() {
    nbdinfo --map --json "$(view "$1")" |
        jq -c '[.[] | select(.type == 0) | [.offset, .length]]'
}

# A view is read-only, is listed, tells what it is, and is of no multi-conn.
qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-img bitmap --add -g 4k disk.qcow2 fine
qemu-img bitmap --add -g 1M disk.qcow2 coarse
serve_plugin disk.qcow2
qemu-io -f raw -c 'write -P 1 0 64M' "$uri" >/dev/null
stop_plugin
qemu-img convert -O qcow2 disk.qcow2 0.qcow2
qemu-img bitmap --clear disk.qcow2 fine
qemu-img bitmap --clear disk.qcow2 coarse
serve_plugin disk.qcow2
nbdinfo --is read-only "$(view fine)"
if nbdinfo --can multi-conn "$(view fine)" ||
    nbdinfo --can trim "$(view fine)"; then
    fail "a view can what it cannot"
fi
nbdinfo --list --json "$uri" | jq -e '.exports |
    map(select(."export-name" == "disk0@dirty=fine")) |
    .[0].description == "what the bitmap '\''fine'\'' has dirty"' >/dev/null
nbdinfo --json "$(view fine)" | jq -e '.exports[0].description ==
    "what the bitmap '\''fine'\'' has dirty"' >/dev/null
qemu-io -f raw -c 'write -P 2 1000k 4k' -c 'write -z 3M 12k' \
    -c 'discard 5M 64k' -c 'write -P 3 10000001 77' "$uri" >/dev/null
[ "$(runs fine)" = \
    '[[1024000,4096],[3145728,12288],[5242880,65536],[9998336,4096]]' ]
[ "$(runs coarse)" = '[[0,1048576],[3145728,1048576],[5242880,1048576],[9437184,1048576]]' ]
# Bytes are the disk's, beside what is dirty, too.
qemu-io -f raw -r -c 'read -P 1 0 1000k' -c 'read -P 2 1000k 4k' \
    -c 'read -P 1 1004k 2068k' -c 'read -P 0 3M 12k' "$(view fine)" >io.out
! grep 'verification failed' io.out || fail "a view has other bytes"
stop_plugin

# Increments of both, each over the last; zeroes take the place of data.
pull() {
    nbdcopy --destination-is-zero -S 0 "$(view "$1")" -- \
        [ qemu-nbd -f qcow2 "$2" ]
}
for ((i = 1; i <= 3; i++)); do
    bitmap=fine
    [ "$i" -ne 2 ] || bitmap=coarse
    qemu-img create -q -f qcow2 -b $((i - 1)).qcow2 -F qcow2 $i.qcow2
    nbdkit_options=(-r)
    serve_plugin disk.qcow2
    pull "$bitmap" $i.qcow2
    stop_plugin
    qemu-img check -q $i.qcow2
    qemu-img compare -q disk.qcow2 $i.qcow2 || fail "increment $i differs"
    # Not all of it was copied.
    [ "$(stat -c %s $i.qcow2)" -lt $((8 << 20)) ]
    qemu-img bitmap --clear disk.qcow2 fine
    qemu-img bitmap --clear disk.qcow2 coarse
    nbdkit_options=()
    serve_plugin disk.qcow2
    qemu-io -f raw -c "write -P $i $((i * 7))M 100k" \
        -c "write -z $((i * 9000))k 1M" -c "discard $((i * 17000))k 1M" \
        "$uri" >/dev/null
    stop_plugin
done

# Of a bitmap of the backing file there is no view: it tells nothing about the
# disk.
qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 over.qcow2
qemu-img bitmap --add over.qcow2 own
serve_plugin over.qcow2
runs own >/dev/null
for bitmap in nosuch fine; do
    if nbdcopy "$(view $bitmap)" null: 2>err; then
        fail "there is a view of $bitmap"
    fi
done

# A stop waits for clients, and what they have open then nbdkit leaves to us.
cat >hold.py <<'END'
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(512, 0)
print("open", flush=True)
sys.stdin.readline()
END
coproc HOLD { exec /usr/bin/python3 hold.py "$(view own)"; }
read -r line <&"${HOLD[0]}"
[ "$line" = open ]
client=$HOLD_PID
kill -TERM "$server"
sleep 0.3
echo >&"${HOLD[1]}"
wait "$client"
stop_plugin

# The man page; under a preloaded runtime --run does not work.
[ -z "${SANITIZE-}" ] || exit 0
rm -f -- *.qcow2
nbdkit() {
    local arg args=()
    for arg; do
        [ "$arg" != nbdelta ] || arg=$plugin
        args+=("$arg")
    done
    command nbdkit "${args[@]}"
}
mkimg boot.img 20M 1
mkimg more.img 6M 2
sed -n '/^\.SH DIRTY/,/^\.SH EX/{/^\.EX$/,/^\.EE$/{/^\.E[XE]$/!p}}' \
    "$SRCDIR/man/nbdkit-nbdelta-plugin.1" |
    sed -e 's/\\-/-/g' -e 's/\\e/\\/g' -e "s/\\\\(aq/'/g" >example
[ -s example ]
# shellcheck source=/dev/null
. ./example
qemu-img compare disk.qcow2 inc.qcow2
[ "$(qemu-img info --output json inc.qcow2 | jq -r '."backing-filename"')" = \
    full.qcow2 ]
