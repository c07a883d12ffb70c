#!/bin/bash
# A mirror to an export of another server, which is killed, or hangs: clients go
# on, and the job ends, or is gone on with, as its user asks.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io qemu-nbd
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

python "$SRCDIR/tests/func/mirror-nbd.py" "$nbdelta" pivots killed hangs
