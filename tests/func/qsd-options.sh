#!/bin/bash
# The options of qemu-storage-daemon, alone, mixed with our short ones, and
# under its name.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo nbdcopy qemu-img qemu-io jq ps

mkimg disk.raw 4M
qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
ln -s "$nbdelta" qemu-storage-daemon

# Sizes of all exports by name.
exports() {
    nbdinfo --list --json "$uri" | jq -c '[.exports[] | {key: ."export-name",
        value: ."export-size"}] | from_entries'
}

is() {
    [ "$1" = "$2" ] || fail "got $1, not $2"
}

# start PROGRAM ARG...: wait for the pidfile
start() {
    rm -f "$pidfile"
    "$@" --pidfile "$pidfile" &
    server=$!
    wait_until "the server is ready" server_ready
}

# Under its name, nodes in both spellings, each built on what came before.
start ./qemu-storage-daemon --object iothread,id=io0 \
    --blockdev file,filename=disk.qcow2,node-name=f \
    --blockdev '{"driver": "qcow2", "file": "f", "node-name": "q"}' \
    --blockdev driver=raw,node-name=r,read-only=on,file.driver=file,file.filename=disk.raw \
    --nbd-server addr.type=unix,addr.path="$sock",max-connections=3 \
    --export nbd,id=e0,node-name=q,name=one,writable=on,description=text \
    --export type=nbd,id=e1,node-name=r,iothread=io0 \
    --chardev socket,id=c,path="$qmp_sock",server=on,wait=off \
    --monitor chardev=c -T 'enable=foo*'
is "$(exports)" '{"one":4194304,"r":4194304}'
is "$(nbdinfo --json "$(uri_of one)" | jq -r '.exports[0].description')" text
nbdinfo --is read-only "$(uri_of r)"
if nbdinfo --is read-only "$(uri_of one)"; then
    fail "the export is not writable"
fi
if nbdinfo "$uri" >out 2>&1; then
    fail "there is a default export"
fi
nbdcopy "$(uri_of one)" copy.raw
cmp copy.raw disk.raw
qemu-io -f raw -c 'write -P 77 0 4k' "$(uri_of one)" >out
is "$(qmp query-block-exports | jq -c 'map([.id, ."node-name", .type])')" \
    '[["e1","r","nbd"],["e0","q","nbd"]]'
stop_server
qemu-io -f qcow2 -c 'read -P 77 0 4k' disk.qcow2 >out
if grep -q failed out; then
    fail "what was written is not there"
fi

# Only QEMU's options then, and its manner of speaking.
./qemu-storage-daemon --version >out
grep -q '^qemu-storage-daemon version 7\.' out
./qemu-storage-daemon --help >help
grep -q -e --nbd-server help
for bad in "-U s" "--qmp s" disk.raw; do
    # shellcheck disable=SC2086
    if ./qemu-storage-daemon $bad >out 2>&1; then
        fail "qemu-storage-daemon $bad: not refused"
    fi
    grep -q '^qemu-storage-daemon: ' out || fail "$(cat out)"
done
if ./qemu-storage-daemon --blockdev null-co,node-name=a \
    --blockdev null-co,node-name=a 2>out; then
    fail "two nodes of one name"
fi
is "$(cat out)" "qemu-storage-daemon: --blockdev null-co,node-name=a: Duplicate nodes with node-name='a'"

# Mixed: our listener, an image, and a node of its own that is exported.
start nbdelta serve -U "$sock" --qmp "$qmp_sock" \
    --blockdev null-co,node-name=n,size=64k \
    --export '{"type": "nbd", "id": "x", "node-name": "n", "name": "null"}' \
    --export nbd,id=y,node-name=n,name=again vda=disk.qcow2
is "$(exports)" '{"null":65536,"again":65536,"vda":4194304}'
is "$(nbdinfo --size "$uri")" 4194304
stop_server

# In the order of the command line: an image that is exported once more.
start nbdelta serve -U "$sock" vda=disk.qcow2 \
    --export nbd,id=x,node-name=vda,name=x
is "$(exports)" '{"vda":4194304,"x":4194304}'
stop_server
serve_refused "Cannot find device='' nor node-name='vda'" -U "$sock" \
    --export nbd,id=x,node-name=vda,name=x vda=disk.qcow2

