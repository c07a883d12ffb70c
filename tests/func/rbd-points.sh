#!/bin/bash
# Backups that clients pull of disks in Ceph: the point in time is a snapshot of
# the image, and so is the checkpoint; what has changed is a diff of the two.  In
# all the ways in which that can fail.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
# shellcheck source=tests/func/ceph.bash
. "$SRCDIR/tests/func/ceph.bash"
need jq qemu-img qemu-io nbdinfo nbdcopy python3
need_ceph

io() { # EXPORT COMMAND...
    local export=$1
    shift
    qemu-io -f raw "$(uri_of "$export")" "$@" >io.out 2>&1 ||
        fail "qemu-io $*: $(cat io.out)"
    ! grep -q -e failed -e error io.out || fail "qemu-io $*: $(cat io.out)"
}
refused() {
    local text=$1
    shift
    ! "$@" >refused.out 2>&1 || fail "$*: not refused"
    grep -qF -e "$text" refused.out || fail "$*: said $(cat refused.out)"
}
same() { qemu-img compare -q -f raw -F raw "$1" "$2" || fail "$1 is not $2"; }
begin() { # OPTION...: sets id
    nbdelta backup-begin "$qmp_sock" --output json "$@" >begun 2>begin.err ||
        fail "backup-begin $*: $(cat begin.err)"
    id=$(jq -r .id begun)
}
end() { nbdelta backup-end "$qmp_sock" "$id" "$@" >end.out; }
of_disk() { jq -r --arg d "$1" ".disks[] | select(.node == \$d).$2" begun; }
point() { uri_of "$(of_disk "$1" export)"; }
snapshots() { rbd snap ls --format json "$1" | jq -r '.[].name' | sort >"$1.snaps"; }
snapshots_are() { # IMAGE NAME...
    local image=$1
    shift
    snapshots "$image"
    printf '%s\n' "$@" | sed '/^$/d' | sort | diff - "$image.snaps" >diff.out
}
pending() {
    snapshots "$1"
    grep '^nbdelta\.backup\.' "$1.snaps"
}
dirty() { # DISK: offsets and lengths that the context has dirty
    nbdinfo --map="$(of_disk "$1" context)" "$(point "$1")" |
        awk '$3 == 1 { print $1, $2 }'
}
# The same granules as rbd says.
diff_is_true() { # DISK FROM TO
    dirty "$1" >ours
    rbd diff --from-snap "$2" --format json "$1@$3" >theirs
    python "$SRCDIR/tests/func/same_granules.py" ours theirs 65536 ||
        fail "dirty: $(cat ours); rbd: $(cat theirs)"
}

rbd create --size 64M a
rbd create --size 32M b
nbdelta create -f qcow2 q.qcow2 32M
nbdelta create -f qcow2 "$(rbd_of over)" 16M
serve_all() {
    serve a="$(rbd_of a)" b="$(rbd_of b)" q=q.qcow2 over="$(rbd_of over)" \
        2>>server.log
}
serve_all
io a -c 'write -q -P 1 0 8M' -c 'write -q -P 2 20M 64k' -c flush
io b -c 'write -q -P 3 0 1M'
io q -c 'write -q -P 4 0 1M'

# --- A point, and nothing that a guest writes later is in it ---

begin --disk a --checkpoint mon
[ "$(of_disk a mode)" = full ]
snapshot=$(pending a)
qmp query-backups >query
jq -e --arg s "$snapshot" '.[0].disks[0] | .snapshot == $s and
    .scratch.where == "storage" and .scratch.bytes == 0 and .left == 0' query >out ||
    fail "$(cat query)"
