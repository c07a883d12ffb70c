#!/bin/bash
# File systems of a domain that libvirt has frozen for us are thawed when we are
# killed, and after 10 s when we hang.  The domain is one of libvirt's driver for
# tests, which needs no guest, in a daemon of its own that outlives us.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_libvirt

python "$SRCDIR/tests/func/backup-freeze-libvirt.py"
