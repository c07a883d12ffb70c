#!/bin/bash
# Events that requests give rise to: BLOCK_WRITE_THRESHOLD as QEMU has it, and
# BLOCK_IO_ERROR of clients, at most one a second for an export.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io python3

python "$SRCDIR/tests/func/block-events.py" "$nbdelta"
