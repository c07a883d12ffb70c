#!/bin/bash
# Backups that clients pull: one instant of three disks while they are written
# to, increments since any checkpoint, and what is left when it does not work.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img nbdcopy nbdinfo fio

python "$SRCDIR/tests/func/pull-disks.py" "$nbdelta"
