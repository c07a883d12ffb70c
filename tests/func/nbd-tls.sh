#!/bin/bash
# TLS: certificates and keys, good and bad ones, in the hands of real clients.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo nbdcopy nbdkit qemu-img qemu-io certtool psktool jq

must=$PWD/nbd.sock
may=$PWD/may.sock
mkimg a.raw 32M 1

# --- Keys. ---

make_pki pki
make_cert pki expired 'cn = alice' tls_www_client \
    'activation_date = "2020-01-01"' 'expiration_date = "2021-01-01"'
make_cert pki early 'cn = alice' tls_www_client \
    'activation_date = "2090-01-01"' 'expiration_date = "2091-01-01"'
make_cert pki revoked 'cn = alice' tls_www_client 'expiration_days = 30'
make_cert pki bob 'cn = bob' 'organization = Guests' tls_www_client \
    'expiration_days = 30'
make_pki other
cp other/client-key.pem pki/stranger-key.pem
cp other/client-cert.pem pki/stranger-cert.pem
# revoke NAME...: these, and no others, are revoked.
revoke() {
    local name
    printf 'crl_next_update = 30\ncrl_number = 1\n' >template
    for name in "$@"; do
        cat "pki/$name-cert.pem"
    done >bad.pem
    certtool --generate-crl --load-ca-certificate pki/ca-cert.pem \
        --load-ca-privkey pki/ca-key.pem --load-certificate bad.pem \
        --template template --outfile pki/ca-crl.pem 2>crl.err ||
        fail "certtool: $(cat crl.err)"
}
revoke revoked

# A client's directory: certs NAME CA-DIR.
client_dir() {
    mkdir -p "of-$1"
    cp "$2/ca-cert.pem" "of-$1/"
    if [ -e "pki/$1-cert.pem" ]; then
        cp "pki/$1-cert.pem" "of-$1/client-cert.pem"
        cp "pki/$1-key.pem" "of-$1/client-key.pem"
    fi
}
for name in client bob expired revoked stranger nobody; do
    client_dir "$name" pki
done
client_dir doubter other
tls_uri() {
    printf 'nbds+unix:///%s?socket=%s&tls-certificates=%s\n' "$2" "$must" \
        "$PWD/of-$1"
}

mkdir keys
psktool -u alice -p keys/keys.psk >/dev/null 2>&1
psktool -u qemu -p keys/keys.psk >/dev/null 2>&1
psk_uri() {
    printf 'nbds+unix://%s@/%s?socket=%s&tls-psk-file=%s\n' "$1" "$3" "$must" \
        "$PWD/$2"
}

opens() {
    nbdinfo --size "$1" >size 2>err || fail "not opened: $1: $(cat err)"
    [ "$(cat size)" = 33554432 ] || fail "$1 has $(cat size) bytes"
}
refuses() {
    if nbdcopy "$1" null: 2>err; then
        fail "opened: $1"
    fi
    grep -q -e "$2" err || fail "$1: not '$2' but $(cat err)"
    kill -0 "$server" || fail "the server has ended"
}

# --- Certificates: which clients come in, and that all bytes do. ---

serve -f raw --tls-certificates pki --tls-verify-peer a=a.raw
opens "$(tls_uri client a)"
opens "$(tls_uri bob a)"
for name in nobody expired revoked stranger; do
    refuses "$(tls_uri "$name" a)" .
done
refuses "$(uri_of a)" 'requires TLS'
nbdcopy "$(tls_uri client a)" out.raw
cmp a.raw out.raw
nbdelta info --output json "$(tls_uri client a)" >info.json
jq -e '.tls and ."virtual-size" == 33554432' info.json >out ||
    fail "nbdelta info: $(cat info.json)"
nbdelta map --output json "$(tls_uri client a)" |
    jq -e '.[-1] | .start + .length == 33554432' >out ||
    fail "nbdelta map"
nbdcopy --request-size=33554432 "$(tls_uri client a)" out.raw
cmp a.raw out.raw
nbdcopy --requests=64 --request-size=4096 --connections=4 \
    "$(tls_uri client a)" out.raw
cmp a.raw out.raw
mkimg b.raw 32M 2
nbdcopy --flush b.raw "$(tls_uri client a)"
cmp a.raw b.raw
x509=tls-creds-x509,id=t,dir=$PWD/of-client,endpoint=client
[ "$(qemu-img info --object "$x509" --output json --image-opts \
    "driver=nbd,path=$must,export=a,tls-creds=t,tls-hostname=localhost" |
    jq '."virtual-size"')" = 33554432 ]
