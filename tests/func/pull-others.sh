#!/bin/bash
# What else is done with a daemon while clients pull backups from it: jobs,
# snapshots, exports and other backups of the same disks.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

python "$SRCDIR/tests/func/pull-others.py" "$nbdelta"
