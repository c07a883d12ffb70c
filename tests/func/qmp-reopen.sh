#!/bin/bash
# blockdev-reopen: flags, backing nodes and options of open nodes; image
# locks go with them, and what is refused changes nothing.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io nbdinfo jq

# node NAME FILE [JQ]: the options of a qcow2 node
node() {
    jq -cn --arg n "$1" --arg f "$PWD/$2" '{driver: "qcow2", "node-name": $n,
        file: {driver: "file", filename: $f}}'" | ${3:-.}"
}

reopen() {
    qmp blockdev-reopen "$(jq -cn '{options: $ARGS.positional | map(fromjson)}' \
        --args "$@")"
}

refused() {
    local text=$1
    shift
    if reopen "$@" 2>err; then
        fail "not refused: $*"
    fi
    [ "$(cat err)" = "nbdelta: qmp: GenericError: $text" ] ||
        fail "$* says: $(cat err)"
    [ "$(nodes)" = "$before" ] || fail "$* has changed: $(nodes)"
}

nodes() {
    qmp query-named-block-nodes | jq -c '[.[] |
        [."node-name", .ro, .cache, .backing_file]] | sort'
}

read_only() {
    [ "$(qmp query-named-block-nodes | jq -r --arg n "$1" \
        '.[] | select(."node-name" == $n) | .ro')" = "$2" ] ||
        fail "$1: read-only is not $2"
}

reads() {
    qemu-io -r -f raw -c "read -P $2 0 64k" "$(uri_of "$1")" >read.out
    ! grep -q 'verification failed' read.out || fail "$1: $(cat read.out)"
}

for i in 0 1 2; do
    nbdelta create hd$i.qcow2 8M
    qemu-io -c "write -q -P $((i + 1)) $((i * 64))k 1M" hd$i.qcow2
done
nbdelta create -b hd2.qcow2 -F qcow2 over.qcow2

args=()
for i in 0 1 2; do
    args+=("hd$i=driver=qcow2,read-only=on,file.driver=file,file.filename=$PWD/hd$i.qcow2")
done
serve "${args[@]}" \
    "over=driver=qcow2,file.driver=file,file.filename=$PWD/over.qcow2"
ro='. + {"read-only": true}'
before=$(nodes)

# --- What is refused. ---

refused "node-name not specified" \
    "$(node hd0 hd0.qcow2 'del(."node-name")')"
refused "Failed to find node with node-name='no'" "$(node no hd0.qcow2)"
refused "Failed to find node with node-name=''" "$(node '' hd0.qcow2)"
refused "Invalid parameter type for 'options[0].node-name', expected: string" \
    "$(node hd0 hd0.qcow2 '."node-name" = null')"
refused "Invalid parameter type for 'options[1].file.filename', expected: string" \
    "$(node hd0 hd0.qcow2)" "$(node hd1 hd1.qcow2 '.file.filename = null')"
refused "Parameter 'options[0].driver' is missing" "$(node hd0 hd0.qcow2 'del(.driver)')"
refused "Node 'hd0' is to be reopened more than once" \
    "$(node hd0 hd0.qcow2)" "$(node hd0 hd0.qcow2 '."read-only" = true')"
refused "Parameter 'driver' does not accept value ''" \
    "$(node hd0 hd0.qcow2 '.driver = ""')"
refused "Cannot change the option 'driver'" \
    "$(node hd0 hd0.qcow2 '.driver = "raw"')"
refused "Cannot change the option 'filename'" \
    "$(node hd0 hd1.qcow2 "$ro")"
refused "Cannot change the option 'locking'" \
    "$(node hd0 hd0.qcow2 "$ro | .file.locking = \"off\"")"
refused "Cannot change the option 'force-share'" \
    "$(node hd0 hd0.qcow2 "$ro | .\"force-share\" = true")"
refused "Invalid parameter type for 'file', expected: BlockdevRef" \
    "$(node hd0 hd0.qcow2 "$ro | .file = null")"
refused "Parameter 'options[0].file' is missing" \
    "$(node hd0 hd0.qcow2 "$ro | del(.file)")"
refused "backing is missing for 'over'" "$(node over over.qcow2)"
refused "Cannot find device='' nor node-name='no'" \
    "$(node hd0 hd0.qcow2 "$ro | .backing = \"no\"")"
