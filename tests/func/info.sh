#!/bin/bash
# nbdelta info: for an image, JSON has what qemu-img's JSON has, and text has
# the same lines.  For an export, both have what the server offers, also a
# server of another make.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

same() {
    nbdelta info --output json "$1" | jq -S . >ours.json
    qemu-img info --output json "$1" | jq -S 'del(.children)' >theirs.json
    diff theirs.json ours.json
    nbdelta info "$1" | sort >ours.txt
    qemu-img info "$1" | sed '/^Child node/,$d' | sort >theirs.txt
    diff theirs.txt ours.txt
}

qemu-img create -q -f qcow2 a.qcow2 1G
qemu-io -f qcow2 -c 'write 0 3M' a.qcow2 >/dev/null
same a.qcow2
qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=2M b.qcow2 3000k
same b.qcow2
qemu-img create -q -f qcow2 \
    -o compression_type=zstd,refcount_bits=64,lazy_refcounts=on c.qcow2 10T
same c.qcow2
mkdir sub
qemu-img create -q -f qcow2 -b ../a.qcow2 -F qcow2 sub/d.qcow2 2G
same sub/d.qcow2
truncate -s 12345k e.img
same e.img

# A backing file that cannot be opened is no obstacle.
mv a.qcow2 moved.qcow2
same sub/d.qcow2
mv moved.qcow2 a.qcow2

# Text that an image or a name smuggles in does not reach the terminal.
cp e.img $'evil\033[2J'
nbdelta info $'evil\033[2J' >evil.txt
if grep -q $'\033' evil.txt; then
    echo "control characters are printed"
    exit 1
fi

[ "$(nbdelta info --output json -f raw a.qcow2 | jq -r .format)" = raw ]
[ "$(nbdelta info --output=json "driver=raw,file.driver=file,file.filename=e.img" |
    jq '."virtual-size"')" = 12641280 ]

refused() {
    local expected=$1 rc=0
    shift
    nbdelta info "$@" >out 2>message || rc=$?
    if [ "$rc" -eq 0 ] || ! grep -q "^nbdelta: info: .*$expected" message; then
        echo "nbdelta info $*: status $rc:"
        cat message
        exit 1
    fi
}
refused 'No such file' nosuch.qcow2
refused 'give one image' a.qcow2 b.qcow2
refused 'human or json' --output yaml a.qcow2
truncate -s 100 short.qcow2
printf 'QFI\xfb\0\0\0\3' | dd of=short.qcow2 conv=notrunc status=none
refused 'short.qcow2' short.qcow2
refused 'connect' "nbd+unix:///?socket=$PWD/nosuch"

# An image that somebody writes to: qemu-nbd holds its lock.
qemu-nbd -t -f qcow2 -x disk -D 'the disk' -k "$PWD/sock" \
    --pid-file "$PWD/pid" a.qcow2 &
server=$!
for ((tries = 0; tries < 300; tries++)); do
    [ ! -e pid ] || break
    sleep 0.1
done
refused '-U' a.qcow2
nbdelta info -U --output json a.qcow2 | jq -e '."virtual-size" == 1073741824'
nbdelta info --force-share a.qcow2 | grep -q '^virtual size: 1 GiB'

uri="nbd+unix:///disk?socket=$PWD/sock"
nbdelta info --output json "$uri" >export.json
jq -e --arg uri "$uri" '.uri == $uri and .export == "disk" and
    .description == "the disk" and ."virtual-size" == 1073741824 and
    .protocol == "newstyle-fixed" and (.tls | not) and
    ."structured-replies" and (."read-only" | not) and .flush and .fua and
    .trim and ."write-zeroes" and ."fast-zero" and .cache and .df and
    ."block-size".minimum == 1 and
    (.contexts | index("base:allocation") != null)' export.json ||
    { cat export.json; exit 1; }
nbdelta info "$uri" >export.txt
grep -q '^export: disk$' export.txt
grep -q '^virtual size: 1 GiB (1073741824 bytes)$' export.txt
grep -q '^read only: false$' export.txt
refused "does not give export 'other'; it has 'disk'" \
    "nbd+unix:///other?socket=$PWD/sock"

# What bitmaps would need in memory is not needed to look at an image: here
# 2 GiB, by an image of 1 MiB.
nbdelta create -f qcow2 wide.qcow2 2T
nbdelta bitmap add -g 512 wide.qcow2 a b c d
limit=1000000
[ -z "${SANITIZE-}" ] || limit=unlimited # sanitizers reserve addresses
(ulimit -v $limit; nbdelta info --output json wide.qcow2) |
    jq -e '."format-specific".data.bitmaps | length == 4'
