#!/bin/bash
# A disk of a size that is no multiple of 512 bytes: images of points have whole
# sectors, and all that works with points has the disk's bytes, no more and no
# less.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img nbdkit nbdcopy jq

# Run with $2...: it exits $1.
run() {
    local want=$1 rc=0
    shift
    "$@" >out 2>said || rc=$?
    [ "$rc" = "$want" ] || fail "$*: exit $rc: $(cat said out)"
}

# The latest point of $1 is of kind $2, right, and gives back the file $3.
is_right() {
    run 0 nbdelta points --output json "$1@latest"
    jq -e --arg k "$2" '.points[0].disks[0] | .kind == $k and .size == 1000001' \
        out >jq.out || fail "$1: not $2: $(cat out)"
    run 0 nbdelta verify "$1"
    rm -f restored.raw
    run 0 nbdelta restore "$1" "$(cd "$1" && basename -- */)=restored.raw"
    cmp "$3" restored.raw || fail "$1: what is restored differs"
}

put() {
    printf '%s' "$2" | dd of="$1" bs=1 seek="$3" conv=notrunc status=none
}

guest_puts() {
    python - "$(uri_of disk)" "$1" "$2" <<'PY'
import sys
import nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(sys.argv[2].encode(), int(sys.argv[3]))
h.shutdown()
PY
}

seq 200000 >numbers
head -c 1000001 numbers >disk.raw
run 0 nbdelta backup disk.raw dir
is_right dir full disk.raw
run 0 nbdelta backup disk.raw dir
[ ! -s said ] || fail "it says: $(cat said)"
is_right dir compared disk.raw
nbdelta points --output json dir@latest >last.json
jq -e '.points[0].disks[0].written == 0' last.json >jq.out ||
    fail "nothing has changed, and it is written: $(cat last.json)"
cp disk.raw first.raw
put disk.raw x 1000000
run 0 nbdelta backup disk.raw dir
is_right dir compared disk.raw

# Restored over what is there.
cp first.raw over.raw
run 0 nbdelta restore --force dir disk=over.raw
cmp over.raw disk.raw
run 0 nbdelta restore dir@latest~2 disk=old.raw
cmp old.raw first.raw
run 0 nbdelta restore dir disk=restored.qcow2
qemu-img compare -q restored.qcow2 disk.raw

# Its last bytes are damaged, and healed.
file=$(find dir/disk -name '*.qcow2' | sort | tail -n 1)
at=$(qemu-img map --output=json "$file" |
    jq '[.[] | select(.depth == 0 and .data)][-1] | .offset + 1000000 - .start')
put "$file" y "$at"
run 4 nbdelta verify dir
run 0 nbdelta backup disk.raw dir
grep -q 'healed' said || fail "not healed: $(cat said)"
is_right dir compared disk.raw

# Points are merged.
run 0 nbdelta prune --keep-last 1 dir
is_right dir full disk.raw


# Of our daemon, whose bitmap tells what has changed; the rest is compared.
serve disk=disk.raw
run 0 nbdelta backup "$qmp_sock" daemon
is_right daemon full disk.raw
guest_puts y 1000000
run 0 nbdelta backup --audit=100 "$qmp_sock" daemon
is_right daemon increment disk.raw
stop_server

# An export of somebody else.
nbdkit -f -U "$PWD/kit.sock" memory 1000001 &
at_exit kill $!
wait_until "nbdkit listens" listens "$PWD/kit.sock"
kit="nbd+unix:///?socket=$PWD/kit.sock"
nbdcopy disk.raw "$kit"
run 0 nbdelta backup "$kit" kit
is_right kit full disk.raw
run 0 nbdelta backup "$kit" kit
is_right kit compared disk.raw
run 0 nbdelta restore --force dir "disk=$kit"
