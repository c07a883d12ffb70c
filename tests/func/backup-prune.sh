#!/bin/bash
# `nbdelta backup --prune` removes points after a good run, and after no other;
# `--dry-run` changes nothing, needs no directory, and leaves a run that is at
# work alone.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

points() {
    find "$1" -maxdepth 1 -name '*Z.json' | wc -l
}
change() {
    qemu-io -f raw "$(uri_of vda)" -c "write -P $1 0 1M" >/dev/null
}

# --- A dry run of nothing, and what it refuses. ---

qemu-img create -q -f qcow2 disk.qcow2 64M
serve vda=disk.qcow2
nbdelta backup --dry-run --output=json "$qmp_sock" dir >plan
jq -e '.disks[0].kind == "full" and .disks[0].reason == "new-disk" and
    has("point") == false' plan >/dev/null || fail "$(cat plan)"
[ ! -e dir ] || fail "a dry run makes a directory"
mkdir empty
nbdelta backup --dry-run "$qmp_sock" empty >/dev/null
[ -z "$(ls -A empty)" ] || fail "a dry run fills a directory"
mkdir other && touch other/file
for d in 6:other 6:none/dir 1:disk.qcow2; do
    rc=0 wanted=${d%%:*} d=${d#*:}
    nbdelta backup --dry-run "$qmp_sock" "$d" >/dev/null 2>said || rc=$?
    [ "$rc" = "$wanted" ] || fail "a dry run of $d: $rc"
done

# --- Points go. ---

for i in 1 2 3 4; do
    change "$i"
    nbdelta backup --prune --keep-last 2 "$qmp_sock" dir
    [ "$(points dir)" = $((i < 2 ? 1 : 2)) ] || fail "run $i: $(points dir)"
done
cp disk.qcow2 frozen.qcow2
nbdelta backup --full "$qmp_sock" dir
[ "$(points dir)" = 3 ] || fail "without --prune: $(points dir)"
nbdelta backup --prune --keep-last=1 --dry-run "$qmp_sock" dir >/dev/null
[ "$(points dir)" = 3 ] || fail "a dry run prunes"
rc=0
nbdelta backup --prune --keep-last=1 --disk=none "$qmp_sock" dir 2>said || rc=$?
[ "$rc" = 6 ] || fail "no such disk: $rc"
[ "$(points dir)" = 3 ] || fail "a failed run prunes"
nbdelta verify dir
for options in --prune --keep-last=1 '--prune --keep-last=0'; do
    rc=0
    # shellcheck disable=SC2086
    nbdelta backup $options "$qmp_sock" dir 2>said || rc=$?
    [ "$rc" = 2 ] || fail "$options: $rc"
done

# A point that somebody reads is left, and said; the new one is there.
old=$(find dir -maxdepth 1 -name '*Z.json' | sort | head -n 1)
exec 9<"$old"
flock -s 9
nbdelta backup --prune --keep-last=1 "$qmp_sock" dir 2>said || fail "held: $?"
grep -q "is left" said || fail "$(cat said)"
exec 9<&-
nbdelta backup --prune --keep-last=1 "$qmp_sock" dir
[ "$(points dir)" = 1 ] || fail "let go: $(points dir)"
qemu-img compare -q -U "$(find dir/vda -name '*.qcow2')" disk.qcow2

# --- A dry run beside a run. ---

qemu-io -f raw "$(uri_of vda)" -c 'write -P 9 0 32M' >/dev/null
nbdelta backup --rate=256k "$qmp_sock" dir &
run=$!
copies() {
    qmp query-backups | jq -e 'length == 1' >/dev/null
}
wait_until "it copies" copies
nbdelta backup --dry-run "$qmp_sock" dir >plan
copies || fail "a dry run has ended the session of a run"
kill -INT "$run"
wait "$run" && fail "not interrupted"
stop_server