qemu-img convert -q -f raw -O raw "$(uri_of a)" then.raw
io a -c 'write -q -P 5 0 1M' -c 'discard 4M 4M' -c 'write -q -P 5 40M 4096' -c flush
same "$(point a)" then.raw
nbdcopy "$(point a)" - >copy.raw
same copy.raw then.raw
refused "is the new checkpoint" nbdelta backup-end "$qmp_sock" "$id" --drop mon
end
snapshots_are a nbdelta.checkpoint.mon
qmp checkpoint-list >list
jq -e '.[0] | .name == "mon" and (.disks | length == 1) and
    .disks[0].snapshot == "nbdelta.checkpoint.mon"' list >out || fail "$(cat list)"
same then.raw "$(rbd_of a@nbdelta.checkpoint.mon)"

# --- Increments: what rbd says has changed, and only that ---

begin --disk a,since=mon --checkpoint tue --require-incremental
[ "$(of_disk a mode)" = incremental ]
diff_is_true a nbdelta.checkpoint.mon "$(pending a)"
qemu-img convert -q -f raw -O raw "$(point a)" all.raw
while read -r offset bytes; do
    dd if=all.raw of=then.raw bs=64k iflag=skip_bytes,count_bytes \
        oflag=seek_bytes conv=notrunc skip="$offset" seek="$offset" \
        count="$bytes" status=none
done <ours
same then.raw all.raw
end --failed
snapshots_are a nbdelta.checkpoint.mon
# Resized: what is new differs.  A point keeps its size.
qmp block_resize device=a size=72M >out
begin --disk a
qmp block_resize device=a size=80M >out
qmp query-backups >query
jq -e '.[0].disks[0].size == 75497472' query >out || fail "$(cat query)"
nbdinfo --size "$(point a)" >out
[ "$(cat out)" = 75497472 ] || fail "$(cat out)"
end --failed
io a -c 'write -q -P 6 79M 4096' -c flush
begin --disk a,since=mon
dirty a >ours
[ "$(tail -n 1 ours)" = "67108864 16777216" ] || fail "$(cat ours)"
end --failed
begin --disk a --checkpoint "tue/ä@1 %"
io a -c 'write -q -P 7 30M 4096' -c flush
end --drop mon
last='nbdelta.checkpoint.tue%2Fä%401%20%25'
snapshots_are a "$last"
# With maps, without, and with ones that are invalid: exact all the same.
begin --disk a,since='tue/ä@1 %'
diff_is_true a "$last" "$(pending a)"
end --failed
rbd feature disable a fast-diff object-map
begin --disk a,since='tue/ä@1 %'
diff_is_true a "$last" "$(pending a)"
end --failed
rbd feature enable a object-map fast-diff
begin --disk a,since='tue/ä@1 %'
diff_is_true a "$last" "$(pending a)"
grep -q "disk 'a': an object map since .* is marked as invalid" server.log ||
    fail "$(cat server.log)"
end --failed
rbd object-map rebuild --no-progress a

# A bitmap of QEMU's kind, in memory.
qmp block-dirty-bitmap-add node=a name=memory >out
io a -c 'write -q -P 8 50M 64k' -c flush
begin --disk a,since=memory
[ "$(dirty a)" = "52428800 65536" ] || fail "by a bitmap: $(dirty a)"
end --failed
qmp block-dirty-bitmap-remove node=a name=memory >out

# --- Several disks, of both kinds, at one instant ---

begin --disk a --disk b --disk q --checkpoint zero
end
PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 "$SRCDIR/tests/func/in_turns.py" \
    "$(uri_of a)" "$(uri_of b)" "$(uri_of q)" &
writer=$!
# An increment shows only what has changed, so each disk has to have a write.
is_written() { # The number's high byte is 0; pattern 4 was there
    qemu-io -r -f raw -c 'read -P 0 3 1' "$(uri_of q)" >one.out &&
        ! grep -q failed one.out
}
wait_until "all disks have writes" is_written
for _ in 1 2 3; do
    begin --disk a,since=zero --disk b,since=zero --disk q,since=zero
    values=
    for disk in a b q; do
        qemu-img dd -f raw -O raw bs=512 count=1 if="$(point "$disk")" \
            of="$disk.point"
        values+="$(od -A n -t u4 -N 4 "$disk.point" | tr -d ' ') "
    done
    read -r va vb vq <<<"$values"
    if [ "$va" -lt "$vb" ] || [ "$vb" -lt "$vq" ] || [ $((vq + 1)) -lt "$va" ]; then
        fail "no one instant: $values"
    fi
    end --failed
