#!/bin/bash
# Images whose metadata count as free: a write that would hit them is refused,
# marks the image and sends an event; overlap-check says what is looked at, and
# means what it means in QEMU.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io qemu-storage-daemon

python "$SRCDIR/tests/func/qcow2-overlap.py" "$nbdelta"
