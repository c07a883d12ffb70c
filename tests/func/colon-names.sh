#!/bin/bash
# Names with a colon, as time stamps have, are stored in images in such a way
# that QEMU does not take what is before the colon for a protocol, whichever
# command writes them.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

base=full-2026-11-29T10:55.qcow2
nbdelta create "./$base" 4M

chain() {
    qemu-img info --backing-chain "$1" >out 2>&1 ||
        fail "QEMU cannot open the chain of $1: $(cat out)"
    nbdelta map "$1" >out || fail "nor can nbdelta"
}

# create, and a data file.
nbdelta create -b "$base" -F qcow2 inc.qcow2
chain inc.qcow2
nbdelta create -o "data_file=data:1.raw" ext.qcow2 4M
qemu-io -f qcow2 -c 'write -q -P 4 0 64k' ext.qcow2
serve vda=ext.qcow2
qemu-io -f raw -c 'read -q -P 4 0 64k' "$(uri_of vda)"
stop_server

# change-backing-file, snapshot, commit into what is below.
serve vda=inc.qcow2
qmp change-backing-file device=vda image-node-name=vda backing-file="$base" >out
qmp blockdev-snapshot-sync device=vda snapshot-file="./over:1.qcow2" \
    snapshot-node-name=over >out
qmp blockdev-snapshot-sync device=vda snapshot-file="top.qcow2" >out
qmp block-commit device=vda top-node=over base-node=vda backing-file=inc.qcow2 \
    --wait >out
stop_server
chain top.qcow2
nbdelta create -b "over:1.qcow2" -F qcow2 last.qcow2
chain last.qcow2

# Backups that have the source below them.
nbdelta create "./src:1.qcow2" 4M
serve vda="./src:1.qcow2"
qmp drive-backup device=vda sync=none format=qcow2 mode=absolute-paths \
    target="t.qcow2" >out
qmp block-job-cancel device=vda >out
stop_server
chain t.qcow2

# What QEMU writes into images is understood.
cp "./$base" base.qcow2
qemu-img create -q -f qcow2 -F qcow2 \
    -b 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}' \
    json.qcow2
chain json.qcow2
serve vda=json.qcow2
stop_server
mkdir sub
qemu-img rebase -q -u -f qcow2 -F qcow2 -b 'json:{"driver":"qcow2","file":{"driver":"file","filename":"'"$PWD"'/base.qcow2"}}' json.qcow2
mv json.qcow2 sub
serve_refused '--allow-path' -U s vda=sub/json.qcow2
serve --allow-path "$PWD/base.qcow2" vda=sub/json.qcow2
stop_server
