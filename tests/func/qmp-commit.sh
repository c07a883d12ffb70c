#!/bin/bash
# block-commit: what it refuses, below the active layer, the active layer
# while a client writes, and chains that are whole after a kill.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io nbdinfo jq

refused() {
    local text=$1
    shift
    if qmp block-commit "$@" 2>err; then
        fail "not refused: $*"
    fi
    [ "$(cat err)" = "nbdelta: qmp: $text" ] || fail "$* says: $(cat err)"
}

generic() {
    refused "GenericError: $1" "${@:2}"
}

job_is() {
    [ "$(qmp query-jobs | jq -r '.[0].status')" = "$1" ]
}

no_jobs() {
    [ "$(qmp query-jobs | jq length)" = 0 ]
}

some_done() {
    qmp query-jobs | jq -e 'length == 0 or .[0]."current-progress" > 2000000' \
        >/dev/null
}

images() {
    qmp query-named-block-nodes | jq -c \
        '[.[] | select(.drv == "qcow2" or .drv == "raw") |
          [(.file | sub(".*/"; "")), .ro]] | sort'
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
    rm -f ./*.qcow2 ./*.raw
    mkimg part.raw 3M 7
    qemu-img convert -f raw -O "$1" part.raw base.img
    qemu-img create -q -f qcow2 -b base.img -F "$1" mid.qcow2 4M
    qemu-io -c 'write -q -P 2 256k 300k' -c 'write -q -z 1M 100k' mid.qcow2
    qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 low.qcow2 8M
    qemu-io -c 'write -q -P 3 1200k 300k' -c 'write -q -P 3 6M 64k' low.qcow2
    qemu-img create -q -f qcow2 -b low.qcow2 -F qcow2 top.qcow2 64M
    qemu-io -c 'write -q -P 4 300k 64k' -c 'write -q -P 4 12M 1M' \
        -c 'write -q -P 5 32M 24M' top.qcow2
    qemu-img convert -O raw top.qcow2 reference.raw
}

# Write to the export and to the reference.
both() {
    qemu-io -f raw "$@" "$(uri_of disk)" >/dev/null
    qemu-io -f raw "$@" reference.raw >/dev/null
}

kill_server() {
    kill -KILL "$server"
    wait "$server" 2>/dev/null || true
    server=
    rm -f "$sock" "$qmp_sock"
}

# --- What is refused. ---

make_chain qcow2
serve disk=top.qcow2
before=$(images)
refused "DeviceNotFound: Device 'no' not found" device=no top=x
generic "'top-node' and 'top' are mutually exclusive" device=disk \
    top=low.qcow2 top-node=disk
generic "'base-node' and 'base' are mutually exclusive" device=disk \
    base=base.img base-node=disk
generic "Top image file bad not found" device=disk top=bad
generic "Can't find 'bad' in the backing chain" device=disk base=bad
generic "Can't find 'low.qcow2' in the backing chain" device=disk \
    top=low.qcow2 base=low.qcow2
generic "Can't find 'low.qcow2' in the backing chain" device=disk \
    top=mid.qcow2 base=low.qcow2
generic "Cannot find device='' nor node-name='bad'" device=disk base-node=bad
generic "cannot commit an image into itself" device=disk base-node=disk
generic "'backing-file' specified, but 'top' is the active layer" device=disk \
    backing-file=x
generic "Invalid node-name: '1234'" device=disk filter-node-name=1234 \
    top=low.qcow2 base=mid.qcow2
generic "Invalid job ID '-'" device=disk job-id=-
generic "Parameter 'speed' expects a non-negative value" device=disk speed=-1
generic "Parameter 'on-error' does not accept value 'x'" device=disk on-error=x
[ "$(images)" = "$before" ] || fail "a refused job has changed: $(images)"

# --- Below the active layer. ---

qmp block-commit device=disk job-id=j top=low.qcow2 base=base.img speed=1 \
    filter-node-name=filter
generic "Need a root block node" \
    device=disk job-id=k top=low.qcow2
[ "$(qmp query-named-block-nodes |
    jq -r '.[] | select(."node-name" == "filter") | .drv')" = commit_top ] ||
    fail "the filter is not there"
both -c 'write -P 9 400k 8k'
qmp block-job-cancel device=j
wait_until "the job is gone" no_jobs
[ "$(images)" = "$before" ] || fail "after cancelling: $(images)"

qmp block-commit device=disk job-id=j top=low.qcow2 base=mid.qcow2 --wait \
    >event
jq -e '.data | .type == "commit" and .offset == .len and .len == 8388608 and
    (has("error") | not)' event >/dev/null || fail "it ends with $(cat event)"
[ "$(images)" = '[["base.img",true],["mid.qcow2",true],["top.qcow2",false]]' ] ||
    fail "the chain is: $(images)"
both -c 'write -P 10 6100k 64k'
qmp block-commit device=disk job-id=j top=mid.qcow2 backing-file=base.img --wait
[ "$(images)" = '[["base.img",true],["top.qcow2",false]]' ] ||
    fail "the chain is: $(images)"
stop_server
[ "$(qemu-img info --output json top.qcow2 | jq -r '."backing-filename"')" = \
    base.img ] || fail "backing-file is not what top.qcow2 names"
is_whole top.qcow2

# --- The active layer, and what is written meanwhile. ---

make_chain raw
serve disk=top.qcow2
qmp block-commit device=disk job-id=j speed=1048576
for i in 1 2 3 4; do
    both -c "write -P 1$i $((i * 1000))k 200k" -c "write -z $((i * 900))k 50k" \
        -c "discard $((i * 3000))k 64k" -c "write -z $((i * 3000))k 64k"
done
if qmp job-complete id=j 2>err; then
    fail "a job that is not ready was completed"
fi
grep -qF "Job 'j' in state 'running' cannot accept command verb 'complete'" err ||
    fail "job-complete says: $(cat err)"
qmp block-job-set-speed device=j speed=0
wait_until "the job is ready" job_is ready
both -c 'write -P 20 5M 3M' -c 'write -P 21 100k 1k'
qmp job-pause id=j
wait_until "it stands by" job_is standby
both -c 'write -P 22 9M 3M'
qmp job-resume id=j
wait_until "it is ready again" job_is ready
both -c 'write -P 23 10M 1k'
# Cancelling without force ends it with both of the same content.
qmp block-job-cancel device=j
wait_until "the job is gone" no_jobs
qemu-img compare -q -U -f raw -F raw base.img reference.raw ||
    fail "a job that was ready has not brought base.img up to date"
[ "$(images)" = '[["base.img",true],["low.qcow2",true],["mid.qcow2",true],["top.qcow2",false]]' ] ||
    fail "the chain is: $(images)"
both -c 'write -P 24 2M 1M'

qmp block-commit device=disk job-id=j auto-finalize=false auto-dismiss=false
wait_until "the job is ready" job_is ready
both -c 'write -P 25 3M 1M'
qmp job-complete id=j
wait_until "it is pending" job_is pending
both -c 'write -P 26 4M 1M'
qmp job-finalize id=j
wait_until "it is concluded" job_is concluded
[ "$(qmp query-jobs | jq -r '.[0].error')" = null ] || fail "the job failed"
qmp job-dismiss id=j
# What was the active layer is not needed by anybody.
qmp blockdev-del node-name=disk
[ "$(nbdinfo --json "$(uri_of disk)" | jq '.exports[0]."export-size"')" = \
    67108864 ] || fail "the export has another size"
both -c 'write -P 27 5M 1M' -c 'write -P 28 63M 64k'
[ "$(images | jq -c '.[0]')" = '["base.img",false]' ] || fail "$(images)"
stop_server
cmp base.img reference.raw || fail "base.img has other content"

# --- Nothing but what the overlay decides is written, zeroes as zeroes. ---

for layers in overlay.qcow2 top.qcow2; do
    rm -f ./*.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=4k small.qcow2 4M
    qemu-io -c 'write -q -P 1 192k 12k' small.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=4k -b small.qcow2 -F qcow2 \
        overlay.qcow2 5M
    qemu-io -c 'write -q -P 2 4k 4k' -c 'write -q -P 3 76k 8k' \
        -c 'write -q -z 196k 4k' -c 'write -q -P 4 2M 128k' \
        -c 'write -q -P 5 4600k 4k' overlay.qcow2
    qemu-img create -q -f qcow2 -b overlay.qcow2 -F qcow2 top.qcow2
    qemu-img convert -O raw $layers reference.raw
    serve disk=$layers
    if [ $layers = top.qcow2 ]; then
        qmp block-commit device=disk job-id=j top=overlay.qcow2 --wait >event
    else
        qmp block-commit device=disk job-id=j
        wait_until "the job is ready" job_is ready
        qmp job-complete id=j
        wait_until "the job is gone" no_jobs
    fi
    stop_server
    qemu-img compare -q -f qcow2 small.qcow2 reference.raw ||
        fail "small.qcow2 has other content"
    qemu-img check -q small.qcow2
    # By clusters: workers that allocate side by side may leave neighbours apart.
    qemu-img map --output json small.qcow2 | jq -c '[.[] | select(.data) |
        range(.start / 4096; (.start + .length) / 4096)]' >data
    jq -cn '[1, 19, 20, 48, 50, range(512; 544), 1150]' >wanted
    cmp -s data wanted ||
        fail "from $layers small.qcow2 got other data: $(cat data)"
done

# --- Killed in the middle. ---

for top in low.qcow2 top.qcow2; do
    make_chain qcow2
    serve disk=top.qcow2
    qmp block-commit device=disk job-id=j top=$top base=mid.qcow2 speed=4194304
    both -c 'write -P 30 0 64k' -c 'write -P 31 7M 128k' -c flush
    wait_until "some of it is done" some_done
    kill_server
    is_whole top.qcow2
done

# Just after the header has changed, too.
make_chain qcow2
serve disk=top.qcow2
qmp block-commit device=disk job-id=j top=low.qcow2 base=mid.qcow2 --wait
both -c 'write -P 32 0 64k' -c flush
kill_server
is_whole top.qcow2