done
kill "$writer"
wait "$writer" || :
# One that is below qcow2 goes the ordinary way.
begin --disk over --checkpoint wed
snapshots_are over
end

# --- Somebody else's hands ---

refused "has the checkpoint 'zero' already" \
    nbdelta backup-begin "$qmp_sock" --disk a --checkpoint zero
begin --disk a --disk b --checkpoint thu
rbd snap rm --no-progress "a@$(pending a)"
refused "was lost (snapshot-removed)" nbdelta backup-end "$qmp_sock" "$id"
end --failed
snapshots_are b nbdelta.checkpoint.zero
rbd snap rm --no-progress b@nbdelta.checkpoint.zero
refused "What has changed on 'b' since 'zero' cannot be told: new-disk" \
    nbdelta backup-begin "$qmp_sock" --disk b,since=zero --require-incremental
snapshots_are b
rbd snap protect a@nbdelta.checkpoint.zero
rbd clone a@nbdelta.checkpoint.zero clone
refused "it is protected, or has clones" qmp checkpoint-delete '{"name": "zero", "nodes": ["a"]}'
begin --disk a --checkpoint fri
end --drop zero --drop 'tue/ä@1 %'
snapshots_are a nbdelta.checkpoint.fri nbdelta.checkpoint.zero
qmp blockdev-add driver=rbd node-name=clone pool=rbd image=clone \
    conf="$CEPH_CONF" >out
qmp block-export-add type=nbd id=clone node-name=clone name=clone \
    writable=true >out
begin --disk clone --checkpoint one
end
io clone -c 'write -q -P 9 5M 4096' -c flush
begin --disk clone,since=one
diff_is_true clone nbdelta.checkpoint.one "$(pending clone)"
qmp block-export-del id=clone >out
refused "is in use" qmp blockdev-del node-name=clone
end --failed
qmp blockdev-del node-name=clone >out
# Another client has the exclusive lock: it makes the snapshot.
nbdelta serve -U "$PWD/other.sock" --pidfile other.pid o="$(rbd_of b)" \
    2>other.log &
other=$!
wait_until "the other server is ready" test -s other.pid
qemu-io -f raw -c 'write -q -P 10 0 1M' -c flush \
    "nbd+unix:///o?socket=$PWD/other.sock" >out
begin --disk b --checkpoint sat
qemu-io -f raw -c 'write -q -P 11 0 1M' -c flush \
    "nbd+unix:///o?socket=$PWD/other.sock" >out
qemu-io -r -f raw -c 'read -q -P 10 0 1M' "$(point b)" >out || fail "not of that instant"
end
kill "$other"
wait "$other"

# --- A session that ends in any other way leaves nothing ---

begin --disk a --expire 1
wait_until "it has expired" snapshots_are a nbdelta.checkpoint.fri \
    nbdelta.checkpoint.zero
begin --disk a --checkpoint no
quick_locks
stop_server
snapshots_are a nbdelta.checkpoint.fri nbdelta.checkpoint.zero
# What a killed daemon leaves is found by the next one; others' stay.
serve_all
begin --disk a --disk b --checkpoint no
kill_server
slow_locks
pending a >out
pending b >out
rbd snap create --no-progress a@nbdelta.backup.00000001-1-1-999999.dead
rbd snap create --no-progress a@nbdelta.backup.what
rbd snap create --no-progress a@mine
serve_all
begin --disk a --checkpoint no
[ "$(pending a | wc -l)" = 2 ]
end --failed
snapshots_are a mine nbdelta.backup.what nbdelta.checkpoint.fri \
    nbdelta.checkpoint.zero
stop_server
