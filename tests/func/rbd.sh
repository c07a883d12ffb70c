#!/bin/bash
# Images of Ceph as nodes (driver rbd), on a real cluster: names and options,
# making, reading and writing beside QEMU's driver, status, sizes, jobs, bitmaps,
# qcow2 in it and above it; and what is left when the last node is closed.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
# shellcheck source=tests/func/ceph.bash
. "$SRCDIR/tests/func/ceph.bash"
need jq qemu-img qemu-io nbdinfo
need_ceph

io() {
    qemu-io -f raw "$@" >io.out 2>&1 || fail "qemu-io $*: $(cat io.out)"
    ! grep -q -e failed -e error io.out || fail "qemu-io $*: $(cat io.out)"
}
refused() {
    local text=$1
    shift
    ! "$@" >refused.out 2>&1 || fail "$*: not refused"
    grep -qF -e "$text" refused.out || fail "$*: said $(cat refused.out)"
}
same() { qemu-img compare -q -f raw -F raw "$1" "$2" || fail "$1 is not $2"; }
# Without those of libcryptsetup, which keeps them.
fds() { find "/proc/$server/fd" -type l ! -lname '/dev/*random' | wc -l; }

# --- Making ---

nbdelta create -f rbd "$(rbd_of a)" 64M
nbdelta create -f rbd -o cluster_size=1M "$(rbd_of small)" 16M
nbdelta create -f raw "$(rbd_of raw)" 16M
rbd info --format json small | jq -e '.size == 16777216 and .order == 20' >out ||
    fail "small is $(rbd info small)"
rbd info --format json raw | jq -e '.size == 16777216 and .order == 22' >out
refused "File exists" nbdelta create -f rbd "$(rbd_of a)" 64M
refused "obj size needs to be power of 2" \
    nbdelta create -f rbd -o cluster_size=12345 "$(rbd_of b)" 1M
refused "obj size too small" \
    nbdelta create -f rbd -o cluster_size=512 "$(rbd_of b)" 1M
refused "Pool name is required" nbdelta create -f rbd "rbd:b" 1M
refused "error opening pool nopool" \
    nbdelta create -f rbd "rbd:nopool/b:conf=$CEPH_CONF" 1M
refused "Can't use snapshot name" nbdelta create -f rbd "$(rbd_of b@s)" 1M
refused "does not take the option 'cluster_size'" \
    nbdelta create -f raw -o cluster_size=1M "$(rbd_of b)" 1M

# --- Reading and writing; the module is loaded when it is asked for ---

mkimg disk.raw 1M 3
serve vda=disk.raw
! grep -q librbd "/proc/$server/maps" || fail "librbd is there without a node"
grep -q -w VmRSS "/proc/$server/status"
qmp query-status >out # a session, and the record of tests/run
few_fds=$(fds)

qmp blockdev-add driver=rbd node-name=a pool=rbd image=a conf="$CEPH_CONF" \
    discard=unmap >out
qmp block-export-add type=nbd id=a node-name=a name=a writable=true >out
io "$(uri_of a)" -c 'write -q -P 1 0 1M' -c 'write -q -P 2 4095k 3M' \
    -c 'write -q -P 3 12345 4321' -c 'write -q -f -P 4 40M 512' \
    -c 'read -q -P 3 12345 4321' -c 'read -q -P 0 50M 1M' -c flush
# What is acknowledged after a flush, another client has.
io -r "$(rbd_of a)" -c 'read -q -P 1 0 12288' -c 'read -q -P 3 12345 4321' \
    -c 'read -q -P 2 4095k 3M' -c 'read -q -P 4 40M 512'
qemu-img convert -q -f raw -O raw "$(rbd_of a)" a.raw
same "$(uri_of a)" a.raw
# Long reads, in each form of reply.
python - "$sock" a.raw <<'END'
import os
import struct
import sys
sys.path.insert(0, os.environ['SRCDIR'] + '/tests/func')
from nbd_raw import DF, READ, Client
with open(sys.argv[2], 'rb') as f:
    disk = f.read()
for at, length in (0, 5 << 20), (12345, (3 << 20) + 777), (39 << 20, 9 << 20):
    wanted = disk[at:at + length]
    for flags in 0, DF:
        c = Client(sys.argv[1]).go('a')
        c.send(READ, at, length, flags)
        error, chunks = c.result()
        assert error == 0 and (len(chunks) == 1 or not flags)
        got = bytearray(length)
        for kind, payload in chunks:
            assert kind == 1, kind
            begin = struct.unpack('>Q', payload[:8])[0] - at
            got[begin:begin + len(payload) - 8] = payload[8:]
        assert got == wanted, (at, length, flags)
    c = Client(sys.argv[1]).go('a', structured=False)
    c.send(READ, at, length)
    assert c.message()[1] == 0
    assert c.recv(length) == wanted, (at, length)
