#!/bin/bash
# `nbdelta backup` of a domain of libvirt whose disk is an image of Ceph.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
# shellcheck source=tests/func/ceph.bash
. "$SRCDIR/tests/func/ceph.bash"
need jq qemu-img
need_libvirt
need_ceph
rbd create --size 8M a
nbdelta create -f qcow2 small.qcow2 8M
rbd import --no-progress small.qcow2 b
rbd resize --no-progress --size 16M b

# It is QEMU that loads librbd; what GLib keeps for a thread is no leak.
export LSAN_OPTIONS=${LSAN_OPTIONS/use_tls=0:/}
rc=0
python "$SRCDIR/tests/func/rbd-libvirt.py" || rc=$?
[ "$rc" -ne 77 ] || skip "no libvirt daemon of its own"
[ "$rc" -eq 0 ] || fail "status $rc"
