#!/bin/bash
# Disks of a daemon on another host as a source of backups: the monitor and the
# exports by TCP, both with certificates.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io certtool

make_pki pki
make_pki other
python "$SRCDIR/tests/func/source-tls.py"
