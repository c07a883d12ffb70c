#!/bin/bash
# Bitmaps go to and fro between nbdelta and QEMU's programs, a virtual machine
# among them: each reads exactly what the other has stored, on disks of up to
# 64 TiB, for each granularity, with names of any length.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io qemu-nbd qemu-storage-daemon qemu-system-x86_64 \
    nbdinfo jq

long=$(printf 'x%.0s' {1..1023})

# Dirty ranges by QEMU's server, and by ours.
by_qemu_nbd() {
    local q
    rm -f q.sock q.pid
    qemu-nbd -r -t -k "$PWD/q.sock" --pid-file="$PWD/q.pid" -B "$2" "$1" &
    q=$!
    wait_until "qemu-nbd is ready" test -s q.pid
    map_of "$2" "nbd+unix:///?socket=$PWD/q.sock"
    kill "$q"
    wait "$q" || true
}

by_storage_daemon() {
    local q
    rm -f q.sock q.pid
    qemu-storage-daemon --blockdev file,node-name=f,filename="$1" \
        --blockdev qcow2,node-name=n,file=f,read-only=on \
        --nbd-server addr.type=unix,addr.path="$PWD/q.sock" \
        --export "nbd,id=e,node-name=n,name=e,bitmaps.0=$2" --pidfile q.pid &
    q=$!
    wait_until "qemu-storage-daemon is ready" test -s q.pid
    map_of "$2" "nbd+unix:///e?socket=$PWD/q.sock"
    kill "$q"
    wait "$q" || true
}

by_us() {
    serve -r "disk0=$1"
    map_of "$2" "$(uri_of disk0)"
    stop_server
}

map_of() {
    nbdinfo --json --map="qemu:dirty-bitmap:$1" "$2" |
        jq -c 'map(select(.type == 1) | [.offset, .length])'
}

# $1: image, $2: bitmap, $3: the ranges
all_see() {
    local got reader
    for reader in by_us by_qemu_nbd by_storage_daemon; do
        got=$($reader "$1" "$2")
        [ "$got" = "$3" ] || fail "$reader: $2 of $1 is $got, not $3"
    done
}

flags() {
    qemu-img info --output=json "$1" | jq -cS '."format-specific".data.bitmaps |
        map({(.name): .flags}) | add'
}

# No worse than leaked clusters.
sound() {
    local rc=0
    qemu-img check -q "$1" >check.out || rc=$?
    [ "$rc" -eq 0 ] || [ "$rc" -eq 3 ] || fail "$1: $(cat check.out)"
}

# --- Each granularity, made by either, written by the other. ---

for maker in 'qemu-img bitmap --add' 'nbdelta bitmap add'; do
    rm -f g.qcow2
    qemu-img create -q -f qcow2 g.qcow2 3G
    for ((shift = 9; shift <= 31; shift++)); do
        $maker -g $((1 << shift)) g.qcow2 "g$shift"
    done
    if [ "${maker%% *}" = nbdelta ]; then
        qemu-io -f qcow2 -c 'write -q 1000M 512' g.qcow2
    else
        serve disk0=g.qcow2
        qemu-io -f raw -c 'write -q 1000M 512' "$(uri_of disk0)"
        stop_server
    fi
    for ((shift = 9; shift <= 31; shift += 11)); do
        step=$((1 << shift))
        start=$(((1000 << 20) / step * step))
        end=$((start + step > 3 << 30 ? 3 << 30 : start + step))
        all_see g.qcow2 "g$shift" "[[$start,$((end - start))]]"
    done
    nbdelta bitmap list --output json g.qcow2 |
        jq -r '.[] | "\(.granularity) \(.count)"' >listed
    awk '$1 > $2 && $2 != 1073741824 { bad = 1 } END { exit bad || NR != 23 }' \
        listed || fail "counts: $(cat listed)"
    qemu-img check -q g.qcow2
done

# --- 64 TiB; entries of zeroes and of ones; a name of 1023 bytes. ---

qemu-img create -q -f qcow2 -o cluster_size=2M huge.qcow2 64T
qemu-img bitmap --add -g 1M huge.qcow2 "$long"
nbdelta bitmap add -g 256k huge.qcow2 fine
serve disk0=huge.qcow2
qemu-io -f raw -c 'write -q 70368744173568 4k' -c 'write -q 17T 4k' \
    "$(uri_of disk0)"
stop_server
all_see huge.qcow2 fine \
    "[[$((17 << 40)),262144],[$(((64 << 40) - 262144)),262144]]"
all_see huge.qcow2 "$long" \
    "[[$((17 << 40)),1048576],[$(((64 << 40) - 1048576)),1048576]]"
