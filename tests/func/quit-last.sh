#!/bin/bash
# A daemon that is told to quit ends its monitors' connections when all images
# are closed, and `nbdelta qmp` waits for that: they can be opened at once.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-nbd

python "$SRCDIR/tests/func/quit-last.py" "$nbdelta"
