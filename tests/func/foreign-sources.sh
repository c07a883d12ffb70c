#!/bin/bash
# Disks in formats that nbdelta does not read are backed up, compared and pulled
# through a server that stands in front of them: qemu-nbd, or nbdkit.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io qemu-nbd

mkimg disk.raw 8M
qemu-img convert -f raw -O vmdk disk.raw disk.vmdk 2>err ||
    skip "qemu-img makes no vmdk"

# Read-only, and for as many connections as come at once.
qemu-nbd -r -f vmdk -x vda -e 0 -t -k "$PWD/front.sock" disk.vmdk &
server=$!
front() {
    [ -S front.sock ]
}
wait_until "qemu-nbd listens" front
source="nbd+unix:///vda?socket=$PWD/front.sock"
before=$(md5sum disk.vmdk)

nbdelta info "$source" | grep -q 'read only: true' || fail "it can be written"
nbdelta compare -q -F raw "$source" disk.raw
nbdelta backup "$source" dir
nbdelta compare -q -F raw dir disk.raw
[ "$(nbdelta measure -O qcow2 "$source")" = \
    "$(nbdelta measure -O qcow2 -f raw disk.raw)" ] ||
    fail "what is a hole in the image is data for nbdelta"
nbdelta restore dir vda=copy.raw >out
cmp -n "$(stat -c %s disk.raw)" copy.raw disk.raw

# A second run tells what is different, by reading all of it.
kill -TERM $server
wait $server || true
server=
[ "$before" = "$(md5sum disk.vmdk)" ] || fail "the vmdk image has changed"
qemu-io -f vmdk -c 'write -q -P 7 3M 64k' disk.vmdk
qemu-io -f raw -c 'write -q -P 7 3M 64k' disk.raw
rm -f front.sock
qemu-nbd -r -f vmdk -x vda -e 0 -t -k "$PWD/front.sock" disk.vmdk &
server=$!
wait_until "qemu-nbd listens again" front
nbdelta backup "$source" dir
nbdelta compare -q -F raw dir disk.raw
nbdelta points dir >out
[ "$(grep -c '^20' out)" = 2 ] || fail "$(cat out)"
