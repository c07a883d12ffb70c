#!/bin/bash
# `nbdelta backup` of a daemon whose disks are in Ceph: points are what its RBD
# snapshots have, increments what differs between two of them; and the same
# directory without that daemon, and with it again.  No snapshot is left that no
# point needs, also when the daemon or the backup is killed.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
# shellcheck source=tests/func/ceph.bash
. "$SRCDIR/tests/func/ceph.bash"
need jq qemu-img qemu-io
need_ceph

guest() { # COMMAND: of the guest of the disk a
    qemu-io -f raw -c "$1" "$(uri_of a)" >io.out 2>&1 || fail "$1: $(cat io.out)"
    ! grep -q -e failed -e error io.out || fail "$1: $(cat io.out)"
}
backup() { # FILTER SOURCE...: what the report says of the disk a
    local filter=$1
    shift
    nbdelta backup --output=json "$@" dir >report 2>said || [ $? = 3 ] ||
        fail "backup $*: $(cat said)"
    jq -e ".disks[] | select(.name == \"a\") | $filter" report >out ||
        fail "not $filter: $(cat report said)"
}
point() { find dir -name '*Z.json' -printf '%f\n' | sort | tail -n 1 | cut -d. -f1; }
# The images have the checkpoint of the latest point and no more, and the point
# is what that has.
right() {
    local disk name
    name=nbdelta.checkpoint.nbdelta-$(jq -r .id dir/nbdelta.json)-$(point)
    for disk in a b; do
        rbd snap ls --format json "$disk" | jq -r '.[].name' >is
        [ "$(cat is)" = "$name" ] || fail "$disk has $(cat is), not $name"
        qemu-img compare -q -f qcow2 -F raw "dir/$disk/$(point).qcow2" \
            "rbd:rbd/$disk@$name:conf=$CEPH_CONF" ||
            fail "$disk of $(point) is not what the snapshot has"
    done
}

rbd create --size 24M a
rbd create --size 8M b
disks=(a="$(rbd_of a)" b="$(rbd_of b)")
serve "${disks[@]}"
guest 'write -P 1 1M 2M'
backup '.kind == "full"' "$qmp_sock"
right
guest 'write -P 2 2M 64k'
backup '.kind == "increment" and .written == 65536' "$qmp_sock"
right

# The backup is killed, and the daemon lives.
guest 'write -P 3 2M 8M'
nbdelta backup --rate=1M --timeout=2 "$qmp_sock" dir >out 2>&1 &
run=$!
begun() { [ -e dir/resume.json ] && compgen -G 'dir/a/*.part' >out2; }
wait_until "a copy has begun" begun
kill -KILL "$run"
wait "$run" 2>/dev/null || :
guest 'write -P 4 2M 1M'
backup '.kind == "increment"' "$qmp_sock"
guest 'write -P 4 2M 1M'
backup '.kind == "increment"' "$qmp_sock"
right

# Without the daemon.
stop_server
backup '.kind == "compared" or .kind == "increment"' "${disks[@]}"
right
qemu-io -f raw -c 'write -P 5 20M 64k' "$(rbd_of a)" >out
backup '.kind == "increment" and .written == 65536' "${disks[@]}"
right

# With one again, which is killed in the middle.
serve "${disks[@]}"
guest 'write -P 6 4M 8M'
nbdelta backup --rate=1M --timeout=2 "$qmp_sock" dir >out 2>&1 &
run=$!
wait_until "a copy has begun" begun
kill_server
rc=0
wait "$run" || rc=$?
[ "$rc" != 0 ] || fail "its daemon was killed, and it has worked"
for image in a b; do
    rbd status --format json "$image" | jq -r '.watchers[].address'
done | sort -u >dead
while read -r addr; do
    ceph osd blocklist add "$addr" 3600 >out 2>&1
done <dead
serve "${disks[@]}"
backup '.kind != "full"' "$qmp_sock"
right
guest 'write -P 7 4M 64k'
backup '.kind == "increment" and .written == 65536' "$qmp_sock"
right

nbdelta verify dir >out 2>&1 || fail "verify: $(cat out)"
nbdelta backup --forget "$qmp_sock" dir
[ -z "$(rbd snap ls a)" ] || fail "left: $(rbd snap ls a)"
