#!/bin/bash
# Programs that start the server and wait for it: sockets that are handed over,
# the message that it is ready, URIs, the end of the parent; and which users may
# connect.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo nbdcopy qemu-img jq

mkimg a.raw 4M
truncate -s 1M b.raw
is() {
    [ "$1" = "$2" ] || fail "$1 is not $2"
}

# Clients that start a server of their own.
is "$(nbdinfo --size -- [ nbdelta serve -f raw a.raw ])" 4194304
is "$(nbdinfo --list --json -- [ nbdelta serve -f raw a=a.raw b=b.raw ] |
    jq -c '[.exports[]."export-name"]')" '["a","b"]'
nbdcopy -- [ nbdelta serve -r -f raw a.raw ] out.raw
cmp a.raw out.raw
nbdcopy -- a.raw [ nbdelta serve driver=mem,size=4M ]
python - <<'END'
import nbd
h = nbd.NBD()
h.set_export_name("b")
h.connect_systemd_socket_activation(
    ["nbdelta", "serve", "-f", "raw", "a=a.raw", "b=b.raw"])
assert h.get_size() == 2**20
h.pwrite(b"x" * 512, 0)
h.shutdown()
END
is "$(head -c 3 b.raw)" xxx

# Two sockets from a parent that does as systemd does.
activated() {
    python - "$@" <<'END'
import os, socket, subprocess, sys
env, args = sys.argv[1].split(), sys.argv[2:]
socks = [socket.socket(socket.AF_UNIX) for _ in range(2)]
for i, s in enumerate(socks):
    s.bind(f"act{i}.sock")
    s.listen()
pid = os.fork()
if pid == 0:
    high = [os.dup2(s.fileno(), 60 + i) for i, s in enumerate(socks)]
    for i, fd in enumerate(high):
        os.dup2(fd, 3 + i)
    for e in env:
        k, v = e.split("=")
        os.environ[k] = v.replace("PID", str(os.getpid()))
    os.execvp("nbdelta", ["nbdelta", "serve", "-f", "raw"] + args)
for s in socks:
    s.close()
print(pid, flush=True)
sys.exit(os.waitpid(pid, 0)[1] != 0)
END
}
activated 'LISTEN_PID=PID LISTEN_FDS=2' a.raw --print-uri >said &
helper=$!
uri_told() {
    grep -q 'act0' said
}
wait_until 'the URI is told' uri_told
is "$(tail -n 1 said)" "nbd+unix:///disk0?socket=$(realpath act0.sock)"
for i in 0 1; do
    is "$(nbdinfo --size "nbd+unix:///?socket=$PWD/act$i.sock")" 4194304
done
kill "$(head -n 1 said)"
wait "$helper" || fail "it ended with $?"
[ -S act0.sock ] || fail "a socket that was not its own was removed"
rm act?.sock

refused() {
    local text=$1
    shift
    if activated "$@" >out 2>&1; then
        fail "$* was not refused"
    fi
    grep -qF -- "$text" out || fail "$*: $(cat out)"
    rm -f act?.sock
}
refused "LISTEN_FDS='x'" 'LISTEN_PID=PID LISTEN_FDS=x' a.raw
refused "LISTEN_FDS='0'" 'LISTEN_PID=PID LISTEN_FDS=0' a.raw
refused 'not a socket' 'LISTEN_PID=PID LISTEN_FDS=3' a.raw
refused 'go without socket activation' 'LISTEN_PID=PID LISTEN_FDS=1' \
    -U "$sock" a.raw
# Meant for somebody else: it listens where it is told to.
LISTEN_PID=1 LISTEN_FDS=1 serve -f raw a.raw
is "$(nbdinfo --size "$uri")" 4194304
stop_server

# Told once clients can connect, and once it stops; abstract sockets, too.
python - "$sock" <<'END'
import os, socket, subprocess, sys
for name in (os.getcwd() + "/notify.sock", f"\0nbdelta-test-{os.getpid()}"):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.settimeout(60)
    s.bind(name)
    p = subprocess.Popen(
        ["nbdelta", "serve", "-U", sys.argv[1], "-f", "raw", "a.raw"],
        env=os.environ | {"NOTIFY_SOCKET": name.replace("\0", "@")})
    assert s.recv(200) == b"READY=1\nSTATUS=1 exports, 0 connections"
    c = socket.socket(socket.AF_UNIX)
    c.connect(sys.argv[1])
    p.terminate()
    assert s.recv(200).startswith(b"STOPPING=1\n")
    assert s.recv(200).startswith(b"EXTEND_TIMEOUT_USEC=")
    assert p.wait() == 0
