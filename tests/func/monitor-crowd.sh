#!/bin/bash
# Clients that fill a monitor, and say nothing, keep no other client out,
# neither of this monitor nor of another one.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
python "$SRCDIR/tests/func/monitor-crowd.py"
