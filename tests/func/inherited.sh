#!/bin/bash
# What a process inherits does no harm: closed descriptors, signals that are
# ignored or blocked, limits, a working directory that has gone.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io
/usr/bin/python3 -c 'import nbd' 2>/dev/null || skip "no python3-libnbd"

# --- Descriptors ---

# Texts go nowhere when there is nowhere to go, whatever the command.
qemu-img create -q -f qcow2 a.qcow2 4M
nbdelta bitmap add a.qcow2 b0
cp a.qcow2 before
for closed in '0<&-' '1>&-' '2>&-' '0<&- 1>&-' '1>&- 2>&-' '0<&- 1>&- 2>&-'; do
    for command in 'bitmap add a.qcow2 b0' 'bitmap list a.qcow2' 'info a.qcow2' \
        'map a.qcow2' 'serve -U s --export nbd,id=x,node-name=none a=a.qcow2' \
        'nosuch'; do
        eval "timeout 60 nbdelta $command $closed" >out 2>&1 || true
        cmp -s a.qcow2 before || fail "$command $closed wrote to the image"
    done
done
# What nobody gets is told.
if nbdelta info a.qcow2 >&- 2>err; then
    fail "a closed standard output is no error"
fi
grep -q 'cannot write the output' err || fail "$(cat err)"

# No file of a server's has one of these numbers.
for more in '' --daemonize; do
    rm -f "$pidfile"
    nbdelta serve $more -U "$sock" --pidfile "$pidfile" a.qcow2 \
        0<&- 1>&- 2>&- &
    child=$!
    wait_until "the server is ready" test -s "$pidfile"
    pid=$(cat "$pidfile")
    for fd in 0 1 2; do
        [ "$(readlink "/proc/$pid/fd/$fd")" = /dev/null ] ||
            fail "fd $fd is $(readlink "/proc/$pid/fd/$fd")"
    done
    kill "$pid"
    wait "$child"
    wait_until "the server has ended" test ! -e "$pidfile"
done

# --- Signals ---

# start ENV-OPTION... -- SERVE-OPTION...: env(1) sets the signals.
start() {
    local how=()
    while [ "$1" != -- ]; do
        how+=("$1")
        shift
    done
    shift
    rm -f "$pidfile"
    env --default-signal=INT,QUIT "${how[@]}" "$BUILD/nbdelta" serve \
        -U "$sock" --qmp "$qmp_sock" --pidfile "$pidfile" "$@" &
    server=$!
    wait_until "the server is ready" test -s "$pidfile"
    pid=$(cat "$pidfile")
}

# put EXPORT OFFSET: 64 KiB of "k", not flushed.
put() {
    python -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"k" * 65536, int(sys.argv[2]))
' "$(uri_of "$1")" "$2"
}

ended() {
    ! kill -0 "$pid" 2>/dev/null
}

# Each ends it in order: what clients have written is there, without a flush.
for more in '' --daemonize; do
    for sig in TERM INT HUP QUIT XCPU; do
        qemu-img create -q -f qcow2 v.qcow2 16M
        # shellcheck disable=SC2086
        start -- $more v=v.qcow2
        put v 1048576
        kill "-$sig" "$pid"
        rc=0
        wait "$server" || rc=$?
        server=
        [ "$rc" = 0 ] || fail "SIG$sig: exit status $rc"
        wait_until "the server has ended" ended
        qemu-io -f qcow2 -r -c 'read -P 107 1M 64k' v.qcow2 >out 2>&1 ||
            fail "SIG$sig: $(cat out)"
        if grep -q -i fail out || [ -e "$sock" ] || [ -e "$qmp_sock" ] ||
            [ -e "$pidfile" ]; then
            fail "SIG$sig $more: data or sockets: $(cat out; ls)"
        fi
    done
done

# alive SIG...: they do nothing.
alive() {
    local sig
    for sig in "$@"; do
        kill "-$sig" "$pid"
    done
    qmp query-version >out # by then they have been seen, were they taken
    sleep 0.3
    qmp query-version >out || fail "$* has ended it"
}

# What the parent has blocked stays so; what it ignores for nohup, too.
start --block-signal=INT --ignore-signal=HUP,CHLD,PIPE -- v.qcow2
alive INT HUP
stop_server
start --block-signal=INT,TERM,HUP,QUIT -- v.qcow2
alive INT TERM HUP QUIT
qmp quit >out
wait "$server" || fail "quit: $?"
server=

# The end of the parent is told whatever is blocked.
mkfifo fifo
# shellcheck disable=SC2016
env --block-signal=TERM bash -c '"$@" & read -r _ <fifo' - \
    "$BUILD/nbdelta" serve --exit-with-parent -U "$sock" \
    --pidfile "$pidfile" v.qcow2 &
