#!/bin/bash
# A bitmap of an image below tells nothing about the disk.  After a live
# snapshot, and after a restart with the overlay, it is not offered unless it is
# named.  After a commit it is offered again.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img nbdinfo jq
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

qemu-img create -q -f qcow2 base.qcow2 8M
qemu-img bitmap --add base.qcow2 b0

contexts() {
    nbdinfo --list --json "$uri" |
        jq -c ".exports[] | select(.[\"export-name\"] == \"$1\") | .contexts"
}

# The bitmap is offered, as a context and in a view, or it is not.
offered() {
    contexts "$1" | grep -q qemu:dirty-bitmap:b0 || fail "no context: $2"
    nbdinfo --size "nbd+unix:///$1@dirty=b0?socket=$sock" >size ||
        fail "no view: $2"
}
not_offered() {
    if contexts "$1" | grep -q qemu:dirty-bitmap; then
        fail "a context: $2"
    fi
    if nbdinfo --size "nbd+unix:///$1@dirty=b0?socket=$sock" >size 2>&1; then
        fail "a view: $2"
    fi
}

why_full() {
    nbdelta backup-begin "$qmp_sock" --disk vda,since=b0 --output json >begun
    nbdelta backup-end "$qmp_sock" "$(jq -r .id begun)" --failed >out
    jq -r '.disks[0] | .mode + " " + (.reason // "")' begun
}

serve vda=base.qcow2
offered vda "at first"
# A client that has asked before is not told that everything is clean.
python - "$uri" "$nbdelta" "$qmp_sock" "$PWD" <<'END'
import subprocess
import sys
import nbd
h = nbd.NBD()
h.add_meta_context('qemu:dirty-bitmap:b0')
h.connect_uri(sys.argv[1])


def dirty():
    runs = []
    h.block_status(8 << 20, 0, lambda name, at, entries, error:
                   runs.extend(entries))
    return runs


assert dirty() == [8 << 20, 0]
h.pwrite(b'1' * 65536, 0)
assert dirty() == [65536, 1, (8 << 20) - 65536, 0]
subprocess.run([sys.argv[2], 'qmp', sys.argv[3], 'blockdev-snapshot-sync',
                'device=vda', f'snapshot-file={sys.argv[4]}/over.qcow2'],
               check=True, stdout=subprocess.DEVNULL)
h.pwrite(b'2' * 65536, 1 << 20)
try:
    print(dirty())
except nbd.Error as e:
    assert e.errno == 'EINVAL'
else:
    sys.exit('a bitmap that collects nothing is told')
assert h.pread(1, 1 << 20) == b'2'
END
not_offered vda "after a snapshot"
[ "$(why_full)" = "full base-bitmap" ] || fail "$(cat begun)"

# Named it is, as in QEMU.
node=$(qmp query-block-exports | jq -r '.[] | select(.id == "vda") |
    .["node-name"]')
named() {
    qmp block-export-add "{\"type\": \"nbd\", \"id\": \"named\",
        \"name\": \"named\", \"node-name\": \"$node\", \"bitmaps\": [$1]}" >out
}
named '"b0"'
offered named "by name"
qmp block-export-del id=named >out
named '{"node": "vda", "name": "b0"}'
offered named "by node and name"
qmp block-export-del id=named >out
not_offered vda "beside one where it is named"
stop_server

serve vda=over.qcow2
not_offered vda "after a restart with the overlay"
[ "$(why_full)" = "full base-bitmap" ] || fail "$(cat begun)"
if nbdelta map -U --bitmap b0 over.qcow2 >out 2>&1; then
    fail "map tells of a bitmap below"
fi
grep -q "tells nothing" out || fail "$(cat out)"

# A commit writes to the image below, whose bitmap sees it.
qmp block-commit device=vda job-id=c >out
wait_until "the commit is ready" \
    sh -c "'$nbdelta' qmp '$qmp_sock' query-jobs | grep -q ready"
qmp block-job-complete device=c >out
wait_until "the commit has ended" \
    sh -c "! '$nbdelta' qmp '$qmp_sock' query-jobs | grep -q commit"
offered vda "after the commit"
nbdinfo --map=qemu:dirty-bitmap:b0 "$uri" | grep -q '^ *1048576 .*dirty' ||
    fail "$(nbdinfo --map=qemu:dirty-bitmap:b0 "$uri")"
stop_server

# The plugin offers no view of it either.
need_plugin
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over2.qcow2
serve_plugin over2.qcow2
if nbdinfo --list --json "$uri" | grep -q dirty=; then
    fail "the plugin has a view of a bitmap below"
fi
stop_plugin