# More than 32 TiB can be at 64 KiB, which QEMU reads, too.
nbdelta bitmap add -g 64k huge.qcow2 finer
qemu-io -f qcow2 -c 'write -q 63T 4k' huge.qcow2
all_see huge.qcow2 finer "[[$((63 << 40)),65536]]"
qemu-img bitmap --add --disable -g 2G huge.qcow2 merged
qemu-img bitmap --merge finer --merge fine huge.qcow2 merged
all_see huge.qcow2 merged "[[$((17 << 40)),$((2 << 30))],[$((63 << 40)),$(:
    )$((2 << 30))],[$(((64 << 40) - (2 << 30))),$((2 << 30))]]"
# All ones, in entries without clusters.
qemu-img create -q -f qcow2 ones.qcow2 1T
nbdelta bitmap add ones.qcow2 a
serve disk0=ones.qcow2
qmp block_resize node-name=disk0 size=$((2 << 40)) >/dev/null
stop_server
all_see ones.qcow2 a "[[$((1 << 40)),$((1 << 40))]]"
[ "$(stat -c %s ones.qcow2)" -lt $((4 << 20)) ] || fail "ones take space"

# --- Between two of our runs a virtual machine writes. ---

nbdelta create vm.qcow2 64M
serve disk0=vm.qcow2
for name in a off; do
    qmp block-dirty-bitmap-add node=disk0 name=$name persistent=true >/dev/null
done
qemu-io -f raw -c 'write -q 1M 64k' "$(uri_of disk0)"
qmp block-dirty-bitmap-disable node=disk0 name=off >/dev/null
kill -9 "$server"
wait "$server" 2>/dev/null || true
server=
rm -f "$sock" "$qmp_sock"

start_vm() {
    rm -f vm.qmp
    qemu-system-x86_64 -machine none -nodefaults -display none -S \
        -blockdev "qcow2,node-name=disk0,file.driver=file,$(:
            )file.filename=vm.qcow2" \
        -qmp "unix:$PWD/vm.qmp,server=on,wait=off" &
    vm=$!
    wait_until "the machine has a monitor" listens "$PWD/vm.qmp"
}
stop_vm() {
    if [ -n "$vm" ]; then
        kill -9 "$vm"
        wait "$vm" 2>/dev/null || true
    fi
    vm=
}
vm() {
    nbdelta qmp vm.qmp "$@" >vm.out
}
at_exit stop_vm
start_vm
# What a region was armed for, QEMU sees as dirty; so it starts anew.
vm query-named-block-nodes
jq -e '[.[] | select(."node-name" == "disk0") | ."dirty-bitmaps"[] |
    [.name, .recording, .inconsistent // false]] | sort ==
    [["a", true, false], ["off", false, false]]' vm.out >/dev/null ||
    fail "after kill -9 QEMU sees $(cat vm.out)"
vm block-dirty-bitmap-clear node=disk0 name=a
vm human-monitor-command command-line='qemu-io disk0 "write 2M 64k"'
vm block-dirty-bitmap-add node=disk0 name=vm persistent=true
vm human-monitor-command command-line='qemu-io disk0 "write 5M 64k"'
vm quit
wait "$vm"
vm=

serve disk0=vm.qcow2
qemu-io -f raw -c 'write -q 8M 64k' "$(uri_of disk0)"
stop_server
all_see vm.qcow2 a '[[2097152,65536],[5242880,65536],[8388608,65536]]'
all_see vm.qcow2 vm '[[5242880,65536],[8388608,65536]]'
[ "$(flags vm.qcow2)" = '{"a":["auto"],"off":[],"vm":["auto"]}' ] ||
    fail "$(flags vm.qcow2)"
sound vm.qcow2 # a kill may leak clusters

# A machine that is killed has left its bitmaps in use: we say so, and QEMU
# agrees.
start_vm
vm human-monitor-command command-line='qemu-io disk0 "write 9M 64k"'
stop_vm
serve disk0=vm.qcow2
qmp query-named-block-nodes | jq -e '[.[] | select(."node-name" == "disk0") |
    ."dirty-bitmaps"[] | .inconsistent] == [true, true, true]' >/dev/null
qemu-io -f raw -c 'write -q 10M 64k' "$(uri_of disk0)"
stop_server
[ "$(qemu-img info --output=json vm.qcow2 | jq -c '[."format-specific".data |
    .bitmaps[].flags | index("in-use") != null] | unique')" = '[true]' ]
nbdelta bitmap repair vm.qcow2 >/dev/null
all_see vm.qcow2 a '[[0,67108864]]'

# --- Another program, without bitmaps, has written: they are void. ---

nbdelta create other.qcow2 64M
nbdelta bitmap add other.qcow2 a
# What such a program does: autoclear bit 0 goes.
printf '\0' | dd of=other.qcow2 bs=1 seek=95 conv=notrunc status=none
[ "$(nbdelta bitmap list --output json other.qcow2)" = '[]' ]
nbdelta bitmap add other.qcow2 a
all_see other.qcow2 a '[]'
sound other.qcow2
