#!/bin/bash
# More clients, each in all the ways in which it can negotiate: libnbd's API,
# nbdkit's nbd plugin, nbd-client, fio, qemu-img.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo nbdcopy nbdkit fio qemu-img

mkimg a.raw 16M
cp --sparse=always a.raw model.raw
qemu-img create -q -f qcow2 b.qcow2 64M
qemu-img create -q -f qcow2 c.qcow2 16M
serve a=json:'{"driver": "raw", "file": {"driver": "file",
    "filename": "a.raw"}}' b=b.qcow2 c=c.qcow2 \
    --nbd-server id=tcp,addr.type=inet,addr.host=127.0.0.1,addr.port=20809,addr.to=24809 \
    --blockdev driver=mem,node-name=m,size=1M \
    --export nbd,id=m,node-name=m,server=tcp,name=m,description=memory \
    --print-uri >uris
tcp=$(grep ^nbd: uris)
port=${tcp##*:}
port=${port%%/*}

# libnbd: with and without structured replies, options one by one.
python - "$sock" <<'END'
import errno
import sys
import nbd

def connect(structured, name="b", contexts=()):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.set_export_name(name)
    for c in contexts:
        h.add_meta_context(c)
    h.connect_unix(sys.argv[1])
    return h

for structured in (False, True):
    h = connect(structured)
    assert h.get_structured_replies_negotiated() == structured
    assert h.get_protocol() == "newstyle-fixed"
    assert h.can_df() == structured and not h.is_read_only()
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * 2**20
    data = bytes(range(256)) * 1024
    for flags in (0, nbd.CMD_FLAG_FUA):
        h.pwrite(data, 12345, flags)
        assert h.pread(len(data), 12345) == data
    h.zero(65536, 20000, nbd.CMD_FLAG_NO_HOLE)
    assert h.pread(65536, 20000) == bytes(65536)
    h.trim(2**20, 0, nbd.CMD_FLAG_FUA)
    h.cache(2**20, 0)
    h.flush()
    h.set_strict_mode(0)
    for what, code in (
            (lambda: h.pwrite(b"x" * 512, 64 * 2**20), errno.ENOSPC),
            (lambda: h.pread(512, 64 * 2**20), errno.EINVAL),
            (lambda: h.zero(512, 64 * 2**20), errno.ENOSPC),
            (lambda: h.pread(512, 0, 0x40), errno.EINVAL),
            (lambda: h.block_status(512, 0, lambda *a: 0), errno.EINVAL)):
        try:
            what()
        except nbd.Error as e:
            assert e.errnum in (code, errno.ENOTSUP), (e.errnum, code)
        else:
            raise AssertionError("no error")
    # Many requests in flight.
    bufs = [nbd.Buffer.from_bytearray(bytearray([i]) * 4096) for i in range(64)]
    cookies = [h.aio_pwrite(b, i * 4096) for i, b in enumerate(bufs)]
    while h.aio_in_flight():
        h.poll(-1)
    assert all(h.aio_command_completed(c) for c in cookies)
    h.flush()
    for i in range(64):
        assert h.pread(4096, i * 4096) == bytes([i]) * 4096
    h.shutdown()

# With everything that libnbd checks switched on, and several contexts.
h = connect(True, contexts=["base:allocation", "qemu:allocation-depth"])
seen = {}
h.block_status(64 * 2**20, 0,
               lambda name, at, ext, err: seen.__setitem__(name, ext))
assert set(seen) == {"base:allocation", "qemu:allocation-depth"}, seen
assert sum(seen["base:allocation"][::2]) == 64 * 2**20
one = []
h.block_status(64 * 2**20, 0, lambda name, at, ext, err: one.append(ext),
               nbd.CMD_FLAG_REQ_ONE)
assert all(len(e) == 2 for e in one)
h.shutdown()

# Option by option.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(sys.argv[1])
names = []
assert h.opt_list(lambda name, text: names.append(name)) == 3
assert names == ["a", "b", "c"]
h.set_export_name("nosuch")
for call in (h.opt_info, h.opt_go):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == errno.ENOENT, e
    else:
        raise AssertionError("an export that is not there")
h.set_export_name("a")
h.opt_info()
assert h.get_size() == 16 * 2**20
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
assert "base:allocation" in contexts
h.set_export_name("b")
h.opt_go()
assert h.get_size() == 64 * 2**20
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(sys.argv[1])
h.opt_abort()
END

# nbdkit as a client of ours and a server for others.
nbdkit -f -U nbdkit.sock -P nbdkit.pid nbd socket="$sock" export=a &
at_exit kill $!
has_pid() {
    [ -s nbdkit.pid ]
}
wait_until 'nbdkit is ready' has_pid
nbdcopy "nbd+unix:///?socket=$PWD/nbdkit.sock" out.raw
cmp out.raw model.raw
nbdinfo --map --json "nbd+unix:///?socket=$PWD/nbdkit.sock" >map.nbdkit
nbdinfo --map --json "$(uri_of a)" >map.ours
cmp map.nbdkit map.ours

# The reference client lists, and is told what an export is.
if client=$(command -v nbd-client || ls /usr/sbin/nbd-client 2>/dev/null); then
    "$client" -l 127.0.0.1 -p "$port" >list 2>&1 || fail "$(cat list)"
    grep -qx 'm' list || grep -q '^m' list || fail "$(cat list)"
fi
[ "$(nbdinfo --size "$tcp")" = 1048576 ]
nbdinfo --list "nbd://127.0.0.1:$port" | grep -q 'description: memory'

# fio checks what it has written, with many requests in flight, on several
# connections at once.
fio --name=v --ioengine=nbd --uri="$(uri_of b)" --rw=randrw --bs=4k-64k \
    --iodepth=32 --size=32M --io_size=24M --verify=crc32c --verify_fatal=1 \
    --do_verify=1 >fio.out 2>&1 || fail "$(tail -n 20 fio.out)"

# qemu-img both ways: what it writes is what nbdcopy reads.
qemu-img convert -n -W -m 8 -f raw -O raw model.raw "$(uri_of c)"
nbdcopy "$(uri_of c)" copy.raw
cmp copy.raw model.raw
qemu-img compare -q -f raw -F raw "$(uri_of a)" "$(uri_of c)"
qemu-img convert -f raw -O qcow2 "$(uri_of c)" copy.qcow2
qemu-img compare -q -f raw -F qcow2 model.raw copy.qcow2
stop_server
qemu-img check -q b.qcow2
qemu-img check -q c.qcow2
