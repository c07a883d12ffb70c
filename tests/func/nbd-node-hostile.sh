#!/bin/bash
# Servers that do not keep to the protocol, seen by an nbd node: every request
# has an end and an error, and nothing is taken for data that was not sent.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
python "$SRCDIR/tests/func/nbd-node-hostile.py"
