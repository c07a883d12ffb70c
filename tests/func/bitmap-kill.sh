#!/bin/bash
# kill -9 at random moments, while clients write, bitmaps come and go and a
# backup runs: QEMU accepts every bitmap, the image is sound, and each granule
# that differs from when the bitmap was made is dirty.
#
#   ROUNDS=N      how often (default 4; make crash has more)
#   SEED=N        of the random numbers (printed)
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-nbd nbdinfo jq

size=$((256 << 20))
seed=${SEED:-$$}
echo "SEED=$seed"
RANDOM=$seed

# What the disk holds, as QEMU reads it.
content() {
    qemu-img convert -f qcow2 -O raw disk.qcow2 "$1"
}

# Dirty granules of bitmap $1, one number a line, by QEMU's own server.
dirty_granules() {
    local q
    rm -f q.pid q.sock
    qemu-nbd -r -t -k "$PWD/q.sock" --pid-file="$PWD/q.pid" -B "$1" \
        disk.qcow2 &
    q=$!
    wait_until "qemu-nbd is ready" test -s q.pid
    nbdinfo --json --map="qemu:dirty-bitmap:$1" \
        "nbd+unix:///?socket=$PWD/q.sock" |
        jq -r '.[] | select(.type == 1) |
            range(.offset / 65536; (.offset + .length) / 65536)'
    kill "$q"
    wait "$q" || true
}

# 64 KiB blocks that differ between two files.
different_granules() {
    python -c '
import sys
n = 0
with open(sys.argv[1], "rb") as a, open(sys.argv[2], "rb") as b:
    while True:
        x = a.read(65536)
        if not x:
            break
        if x != b.read(65536):
            print(n)
        n += 1
' "$1" "$2"
}

check_bitmap() {
    local name=$1 base=$2
    qemu-img info --output=json disk.qcow2 | jq -e --arg n "$name" '
        ."format-specific".data.bitmaps[] | select(.name == $n) |
        .flags == ["auto"]' >/dev/null ||
        fail "SEED=$seed: $name is not there, or not valid"
    dirty_granules "$name" | sort >dirty
    different_granules "$base" now.raw | sort >different
    comm -13 dirty different >lost
    [ ! -s lost ] ||
        fail "SEED=$seed: $name lacks $(wc -l <lost) of $(wc -l <different)"
    echo "$name: $(wc -l <different) granules differ," \
        "$(wc -l <dirty) are dirty"
}

nbdelta create disk.qcow2 $size
qemu-img create -q -f qcow2 target.qcow2 $size
content a.raw
serve disk0=disk.qcow2
qmp block-dirty-bitmap-add node=disk0 name=a persistent=true >/dev/null
stop_server
for ((round = 0; round < ${ROUNDS:-4}; round++)); do
    content b.raw
    serve disk0=disk.qcow2
    qmp block-dirty-bitmap-add node=disk0 name="b$round" persistent=true \
        >/dev/null
    pids=()
    for client in 1 2; do
        python "$SRCDIR/tests/func/bitmap-kill.py" "$(uri_of disk0)" $size \
            $((seed + round * 10 + client)) &
        pids+=($!)
    done
    # A bitmap in use by a backup that will not see its end.
    qmp drive-backup job-id=j device=disk0 sync=incremental bitmap=a speed=65536 \
        mode=existing format=qcow2 target=target.qcow2 >/dev/null 2>&1 || true
    sleep "0.$((RANDOM % 9 + 1))"
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
    server=
    wait "${pids[@]}"
    rm -f "$sock" "$qmp_sock"
    rc=0
    qemu-img check -q disk.qcow2 >check.out 2>&1 || rc=$?
    [ "$rc" -eq 0 ] || [ "$rc" -eq 3 ] ||
        fail "SEED=$seed: $(cat check.out)"
    content now.raw
    check_bitmap a a.raw
    check_bitmap "b$round" b.raw
    serve disk0=disk.qcow2
    qmp block-dirty-bitmap-remove node=disk0 name="b$round" >/dev/null
    stop_server
done
