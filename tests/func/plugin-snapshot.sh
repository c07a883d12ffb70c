#!/bin/bash
# NAME@snapshot=SNAP in nbdkit: the disk as an internal snapshot has it, read-only,
# while the disk itself is written to; what is not there is refused.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_plugin
need qemu-img qemu-io nbdinfo nbdcopy jq

at() { # SNAP
    echo "nbd+unix:///disk0@snapshot=$1?socket=$sock"
}

qemu-img create -q -f qcow2 disk.qcow2 4M
qemu-io -f qcow2 -c 'write -P 1 0 1M' disk.qcow2 >out
qemu-img snapshot -c before disk.qcow2
qemu-img convert -O raw disk.qcow2 before.raw
serve_plugin disk.qcow2
qemu-io -f raw -c 'write -P 2 512k 1M' "$uri" >out
nbdinfo --is read-only "$(at before)"
[ "$(nbdinfo --json "$(at 1)" | jq -r '.exports[0].description')" = \
    "the snapshot '1'" ]
nbdcopy "$(at before)" - >now.raw
cmp before.raw now.raw
qemu-io -f raw -c 'read -P 2 512k 1M' "$uri" >out
! grep 'verification failed' out || fail "the disk has other bytes"
nbdinfo --size "$(at after)" 2>err && fail "there is a snapshot 'after'"
nbdinfo --size "nbd+unix:///disk0@other=before?socket=$sock" 2>err &&
    fail "there is another kind of view"
stop_plugin
nbdelta check disk.qcow2
