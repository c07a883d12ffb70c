#!/bin/bash
# A client may open the backup of a disk if it may open the disk, and only then.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img psktool
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

mkdir psk
for name in alice bob carol; do
    psktool -u $name -p psk/keys.psk >psktool.out
done
python "$SRCDIR/tests/func/pull-access.py" "$nbdelta"
