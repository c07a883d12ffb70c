#!/bin/bash
# Incremental backup, scenario by scenario as QEMU's iotest 124 has them, but
# with clients over NBD in the place of a guest; also of raw disks, of 2 MiB
# clusters, and of four disks at once that fio writes to meanwhile.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io fio

for disk in raw qcow2 qcow2,cluster_size=2M; do
    mkdir "$disk"
    (cd "$disk" && python "$SRCDIR/tests/func/iotest-124.py" "$nbdelta" \
        "$disk") || fail "with $disk disks"
    rm -r "$disk"
done
