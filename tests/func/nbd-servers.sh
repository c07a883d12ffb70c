#!/bin/bash
# Several NBD servers in one daemon: each has its sockets, its exports, its
# limits; one ends without the others.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo nbdcopy qemu-io jq

truncate -s 1M a.raw b.raw
truncate -s 2M c.raw

names() {
    nbdinfo --list --json "nbd+unix:///?socket=$PWD/$1" |
        jq -c '[.exports[] | [."export-name", ."export-size"]]'
}
is() {
    [ "$1" = "$2" ] || fail "$1 is not $2"
}
refused() {
    local text=$1
    shift
    if qmp "$@" >out 2>&1; then
        fail "$* was not refused"
    fi
    grep -qF -- "$text" out || fail "$*: $(cat out)"
}

# On the command line.
serve -f raw a=a.raw \
    --blockdev driver=raw,node-name=b,file.driver=file,file.filename=b.raw \
    --blockdev driver=raw,node-name=c,file.driver=file,file.filename=c.raw \
    --nbd-server id=two,addr.type=unix,addr.path=two.sock \
    --export nbd,id=b2,node-name=b,server=two,name=a \
    --export nbd,id=c2,node-name=c,server=two
is "$(names nbd.sock)" '[["a",1048576]]'
is "$(names two.sock)" '[["a",1048576],["c",2097152]]'
if nbdinfo --size "nbd+unix:///?socket=$PWD/two.sock" 2>/dev/null; then
    fail "an export that is not of this server is its default one"
fi

# Over QMP; ids are of all, names of one.
start() {
    printf '{"id": "%s", "addr": {"type": "unix", "data": {"path": "%s"}}%s}' \
        "$1" "$PWD/$1.sock" "${2-}"
}
qmp nbd-server-start "$(start three)" >out
refused "NBD server 'three' already running" nbd-server-start \
    "$(start three)"
refused 'NBD server already running' nbd-server-start \
    '{"addr": {"type": "unix", "data": {"path": "x.sock"}}}'
refused 'Invalid NBD server id' nbd-server-start "$(start -1)"
refused "NBD server 'four' not running" block-export-add type=nbd id=x \
    node-name=c server=four
refused "Block export id 'c2' is already in use" block-export-add type=nbd \
    id=c2 node-name=c server=three
qmp block-export-add type=nbd id=c3 node-name=c server=three name=c \
    writable=true >out
refused "already has export named 'c'" block-export-add type=nbd id=c4 \
    node-name=c server=three name=c
is "$(names three.sock)" '[["c",2097152]]'
qemu-io -f raw -c 'write -P 7 0 1M' \
    "nbd+unix:///c?socket=$PWD/three.sock" >out
nbdcopy "nbd+unix:///c?socket=$PWD/two.sock" copy.raw
cmp copy.raw c.raw

is "$(qmp query-block-exports | jq -c 'map([.id, .server])')" \
    '[["c3","three"],["c2","two"],["b2","two"],["a",null]]'

# A client of one server does not hold up the end of another.
qmp block-export-add type=nbd id=a5 node-name=a server=three name=a >out
export PYTHONDONTWRITEBYTECODE=1
cat >client.py <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from nbd_raw import *
one = Client(sys.argv[2]).go("a")
two = Client(sys.argv[3]).go("a")
three = Client(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
assert two.ended() and not three.option(LIST)[0] & 0x80000000
assert one.alive()
print("done", flush=True)
END
coproc client { python client.py "$SRCDIR/tests/func" nbd.sock two.sock \
    three.sock; }
read -r line <&"${client[0]}"
is "$line" ready
qmp nbd-server-stop id=two >out
[ ! -e two.sock ] || fail "its socket is there yet"
echo >&"${client[1]}"
read -r line <&"${client[0]}"
is "$line" 'done'
is "$(qmp query-block-exports | jq -c 'map(.id)')" '["a5","c3","a"]'
is "$(names nbd.sock)" '[["a",1048576]]'
refused "NBD server 'two' not running" nbd-server-stop id=two

# Its name and socket can be used again.
qmp nbd-server-start "$(start two)" >out
is "$(names two.sock)" '[]'

# Each server has its own limits: of all clients, which then wait, and of
# clients from one address.
qmp nbd-server-start "$(start few ', "max-connections": 1')" >out
qmp nbd-server-start "$(start mean ', "max-connections-per-address": 2')" >out
python - "$SRCDIR/tests/func" <<'END'
import sys, socket
sys.path.insert(0, sys.argv[1])
from nbd_raw import *
one, waits = Client("few.sock"), Client("few.sock", greet=False)
waits.s.settimeout(0.3)
try:
    waits.recv(1)
    raise SystemExit("a second client was served")
except TimeoutError:
    pass
one.close()
waits.s.settimeout(60)
waits.recv(18)
a, b = Client("mean.sock"), Client("mean.sock")
assert Client("mean.sock", greet=False).ended()
assert a.option(LIST)[0] == b.option(LIST)[0] == ACK
other = Client("nbd.sock")
assert a.option(ABORT)[0] == ACK and a.ended()
import time
for _ in range(600):
    c = Client("mean.sock", greet=False)
    try:
        c.recv(18)
        break
    except (EOFError, ConnectionResetError):
        time.sleep(0.05)
else:
    raise SystemExit("a place that was given up is not free")
END

# A client that lets its handshake drip has its time, and no more; one that is
# through it has all the time it wants.
qmp nbd-server-start \
    "$(start quick ', "handshake-max-seconds": 1, "max-connections": 3')" >out
qmp block-export-add type=nbd id=q node-name=a server=quick >out
qmp nbd-server-start "$(start slow ', "handshake-max-seconds": 0')" >out
python - "$SRCDIR/tests/func" <<'END'
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from nbd_raw import *
stays = Client("quick.sock").go("a")
silent = Client("slow.sock")
cut = []
def drip():
    c = Client("quick.sock")
    try:
        for byte in OPT.pack(IHAVEOPT, LIST, 4000) + bytes(4000):
            c.s.sendall(bytes([byte]))
            time.sleep(0.05)
    except (BrokenPipeError, ConnectionResetError):
        cut.append(c)
threads = [threading.Thread(target=drip) for _ in range(2)]
for t in threads:
    t.start()
third = Client("quick.sock").go("a")
assert third.alive()
for t in threads:
    t.join()
assert len(cut) == 2
assert stays.alive() and third.alive()
assert silent.option(LIST)[0] == ACK
END

# Many of them come and go with clients in every state.
for ((i = 0; i < 20; i++)); do
    qmp nbd-server-start "$(start "s$i")" >out
    qmp block-export-add type=nbd "id=s$i" node-name=a "server=s$i" >out
    nbdinfo --size "nbd+unix:///a?socket=$PWD/s$i.sock" >size &
    qmp nbd-server-stop "id=s$i" >out
    wait $! || true
done
is "$(names nbd.sock)" '[["a",1048576]]'
stop_server
for s in two three few mean; do
    [ ! -e $s.sock ] || fail "$s.sock was left"
done

# Images need the server that has no name.
serve_refused 'the images have no server' -f raw a.raw \
    --nbd-server id=x,addr.type=unix,addr.path=x.sock
[ ! -e x.sock ] || fail "x.sock was left"
