#!/bin/bash
# Names in images, of nodes, exports, bitmaps and jobs, and what a server says,
# hold what steers a terminal; no command prints it, for people or as JSON, and
# the daemon neither.  What JSON says is the name nevertheless.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img jq
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"
python "${0%.sh}.py" "$nbdelta"
