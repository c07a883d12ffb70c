#!/bin/bash
# nbdelta check: exit statuses and JSON are those of qemu-img check; images that
# are damaged at random are found and repaired (check_campaign.py).
set -eu -o pipefail
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

status() { # COMMAND...
    local rc=0
    "$@" >out 2>err || rc=$?
    echo $rc
}

hex() { # FILE OFFSET BYTES
    od -An -v -tx1 -j "$2" -N "$3" "$1" | tr -d ' \n'
}

same_json() { # IMAGE
    diff <(qemu-img check --output=json "$1" 2>err | jq -S .) \
        <(nbdelta check --output=json "$1" 2>err | jq -S .) ||
        fail "$1: not what qemu-img says"
}

qemu-img create -q -f qcow2 disk.qcow2 64M
same_json disk.qcow2
qemu-io -c 'write 1M 5M' -c 'write 40M 64k' disk.qcow2 >out
qemu-io -c 'write -c 50M 64k' disk.qcow2 >out
same_json disk.qcow2
qemu-img snapshot -c one disk.qcow2
qemu-io -c 'write 2M 64k' disk.qcow2 >out
qemu-img bitmap --add disk.qcow2 b0
same_json disk.qcow2
[ "$(status nbdelta check disk.qcow2)" = 0 ]
grep -qx 'No errors were found on the image.' out
[ "$(status nbdelta check -q disk.qcow2)" = 0 ] && [ ! -s out ]

# A data file has each cluster at its place, also where a second L2 table has it.
qemu-img create -q -f qcow2 -o data_file=far.data,cluster_size=4k far.qcow2 8M
qemu-io -c 'write 5M 64k' far.qcow2 >out
[ "$(status nbdelta check far.qcow2)" = 0 ] || fail "far.qcow2: $(cat out err)"