END

# The watchdog hears from it as long as commands can be carried out.
python - "$sock" "$qmp_sock" <<'END'
import os, socket, subprocess, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.settimeout(60)
s.bind("watch.sock")
p = subprocess.Popen(
    ["nbdelta", "serve", "-U", sys.argv[1], "--qmp", sys.argv[2], "-f", "raw",
     "a.raw"],
    env=os.environ | {"NOTIFY_SOCKET": os.path.abspath("watch.sock"),
                      "WATCHDOG_USEC": "1000000"})
assert s.recv(200).startswith(b"READY=1\n")
for _ in range(2):
    assert s.recv(200) == b"WATCHDOG=1\nSTATUS=1 exports, 0 connections"
# A command has the monitor lock while it waits for a server that says nothing.
silent = socket.socket(socket.AF_UNIX)
silent.bind("silent.sock")
silent.listen()
q = subprocess.Popen(["nbdelta", "qmp", sys.argv[2], "blockdev-add",
                      "driver=nbd", "node-name=n", "server.type=unix",
                      "server.path=silent.sock"], stderr=subprocess.DEVNULL)
while (said := s.recv(200)).startswith(b"WATCHDOG=1"):
    assert q.poll() is None, said
assert said == b"STATUS=1 exports, 0 connections; the monitor is busy", said
silent.close()
q.wait()
while not s.recv(200).startswith(b"WATCHDOG=1"):
    pass
p.terminate()
while not s.recv(200).startswith(b"STOPPING=1"):
    pass
assert p.wait() == 0
END

# A socket of the name qmp is a monitor's.
activated 'LISTEN_PID=PID LISTEN_FDS=2 LISTEN_FDNAMES=nbd:qmp' a.raw >said &
helper=$!
monitor_answers() {
    nbdelta qmp act1.sock query-status >/dev/null 2>&1
}
wait_until 'the monitor answers' monitor_answers
is "$(nbdinfo --size "nbd+unix:///?socket=$PWD/act0.sock")" 4194304
kill "$(head -n 1 said)"
wait "$helper" || fail "it ended with $?"
[ -S act1.sock ] || fail "a socket that was not its own was removed"
rm act?.sock
activated 'LISTEN_PID=PID LISTEN_FDS=2 LISTEN_FDNAMES=qmp:qmp' -U "$sock" \
    --pidfile "$pidfile" a.raw >said &
helper=$!
ready() {
    [ -s "$pidfile" ]
}
wait_until 'it is ready' ready
is "$(nbdinfo --size "$uri")" 4194304
nbdelta qmp act1.sock quit >/dev/null
wait "$helper" || fail "it ended with $?"
rm act?.sock

# With its parent.
cat >parent.sh <<'END'
nbdelta serve -U "$1" --exit-with-parent --pidfile "$2" -f raw a.raw &
read -r line
END
mkfifo hold
bash parent.sh "$sock" "$pidfile" <hold &
parent=$!
exec 3>hold
wait_until 'the server is ready' ready
orphan=$(cat "$pidfile")
nbdinfo --size "$uri" >out
kill -KILL "$parent"
wait "$parent" 2>/dev/null || true
gone() {
    ! kill -0 "$orphan" 2>/dev/null
}
wait_until 'the server has ended' gone
exec 3>&-
[ ! -e "$sock" ] || fail "it did not end in order"
rc=0
nbdelta serve -U "$sock" --exit-with-parent --daemonize a.raw 2>err || rc=$?
is "$rc" 2

# URIs: of all exports and servers, also when it goes to the background.
nbdelta serve -U "$sock" --print-uri --daemonize --pidfile "$pidfile" \
    a=driver=raw,file.driver=file,file.filename=a.raw driver=mem,size=1M --nbd-server \
    id=two,addr.type=inet,addr.host=127.0.0.1,addr.port=20809,addr.to=21809 \
    --blockdev driver=mem,size=3M,node-name=n \
    --export nbd,id=e,node-name=n,server=two,name='odd name/%' >uris
