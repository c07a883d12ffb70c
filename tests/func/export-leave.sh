#!/bin/bash
# A client that has left does not keep its export from being deleted.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

python "$SRCDIR/tests/func/export-leave.py" "$nbdelta"
