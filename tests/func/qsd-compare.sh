#!/bin/bash
# One conversation with QEMU's storage daemon and with ours under its name:
# the same replies and events.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-storage-daemon qemu-img

mkimg base.raw 4M
for who in theirs ours; do
    mkdir $who
    cp base.raw $who/base.raw
    (
        cd $who
        qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2
        qemu-img create -q -f raw target.raw 4M
    )
done
theirs=$(command -v qemu-storage-daemon)
mkdir link
ln -s "$nbdelta" link/qemu-storage-daemon
python "$SRCDIR/tests/func/qsd-compare.py" "$theirs" \
    "$PWD/link/qemu-storage-daemon" "$SRCDIR/tests/func/qsd-session.txt"
