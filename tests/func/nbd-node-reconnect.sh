#!/bin/bash
# A remote disk whose server goes away and comes back, or does not.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdkit qemu-img
python "$SRCDIR/tests/func/nbd-node-reconnect.py"