# Set a count in the first refcount block: IMAGE CLUSTER COUNT.
count() {
    local table block
    table=$((16#$(hex "$1" 48 8)))
    block=$((16#$(hex "$1" $table 8)))
    printf '%b' "\\0\\0$3" | dd of="$1" bs=1 seek=$((block + $2 * 2)) \
        conv=notrunc status=none
}
cp disk.qcow2 leak.qcow2
count leak.qcow2 0 2
[ "$(status nbdelta check leak.qcow2)" = 3 ]
[ "$(status qemu-img check leak.qcow2)" = 3 ]
[ "$(status nbdelta check --repair leaks leak.qcow2)" = 0 ]
cmp disk.qcow2 leak.qcow2
# Behind the end of the file, which qemu-img does not see.
count leak.qcow2 30000 1
[ "$(status nbdelta check leak.qcow2)" = 3 ]
[ "$(status nbdelta check -r all leak.qcow2)" = 0 ]
cmp disk.qcow2 leak.qcow2

# A count that is too high where an entry says that there is one reference, as
# qemu-img sees it; and one that hides that COPIED is missing: it has it then.
qemu-img create -q -f qcow2 high.qcow2 1M
qemu-io -c 'write 0 256k' high.qcow2 >out
cp high.qcow2 sound.qcow2
count high.qcow2 5 2
[ "$(status qemu-img check high.qcow2)" = 2 ]
[ "$(status nbdelta check high.qcow2)" = 2 ] || fail "COPIED and 2: $(cat out)"
[ "$(status nbdelta check -r leaks high.qcow2)" = 0 ] || fail "$(cat out err)"
cmp high.qcow2 sound.qcow2
qemu-img snapshot -c one high.qcow2
dd if=/dev/zero of=high.qcow2 bs=1 seek=60 count=12 conv=notrunc status=none
[ "$(status qemu-img check high.qcow2)" = 3 ]
[ "$(status nbdelta check high.qcow2)" = 3 ] || fail "only leaks: $(cat out)"
[ "$(status nbdelta check -r leaks high.qcow2)" = 0 ] || fail "$(cat out err)"
[ "$(status qemu-img check high.qcow2)" = 0 ]

# No snapshots, at a place where QEMU lets none be.
cp sound.qcow2 place.qcow2
printf '\1' | dd of=place.qcow2 bs=1 seek=71 conv=notrunc status=none
[ "$(status qemu-img check place.qcow2)" = 1 ]
[ "$(status nbdelta check place.qcow2)" = 2 ]
[ "$(status nbdelta check -r all place.qcow2)" = 0 ]
[ "$(status qemu-img check place.qcow2)" = 0 ]

# An L1 entry that leads nowhere.
cp disk.qcow2 bad.qcow2
l1=$((16#$(hex bad.qcow2 40 8)))
printf '\200\1\0\0\0\0\0\0' |
    dd of=bad.qcow2 bs=1 seek=$l1 conv=notrunc status=none
sha256sum bad.qcow2 >sum
[ "$(status nbdelta check bad.qcow2)" = 2 ]
[ "$(status nbdelta check -r leaks bad.qcow2)" = 2 ]
sha256sum --quiet -c sum || fail "-r leaks has written to a corrupt image"
[ "$(status nbdelta check -r all --output=json bad.qcow2)" = 0 ]
[ "$(jq -c .lost out)" = '[{"start":0,"length":67108864}]' ] || fail "$(cat out)"
[ "$(status qemu-img check bad.qcow2)" = 0 ]
cmp -n $((64 << 20)) <(qemu-img dd -O raw if=bad.qcow2 of=bad.raw >/dev/null &&
    cat bad.raw) /dev/zero

# No refcounts at all: no open accepts it, a check mends it.
cp disk.qcow2 none.qcow2
printf '\0\0\0\0' | dd of=none.qcow2 bs=1 seek=56 conv=notrunc status=none
[ "$(status nbdelta info none.qcow2)" = 1 ]
[ "$(status nbdelta check none.qcow2)" = 2 ]
[ "$(status nbdelta check -r all none.qcow2)" = 0 ]
[ "$(status qemu-img check none.qcow2)" = 0 ]
qemu-img compare -q disk.qcow2 none.qcow2

# The corrupt and the dirty bit go when the image is sound.
cp disk.qcow2 marked.qcow2
printf '\3' | dd of=marked.qcow2 bs=1 seek=79 conv=notrunc status=none
[ "$(status nbdelta check -r all marked.qcow2)" = 0 ]
[ "$(hex marked.qcow2 72 8)" = 0000000000000000 ]
cmp disk.qcow2 marked.qcow2

# An image that a writer with lazy refcounts has left: it is repaired before it
# is written to.
qemu-img create -q -f qcow2 -o lazy_refcounts=on lazy.qcow2 64M
qemu-io -c 'write 0 1M' -c 'write 8M 1M' -c abort lazy.qcow2 >out 2>&1 || true
if [ "$(status nbdelta check lazy.qcow2)" = 2 ]; then
    cp lazy.qcow2 left.qcow2
    serve lazy=lazy.qcow2
    qemu-io -f raw -c 'read -P 205 8M 1M' -c 'write 20M 1M' "$(uri_of lazy)" \
        >out
    stop_server
    [ "$(status nbdelta check lazy.qcow2)" = 0 ]
    [ "$(status qemu-img check lazy.qcow2)" = 0 ]
    qemu-io -c 'read -P 205 0 1M' lazy.qcow2 | grep -q '1 MiB'
else
    fail "an image that was left with lazy refcounts is no test: $(cat err)"
fi
# Too large for that, it says what to do.
qemu-img create -q -f qcow2 -o lazy_refcounts=on huge.qcow2 2T
printf '\1' | dd of=huge.qcow2 bs=1 seek=79 conv=notrunc status=none
serve_refused "run 'nbdelta check -r all'" huge=huge.qcow2
[ "$(status nbdelta check -r all huge.qcow2)" = 0 ]
serve huge=huge.qcow2
stop_server

# An image on a device: the room for a repair is behind its last cluster, and
# the device does not grow.
no_counts() { # DEVICE: its image has no refcount table
    printf '\0\0\0\0' | dd of="$1" bs=1 seek=56 conv=notrunc,fsync status=none
}
on_device() { # STATUS COMMAND...
    local want=$1 rc
    shift
    rc=$(status "$@")
    [ "$rc" = "$want" ] || fail "$*: $rc, not $want: $(cat out err)"
}
truncate -s 4M device.raw
if [ "$(id -u)" = 0 ] && loop=$(losetup -f --show device.raw 2>/dev/null); then
    at_exit losetup -d "$loop"
    on_device 0 qemu-img create -q -f qcow2 "$loop" 64M
    on_device 0 qemu-io -f qcow2 -c 'write -P 5 1M 1M' "$loop"
    no_counts "$loop"
    on_device 2 nbdelta check "$loop"
    on_device 0 nbdelta check -r all "$loop"
    on_device 0 nbdelta check "$loop"
    on_device 0 qemu-img check -f qcow2 "$loop"
    on_device 0 qemu-io -f qcow2 -c 'read -P 5 1M 1M' "$loop"
    # Without room for it, it says so, and nothing has changed.
    on_device 0 qemu-io -f qcow2 -c 'write -P 6 8M 2M' "$loop"
    on_device 0 qemu-img check --output=json -f qcow2 "$loop"
    truncate -s "$(jq '."image-end-offset"' out)" device.raw
    losetup -c "$loop" || fail "losetup -c"
    no_counts "$loop"
    sha256sum "$loop" >sum
    on_device 1 nbdelta check -r all "$loop"
    grep -q 'No space left' err || fail "$(cat err)"
    sha256sum --quiet -c sum || fail "a repair without room has written"
fi

# What cannot be checked, and what makes no sense.
truncate -s 1M raw.img
[ "$(status nbdelta check raw.img)" = 63 ]
grep -q 'does not support checks' err
[ "$(status nbdelta check no.qcow2)" = 1 ]
[ "$(status nbdelta check -f qcow2 raw.img)" = 1 ]
[ "$(status nbdelta check -r some disk.qcow2)" = 1 ]
[ "$(status nbdelta check -U -r all disk.qcow2)" = 1 ]
[ "$(status nbdelta check)" = 1 ]

# An image in use.
hold_image disk.qcow2
[ "$(status nbdelta check disk.qcow2)" = 5 ]
[ "$(status nbdelta check -U disk.qcow2)" = 0 ]
grep -q 'out of date' err
kill "$holder"
wait "$holder" || true

mkdir campaign
cd campaign
/usr/bin/python3 "$SRCDIR/tests/func/check_campaign.py" "$BUILD/nbdelta" 4
