#!/bin/bash
# Eight QMP clients send random commands, valid and not, while jobs run and
# others read and write over NBD.  Bounded by a number of commands; `make stress
# SECONDS=60` runs as long.  STRESS_SEED=N repeats what was random (not how the
# clients meet), STRESS_LOG=FILE has what they asked.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img
python -c 'import nbd' 2>/dev/null || skip "python has no libnbd"

seed=${STRESS_SEED:-$RANDOM}
amount=${STRESS_SECONDS:+${STRESS_SECONDS}s}
echo "seed $seed"

nbdelta create base.qcow2 16M
nbdelta create -b base.qcow2 -F qcow2 d0.qcow2
nbdelta create d1.qcow2 32M
nbdelta create -o cluster_size=4k d2.qcow2 8M
mkimg d3.raw 16M
nbdelta create kept.qcow2 8M
serve --object throttle-group,id=g0,limits.iops-total=2000 \
    disk0=d0.qcow2 disk1=d1.qcow2 disk2=d2.qcow2 disk3=d3.raw \
    kept=kept.qcow2

rc=0
python "$SRCDIR/tests/func/qmp-stress.py" "$qmp_sock" "$sock" "$server" \
    "$seed" "${amount:-150}" || rc=$?
kill -0 "$server" 2>/dev/null || fail "the server has ended (seed $seed)"
[ $rc -eq 0 ] || fail "seed $seed"
stop_server

# For the other disks, nobody knows which client wrote what.
for image in ./*.qcow2; do
    if [ "$(head -c 3 "$image")" = QFI ]; then
        # By itself: what it was put upon may be no file.
        rc=0
        qemu-img check -q "json:{\"driver\": \"qcow2\", \"backing\": null,
            \"file\": {\"driver\": \"file\", \"filename\": \"$image\"}}" \
            >check.out 2>&1 || rc=$?
        # Leaked clusters (3) do no harm.
        [ $rc -eq 0 ] || [ $rc -eq 3 ] ||
            fail "$image (seed $seed): $(cat check.out)"
    fi
done
