#!/bin/bash
# query-qmp-schema has what QEMU 10's has, except for what nbdelta-qmp-ref(7)
# lists with a reason.  Each row of a driver's table or a command is in it.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

python "$SRCDIR/tests/func/qemu-differences.py" "$nbdelta" \
    "$SRCDIR/man/nbdelta-qmp-ref.7" "$SRCDIR/tests/func/qemu-10-schema.json"
