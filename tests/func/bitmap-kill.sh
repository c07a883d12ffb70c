#!/bin/bash
# kill -9 at random moments, while clients write, bitmaps come and go, the disk
# is resized and backups run: the image is sound, QEMU accepts every bitmap, and
# each change since it was cleared is dirty, also after many kills.
#
#   ROUNDS=N      how often (default 4; make crash has more)
#   SEED=N        of the random numbers (printed)
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-nbd nbdinfo

seed=${SEED:-$$}
echo "SEED=$seed"
python "$SRCDIR/tests/func/bitmap-kill.py" "$nbdelta" "$seed" "${ROUNDS:-4}"

# A server that does not arm is caught, or this would show nothing.
rm -f disk.qcow2
if python "$SRCDIR/tests/func/bitmap-kill.py" "$BUILD/tests/func/careless" \
    "$seed" 40 >careless.out 2>&1; then
    fail "nobody noticed that bitmaps are not armed"
fi
grep -q 'sectors, the first at' careless.out || fail "$(cat careless.out)"