# TCP, at one of the ports that are free; images without a listener of ours.
port=$(python -c 'import socket; s = socket.socket()
s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
start nbdelta serve \
    --nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port="$port" disk.raw
is "$(nbdinfo --size "nbd://127.0.0.1:$port")" 4194304
kill -TERM "$server"
wait "$server"
server=

# On a socket that was inherited.
python - "$nbdelta" <<'END'
import socket, subprocess, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind('given')
sock.listen()
p = subprocess.Popen([sys.argv[1], 'serve', '--nbd-server',
                      f'addr.type=fd,addr.str={sock.fileno()}', 'disk.raw'],
                     pass_fds=[sock.fileno()])
size = subprocess.check_output(['nbdinfo', '--size',
                                'nbd+unix:///?socket=given'])
assert size == b'4194304\n', size
p.terminate()
assert p.wait(60) == 0
END

# Without anything to serve, and without a socket, as long as it is told to.
start nbdelta serve --qmp "$qmp_sock"
is "$(qmp query-block-exports)" '[]'
qmp quit
wait "$server"
server=

# In the background: back when clients can connect, 1 when that fails.
rm -f "$pidfile"
nbdelta serve --daemonize --pidfile "$pidfile" -U "$sock" \
    --qmp "$qmp_sock" disk.raw >out 2>&1
daemon=$(cat "$pidfile")
is "$(exports)" '{"disk0":4194304}'
is "$(cat out)" ''
[ "$(readlink "/proc/$daemon/fd/2")" = /dev/null ] ||
    fail "it holds on to its standard error"
[ "$(ps -o sid= -p "$daemon" | tr -d ' ')" != "$(ps -o sid= -p $$ | tr -d ' ')" ] ||
    fail "it is in our session"
qmp quit
gone() { [ ! -e "$pidfile" ]; }
wait_until "the daemon has ended" gone
serve_refused "nosuch.raw" --daemonize -U "$sock" nosuch.raw

# Objects.
start nbdelta serve --qmp "$qmp_sock" --object secret,id=s,data=abc \
    --object throttle-group,id=g,limits.iops-total=10 \
    --object '{"qom-type": "throttle-group", "id": "h", "x-bps-total": 4096}' \
    --object tls-creds-anon,id=t,endpoint=server
for id in s g h t; do
    qmp object-del id=$id
done
qmp quit
wait "$server"
server=

# Words for what cannot be.
serve_refused "--object: Either 'file' or 'data'" --object secret,id=s
serve_refused "mutually exclusive" --object secret,id=s,data=a,file=b
serve_refused "Unable to read nosuch" --object secret,id=s,file=nosuch
serve_refused "expects an identifier" --object iothread,id=0
serve_refused "does not accept value 'x'" --object x,id=y
serve_refused "duplicate property" --object iothread,id=a --object iothread,id=a
serve_refused "NBD server not running" --blockdev null-co,node-name=a \
    --export nbd,id=x,node-name=a
serve_refused "NBD server already running" -U "$sock" \
    --nbd-server addr.type=unix,addr.path=x
serve_refused "Missing 'dir'" --object tls-creds-psk,id=t,endpoint=server
serve_refused "Unable to access credentials ./keys.psk: No such file" \
    --object tls-creds-psk,id=t,dir=.
serve_refused "Object with id 's' is not TLS credentials" \
    --object secret,id=s,data=x \
    --nbd-server addr.type=unix,addr.path=x,tls-creds=s
serve_refused "No TLS credentials with id 'x'" \
    --nbd-server addr.type=unix,addr.path=x,tls-creds=x
serve_refused "'addr.path' is missing" --nbd-server addr.type=unix
serve_refused "expects uint32_t" \
    --nbd-server addr.type=unix,addr.path=x,max-connections=many
serve_refused "'driver' is missing" --blockdev node-name=a
serve_refused "does not accept value 'nosuch'" --blockdev nosuch,node-name=a
serve_refused "must be specified for the root node" --blockdev null-co
serve_refused "JSON" --blockdev '{"driver": '
serve_refused "expects 'on' or 'off'" -U "$sock" \
    --blockdev null-co,node-name=a --export nbd,id=x,node-name=a,writable=1
[ ! -e "$sock" ]

# Help as the value of an option.
for program in "nbdelta serve" ./qemu-storage-daemon; do
    $program --object help >out
    is "$(head -n 2 out | tr '\n' ' ')" 'List of user creatable objects:   authz-list '
    grep -qx '  throttle-group' out
    $program --object throttle-group,help >out
    is "$(head -n 2 out | tr '\n' ' ')" \
        'throttle-group options:   limits.bps-total=<int> '
    $program --object iothread,id=a,help >out
    grep -qx '  poll-max-ns=<int>' out
    $program --object 'tls-creds-psk,?' >out
    grep -qx '  endpoint=<client|server>' out
    $program --chardev help >out
    is "$(tr '\n' ' ' <out)" \
        'Available chardev backend types:    file   null   socket   stdio '
    $program --chardev socket,help >out
    grep -qx '  wait=<bool>' out
done
for option in blockdev export nbd-server monitor; do
    if ./qemu-storage-daemon --$option help >out 2>&1; then
        fail "--$option has help"
    fi
    is "$(cat out)" "qemu-storage-daemon: --$option help: Help is not available for this option"
done
