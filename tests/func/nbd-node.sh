#!/bin/bash
# Exports of other servers as nodes: their names, and the flags, limits and
# extents of the server, which are honoured.  The servers are nbdkit, qemu-nbd
# and nbdelta.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need jq nbdinfo nbdkit qemu-img qemu-io qemu-nbd

far=$PWD/far.sock

# far_nbdkit ARG...: the far server is nbdkit.
far_nbdkit() {
    rm -f far.pid "$far"
    nbdkit -f -U "$far" -P far.pid "$@" 2>far.log &
    far_server=$!
    at_exit end_far
    wait_until "nbdkit listens: $(cat far.log)" test -s far.pid
}
far_qemu() {
    rm -f far.pid "$far"
    qemu-nbd -k "$far" -t --pid-file=far.pid "$@" &
    far_server=$!
    at_exit end_far
    wait_until "qemu-nbd listens" test -s far.pid
}
far_server=
end_far() {
    if [ -n "$far_server" ]; then
        # nbdkit would wait for its clients.
        kill -KILL "$far_server" 2>/dev/null || :
        wait "$far_server" 2>/dev/null || :
        far_server=
    fi
}

far_uri="nbd+unix:///?socket=$far"
io() {
    qemu-io -f raw "$uri" "$@" >io.out || fail "qemu-io $*: $(cat io.out)"
    ! grep -q -e failed -e error io.out || fail "qemu-io $*: $(cat io.out)"
}

# Every way to name an export; each must be the same disk.
mkimg disk.raw 3M 5
far_qemu -x vda -f raw disk.raw
for image in \
    "nbd+unix:///vda?socket=$far" \
    "nbd:unix:$far:exportname=vda" \
    "driver=nbd,uri=nbd+unix:///vda?socket=$far" \
    "driver=nbd,filename=nbd:unix:$far:exportname=vda" \
    "driver=nbd,path=$far,export=vda" \
    "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=$far,file.export=vda" \
    "json:{\"driver\": \"nbd\", \"export\": \"vda\", \"server\": {\"type\": \"unix\", \"path\": \"$far\"}}"; do
    serve -r "$image"
    qemu-img compare -q -f raw -F raw "$uri" disk.raw || fail "$image differs"
    file=$(qmp query-named-block-nodes | jq -r '.[0].file')
    [ "$file" = "nbd+unix:///vda?socket=$far" ] || fail "$image is called $file"
    stop_server
done

# What makes no sense is said.
refused() {
    serve_refused "$1" -U s "$2"
}
refused 'NBD server address missing' driver=nbd
refused "Parameter 'server.path' is missing" driver=nbd,server.type=unix
refused "'server.type' must be 'inet', 'unix'" driver=nbd,server.type=x
refused "at the same time" "driver=nbd,server.type=unix,server.path=x,path=y"
refused 'path and host may not be used' driver=nbd,path=x,host=y
refused 'port may not be used without host' driver=nbd,port=1
refused "Option 'export' cannot be used with a file name" \
    'json:{"filename": "nbd://h/", "export": "x"}'
refused "Option 'path' cannot be used with a URI" driver=nbd,uri=nbd://h/,path=x
refused 'has no socket' nbd+unix:///x
refused 'export name too long' "driver=nbd,path=x,export=$(printf '%05000d' 0)"
refused "does not take the option 'nosuch'" "driver=nbd,path=$far,export=vda,nosuch=1"
refused "Failed to connect to '$PWD/nosuch': No such file" "nbd:unix:$PWD/nosuch"
refused "'vdb'" "nbd:unix:$far:exportname=vdb"
refused 'x-dirty-bitmap qemu:dirty-bitmap:b not found' \
    "driver=nbd,path=$far,export=vda,x-dirty-bitmap=qemu:dirty-bitmap:b"
end_far

