#!/bin/bash
# Strangers who fill a monitor, and say nothing, keep nobody out: neither of
# another monitor nor of that one.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
python "$SRCDIR/tests/func/monitor-crowd.py"
