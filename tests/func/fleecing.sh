#!/bin/bash
# Fleecing: an older state of a disk is served while a guest writes to it, with
# copy-before-write and snapshot-access, or with a qcow2 over the disk; nbdcopy
# and qemu-img pull it; whole, by a bitmap, and with discards.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io nbdcopy nbdinfo fio jq

size=64M
guest=

image() {
    rm -f disk.qcow2
    mkimg disk.raw "$size" "$1"
    qemu-img convert -q -f raw -O qcow2 disk.raw disk.qcow2
}

# Somebody writes to all of the disk, until `stop_guest`.
start_guest() {
    fio --name=guest --ioengine=nbd --uri="$(uri_of guest)" --rw=randwrite \
        --bsrange=512-96k --bs_unaligned=0 --iodepth=4 --time_based \
        --runtime=60 --rate_iops=200 --randrepeat=0 >fio.log 2>&1 &
    guest=$!
}

end_guest() {
    if [ -n "$guest" ]; then
        kill -INT "$guest" 2>/dev/null
        wait "$guest"
        guest=
    fi
}
at_exit end_guest

stop_guest() {
    end_guest || :
    if grep -qi 'error' fio.log; then
        cat fio.log
        fail "a guest's write has failed"
    fi
}

same() {
    qemu-img compare -q -f "$1" -F "$2" "$3" "$4" ||
        fail "$3 is not $4"
}

# It fails, and says something into `out`.
refused() {
    if "$@" >out 2>&1; then
        fail "has not failed: $*"
    fi
}

written() {
    qmp query-named-block-nodes |
        jq -e 'any(.[]; ."dirty-bitmaps"? // [] | any(.count > 1048576))' \
            >/dev/null
}

# What the guest writes goes through `top`, whose file child changes.
serve_disk() {
    serve --blockdev driver=file,filename=disk.qcow2,node-name=file \
        --blockdev driver=qcow2,file=file,node-name=disk,discard=unmap \
        --blockdev driver=raw,file=disk,node-name=top \
        --export nbd,id=guest,node-name=top,name=guest,writable=on
    qmp block-dirty-bitmap-add node=disk name=new
}

below_top() {
    qmp blockdev-reopen \
        "{\"options\": [{\"driver\": \"raw\", \"node-name\": \"top\",
                         \"file\": \"$1\"}]}"
}

# --- By snapshot-access, with a sparse file for what is kept ---

image 1
cp disk.qcow2 then.qcow2
serve_disk
truncate -s "$size" scratch
qmp blockdev-add driver=file node-name=scratch filename=scratch \
    discard=unmap
qmp blockdev-add driver=copy-before-write node-name=cbw file=disk \
    target=scratch on-cbw-error=break-snapshot cbw-timeout=30
below_top cbw
qmp blockdev-add driver=snapshot-access node-name=past file=cbw discard=unmap
qmp block-export-add type=nbd id=past node-name=past name=past writable=true
start_guest
wait_until "the guest has written" written
nbdcopy "$(uri_of past)" pulled.raw
same raw qcow2 pulled.raw then.qcow2
qemu-img convert -f raw -O qcow2 "$(uri_of past)" pulled.qcow2
same qcow2 qcow2 pulled.qcow2 then.qcow2
# What is sparse then is sparse now.
[ "$(stat -c %s pulled.qcow2)" -le $(($(stat -c %s then.qcow2) + 1048576)) ] ||
    fail "holes have become data"
# What is discarded cannot be read, is kept no more, and frees its space.
qemu-io -f raw -c "discard 0 32M" "$(uri_of past)" >/dev/null
refused qemu-io -r -f raw -c "read 0 4k" "$(uri_of past)"
grep -q 'Invalid argument' out
qemu-img map -U -f raw --output json scratch | jq -e '
    all(.[]; .start >= 33554432 or .data == false)' >/dev/null ||
    fail "what was discarded takes space"
qemu-io -r -f raw -c "read 32M 32M" "$(uri_of past)" >/dev/null
refused qemu-io -f raw -c "write 40M 4k" "$(uri_of past)"
stop_guest
qmp block-export-del id=past mode=hard
wait_until "the export is gone" qmp blockdev-del node-name=past 2>/dev/null
below_top disk
qmp blockdev-del node-name=cbw
qmp blockdev-del node-name=scratch
stop_server
qemu-img check -q disk.qcow2

