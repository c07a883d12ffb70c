#!/bin/bash
# The power is cut at each moment while clients write, bitmaps come and go, the
# disk is resized and backups run.  The image is sound, its directory of bitmaps
# has the state before the command in flight or after it, and each change is
# dirty.  The test has to catch a server that does not arm, or it shows nothing.
#
#   ROUNDS=N      a tenth of it is how often (default 10; make crash has more)
#   SEED=N        of the random numbers (printed)
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img

# $1: the program, $2: the seed, $3: how much work, $4: how much QEMU looks at
cut_power() {
    rm -f ./*
    python "$SRCDIR/tests/func/bitmap-power.py" "$@"
}

seed=${SEED:-$$}
for ((round = 0; round < (${ROUNDS:-10} + 9) / 10; round++)); do
    echo "SEED=$seed"
    cut_power "$nbdelta" "$seed" 40 5
    seed=$((seed + 1))
done

# Whether a bit is missed depends on the seed.
for seed in 1 2 3; do
    rc=0
    cut_power "$BUILD/tests/func/careless" "$seed" 30 0 >careless.out || rc=$?
    case $rc in
    0) ;;
    3) exit 0 ;;
    *) fail "without arming: $rc" ;;
    esac
done
fail "nobody noticed that bitmaps are not armed"
