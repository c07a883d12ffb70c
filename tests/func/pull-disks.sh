#!/bin/bash
# Backups that clients pull: one instant of three disks while they are written
# to, increments since any checkpoint, and what is left when it does not work.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io nbdcopy nbdinfo fio jq

python "$SRCDIR/tests/func/pull-disks.py" "$nbdelta"

# The same from a shell: by default all disks, on a server of its own.
for name in a b; do
    qemu-img create -q -f qcow2 $name.qcow2 1M
    qemu-io -f qcow2 -c 'write -P 7 0 64k' $name.qcow2 >/dev/null
done
serve a=a.qcow2 b=b.qcow2
nbdelta backup-begin "$qmp_sock" --listen "nbd+unix:///?socket=$PWD/pull.sock" \
    --checkpoint c1 --scratch .,quota=1M --max-delay 100 --output json >begun
[ "$(jq -c '[.id, .checkpoint, [.disks[] | [.node, .export, .mode, .size]]]' \
    begun)" = '["b1","c1",[["a","a","full",1048576],["b","b","full",1048576]]]' ] ||
    fail "$(cat begun)"
nbdcopy "$(jq -r '.disks[1].uri' begun)" b.raw
qemu-img compare -q -f raw -F qcow2 b.raw b.qcow2 -U
nbdelta backup-end "$qmp_sock" b1
[ ! -e pull.sock ]
rc=0
nbdelta backup-begin "$qmp_sock" --disk a,since=c1 --disk b,since=c2 >text || rc=$?
[ "$rc" -eq 3 ] || fail "a disk as a whole is no success: $rc"
grep -q '^a: incremental, about 0 B of 1 MiB$' text || fail "$(cat text)"
grep -q '^b: full (no-checkpoint), about' text || fail "$(cat text)"
nbdelta backup-end "$qmp_sock" b2 --drop c1
[ "$(qmp checkpoint-list | jq length)" -eq 0 ]

# What limits scratch where nobody has set a quota, and how to have no limit.
begun_with() {
    nbdelta backup-begin "$qmp_sock" --disk a "$@" >/dev/null
    qmp query-backups | jq -e ".[0].disks[0].scratch | $limit" >/dev/null ||
        fail "$* gives $(qmp query-backups)"
    nbdelta backup-end "$qmp_sock" "$(qmp query-backups | jq -r '.[0].id')"
}
limit='.quota == null and ."keep-free" > 0'
begun_with
begun_with --scratch .
limit='.quota == 1048576 and ."keep-free" == null' begun_with \
    --scratch .,quota=1M
limit='.quota == null and ."keep-free" == null' begun_with --scratch .,quota=0

# Relative names count from the directory of those who give them, not from that
# of the daemon.  Where both are the same, names stay as they are.
mkdir -p there/own
cd there
qmp --wait drive-backup device=a sync=full target=./copy.qcow2 format=qcow2 \
    >/dev/null
qmp transaction - <<'END' >/dev/null
{"actions": [{"type": "drive-backup", "data": {"device": "b", "job-id": "j",
    "sync": "full", "target": "more.qcow2", "format": "qcow2"}}]}
END
nbdelta qmp "$qmp_sock" --wait-job j >/dev/null || [ -e more.qcow2 ]
qemu-img compare -q -U copy.qcow2 ../a.qcow2
qmp blockdev-add driver=qcow2 node-name=t file.driver=file \
    file.filename=copy.qcow2 >/dev/null
qmp blockdev-del node-name=t >/dev/null
begun_with --scratch own --listen 'nbd+unix:///?socket=own/nbd.sock'
nbdelta backup --scratch own "$qmp_sock" points >/dev/null
cd ..
rm -r there
qmp blockdev-add driver=file node-name=t filename=b.raw >/dev/null
[ "$(qmp query-named-block-nodes |
    jq -r '.[] | select(."node-name" == "t").file')" = b.raw ]
qmp blockdev-del node-name=t >/dev/null

refused() {
    local status=$1 text=$2 rc=0
    shift 2
    nbdelta "$@" >out 2>&1 || rc=$?
    { [ $rc -eq "$status" ] && grep -qF -e "$text" out; } ||
        fail "nbdelta $*: $rc, $(cat out)"
}
refused 1 'There is no backup' backup-end "$qmp_sock" b2
refused 2 'a socket and the ID' backup-end "$qmp_sock"
refused 2 'exclude each other' backup-end "$qmp_sock" b1 --failed --drop c1
refused 2 "there is no 'sense'" backup-begin "$qmp_sock" --disk a,sense=c1
refused 2 "there is no 'in'" backup-begin "$qmp_sock" --disk a,in=c1
refused 2 'is not a size' backup-begin "$qmp_sock" --scratch .,quota=much
refused 2 'more than an address' backup-begin "$qmp_sock" \
    --listen nbds://localhost
refused 1 'Cannot find' backup-begin "$qmp_sock" --disk c
refused 1 'no/such' backup-begin "$qmp_sock" --scratch no/such
refused 6 'cannot connect' backup-begin no.sock
[ "$(qmp query-backups)" = '[]' ]
stop_server
