#!/bin/bash
# nbdelta create: qemu-img finds in the image what was asked for; what makes
# no sense is refused with a reason, and leaves nothing behind.
set -eu -o pipefail

PATH=$BUILD:$PATH

# The member $2 of qemu-img's description of $1.
member() {
    qemu-img info --output json "$1" | jq -r "$2"
}

is() {
    local got
    got=$(member "$1" "$2")
    [ "$got" = "$3" ] || { echo "$1: $2 is $got, not $3"; exit 1; }
}

out=$(nbdelta create a.qcow2 1G)
[ -z "$out" ]
is a.qcow2 .format qcow2
is a.qcow2 '."virtual-size"' 1073741824
is a.qcow2 '."cluster-size"' 65536
is a.qcow2 '."format-specific".data.compat' 1.1
qemu-img check -q a.qcow2

nbdelta create -o cluster_size=4k,refcount_bits=1 -o compression_type=zstd \
    --options=lazy_refcounts=on b.qcow2 1.5M
is b.qcow2 '."virtual-size"' 1572864
is b.qcow2 '."cluster-size"' 4096
is b.qcow2 '."format-specific".data."refcount-bits"' 1
is b.qcow2 '."format-specific".data."compression-type"' zstd
is b.qcow2 '."format-specific".data."lazy-refcounts"' true
qemu-img check -q b.qcow2

nbdelta create -o extended_l2=on,cluster_size=16k x.qcow2 1M
is x.qcow2 '."format-specific".data."extended-l2"' true
is a.qcow2 '."format-specific".data."extended-l2"' false
nbdelta info x.qcow2 >told
grep -q 'extended l2: true' told
qemu-img check -q x.qcow2

nbdelta create -o compat=0.10,size=3M c.qcow2
is c.qcow2 '."format-specific".data.compat' 0.10
is c.qcow2 '."virtual-size"' 3145728

nbdelta create -f raw d.img 1M
[ "$(stat -c %s d.img)" = 1048576 ]
nbdelta create -f raw -o preallocation=full e.img 256k
[ "$(($(stat -c '%b * %B' e.img)))" -ge 262144 ]
nbdelta create -o preallocation=metadata f.qcow2 8M
qemu-img check -q f.qcow2
[ "$(qemu-img map --output json f.qcow2 |
    jq 'map(select(.offset).length) | add')" = 8388608 ]

# Backing: size from it, names relative to the new image.
mkdir sub
nbdelta create -b ../a.qcow2 -F qcow2 sub/top.qcow2
is sub/top.qcow2 '."virtual-size"' 1073741824
is sub/top.qcow2 '."backing-filename"' ../a.qcow2
is sub/top.qcow2 '."backing-filename-format"' qcow2
nbdelta create --backing a.qcow2 --backing-format qcow2 larger.qcow2 2G
is larger.qcow2 '."virtual-size"' 2147483648

# An image is replaced.
nbdelta create b.qcow2 64k
is b.qcow2 '."virtual-size"' 65536

nbdelta create -o help >offers
grep -q '^  cluster_size ' offers
nbdelta create -o help -f raw >raw-help
grep -q '^  preallocation ' raw-help
if grep -q '^  cluster_size ' raw-help; then
    echo "raw has no clusters"
    exit 1
fi

# $1: exit status, $2: a part of the message.
refused() {
    local status=$1 expected=$2 rc=0
    shift 2
    nbdelta create "$@" >out 2>message </dev/null || rc=$?
    if [ "$rc" -ne "$status" ] || [ -s out ] ||
        ! head -n 1 message | grep -q "^nbdelta: create: .*$expected"; then
        echo "nbdelta create $*: status $rc:"
        cat message
        exit 1
    fi
}
refused 2 'which file'
refused 2 'a size is needed' x
refused 2 "'1Q' is not a size" x 1Q
refused 2 'too many arguments' x 1M y
refused 2 "no option '--bogus'" --bogus x 1M
refused 2 "'-f' needs an argument" x 1M -f
refused 1 "nosuch" -f nosuch x 1M
refused 1 "bogus" -o bogus=1 x 1M
refused 1 'Cluster size' -o cluster_size=3000 x 1M
refused 6 'nosuch' -b nosuch -F qcow2 x
refused 1 'format' -b a.qcow2 x
refused 6 'nodir' nodir/x.qcow2 1M
[ ! -e x ]
