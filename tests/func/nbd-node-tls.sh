#!/bin/bash
# nbd nodes over TLS: with certificates and with keys, by credentials and by
# URI; wrong ones, and what cannot be verified, are refused.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need certtool jq nbdinfo nbdkit psktool qemu-img qemu-io

make_pki pki
mkdir stranger psk other
make_pki stranger
psktool -u alice -p psk/keys.psk >psktool.log 2>&1
psktool -u alice -p other/keys.psk >psktool.log 2>&1
mkimg disk.raw 4M 3

far_server=
end_far() {
    if [ -n "$far_server" ]; then
        kill -KILL "$far_server" 2>/dev/null || :
        wait "$far_server" 2>/dev/null || :
        far_server=
    fi
}
at_exit end_far
# far_tcp ARG...: nbdkit with TLS on a port; sets far_port.
far_tcp() {
    for far_port in 10961 10973 10987 10999; do
        rm -f far.pid
        nbdkit -f -i localhost -p "$far_port" -P far.pid --tls=require "$@" file disk.raw 2>far.log &
        far_server=$!
        for ((i = 0; i < 400; i++)); do
            [ ! -s far.pid ] || return 0
            kill -0 "$far_server" 2>/dev/null || break
            sleep 0.05
        done
    done
    fail "no port for nbdkit: $(cat far.log)"
}

creds() {
    echo "--object $1,id=t,endpoint=client,dir=$PWD/$2"
}
same() {
    qemu-img compare -q -f raw -F raw "$uri" disk.raw
    qemu-io -f raw -c 'write -P 3 64k 64k' -c 'read -P 3 64k 64k' "$uri" >io.out
    stop_server
    [ "$(od -An -tx1 -j 65536 -N 1 disk.raw)" = ' 03' ]
    printf '\0' | dd of=disk.raw bs=1 seek=65536 conv=notrunc status=none
}
# refused TEXT ARG...: with the images as arguments.
refused() {
    serve_refused "$@"
    [ "$(wc -l <refused.out)" = 1 ] || fail "$(cat refused.out)"
}

# Certificates.
far_tcp --tls-certificates=pki --tls-verify-peer
far="driver=nbd,server.type=inet,server.host=localhost,server.port=$far_port"
# shellcheck disable=SC2046  # words
serve $(creds tls-creds-x509 pki) "$far,tls-creds=t,connections=3"
same
# shellcheck disable=SC2046
serve $(creds tls-creds-x509 pki) "$far,tls-creds=t,tls-hostname=localhost"
same
serve "nbds://localhost:$far_port/?tls-certificates=$PWD/pki"
same
# A server of another CA is not ours; nor are we one of its clients.
# shellcheck disable=SC2046
refused 'TLS' -U s $(creds tls-creds-x509 stranger) "$far,tls-creds=t"
refused 'TLS' -U s "nbds://localhost:$far_port/?tls-certificates=$PWD/stranger"
# Without TLS there is none.
refused '' -U s "$far"
refused "No TLS credentials with id 'x'" -U s "$far,tls-creds=x"
# What libnbd does not verify is not taken for verified.
# shellcheck disable=SC2046
refused 'tls-hostname' -U s $(creds tls-creds-x509 pki) "$far,tls-creds=t,tls-hostname=other"
# shellcheck disable=SC2046
refused 'can be verified only' -U s $(creds tls-creds-x509 pki) "driver=nbd,path=$PWD/x,tls-creds=t"
# shellcheck disable=SC2046
refused 'cannot be used together' -U s $(creds tls-creds-x509 pki) "$far,tls-creds=t,tls-username=x"
end_far

# The certificate has to name the host.
mkdir named
cp pki/ca-*.pem named
make_cert named server 'cn = elsewhere' 'dns_name = elsewhere' tls_www_server 'expiration_days = 30'
make_cert named client 'cn = alice' tls_www_client 'expiration_days = 30'
far_tcp --tls-certificates=named
refused 'TLS' -U s "nbds://localhost:$far_port/?tls-certificates=$PWD/named"
# shellcheck disable=SC2046
serve $(creds tls-creds-x509 named),verify-peer=off \
    "driver=nbd,server.type=inet,server.host=localhost,server.port=$far_port,tls-creds=t"
same
end_far

# Keys, over a Unix socket.
nbdkit -f -U "$PWD/far.sock" -P far2.pid --tls=require --tls-psk=psk/keys.psk file disk.raw 2>far.log &
far_server=$!
wait_until "nbdkit listens" test -s far2.pid
far="driver=nbd,server.type=unix,server.path=$PWD/far.sock"
# shellcheck disable=SC2046
serve $(creds tls-creds-psk psk),username=alice "$far,tls-creds=t"
same
serve "nbds+unix://alice@/?socket=$PWD/far.sock&tls-psk-file=$PWD/psk/keys.psk"
same
# shellcheck disable=SC2046
refused 'TLS' -U s $(creds tls-creds-psk other),username=alice "$far,tls-creds=t"
refused 'bob was not found' -U s "nbds+unix://bob@/?socket=$PWD/far.sock&tls-psk-file=$PWD/other/keys.psk"
end_far

# Our own server.
nbdelta serve --object tls-creds-psk,id=s,endpoint=server,dir="$PWD/psk" \
    --nbd-server addr.type=unix,addr.path="$PWD/tls.sock",tls-creds=s \
    --blockdev driver=file,node-name=f,filename=disk.raw \
    --export nbd,id=e,node-name=f,name=e --pidfile "$pidfile" &
server=$!
wait_until "the server is ready" server_ready
nbdelta map --output json "driver=nbd,path=$PWD/tls.sock,export=e,tls-username=alice,tls-psk-file=$PWD/psk/keys.psk" |
    jq -e 'map(.length) | add == 4194304' >out
stop_server
