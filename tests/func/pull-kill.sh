#!/bin/bash
# kill -9 at random moments of backups that clients pull.  Each checkpoint
# stays, and has each change since its instant.  The checkpoint of a backup that
# has not ended does not appear.
#
#   ROUNDS=N      how often (default 4; make crash has more)
#   SEED=N        of the random numbers (printed)
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img

seed=${SEED:-$$}
echo "SEED=$seed"
python "$SRCDIR/tests/func/pull-kill.py" "$nbdelta" "$seed" "${ROUNDS:-4}"
