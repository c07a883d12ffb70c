#!/bin/bash
# A backup whose target hangs: a guest waits for no longer than cbw-timeout, then
# the job fails; a forced cancel comes back, and the target's node can be closed.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io qemu-nbd
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

python "$SRCDIR/tests/func/backup-hung-target.py" "$nbdelta"
