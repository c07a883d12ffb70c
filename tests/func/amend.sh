#!/bin/bash
# nbdelta amend beside qemu-img amend: the same properties and the same disk,
# for QEMU too; what is refused has changed nothing.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

properties() { # IMAGE
    qemu-img info --output json "$1" | jq -Sc '[."virtual-size",
        ."backing-filename", ."backing-filename-format", ."format-specific",
        (.snapshots // [] | map(.name))]'
}

sound() { # IMAGE
    nbdelta check -q "$1" || fail "$what: nbdelta check $1"
    qemu-img check -q "$1" || fail "$what: qemu-img check $1"
}

make() { # OPTIONS [BACKING...]
    rm -f disk
    qemu-img create -q -f qcow2 "${@:2}" -o "$1" disk 20000k
    qemu-io -c 'write -q -P 1 0 1M' -c 'write -q -z 512k 3M' \
        -c 'write -q -z 19M 544k' -c 'write -q -P 2 8M 64k' \
        -c 'write -q -P 3 9M 1M' -c 'discard -q 9M 128k' disk
    cp disk before
}

# Ours, and theirs, of the same image.
both() { # OPTIONS
    what=$1
    cp disk theirs
    nbdelta amend -f qcow2 -o "$1" disk
    qemu-img amend -f qcow2 -o "$1" theirs
    [ "$(properties disk)" = "$(properties theirs)" ] ||
        fail "$what: $(properties disk), not $(properties theirs)"
    qemu-img compare -q disk before || fail "$what: the disk has changed"
    sound disk
}

amend() { # OPTIONS WANTED-JQ
    what=$1
    nbdelta amend -q -o "$1" disk
    qemu-img info -U --output json disk | jq -e "$2" >out ||
        fail "$what: $(qemu-img info disk)"
    sound disk
}

qemu-img create -q -f qcow2 base 32M
qemu-io -c 'write -q -P 9 0 32M' base
for options in cluster_size=4k cluster_size=64k,lazy_refcounts=on; do
    backing=
    [ "$options" = cluster_size=4k ] || backing=base
    make $options ${backing:+-b "$backing" -F qcow2}
    both lazy_refcounts=on
    both lazy_refcounts=off,compat=v3
    both compat=0.10
    both compat=v2
    # Data that is written now, and zeroes, are as they should be.
    for image in disk before; do
        qemu-io -c 'write -q -P 7 600k 1k' -c 'write -q -P 8 19M 4k' $image
    done
    both compat=1.1,lazy_refcounts=on
    both size=20001k
    qemu-io -c 'write -q -z 4M 4M' disk
    cp disk before
    both size=25M,compat=0.10
done

# Names of backing files.
specific='."format-specific".data'
long=$(printf 'd%.0s' {1..200})
cp base "$long"
make cluster_size=4k
for i in 1 2 3; do
    for name in base "$long" ./base; do
        amend "backing_file=$name,backing_fmt=qcow2" \
            ".\"backing-filename\" == \"$name\" and
            .\"backing-filename-format\" == \"qcow2\" and $specific.compat ==
            \"$([ $i = 2 ] && echo 0.10 || echo 1.1)\""
    done
    amend backing_fmt=raw '."backing-filename-format" == "raw"'
    if [ $i = 1 ]; then
        amend compat=0.10 "$specific.compat == \"0.10\""
    else
        amend compat=1.1,backing_file= '."backing-filename" == null'
    fi
done
qemu-img compare -q disk before || fail "other names have changed the disk"

# Bitmaps stay, and lead where they led.
qemu-img bitmap --add disk b0
qemu-io -c 'write -q -P 1 5M 64k' disk
nbdelta map --bitmap b0 disk >bits
amend "backing_file=$long,backing_fmt=qcow2" "$specific.bitmaps[0].name == \"b0\""
amend backing_file= "$specific.bitmaps[0].name == \"b0\""
nbdelta map --bitmap b0 disk | diff bits -
qemu-img bitmap --remove disk b0

# Data files.
rm -f disk
qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on disk 1M
qemu-io -c 'write -q -P 5 0 1M' disk
mv data a-longer-name-of-the-data
amend data_file=a-longer-name-of-the-data \
    "$specific.\"data-file\" == \"a-longer-name-of-the-data\""
amend data_file_raw=off "$specific.\"data-file-raw\" == false"
qemu-io -c 'read -q -P 5 0 1M' disk

# Snapshots keep theirs.
rm -f disk
qemu-img create -q -f qcow2 disk 20000k
qemu-io -c 'write -q -P 1 0 1M' disk
qemu-img snapshot -c s disk
qemu-io -c 'write -q -z 512k 3M' -c 'write -q -P 3 9M 1M' disk
cp disk before
both compat=0.10
both compat=1.1
qemu-img snapshot -a s disk
qemu-io -c 'read -q -P 1 0 1M' -c 'read -q -P 0 1M 3M' disk

# --- What is refused ---

refused() { # TEXT OPTIONS [ARG...]
    cp disk kept
    if nbdelta amend "${@:3}" -o "$2" disk >out 2>err; then
        fail "amend -o $2: not refused"
    fi
    grep -qF -- "$1" err || fail "amend -o $2: $(cat err)"
    # (It is rounded up to whole clusters.)
    cmp -n "$(stat -c %s kept)" kept disk ||
        fail "amend -o $2 has changed the image"
}

made() { # OPTIONS
    rm -f disk
    qemu-img create -q -f qcow2 -o "$1" disk 2M
    qemu-io -c 'write -q -P 1 1M 64k' disk
}

made compat=1.1
refused 'cluster_size cannot be changed' cluster_size=4k
refused 'refcount_bits cannot be changed' refcount_bits=8
refused "'compat' must be" compat=0.9
refused 'does not take' colour=red
refused 'keys of an encrypted image' encrypt.state=active,encrypt.new-secret=s
refused 'only supported with compatibility' lazy_refcounts=on,compat=0.10
refused 'external data file' data_file=x
refused 'data-file-raw cannot be set' data_file_raw=on
refused 'cannot be its own' backing_file=disk,backing_fmt=qcow2
refused 'needs backing_fmt' backing_file=base
refused 'without backing file' backing_fmt=raw
refused 'too long' "backing_file=$(printf 'd%.0s' {1..1100}),backing_fmt=raw"
refused 'nbdelta resize --shrink' size=1M
refused 'multiple of 512' size=3000000
refused 'does not support option amendment' size=4M -f raw
nbdelta amend -o refcount_bits=16,size=2M disk

down() { # TEXT
    refused "compat=0.10: $1" compat=0.10
    refused "compat=0.10: $1" compat=0.10,size=4M
}
qemu-img bitmap --add disk b0
down 'the image has bitmaps'
made compat=1.1
qemu-io -c 'write -q -z 0 64k' disk
qemu-img snapshot -c old disk
down "snapshot 'old' has"
made compat=1.1
qemu-img snapshot -c old disk
qemu-img resize -q disk 3M
down "snapshot 'old' has another size"
made extended_l2=on
down 'the image has extended L2 entries'
made compression_type=zstd
down 'the image has compression_type=zstd'
made refcount_bits=8
down 'it needs refcount_bits=16'
made data_file=data
down 'the image has an external data file'

nbdelta amend -o help >out
grep -q lazy_refcounts out
rc=0
nbdelta amend disk 2>err || rc=$?
[ $rc = 2 ]
made compat=1.1
serve vda=disk
refused lock compat=0.10
stop_server

# Encrypted: the header alone needs no key, the disk's zeroes do.
printf secret >key
secret=secret,id=s,file=key
opts=driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename=disk
rm -f disk
nbdelta create --object $secret \
    -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1 disk 2M
qemu-io --object $secret --image-opts $opts -c 'write -q -P 5 0 1M' \
    -c 'write -q -z 512k 64k' >out
nbdelta amend -o backing_file=base,backing_fmt=qcow2 disk
refused 'key-secret' compat=0.10
nbdelta amend --object $secret --image-opts -o compat=0.10 "$opts"
nbdelta amend -o backing_file= disk
qemu-io --object $secret --image-opts $opts -c 'read -q -P 5 0 512k' \
    -c 'read -q -P 0 512k 64k' -c 'read -q -P 5 576k 448k' >out
[ ! -s out ] || fail "$(cat out)"
qemu-img check -q --object $secret --image-opts $opts