if qemu-img info --object "$x509" --image-opts \
    "driver=nbd,path=$must,export=a,tls-creds=t,tls-hostname=elsewhere" \
    >out 2>&1; then
    fail "a certificate for another host was taken"
fi
kill -0 "$server"
for version in 1.2 1.3; do
    qemu-io --object "$x509,priority=NORMAL:-VERS-ALL:+VERS-TLS$version" \
        -c "write -P 7 1M 3M" -c "read -P 7 1M 3M" --image-opts \
        "driver=nbd,path=$must,export=a,tls-creds=t,tls-hostname=localhost" \
        >out || fail "TLS $version: $(cat out)"
done

# Certificates are revoked and renewed while it runs; a bad one changes nothing.
revoke revoked bob
refuses "$(tls_uri bob a)" .
opens "$(tls_uri client a)"
revoke revoked
opens "$(tls_uri bob a)"
cp pki/server-cert.pem pki/server-key.pem .
cp pki/expired-cert.pem pki/server-cert.pem
opens "$(tls_uri client a)"
make_cert pki server 'cn = localhost' 'dns_name = renewed' tls_www_server \
    'expiration_days = 30'
qemu-img info --object "$x509" --image-opts \
    "driver=nbd,path=$must,export=a,tls-creds=t,tls-hostname=renewed" >out ||
    fail "the certificate was not renewed"
mv server-cert.pem server-key.pem pki/
opens "$(tls_uri client a)"
stop_server
qemu-io -f raw -c 'read -P 7 1M 3M' a.raw | grep -q '^read' ||
    fail "what was written is not there"

# --- Pre-shared keys. ---

serve -f raw --tls-psk keys/keys.psk a=a.raw
opens "$(psk_uri alice keys/keys.psk a)"
refuses "$(psk_uri bob keys/keys.psk a)" .
sed 's/^alice:\(....\)/alice:0000/' keys/keys.psk >wrong.psk
refuses "$(psk_uri alice wrong.psk a)" .
refuses "$(uri_of a)" 'requires TLS'
psktool -u bob -p keys/keys.psk >/dev/null 2>&1
opens "$(psk_uri bob keys/keys.psk a)"
nbdcopy "$(psk_uri alice keys/keys.psk a)" out.raw
cmp a.raw out.raw
rm -f out.raw
# shellcheck disable=SC2016  # nbdkit's variable
nbdkit --exit-with-parent -U - --run 'nbdcopy "$uri" out.raw' nbd \
    socket="$must" export=a tls=require tls-psk="$PWD/keys/keys.psk" \
    tls-username=alice 2>err || fail "nbdkit nbd: $(cat err)"
cmp a.raw out.raw
psk=tls-creds-psk,id=t,dir=$PWD/keys,endpoint=client
qemu-img compare -q --object "$psk" --image-opts driver=raw,file.filename=a.raw \
    "driver=nbd,path=$must,export=a,tls-creds=t"
for cipher in AES-128-GCM CHACHA20-POLY1305; do
    qemu-img compare -q \
        --object "$psk,priority=NORMAL:-CIPHER-ALL:+$cipher" \
        --image-opts driver=raw,file.filename=a.raw \
        "driver=nbd,path=$must,export=a,tls-creds=t" ||
        fail "not with $cipher"
done
stop_server

# Replies of workers, beside requests that come in: behind blkdebug nothing is
# served at once.
truncate -s 32M c.raw
serve --tls-psk keys/keys.psk a=driver=blkdebug,image.driver=raw,image.file.driver=file,image.file.filename=a.raw \
    c=driver=blkdebug,image.driver=raw,image.file.driver=file,image.file.filename=c.raw
for size in 4096 262144 1048576; do
    nbdcopy --connections=4 --requests=64 --request-size=$size \
        "$(psk_uri alice keys/keys.psk a)" out.raw
    cmp a.raw out.raw
    nbdcopy --connections=4 --requests=64 --request-size=$size a.raw \
        "$(psk_uri alice keys/keys.psk c)"
    nbdcopy "$(psk_uri alice keys/keys.psk c)" out.raw
    cmp a.raw out.raw
done
stop_server

# --- The client chooses, or there is no choice. ---