END
# Zeroes and discards give objects back.
io "$(uri_of a)" -c 'write -q -z 5M 100k' -c 'read -q -P 0 5M 100k' \
    -c 'read -q -P 2 5220k 1k' -c 'write -q -P 5 20M 8M' -c flush
rbd diff a | grep -q 25165824 || fail "not written"
io "$(uri_of a)" -c 'discard 20M 4M' -c 'write -q -z -u 24M 4M' \
    -c 'read -q -P 0 20M 8M' -c flush
rbd diff a >kept
! grep -q -w -e 20971520 -e 25165824 kept || fail "not given back: $(cat kept)"
# Status is by objects.
nbdinfo --map "$(uri_of a)" | awk '{ print $1, $2, $4 }' >map
diff - map <<END
0 8388608 data
8388608 33554432 hole,zero
41943040 4194304 data
46137344 20971520 hole,zero
END
# Without an object map the objects are asked.
rbd feature disable a fast-diff object-map
nbdinfo --map "$(uri_of a)" | awk '{ print $1, $2, $4 }' >map
grep -q '^0 [0-9]* data' map
tail -n 1 map | grep -q 'hole,zero$' || fail "$(cat map)"
rbd feature enable a object-map fast-diff
rbd info a | grep -q 'object map invalid' || fail "the map is valid already"
nbdinfo --map "$(uri_of a)" | awk '{ print $1, $2, $4 }' >map2
diff map map2
rbd object-map rebuild --no-progress a
nbdinfo --map "$(uri_of a)" | awk '{ print $1, $2, $4 }' >map
[ "$(sed -n 1p map)" = "0 8388608 data" ] || fail "$(cat map)"

# Another client takes the lock, and we take it again.
rbd lock ls --format json a | jq -e 'length == 1' >out || fail "no lock"
rbd bench --io-type write --io-size 4K --io-total 64K --io-pattern seq a \
    >bench.out 2>&1 || fail "$(cat bench.out)"
io "$(uri_of a)" -c 'write -q -P 6 0 1M' -c 'read -q -P 6 0 1M'

# --- Sizes ---

qmp block_resize node-name=a size=80M >out
rbd info --format json a | jq -e '.size == 83886080' >out
io "$(uri_of a)" -c 'write -q -P 7 79M 1M' -c 'read -q -P 0 70M 1M'
qmp block_resize node-name=a size=72M >out
rbd info --format json a | jq -e '.size == 75497472' >out
# By somebody else.
size_is() {
    qmp query-named-block-nodes |
        jq -e --arg n "$1" --argjson s "$2" \
            '.[] | select(."node-name" == $n).image."virtual-size" == $s' >out
}
rbd resize --no-progress --size 96M a
wait_until "the node has the size of the image" size_is a 100663296
[ "$(nbdinfo --size "$(uri_of a)")" = 100663296 ]
io "$(uri_of a)" -c 'write -q -P 8 95M 1M' -c 'read -q -P 8 95M 1M'
rbd resize --no-progress --allow-shrink --size 64M a
wait_until "the node has shrunk" size_is a 67108864

# --- Names ---

rbd namespace create rbd/ns
rbd create --size 4M 'rbd/ns/a.b@c' 2>out || rbd create --size 4M rbd/ns/x
nbdelta create -f rbd "rbd:rbd/ns/y:conf=$CEPH_CONF" 4M
io "rbd:rbd/ns/y:conf=$CEPH_CONF" -c 'write -q -P 9 0 64k'
rbd snap create rbd/ns/y@s 2>out
io "rbd:rbd/ns/y:conf=$CEPH_CONF" -c 'write -q -P 10 0 64k'
ceph auth get-or-create client.some mon 'profile rbd' osd 'profile rbd' \
    -o some.keyring >out
