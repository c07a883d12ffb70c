#!/bin/bash
# qcow2's discard-no-unref: what is discarded or zeroed keeps its clusters, loses
# its bytes, and reads as zeroes; random requests leave what a raw file has; a
# daemon that is killed leaves a sound image.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

# Requests of a client to the disk d.
client() {
    local args=() c
    for c in "$@"; do
        args+=(-c "$c")
    done
    qemu-io -f raw -d unmap "${args[@]}" "nbd+unix:///d?socket=$sock" >client.out
    ! grep -E 'failed|rror' client.out || fail "$*: $(cat client.out)"
}

# start_with IMAGE OPTION...: serve it as d.
start_with() {
    local image=$1
    shift
    # shellcheck disable=SC2119  # a daemon without images
    serve
    qmp blockdev-add driver=qcow2 node-name=d discard=unmap \
        file.driver=file file.filename="$image" "$@"
    qmp block-export-add type=nbd id=d node-name=d name=d writable=true
}

# Where the clusters of the first MiB are.
places() {
    qemu-img map --output=json -U "$1" |
        jq -c '[.[] | select(.start < 1048576) | .offset]'
}

# --- What is kept, and what is not. ---

for keep in true false; do
    qemu-img create -q -f qcow2 $keep.qcow2 16M
    start_with $keep.qcow2 discard-no-unref=$keep
    client 'write -P 1 0 1M' flush
    before=$(places $keep.qcow2)
    blocks=$(stat -c %b $keep.qcow2)
    client 'discard 0 512k' 'write -z -u 512k 512k' flush flush
    [ "$(stat -c %b $keep.qcow2)" -le $((blocks - 1900)) ] ||
        fail "$keep: no space has come back"
    client 'read -P 0 0 1M' 'write -P 2 4M 1M' flush 'write -P 3 0 1M' flush
    after=$(places $keep.qcow2)
    if $keep; then
        [ "$before" = "$after" ] || fail "$before has become $after"
    else
        [ "$before" != "$after" ] || fail "kept without the option"
    fi
    client 'read -P 3 0 1M' 'read -P 2 4M 1M'
    stop_server
    qemu-img check -q $keep.qcow2
done

# --- A shared cluster is given up; an old image is refused. ---

qemu-img create -q -f qcow2 shared.qcow2 4M
qemu-io -c 'write -P 1 0 1M' shared.qcow2 >/dev/null
qemu-img snapshot -c s shared.qcow2
start_with shared.qcow2 discard-no-unref=true
client 'discard 0 1M' flush 'read -P 0 0 1M'
stop_server
qemu-img check -q shared.qcow2
qemu-img snapshot -a s shared.qcow2
qemu-io -r -c 'read -P 1 0 1M' shared.qcow2 >read.out
! grep -E 'failed|rror' read.out || fail "the snapshot has lost its bytes"

qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 1M
# shellcheck disable=SC2119
serve
rc=0
qmp blockdev-add driver=qcow2 node-name=o file.driver=file \
    file.filename=old.qcow2 discard-no-unref=true 2>err || rc=$?
[ "$rc" -ne 0 ]
grep -qF 'discard-no-unref is only supported since qcow2 version 3' err ||
    fail "$(cat err)"
# It can be changed while the image is open.
qmp blockdev-add driver=qcow2 node-name=n file.driver=file \
    file.filename=true.qcow2
qmp blockdev-reopen '{"options": [{"driver": "qcow2", "node-name": "n",
    "discard-no-unref": true,
    "file": {"driver": "file", "filename": "true.qcow2"}}]}'
stop_server

# --- Random requests, beside a raw file; some clusters, subclusters. ---

RANDOM=7
for options in cluster_size=4k extended_l2=on; do
    qemu-img create -q -f qcow2 -o $options r.qcow2 4M
    rm -f r.raw
    truncate -s 4M r.raw
    start_with r.qcow2 discard-no-unref=true
    commands=()
    for ((i = 0; i < 200; i++)); do
        at=$((RANDOM % 8000 * 512)) len=$(((RANDOM % 120 + 1) * 512))
        [ $((at + len)) -le 4194304 ] || continue
        case $((RANDOM % 4)) in
        0) commands+=("write -z -u $at $len") ;;
        1) commands+=("write -z $at $len") ;;
        2) commands+=("write -P $((RANDOM % 255 + 1)) $at $len") ;;
        3) commands+=("discard $at $len" "write -z -u $at $len") ;;
        esac
    done
    client "${commands[@]}" flush
    args=()
    for c in "${commands[@]}"; do
        args+=(-c "$c")
    done
    qemu-io -f raw "${args[@]}" r.raw >/dev/null
    kill_server
    qemu-img check -q r.qcow2 || [ $? -eq 3 ] # leaks only
    qemu-img compare -q -f qcow2 -F raw r.qcow2 r.raw || fail "$options differ"
done
