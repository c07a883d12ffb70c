#!/bin/bash
# Storage that hangs holds up those who need it, and nobody else: clients and
# commands of other disks go on, and yank works in a session that is opened
# while others wait.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
python "$SRCDIR/tests/func/hung-storage.py"
