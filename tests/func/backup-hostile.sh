#!/bin/bash
# Backup directories that somebody else has written do no harm to any command.
#
#   SEED=N ROUNDS=N     of what is changed (printed), and how often
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io

seed=${SEED:-$$}
echo "SEED=$seed"
python "$SRCDIR/tests/func/store_dir.py" good
qemu-img create -q -f qcow2 image.qcow2 1M
nbdelta verify good
# A prune that was killed at its first step has left its journal.
python - <<'END'
import json
with open("good/20261127T023000Z.json", encoding="utf-8") as f:
    text = f.read()
with open("journal", "w", encoding="utf-8") as f:
    json.dump({"nbdelta-prune": 1, "manifest": text,
               "next": ["20261128T023000Z", "20261128T023000Z"]}, f)
END
cp -a good pruning
cp journal pruning/prune.json
cp -a pruning begun
rm begun/20261127T023000Z.json
for good in good pruning begun; do
    rm -rf run
    mkdir run
    (cd run && cp ../image.qcow2 . &&
        python "$SRCDIR/tests/func/backup-hostile.py" "../$good" \
            "${HOSTILE_ROUNDS:-1}" "$seed")
done
