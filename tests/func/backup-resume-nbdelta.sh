#!/bin/bash
# A backup of our daemon's disks that is killed while it copies is gone on with
# by the next run, as long as the daemon has the session that it left: the point
# has what was frozen first, and what was copied is not read again.  When the
# session is gone or was another one, or other options are asked for, all begins
# again, with one line that says so.  In no case is a session, a checkpoint or a
# directory left.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

# Both disks get @$1 at @$2, @$3 bytes.
write() {
    local d
    for d in a b; do
        qemu-io -f raw "$(uri_of $d)" -c "write -P $1 $2 $3" >/dev/null
    done
}

# Beside each disk a copy of what it has now.
freeze() {
    local d
    for d in a b; do
        qemu-img convert -f raw -O raw "$(uri_of $d)" $d.frozen
    done
}

start() { serve a=a.qcow2 b=b.qcow2; }

# Each of both disks has some that is copied.
parts_are_flushed() {
    local part bytes
    sleep 0.3
    kill -0 $run || fail "it has ended before"
    for part in dir/{a,b}/"$(cat instant)".qcow2.part; do
        bytes=$(qemu-img map -U --output=json "$part" 2>/dev/null | jq '[.[] |
            select(.depth == 0 and .data) | .length] | add // 0')
        [ "${bytes:-0}" -ge $((512 << 10)) ] || return 1
    done
}
noted() {
    [ "$(jq -r "select(.what) | .point" dir/resume.json 2>/dev/null)" = \
        "$(cat instant)" ]
}

# Which sessions the daemon has, and what clients have read of them.
sessions() { qmp query-backups | jq -r '.[] | .id + " " + .instant'; }
pulled() { qmp query-backups | jq '[.[].disks[].pulled] | add // 0'; }

# A run that is killed when $1 is so.  Both disks change afterwards.
cut_off() {
    rm -f instant
    # shellcheck disable=SC2016
    nbdelta backup --rate=2M --hook='[ "$NBDELTA_WHEN" != frozen ] ||
        echo "$NBDELTA_POINT" >instant #' "$qmp_sock" dir &
    run=$!
    wait_until "it has begun" test -s instant
    wait_until "it copies" "$1"
    kill -9 $run
    wait $run 2>/dev/null || true
    session=$(sessions)
    [ "$(wc -w <<<"$session")" = 2 ] || fail "sessions: $session"
    write 99 1M 1M
    write 98 11M 2M
}

backup() {
    status=0
    nbdelta backup --output=json "$@" "$qmp_sock" dir >report 2>said ||
        status=$?
}

nothing_left() {
    [ -z "$(sessions)" ] || fail "there is a session"
    [ ! -e dir/resume.json ] || fail "resume.json is left"
    [ -z "$(find dir -name '*.part' -o -name '*.pending')" ] ||
        fail "$(find dir)"
    [ -z "$(ls tmp)" ] || fail "left: $(ls tmp)"
}

# The latest point is $1, right and plain; nothing else is left.
is_right() {
    local d
    [ $status = 0 ] || fail "exit status $status: $(cat said)"
    [ "$(jq -r .point report)" = "$1" ] || fail "not $1: $(cat report said)"
    for d in a b; do
        qemu-img compare -q "dir/$d/$1.qcow2" $d.frozen ||
            fail "$d is not what was frozen"
        qemu-img check -q "dir/$d/$1.qcow2"
    done
    nothing_left
    [ "$(qmp checkpoint-list | jq -r '.[].name' | sed 's/.*-//')" = "$1" ] ||
        fail "checkpoints: $(qmp checkpoint-list)"
    nbdelta verify dir >/dev/null || fail "verify: $?"
}

# At least 512 KiB of the $2 MiB of each disk were not read again.
gone_on() {
    is_right "$(cat instant)"
    [ ! -s said ] || fail "it says: $(cat said)"
    jq -e --arg kind "$1" --argjson most $((($2 << 20) - (512 << 10))) \
        'all(.disks[]; .kind == $kind and .read > 0 and .read <= $most)' \
        report >/dev/null ||
        fail "it was read again: $(cat report)"
}

began_again() {
    [ "$(wc -l <said)" = 1 ] || fail "it says '$(cat said)'"
    grep -q "begun again: .*$1" said || fail "it says '$(cat said)'"
    [ "$(jq -r .point report)" != "$(cat instant)" ] ||
        fail "it is the first run's point"
    is_right "$(jq -r .point report)"
    jq -e 'all(.disks[]; .read >= 12582912)' report >/dev/null ||
        fail "not all was read: $(cat report)"
}

mkdir tmp
export TMPDIR=$PWD/tmp
for d in a b; do
    qemu-img create -q -f qcow2 $d.qcow2 16M
    qemu-io -f qcow2 $d.qcow2 -c 'write -P 1 0 12M' >/dev/null
done
start

# --- A full, cut off twice. ---

freeze
cut_off parts_are_flushed
before=$(pulled)
nbdelta backup --rate=1M "$qmp_sock" dir &
run=$!
more_is_pulled() { [ "$(pulled)" -gt "$before" ]; }
wait_until "the second run reads" more_is_pulled
kill -9 $run
wait $run 2>/dev/null || true
[ "$(sessions)" = "$session" ] || fail "the second run has another session"
backup
gone_on full 12

# --- An increment. ---

write 3 2M 12M
freeze
cut_off parts_are_flushed
backup
gone_on increment 13 # with what cut_off wrote

# --- Other options: the session that was left is ended. ---

write 4 2M 12M
cut_off noted
freeze
backup --full
began_again "other options"

# --- It has ended, as one does that expires. ---

write 5 2M 12M
cut_off noted
qmp backup-end id="${session% *}" success=false >/dev/null
freeze
backup
began_again "may have changed"

# --- The same daemon, a session of the same id, and another instant. ---

write 6 2M 12M
cut_off noted
kill_server
start
nbdelta backup-begin --checkpoint \
    "nbdelta-$(jq -r .id dir/nbdelta.json)-$(cat instant)" "$qmp_sock" >/dev/null
freeze
backup
began_again "may have changed"

# --- It is there when the source is opened, and begin cannot have it. ---

write 7 2M 12M
cut_off noted
jq '.what.identity.disks[1].whole = true' dir/resume.json >changed
cp changed dir/resume.json
freeze
backup
began_again "may have changed"

# --- A run that finds it, and makes no point, ends it, before begin or after. ---

write 8 2M 12M
cut_off noted
mkdir "dir/a/$(cat instant).sums.part" # it cannot be tidied up
backup
[ $status = 1 ] || fail "a directory in the way: $status"
rmdir dir/a/*.sums.part
[ -z "$(sessions)" ] || fail "before begin: there is a session"
[ -z "$(ls tmp)" ] || fail "before begin: left: $(ls tmp)"

cut_off noted
status=0
# shellcheck disable=SC2016
nbdelta backup --hook='[ "$NBDELTA_WHEN" != before ] #' "$qmp_sock" dir \
    2>/dev/null || status=$?
[ $status = 1 ] || fail "a hook that fails: $status"
nothing_left
stop_server