serve -f raw --tls=on --tls-psk keys/keys.psk a=a.raw
opens "$(psk_uri alice keys/keys.psk a)"
opens "$(uri_of a)"
stop_server
serve -f raw --tls=on --tls-psk keys/keys.psk a=a.raw \
    --object authz-simple,id=z,identity=alice \
    --export nbd,id=x,node-name=a,name=private,tls-authz=z
refuses "$(uri_of private)" 'requires TLS'
refuses "$(uri_of nosuch)" "not present\|No such"
refuses "$(psk_uri bob keys/keys.psk private)" "not present\|No such"
opens "$(psk_uri alice keys/keys.psk private)"
[ "$(nbdinfo --list --json "$uri" | jq -c '[.exports[]."export-name"]')" = \
    '["a"]' ] || fail "a list in the clear tells of a private export"
stop_server
serve -f raw --tls=off --tls-psk keys/keys.psk a=a.raw
refuses "$(psk_uri alice keys/keys.psk a)" TLS
opens "$(uri_of a)"
stop_server

# --- Objects, and which client may open what. ---

serve_objects() {
    rm -f "$pidfile"
    nbdelta serve --qmp "$qmp_sock" --pidfile "$pidfile" \
        --blockdev raw,node-name=a,file.driver=file,file.filename=a.raw "$@" \
        2>server.err &
    server=$!
    wait_until "the server is ready" server_ready
}
on_must() {
    printf 'addr.type=unix,addr.path=%s,tls-creds=t' "$must"
}

serve_objects --object tls-creds-anon,id=t,endpoint=server \
    --nbd-server "$(on_must)" --export nbd,id=a,node-name=a
refuses "$(uri_of a)" 'requires TLS'
qemu-img compare -q --object tls-creds-anon,id=t,endpoint=client \
    --image-opts driver=raw,file.filename=a.raw,file.locking=off \
    "driver=nbd,path=$must,export=a,tls-creds=t"
stop_server

certs=tls-creds-x509,id=t,dir=pki,endpoint=server
serve_objects --object $certs --object 'authz-simple,id=z,identity=CN=alice' \
    --nbd-server "$(on_must),tls-authz=z" --export nbd,id=a,node-name=a
opens "$(tls_uri client a)"
refuses "$(tls_uri bob a)" .
wait_until "it is told who is turned away" \
    grep -q 'a TLS client is not authorized: O=Guests,CN=bob' server.err
qmp object-del id=z >out
refuses "$(tls_uri client a)" .
stop_server

names() {
    nbdinfo --list --json "$1" | jq -c '[.exports[]."export-name"]'
}
echo '{"policy": "deny", "rules": [{"match": "O=Guests,CN=bob",
    "policy": "allow"}]}' >list.json
serve_objects --object $certs \
    --object authz-list,id=all,policy=allow,rules.0.match='CN=mallory*',rules.0.policy=deny,rules.0.format=glob \
    --object 'authz-list,id=alice,rules.0.match=CN=a?ice,rules.0.policy=allow,rules.0.format=glob' \
    --object authz-listfile,id=bob,filename=list.json \
    --nbd-server "$(on_must),tls-authz=all" \
    --export nbd,id=a,node-name=a,name=private,tls-authz=alice \
    --export nbd,id=b,node-name=a,name=guests,tls-authz=bob \
    --export nbd,id=c,node-name=a,name=shared,writable=on,tls-authz-writable=alice
alice=$(tls_uri client '')
bob=$(tls_uri bob '')
[ "$(names "$alice")" = '["private","shared"]' ] || fail "$(names "$alice")"
[ "$(names "$bob")" = '["guests","shared"]' ] || fail "$(names "$bob")"
opens "$(tls_uri client private)"
refuses "$(tls_uri bob private)" "not present\|No such"
refuses "$(tls_uri client guests)" "not present\|No such"
opens "$(tls_uri bob guests)"
# Only a client that may see the disk may see what is dirty.
qmp block-dirty-bitmap-add node=a name=b disabled=true >out
qmp block-export-add '{"type": "nbd", "id": "d", "node-name": "a",
    "name": "views", "tls-authz": "alice", "bitmaps": ["b"]}' >out
opens "$(tls_uri client views@dirty=b)"
refuses "$(tls_uri bob views@dirty=b)" "not present\|No such"
qmp block-export-del id=d mode=hard >out
if nbdinfo --is read-only "$(tls_uri client shared)"; then
    fail "alice cannot write"
