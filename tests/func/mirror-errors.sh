#!/bin/bash
# A mirror whose source or target fails, in each way that a user can ask for, or
# whose process is killed: clients keep what they have written.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

python "$SRCDIR/tests/func/mirror.py" "$nbdelta" errors late flushes kill
