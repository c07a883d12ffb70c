#!/bin/bash
# Real clients against nbdelta serve: what they read, write, list and map.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo nbdcopy qemu-img qemu-io jq

mkimg a.raw 32M 1
mkimg b.raw 8M 2
cp --sparse=always a.raw model.raw

serve -f raw first=a.raw b.raw

# Names, sizes, flags.
[ "$(nbdinfo --size "$uri")" = 33554432 ]
[ "$(nbdinfo --size "$(uri_of first)")" = 33554432 ]
[ "$(nbdinfo --size "$(uri_of disk1)")" = 8388608 ]
[ "$(nbdinfo --list --json "$uri" | jq -c '[.exports[]."export-name"]')" = \
    '["first","disk1"]' ]
nbdinfo --json "$uri" >info.json
jq -e '.protocol == "newstyle-fixed" and .structured == true and
    (.exports[0] | ."is_read_only" == false and .can_flush and .can_fua and
    .can_trim and .can_zero and .can_fast_zero and .can_df and .can_cache and
    .can_multi_conn and ."block_size_maximum" == 33554432)' info.json >out ||
    fail "flags: $(cat info.json)"
if nbdinfo --size "$(uri_of nosuch)" 2>err; then
    fail "an export that is not there was given"
fi

# Bytes out, in every mode of replies, and holes as holes.
nbdcopy "$uri" out.raw
cmp out.raw a.raw
nbdcopy --requests=1 --request-size=4096 --connections=1 \
    "$(uri_of disk1)" out.raw
cmp out.raw b.raw
nbdcopy --request-size=33554432 "$uri" out.raw
cmp out.raw a.raw
qemu-img compare -q -f raw -F raw a.raw "$uri"

# What is a hole in the file is one for the client.
qemu-img map --output json a.raw |
    jq -c '[.[] | select(.zero)] | map([.start, .length])' >holes.file
nbdinfo --map --json "$uri" |
    jq -c '[.[] | select(.type == 3)] | map([.offset, .length])' >holes.nbd
cmp holes.file holes.nbd

# Bytes in, by many kinds of requests.
cat >commands <<'END'
write -P 1 0 512
write -P 2 1234 4321
write -P 3 64k 64k
write -f -P 4 200k 4k
write -P 5 1M 3M
write -f -P 6 5M 300k
write -z 2M 1M
write -z -u 9M 1M
discard 12M 64k
write -z 12M 64k
write -P 7 33550336 4k
flush
END
qemu-io -f raw "$uri" <commands >out
qemu-io -f raw model.raw <commands >/dev/null
qemu-img compare -q -f raw -F raw model.raw "$uri" ||
    fail "what was written is not what is read"
stop_server
qemu-img compare -q -f raw -F raw model.raw a.raw ||
    fail "what was written is not in the file"

# A whole disk in, then out.
truncate -s 32M empty.raw
serve -f raw empty.raw
nbdcopy --flush model.raw "$uri"
stop_server
cmp empty.raw model.raw

# A read-only export refuses writes of every client.
serve -r -f raw a.raw
nbdinfo --is read-only "$uri"
if qemu-io -f raw -c 'write 0 512' "$uri" >out 2>&1; then
    fail "a read-only export was opened for writing"
fi
stop_server
cmp -s a.raw model.raw || fail "a read-only export has changed"

# All of it over qcow2 with a backing file, and how deep things are.
qemu-img create -q -f qcow2 -b model.raw -F raw top.qcow2
qemu-io -f qcow2 -c 'write -P 9 1M 64k' top.qcow2 >/dev/null
serve top.qcow2
nbdinfo --map=qemu:allocation-depth --json "$uri" |
    jq -c '[.[] | select(.offset <= 1048576 and .offset + .length > 1048576)] |
    [.[0].offset, .[0].length, .[0].type]' >depth
[ "$(cat depth)" = '[1048576,65536,1]' ] || fail "depth: $(cat depth)"
qemu-img compare -q -f qcow2 -F raw -U top.qcow2 "$uri"
stop_server

# TCP, over both protocols and by a name.
tcp() {
    nbdelta serve "$@" -p "$port" --pidfile "$pidfile" -f raw model.raw \
        2>tcp.err &
    server=$!
    wait_until "the server is ready or has ended" tcp_settled
    [ -s "$pidfile" ]
}
tcp_settled() {
    [ -s "$pidfile" ] || ! kill -0 "$server" 2>/dev/null
}
# Somebody else may have the port: try others.
listen_tcp() {
    local tries
    for ((tries = 0; tries < 20; tries++)); do
        port=$((20000 + RANDOM % 12000))
        if tcp "$@"; then
            return
        fi
        grep -q 'in use' tcp.err || fail "tcp: $(cat tcp.err)"
        wait "$server" || true
        server=
    done
    fail "no free port"
}
listen_tcp
[ "$(nbdinfo --size "nbd://127.0.0.1:$port")" = 33554432 ]
nbdcopy "nbd://127.0.0.1:$port" out.raw
cmp out.raw model.raw
if [ -e /proc/net/if_inet6 ] && grep -q ' lo$' /proc/net/if_inet6; then
    [ "$(nbdinfo --size "nbd://[::1]:$port")" = 33554432 ]
fi
kill "$server"
wait "$server" || fail "the server ended with $?"
server=
listen_tcp -i 127.0.0.1
[ "$(nbdinfo --size "nbd://127.0.0.1:$port")" = 33554432 ]
