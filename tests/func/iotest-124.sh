#!/bin/bash
# Incremental backup, in the scenarios of QEMU's iotest 124, with clients over
# NBD in the place of a guest.  Also with raw disks, with 2 MiB clusters, and
# with four disks at once that fio writes to meanwhile.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io fio

for disk in ${IOTEST_DISKS:-raw qcow2 qcow2,cluster_size=2M}; do
    mkdir "$disk"
    (cd "$disk" && python "$SRCDIR/tests/func/iotest-124.py" "$nbdelta" \
        "$disk") || fail "with $disk disks"
    rm -r "$disk"
done
