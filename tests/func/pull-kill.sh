#!/bin/bash
# kill -9 at random moments of backups that clients pull: what was a checkpoint
# stays one, and tells of each change since its instant; what was none does not
# become one.
#
#   ROUNDS=N      how often (default 8; make crash has more)
#   SEED=N        of the random numbers (printed)
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img

seed=${SEED:-$$}
echo "SEED=$seed"
python "$SRCDIR/tests/func/pull-kill.py" "$nbdelta" "$seed" "${ROUNDS:-8}"
