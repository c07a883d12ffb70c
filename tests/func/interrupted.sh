#!/bin/bash
# A command that waits at the daemon is ended by a signal, by a lost connection,
# or by a job that waits for another command.  What it has begun is undone or
# goes on, and its exit status tells which.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"
PYTHONPATH=$SRCDIR/tests/func python "${0%.sh}.py" "$nbdelta"
