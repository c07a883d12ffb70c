#!/bin/bash
# `nbdelta backup` of many disks: they are copied side by side, so one that is
# slow holds up no other; the rate is for all of them together; one that fails
# ends the run, which names it and leaves nothing.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

disks=(a b c d e f)
images=()
for d in "${disks[@]}"; do
    qemu-img create -q -f qcow2 "$d.qcow2" 4M
    qemu-io -f qcow2 "$d.qcow2" -c "write -P 1 0 2M" >/dev/null
    images+=("$d=$d.qcow2")
done

point() {
    find "$1" -maxdepth 1 -name '*Z.json' | sort | tail -n 1 |
        sed 's,.*/\(.*\).json,\1,'
}
is_clean() {
    qmp query-backups | jq -e 'length == 0' >/dev/null || fail "$1: a session"
    [ -z "$(find "$2" -name '*.part' -o -name '*.pending')" ] ||
        fail "$1: $(find "$2")"
}

# --- The rate is for all of the 24 MiB. ---

serve "${images[@]}"
begin=$(date +%s%N)
nbdelta backup --rate=8M "$qmp_sock" dir
took=$((($(date +%s%N) - begin) / 1000000))
[ "$took" -gt 1500 ] || fail "24 MiB at 8 MiB a second took $took ms"
for d in "${disks[@]}"; do
    qemu-img compare -q -U "dir/$d/$(point dir).qcow2" "$d.qcow2" || fail "$d"
done
stop_server
nbdelta verify dir

# --- The first disk does not move: all others are done, and a signal ends it.

serve --object throttle-group,id=t,x-bps-read=1 \
    "a=driver=throttle,throttle-group=t,file.driver=qcow2,file.file.driver=file,file.file.filename=a.qcow2" \
    "${images[@]:1}"
nbdelta backup --progress=json --full "$qmp_sock" slow 2>said &
run=$!
# 24 MiB in all, of which the slow one has 4 MiB.
others_done() {
    kill -0 "$run" || fail "it has ended: $(cat said)"
    jq -n -e '[inputs] | any(.done >= 20971520)' said >/dev/null 2>&1
}
wait_until "all other disks are done" others_done
kill -INT "$run"
rc=0
wait "$run" || rc=$?
[ "$rc" = 7 ] || fail "interrupted: $rc"
[ -z "$(point slow)" ] || fail "there is a point"
is_clean "interrupted" slow
stop_server

# --- One disk fails: its name, no point, nothing left. ---

serve "${images[@]:0:5}" \
    "f=driver=blkdebug,inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.sector=2048,image.driver=qcow2,image.file.driver=file,image.file.filename=f.qcow2"
before=$(point dir)
rc=0
nbdelta backup --full "$qmp_sock" dir 2>said || rc=$?
[ "$rc" = 1 ] || fail "a disk that fails: $rc"
grep -q "disk 'f'" said || fail "$(cat said)"
[ "$(point dir)" = "$before" ] || fail "there is a point"
is_clean "a disk that fails" dir
stop_server
for d in "${disks[@]}"; do
    qemu-img check -q "dir/$d/$before.qcow2" || fail "the old file of $d"
done