refused "Making 'hd0' a backing child of 'hd0' would create a cycle" \
    "$(node hd0 hd0.qcow2 "$ro | .backing = \"hd0\"")"
refused "Cannot change the option 'backing.driver'" \
    "$(node hd0 hd0.qcow2 "$ro | .backing = {driver: \"qcow2\", file: \"hd1\"}")"
refused "l2-cache-size may not exceed cache-size" \
    "$(node hd0 hd0.qcow2 "$ro | .\"cache-size\" = 65536 |
        .\"l2-cache-size\" = 131072")"
# The export writes.
refused "Read-only block node 'over' cannot support read-write users" \
    "$(node over over.qcow2 "$ro | .backing = null")"
# All of the list, or nothing: the first part alone would do.
refused "Failed to find node with node-name='no'" \
    "$(node hd0 hd0.qcow2)" "$(node no hd0.qcow2)"
refused "Read-only block node 'over' cannot support read-write users" \
    "$(node hd1 hd1.qcow2)" "$(node hd0 hd0.qcow2 "$ro | .backing = \"hd1\"")" \
    "$(node over over.qcow2 "$ro | .backing = null")"
reads hd0 1

# --- Writable and back; image locks follow. ---

locked() {
    ! qemu-io -r -f qcow2 -c 'read 0 512' "$1" >/dev/null 2>&1
}

cannot_write() {
    ! qemu-io -f qcow2 -c quit "$1" >/dev/null 2>&1
}

job_is_ready() {
    qmp query-jobs | jq -e '.[0].status == "ready"' >/dev/null
}

no_jobs() {
    [ "$(qmp query-jobs | jq length)" = 0 ]
}

! locked hd0.qcow2 || fail "hd0.qcow2 is locked for writing"
hold_image -r -f qcow2 hd0.qcow2
cannot_write hd0.qcow2 || fail "a reader does not keep writers away"
refused "Failed to get \"write\" lock: is another process using the image '$PWD/hd0.qcow2'?" \
    "$(node hd0 hd0.qcow2)"
kill "$holder"
wait "$holder" 2>/dev/null || true
reopen "$(node hd0 hd0.qcow2)"
read_only hd0 false
locked hd0.qcow2 || fail "hd0.qcow2 is not locked for writing"
reopen "$(node hd0 hd0.qcow2 "$ro")"
read_only hd0 true
! locked hd0.qcow2 || fail "hd0.qcow2 is still locked for writing"
reads hd0 1

# --- Cache modes, while data waits to be flushed. ---

qemu-io -f raw -c 'write -q -P 9 0 1M' "$(uri_of over)"
direct='.backing = "hd2" | .cache = {direct: true}'
if reopen "$(node over over.qcow2 "$direct")"; then
    [ "$(qmp query-named-block-nodes | jq -c '[.[] |
        select(.file | endswith("over.qcow2")) | .cache.direct]')" = \
        '[true,true]' ] || fail "cache.direct is not on"
fi
qemu-io -f raw -c 'write -q -P 8 1000 3000' "$(uri_of over)"
reopen "$(node over over.qcow2 '.backing = "hd2" |
    .cache = {"no-flush": true} | ."l2-cache-size" = 262144 |
    ."lazy-refcounts" = false | .discard = "unmap"')"