# TCP, by the host name and as IPv4 alone.
far_nbdkit_tcp() {
    local port
    for port in 10911 10923 10937 10949; do
        rm -f far.pid
        nbdkit -f -i 127.0.0.1 -p "$port" -P far.pid memory 1M 2>far.log &
        far_server=$!
        at_exit end_far
        for ((i = 0; i < 200; i++)); do
            [ ! -s far.pid ] || { far_port=$port; return; }
            kill -0 "$far_server" 2>/dev/null || break
            sleep 0.05
        done
    done
    fail "no port for nbdkit"
}
far_nbdkit_tcp
serve a="nbd://127.0.0.1:$far_port" \
    b="driver=nbd,server.type=inet,server.host=localhost,server.port=$far_port,server.ipv4=on"
qmp query-named-block-nodes >nodes
jq -e 'any(.[]; .file == "nbd://127.0.0.1:'"$far_port"'")' nodes >out
jq -e 'any(.[]; .file | startswith("json:"))' nodes >out
stop_server
# A connected socket is a connection, once.
exec 5<>"/dev/tcp/127.0.0.1/$far_port"
nbdelta map --output json driver=nbd,server.type=fd,server.str=5 | jq -e 'map(.length) | add == 1048576' >out
exec 5>&-
refused 'not a socket' driver=nbd,server.type=fd,server.str=0 </dev/null
refused "'x' is not the number" driver=nbd,server.type=fd,server.str=x
end_far

# Reads and writes pass, holes are seen, zeroes are no data.
far_nbdkit memory 8M
serve "$far_uri"
io -c 'write -P 1 1M 1M' -c 'write -P 2 4097 3' -c 'write -z 1280k 64k' \
    -c 'read -P 2 4097 3' -c 'read -P 0 4100 100' -c 'read -P 1 1M 256k' \
    -c 'read -P 0 1280k 64k' -c 'discard 1536k 128k' -c flush
nbdinfo --map "$uri" >map.near
nbdinfo --map "$far_uri" >map.far
diff map.near map.far || fail "extents differ"
[ "$(wc -l <map.near)" -gt 3 ] || fail "no holes: $(cat map.near)"
stop_server
end_far

# A server of few talents: no zero, no trim, no FUA, no extents.
truncate -s 4M dumb.raw
: >dumb.log
export dumb=$PWD/dumb
# shellcheck disable=SC2016  # nbdkit expands that
far_nbdkit --filter=nozero eval zeromode=none get_size='echo 4M' \
    pread='dd if=$dumb.raw skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none' \
    pwrite='echo "write $5" >>$dumb.log; dd of=$dumb.raw seek=$4 conv=notrunc oflag=seek_bytes status=none' \
    can_write='exit 0' can_fua='echo none' can_flush='exit 0' \
    can_multi_conn='exit 3' flush='echo flush >>$dumb.log'
serve "driver=nbd,server.type=unix,server.path=$far,discard=unmap"
io -c 'write -P 9 0 4M' -c 'write -z 1M 1M' -c 'write -z -u 3M 64k' \
    -c 'read -P 0 1M 1M' -c 'discard 0 64k' -c 'write -f -P 8 2M 4k'
[ "$(nbdinfo --map --json "$uri" | jq length)" = 1 ]
tail -n 1 dumb.log | grep -q flush || fail "no FUA and no flush: $(cat dumb.log)"
stop_server
end_far

# Its block sizes: what is smaller is read and written back, what is larger
# comes in parts, and an odd end is served.
far_nbdkit --filter=blocksize-policy --filter=log memory 1M \
    blocksize-minimum=4096 blocksize-preferred=8192 blocksize-maximum=64k \
    blocksize-error-policy=error logfile=far.requests
serve "$far_uri"
io -c 'write -P 3 0 1M' -c 'write -P 4 511 2' -c 'read -P 3 0 511' \
    -c 'read -P 4 511 2' -c 'read -P 3 513 512k' -c 'write -z 100 300k'
grep -E ' (Read|Write) id=' far.requests | grep -vE 'count=0x([0-9a-f]000|10000) ' >bad || :
[ ! -s bad ] || fail "requests of other sizes: $(cat bad)"
stop_server
end_far
head -c 1000001 /dev/urandom >odd.raw
far_nbdkit file odd.raw
serve "$far_uri"
[ "$(nbdinfo --size "$uri")" = 1000001 ]
io -c 'write -P 7 999999 2' -c 'read -P 7 999999 2'
[ "$(tail -c 2 odd.raw | od -An -tx1)" = ' 07 07' ]
stop_server
end_far