ceph auth print-key client.some >some.key
port=$(sed -n 's/^mon host = .*:\([0-9]*\)\]/\1/p' "$CEPH_CONF")
io_of() { # PATTERN SERVE-ARGUMENT...
    local pattern=$1
    shift
    serve_more "$@"
    io -r "nbd+unix:///more?socket=$PWD/more.sock" -c "read -q -P $pattern 0 64k"
    end_more
}
more_ready() {
    kill -0 "$more" 2>/dev/null || fail "more: $(cat more.log)"
    [ -s more.pid ]
}
serve_more() {
    rm -f more.pid
    nbdelta serve -U "$PWD/more.sock" --pidfile more.pid -r "$@" 2>more.log &
    more=$!
    wait_until "the other server is ready" more_ready
}
end_more() { kill "$more" && wait "$more"; }
io_of 10 more="rbd:rbd/ns/y:conf=$CEPH_CONF"
io_of 9 more="rbd:rbd/ns/y@s:id=admin:conf=$CEPH_CONF"
io_of 10 more="driver=rbd,pool=rbd,namespace=ns,image=y,conf=$CEPH_CONF"
io_of 9 more="json:{\"driver\": \"raw\", \"file\": {\"driver\": \"rbd\",
    \"pool\": \"rbd\", \"namespace\": \"ns\", \"image\": \"y\",
    \"snapshot\": \"s\", \"conf\": \"$CEPH_CONF\"}}"
io_of 10 more="rbd:rbd/ns/y:conf=/dev/null:id=some:keyring=$PWD/some.keyring:mon_host=127.0.0.1\\:$port"
io_of 10 --object "secret,id=key,file=some.key,format=base64" \
    more="json:{\"driver\": \"rbd\", \"pool\": \"rbd\", \"namespace\": \"ns\",
    \"image\": \"y\", \"user\": \"some\", \"key-secret\": \"key\",
    \"auth-client-required\": [\"cephx\"], \"conf\": \"/dev/null\",
    \"server\": [{\"host\": \"127.0.0.1\", \"port\": \"$port\"}]}"
serve_refused "error reading header from none: No such file" \
    more="rbd:rbd/none:conf=$CEPH_CONF"
serve_refused "namespace 'no' does not exist" more="rbd:rbd/no/y:conf=$CEPH_CONF"
serve_refused "error reading conf file" more="rbd:rbd/a:conf=/nowhere"
serve_refused "invalid conf option nonsense" \
    more="rbd:rbd/a:conf=$CEPH_CONF:nonsense=1"
serve_refused "conf option a has no value" more="rbd:rbd/a:a"
serve_refused "rbd snapshots are read-only" --blockdev \
    "driver=rbd,node-name=s,pool=rbd,namespace=ns,image=y,snapshot=s,conf=$CEPH_CONF"
serve_refused "Parameter 'image' is missing" --blockdev \
    "driver=rbd,node-name=s,pool=rbd"
NBDELTA_MODULES=$PWD serve_refused "needs the package nbdelta-rbd" \
    more="$(rbd_of a)"

# --- blockdev-create; jobs ---

create() { # JSON
    local rc=0
    qmp --wait blockdev-create "{\"job-id\": \"c\", \"options\": $1}" >out 2>&1 ||
        rc=$?
    qmp job-dismiss id=c >dismiss.out
    return "$rc"
}
where="\"pool\": \"rbd\", \"conf\": \"$CEPH_CONF\""
create "{\"driver\": \"rbd\", \"size\": 67108864, \"cluster-size\": 2097152,
    \"location\": {$where, \"image\": \"copy\"}}"
rbd info --format json copy | jq -e '.size == 67108864 and .order == 21' >out
! create "{\"driver\": \"rbd\", \"size\": 67108864,
    \"location\": {$where, \"image\": \"copy\"}}" || fail "made once more"
grep -q 'error rbd create: File exists' out || fail "$(cat out)"

# A backup to rbd, full and incremental, by a bitmap in memory.
qmp blockdev-add driver=rbd node-name=copy pool=rbd image=copy \
    conf="$CEPH_CONF" >out
qmp block-dirty-bitmap-add node=a name=b >out
qmp blockdev-backup job-id=full device=a target=copy sync=full --wait >out
same "$(rbd_of copy)" "$(uri_of a)"
io "$(uri_of a)" -c 'write -q -P 11 1M 64k' -c 'write -q -P 12 33M 200k'
qmp query-named-block-nodes >nodes
jq -e '.[] | select(."node-name" == "a")."dirty-bitmaps"[0].count > 0' nodes >out
qmp blockdev-backup job-id=inc device=a target=copy sync=incremental bitmap=b \
    --wait >out
same "$(rbd_of copy)" "$(uri_of a)"
refused "store persistent bitmaps to a" \
    qmp block-dirty-bitmap-add node=a name=p persistent=true

# A point in time that clients pull, with its scratch on rbd: nothing of the
# guest's later writes is in it.
create "{\"driver\": \"rbd\", \"size\": 67108864,
    \"location\": {$where, \"image\": \"scratch\"}}"
qmp blockdev-add driver=rbd node-name=scratch pool=rbd image=scratch \
    conf="$CEPH_CONF" >out
