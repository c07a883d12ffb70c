#!/bin/bash
# Writing through the plugin: what clients of several connections wrote is in
# the image after a stop and, once flushed, after kill -9; bitmaps have it.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_plugin
need nbdinfo nbdcopy qemu-io qemu-img fio jq

guest() {
    qemu-io -f raw "$@" "$uri" >/dev/null
}
bitmap_flags() {
    qemu-img info --output=json "$1" | jq -c '."format-specific".data.bitmaps |
        sort_by(.name) | map({(.name): .flags}) | add'
}
runs() {
    nbdinfo --map --json "nbd+unix:///@dirty=$1?socket=$sock" |
        jq -c '[.[] | select(.type == 0) | [.offset, .length]]'
}
# A crash may leak clusters (3), nothing else.
sound() {
    local rc=0
    qemu-img check -q "$1" >check.out || rc=$?
    [ "$rc" -eq 0 ] || [ "$rc" -eq 3 ] || fail "$1: $(cat check.out)"
}

# In and out again, by a client of several connections.
mkimg data.raw 48M 5
nbdelta create disk.qcow2 48M
serve_plugin disk.qcow2 bitmap=b0 bitmap=b1
nbdinfo --can multi-conn "$uri"
nbdinfo --can fua "$uri"
nbdinfo --can flush "$uri"
nbdinfo --can trim "$uri"
nbdinfo --can fast-zero "$uri"
nbdcopy -C 4 data.raw "$uri"
rm -f out.raw
nbdcopy -C 4 "$uri" out.raw
cmp data.raw out.raw
nbdinfo --map --json "$uri" | jq -e 'map(.type) | index(0) and index(3)' \
    >/dev/null
# Refused while we write, as between two of QEMU's.
if qemu-io -f qcow2 -c 'write 0 4k' disk.qcow2 >out 2>&1; then
    fail "QEMU writes into what we write"
fi
grep -q 'Failed to get "write" lock' out
plugin_refused 'is another process using the image' disk.qcow2
stop_plugin
qemu-img check -q disk.qcow2
qemu-img compare -f qcow2 -F raw disk.qcow2 data.raw
[ "$(bitmap_flags disk.qcow2)" = '{"b0":["auto"],"b1":["auto"]}' ]

# Four clients at once, each of which looks again at what it wrote.
serve_plugin disk.qcow2
fio --name=b --ioengine=nbd --uri="$uri" --rw=randrw --bs=4k --iodepth=8 \
    --numjobs=4 --size=12M --offset_increment=12M --io_size=6M \
    --verify=crc32c --verify_fatal=1 --output=fio.out
stop_plugin
qemu-img check -q disk.qcow2

# The same with subclusters, over a backing file.
nbdelta create -o extended_l2=on -b disk.qcow2 -F qcow2 over.qcow2
serve_plugin over.qcow2
fio --name=b --ioengine=nbd --uri="$uri" --rw=randrw --bs=2k --iodepth=8 \
    --numjobs=4 --size=12M --offset_increment=12M --io_size=2M \
    --verify=crc32c --verify_fatal=1 --output=fio.out
stop_plugin
qemu-img check -q over.qcow2

# Bits are those of writes, zeroes and trims; zeroes read as such.
qemu-img bitmap --remove disk.qcow2 b1
qemu-img bitmap --clear disk.qcow2 b0
serve_plugin disk.qcow2 bitmap=b0
guest -c 'write -P 7 1M 4k' -c 'write -f -P 8 2M 64k' -c 'write -z 3M 64k' \
    -c 'write -zu 4M 64k' -c 'discard 5M 64k'
want='[[1048576,65536],[2097152,65536],[3145728,65536],[4194304,65536],[5242880,65536]]'
[ "$(runs b0)" = "$want" ] || fail "bits $(runs b0)"
looks_like() {
    qemu-io -f "$1" -r "${@:3}" "$2" >io.out
    ! grep 'verification failed' io.out || fail "$2 has other data"
}
looks_like raw "$uri" -c 'read -P 7 1M 4k' -c 'read -P 0 3M 64k' \
    -c 'read -P 0 4M 64k'

# Killed: what was flushed is there, and the bitmap is as good as before.
guest -c 'write -P 9 40M 1M' -c flush
kill_server
sound disk.qcow2
[ "$(bitmap_flags disk.qcow2)" = '{"b0":["auto"]}' ]
looks_like qcow2 disk.qcow2 -c 'read -P 9 40M 1M' -c 'read -P 8 2M 64k'
serve_plugin disk.qcow2 bitmap=b0
nbdinfo --map --json "nbd+unix:///@dirty=b0?socket=$sock" | jq -e --argjson w \
    '[[1048576,65536],[5242880,65536],[41943040,1048576]]' '
    [.[] | select(.type == 0)] as $d | $w | all(. as [$at, $len] | $d |
    any(.offset <= $at and .offset + .length >= $at + $len))' >/dev/null
guest -c 'write -P 10 44M 64k'
stop_plugin
sound disk.qcow2

# A bitmap that cannot be what is asked for.
qemu-img bitmap --disable disk.qcow2 b0
plugin_refused "the bitmap 'b0' of 'disk0' is disabled" disk.qcow2 bitmap=b0
plugin_refused "bitmap=b0: Can't store persistent bitmaps to disk0" data.raw format=raw bitmap=b0
[ "$(bitmap_flags disk.qcow2)" = '{"b0":[]}' ]


