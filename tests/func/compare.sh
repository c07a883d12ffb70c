#!/bin/bash
# nbdelta compare: output and exit status are those of qemu-img compare, for
# images, exports and points.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io

status() { # COMMAND...
    local rc=0
    "$@" >out 2>err || rc=$?
    echo $rc
}

# As qemu-img: STATUS [OPTION...] A B
same_as_qemu() {
    local want=$1
    shift
    [ "$(status qemu-img compare "$@")" = "$want" ] || fail "qemu-img: $*"
    mv out qemu.out
    [ "$(status nbdelta compare "$@")" = "$want" ] || fail "compare $*"
    # qemu-img tells the sector.
    perl -pi -e 's/offset (\d+)!/"offset " . ($1 - $1 % 512) . "!"/e' out
    diff qemu.out out || fail "compare $*"
}

qemu-img create -q -f qcow2 a.qcow2 64M
qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 9M 3M' -c 'write -P 3 63M 1M' \
    a.qcow2 >out
qemu-img convert -O raw a.qcow2 a.raw
qemu-img convert -c -O qcow2 -o cluster_size=4k a.qcow2 packed.qcow2
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2
same_as_qemu 0 a.qcow2 a.raw
same_as_qemu 0 -f qcow2 -F raw a.qcow2 a.raw
same_as_qemu 0 packed.qcow2 top.qcow2
same_as_qemu 0 -s a.qcow2 a.qcow2
same_as_qemu 0 -q a.qcow2 a.raw
same_as_qemu 0 -U a.qcow2 a.raw
same_as_qemu 0 --image-opts driver=qcow2,file.filename=a.qcow2 \
    driver=raw,file.filename=a.raw

# The first byte that differs, of several; data beside zeroes.
for where in 64M-1 12M-1 10000001 1 0; do
    cp a.qcow2 b.qcow2
    qemu-io -c "write -P 9 63M 1M" b.qcow2 >out
    qemu-io -c "write -P 7 $((${where//M/*1048576})) 1" b.qcow2 >out
    same_as_qemu 1 a.qcow2 b.qcow2
    same_as_qemu 1 b.qcow2 a.raw
    same_as_qemu 1 -q b.qcow2 top.qcow2
done
[ "$(status nbdelta compare a.qcow2 b.qcow2)" = 1 ]
grep -qx 'Content mismatch at offset 0!' out
cp a.qcow2 b2.qcow2
qemu-io -c 'write -P 7 10000001 1' b2.qcow2 >out
[ "$(status nbdelta compare a.qcow2 b2.qcow2)" = 1 ]
grep -qx 'Content mismatch at offset 10000001!' out

# Zeroes that are data are the same as a hole, unless that counts, too.
cp a.qcow2 zeroes.qcow2
qemu-io -c 'write -P 0 20M 2M' zeroes.qcow2 >out
same_as_qemu 0 a.qcow2 zeroes.qcow2
same_as_qemu 1 -s a.qcow2 zeroes.qcow2

# Sizes.
for tail in zeroes data; do
    cp a.raw longer.raw
    truncate -s 80M longer.raw
    [ "$tail" = zeroes ] ||
        printf 'x' | dd of=longer.raw bs=1 seek=80000001 conv=notrunc \
            status=none
    want=$([ "$tail" = zeroes ] && echo 0 || echo 1)
    same_as_qemu "$want" -f raw -F raw a.raw longer.raw
    same_as_qemu "$want" -f raw longer.raw a.qcow2
    same_as_qemu 1 -s -f raw -F raw a.raw longer.raw
done
# What differs where both are comes before what one of them has behind.
printf 'y' | dd of=longer.raw bs=1 seek=5 conv=notrunc status=none
same_as_qemu 1 -f raw -F raw a.raw longer.raw
qemu-img create -q -f raw none.raw 0
same_as_qemu 0 -f raw -F raw none.raw none.raw

# What cannot be opened, or read.
[ "$(status nbdelta compare a.qcow2 nosuch)" = 2 ]
grep -q nosuch err
[ "$(status nbdelta compare a.qcow2)" = 2 ]
[ "$(status nbdelta compare -f qcow2 a.raw a.raw)" = 2 ]
cat >rules <<'R'
[inject-error]
event = "read_aio"
errno = "5"
R
[ "$(status nbdelta compare a.raw blkdebug:rules:a.qcow2)" = 4 ] ||
    fail "a read fails: $(cat out err)"
grep -q 'blkdebug:rules:a.qcow2.*Input/output error' err
[ ! -s out ]

# An export, and points.
serve vda=b.qcow2
uri=$(uri_of vda)
[ "$(status nbdelta compare "$uri" "$uri")" = 0 ]
[ "$(status nbdelta compare a.qcow2 "$uri")" = 1 ]
grep -qx 'Content mismatch at offset 0!' out
[ "$(status nbdelta compare b.qcow2 "$uri")" = 5 ] # it is in use
[ "$(status nbdelta compare -U b.qcow2 "$uri")" = 0 ]
stop_server

nbdelta backup a.qcow2 dir
qemu-io -c 'write -P 5 30M 1M' a.qcow2 >out
[ "$(status nbdelta compare dir a.raw)" = 0 ] || fail "$(cat err)"
[ "$(status nbdelta compare a.qcow2 dir@latest)" = 1 ]
grep -qx "Content mismatch at offset $((30 << 20))!" out
nbdelta backup a.qcow2 dir
[ "$(status nbdelta compare a.qcow2 dir)" = 0 ]
[ "$(status nbdelta compare a.raw dir@latest~1)" = 0 ]
[ "$(status nbdelta compare --disk a a.qcow2 dir)" = 0 ]
[ "$(status nbdelta compare --disk b a.qcow2 dir)" = 2 ]
[ "$(status nbdelta compare a.qcow2 dir@latest~7)" = 2 ]
