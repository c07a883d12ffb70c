#!/bin/bash
# Dialogues with QEMU's storage daemon and with ours under its name: what is said
# differs only where qsd-dialogues.txt has a reason for it.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-storage-daemon qemu-img

for who in theirs ours; do
    mkdir $who
    truncate -s 4M $who/base.raw $who/target.raw
    (cd $who && qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2)
done
mkdir link
ln -s "$nbdelta" link/qemu-storage-daemon
python "$SRCDIR/tests/func/qsd-dialogues.py" \
    "$(command -v qemu-storage-daemon)" "$PWD/link/qemu-storage-daemon" \
    "$SRCDIR/tests/func/qsd-dialogues.txt"
