#!/bin/bash
# nbdelta measure beside qemu-img measure; and a file of just that size is large
# enough for an image that is filled, restored, or backed up to.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq prlimit

secret=secret,id=s,data=abc
luks=encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1

ours() { # ARG...
    nbdelta measure --object $secret "$@"
}
# QEMU hashes for a while to measure a LUKS header, and fails where the clock of
# its CPU time jumps meanwhile.
theirs() { # ARG...
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        qemu-img measure --object $secret "$@" 2>qemu.err && return
        grep -q 'CPU usage' qemu.err || break
    done
    cat qemu.err
}

same() { # ARG...
    diff <(theirs "$@") <(ours "$@") || fail "measure $*"
}

# --- Empty disks ---

for options in "" cluster_size=4k cluster_size=2M extended_l2=on $luks \
    refcount_bits=1,cluster_size=8k compat=0.10 preallocation=full \
    preallocation=falloc,lazy_refcounts=on data_file=x \
    backing_file=x,backing_fmt=raw; do
    for size in 1000 2345M; do
        same -O qcow2 ${options:+-o "$options"} --size $size
    done
done
for size in 0 1000; do
    same -O raw --size $size
done
same -O qcow2 -o size=2G --size 512

# Where the refcount table grows while the disk is written, and where it has to
# count a LUKS header, qemu-img tells too little.
for options in cluster_size=512,refcount_bits=64 cluster_size=512,$luks \
    cluster_size=4k,refcount_bits=1; do
    a=$(theirs --output json -O qcow2 -o "$options" --size 64G |
        jq '."fully-allocated"')
    b=$(ours --output json -O qcow2 -o "$options" --size 64G |
        jq '."fully-allocated"')
    if [ "$b" -lt "$a" ] || [ $((b - a)) -ge $((a / 200)) ]; then
        fail "$options: $b bytes, qemu-img: $a"
    fi
done

# --- Disks with a content ---

qemu-img create -q -f qcow2 base.qcow2 32M
qemu-io -c 'write -q -P 1 0 1M' -c 'write -q -P 2 5000k 1k' base.qcow2
qemu-img snapshot -c old base.qcow2
qemu-io -c 'write -q -P 1 9M 3M' base.qcow2
qemu-img bitmap --add -g 512 base.qcow2 b0
qemu-img bitmap --add base.qcow2 a-longer-name
qemu-img create -q -f qcow2 -o cluster_size=4k,compat=0.10 \
    -b base.qcow2 -F qcow2 top.qcow2
qemu-io -c 'write -q -P 3 1M 100k' -c 'write -q -z 9M 1M' top.qcow2
qemu-img convert -c -O qcow2 -o cluster_size=4k base.qcow2 packed.qcow2
mkimg disk.raw 20M
truncate -s 20000000 disk.raw
for image in base.qcow2 top.qcow2 packed.qcow2 "-f raw disk.raw"; do
    # shellcheck disable=SC2086
    same -O qcow2 -o cluster_size=4k $image
done
for options in preallocation=full extended_l2=on,cluster_size=128k \
    backing_file=x,backing_fmt=raw compat=0.10; do
    same -O qcow2 -o "$options" base.qcow2
done
# QEMU counts the bitmaps of the disk, which say nothing about a snapshot.
diff <(theirs -O qcow2 -l old base.qcow2 | head -n 2) \
    <(ours -O qcow2 -l old base.qcow2 | head -n 2) || fail "measure -l"
same -U base.qcow2
diff <(theirs --output json -O qcow2 base.qcow2 | jq -S .) \
    <(ours --output json -O qcow2 base.qcow2 | jq -S .) || fail "JSON"
same -O qcow2 --image-opts driver=qcow2,file.filename=base.qcow2

# Over NBD it is what the server tells; a point is a disk.
want=$(nbdelta measure -O qcow2 base.qcow2 | grep -v bitmaps)
serve vda=base.qcow2
[ "$(nbdelta measure -O qcow2 "$(uri_of vda)")" = "$want" ]
stop_server
nbdelta backup base.qcow2 points
[ "$(nbdelta measure -O qcow2 points@latest | grep -v bitmaps)" = "$want" ]
[ "$(nbdelta measure -O qcow2 --disk base points | grep -v bitmaps)" = "$want" ]

