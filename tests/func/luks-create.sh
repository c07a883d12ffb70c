#!/bin/bash
# Images with LUKS that we make: QEMU opens them, and reads and writes them, over
# ciphers, versions, preallocation; the command line's and QMP's.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

printf 'open sesame' >key
printf 'open barley' >wrong
secret=secret,id=s,file=key
luks=encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10

opts() { # IMAGE
    echo "driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename=$1"
}

qemu() { # IMAGE QEMU-IO-OPTION...
    local image=$1
    shift
    qemu-io --object $secret --image-opts "$(opts "$image")" "$@" >out ||
        fail "$image: qemu-io"
    ! grep -i 'failed\|error' out || fail "$image: qemu-io"
}

checked() { # IMAGE
    nbdelta check -q "$1" || fail "$1: nbdelta check"
    qemu-img check -q --object $secret --image-opts "$(opts "$1")" ||
        fail "$1: qemu-img check"
}

# detached-header: since QEMU 9.
specific='."format-specific" | del(.data.encrypt."detached-header")'

try() { # IMAGE OPTIONS CIPHER MODE VECTOR HASH
    nbdelta create --object $secret -o "$luks,$2" "$1" 6M
    checked "$1"
    qemu "$1" -c 'read -P 0 0 6M' -c 'write -P 5 100k 3M'
    qemu "$1" -c 'read -P 0 0 100k' -c 'read -P 5 100k 3M' -c 'read -P 0 3172k 1M'
    checked "$1"
    diff <(qemu-img info --output json "$1" | jq -S "$specific") \
        <(nbdelta info --output json "$1" | jq -S "$specific")
    qemu-img info --output json "$1" | jq -e --arg want "$3 $4 $5 $6" '
        ."format-specific".data.encrypt |
        [."cipher-alg", ."cipher-mode", ."ivgen-alg", ."hash-alg"] |
        join(" ") == $want' >out || fail "$1 has not $3 $4 $5 $6"
}

try a.qcow2 cluster_size=64k aes-256 xts plain64 sha256
try b.qcow2 cluster_size=512,encrypt.cipher-alg=aes-192,encrypt.hash-alg=sha512 \
    aes-192 xts plain64 sha512
try c.qcow2 compat=0.10,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv \
    aes-256 cbc essiv sha256
try d.qcow2 cluster_size=2M,encrypt.cipher-alg=aes-128,encrypt.hash-alg=sha1,encrypt.ivgen-alg=plain \
    aes-128 xts plain sha1
try e.qcow2 data_file=e.data,cluster_size=4k aes-256 xts plain64 sha256

# Another passphrase opens none of them.
if qemu-io --object secret,id=s,file=wrong --image-opts "$(opts a.qcow2)" \
    -c 'read 0 512' >out 2>&1; then
    fail "a wrong passphrase opened the image"
fi
# No two have the same keys.
nbdelta create --object $secret -o "$luks" f.qcow2 6M
[ "$(nbdelta info --output json a.qcow2 | jq '."format-specific".data.encrypt.uuid')" != \
    "$(nbdelta info --output json f.qcow2 | jq '."format-specific".data.encrypt.uuid')" ]

# --- A repair does not move what is encrypted for its place ---

number() { # FILE OFFSET: 8 bytes of a table, without flags
    echo $((16#$(od -An -v -tx1 -j "$2" -N 8 "$1" | tr -d ' \n') &
        0x00fffffffffffe00))
}
qemu f.qcow2 -c 'write -P 1 0 64k'
l2=$(number f.qcow2 "$(number f.qcow2 40)")
printf '\200\0\0\0\0\4\0\0' | # where the LUKS header is
    dd of=f.qcow2 bs=1 seek="$l2" conv=notrunc status=none
cp f.qcow2 before
if nbdelta check -r all f.qcow2 >out 2>&1; then
    fail "encrypted data on a table were moved"
fi
grep -q 'copy the disk to a new image' out || fail "repair: said '$(cat out)'"
cmp f.qcow2 before || fail "a repair that was refused has changed the image"

# --- Preallocation reads as zeroes ---

for compat in 1.1 0.10; do
    for how in metadata falloc full; do
        nbdelta create --object $secret \
            -o "$luks,compat=$compat,preallocation=$how" p.qcow2 3M
        qemu p.qcow2 -c 'read -P 0 0 3M' -c 'write -P 7 70k 1k'
        qemu p.qcow2 -c 'read -P 7 70k 1k' -c 'read -P 0 0 70k' \
            -c 'read -P 0 71k 3001k'
        checked p.qcow2
        [ "$(nbdelta map --object $secret --output json "$(opts p.qcow2)" |
            jq 'map(select(.present) | .length) | add')" = 3145728 ] ||
            fail "preallocation=$how with compat=$compat allocates not all"
    done
done

# --- QMP ---

serve --object $secret --blockdev "node-name=d,$(opts a.qcow2)"
for pre in off full; do
    truncate -s 0 q.qcow2
    nbdelta qmp --wait "$qmp_sock" blockdev-create '{"job-id": "c-'$pre'", "options":
        {"driver": "qcow2", "size": 4194304, "preallocation": "'$pre'",
         "file": {"driver": "file", "filename": "q.qcow2"},
         "encrypt": {"format": "luks", "key-secret": "s", "iter-time": 10,
                     "cipher-alg": "aes-128"}}}' >out || fail "QMP: $(cat out)"
    qmp blockdev-add "{\"node-name\": \"q\", \"driver\": \"qcow2\",
        \"encrypt\": {\"key-secret\": \"s\"},
        \"file\": {\"driver\": \"file\", \"filename\": \"q.qcow2\"}}" >out
    qmp blockdev-del '{"node-name": "q"}' >out
    qemu q.qcow2 -c 'read -P 0 0 4M' -c 'write -P 1 1M 5k'
    checked q.qcow2
done
stop_server

# --- What is refused, and leaves nothing behind ---

refused() { # TEXT OPTIONS
    if nbdelta create --object $secret -o "$2" no.qcow2 1M >out 2>&1; then
        fail "$2 was not refused"
    fi
    grep -qF -e "$1" out || fail "$2: said '$(cat out)', not '$1'"
    [ ! -e no.qcow2 ] || fail "$2 left a file"
}
refused "'encrypt.format' is missing" encrypt.key-secret=s
refused "'encrypt.key-secret' is required" encrypt.format=luks
refused "take encrypt.format=luks" encrypt.format=aes,encrypt.key-secret=s
refused "No secret with id 't'" encrypt.format=luks,encrypt.key-secret=t
refused "serpent-256" $luks,encrypt.cipher-alg=serpent-256
refused "ecb" $luks,encrypt.cipher-mode=ecb
refused "md5" $luks,encrypt.hash-alg=md5
refused "aes-192" $luks,encrypt.cipher-alg=aes-192,encrypt.cipher-mode=cbc
refused "iter-time" encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=0
refused "data-file-raw" $luks,data_file=x.raw,data_file_raw=on
[ ! -e x.raw ] || fail "a data file was left"

# Not together with compression.
truncate -s 1M raw.img
serve --object $secret \
    --blockdev driver=raw,node-name=r,file.driver=file,file.filename=raw.img \
    --blockdev "node-name=d,$(opts a.qcow2)"
if qmp blockdev-backup '{"job-id": "j", "device": "r", "target": "d",
    "sync": "full", "compress": true}' >out 2>&1; then
    fail "an encrypted image takes compressed clusters"
fi
stop_server
