#!/bin/bash
# Backups over NBD: a full one and increments, into raw and qcow2 images of
# another server, while the disk is written to; and of a remote disk.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need jq qemu-img qemu-io qemu-nbd

declare -A far_pid
# far NAME FORMAT FILE: another server with FILE as an export; sets far_uri.
far() {
    rm -f "$1.pid" "$1.far"
    qemu-nbd -t -e 8 -k "$PWD/$1.far" --pid-file="$1.pid" -x "$1" -f "$2" --discard=unmap "$3" &
    far_pid[$1]=$!
    wait_until "qemu-nbd listens" test -s "$1.pid"
    far_uri="nbd+unix:///$1?socket=$PWD/$1.far"
}
end_far() {
    local name
    for name in "$@"; do
        kill "${far_pid[$name]}"
        wait "${far_pid[$name]}" || :
        unset "far_pid[$name]"
    done
}
end_all() {
    end_far "${!far_pid[@]}"
}
at_exit end_all
io() {
    qemu-io -f raw "$uri" "$@" >io.out
    ! grep -q -e failed -e error io.out || fail "qemu-io $*: $(cat io.out)"
}
backup() {
    qmp drive-backup device=vda mode=existing --wait "$@"
}

qemu-img create -q -f qcow2 vda.qcow2 64M
serve vda=vda.qcow2
io -c 'write -P 1 0 8M' -c 'write -P 2 20M 1M' -c 'write -P 3 63M 1M'
qmp block-dirty-bitmap-add node=vda name=b0

# Full, raw, on a target that has other bytes.
head -c 64M /dev/urandom >full.raw
far full raw full.raw
backup sync=full format=raw "target=$far_uri"
end_far full
qemu-img compare -q -f raw -F raw "$uri" full.raw
[ "$(du -k full.raw | cut -f 1)" -lt 20000 ] || fail "zeroes were written"

# An increment into qcow2, with the far side's own backing file; a guest
# writes meanwhile.
io -c 'write -P 4 1M 64k' -c 'write -P 5 30M 128k' -c 'write -z 20M 1M'
qemu-img convert -f raw -O raw "$uri" point1.raw
qemu-img create -q -f qcow2 -b full.raw -F raw inc1.qcow2
far inc1 qcow2 inc1.qcow2
qmp blockdev-add driver=nbd node-name=inc1 server.type=unix "server.path=$PWD/inc1.far" export=inc1
qmp blockdev-backup device=vda job-id=j target=inc1 sync=incremental bitmap=b0 speed=65536
io -c 'write -P 9 1M 1M' -c 'write -P 9 40M 1M'
qmp block-job-set-speed device=j speed=0
finished() {
    [ "$(qmp query-jobs | jq length)" = 0 ]
}
wait_until "the job is done" finished
qmp blockdev-del node-name=inc1
end_far inc1
qemu-img check -q inc1.qcow2
qemu-img compare -q -f raw -F qcow2 point1.raw inc1.qcow2
[ "$(qemu-img map --output json inc1.qcow2 | jq '[.[] | select(.depth == 0) | .length] | add')" -le $((3 << 20)) ] ||
    fail "the increment holds more than has changed"

# The next one as a qcow2 image inside of an export, which has room for it.
qemu-img convert -f raw -O raw "$uri" point2.raw
qemu-img create -q -f qcow2 inc2.qcow2 64M
truncate -s 70M inc2.qcow2
far inc2 raw inc2.qcow2
backup sync=incremental bitmap=b0 format=qcow2 "target=$far_uri"
end_far inc2
qemu-img check -q inc2.qcow2
qemu-img rebase -q -u -f qcow2 -b inc1.qcow2 -F qcow2 inc2.qcow2
qemu-img compare -q -f raw -F qcow2 point2.raw inc2.qcow2

# Without room the job fails, and the bitmap loses nothing.
io -c 'write -P 6 0 16M'
qemu-img create -q -f qcow2 small.qcow2 64M
truncate -s 1M small.qcow2
far small raw small.qcow2
if backup sync=incremental bitmap=b0 format=qcow2 "target=$far_uri" >out 2>&1; then
    fail "it found room"
fi
grep -q 'No space left' out || fail "said: $(cat out)"
end_far small
[ "$(qmp query-named-block-nodes | jq '[.[] | select(."node-name" == "vda") | ."dirty-bitmaps"[0].count] | add')" -ge $((16 << 20)) ]
# Of another size.
truncate -s 32M other.raw
far other raw other.raw
if backup sync=full format=raw "target=$far_uri" >out 2>&1; then
    fail "it took a target of another size"
fi
grep -q 'different sizes' out || fail "said: $(cat out)"
end_far other

# What is no image yet becomes one; the bytes that are there are not seen.
head -c 80M /dev/urandom >new.raw
far new raw new.raw
qmp drive-backup device=vda sync=full format=qcow2 "target=$far_uri" --wait
end_far new
qemu-img check -q new.raw
qemu-img compare -q -f raw -F qcow2 "$uri" new.raw
head -c 64M /dev/urandom >new.raw
far new raw new.raw
qmp drive-backup device=vda sync=full format=raw "target=$far_uri" --wait
end_far new
qemu-img compare -q -f raw -F raw "$uri" new.raw
stop_server

# A remote disk as the source.
far src qcow2 vda.qcow2
serve vda="$far_uri"
qmp block-dirty-bitmap-add node=vda name=b0
qmp drive-backup device=vda sync=full format=qcow2 "target=$PWD/local.qcow2" --wait
qemu-img compare -q -f raw -F qcow2 "$far_uri" local.qcow2
io -c 'write -P 8 5M 64k'
qemu-img create -q -f qcow2 -b local.qcow2 -F qcow2 local1.qcow2
backup sync=incremental bitmap=b0 format=qcow2 "target=$PWD/local1.qcow2"
qemu-img compare -q -f raw -F qcow2 "$far_uri" local1.qcow2
stop_server
end_far src