# Several exports, each with a name; nbdkit in the background, which changes
# its directory and forks, which threads of remote disks do not survive; and
# paths in options.
names() {
    nbdinfo --list --json "$uri" | jq -c '[.exports[]."export-name"]'
}
qemu-img create -q -f qcow2 a.qcow2 1M
qemu-img bitmap --add a.qcow2 x
qemu-nbd -r -t -f raw -k "$PWD/far.sock" --pid-file="$PWD/far.pid" out.raw &
far=$!
wait_until "qemu-nbd is ready" test -s far.pid
remote="far:nbd+unix:///?socket=$PWD/far.sock"
if [ -n "${SANITIZE-}" ]; then
    # With libnbd and a preloaded runtime nbdkit hangs in exit().
    cp out.raw copy.raw
    remote=far:copy.raw
fi
rm -f "$pidfile"
run_nbdkit -U "$sock" -P "$pidfile" "$plugin" a:a.qcow2 data.raw "$remote" \
    blockdev='{"driver": "qcow2", "node-name": "c", "file": {"driver": "file",
        "filename": "disk.qcow2"}}' &
wait_until "nbdkit is ready" test -s "$pidfile"
daemon=$(cat "$pidfile")
at_exit kill "$daemon" "$far"
[ "$(names)" = '["a","a@dirty=x","disk1","far","c","c@dirty=b0"]' ] ||
    fail "$(names)"
[ "$(nbdinfo --json "$uri" | jq -r '.exports[0]."export-name"')" = a ]
[ "$(nbdinfo --size "$(uri_of c)")" = $((48 << 20)) ]
nbdcopy "$(uri_of disk1)" near.raw
cmp data.raw near.raw
nbdcopy "$(uri_of far)" far.raw
cmp out.raw far.raw
for name in d a@dirty=y d@dirty=x @dirty= a@dirty; do
    if nbdcopy "$(uri_of "$name")" null: 2>err; then
        fail "there is an export $name"
    fi
    grep -q "has no export named '$name'" err
done
kill "$daemon" "$far"
exit_commands=()
wait "$far" || true
ended() {
    ! kill -0 "$daemon" 2>/dev/null
}
wait_until "nbdkit has ended" ended
rm "$sock"

# A raw disk with bitmaps in a qcow2 image beside it.
truncate -s 8M plain.img
nbdelta create --track plain.img --bitmap t track.qcow2
serve_plugin track.qcow2
guest -c 'write -P 6 1M 64k'
[ "$(runs t)" = '[[1048576,65536]]' ]
stop_plugin
looks_like raw plain.img -c 'read -P 6 1M 64k'
qemu-img check -q track.qcow2

# Writes that are to be durable at once are flushed; others wait for a flush.
broken=qcow2,discard=unmap,file.driver=blkdebug,file.image.driver=file,file.image.filename=a.qcow2,file.inject-error.0.event=flush_to_disk
cat >flushes.py <<'END'
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
def fails(call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errno == "EIO", e
        return True
    return False
data = bytearray(b"x" * 4096)
through = sys.argv[2] == "through"
assert fails(h.pwrite, data, 0) == through
assert fails(h.zero, 4096, 65536) == through
assert fails(h.trim, 65536, 131072) == through
assert fails(h.pwrite, data, 0, nbd.CMD_FLAG_FUA)
assert fails(h.zero, 4096, 65536, nbd.CMD_FLAG_FUA)
assert fails(h.trim, 65536, 131072, nbd.CMD_FLAG_FUA)
assert fails(h.flush)
END
serve_plugin blockdev="$broken"
python flushes.py "$uri" back
kill_server
serve_plugin blockdev="$broken" cache=writethrough
python flushes.py "$uri" through
kill_server

# Where it may only read, clients may, too.
if [ "$(id -u)" -ne 0 ]; then
    chmod 400 data.raw
    serve_plugin data.raw
    nbdinfo --is read-only "$uri"
    stop_plugin
fi

# Each says what to write instead.
plugin_refused "which image? Write file=IMAGE"
plugin_refused "nosuch.qcow2': No such file or directory" nosuch.qcow2
plugin_refused "there is no parameter 'readonly': write 'nbdkit -r" readonly=on \
    a.qcow2
plugin_refused "unknown parameter 'bogus': 'nbdkit nbdelta --help' lists all" \
    bogus=1 a.qcow2
plugin_refused "cache=fast makes no sense: write one of writeback, " \
    cache=fast a.qcow2
plugin_refused "cache= is given twice" cache=none cache=none a.qcow2
plugin_refused "cache=none and direct=off contradict each other" \
    cache=none direct=off a.qcow2
plugin_refused "format= has no value" format= a.qcow2
plugin_refused "Unknown file format 'vmdk' (formats are qcow2 and raw)" format=vmdk a.qcow2
plugin_refused "backing=maybe makes no sense: write one of off, on" \
    backing=maybe a.qcow2
plugin_refused "discard= is for images of file=: write 'discard' into" \
    discard=ignore blockdev="$broken"
plugin_refused "two exports have the name 'a': give one of them another" \
    a:a.qcow2 a:data.raw
plugin_refused "bitmap=x is given twice" bitmap=x bitmap=x a.qcow2
plugin_refused "blockdev=: JSON, line 1" blockdev='{' a.qcow2
plugin_refused "cannot resolve the path" allow-path=nosuch a.qcow2
plugin_refused "driver 'raw' does not take the option 'bitmap-durability'" \
    bitmap-durability=power data.raw
