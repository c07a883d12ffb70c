#!/bin/bash
# Images that nobody uses, and exports that somebody has frozen, as sources of
# backups.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io qemu-nbd

python "$SRCDIR/tests/func/source-image.py"