fi
nbdinfo --is read-only "$(tls_uri bob shared)"
nbdcopy b.raw "$(tls_uri client shared)"
if nbdcopy b.raw "$(tls_uri bob shared)" 2>err; then
    fail "bob can write"
fi
# The file of a list counts as it is now, broken or not.
echo '{"policy": "deny", "rules": [{"match": "CN=*", "format": "glob",
    "policy": "allow"}]}' >list.json
[ "$(names "$alice")" = '["private","guests","shared"]' ]
echo '{"policy": "deny", "rules": [{' >list.json
[ "$(names "$bob")" = '["shared"]' ]
rm list.json
[ "$(names "$bob")" = '["shared"]' ]
qmp block-export-del id=b >out
stop_server

# With keys, the user is the identity of a client; without TLS there is none.
serve_objects --object tls-creds-psk,id=t,dir=keys,endpoint=server \
    --object authz-simple,id=z,identity=alice \
    --nbd-server "$(on_must)" --export nbd,id=a,node-name=a,tls-authz=z
opens "$(psk_uri alice keys/keys.psk a)"
refuses "$(psk_uri bob keys/keys.psk a)" "not present\|No such"
stop_server

# By commands; credentials that are deleted serve on until the server stops.
serve_objects
start_tls() {
    qmp nbd-server-start "{\"tls-creds\": \"t\", \"addr\": {
        \"type\": \"unix\", \"data\": {\"path\": \"$must\"}}}"
}
qmp object-add qom-type=tls-creds-psk id=t dir=keys endpoint=server >out
start_tls >out
qmp block-export-add type=nbd id=a node-name=a >out
opens "$(psk_uri alice keys/keys.psk a)"
qmp object-del id=t >out
opens "$(psk_uri alice keys/keys.psk a)"
qmp nbd-server-stop >out
if start_tls >out 2>err; then
    fail "credentials were used that are not there"
fi
grep -q "No TLS credentials with id 't'" err || fail "$(cat err)"
stop_server

# A key that a password opens.
mkdir -p locked
cp pki/ca-cert.pem pki/server-cert.pem locked/
certtool --to-p8 --load-privkey pki/server-key.pem --password sesame \
    --pkcs-cipher aes-128 --outfile locked/server-key.pem 2>err ||
    fail "certtool: $(cat err)"
printf %s sesame >password
for secret in data=sesame file=password data=c2VzYW1l,format=base64; do
    serve_objects --object "secret,id=s,$secret" \
        --object tls-creds-x509,id=t,dir=locked,endpoint=server,passwordid=s \
        --nbd-server "$(on_must)" --export nbd,id=a,node-name=a
    opens "$(tls_uri client a)"
    stop_server
done

# --- What cannot be is told. ---

t=tls-creds-x509,id=t,endpoint=server
serve_refused "Cannot load certificate" --object secret,id=s,data=wrong \
    --object $t,dir=locked,passwordid=s
serve_refused "No secret with id 's'" --object $t,dir=locked,passwordid=s
serve_refused "'alice' is not a secret" \
    --object authz-simple,id=alice,identity=x \
    --object $t,dir=locked,passwordid=alice
serve_refused "Unable to access credentials nosuch/ca-cert.pem" \
    --object $t,dir=nosuch
bad_server() {
    rm -rf bad
    cp -r other bad
    cp pki/ca-cert.pem bad/
    cp "pki/$1-cert.pem" bad/server-cert.pem
    cp "pki/$1-key.pem" bad/server-key.pem
}
bad_server expired
serve_refused "server certificate bad/server-cert.pem has expired" \
    --object $t,dir=bad
serve_refused "has expired" --tls-certificates bad a.raw
nbdelta serve --pidfile pid --object $t,dir=bad,sanity-check=off &
unchecked=$!
wait_until "it starts" test -s pid
kill "$unchecked"
wait "$unchecked" || fail "sanity-check=off: $?"
bad_server early
serve_refused "is not yet active" --object $t,dir=bad
bad_server ca
serve_refused "basic constraints show a CA, but we need one for a server" \
    --object $t,dir=bad
bad_server stranger
serve_refused "failed validation against bad/ca-cert.pem: The certificate hasn" \
    --object $t,dir=bad
bad_server client
cp pki/bob-cert.pem bad/ca-cert.pem
serve_refused "do not show a CA" --object $t,dir=bad
echo garbage >bad/ca-cert.pem
serve_refused "Unable to import CA certificate bad/ca-cert.pem" \
    --object $t,dir=bad
