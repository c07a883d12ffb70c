#!/bin/bash
# nbdelta backup of a daemon on another host, by qmp:// with TLS: by
# certificates and by keys.  A stranger gets nothing.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io certtool psktool

make_pki pki
make_pki strange
mkdir psk other
psktool -u alice -p psk/keys.psk >/dev/null
psktool -u alice -p other/keys.psk >/dev/null
qemu-img create -q -f qcow2 vda.qcow2 8M

# serve_far CREDENTIALS: sets port, that of the monitor.
serve_far() {
    local tries nbd
    for ((tries = 0; tries < 20; tries++)); do
        port=$((20000 + RANDOM % 10000))
        nbd=$((port + 1))
        rm -f "$pidfile"
        nbdelta serve -U "$sock" --qmp "$qmp_sock" --pidfile "$pidfile" \
            --object "$1,id=t,endpoint=server" --chardev \
            "socket,id=c,host=127.0.0.1,port=$port,server=on,wait=off,tls-creds=t" \
            --monitor c --nbd-server \
            "id=far,addr.type=inet,addr.host=127.0.0.1,addr.port=$nbd,tls-creds=t" \
            vda=vda.qcow2 2>serve.log &
        server=$!
        while kill -0 "$server" 2>/dev/null && [ ! -s "$pidfile" ]; do
            sleep 0.05
        done
        if [ -s "$pidfile" ]; then
            return
        fi
        wait "$server" || :
        server=
        grep -q 'in use' serve.log || fail "$(cat serve.log)"
    done
    fail "no free port"
}

refused() {
    local status=0
    timeout 60 nbdelta backup --timeout 1 --nbd far "$@" \
        "qmp://127.0.0.1:$port" nothing >out 2>&1 || status=$?
    # 5: to a client that does not speak TLS the monitor says nothing.
    # 6: the keys, or the user, are not there.
    [ "$status" = 1 ] || [ "$status" = 6 ] || [ "$status:$#" = 5:0 ] ||
        fail "$*: ended with $status: $(cat out)"
}

# works TAG OPTION...
works() {
    local dir=points.$1 i
    shift
    for i in 1 2; do
        qemu-io -f raw -c "write -P $i ${i}M 1M" "$(uri_of vda)" >/dev/null
        nbdelta backup "$@" --nbd far "qmp://127.0.0.1:$port" "$dir"
        qemu-img convert -U -O raw vda.qcow2 "then.$i"
    done
    for i in 1 2; do
        nbdelta restore "$dir@latest~$((2 - i))" "vda=$dir.$i.raw"
        cmp "then.$i" "$dir.$i.raw"
    done
    [ "$(nbdelta points "$dir" | grep -c increment)" = 1 ]
}

serve_far "tls-creds-x509,dir=$PWD/pki,verify-peer=on"
works x509 --tls-certificates pki
refused
refused --tls-certificates strange
refused --tls-certificates nosuch
grep -q nosuch out || fail "$(cat out)"
stop_server

serve_far "tls-creds-psk,dir=$PWD/psk"
works psk --tls-psk psk/keys.psk --tls-username alice
(cd psk && nbdelta backup --tls-psk keys.psk --tls-username alice \
    --nbd far "qmp://127.0.0.1:$port" ../psk-here)
refused --tls-psk other/keys.psk --tls-username alice
refused --tls-psk psk/keys.psk --tls-username bob
refused --tls-psk psk/secrets --tls-username alice
grep -q "has to be 'keys.psk'" out || fail "$(cat out)"
[ "$(qmp query-backups)" = '[]' ]
stop_server
