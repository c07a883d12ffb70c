#!/bin/bash
# Disks of our daemon as a source of backups: frozen at one instant, increments,
# checkpoints that stay or go, and nothing that a killed run leaves.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io

python "$SRCDIR/tests/func/source-nbdelta.py"
