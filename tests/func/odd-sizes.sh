#!/bin/bash
# A raw disk whose size is no multiple of 512 is backed up in all ways, pulled,
# given an overlay, and committed into.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

python "$SRCDIR/tests/func/odd-sizes.py" "$nbdelta"
