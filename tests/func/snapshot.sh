#!/bin/bash
# Internal snapshots: nbdelta and qemu-img read, keep and change each other's,
# byte for byte, and qemu-img check finds nothing wrong after each step.
set -eu -o pipefail
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

clean() { # IMAGE
    qemu-img check -q "$1" >out 2>&1 || { cat out; fail "$1: qemu-img check"; }
    nbdelta check -q "$1" || fail "$1: nbdelta check"
}

same() { # IMAGE RAW [SNAPSHOT]
    local of=()
    [ -z "${3-}" ] || of=(-l "$3")
    qemu-img convert -f qcow2 "${of[@]}" -O raw "$1" same.raw
    # qemu-img shows a snapshot in the size that the disk has now.
    [ -z "${3-}" ] || truncate -s "$(stat -c %s same.raw)" "$2"
    cmp same.raw "$2" || fail "$1: ${3-the disk} is not $2"
}

# Write to the image through our NBD server, and to the raw file beside it.
write() { # IMAGE RAW COMMAND...
    local image=$1 raw=$2 c commands=()
    shift 2
    for c in "$@"; do commands+=(-c "$c"); done
    serve "d=$image"
    qemu-io -f raw "${commands[@]}" "$(uri_of d)" >out
    stop_server
    qemu-io -f raw "${commands[@]}" "$raw" >out
}

list() { # IMAGE: ids, names, sizes of the VM state, dates
    tr -s ' ' <"$1" | sed -e 1,2d -e 's/ [0-9:.]* [0-9]* *$//'
}

info() { # PROGRAM IMAGE
    "$1" info --output=json "$2" | jq -S '.snapshots'
}

### Images of qemu-img, which we write to.

compat() { # OPTIONS...
    rm -f q.qcow2 q.raw
    qemu-img create -q -f qcow2 -o "$1" q.qcow2 24M
    truncate -s 24M q.raw
    local -a some=(-c 'write -P 1 0 6M' -c 'write -P 2 9M 1M'
        -c 'write -P 3 23M 1M')
    qemu-io "${some[@]}" -c 'write -c -P 4 12M 2M' q.qcow2 >out
    qemu-io -f raw "${some[@]}" -c 'write -P 4 12M 2M' q.raw >out
    qemu-img snapshot -c one q.qcow2
    cp q.raw one.raw
    write q.qcow2 q.raw 'write -P 5 1M 128k' 'write -P 6 3145700 9' \
        'write -P 7 12M 4k' 'write -P 8 23M 64k'
    clean q.qcow2
    same q.qcow2 q.raw
    same q.qcow2 one.raw one
    qemu-img snapshot -c two q.qcow2
    cp q.raw two.raw
    write q.qcow2 q.raw 'write -z 5M 1M' 'discard 9M 1M' 'write -z 9M 1M' \
        'write -P 9 0 300k' 'write -P 10 20M 64k'
    clean q.qcow2
    same q.qcow2 q.raw
    same q.qcow2 one.raw one
    same q.qcow2 two.raw two
}

for options in compat=0.10 cluster_size=2M,refcount_bits=64 \
    cluster_size=4k,refcount_bits=32; do
    compat "$options"
done

qemu-img snapshot -l q.qcow2 >theirs
nbdelta snapshot -l q.qcow2 >ours
diff <(list theirs) <(list ours)
diff ours <(nbdelta snapshot q.qcow2)
diff <(info qemu-img q.qcow2) <(info nbdelta q.qcow2)
nbdelta info q.qcow2 >out
diff ours <(sed -n '/^Snapshot list:/,/^Format/p' out | sed '$d')

# A disk of version 3 grows and shrinks, and its snapshots stay.
serve d=q.qcow2
qmp block_resize node-name=d size=33554432 >out
stop_server
truncate -s 32M q.raw
clean q.qcow2
same q.qcow2 q.raw
same q.qcow2 one.raw one
serve d=q.qcow2
qmp block_resize node-name=d size=4194304 >out
stop_server
truncate -s 4M q.raw
clean q.qcow2
same q.qcow2 q.raw
same q.qcow2 two.raw two

rm -f empty.qcow2
qemu-img create -q -f qcow2 empty.qcow2 1M
[ -z "$(nbdelta snapshot empty.qcow2)" ]