parent=$!
wait_until "the server is ready" test -s "$pidfile"
pid=$(cat "$pidfile")
kill -9 "$parent"
wait "$parent" 2>/dev/null || true
wait_until "the server has ended with its parent" ended

# --- Limits ---

# A limit on the size of files: writers find no room, and the end is in order.
qemu-img create -q -f qcow2 v.qcow2 64M
qemu-img create -q -f qcow2 w.qcow2 64M
rm -f "$pidfile"
(
    ulimit -f 4096
    exec env --default-signal=XFSZ "$BUILD/nbdelta" serve -U "$sock" --qmp \
        "$qmp_sock" --pidfile "$pidfile" v=v.qcow2 w=w.qcow2
) 2>err &
server=$!
wait_until "the server is ready" test -s "$pidfile"
put w 0
python -c '
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(100):
    try:
        h.pwrite(b"x" * 65536, i * 65536)
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
        break
else:
    raise AssertionError("no limit")
' "$(uri_of v)"
rc=0
kill "$server"
wait "$server" || rc=$?
server=
[ "$rc" -le 1 ] || fail "ended with $rc at a limit on the size of files"
if [ -e "$sock" ] || [ -e "$pidfile" ]; then
    fail "no end in order"
fi
qemu-io -f qcow2 -r -c 'read -P 107 0 64k' w.qcow2 >out
! grep -q -i fail out || fail "the disk behind was not closed: $(cat out)"

# --- Threads, a directory that has gone, no /proc ---

# A client that cannot have a thread is sent away, with a line in the log.  The
# others are served.  The server runs as a user that has no other processes,
# because the limit counts all of them.
if [ "$(id -u)" -eq 0 ] && command -v setpriv prlimit >/dev/null; then
    mkdir open
    chmod 777 open
    truncate -s 1M open/d.raw
    chmod 666 open/d.raw
    chmod 711 . .. 2>/dev/null || true
    rm -f "$pidfile"
    setpriv --reuid=54321 --regid=54321 --clear-groups prlimit --nproc=12 \
        "$BUILD/nbdelta" serve -U "$PWD/open/s" --pidfile "$PWD/open/pid" \
        -f raw d="$PWD/open/d.raw" 2>err &
    server=$!
    # shellcheck disable=SC2317
    ready_or_gone() {
        [ -s open/pid ] || ! kill -0 "$server" 2>/dev/null
    }
    wait_until "the server is ready, or gone" ready_or_gone
    if [ -s open/pid ]; then # else it may not come here, or not run there
        python -c '
import nbd, sys
served = []
for i in range(40):
    h = nbd.NBD()
    try:
        h.connect_unix(sys.argv[1])
        h.pread(512, 0)
        served.append(h)
    except nbd.Error:
        pass
assert 0 < len(served) < 40, len(served)
for h in served:
    assert h.pread(512, 512) == bytes(512)
' "$PWD/open/s"
        grep -q 'cannot start a thread' err || fail "no word of it: $(cat err)"
        kill "$server"
        wait "$server" || fail "ended with $?"
    fi
    server=
fi

qemu-img create -q -f qcow2 v.qcow2 4M
mkdir gone
cp v.qcow2 gone
(
    cd gone
    exec "$BUILD/nbdelta" serve -U "$sock" --qmp "$qmp_sock" \
        --pidfile "$pidfile" vda=v.qcow2
) &
server=$!
wait_until "the server is ready" test -s "$pidfile"
rm -r gone
if qmp blockdev-snapshot-sync device=vda snapshot-file="$PWD/o.qcow2" 2>err; then
    fail "an overlay on a file whose path nobody knows"
fi
grep -q "cannot find the path of 'v.qcow2'" err || fail "$(cat err)"
put vda 0
stop_server

if [ "$(id -u)" -eq 0 ] && unshare -m true 2>/dev/null; then
    rm -f "$pidfile"
    # shellcheck disable=SC2016
    unshare -m bash -c 'mount -t tmpfs none /proc && exec "$@"' - \
        "$BUILD/nbdelta" serve -U "$sock" --qmp "$qmp_sock" \
        --pidfile "$pidfile" vda=v.qcow2 &
    server=$!
    wait_until "the server is ready" test -s "$pidfile"
    # v.qcow2 becomes read-only, and writable again.
    qmp blockdev-snapshot-sync device=vda snapshot-file="$PWD/o.qcow2" \
        snapshot-node-name=over >out
    put vda 0
    qmp block-commit device=vda job-id=j base-node=vda >out
    # shellcheck disable=SC2317
    jobs_say() {
        qmp query-jobs | grep -q "$1"
    }
    wait_until "the commit is ready" jobs_say '"status": "ready"'
    qmp job-complete id=j >out
    wait_until "the commit is done" jobs_say '^\[\]$'
    stop_server
    qemu-io -f qcow2 -r -c 'read -P 107 0 64k' v.qcow2 >out
    ! grep -q -i fail out || fail "$(cat out)"
fi
