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
    tr -s ' ' <"$1" | sed -e 1,2d -e 's/ [0-9:.]* [-0-9]* *$//'
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

for options in compat=0.10 cluster_size=4k,refcount_bits=32; do
    compat "$options"
done

qemu-img snapshot -l q.qcow2 >theirs
nbdelta snapshot -l q.qcow2 >ours
diff <(list theirs) <(list ours)
diff ours <(nbdelta snapshot q.qcow2)
diff <(info qemu-img q.qcow2) <(info nbdelta q.qcow2)
nbdelta info q.qcow2 >out
diff ours <(sed -n '/^Snapshot list:/,/^Format/p' out | sed '$d')

cp two.raw two.full

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

### Snapshots of ours, which qemu-img reads.

rm -f o.qcow2 o.raw
qemu-img create -q -f qcow2 o.qcow2 16M
truncate -s 16M o.raw
write o.qcow2 o.raw 'write -P 1 0 5M' 'write -P 2 7M 64k'
nbdelta snapshot -c one o.qcow2
cp o.raw one.raw
clean o.qcow2
qemu-io -c 'write -P 3 1M 70k' o.qcow2 >out
qemu-io -f raw -c 'write -P 3 1M 70k' o.raw >out
clean o.qcow2
nbdelta snapshot -q -c two o.qcow2
nbdelta snapshot --create '' o.qcow2
cp o.raw two.raw
write o.qcow2 o.raw 'write -P 4 2M 1M' 'write -z 0 64k'
clean o.qcow2
[ "$(nbdelta snapshot o.qcow2 | awk 'NR > 2 { print $1 }' | tr -d '\n')" = 123 ]
qemu-img snapshot -l o.qcow2 >theirs
nbdelta snapshot -l o.qcow2 >ours
diff <(list theirs) <(list ours)
same o.qcow2 o.raw
same o.qcow2 one.raw one
same o.qcow2 two.raw two

# We read them: over NBD, with the size that they had, and what lies where.
serve 'old=json:{"driver": "qcow2", "snapshot": "one", "read-only": true,
    "file": {"driver": "file", "filename": "o.qcow2"}}'
qemu-img compare -f raw -F raw "$(uri_of old)" one.raw >out
stop_server
serve_refused "there is no snapshot 'no'" 'json:{"driver": "qcow2",
    "snapshot": "no", "read-only": true,
    "file": {"driver": "file", "filename": "o.qcow2"}}'
serve_refused 'a snapshot can only be opened read-only' 'json:{"driver":
    "qcow2", "snapshot": "2",
    "file": {"driver": "file", "filename": "o.qcow2"}}'
qemu-img convert -l two -O qcow2 o.qcow2 two.qcow2
kinds() {
    jq -c '.[] | . as $e | range(.start; .start + .length; 65536) |
        [., $e.data, $e.zero]'
}
diff <(qemu-img map --output=json two.qcow2 | kinds) \
    <(nbdelta map --snapshot 2 --output=json o.qcow2 | kinds)
[ "$(nbdelta info --snapshot one --output=json q.qcow2 |
    jq '."virtual-size"')" = $((24 << 20)) ]

# QEMU goes back to a snapshot of ours, and removes one; so do we with QEMU's.
cp o.qcow2 back.qcow2
qemu-img snapshot -a one back.qcow2
clean back.qcow2
same back.qcow2 one.raw
qemu-img snapshot -d one back.qcow2
clean back.qcow2
nbdelta snapshot -d two back.qcow2
clean back.qcow2
same back.qcow2 one.raw
nbdelta snapshot -d '' back.qcow2
[ -z "$(nbdelta snapshot -l back.qcow2)" ]
clean back.qcow2
same back.qcow2 one.raw
if nbdelta snapshot -d two back.qcow2 2>err; then fail "removed twice"; fi
grep -q "^nbdelta: snapshot: Could not delete snapshot 'two'" err

# Over QMP, with a guest; several at one instant, or none.
serve d=o.qcow2 e=back.qcow2
qmp blockdev-snapshot-internal-sync device=d name=three >out
refused() { # TEXT COMMAND...
    local text=$1
    shift
    if qmp "$@" >out 2>&1; then fail "$*: not refused"; fi
    grep -qF "$text" out || fail "$*: said '$(cat out)', not '$text'"
}
refused "Snapshot with name 'three' already exists" \
    blockdev-snapshot-internal-sync device=d name=three
