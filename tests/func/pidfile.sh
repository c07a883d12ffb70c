#!/bin/bash
# A pidfile is locked by the server that it names.  No two servers have the same
# pidfile, whenever they start.  The pidfile of a server that was killed is
# taken over, whatever process has its number now.  A file that is no pidfile,
# or is another one by now, stays.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

truncate -s 1M a.raw b.raw

# $1: the socket.  As lib.sh's serve does it, with errors kept.
start() {
    rm -f "$1"
    nbdelta serve -U "$PWD/$1" --pidfile p -f raw "${2-a}=$1.raw" 2>"$1.err" &
}

ready_or_gone() {
    ! kill -0 "$1" 2>/dev/null || { [ -s p ] && [ "$(cat p)" = "$1" ]; }
}

# --- Two at once: one runs, and is told of. ---
for how in none stale none stale none stale none stale; do
    rm -f p
    [ $how = none ] || echo $$ >p # of a process that lives and has no lock
    start a
    one=$!
    start b
    two=$!
    decided() {
        ready_or_gone "$one" || ready_or_gone "$two" || return 1
        ! kill -0 "$one" 2>/dev/null || ! kill -0 "$two" 2>/dev/null
    }
    wait_until "one has ended" decided
    if kill -0 $one 2>/dev/null; then
        winner=$one loser=$two said=b.err
    else
        winner=$two loser=$one said=a.err
    fi
    rc=0
    wait $loser || rc=$?
    [ $rc -eq 1 ] || fail "$how: the refused server exits with $rc"
    grep -q "'p' belongs to another process, which runs" $said ||
        fail "$how: said $(cat $said)"
    server=$winner
    wait_until "the other is ready" ready_or_gone $winner
    [ "$(cat p)" = "$winner" ] || fail "$how: p tells of $(cat p)"

    # Nor later.
    rc=0
    nbdelta serve -U "$PWD/c" --pidfile p -f raw c=/dev/null >out 2>&1 || rc=$?
    if [ $rc -ne 1 ] || ! grep -q "(the file says $winner)" out; then
        fail "$(cat out)"
    fi
    if command -v qemu-storage-daemon >/dev/null; then
        rc=0
        qemu-storage-daemon --pidfile p --daemonize >out 2>&1 || rc=$?
        [ $rc -eq 1 ] || fail "QEMU's daemon takes it: $(cat out)"
    fi

    kill -TERM $winner
    wait $winner || fail "$how: it ended with $?"
    server=
    [ ! -e p ] || fail "$how: the pidfile is left"
    [ -z "$(ls p.* 2>/dev/null)" ] || fail "$how: left: $(ls p.*)"
done

# --- Killed: its file is nobody's. ---
start a
server=$!
wait_until "it is ready" ready_or_gone $server
kill -9 $server
wait $server 2>/dev/null || :
[ -s p ]
start a
server=$!
wait_until "it is ready, too" ready_or_gone $server
kill -0 $server || fail "said $(cat a.err)"

# --- Another file there by now is not removed. ---
rm p
echo 1 >p
kill -TERM $server
wait $server || fail "it ended with $?"
server=
[ "$(cat p)" = 1 ] || fail "somebody else's file has gone"

# --- A daemon that forks has it, too. ---
rm -f p a
nbdelta serve -U "$PWD/a" --pidfile p --daemonize -f raw a=a.raw
[ -s p ] || fail "it is not there when the first process has ended"
server=$(cat p)
rc=0
nbdelta serve -U "$PWD/c" --pidfile p -f raw c=b.raw >out 2>&1 || rc=$?
if [ $rc -ne 1 ] || ! grep -q 'belongs to another process' out; then
    fail "$(cat out)"
fi
kill -TERM "$server"
wait_until "it has ended" test ! -e p
server=

# --- What is no pidfile stays as it is. ---
for what in "an image" "12 monkeys" -5; do
    echo "$what" >p
    serve_refused "'p' is there and is no pidfile" -U "$PWD/a" --pidfile p \
        -f raw a=a.raw
    [ "$(cat p)" = "$what" ] || fail "'$what' was overwritten"
done
rm p
mkdir p
serve_refused "cannot open 'p'" -U "$PWD/a" --pidfile p -f raw a=a.raw
rmdir p
ln -s target p
serve_refused "cannot open 'p'" -U "$PWD/a" --pidfile p -f raw a=a.raw
if [ -e target ] || [ ! -L p ]; then
    fail "a link was followed"
fi
rm p

# An empty one is nobody's.
: >p
start a
server=$!
wait_until "it is ready" ready_or_gone $server
kill -TERM $server
wait $server || fail "it ended with $?"
server=
[ ! -e p ] || fail "the pidfile is left"
