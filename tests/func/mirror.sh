#!/bin/bash
# blockdev-mirror and drive-mirror while clients write: across the pivot nothing
# is lost, in each mode; what is refused; block-job-change.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

python "$SRCDIR/tests/func/mirror.py" "$nbdelta" refused equal change drive \
    later pivots
