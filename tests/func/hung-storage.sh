#!/bin/bash
# Storage that hangs holds up only the clients and commands that need it.
# Clients and commands of other disks go on, and yank works in a session that
# is opened while other sessions wait.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
python "$SRCDIR/tests/func/hung-storage.py"
