#!/bin/bash
# Persistent bitmaps: QEMU reads what we stored and we read what QEMU stored;
# they stay valid through kill -9, never lacking a bit; broken ones do not
# keep an image from opening.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io qemu-nbd nbdinfo jq

guest() {
    qemu-io -f raw "$@" "$(uri_of disk0)"
}

add() {
    qmp block-dirty-bitmap-add node=disk0 persistent=true "$@" >/dev/null
}

# NAME COUNT of each bitmap, as the server has them.
counts() {
    qmp query-named-block-nodes | jq -r '.[] |
        select(."node-name" == "disk0") | ."dirty-bitmaps" // [] |
        sort_by(.name)[] | "\(.name) \(.count)"'
}

# The same as QEMU reads them from the file: dirty bytes by its own server.
qemu_counts() {
    local name q
    for name in $(qemu-img info --output=json "$1" | jq -r '
        ."format-specific".data.bitmaps | sort_by(.name)[].name'); do
        qemu-nbd -r -t -k "$PWD/q.sock" --pid-file="$PWD/q.pid" \
            -B "$name" "$1" &
        q=$!
        wait_until "qemu-nbd is ready" test -s q.pid
        nbdinfo --json --map="qemu:dirty-bitmap:$name" \
            "nbd+unix:///?socket=$PWD/q.sock" |
            jq -r --arg n "$name" '[.[] | select(.type == 1) | .length] |
                "\($n) \(add // 0)"'
        kill "$q"
        wait "$q" || true
        rm -f q.sock q.pid
    done
}

flags() {
    qemu-img info --output=json "$1" | jq -c '."format-specific".data.bitmaps |
        sort_by(.name) | map({(.name): .flags}) | add'
}

# A crash may leak clusters (3), nothing else.
sound() {
    local rc=0
    qemu-img check -q "$1" >check.out || rc=$?
    [ "$rc" -eq 0 ] || [ "$rc" -eq 3 ] || fail "$1: $(cat check.out)"
}

# What QEMU stored, and a user of ours changes.
qemu-img create -q -f qcow2 disk.qcow2 1G
qemu-img bitmap --add disk.qcow2 a
qemu-img bitmap --add -g 4k disk.qcow2 b
qemu-img bitmap --add --disable disk.qcow2 off
qemu-io -f qcow2 -c 'write -q -P 1 0 1M' -c 'write -q -P 1 500M 64k' disk.qcow2
serve disk0=disk.qcow2
[ "$(counts)" = $'a 1114112\nb 1114112\noff 0' ]
add name=new granularity=512
guest -c 'write -q -P 2 700M 4k' -c 'discard -q 800M 64k' \
    -c 'write -q -z 900M 64k'
before=$(counts)
[ "$(grep new <<<"$before")" = 'new 135168' ]
stop_server
qemu-img check -q disk.qcow2
[ "$(flags disk.qcow2)" = '{"a":["auto"],"b":["auto"],"new":["auto"],"off":[]}' ]
[ "$(qemu_counts disk.qcow2)" = "$before" ]

# Killed: valid all the same, and never with less.
serve disk0=disk.qcow2
[ "$(counts)" = "$before" ]
guest -c 'write -q -P 3 100M 4k' -c 'write -q -P 3 1023M 1M'
now=$(counts)
kill_server
[ "$(flags disk.qcow2)" = '{"a":["auto"],"b":["auto"],"new":["auto"],"off":[]}' ]
sound disk.qcow2
paste -d' ' <(qemu_counts disk.qcow2) <(echo "$now") |
    awk '$2 < $4 { print; bad = 1 } END { exit bad }' ||
    fail "after a kill there are fewer bits"

# Each verb is there when it returns.
serve disk0=disk.qcow2
qmp block-dirty-bitmap-remove node=disk0 name=b >/dev/null
qmp block-dirty-bitmap-enable node=disk0 name=off >/dev/null
qmp block-dirty-bitmap-disable node=disk0 name=a >/dev/null
add name=sum disabled=true
qmp block-dirty-bitmap-merge \
    '{"node": "disk0", "target": "sum", "bitmaps": ["a"]}' >/dev/null
kill_server
[ "$(flags disk.qcow2)" = '{"a":[],"new":["auto"],"off":["auto"],"sum":[]}' ]
[ "$(qemu_counts disk.qcow2 | awk '/^sum/ { print $2 }')" = \
    "$(qemu_counts disk.qcow2 | awk '/^a/ { print $2 }')" ]
sound disk.qcow2

# A disk that grows: what is new is dirty, where bitmaps record.
serve disk0=disk.qcow2
qmp block-dirty-bitmap-clear node=disk0 name=new >/dev/null
qmp block-dirty-bitmap-clear node=disk0 name=off >/dev/null
qmp block_resize node-name=disk0 size=$((40 << 30)) >/dev/null
[ "$(counts | grep -E 'new|off')" = \
    $'new 41875931136\noff 41875931136' ]
guest -c 'write -q -P 4 39G 1M'
before=$(counts)
stop_server
sound disk.qcow2
[ "$(qemu_counts disk.qcow2)" = "$before" ]

# Without bits, or with all, they take next to nothing.
nbdelta create big.qcow2 1T
serve disk0=big.qcow2
add name=none
add name=all
qmp block_resize node-name=disk0 size=$((2 << 40)) >/dev/null
stop_server
[ "$(stat -c %s big.qcow2)" -lt $((2 << 20)) ]
[ "$(qemu-img info --output=json big.qcow2 |
    jq '."format-specific".data.bitmaps | length')" = 2 ]

# In quarantine: QEMU's in_use.  It opens, says so, and can be removed.
qemu-img create -q -f qcow2 broken.qcow2 64M
qemu-img bitmap --add broken.qcow2 x
qemu-img bitmap --add broken.qcow2 y
dir=$(qemu-img map --output=json broken.qcow2 >/dev/null &&
    python - broken.qcow2 <<'END'
import struct, sys
with open(sys.argv[1], 'r+b') as f:
    head = f.read(65536)
    at = struct.unpack('>I', head[100:104])[0]
    while True:
        kind, size = struct.unpack('>II', head[at:at + 8])
        if kind == 0x23852875:
            place = struct.unpack('>Q', head[at + 24:at + 32])[0]
            break
        at += 8 + (size + 7) // 8 * 8
    f.seek(place + 12)
    f.write(struct.pack('>I', 3))  # the first one: in use, auto
    print(place)
END
)
[ -n "$dir" ]
serve disk0=broken.qcow2
qmp query-named-block-nodes | jq -e '.[] | select(."node-name" == "disk0") |
    ."dirty-bitmaps" | map(select(.inconsistent)) | length == 1' >/dev/null
guest -c 'write -q -P 1 0 1M'
if qmp block-dirty-bitmap-clear node=disk0 name=x 2>err; then
    fail "an inconsistent bitmap is used"
fi
grep -q "Bitmap 'x' is inconsistent and cannot be used" err
stop_server
[ "$(flags broken.qcow2)" = '{"x":["in-use","auto"],"y":["auto"]}' ]
serve disk0=broken.qcow2
qmp block-dirty-bitmap-remove node=disk0 name=x >/dev/null
stop_server
[ "$(flags broken.qcow2)" = '{"y":["auto"]}' ]
[ "$(qemu_counts broken.qcow2)" = 'y 1048576' ]

# Refusals in QEMU's words.
qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 1M
serve disk0=old.qcow2
if add name=x 2>err; then
    fail "version 2 has no place for bitmaps"
fi
grep -q "Cannot store dirty bitmaps in qcow2 v2 files" err
stop_server
serve -r disk0=broken.qcow2
if qmp block-dirty-bitmap-remove node=disk0 name=y 2>err; then
    fail "a read-only image was changed"
fi
grep -q "Bitmap 'y' is readonly and cannot be modified" err
stop_server
