#!/bin/bash
# Runs of `nbdelta backup` that are ended in each phase, by kill -9, SIGINT,
# SIGTERM or two of them, and sources that are killed meanwhile: the next run
# works, and all points are what the disks were at their instants.
#
#   ROUNDS=N      how often for each kind of source (default 2; make crash: more)
#   KINDS=A,B     nbdelta, qemu, libvirt (default: what is here; libvirt
#                 only where ROUNDS is given, as it takes longer)
#   SEED=N        of the random numbers (printed)
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq
kinds=nbdelta
if command -v qemu-system-x86_64 >/dev/null; then
    kinds+=,qemu
    if [ -n "${ROUNDS-}" ] && command -v libvirtd >/dev/null &&
        [ -e "$BUILD/nbdelta-source-libvirt.so" ] &&
        [[ ${SANITIZE-} != *address* ]]; then kinds+=,libvirt; fi
fi

seed=${SEED:-$$}
echo "SEED=$seed"
python "$SRCDIR/tests/func/backup-kill.py" "$nbdelta" "${KINDS:-$kinds}" \
    "$seed" "${ROUNDS:-2}"