at_exit kill "$(cat "$pidfile")"
is "$(head -n 2 uris)" "nbd+unix:///a?socket=$sock
nbd+unix:///disk1?socket=$sock"
for size in 4194304 1048576 3145728; do
    read -r line <&4
    is "$(nbdinfo --size "$line")" "$size"
done 4<uris
kill "$(cat "$pidfile")"
exit_commands=()
no_pidfile() {
    [ ! -e "$pidfile" ]
}
wait_until 'it is gone' no_pidfile

# The users that may connect.
umask 077
for mode in 600 660 666; do
    serve --socket-mode "$mode" -f raw a.raw
    is "$(stat -c %a "$sock")" "$mode"
    stop_server
done
for mode in 8 1777 rw ''; do
    rc=0
    nbdelta serve -U s --socket-mode "$mode" -f raw a.raw 2>err || rc=$?
    is "$rc" 2
done

# Sockets of -U and of monitors for a group, and none of these for all others.
group=$(id -G | tr ' ' '\n' | tail -n 1)
if [ "$(id -u)" -eq 0 ]; then
    group=65534
fi
# group_sockets MODES OPTION...
group_sockets() {
    local modes=$1
    shift
    serve --socket-group "$group" --qmp group.qmp "$@" -f raw a.raw
    is "$(stat -c '%g %a' "$sock" group.qmp | xargs)" "$modes"
    stop_server
}
group_sockets "$group 660 $group 660"
group_sockets "$group 666 $group 660" --socket-mode 666
group_sockets "$group 640 $group 640" --socket-mode 640
serve --socket-mode 666 --qmp group.qmp -f raw a.raw
is "$(stat -c '%a' "$sock" group.qmp | xargs)" "666 600"
stop_server
for name in no-such-group '' -1 4294967295; do
    rc=0
    nbdelta serve -U s --socket-group="$name" -f raw a.raw 2>err || rc=$?
    is "$rc $(head -n 1 err)" "2 nbdelta: serve: there is no group '$name'"
done
if [ "$(id -u)" -eq 0 ]; then
    mkdir -m 777 open
    rc=0
    setpriv --reuid=65534 --regid=65534 --clear-groups "$BUILD/nbdelta" serve \
        -U open/s --socket-group 0 driver=mem,size=1M 2>err || rc=$?
    is "$rc" 1
    grep -q "cannot give the socket 'open/s' to group 0: " err ||
        fail "$(cat err)"
    [ ! -e open/s ] || fail "a socket is left"
fi

# A free port: the same one at each address, which the URIs tell.
for i in 1 2; do
    nbdelta serve -p 0 --print-uri --daemonize --pidfile "$pidfile.$i" \
        driver=mem,size=4M >uris
    at_exit kill "$(cat "$pidfile.$i")"
    ports=$(sed 's|.*:\([0-9]*\)/disk0$|\1|' uris | sort -u)
    [[ $ports =~ ^[1-9][0-9]*$ ]] || fail "$(cat uris)"
    is "$(nbdinfo --size "nbd://localhost:$ports/disk0")" 4194304
    is "$(nbdinfo --size "$(head -n 1 uris)")" 4194304
done

# Sockets of virtual machines: as far as this kernel has them.
serve_refused "Failed to parse cid 'x'" -f raw a.raw \
    --nbd-server addr.type=vsock,addr.cid=x,addr.port=1
serve_refused "Failed to parse port '4294967296'" -f raw a.raw \
    --nbd-server addr.type=vsock,addr.cid=1,addr.port=4294967296
serve_refused 'addr.port' -f raw a.raw --nbd-server addr.type=vsock,addr.cid=1
if python -c 'import socket; s = socket.socket(socket.AF_VSOCK)
s.bind((0xffffffff, 0xffffffff)); s.listen()' 2>/dev/null; then
    nbdelta serve -f raw a.raw --print-uri --daemonize --pidfile "$pidfile" \
        --nbd-server addr.type=vsock,addr.cid=4294967295,addr.port=4294967295 \
        >uris
    kill "$(cat "$pidfile")"
    wait_until 'it is gone' no_pidfile
    grep -q '^nbd+vsock://4294967295:[0-9]*/disk0$' uris || fail "$(cat uris)"
else
    serve_refused 'cannot listen on vsock' -f raw a.raw \
        --nbd-server addr.type=vsock,addr.cid=4294967295,addr.port=1
fi
