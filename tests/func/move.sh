#!/bin/bash
# A disk moves to another daemon by a mirror, with its bitmaps: they have all
# that they had, whoever is killed when, and the next backup is an increment.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

python "$SRCDIR/tests/func/move.py" "$nbdelta" moves asks \
    meanwhile local backups killed
