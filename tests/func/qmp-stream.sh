#!/bin/bash
# block-stream: what it refuses, events, while a client writes, in the middle of
# a chain, chains that are whole after a kill at any moment; and what the driver
# copy-on-read copies up.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io jq

generic() {
    local text=$1
    shift
    if qmp block-stream "$@" 2>err; then
        fail "not refused: $*"
    fi
    [ "$(cat err)" = "nbdelta: qmp: GenericError: $text" ] ||
        fail "$* says: $(cat err)"
}

no_jobs() {
    [ "$(qmp query-jobs | jq length)" = 0 ]
}

some_done() {
    qmp query-jobs | jq -e 'length == 0 or .[0]."current-progress" > 2000000' \
        >/dev/null
}

# The images of the chain of $1, as they name each other.
names() {
    qemu-img info -U --backing-chain --output json "$1" |
        jq -c '[.[] | .filename, (."backing-filename" // "" | sub(".*/"; "")),
               (."backing-filename-format" // "")]'
}

# The chain of $1 is whole, and says the same as reference.raw.
is_whole() {
    local file rc
    qemu-img info --backing-chain --output json "$1" |
        jq -r '.[] | select(.format == "qcow2") | .filename' >chain.list
    while read -r file; do
        rc=0
        qemu-img check -q "$file" >check.out || rc=$?
        # A kill may leak clusters (3), nothing else.
        [ "$rc" -eq 0 ] || [ "$rc" -eq 3 ] || fail "$file: $(cat check.out)"
    done <chain.list
    qemu-img compare -q "$1" reference.raw ||
        fail "$1 has other content: $(qemu-img compare "$1" reference.raw)"
}

# base <- mid <- low <- top, of growing sizes, and what they say together.
make_chain() {
    rm -f ./*.qcow2 ./*.raw ./*.img
    mkimg part.raw 3M 7
    qemu-img convert -f raw -O "$1" part.raw base.img
    qemu-img create -q -f qcow2 -b base.img -F "$1" mid.qcow2 4M
    qemu-io -c 'write -q -P 2 256k 300k' -c 'write -q -z 1M 100k' mid.qcow2
    qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 low.qcow2 8M
    qemu-io -c 'write -q -P 3 1200k 300k' -c 'write -q -P 3 6M 64k' low.qcow2
    qemu-img create -q -f qcow2 -b low.qcow2 -F qcow2 top.qcow2 64M
    qemu-io -c 'write -q -P 4 300k 64k' -c 'write -q -P 4 12M 1M' \
        -c 'write -q -P 5 32M 4M' top.qcow2
    qemu-img convert -O raw top.qcow2 reference.raw
}

# Write to the export and to the reference.
both() {
    qemu-io -f raw "$@" "$(uri_of disk)" >/dev/null
    qemu-io -f raw "$@" reference.raw >/dev/null
}

# --- What is refused. ---

make_chain qcow2
serve disk=top.qcow2
before=$(names top.qcow2)
generic "Cannot find device='no' nor node-name='no'" device=no
generic "'base' and 'base-node' cannot be specified at the same time" \
    device=no base=x base-node=y
generic "'base' and 'bottom' cannot be specified at the same time" \
    device=no base=x bottom=y
generic "'bottom' and 'base-node' cannot be specified at the same time" \
    device=no bottom=x base-node=y
generic "Can't find 'bad' in the backing chain" device=disk base=bad
generic "Cannot find device='' nor node-name='bad'" device=disk base-node=bad
generic "Cannot find device='' nor node-name='bad'" device=disk bottom=bad
generic "Node 'disk' is not a backing image of 'disk'" device=disk base-node=disk
generic "backing file specified, but streaming the entire chain" device=disk \
    backing-file=x
generic "Invalid node-name: '1234'" device=disk filter-node-name=1234
generic "Invalid job ID '-'" device=disk job-id=-
generic "Parameter 'speed' expects a non-negative value" device=disk speed=-1
generic "Parameter 'on-error' does not accept value 'x'" device=disk on-error=x
[ "$(names top.qcow2)" = "$before" ] || fail "a refused job has changed it"

# --- Cancelled, then to a base, then to the end. ---

qmp block-stream device=disk job-id=j base=mid.qcow2 speed=1 \
    filter-node-name=filter
generic "Node 'filter' is busy: block device is in use by block job: stream" \
    device=disk job-id=k
[ "$(qmp query-named-block-nodes |
    jq -r '.[] | select(."node-name" == "filter") | .drv')" = copy-on-read ] ||
    fail "the filter is not there"
both -c 'write -P 9 400k 8k'
qmp block-job-cancel device=j
wait_until "the job is gone" no_jobs
[ "$(names top.qcow2)" = "$before" ] || fail "after cancelling: $(names top.qcow2)"

qmp block-stream device=disk job-id=j base=mid.qcow2 backing-file=mid.qcow2 \
    --wait >event
jq -e '.data | .type == "stream" and .offset == .len and .len == 67108864 and
    (has("error") | not)' event >/dev/null || fail "it ends with $(cat event)"
[ "$(names top.qcow2)" = '["top.qcow2","mid.qcow2","qcow2","mid.qcow2","base.img","qcow2","base.img","",""]' ] ||
    fail "the chain is: $(names top.qcow2)"
both -c 'write -P 10 6100k 64k'
qmp block-stream device=disk job-id=j base=base.img --wait >event
[ "$(names top.qcow2)" = '["top.qcow2","base.img","qcow2","'"$PWD"'/base.img","",""]' ] ||
    fail "the chain is: $(names top.qcow2)"
both -c 'write -P 11 1100k 64k' -c 'discard 2M 64k' -c 'write -z 2M 64k'
qmp block-stream device=disk job-id=j auto-finalize=false auto-dismiss=false
wait_until "it is pending" sh -c 'nbdelta qmp qmp.sock query-jobs |
    grep -q pending >/dev/null'
both -c 'write -P 12 100k 64k'
qmp job-finalize id=j
wait_until "it is concluded" sh -c 'nbdelta qmp qmp.sock query-jobs >jobs &&
    grep -q concluded jobs'
qmp job-dismiss id=j
[ "$(names top.qcow2)" = '["top.qcow2","",""]' ] ||
    fail "the chain is: $(names top.qcow2)"
both -c 'write -P 13 3M 64k'
stop_server
rm base.img mid.qcow2 low.qcow2
is_whole top.qcow2

# --- A node in the middle, which is read-only before and afterwards. ---

make_chain raw
serve disk=top.qcow2
mid=$(qmp query-named-block-nodes | jq -r '.[] | select(.drv == "qcow2" and
    (.file | endswith("low.qcow2"))) | ."node-name"')
qmp block-stream device="$mid" job-id=j --wait >event
jq -e '.data | has("error") | not' event >/dev/null || fail "$(cat event)"
[ "$(names top.qcow2)" = '["top.qcow2","low.qcow2","qcow2","low.qcow2","",""]' ] ||
    fail "the chain is: $(names top.qcow2)"
qmp query-named-block-nodes >nodes
jq -e '[.[] | select(.file | endswith("low.qcow2")) | .ro] | all' nodes \
    >/dev/null || fail "low.qcow2 is still writable"
both -c 'write -P 13 3M 64k'
stop_server
is_whole top.qcow2

# --- Killed in the middle, at the end, and twice. ---

for round in middle again end; do
    [ "$round" = again ] || make_chain qcow2
    serve disk=top.qcow2
    speed=4194304
    [ "$round" != end ] || speed=0
    qmp block-stream device=disk job-id=j speed=$speed
    both -c 'write -P 30 0 64k' -c 'write -P 31 7M 128k' -c flush
    if [ "$round" = end ]; then
        wait_until "the job is gone" no_jobs
    else
        wait_until "some of it is done" some_done
    fi
    kill_server
    is_whole top.qcow2
done

# --- copy-on-read ---

own() {
    qemu-img map -U --output json "$1" |
        jq -c '[.[] | select(.depth == 0) | .start, .length]'
}

make_chain qcow2
serve
qmp blockdev-add driver=qcow2 node-name=top file.driver=file \
    file.filename=top.qcow2
low=$(qmp query-named-block-nodes | jq -r '.[] | select(.drv == "qcow2" and
    (.file | endswith("low.qcow2"))) | ."node-name"')
qmp blockdev-add driver=copy-on-read node-name=cor file=top bottom="$low"
for wrong in nothing cor; do
    if qmp blockdev-add driver=copy-on-read node-name=x file=top \
        bottom=$wrong 2>err; then
        fail "bottom=$wrong is not refused"
    fi
    grep -q "Bottom node '$wrong' \(not found\|is a filter\)" err ||
        fail "bottom=$wrong says: $(cat err)"
done
qmp block-export-add type=nbd id=e node-name=cor name=disk writable=true
qmp block-dirty-bitmap-add node=top name=b
before=$(own top.qcow2)
qemu-io -r -f raw -c 'read -P 2 512k 4k' -c 'read 2M 4k' -c 'read 20M 64k' \
    "$(uri_of disk)" >out
[ "$(own top.qcow2)" = "$before" ] || fail "bottom does not count: $(own top.qcow2)"
qemu-io -r -f raw -c 'read -P 3 1200k 4k' "$(uri_of disk)" >out
both -c flush
qemu-img compare -q -U -f qcow2 top.qcow2 reference.raw || fail "other content"
[ "$(own top.qcow2)" != "$before" ] || fail "nothing was copied up"
qmp query-named-block-nodes >nodes
[ "$(jq '.[] | select(."node-name" == "top") | ."dirty-bitmaps"[0].count' \
    nodes)" = 0 ] || fail "the bitmap is dirty"
qmp block-export-del id=e
wait_until "the filter can go" qmp blockdev-del node-name=cor 2>err
qmp blockdev-add driver=copy-on-read node-name=cor file=top
qmp block-export-add type=nbd id=e node-name=cor name=disk writable=true
qemu-io -r -f raw -c 'read 0 64M' "$(uri_of disk)" >out
both -c 'write -P 14 2M 64k'
stop_server
qemu-img rebase -u -b '' top.qcow2
rm base.img mid.qcow2 low.qcow2
is_whole top.qcow2

# --- A speed, which is kept in steps of 512 KiB. ---

begun() {
    qmp query-jobs | jq -e '.[0]."current-progress" > 0' >/dev/null
}

qemu-img create -q -f raw base.img 4M
qemu-img create -q -f qcow2 -b base.img -F raw mid.qcow2
qemu-io -c 'write -q -P 7 0 4M' mid.qcow2
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 low.qcow2
serve disk=low.qcow2
for job in block-stream 'block-commit top=mid.qcow2'; do
    # shellcheck disable=SC2086  # words
    qmp $job device=disk job-id=j speed=1
    wait_until "$job has begun" begun
    [ "$(qmp query-jobs | jq '.[0]."current-progress"')" = 524288 ] ||
        fail "$job: $(qmp query-jobs)"
    qmp block-job-cancel device=j
    wait_until "the job is gone" no_jobs
done
stop_server
