#!/bin/bash
# Operations that change metadata, each with faults of the storage in it: what
# the image says afterwards, after kill -9 and after power cuts, is right.
# This is the short form; `make faults` has all cases.
#
#   SEED=N            of what is picked at random (printed)
#   FAULTS_CASES=...  only these, or all of operations whose names have a word;
#                     "all": everything
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img
python -c 'import nbd' 2>/dev/null || skip "python has no libnbd"

seed=${SEED:-$$}
echo "SEED=$seed"
case ${FAULTS_CASES-} in
'') cases=(--short) ;;
all) cases=() ;;
*) read -r -a cases <<<"$FAULTS_CASES" ;;
esac
python "$SRCDIR/tests/func/fault-campaign.py" "$nbdelta" \
    "$BUILD/tests/func/faulty" "$seed" "$JOBS" "${cases[@]}"