[ "$(qmp query-named-block-nodes | jq -c '.[] | select(."node-name" == "over") |
    .cache')" = '{"no-flush":true,"direct":false,"writeback":true}' ] ||
    fail "cache: $(nodes)"
qemu-io -f raw -c 'write -q -P 7 6M 1M' -c 'discard -q 7M 64k' "$(uri_of over)"
reopen "$(node over over.qcow2 '.backing = "hd2"')"
[ "$(qmp query-named-block-nodes | jq -c '.[] | select(."node-name" == "over") |
    .cache')" = '{"no-flush":false,"direct":false,"writeback":true}' ] ||
    fail "what is not given does not return to its default: $(nodes)"

# --- Zeroes that are written, and found or not. ---

before=$(nodes)
refused "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap" \
    "$(node over over.qcow2 '.backing = "hd2" | ."detect-zeroes" = "unmap"')"
qemu-io -f raw -c 'write -q -P 6 2M 192k' -c 'write -q -P 0 2M 64k' \
    "$(uri_of over)"
reopen "$(node over over.qcow2 '.backing = "hd2" | ."detect-zeroes" = "on"')"
[ "$(qmp query-named-block-nodes | jq -r '.[] |
    select(."node-name" == "over") | .detect_zeroes')" = on ] ||
    fail "detect-zeroes is not on"
qemu-io -f raw -c 'write -q -P 0 2112k 64k' "$(uri_of over)"
reopen "$(node over over.qcow2 '.backing = "hd2"')"
[ "$(nbdinfo --map --json "$(uri_of over)" | jq -c '[.[] |
    select(.offset + .length > 2097152 and .offset < 2293760) | .type]')" = \
    '[0,3,0]' ] ||
    fail "zeroes: $(nbdinfo --map "$(uri_of over)")"

# --- A bitmap of an image that is read-only, and then not. ---

qmp block-dirty-bitmap-add node=over name=b0 persistent=true
qemu-io -f raw -c 'write -q -P 7 6M 1M' "$(uri_of over)"
qmp blockdev-snapshot-sync device=over snapshot-file="$PWD/new.qcow2" \
    snapshot-node-name=new
if qmp block-dirty-bitmap-clear node=over name=b0 2>err; then
    fail "a read-only bitmap was cleared"
fi
reopen "$(node over over.qcow2 '.backing = "hd2"')"
qmp block-dirty-bitmap-clear node=over name=b0
qmp block-commit device=over job-id=j base-node=over --wait >ready &
commit=$!
wait_until "the job is ready" job_is_ready
qmp job-complete id=j
wait "$commit"
read_only over false
[ "$(qmp query-named-block-nodes | jq -c '[.[] |
    select(."node-name" == "over") | ."dirty-bitmaps"[].count]')" = '[0]' ] ||
    fail "the bitmap is not clear"
qemu-io -f raw -c 'write -q -P 7 6M 128k' "$(uri_of over)"
[ "$(qmp query-named-block-nodes | jq -c '[.[] |
    select(."node-name" == "over") | ."dirty-bitmaps"[].count]')" = '[131072]' ] ||
    fail "the bitmap does not record"

# --- Chains: insert, turn round, take apart. ---

b() {
    node "$1" "$1.qcow2" "$ro | .backing = $2"
}
reopen "$(b hd0 '"hd1"')" "$(b hd1 '"hd2"')"
reads hd0 1
qemu-io -r -f raw -c 'read -P 2 1M 64k' -c 'read -P 3 1088k 64k' \
    "$(uri_of hd0)" >read.out
! grep -q 'verification failed' read.out || fail "hd0, hd1, hd2: $(cat read.out)"
before=$(nodes)
refused "Making 'hd0' a backing child of 'hd2' would create a cycle" \
    "$(b hd2 '"hd0"')"
reopen "$(b hd0 null)" "$(b hd1 '"hd0"')" "$(b hd2 '"hd1"')"
qemu-io -r -f raw -c 'read -P 1 0 64k' -c 'read -P 2 64k 64k' \
    -c 'read -P 3 128k 64k' "$(uri_of hd2)" >read.out
! grep -q 'verification failed' read.out || fail "hd2, hd1, hd0: $(cat read.out)"
reopen "$(b hd1 null)" "$(b hd2 null)"
reads hd1 0

# --- During a job the chain stands still. ---

reopen "$(node over over.qcow2 '.backing = "hd2"')"
qmp block-commit device=over job-id=j speed=1 filter-node-name=f
before=$(nodes)
refused "Cannot change frozen 'backing' link from 'over' to 'hd2'" \
    "$(node over over.qcow2 '.backing = null')"
refused "Read-only block node 'hd2' cannot support read-write users" \
    "$(b hd2 null)"
qmp block-job-cancel device=j
wait_until "the job is gone" no_jobs
read_only hd2 true
stop_server
for file in hd0 hd1 hd2 over; do
    qemu-img check -q $file.qcow2 || fail "$file.qcow2 is damaged"
done
qemu-io -f qcow2 -c 'read -P 9 0 1000' -c 'read -P 8 1000 3000' \
    -c 'read -P 9 4000 64k' -c 'read -P 7 6M 1M' over.qcow2 >read.out
! grep -q 'verification failed' read.out || fail "over: $(cat read.out)"
