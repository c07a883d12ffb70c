#!/bin/bash
# `nbdelta restore`: each point becomes what the disk was, in qcow2 and raw
# files, on a block device and over NBD, by qemu-img; targets that are in use or
# not empty are left alone; damage is told, and with --partial gone past.
set -eu -o pipefail
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-nbd jq

make_point=$BUILD/tests/func/make-point
t1=20261127T023000Z t2=20261128T023000Z t3=20261129T023000Z

# restore STATUS TEXT ARG...: it ends so, and says TEXT (or nothing).
restore() {
    local status=$1 text=$2 out rc=0
    shift 2
    out=$(nbdelta restore "$@" 2>&1) || rc=$?
    [ "$rc" = "$status" ] || fail "restore $*: exit $rc, not $status: $out"
    if [ "$text" ]; then
        [[ $out == *"$text"* ]] || fail "restore $*: says '$out'"
    else
        [ -z "$out" ] || fail "restore $*: says '$out'"
    fi
}

is() {
    qemu-img compare -q -f "$1" -F raw "$2" "$3" || fail "$2 is not $3"
}

mkimg one.raw 20M 1
cp one.raw two.raw
printf 'two' | dd of=two.raw bs=1 seek=5000000 conv=notrunc status=none
dd if=/dev/zero of=two.raw bs=1M seek=7 count=2 conv=notrunc status=none
cp two.raw three.raw
dd if=/dev/urandom of=three.raw bs=64k seek=17 count=3 conv=notrunc status=none
"$make_point" dir $t1 one.raw
"$make_point" dir $t2 two.raw one.raw
"$make_point" dir $t3 three.raw two.raw

# --- Files ---
restore 0 '' dir
is qcow2 vda.qcow2 three.raw
qemu-img check -q vda.qcow2
restore 0 '' dir@latest~1 vda=out.raw
is raw out.raw two.raw
[ "$(stat -c %a out.raw)" = 600 ] || fail "others can read what was restored"
restore 1 'is not empty' dir@$t1 vda=out.raw
is raw out.raw two.raw
restore 0 '' --force dir@2026-11-27 vda=out.raw
is raw out.raw one.raw
qemu-img create -q -f qcow2 empty.qcow2 20M
restore 0 '' dir@$t2 vda=empty.qcow2
is qcow2 empty.qcow2 two.raw
restore 0 '' -f raw dir@$t2 vda=raw.qcow2
is raw raw.qcow2 two.raw

# --- What is refused ---
restore 6 'there is no point' dir@2025
restore 6 'has no disk' dir vdb=x.raw
[ ! -e x.raw ] || fail "x.raw was made"
truncate -s 30M larger.raw
restore 1 'bytes, and the disk' dir vda=larger.raw
restore 1 'inside of the backup' --force dir vda=dir/vda/$t1.qcow2
restore 1 'inside of the backup' dir vda=dir/new.raw
restore 1 'neither a file' dir vda=/dev/null
restore 2 'which target' dir vda=
restore 2 'two disks' dir vda=a vda=a
qemu-img create -q -f qcow2 busy.qcow2 20M
qemu-nbd -t -f qcow2 -k "$PWD/busy.sock" busy.qcow2 &
busy=$!
at_exit kill $busy
wait_until "qemu-nbd listens" listens "$PWD/busy.sock"
restore 5 'lock' --force dir vda=busy.qcow2

# --- NBD ---
truncate -s 20M remote.raw
qemu-nbd -t -f raw -k "$PWD/remote.sock" remote.raw &
remote=$!
at_exit kill $remote
wait_until "qemu-nbd listens" listens "$PWD/remote.sock"
remote_uri="nbd+unix:///?socket=$PWD/remote.sock"
restore 0 '' dir@$t1 "vda=$remote_uri"
is raw remote.raw one.raw
restore 1 'is not empty' dir "vda=$remote_uri"
restore 0 '' --force dir "vda=$remote_uri"
is raw remote.raw three.raw

# --- A block device ---
if [ "$(id -u)" = 0 ] && truncate -s 32M device.raw &&
    loop=$(losetup -f --show device.raw 2>/dev/null); then
    at_exit losetup -d "$loop"
    restore 0 '' dir "vda=$loop"
    cmp -n $((20 << 20)) "$loop" three.raw
    restore 5 'file of /dev/loop' --force dir vda=device.raw
    mkdir mnt
    if mkfs.ext4 -q "$loop" 2>/dev/null && mount "$loop" mnt 2>/dev/null; then
        at_exit umount mnt
        restore 5 'mounted' --force dir "vda=$loop"
    fi
fi

# --- Damage ---
cp -a dir bad
printf 'x' | dd of=bad/vda/$t3.qcow2 bs=1 conv=notrunc status=none \
    seek=$(($(qemu-img map -f qcow2 --output=json bad/vda/$t3.qcow2 |
        jq 'map(select(.depth == 0 and .data)) | .[0].offset') + 100))
restore 4 'is damaged from' bad vda=damaged.raw
[ ! -e damaged.raw ] || fail "a file that is not restored stays"
rc=0
nbdelta restore --partial bad vda=partial.raw >map 2>/dev/null || rc=$?
[ $rc = 4 ] || fail "--partial: exit $rc"
read -r disk offset bytes point _ <map
[ "$disk $point" = "vda $t3:" ] || fail "the map says $(cat map)"
cp three.raw expected.raw
dd if=/dev/zero of=expected.raw bs=4k conv=notrunc status=none \
    oflag=seek_bytes seek="$offset" count=$((bytes / 4096))
is raw partial.raw expected.raw
restore 0 '' bad@$t2 vda=older.raw
is raw older.raw two.raw