refused "Name is empty" blockdev-snapshot-internal-sync device=d name=
refused "Name or id must be provided" \
    blockdev-snapshot-delete-internal-sync device=d
refused "Snapshot with id '9' and name 'one' does not exist" \
    blockdev-snapshot-delete-internal-sync device=d name=one id=9
qmp transaction '{"actions": [
    {"type": "blockdev-snapshot-internal-sync",
     "data": {"device": "d", "name": "four"}},
    {"type": "blockdev-snapshot-internal-sync",
     "data": {"device": "e", "name": "four"}},
    {"type": "block-dirty-bitmap-add", "data": {"node": "d", "name": "b"}}
]}' >out
if qmp transaction '{"actions": [
    {"type": "blockdev-snapshot-internal-sync",
     "data": {"device": "d", "name": "five"}},
    {"type": "block-dirty-bitmap-add", "data": {"node": "d", "name": "b"}}
]}' >out 2>&1; then fail "a transaction that cannot be done"; fi
qemu-io -f raw -c 'write -P 7 3M 1M' "$(uri_of d)" >out
qemu-io -f raw -c 'write -P 7 3M 1M' o.raw >out
[ "$(qmp query-named-block-nodes |
    jq -c '.[] | select(."node-name" == "d") | [.image.snapshots[].name]')" = \
    '["one","two","","three","four"]' ]
[ "$(qmp blockdev-snapshot-delete-internal-sync device=d id=2 |
    jq -r .name)" = two ]
stop_server
clean o.qcow2
clean back.qcow2
same o.qcow2 o.raw
same o.qcow2 one.raw one
[ "$(qemu-img snapshot -l back.qcow2 | wc -l)" = 3 ]

# We go back: the snapshot's size comes with it, and bitmaps are all dirty.
cp o.qcow2 go.qcow2
nbdelta bitmap add go.qcow2 b
nbdelta snapshot -a one go.qcow2
clean go.qcow2
same go.qcow2 one.raw
[ "$(nbdelta map --bitmap b --output=json go.qcow2 | jq -c 'map(.dirty)')" = \
    '[true]' ]
qemu-io -c 'write -P 9 0 1M' go.qcow2 >out
clean go.qcow2
same go.qcow2 one.raw one
nbdelta snapshot -a 1 go.qcow2
clean go.qcow2
same go.qcow2 one.raw
nbdelta snapshot -d one go.qcow2
clean go.qcow2
same go.qcow2 one.raw
qemu-img bitmap --add -g 512 q.qcow2 b
nbdelta snapshot -a two q.qcow2
clean q.qcow2
[ "$(nbdelta map --bitmap b --output=json q.qcow2 |
    jq -c 'map([.start, .length, .dirty])')" = '[[0,25165824,true]]' ]
[ "$(qemu-img info --output=json q.qcow2 |
    jq -c '."format-specific".data.bitmaps[0] | [.name, .flags]')" = \
    '["b",["auto"]]' ]
[ "$(nbdelta info --output=json q.qcow2 | jq '."virtual-size"')" = \
    $((24 << 20)) ]
qemu-img compare q.qcow2 two.full >out
if nbdelta snapshot -a no q.qcow2 2>err; then fail "applied what is not"; fi
grep -q "^nbdelta: snapshot: Could not apply snapshot 'no'" err

# A count of one bit cannot tell of a snapshot, and nothing has changed.
qemu-img create -q -f qcow2 -o refcount_bits=1 bit.qcow2 1M
qemu-io -c 'write 0 64k' bit.qcow2 >out
cp bit.qcow2 before.qcow2
if nbdelta snapshot -c one bit.qcow2 2>err; then fail "it did fit"; fi
grep -q 'cannot tell of one snapshot more' err
cmp bit.qcow2 before.qcow2

rm -f empty.qcow2
qemu-img create -q -f qcow2 empty.qcow2 1M
[ -z "$(nbdelta snapshot empty.qcow2)" ]
