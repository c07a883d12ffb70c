#!/bin/bash
# qcow2 images of all kinds, changed at random by turns of nbdelta and of QEMU,
# and held against a model (qcow2_campaign.py says what is done and looked at).
#
# SEED=N repeats rounds from that one on; ROUNDS=N: how many (`make crash`).
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io
python -c 'import nbd' 2>/dev/null || skip "python has no libnbd"

# The short form is the same each time.
seed=${SEED:-${ROUNDS:+$((RANDOM * 1000))}}
echo "seed ${seed:=6}"
python "$SRCDIR/tests/func/qcow2_campaign.py" "$nbdelta" "${ROUNDS:-2}" \
    "$seed" "${STAGES:-6}"