serve_refused "Unable to set TLS session priority NOTHING" \
    --object $t,dir=pki,priority=NOTHING
serve_refused "Expected TLS credentials for a server endpoint" \
    --object tls-creds-x509,id=t,dir=of-client --nbd-server "$(on_must)"
serve_refused "'tls-authz' goes with 'tls-creds' only" \
    --nbd-server "addr.type=unix,addr.path=$must,tls-authz=z"
serve_refused "Cannot find QAuthZ object ID z" --object $t,dir=pki \
    --nbd-server "$(on_must),tls-authz=z"
serve_refused "do not tell who a client is" --object $t,dir=pki,verify-peer=off \
    --object authz-simple,id=z,identity=x --nbd-server "$(on_must),tls-authz=z"
for how in --nbd-server="addr.type=unix,addr.path=$must" \
    "--unix=$must --tls-certificates=pki"; do
    # shellcheck disable=SC2086  # words
    serve_refused "whose TLS credentials tell who a client is" $how \
        --object authz-simple,id=z,identity=x --blockdev null-co,node-name=n \
        --export nbd,id=n,node-name=n,tls-authz=z
done
echo '[]' >list.json
serve_refused "File 'list.json' must contain a JSON object" \
    --object authz-listfile,id=z,filename=list.json
echo '{"rules": [{"match": "x", "policy": "perhaps"}]}' >list.json
serve_refused "does not accept value 'perhaps'" \
    --object authz-listfile,id=z,filename=list.json
serve_refused "Unable to read 'nosuch'" \
    --object authz-listfile,id=z,filename=nosuch
serve_refused "--tls is 'off', 'on' or 'require', not 'maybe'" --tls maybe a.raw
serve_refused "--tls needs --tls-certificates or --tls-psk" --tls require a.raw
serve_refused "--tls-verify-peer needs --tls-certificates" \
    --tls-psk keys/keys.psk --tls-verify-peer a.raw
serve_refused "goes without --tls-psk" --tls-psk keys/keys.psk \
    --tls-certificates pki a.raw
serve_refused "--nbd-server has tls-creds" --tls-psk keys/keys.psk \
    --nbd-server "addr.type=unix,addr.path=$must"
serve_refused "Unable to access credentials nosuch: No such" --tls-psk nosuch \
    a.raw

# --- Over TCP, by name. ---

serve_tcp() {
    nbdelta serve -p "$port" --pidfile "$pidfile" -f raw \
        --tls-certificates pki a=a.raw 2>tcp.err &
    server=$!
    wait_until "the server is ready or has ended" tcp_settled
    [ -s "$pidfile" ]
}
# shellcheck disable=SC2317  # wait_until calls it
tcp_settled() {
    [ -s "$pidfile" ] || ! kill -0 "$server" 2>/dev/null
}
for ((tries = 0; ; tries++)); do
    rm -f "$pidfile"
    port=$((20000 + RANDOM % 12000))
    if serve_tcp; then
        break
    fi
    { grep -q 'in use' tcp.err && [ "$tries" -lt 20 ]; } ||
        fail "tcp: $(cat tcp.err)"
    wait "$server" || true
done
opens "nbds://localhost:$port/a?tls-certificates=$PWD/of-nobody"
refuses "nbds://localhost:$port/a?tls-certificates=$PWD/of-doubter" \
    'certificate\|verif'
opens "nbds://127.0.0.1:$port/a?tls-certificates=$PWD/of-nobody"
nbdcopy "nbds://localhost:$port/a?tls-certificates=$PWD/of-nobody" out.raw
cmp a.raw out.raw
kill "$server"
wait "$server" || fail "the server ended with $?"
server=

# --- Rules that these clients keep. ---

truncate -s 1M disk.raw
serve -f raw --tls-certificates pki --tls-verify-peer disk=disk.raw
strict=$server
must=$sock
server=
qmp_sock=$PWD/may.qmp pidfile=$PWD/may.pid
nbdelta serve -U "$may" --pidfile "$pidfile" -f raw -r --tls=on \
    --tls-certificates pki --tls-verify-peer disk=b.raw &
server=$!
wait_until "the server is ready" server_ready
truncate -s 1M b.raw
rc=0
python "$SRCDIR/tests/func/nbd-tls.py" "$must" "$may" "$strict" pki || rc=$?
kill "$strict"
wait "$strict" || fail "the server ended with $?"
exit $rc
