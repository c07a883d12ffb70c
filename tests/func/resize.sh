#!/bin/bash
# nbdelta resize beside qemu-img resize: sizes, contents, the room that is taken
# and given back; what is refused.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

virtual_size() {
    qemu-img info --output=json "$1" | jq '."virtual-size"'
}

blocks() { # bytes that the file takes
    echo $(($(stat -c %b "$1") * 512))
}

# Both resize a copy of the image: OPTIONS... IMAGE SIZE
both() {
    local image=${*: -2:1} size=${*: -1} options=("${@:1:$#-2}")
    cp --sparse=always "$image" ours
    cp --sparse=always "$image" theirs
    nbdelta resize "${options[@]}" ours "$size" >out
    grep -qx 'Image resized.' out
    qemu-img resize -q "${options[@]}" theirs "$size"
    [ "$(virtual_size ours)" = "$(virtual_size theirs)" ] ||
        fail "$*: $(virtual_size ours) bytes, not $(virtual_size theirs)"
    qemu-img compare -q -f "$format" -F "$format" ours theirs ||
        fail "$*: the disks differ"
    if [ "$format" = qcow2 ]; then
        qemu-img check -q ours || fail "$*: $(qemu-img check ours 2>&1)"
    fi
}

# A refusal changes nothing.
refused() { # TEXT OPTIONS... IMAGE SIZE
    local text=$1 image=${*: -2:1} rc=0
    shift
    sha256sum "$image" >sum
    nbdelta resize "$@" >out 2>err || rc=$?
    [[ $rc = [1245] ]] || fail "$*: exit status $rc"
    grep -qi -- "$text" err || fail "$*: $(cat err)"
    sha256sum --quiet -c sum || fail "$*: has changed the image"
}

for options in qcow2: qcow2:cluster_size=4k,refcount_bits=1 \
    qcow2:cluster_size=2M raw:; do
    format=${options%%:*} wanted=${options#*:}
    qemu-img create -q -f "$format" ${wanted:+-o "$wanted"} disk 20M
    qemu-io -f "$format" -c 'write -q -P 1 0 1M' -c 'write -q -P 2 7M 64k' \
        -c 'write -q -P 3 17M 3M' disk
    f=(-f "$format")
    both "${f[@]}" disk 40M
    both "${f[@]}" --preallocation=off disk +512
    both "${f[@]}" --shrink disk 12700672
    [ "$(blocks ours)" -le $((12 << 20)) ] || fail "$options: $(blocks ours)"
    [ "$(stat -c %s ours)" -le $(($(stat -c %s theirs) + (2 << 20))) ] ||
        fail "$options: the file is not cut"
    both "${f[@]}" --shrink disk -15M
    # What was cut off does not come back.
    nbdelta resize -q "${f[@]}" ours 20M
    qemu-io -f "$format" -c 'read -q -P 0 5M 15M' ours
    cp --sparse=always disk before
    for mode in falloc full; do
        both "${f[@]}" --preallocation=$mode disk +8M
        [ "$(blocks ours)" -ge $(($(blocks before) + (7 << 20))) ] ||
            fail "$options: $mode takes $(blocks ours) bytes"
    done
done
refused metadata -f raw --preallocation=metadata disk +8M

qemu-img create -q -f qcow2 disk 20M
qemu-io -c 'write -q -P 1 0 64k' disk
refused shrink disk 1M
refused shrink disk -1M
refused 'for growing' --shrink --preallocation=full disk 1M
refused 'must be positive' --shrink disk -20M
refused 'must be positive' --shrink disk 0
refused 'not a size' disk +-1M
refused 'not a size' disk big
refused 'too large' disk +8191P
refused 'preallocation' --preallocation=some disk +1M
refused 'multiple of 512' disk +1000

# Clusters, and no data: all of it is mapped.
format=qcow2
qemu-img create -q -f qcow2 disk 1M
both -f qcow2 --preallocation=metadata disk +8M
[ "$(qemu-img map --output=json ours | jq 'map(select(.start >= 1048576 and
    .offset) | .length) | add')" = $((8 << 20)) ]
[ "$(blocks ours)" -lt $((4 << 20)) ]

# A longer backing file does not show.
qemu-img create -q -f raw base.raw 8M
qemu-io -f raw -c 'write -q -P 9 0 8M' base.raw
qemu-img create -q -f qcow2 -b base.raw -F raw disk 4M
for mode in off metadata; do
    cp disk ours
    nbdelta resize -q --preallocation=$mode ours +6M
    qemu-io -c 'read -q -P 9 0 4M' -c 'read -q -P 0 4M 6M' ours
    qemu-img check -q ours
done

# Bitmaps have its length, and what has grown is dirty.
qemu-img create -q -f qcow2 disk 4M
qemu-img bitmap --add disk b0
nbdelta resize -q disk 6M
[ "$(nbdelta bitmap list --output=json disk | jq '.[0].count // .[0]."dirty-bytes"')" \
    = $((2 << 20)) ] || fail "$(nbdelta bitmap list --output=json disk)"
nbdelta resize -q --shrink disk 2M
nbdelta check -q disk
qemu-img check -q disk

# Where there is no room, the disk stays as it was.
if (ulimit -f 40960; nbdelta resize -q --preallocation=full disk +1G) 2>err
then
    fail "room for a gigabyte below a limit of 40 MiB"
fi
[ "$(virtual_size disk)" = $((2 << 20)) ]
qemu-img check -q disk
[ "$(stat -c %s disk)" -lt $((2 << 20)) ]

# An image that is in use.
serve disk0=disk
refused lock disk +1M
stop_server

# Bitmaps change with the size at once: the extension that leads to them is in
# the sector that has the size, wherever another program has put it.
for options in compat=1.1 backing_file=none.qcow2,backing_fmt=qcow2; do
    rm -f none.qcow2 disk
    qemu-img create -q -f qcow2 none.qcow2 16M
    qemu-img create -q -f qcow2 -o "$options" disk 16M
    qemu-img bitmap --add disk b0
    qemu-io -f qcow2 -c 'write 12M 1M' -c 'write 1M 64k' disk >out
    for size in 8M 24M; do
        nbdelta resize --shrink disk $size >out
        head -c 512 disk | LC_ALL=C grep -aqP '\x23\x85\x28\x75' ||
            fail "$options, $size: the extension is behind the first sector"
        head -c 4096 disk | tail -c +513 | LC_ALL=C grep -aqP \
            '\x23\x85\x28\x75' && fail "$options, $size: there are two"
        qemu-img check -q disk
        [ "$(qemu-img info --output=json disk |
            jq -c '."format-specific".data.bitmaps | map([.name, .flags])')" \
            = '[["b0",["auto"]]]' ] || fail "$options, $size: $(
                qemu-img info disk)"
    done
    nbdelta map --bitmap b0 --output json disk | jq -ce 'map(select(.dirty) |
        [.start, .length]) == [[1048576, 65536], [8388608, 16777216]]' >out ||
        fail "$options: $(nbdelta map --bitmap b0 --output json disk)"
done
