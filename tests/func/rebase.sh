#!/bin/bash
# nbdelta rebase: an image gets another backing file and shows what it did, as
# qemu-img rebase does it; a failing write leaves the old one.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

io() { # IMAGE COMMAND...
    local image=$1 args=()
    shift
    for c; do
        args+=(-c "$c")
    done
    qemu-io -f qcow2 "${args[@]}" "$image" >out
}

backing() { # IMAGE: NAME FORMAT
    qemu-img info -U --output=json "$1" |
        jq -r '"\(.["backing-filename"]) \(.["backing-filename-format"])"'
}

# OPTIONS OF THE IMAGE: a chain base <- middle <- top, and another file.
make_chain() {
    rm -f ./*.qcow2
    qemu-img create -q -f qcow2 base.qcow2 20M
    io base.qcow2 'write -P 1 0 8M' 'write -P 2 15M 5M'
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2 24M
    io middle.qcow2 'write -P 3 1M 100k' 'write -P 4 22M 64k' \
        'write -z 3M 1M' 'write -P 1 5M 1M'
    qemu-img create -q -f qcow2 -o "$1" -b middle.qcow2 -F qcow2 top.qcow2 28M
    io top.qcow2 'write -P 5 4M 4k' 'write -P 6 27M 1000'
    qemu-img create -q -f qcow2 other.qcow2 40M
    io other.qcow2 'write -P 1 0 4M' 'write -P 9 12M 28M'
    qemu-img convert -O raw top.qcow2 before.raw
}

# FILE: ours is what it was, and needs no more room than QEMU's.
rebase() {
    cp top.qcow2 qemu.qcow2
    qemu-img rebase -b "$1" ${1:+-F qcow2} qemu.qcow2
    nbdelta rebase -b "$1" ${1:+-F qcow2} top.qcow2 >out
    [ ! -s out ] || fail "it has printed $(cat out)"
    qemu-img check -q top.qcow2
    qemu-img compare -q top.qcow2 before.raw || fail "rebase -b '$1': differs"
    [ "$(backing top.qcow2)" = "$(backing qemu.qcow2)" ] ||
        fail "rebase -b '$1': $(backing top.qcow2)"
    ours=$(qemu-img check --output=json top.qcow2 | jq '.["allocated-clusters"]')
    theirs=$(qemu-img check --output=json qemu.qcow2 |
        jq '.["allocated-clusters"]')
    [ "$ours" -le "$theirs" ] || fail "rebase -b '$1': $ours > $theirs"
}

for options in compat=1.1 compat=0.10 cluster_size=4k \
    cluster_size=2M,lazy_refcounts=on; do
    make_chain "$options"
    if [ "$options" = compat=1.1 ]; then
        rebase base.qcow2
        rebase middle.qcow2
    fi
    rebase other.qcow2
    rebase ''
done

# A name only: nothing is opened.
make_chain compat=1.1
rm middle.qcow2
nbdelta rebase -u -b gone.qcow2 -F raw top.qcow2
[ "$(backing top.qcow2)" = 'gone.qcow2 raw' ]
nbdelta rebase --unsafe -b '' top.qcow2
[ "$(backing top.qcow2)" = 'null null' ]
qemu-img check -q top.qcow2

# Bitmaps go on, and stay supersets.
make_chain compat=1.1
nbdelta bitmap add top.qcow2 b0
io top.qcow2 'write -P 7 9M 1M'
qemu-img convert -O raw top.qcow2 before.raw
rebase base.qcow2
nbdelta map --bitmap b0 --output json top.qcow2 |
    jq -e 'any(.[]; .dirty and .start <= 9437184 and
        .start + .length >= 10485760)' >out
nbdelta bitmap list top.qcow2 >out

# What cannot be.
make_chain compat=1.1
refused() { # TEXT ARGUMENT...
    local text=$1
    shift
    cp top.qcow2 copy
    ! nbdelta rebase "$@" >out 2>err || fail "rebase $*: not refused"
    grep -qF -e "$text" err || fail "rebase $*: $(cat err)"
    cmp copy top.qcow2 || fail "rebase $*: it has written"
}
refused 'No such file' -b nosuch.qcow2 -F qcow2 top.qcow2
refused 'its own backing file' -b ./top.qcow2 -F qcow2 top.qcow2
refused 'its own backing file' -u -b top.qcow2 -F qcow2 top.qcow2
refused '-b needs -F' -b base.qcow2 top.qcow2
refused 'give the new' top.qcow2
refused 'not in qcow2' -f qcow2 -b base.qcow2 -F qcow2 before.raw
refused 'has none' -f raw -u -b base.qcow2 -F qcow2 before.raw
serve -r vda=base.qcow2
refused 'nosuch' -b "$(uri_of nosuch)" -F raw top.qcow2
nbdelta rebase -b "$(uri_of vda)" -F raw top.qcow2
qemu-img compare -q top.qcow2 before.raw
stop_server

# Each write fails once: the old backing file is there, and the disk.
make_chain cluster_size=4k
for ((k = 1; k <= 3; k++)); do
    cat >rules <<R
[set-state]
state = "1"
event = "write_aio"
new_state = "$((k > 1 ? 2 : 3))"
[set-state]
state = "2"
event = "write_aio"
new_state = "3"
[inject-error]
state = "$((k > 2 ? 3 : k))"
event = "write_aio"
errno = "5"
once = "off"
R
    cp top.qcow2 failing.qcow2
    if nbdelta rebase -b other.qcow2 -F qcow2 \
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"blkdebug\",
            \"config\":\"rules\",\"image\":{\"driver\":\"file\",
            \"filename\":\"failing.qcow2\"}}}" 2>err; then
        fail "write $k: no error"
    fi
    grep -q 'Input/output error' err || fail "write $k: $(cat err)"
    [ "$(backing failing.qcow2)" = 'middle.qcow2 qcow2' ]
    qemu-img compare -q failing.qcow2 before.raw || fail "write $k"
done