qmp blockdev-add driver=copy-before-write node-name=cbw file=a target=scratch >out
qmp block-export-del id=a >out
qmp block-export-add type=nbd id=a node-name=cbw name=a writable=true >out
qmp blockdev-add driver=snapshot-access node-name=then file=cbw >out
qmp block-export-add type=nbd id=then node-name=then name=then >out
qemu-img convert -q -f raw -O raw "$(uri_of a)" before.raw
io "$(uri_of a)" -c 'write -q -P 13 0 8M' -c 'discard 33M 1M'
same "$(uri_of "then")" before.raw
for id in "then" a; do
    qmp block-export-del id=$id >out
done
for node in "then" cbw scratch copy; do
    qmp blockdev-del node-name=$node >out
done

# --- Under qcow2, and below it ---

nbdelta create -f qcow2 "$(rbd_of q)" 64M
qmp blockdev-add driver=qcow2 node-name=q file.driver=rbd file.pool=rbd \
    file.image=q file.conf="$CEPH_CONF" >out
qmp block-export-add type=nbd id=q node-name=q name=q writable=true >out
io "$(uri_of q)" -c 'write -q -P 14 0 10M' -c 'write -q -P 15 60M 1M' \
    -c 'read -q -P 14 0 10M' -c flush
qmp block-dirty-bitmap-add node=q name=kept persistent=true >out
io "$(uri_of q)" -c 'write -q -P 16 10M 1M'
qmp block-export-del id=q >out
qmp blockdev-del node-name=q >out
qemu-img check -q -f qcow2 "$(rbd_of q)" || fail "qcow2 in rbd is not sound"
qemu-io -r -f qcow2 -c 'read -q -P 14 0 10M' -c 'read -q -P 16 10M 1M' \
    "$(rbd_of q)" >io.out
nbdelta info --output json "$(rbd_of q)" |
    jq -e '."format-specific".data.bitmaps[0].name == "kept"' >out

nbdelta create -f qcow2 -o "backing_file=$(rbd_of small),backing_fmt=raw" \
    over.qcow2
io "$(rbd_of small)" -c 'write -q -P 17 1M 1M'
qmp blockdev-add driver=qcow2 node-name=over file.driver=file \
    file.filename="$PWD/over.qcow2" backing.driver=raw backing.file.driver=rbd \
    backing.file.pool=rbd backing.file.image=small \
    backing.file.conf="$CEPH_CONF" backing.read-only=true >out
qmp block-export-add type=nbd id=over node-name=over name=over \
    writable=true >out
io "$(uri_of over)" -c 'read -q -P 17 1M 1M' -c 'write -q -P 18 0 64k'
qmp block-export-del id=over >out
qmp blockdev-del node-name=over >out
qemu-io -f qcow2 -c 'read -q -P 17 1M 1M' -c 'read -q -P 18 0 64k' over.qcow2 \
    >io.out || fail "QEMU: $(cat io.out)"

# --- Encrypted by librbd ---

# A header as QEMU makes it: librbd takes 15 s to make one.  Under load QEMU
# cannot tell how fast it is, and gives up.
make_luks() {
    qemu-img create -q -f luks --object secret,id=p,data=geheim \
        -o key-secret=p,iter-time=50 luks.raw 16M 2>luks.err
}
wait_until "QEMU has made a LUKS header" make_luks
rbd import --no-progress luks.raw luks 2>out
qmp object-add qom-type=secret id=pass data=geheim >out
qmp blockdev-add driver=rbd node-name=luks pool=rbd image=luks \
    conf="$CEPH_CONF" encrypt.format=luks encrypt.key-secret=pass >out
qmp block-export-add type=nbd id=luks node-name=luks name=luks \
    writable=true >out
io "$(uri_of luks)" -c 'write -q -P 19 0 1M' -c 'read -q -P 19 0 1M'
qmp query-named-block-nodes >nodes
jq -e '.[] | select(."node-name" == "luks").image |
    ."format-specific".data."encryption-format" == "luks"' nodes >out
qmp block-export-del id=luks >out
qmp blockdev-del node-name=luks >out
rbd export --no-progress luks luks2.raw 2>out
qemu-io -r --object secret,id=p,data=geheim --image-opts \
    driver=luks,key-secret=p,file.filename=luks2.raw \
    -c 'read -q -P 19 0 1M' >io.out || fail "QEMU: $(cat io.out)"

# --- The end of the last node ---

gone() {
    cat "/proc/$server/task"/*/comm >names 2>/dev/null || :
    ! grep -q -e msgr -e rados -e ceph -e io_context -e fn_anonymous names &&
        [ "$(fds)" -le "$few_fds" ]
}
qmp blockdev-del node-name=a >out
wait_until "librbd's threads and descriptors are gone" gone
stop_server
