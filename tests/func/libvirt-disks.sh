#!/bin/bash
# A domain of libvirt whose disks are exports of nbdelta: copied to another
# export, put under snapshots, committed, pulled, backed up with checkpoints.
# Libvirt and QEMU are the real ones; the guest never runs.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_libvirt
need qemu-img qemu-io

truncate -s 8M vda.raw copy.raw
qemu-img create -q -f qcow2 vdb.img 8M
truncate -s 9M vdb.img
# What is in vdb.img is for the guest's QEMU to know.
serve -f raw vda=vda.raw copy=copy.raw vdb=vdb.img
rc=0
python "$SRCDIR/tests/func/libvirt-disks.py" "$sock" || rc=$?
[ "$rc" -ne 77 ] || skip "no libvirt daemon of its own"
[ "$rc" -eq 0 ] || fail "status $rc"
stop_server
