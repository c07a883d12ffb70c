#!/bin/bash
# `nbdelta events` prints what a monitor tells, a line each, of nbdelta and of
# QEMU, and ends in order: with the event, the time, a signal, the reader, the
# daemon.  A monitor that floods it costs no memory.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need jq

nbdelta create disk.qcow2 1M
serve vda=disk.qcow2

# ends STATUS TEXT COMMAND...: it exits so, with TEXT on standard error.
ends() {
    local want=$1 text=$2 rc=0
    shift 2
    timeout 60 "$@" >out 2>err || rc=$?
    [ "$rc" -eq "$want" ] || fail "$*: exits with $rc, not $want: $(cat err)"
    [ -z "$text" ] || grep -qF -- "$text" err || fail "$*: no '$text': $(cat err)"
}
# watch ARG...: `nbdelta events ARG...` in the background, which is connected.
watch() {
    : >events # else the lines of the one before are seen
    # shellcheck disable=SC2094  # the other 'events' is a word
    timeout 60 nbdelta events "$@" >events 2>err &
    watcher=$!
}
ended() {
    local rc=0
    wait "$watcher" || rc=$?
    [ "$rc" -eq "$1" ] || fail "exits with $rc, not $1: $(cat err)"
}
some_lines() {
    [ "$(wc -l <events)" -gt 2 ]
}
backups=0
backup() {
    backups=$((backups + 1))
    qmp -q --wait drive-backup device=vda sync=full target=$backups.raw \
        format=raw job-id=j
}
# Until events have been seen.
poke() {
    until some_lines; do
        [ "$backups" -lt 500 ] || fail 'no events'
        backup
    done
}

# --- The event that was waited for is the last line. ---

watch "$qmp_sock" --until BLOCK_JOB_COMPLETED --timeout 50
while kill -0 "$watcher" 2>/dev/null; do
    backup
done
ended 0
[ "$(jq -r .event events | tail -n 1)" = BLOCK_JOB_COMPLETED ] ||
    fail "the last one: $(cat events)"
jq -es 'length > 0 and all(.[]; (.event | type) == "string" and
    .timestamp.seconds > 1e9 and has("data"))' events >/dev/null ||
    fail "$(cat events)"
[ "$(wc -l <events)" -eq "$(jq -s length events)" ] || fail 'not a line each'

# --- Time. ---

ends 0 '' nbdelta events "$qmp_sock" --timeout 0.1
[ ! -s out ] || fail "$(cat out)"
ends 3 "'JOB_STATUS_CHANGE' has not come" nbdelta events --timeout=0.1 \
    --until=JOB_STATUS_CHANGE "$qmp_sock"
ends 6 "no event 'BLOCK_JOB_COMPLETE'; is 'BLOCK_JOB_COMPLETED' meant?" \
    nbdelta events --until BLOCK_JOB_COMPLETE "$qmp_sock"
for words in '' 'a b' '--timeout -1 a' '--timeout nan a' '--timeout 1x a' \
    '--timeout 1e99 a' '--bad a'; do
    # shellcheck disable=SC2086  # words
    ends 2 "Try 'nbdelta events --help'" nbdelta events $words
done
ends 6 'No such file' nbdelta events no.sock
ends 1 'does not speak QMP' nbdelta events "$sock"

# --- A signal, the reader, the daemon. ---

watch "$qmp_sock"
poke
kill -TERM "$watcher"
ended 7
grep -q 'interrupted (Terminated)' err || fail "$(cat err)"
jq -es 'length > 0' events >/dev/null || fail "not whole lines: $(cat events)"

# The reader goes, and no event comes that would tell.
# shellcheck disable=SC2016  # for bash -c to expand
ends 7 '' bash -c 'nbdelta events "$1" | true; exit "${PIPESTATUS[0]}"' _ \
    "$qmp_sock"

watch "$qmp_sock"
poke
stop_server
ended 1
grep -q 'closed the connection' err || fail "$(cat err)"

# --- Monitors that lie. ---

answer() {
    jq -n "$1" >answers
}
# Sanitizers want all addresses.
limit=1000000
[ -z "${SANITIZE-}" ] || limit=unlimited
limited() {
    local status=$1 text=$2
    shift 2
    # shellcheck disable=SC2016  # for bash -c to expand
    ends "$status" "$text" bash -c 'ulimit -v "$1"; shift; "$@"' _ "$limit" \
        nbdelta events fake.sock "$@"
}
answer '{after: "{\"return\": 1}[1]7{\"event\": 5}{\"event\":\"E\",\n \"data\":
    {\"x\": \"\\u001b[2J\\u202e\\n\"}}", close: true}'
fake_monitor
ends 1 'closed the connection' nbdelta events fake.sock
[ "$(cat out)" = '{"event":"E","data":{"x":"\u001B[2J\u202e\n"}}' ] ||
    fail "$(cat out)"
answer '{after: "{\"event\": oops}"}'
ends 1 "no messages of QMP: JSON parse error, invalid keyword 'oops'" \
    nbdelta events fake.sock
answer '{endless: "["}'
limited 1 'nesting depth limit'
answer '{after: "\"", endless: ("x" * 99999)}'
limited 1 'token size limit'
answer '{after: "[", endless: ("1," * 9999)}'
limited 1 'token count limit'
answer '{endless: ("{\"event\": \"E\", \"data\": \"" + "x" * 5000 + "\"}")}'
watch fake.sock
wait_until 'events come' some_lines
kill -TERM "$watcher"
ended 7
tail -n 1 events | grep -q '}$' || fail 'half a line'
jq -e .event < <(tail -n 1 events) >/dev/null || fail 'half a line'
ends 1 'cannot write' bash -c 'nbdelta events fake.sock >/dev/full'
rm events
limited 0 '' --timeout 1
limited 1 'MiB of events came instead' --until OTHER

# Nobody reads the pipe any further.
mkfifo pipe
exec 9<>pipe
nbdelta events fake.sock >pipe 2>err &
watcher=$!
read -r _ <&9
kill -TERM "$watcher"
ended 7
exec 9<&-

# One that does not answer.
answer '{ignore: ["qmp_capabilities"]}'
ends 1 'no answer within 2 s' nbdelta events fake.sock --timeout 0.1

if command -v qemu-system-x86_64 >/dev/null; then
    qemu-system-x86_64 -M none -display none -daemonize -pidfile qemu.pid \
        -qmp "unix:$PWD/a.sock,server=on,wait=off" \
        -qmp "unix:$PWD/b.sock,server=on,wait=off"
    at_exit kill "$(cat qemu.pid)"
    watch a.sock --until RESUME --timeout 50
    while kill -0 "$watcher" 2>/dev/null; do
        nbdelta qmp -q b.sock stop
        nbdelta qmp -q b.sock cont
    done
    ended 0
    [ "$(jq -r .event events | tail -n 1)" = RESUME ] || fail "$(cat events)"
fi