# --- It is enough ---

# A command that finds no room behind BYTES.
within() { # BYTES COMMAND...
    prlimit --fsize="$1" "${@:2}"
}

fill() { # BYTES: write all of the disk, and back, within that
    prlimit --fsize="$1" "$nbdelta" serve -U "$sock" --pidfile "$pidfile" \
        --object $secret --blockdev "node-name=d,$node" \
        --export id=d,type=nbd,node-name=d,name=,writable=on 2>log &
    server=$!
    wait_until "the server is ready" server_ready
    qemu-io -f raw -c "write -q -P 5 0 $size" -c flush -c "read -q -P 5 0 $size" \
        "$uri" >out 2>&1 || true
    kill -TERM "$server"
    wait "$server" || true
    server=
    ! grep -i 'error\|failed' out >err
}

for options in cluster_size=2M cluster_size=512,refcount_bits=64 \
    refcount_bits=1,cluster_size=4k extended_l2=on,cluster_size=16k \
    $luks,cluster_size=512 cluster_size=64k; do
    size=11000320
    rm -f disk "$pidfile"
    full=$(ours --output json -O qcow2 -o "$options" --size $size |
        jq '."fully-allocated"')
    within "$full" "$nbdelta" create --object $secret -o "$options" disk $size
    node=driver=qcow2,file.driver=file,file.filename=disk
    case $options in *luks*) node+=,encrypt.key-secret=s ;; esac
    fill "$full" || fail "$options: $full bytes are too few: $(cat out)"
    [ "$(stat -c %s disk)" -gt $((full - full / 10)) ] ||
        fail "$options: $full bytes, and it takes only $(stat -c %s disk)"
done
# The limit is one.
rm -f disk "$pidfile"
nbdelta create disk "$size"
node=driver=qcow2,file.driver=file,file.filename=disk
fill $((full - (4 << 20))) && fail "the disk is full without room"

for mode in metadata full; do
    rm -f disk
    full=$(ours --output json -O qcow2 -o cluster_size=512,preallocation=$mode \
        --size 11M | jq '."fully-allocated"')
    within "$full" "$nbdelta" create -o cluster_size=512,preallocation=$mode \
        disk 11M
done

# A copy, into what its content takes.
needed=$(nbdelta measure --output json -O qcow2 points | jq .required)
within "$needed" "$nbdelta" restore points base=copy.qcow2 >out
nbdelta compare -q copy.qcow2 points
qemu-img convert -O raw base.qcow2 base.raw # nothing is written to this one
within "$needed" "$nbdelta" backup --compress none base.raw points2
nbdelta compare -q base.qcow2 points2

# --- What makes no sense ---

refused() { # STATUS TEXT ARG...
    local status=$1 text=$2 rc=0
    shift 2
    nbdelta measure "$@" >out 2>err || rc=$?
    if [ "$rc" != "$status" ] || ! grep -q -- "$text" err; then
        fail "measure $*: $rc, $(cat err)"
    fi
}
refused 2 'give either --size' -O qcow2
refused 2 '--size cannot be used' --size 1G base.qcow2
refused 2 'need a disk' --size 1G -l old
refused 2 'is not a size' --size 1x
refused 1 "Unknown file format 'vmdk'" --size 1G -O vmdk
refused 1 'does not support' --size 1G -O file
refused 1 'Cluster size must be' --size 1G -O qcow2 -o cluster_size=3k
refused 1 'too large' --size 3T -O qcow2 -o cluster_size=512
refused 1 'encrypt.key-secret' --size 1G -O qcow2 -o encrypt.format=luks
refused 1 "option 'colour'" --size 1G -O qcow2 -o colour=red
refused 6 'No such file' -O qcow2 none.qcow2
refused 6 'snapshot' -O qcow2 -l none base.qcow2
nbdelta measure -O qcow2 -o help >out
grep -q cluster_size out