# --- The classic way: a qcow2 whose backing node is the disk ---

image 2
cp disk.qcow2 then.qcow2
serve_disk
qemu-img create -q -f qcow2 fleece.qcow2 "$size"
qmp blockdev-add "{\"driver\": \"qcow2\", \"node-name\": \"fleece\",
    \"file\": {\"driver\": \"file\", \"filename\": \"fleece.qcow2\"},
    \"backing\": \"disk\"}"
qmp blockdev-add driver=copy-before-write node-name=cbw file=disk \
    target=fleece
below_top cbw
qmp block-export-add type=nbd id=past node-name=fleece name=past
start_guest
wait_until "the guest has written" written
nbdcopy "$(uri_of past)" pulled.raw
same raw qcow2 pulled.raw then.qcow2
stop_guest
same raw qcow2 "$(uri_of past)" then.qcow2
stop_server

# --- By a bitmap: what has changed since, and nothing else ---

image 3
serve_disk
cp disk.qcow2 base.qcow2
qemu-io -f raw -c 'write -P 7 1M 100k' -c 'write -z 20M 64k' \
    -c 'write -P 9 67043328 64k' "$(uri_of guest)" >/dev/null
qmp blockdev-add driver=null-co node-name=nowhere size=67108864 \
    read-zeroes=true
qmp blockdev-add "{\"driver\": \"copy-before-write\", \"node-name\": \"cbw\",
    \"file\": \"disk\", \"target\": \"nowhere\",
    \"bitmap\": {\"node\": \"disk\", \"name\": \"new\"}}"
below_top cbw
qmp blockdev-add driver=snapshot-access node-name=past file=cbw
qmp block-export-add "{\"type\": \"nbd\", \"id\": \"past\", \"name\": \"past\",
    \"node-name\": \"past\",
    \"bitmaps\": [{\"node\": \"disk\", \"name\": \"new\"}]}"
nbdinfo --map=qemu:dirty-bitmap:new --json "$(uri_of past)" >map
[ "$(jq '[.[] | select(.type == 1) | .length] | add' map)" = 262144 ]
qemu-io -r -f raw -c 'read -P 7 1M 100k' -c 'read -P 0 20M 64k' \
    -c 'read -P 9 67043328 64k' "$(uri_of past)" >/dev/null
refused qemu-io -r -f raw -c 'read 2M 64k' "$(uri_of past)"
grep -q 'Invalid argument' out
# Nothing of this is in the bitmap, so nothing is kept in the void.
qemu-io -f raw -c 'write -P 1 2M 10M' "$(uri_of guest)" >/dev/null
qemu-io -r -f raw -c 'read -P 7 1M 100k' "$(uri_of past)" >/dev/null
qemu-io -f raw -c 'write -P 1 1M 1' "$(uri_of guest)" >/dev/null
refused qemu-io -r -f raw -c 'read -P 7 1M 64k' "$(uri_of past)"
stop_server

# --- A snapshot that cannot be kept ---

image 4
serve_disk
qmp blockdev-add "{\"driver\": \"blkdebug\", \"node-name\": \"bad\",
    \"image\": {\"driver\": \"null-co\", \"size\": 67108864},
    \"inject-error\": [{\"event\": \"none\", \"iotype\": \"write\",
                        \"errno\": 28}]}"
qmp blockdev-add driver=copy-before-write node-name=cbw file=disk target=bad \
    on-cbw-error=break-snapshot
below_top cbw
qmp blockdev-add driver=snapshot-access node-name=past file=cbw
qmp block-export-add type=nbd id=past node-name=past name=past
qemu-io -r -f raw -c 'read 0 1M' "$(uri_of past)" >/dev/null
qemu-io -f raw -c 'write -P 1 0 1M' "$(uri_of guest)" >/dev/null
refused qemu-io -r -f raw -c 'read 40M 4k' "$(uri_of past)"
qemu-io -f raw -c 'write -P 1 10M 1M' -c 'read -P 1 0 1M' \
    "$(uri_of guest)" >/dev/null
stop_server
