#!/bin/bash
# `nbdelta prune` on a file system with reflinks: what the next point has
# becomes a part of the older file without taking more room, and without being
# written; the points that stay are what they were.  A prune that is killed at a
# step, or whose reflink fails, leaves them right, too.
#
#   STEPS=all   it is killed at each step, and not at some
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img losetup
[ "$(id -u)" = 0 ] || skip "only root mounts"

make_point=$BUILD/tests/func/make-point
export TZ=UTC
points=(20261110T023000Z 20261111T023000Z 20261112T023000Z)
MiB=$((1024 * 1024))
size=$((48 * MiB + 512))

# Three points: 16 MiB, 16 MiB elsewhere, and a part of both.
bytes() {
    openssl enc -aes-128-ctr -K 00 -iv "0$1" -nosalt </dev/zero 2>/dev/null |
        head -c "$2" || :
}
truncate -s $size now.raw
bytes 1 $((16 * MiB)) | dd of=now.raw conv=notrunc status=none
cp now.raw 0.raw
bytes 2 $((16 * MiB)) | dd of=now.raw bs=1M seek=20 conv=notrunc status=none
printf 'the end' | dd of=now.raw bs=1 seek=$((size - 512)) conv=notrunc \
    status=none
cp now.raw 1.raw
bytes 3 $((4 * MiB)) | dd of=now.raw bs=1M seek=14 conv=notrunc status=none
cp now.raw 2.raw

right() {
    local i
    for i in 1 2; do
        qemu-img compare -q -f qcow2 -F raw "dir/vda/${points[i]}.qcow2" \
            $i.raw || fail "$1: ${points[i]} is not right"
        qemu-img check -q -f qcow2 "dir/vda/${points[i]}.qcow2" ||
            fail "$1: ${points[i]} is not clean"
    done
}

# Bytes in use on the file system.
used() {
    sync -f .
    df --output=used -B1 . | tail -n 1
}

# on FSTYPE: mount an empty one, or tell in the file why why not.
loop=
on() {
    command -v "mkfs.$1" >/dev/null ||
        { echo "mkfs.$1 is not installed" >why; return 1; }
    rm -f fs.img
    truncate -s 512M fs.img
    "mkfs.$1" fs.img >why 2>&1 || return 1
    loop=$(losetup -f --show fs.img 2>why) || return 1
    mkdir -p mnt
    mount -t "$1" "$loop" mnt 2>why || return 1
    echo a >mnt/a
    cp --reflink=always mnt/a mnt/b 2>why
}
off() {
    ! mountpoint -q mnt || umount mnt
    [ -z "$loop" ] || losetup -d "$loop"
    loop=
}
top=$PWD
at_exit eval "cd $(printf %q "$top") && off"

shares() {
    local before after
    "$make_point" dir "${points[0]}" 0.raw
    "$make_point" dir "${points[1]}" 1.raw 0.raw
    "$make_point" dir "${points[2]}" 2.raw 1.raw
    cp -a --reflink=always dir whole
    # What is shared cannot be told from what is gone, so the file stays.
    ln "dir/vda/${points[1]}.qcow2" stays
    before=$(used)
    nbdelta prune --keep-last 2 dir
    after=$(used)
    echo "in use: $before bytes before, $after after"
    [ $((after - before)) -lt $((8 * MiB)) ] || fail "it was copied"
    right shared
    nbdelta verify dir
}

# killed K ERRNO: the K-th step ends it, or fails; then it is done again.
killed() {
    rm -rf dir
    cp -a --reflink=always whole dir
    FAULTY=step:$1:$2 "$BUILD/tests/func/faulty" prune --keep-last 2 dir \
        >out 2>err || :
    right "step $1, $2"
    nbdelta prune --keep-last 2 dir
    right "after step $1, $2"
    [ ! -e "dir/${points[0]}.json" ] || fail "step $1, $2: it did not go"
    nbdelta verify dir
}

killed_at_steps() {
    local _ steps every k
    rm -rf dir
    cp -a --reflink=always whole dir
    FAULTY_COUNTS=$PWD/counts "$BUILD/tests/func/faulty" prune --keep-last 2 dir
    read -r _ _ steps <counts
    [ "${STEPS-}" = all ] && every=1 || every=$((steps / 3))
    for ((k = 1; k <= steps; k += every)); do
        killed "$k" 0
        killed "$k" 95 # EOPNOTSUPP: an end of sharing is no failure
    done
}

any=
for fs in btrfs xfs; do
    if on $fs; then
        any=$fs
        cp --reflink=never ./*.raw mnt
        cd mnt
        shares
        [ $fs = xfs ] || killed_at_steps
        cd "$top"
    else
        echo "$fs: $(cat why)"
    fi
    off
done
[ -n "$any" ] || skip "no file system with reflinks can be mounted"
