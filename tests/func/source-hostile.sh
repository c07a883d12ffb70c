#!/bin/bash
# Monitors that answer whatever they like: a source of backups says what is
# wrong, and ends.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

python "$SRCDIR/tests/func/source-hostile.py"
