#!/bin/bash
# `nbdelta backup` of a domain of libvirt, night after night: each point of three
# disks is what they were at one instant, whatever the guest writes meanwhile.
# Libvirt and QEMU are the real ones; the guest never runs.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_libvirt

python "$SRCDIR/tests/func/backup-libvirt.py"