# A read-only export.
far_nbdkit -r memory 1M
serve_refused 'NBD export is read-only' -U s "$far_uri"
serve -r "$far_uri"
stop_server
serve "driver=nbd,server.type=unix,server.path=$far,auto-read-only=on"
nbdinfo --is readonly "$uri"
stop_server
serve "driver=raw,auto-read-only=on,file.driver=nbd,file.server.type=unix,file.server.path=$far"
nbdinfo --is readonly "$uri"
stop_server
end_far

# Several connections, where the server says that they see one disk.
connections() {
    [ "$(qmp query-named-block-nodes |
        jq 'map(.image."format-specific" | select(.type == "nbd"))[0].data.connections')" = "$1" ]
}
four="driver=nbd,server.type=unix,server.path=$far,connections=4"
far_nbdkit --filter=log memory 1M logfile=far.requests
serve "$four"
wait_until "there are 4 connections" connections 4
io -c 'write -P 1 0 1M' -c 'aio_read -P 1 0 64k' -c 'aio_read -P 1 64k 64k' \
    -c aio_flush -c 'read -P 1 0 1M'
stop_server
end_far
[ "$(grep -c 'Connect' far.requests)" -ge 4 ] || fail "$(cat far.requests)"
far_nbdkit --filter=multi-conn memory 1M multi-conn-mode=disable
serve "$four"
io -c 'write -P 1 0 1M'
connections 1
stop_server
end_far

# A dirty bitmap in the place of what is allocated, as QEMU shows it.
qemu-img create -q -f qcow2 b.qcow2 1M
qemu-img bitmap --add b.qcow2 b
qemu-io -f qcow2 -c 'write 64k 128k' -c 'write 512k 64k' b.qcow2 >out
qemu-img bitmap --disable b.qcow2 b
far_qemu -r -f qcow2 -B b b.qcow2
opts="driver=nbd,server.type=unix,server.path=$far,x-dirty-bitmap=qemu:dirty-bitmap:b"
qemu-img map --output json --image-opts "$opts" | jq -c '.[] | [.start, .length, .zero, .data]' >map.qemu
nbdelta map --output json "$opts" | jq -c '.[] | [.start, .length, .zero, .data]' >map.ours
diff map.qemu map.ours || fail "the bitmap differs"
[ "$(wc -l <map.ours)" = 5 ]
end_far

# qcow2 over the network: an export does not grow, but may have room.
qemu-img create -q -f qcow2 far.qcow2 64M
remote_qcow2="driver=qcow2,file.driver=nbd,file.server.type=unix,file.server.path=$far"
far_qemu -f raw far.qcow2
serve "$remote_qcow2"
qemu-io -f raw -c 'write -P 5 40M 1M' "$uri" >io.out 2>&1 || :
grep -q 'No space left' io.out || fail "it has grown: $(cat io.out)"
kill "$server"
wait "$server" || : # what found no space cannot be flushed
server=
end_far
qemu-img check -q far.qcow2 || [ $? = 3 ] || fail "$(qemu-img check far.qcow2 2>&1)"
qemu-img create -q -f qcow2 far.qcow2 64M
truncate -s 80M far.qcow2
far_qemu -f raw far.qcow2
serve "$remote_qcow2"
mkimg random.raw 64M 7
qemu-img convert -n -f raw -O raw random.raw "$uri"
qemu-img compare -q -f raw -F raw random.raw "$uri"
stop_server
end_far
qemu-img check -q far.qcow2 || fail "$(qemu-img check far.qcow2 2>&1)"
qemu-img compare -q -f raw -F qcow2 random.raw far.qcow2

# As a backing file, by the user's option; what an image names is no option.
qemu-img create -q -f qcow2 -b "$far_uri" -F raw -u over.qcow2 64M
far_nbdkit -r file random.raw
serve_refused 'only files are opened because an image names them' -U s over.qcow2
serve "driver=qcow2,file.filename=over.qcow2,backing.driver=nbd,backing.uri=$far_uri"
qemu-img compare -q -f raw -F raw random.raw "$uri"
io -c 'write -P 6 1M 1M' -c 'read -P 6 1M 1M'
stop_server
end_far
