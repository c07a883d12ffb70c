#!/bin/bash
# `nbdelta backup --audit` reads a sample of what the bitmap calls clean: a
# change that no bitmap saw is an error with its range, of an image, of our
# daemon and of an NBD export; there is no point then, and what there was stays.
set -eu -o pipefail
. "$SRCDIR/tests/func/lib.sh"

# Change 64 KiB of the disk at $1 MiB where nobody sees it.
change_behind() {
    local at
    at=$(qemu-img map -U --output=json disk.qcow2 |
        jq --argjson o $(($1 * 1024 * 1024)) '.[] |
            select(.start <= $o and .start + .length > $o) |
            .offset + $o - .start')
    head -c 65536 /dev/zero | tr '\0' "$2" |
        dd of=disk.qcow2 bs=64k count=1 seek="$at" oflag=seek_bytes \
            iflag=fullblock conv=notrunc status=none
}

points() {
    find dir -maxdepth 1 -name '*Z.json' | wc -l
}

# A run with $2... exits $1.
run() {
    local want=$1 rc=0
    shift
    nbdelta backup --output=json "$@" dir >report 2>said || rc=$?
    [ "$rc" = "$want" ] || fail "$*: exit $rc, $(cat said)"
}

qemu-img create -q -f qcow2 disk.qcow2 32M
qemu-io -f qcow2 disk.qcow2 -c 'write -P 1 0 32M' >/dev/null
run 0 --audit=100 disk.qcow2

# All of it is read, or half of what is clean, or what is dirty.
for part in 100:33554432 50:17825792 0:2097152; do
    qemu-io -f qcow2 disk.qcow2 -c 'write -P 2 4M 2M' >/dev/null
    run 0 --audit=${part%:*} disk.qcow2
    jq -e --argjson n ${part#*:} '.disks[0] | .kind == "increment" and
        .read == $n and .written == 2097152' report >/dev/null ||
        fail "--audit=$part: $(cat report)"
done

change_behind 9 x
change_behind 10 y
qemu-io -f qcow2 disk.qcow2 -c 'write -P 3 4M 64k' >/dev/null
before=$(points)
run 4 --audit=100 disk.qcow2
grep -q "disk 'disk'.*no bitmap saw: at 9437184+65536, 10485760+65536; 131072" \
    said || fail "$(cat said)"
[ "$(points)" = "$before" ] || fail "a point was made"
if compgen -G 'dir/disk/*.part' >/dev/null; then fail "parts are left"; fi

# Our daemon has all of the disk then.
serve disk=disk.qcow2
run 4 --audit=100 --progress=json "$qmp_sock"
grep -q "no bitmap saw: at 9437184+65536" said || fail "$(cat said)"
change_behind 9 '\001'
change_behind 10 '\001'
stop_server
serve disk=disk.qcow2
run 0 --audit=100 "$qmp_sock"
jq -e '.disks[0].kind == "increment"' report >/dev/null || fail "$(cat report)"
stop_server

# So has an export with a bitmap.
qemu-img bitmap --add disk.qcow2 mine
qemu-io -f qcow2 disk.qcow2 -c 'write -P 4 20M 64k' >/dev/null
change_behind 21 z
qemu-nbd -r -t -e 10 -f qcow2 -B mine -k "$PWD/qemu.sock" disk.qcow2 &
at_exit kill $!
wait_until "qemu-nbd listens" listens "$PWD/qemu.sock"
run 4 --new-source --audit=100 --bitmap=mine \
    "nbd+unix:///?socket=$PWD/qemu.sock" --disk=disk
grep -q "no bitmap saw: at 22020096+65536" said || fail "$(cat said)"

# The point before is damaged: that is told, and noted, so that it is healed.
run 0 --full --new-source --bitmap=mine \
    "nbd+unix:///?socket=$PWD/qemu.sock"
file=$(find dir/disk -name '*.sums' | sort | tail -n 1)
dd if=/dev/zero of="$file" bs=1 seek=40 count=1 conv=notrunc status=none
run 4 --audit=100 --bitmap=mine "nbd+unix:///?socket=$PWD/qemu.sock"
grep -q "its parent .* is damaged" said || fail "$(cat said)"
run 0 --bitmap=mine "nbd+unix:///?socket=$PWD/qemu.sock"
grep -q 'healed from the source' said || fail "$(cat said)"

for word in 101 -1 nan '' 1e1 x; do
    run 2 --audit="$word" disk.qcow2
done
