#!/bin/bash
# Disks of a running QEMU as a source of backups: frozen at one instant, with
# increments; all that was made there goes, on whatever way the backup ends.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-system-x86_64 qemu-img qemu-io

python "$SRCDIR/tests/func/source-qemu.py"
