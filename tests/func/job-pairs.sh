#!/bin/bash
# Each of backup, pull, commit, snapshot, resize, reopen, exports, bitmaps and the
# verbs of jobs while another goes on: refused, or right.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

python "$SRCDIR/tests/func/job-pairs.py" "$nbdelta"
