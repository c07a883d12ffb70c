#!/bin/bash
# Names of files, nodes, exports, bitmaps and jobs, and texts of a server,
# contain characters that steer a terminal.  No command prints these characters,
# as text or as JSON, and neither does the daemon.  JSON has the right name
# nevertheless.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img jq
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"
python "${0%.sh}.py" "$nbdelta"
