#!/bin/bash
# nbdelta map: for an image, what qemu-img map prints.  For an export, also of a
# server of another make, base:allocation and dirty bitmaps.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

same() {
    local keys='map({start, length, depth, present, zero, data, offset})'
    nbdelta map --output json "$@" | jq -c "${keys}[]" >ours
    qemu-img map --output json "$@" | jq -c "${keys}[]" >theirs
    diff theirs ours
}

qemu-img create -q -f qcow2 -o cluster_size=4k base.qcow2 20M
qemu-io -f qcow2 -c 'write -P 1 0 64k' -c 'write -P 1 68k 4k' \
    -c 'write -P 2 5M 1M' -c 'write -P 3 19M 1M' base.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 24M
qemu-io -f qcow2 -c 'write -P 4 5632k 1M' -c 'write -z 1M 128k' mid.qcow2 \
    >/dev/null
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 32M
qemu-io -f qcow2 -c 'write -P 5 0 64k' -c 'write -P 6 31M 64k' \
    -c 'write -z -u 128k 128k' top.qcow2 >/dev/null
same base.qcow2
same mid.qcow2
same top.qcow2

# Writes in reverse order lie in reverse order: nothing to join.
qemu-img create -q -f qcow2 mixed.qcow2 1M
qemu-io -f qcow2 -c 'write 192k 64k' -c 'write 128k 64k' -c 'write 64k 64k' \
    mixed.qcow2 >/dev/null
same mixed.qcow2

truncate -s 4M raw.img
qemu-io -f raw -c 'write -P 1 1M 1M' raw.img >/dev/null
same -f raw raw.img

truncate -s 0 empty.img
[ "$(nbdelta map --output json empty.img)" = '[]' ]

qemu-img convert -c -O qcow2 -f raw raw.img packed.qcow2
nbdelta map --output json packed.qcow2 |
    jq -e 'map(select(.data)) | length > 0 and all(.compressed)' >out

# Text: a heading, then a line for each range.
nbdelta map top.qcow2 >text
[ "$(tail -n +2 text | awk '{ sum += $2 } END { print sum }')" = 33554432 ]
grep -qE '^ +0 +65536  data +0  0x[0-9a-f]+ +top.qcow2$' text
grep -qE '^ +1048576 +131072  zero' text

refused() {
    local expected=$1 rc=0
    shift
    nbdelta map "$@" >out 2>message || rc=$?
    if [ "$rc" -eq 0 ] || ! grep -q "^nbdelta: map: .*$expected" message; then
        echo "nbdelta map $*: status $rc:"
        cat message
        exit 1
    fi
}
refused 'No such file' nosuch.qcow2
refused "no bitmap 'b0'" --bitmap b0 top.qcow2

# Where a chain leads is for the user to allow.
mkdir inner
qemu-img create -q -f qcow2 -b "$PWD/base.qcow2" -F qcow2 inner/over.qcow2
refused 'base.qcow2' inner/over.qcow2
nbdelta map --allow-path "$PWD" --output json inner/over.qcow2 >allowed
jq -e 'any(.depth == 1 and .data)' allowed >out
refused 'nosuchdir' --allow-path nosuchdir top.qcow2

# The chain, of which the server knows a bitmap.
qemu-img bitmap --add -g 64k top.qcow2 b0
qemu-io -f qcow2 -c 'write 3M 128k' -c 'write 3200k 64k' -c 'write 32704k 1k' \
    top.qcow2 >/dev/null
qemu-nbd -t -r -f qcow2 -x disk -B b0 -k "$PWD/sock" --pid-file "$PWD/pid" \
    top.qcow2 &
server=$!
for ((tries = 0; tries < 300; tries++)); do
    [ ! -e pid ] || break
    sleep 0.1
done
uri="nbd+unix:///disk?socket=$PWD/sock"
nbdelta map --bitmap b0 --output json "$uri" | jq -c '.[]' >dirty
diff - dirty <<END
{"start":0,"length":3145728,"dirty":false}
{"start":3145728,"length":196608,"dirty":true}
{"start":3342336,"length":30146560,"dirty":false}
{"start":33488896,"length":65536,"dirty":true}
END
# The image says the same; of one above it that says nothing.
nbdelta map --bitmap b0 --output json top.qcow2 | jq -c '.[]' | diff dirty -
qemu-img create -q -f qcow2 -b top.qcow2 -F qcow2 higher.qcow2
refused "'top.qcow2' below it tells nothing about this one" \
    -U --bitmap b0 higher.qcow2
nbdelta map --bitmap b0 top.qcow2 | grep -qE '^ +3145728 +196608  dirty$'
nbdelta map --bitmap b0 "$uri" | grep -qE '^ +3145728 +196608  dirty$'
refused "qemu:dirty-bitmap:b1" --bitmap b1 "$uri"

nbdelta map --output json "$uri" |
    jq -c 'map({offset: .start, length, zero, data})[]' >ours
nbdinfo --map --json "$uri" | jq -c 'map({offset, length,
    zero: (.type >= 2), data: (.type % 2 == 0)})[]' >theirs
diff theirs ours
nbdelta map "$uri" | grep -qE '^ +0 +65536  data$'
