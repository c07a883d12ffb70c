#!/bin/bash
# `nbdelta backup` where things are not as they should be: as cron runs it, with
# a clock that was set back, beside another run, and where there is no room.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

points() {
    find "$1" -maxdepth 1 -name '*Z.json' | sort | sed 's,.*/\(.*\).json,\1,'
}
last() {
    points "$1" | tail -n 1
}
change() {
    qemu-io -f raw "$(uri_of vda)" -c "write -P $1 0 ${2-1M}" >/dev/null
}
is_disk() {
    qemu-img compare -q -U "dir/vda/$(last dir).qcow2" disk.qcow2 ||
        fail "$1: the last point is not the disk"
}
no_rest() {
    [ -z "$(find dir -name '*.part' -o -name '*.pending')" ] ||
        fail "$1: $(find dir)"
    qmp query-backups | jq -e 'length == 0' >/dev/null || fail "$1: a session"
}

qemu-img create -q -f qcow2 disk.qcow2 64M
serve vda=disk.qcow2
change 1

# --- As cron runs it: no terminal, no HOME, nothing open but the mail. ---

for i in 1 2; do
    change "$i"
    (umask 077 && exec env -i LANG=C PATH=/usr/bin:/bin "$nbdelta" backup \
        "$qmp_sock" "$PWD/dir" <&-) >mail 2>&1 || fail "cron: $?, $(cat mail)"
    [ ! -s mail ] || fail "a mail: $(cat mail)"
done
[ "$(points dir | wc -l)" = 2 ] || fail "cron: $(points dir)"
# Without any descriptor, too.
(exec env -i "$nbdelta" backup "$qmp_sock" "$PWD/dir" <&- >&- 2>&-) ||
    fail "without descriptors: $?"
is_disk cron

# --- The clock is set back: a point of the year 2035 is there. ---

mkimg future.raw $((64 << 20))
"$BUILD/tests/func/make-point" dir 20350101T000000Z future.raw
change 3
rc=0
nbdelta backup "$qmp_sock" dir 2>said || rc=$?
[ "$rc" = 0 ] || [ "$rc" = 3 ] || fail "clock: $rc, $(cat said)"
[[ $(last dir) > 20350101T000000Z ]] || fail "clock: $(points dir)"
is_disk clock
change 4
nbdelta backup "$qmp_sock" dir || fail "after the clock: $?"
is_disk "after the clock"
nbdelta verify dir

# --- Two at once. ---

change 5 40M
nbdelta backup --rate=8M "$qmp_sock" dir &
first=$!
copies() {
    qmp query-backups | jq -e 'length == 1' >/dev/null
}
wait_until "it copies" copies
rc=0
nbdelta backup "$qmp_sock" dir 2>said || rc=$?
[ "$rc" = 5 ] || fail "two runs: $rc"
grep -q "backup" said || fail "who has it: $(cat said)"
wait "$first" || fail "the first of two runs: $?"
is_disk "two runs"
no_rest "two runs"

# --- No room: a file may have 8 MiB. ---

change 6 40M
before=$(points dir)
rc=0
(ulimit -f 8192 && exec "$nbdelta" backup "$qmp_sock" dir) 2>said || rc=$?
[ "$rc" = 1 ] || fail "no room: $rc"
grep -q "disk 'vda'" said || fail "no room: $(cat said)"
[ "$(points dir)" = "$before" ] || fail "no room: $(points dir)"
no_rest "no room"
nbdelta verify dir
nbdelta backup "$qmp_sock" dir || fail "room again: $?"
is_disk "room again"

# --- More than the file system has is known before. ---

if mkdir small && mount -t tmpfs -o size=32M none small 2>/dev/null; then
    at_exit umount small
    rc=0
    nbdelta backup "$qmp_sock" small/dir 2>said || rc=$?
    [ "$rc" = 1 ] || fail "a small file system: $rc"
    grep -q "needed" said || fail "a small file system: $(cat said)"
    [ -z "$(find small -name '*.part')" ] || fail "$(find small)"
fi
stop_server
